"""Message passing on chains: pure functions of potentials, which know no model."""

from jaxem.messages.forward_backward import Smoothed, forward_backward
from jaxem.messages.sample import sample_backwards
from jaxem.messages.viterbi import viterbi

__all__ = ["Smoothed", "forward_backward", "sample_backwards", "viterbi"]
