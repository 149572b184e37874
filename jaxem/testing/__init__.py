"""The laws of EM as checks, for jaxem's own models and for yours.

`check_model` takes a model and a data set and checks every law that applies; `check_family` does the same for a family by
itself. A law that fails raises AssertionError and says which, where, and by how much. Laws are checked in float64,
whatever the surrounding configuration is, because most of them are exact up to rounding.
"""

from jaxem.testing.case import Case
from jaxem.testing.family_laws import check_family
from jaxem.testing.model_laws import LAWS, check_model

__all__ = ["LAWS", "Case", "check_family", "check_model"]
