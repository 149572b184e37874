"""The tests can fail: each deliberate fault of faults.py is seen by the test or law of the default tier named beside it.

Should somebody thin out the tests, this fails.
"""

import functools
import inspect
import os

import jax
import pytest
from faults import FAULTS, Fault, Law

from jaxem.testing import LAWS

PLACES = (
    "E-step",
    "M-step",
    "q",
    "weights",
    "masks",
    "poison",
    "compensation",
    "sampler",
    "free coordinates",
    "stopping rule",
    "status",
    "best of starts",
    "lanes",
    "chunks",
    "shards",
)
_JAX = os.path.dirname(jax.__file__)


@functools.cache
def _passes(check):
    """Without a fault the check passes; asked once."""
    check()


def _caches():
    """What the modules of tests remember between tests."""
    import sys

    found = {}
    for name, module in list(sys.modules.items()):
        if name.startswith("test_"):
            for value in vars(module).values():
                if hasattr(value, "cache_info") and hasattr(value, "cache_clear"):
                    found[value] = value.cache_info().currsize
    return found


@pytest.fixture
def forgetful():
    """Compiled programs hold the code that they were made from: none goes into or comes out of a test with a fault."""
    before = _caches()
    jax.clear_caches()
    yield
    jax.clear_caches()
    for cached, size in _caches().items():
        if size != before.get(cached, 0):
            cached.cache_clear()


def _named(fault):
    return f"{fault.place}: {fault.what}"


@pytest.mark.parametrize("fault", FAULTS, ids=_named)
class TestEveryFault:
    def test_is_seen(self, fault: Fault, monkeypatch, request):
        _passes(fault.check)
        request.getfixturevalue("forgetful")
        owner, name = fault.owner
        changed, calls = fault.change(vars(owner)[name]), []

        @functools.wraps(changed, updated=())
        def watched(*args, **options):
            calls.append(None)
            return changed(*args, **options)

        monkeypatch.setattr(owner, name, watched)
        # AssertionError, or what pytest.raises and pytest.warns raise: a crash proves nothing.
        with pytest.raises((AssertionError, pytest.fail.Exception), match=fault.check.says) as caught:
            fault.check()
        assert calls, "the function that has the fault was never called"
        assert not str(caught.traceback[-1].path).startswith(_JAX), "JAX failed, not the check"

    def test_changes_the_function_that_it_names(self, fault: Fault):
        owner, name = fault.owner
        original = vars(owner)[name]
        changed = fault.change(original)
        assert callable(original)
        assert changed is not original
        if inspect.isfunction(original) and changed.__name__ == original.__name__:
            assert inspect.signature(changed) == inspect.signature(original)
            assert _code(changed) != _code(original)


def _code(function):
    """All that a function does: its instructions, its constants and names, and those of the functions inside it."""
    code = getattr(function, "__code__", function)
    constants = tuple(_code(c) if hasattr(c, "co_code") else repr(c) for c in code.co_consts)
    return code.co_code, constants, code.co_names


def test_every_place_has_a_fault():
    assert {fault.place for fault in FAULTS} == set(PLACES)
    assert len({_named(fault) for fault in FAULTS}) == len(FAULTS)


def test_every_law_has_a_fault_that_it_sees():
    assert {fault.check.law for fault in FAULTS if isinstance(fault.check, Law)} == set(LAWS)
