"""What the default tier asks, one question at a time: a law of one row of test_laws.py, or one case of one test."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_laws

from jaxem.testing import LAWS

# A test with one of these marks is not in the default tier, and so proves nothing about it.
NOT_BY_DEFAULT = {"slow", "full", "skip", "skipif", "xfail"}


@dataclasses.dataclass(frozen=True)
class Law:
    """A row of the table of models, as test_laws.py checks it, but for one law only."""

    law: str
    row: str

    def __call__(self) -> None:
        in_default_tier(test_laws.test_model, {"name": self.row})
        with pytest.MonkeyPatch.context() as patch:
            for other in set(LAWS) - {self.law}:
                patch.setitem(LAWS, other, lambda case: None)
            assert self.law not in test_laws.LEFT_OUT.get(self.row, {}), f"{self.row} leaves law {self.law} out"
            test_laws.test_model(self.row)

    @property
    def says(self) -> str:
        return f"law {self.law}"

    @property
    def node(self) -> tuple[str, dict[str, Any]]:
        """The test that it is a part of, and the arguments of its case."""
        return "test_laws:test_model", {"name": self.row}


@dataclasses.dataclass(frozen=True)
class FamilyLaw:
    """A row of the table of families, as test_laws.py checks it. says: how the error begins."""

    says: str
    row: str

    @property
    def node(self) -> tuple[str, dict[str, Any]]:
        return "test_laws:test_family", {"name": self.row}

    def __call__(self) -> None:
        in_default_tier(test_laws.test_family, {"name": self.row})
        test_laws.test_family(self.row)


@dataclasses.dataclass(frozen=True)
class Case:
    """A test function by its name, ``"test_driver:TestRank.test_x"``, with the arguments of one of its cases."""

    name: str
    arguments: tuple[tuple[str, Any], ...] = ()
    says: str = ""

    @property
    def node(self) -> tuple[str, dict[str, Any]]:
        return self.name, dict(self.arguments)

    def __call__(self) -> None:
        module, _, path = self.name.partition(":")
        *owner, name = path.split(".")
        home = importlib.import_module(module)
        function = getattr(getattr(home, owner[0])() if owner else home, name)
        arguments = dict(self.arguments)
        in_default_tier(function, arguments)
        with contextlib.ExitStack() as stack:
            for fixture in set(inspect.signature(function).parameters) - set(arguments):
                arguments[fixture] = stack.enter_context(_FIXTURES[fixture]())
            if "dtype" in arguments:
                stack.enter_context(jax.enable_x64(arguments["dtype"] == "float64"))
                arguments["dtype"] = jnp.dtype(arguments["dtype"])
            stack.enter_context(_random_numbers_of(home))
            function(**arguments)


def case(test: str, /, **arguments: Any) -> Case:
    return Case(test, tuple(arguments.items()))


@contextlib.contextmanager
def _random_numbers_of(module: Any) -> Iterator[None]:
    """A module's generators are left where they were: its own tests see the numbers that they see without us."""
    generators = [value for value in vars(module).values() if isinstance(value, np.random.Generator)]
    states = [generator.bit_generator.state for generator in generators]
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.bit_generator.state = state


@contextlib.contextmanager
def _type(dtype: str) -> Iterator[Any]:
    with jax.enable_x64(dtype == "float64"):
        yield jnp.dtype(dtype)


_FIXTURES = {
    "float32": lambda: _type("float32"),
    "float64": lambda: _type("float64"),
    "monkeypatch": pytest.MonkeyPatch.context,
}


def in_default_tier(function: Any, arguments: dict[str, Any]) -> None:
    """Fail unless the default tier runs a test with these arguments: they are one of its cases, and none has a mark."""
    owner = getattr(function, "__self__", None)
    home = inspect.getmodule(function)
    marks = [*function.pytestmark] if hasattr(function, "pytestmark") else []
    for place in (type(owner), home):
        own = getattr(place, "pytestmark", [])
        marks += own if isinstance(own, list) else [own]
    assert not NOT_BY_DEFAULT & {mark.name for mark in marks}, f"{function.__name__} is not in the default tier"
    for mark in marks:
        if mark.name != "parametrize":
            continue
        names = [n.strip() for n in mark.args[0].split(",")] if isinstance(mark.args[0], str) else list(mark.args[0])
        given = [arguments[name] for name in names]
        assert any(_is_case(given, one, len(names)) for one in mark.args[1]), f"{given} is no case of {function}"


def _is_case(given: list[Any], one: Any, count: int) -> bool:
    left_out = {mark.name for mark in getattr(one, "marks", ())} & NOT_BY_DEFAULT
    values = one.values if hasattr(one, "marks") else (one if count > 1 else [one])
    return not left_out and list(values) == given
