"""Stopping rules by themselves, on progress written down by hand."""

import jax.numpy as jnp
import pytest

import jaxem
from jaxem.stopping import Plateau, Progress, Settled


def progress(objective, previous=0.0, params=None, weight=10.0):
    return Progress(params, jnp.float32(objective), jnp.float32(previous), jnp.float32(weight))


@pytest.mark.parametrize("rule", ["RelativeGain", "AbsoluteGain"])
def test_a_fall_is_no_small_gain(rule):
    """An objective may fall where the M-step is not EM's (an acceleration, a guess): that is no convergence."""
    assert not bool(getattr(jaxem, rule)(0.1).check((), progress(-15.0, -10.0))[1])


def test_every_leaf_has_to_rest():
    rule = jaxem.ParameterChange(0.01)
    before = {"still": jnp.ones(2), "moving": jnp.ones(2)}
    assert bool(rule.check(before, progress(0, params=before))[1])
    for moved in before:
        after = before | {moved: jnp.array([1.0, 1.1])}
        assert not bool(rule.check(before, progress(0, params=after))[1]), moved


def met_at(rule, objectives):
    """After how many of the objectives a rule is met for the first time; None for never."""
    memory = rule.start(None, jnp.float32(0))
    for count, objective in enumerate(objectives, 1):
        memory, met = rule.check(memory, progress(objective))
        if bool(met):
            return count
    return None


def test_a_plateau_is_two_windows_whose_means_are_near():
    assert met_at(Plateau(0.1, window=2), [5, 5, 5, 5]) == 4  # not before there are two windows
    assert met_at(Plateau(0.1, window=2), [0, 4, 8, 12, 16]) is None
    assert met_at(Plateau(0.1, window=2), [0, 4, 8, 8.5, 8.5, 8.5]) == 6  # 8.5 after 8.25, not 8.5 after 6
    assert met_at(Plateau(0.1, window=2), [8, 8, 0, 0]) == 4  # a mean that falls is no trend upwards


def test_settled_is_a_window_within_tol():
    assert met_at(Settled(0.1, window=3), [5, 5, 5]) == 3  # not before there is a window
    assert met_at(Settled(0.1, window=3), [0, 4, 8, 12]) is None
    assert met_at(Settled(0.1, window=3), [9, 5, 5.5, 4.6]) == 4  # small gains and falls alike
    assert met_at(Settled(0.1, window=3), [5, 9, 5, 9]) is None
