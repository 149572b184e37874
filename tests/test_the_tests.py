"""The tests can fail: each deliberate fault of faults.py is seen by the test or law of the default tier named beside it.

Should somebody thin out the tests, this fails.
"""

import collections
import functools
import inspect
import os
import sys

import jax
import pytest
import tiers
from default_tier import Law
from faults import FAULTS, Fault

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


def _modules():
    """The library's and the tests' that are loaded."""
    return [
        module for name, module in list(sys.modules.items()) if name.split(".")[0] == "jaxem" or name[:5] == "test_"
    ]


def _remembered():
    """Jitted functions and methods, and functions with a cache, of the library and of the tests."""
    for module in _modules():
        for value in list(vars(module).values()):
            if isinstance(value, type):
                yield from (part for part in vars(value).values() if callable(part) and not isinstance(part, type))
            elif callable(value):
                yield value


def _forget_programs():
    """Programs hold the code that they were made from. (All of JAX's would be to compile every small one again.)"""
    for function in _remembered():
        if hasattr(function, "clear_cache") and not isinstance(function, type):
            function.clear_cache()


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_left():
    """Nor does anything that was traced with a fault outlive this file."""
    yield
    jax.clear_caches()


@pytest.fixture
def forgetful():
    """No compiled program, and no number, goes into or comes out of a test with a fault."""
    before = {function: function.cache_info().currsize for function in _remembered() if _is_cache(function)}
    _forget_programs()
    yield
    _forget_programs()
    for function in _remembered():
        if _is_cache(function) and function.cache_info().currsize != before.get(function, 0):
            function.cache_clear()


def _is_cache(function):
    return hasattr(function, "cache_info") and hasattr(function, "cache_clear")


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

        for home, as_name in _everywhere(owner, name):
            monkeypatch.setattr(home, as_name, watched)
        # AssertionError, or what pytest.raises and pytest.warns raise: a crash proves nothing.
        with pytest.raises((AssertionError, pytest.fail.Exception), match=fault.check.says or None) as caught:
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
            assert _code(inspect.unwrap(changed)) != _code(inspect.unwrap(original))


def _everywhere(owner, name):
    """The place of a function, and every module of the library and of the tests that has imported it."""
    original = vars(owner)[name]
    yield owner, name
    for module in _modules():
        if module is not owner:
            yield from ((module, as_name) for as_name, value in list(vars(module).items()) if value is original)


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


def test_the_default_tier_runs_every_check(request):
    """Of the files that were collected; what the tiers leave out was taken away before the tests began."""
    ran = collections.defaultdict(list)
    for item in request.session.items:
        ran[tiers.path_of(item)].append(getattr(getattr(item, "callspec", None), "params", {}))
    files = {name.split(":")[0] for name in ran}
    asked = [fault.check.node for fault in FAULTS if fault.check.node[0].split(":")[0] in files]
    left_out = [
        f"{name} of {arguments}"
        for name, arguments in asked
        if not any(arguments.items() <= params.items() for params in ran[name])
    ]
    assert not left_out
