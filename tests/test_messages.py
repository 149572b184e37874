"""Forward-backward and Viterbi as functions of potentials: against all paths, and blocks of time against one scan."""

import sys

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paths import every_path, random_chain

from jaxem.messages import forward_backward, viterbi

FORWARD_BACKWARD = jax.jit(forward_backward, static_argnames=("blocks", "keep"))
VITERBI = jax.jit(viterbi)
MODULE = sys.modules["jaxem.messages.forward_backward"]


def smooth(initial, transition, potentials, starts=None, *, pair_weights=None, blocks=1):
    """With everything that it can be asked for; every pair counts."""
    if pair_weights is None:
        pair_weights = np.ones(potentials.shape[:2], potentials.dtype)
        if starts is not None:
            pair_weights[:, :-1][starts[:, 1:]] = 0
    return FORWARD_BACKWARD(initial, transition, potentials, starts, pair_weights, blocks=blocks, keep=True)


def pairs_of(smoothed, transition):
    """p(z_t, z_{t+1} | x), [B, T − 1, K, K], from the messages."""
    out_of = transition if transition.ndim == 2 else transition[:, :-1]
    before, after = smoothed.filtered[:, :-1, :, None], smoothed.ahead[:, 1:, None, :]
    return smoothed.factor[:, :-1, None, None] * before * out_of * after


def check_against_paths(initial, transition, potentials, smoothed, rtol=1e-11):
    """Every sequence of a batch; transition may be [K, K] or [B, T, K, K]."""
    pairs = pairs_of(smoothed, transition)
    for b, own_potentials in enumerate(potentials):
        own = transition if transition.ndim == 2 else transition[b]
        expected = every_path(initial, own, own_potentials)
        np.testing.assert_allclose(np.sum(smoothed.evidence[b]), expected.log_normalizer, rtol=rtol)
        np.testing.assert_allclose(smoothed.marginals[b], expected.marginals, rtol=0, atol=rtol)
        np.testing.assert_allclose(pairs[b], expected.pairs, rtol=0, atol=rtol)
        # The filtered distribution and the evidence of a prefix are those of the sequence cut there.
        for t in (1, potentials.shape[1] // 2):
            cut = every_path(initial, own if own.ndim == 2 else own[:t], own_potentials[:t])
            np.testing.assert_allclose(np.sum(smoothed.evidence[b, :t]), cut.log_normalizer, rtol=rtol)
            np.testing.assert_allclose(smoothed.filtered[b, t - 1], cut.marginals[-1], rtol=0, atol=rtol)


class TestAgainstAllPaths:
    @pytest.mark.parametrize("blocks", [1, 2, 4])
    @pytest.mark.parametrize("k", [1, 2, 3])
    def test_messages(self, float64, k, blocks):
        rng = np.random.default_rng(k)
        initial, transition = random_chain(rng, k)
        potentials = 3 * rng.normal(size=(2, 6, k))
        check_against_paths(initial, transition, potentials, smooth(initial, transition, potentials, blocks=blocks))

    @pytest.mark.parametrize("blocks", [1, 3])
    def test_weighted_pair_sums(self, float64, blocks):
        rng = np.random.default_rng(0)
        initial, transition = random_chain(rng, 3)
        potentials = 2 * rng.normal(size=(2, 6, 3))
        weights = rng.choice([0, 1, 2.5], (2, 6))
        smoothed = smooth(initial, transition, potentials, blocks=blocks, pair_weights=weights)
        pairs = np.stack([every_path(initial, transition, p).pairs for p in potentials])
        expected = np.einsum("bt,btij->ij", weights[:, :-1], pairs)
        np.testing.assert_allclose(transition * smoothed.pairs, expected, rtol=1e-11)
        assert FORWARD_BACKWARD(initial, transition, potentials).pairs is None

    @pytest.mark.parametrize("blocks", [1, 2])
    def test_a_transition_for_every_step(self, float64, blocks):
        rng = np.random.default_rng(0)
        steps, sequences, k = 5, 2, 3
        initial = rng.dirichlet(np.ones(k))
        transition = rng.dirichlet(np.ones(k), (sequences, steps, k))
        transition[0, 2] = np.eye(k)[[1, 2, 0]]  # one of them deterministic
        potentials = 2 * rng.normal(size=(sequences, steps, k))
        weights = np.ones((sequences, steps))
        weights[:, -1] = 0
        smoothed = smooth(initial, transition, potentials, blocks=blocks, pair_weights=weights)
        check_against_paths(initial, transition, potentials, smoothed)
        path = VITERBI(initial, transition, potentials)
        for b in range(sequences):
            np.testing.assert_array_equal(path[b], every_path(initial, transition[b], potentials[b]).best)
        # The transition out of the last step leads nowhere.
        other = transition.copy()
        other[:, -1] = np.eye(k)
        again = smooth(initial, other, potentials, blocks=blocks, pair_weights=weights)
        np.testing.assert_allclose(again.marginals, smoothed.marginals, atol=1e-15)
        np.testing.assert_allclose(again.pairs, smoothed.pairs, rtol=1e-14)
        np.testing.assert_array_equal(VITERBI(initial, other, potentials), path)

    @pytest.mark.parametrize("blocks", [1, 3])
    def test_starts_cut_the_chain(self, float64, blocks):
        rng = np.random.default_rng(3)
        k, lengths = 3, (4, 1, 5, 2)
        initial, transition = random_chain(rng, k, zeros=0.3)
        potentials = 2 * rng.normal(size=(sum(lengths), k))
        begins = np.cumsum((0, *lengths[:-1]))
        starts = np.zeros(len(potentials), bool)
        starts[begins] = True
        smoothed = smooth(initial, transition, potentials[None], starts[None], blocks=blocks)
        pairs = pairs_of(smoothed, transition)[0]
        path = VITERBI(initial, transition, potentials[None], starts[None])[0]
        for begin, length in zip(begins, lengths, strict=True):
            own = slice(begin, begin + length)
            expected = every_path(initial, transition, potentials[own])
            np.testing.assert_allclose(np.sum(smoothed.evidence[0, own]), expected.log_normalizer, rtol=1e-11)
            np.testing.assert_allclose(smoothed.marginals[0, own], expected.marginals, atol=1e-11)
            np.testing.assert_allclose(pairs[begin : begin + length - 1], expected.pairs, atol=1e-11)
            np.testing.assert_array_equal(path[own], expected.best)

    @pytest.mark.parametrize("blocks", [1, 2])
    def test_impossible_steps_are_minus_infinity_and_never_nan(self, float64, blocks):
        rng = np.random.default_rng(4)
        initial, transition = np.array([0.4, 0.6, 0.0]), np.array([[0.5, 0.5, 0], [0, 1, 0], [0.2, 0.3, 0.5]])
        potentials = rng.normal(size=(4, 6, 3))
        potentials[0, 3] = -np.inf  # no state gives the step
        potentials[1, 2, :2] = -np.inf  # only a state that cannot be reached does
        potentials[2, 4, 1] = -np.inf  # and here the other ways through stay open
        smoothed = smooth(initial, transition, potentials, blocks=blocks)
        assert not any(np.any(np.isnan(leaf)) for leaf in jax.tree.leaves(smoothed))
        for b in range(4):
            expected = every_path(initial, transition, potentials[b])
            np.testing.assert_allclose(np.sum(smoothed.evidence[b]), expected.log_normalizer, rtol=1e-11)
            np.testing.assert_allclose(smoothed.marginals[b], expected.marginals, atol=1e-12)
        # The first step that cannot be is the first of evidence −∞; what comes before is as it was.
        assert np.argmax(np.isneginf(smoothed.evidence[0])) == 3
        assert np.argmax(np.isneginf(smoothed.evidence[1])) == 2

    @pytest.mark.parametrize("blocks", [1, 2, 3, 4])
    @pytest.mark.parametrize("impossible", range(12))
    def test_an_impossible_sequence_disturbs_no_other(self, float64, blocks, impossible):
        """Flat, the sequences beside it, before and after it, are what they are alone; wherever borders fall."""
        rng = np.random.default_rng(4)
        initial, transition = random_chain(rng, 3)
        potentials = rng.normal(size=(1, 12, 3))
        potentials[0, impossible] = -np.inf
        starts = np.zeros((1, 12), bool)
        starts[0, [0, 5, 7]] = True
        smoothed = smooth(initial, transition, potentials, starts, blocks=blocks)
        for own in (slice(0, 5), slice(5, 7), slice(7, 12)):
            expected = every_path(initial, transition, potentials[0, own])
            np.testing.assert_allclose(np.sum(smoothed.evidence[0, own]), expected.log_normalizer, rtol=1e-11)
            np.testing.assert_allclose(smoothed.marginals[0, own], expected.marginals, atol=1e-12)

    def test_a_step_without_an_observation(self, float64):
        """Potentials of 0 are no evidence: the chain runs on, and padding at the end changes nothing."""
        rng = np.random.default_rng(5)
        initial, transition = random_chain(rng, 3)
        potentials = rng.normal(size=(1, 4, 3))
        longer = np.concatenate([potentials, np.zeros((1, 3, 3))], axis=1)
        short, padded = (smooth(initial, transition, p) for p in (potentials, longer))
        np.testing.assert_allclose(padded.marginals[:, :4], short.marginals, atol=1e-14)
        np.testing.assert_allclose(padded.evidence[:, 4:], 0, atol=1e-15)
        check_against_paths(initial, transition, longer[:, :6], smooth(initial, transition, longer[:, :6]))


class TestViterbi:
    @pytest.mark.parametrize("k", [1, 2, 3])
    def test_the_best_path(self, float64, k):
        rng = np.random.default_rng(k)
        initial, transition = random_chain(rng, k, zeros=0.3)
        potentials = rng.normal(size=(8, 6, k))
        path = np.asarray(VITERBI(initial, transition, potentials))
        for b in range(8):
            expected = every_path(initial, transition, potentials[b])
            assert expected.second < expected.score - 1e-6 or k == 1  # no ties here
            np.testing.assert_array_equal(path[b], expected.best)

    def test_ties_give_one_of_the_best_paths(self, float64):
        initial, transition, potentials = np.full(3, 1 / 3), np.full((3, 3), 1 / 3), np.zeros((2, 5, 3))
        potentials[0, 2] = 0, 1, 1
        path = np.asarray(VITERBI(initial, transition, potentials))
        assert path[0, 2] in (1, 2)
        assert path.min() >= 0
        assert path.max() <= 2

    def test_scores_keep_their_digits_over_long_chains(self, float32):
        """A preference of 0.01 for the true state a million nats into the chain: a running sum would have lost it."""
        steps, k = 200_000, 2
        z = np.random.default_rng(0).integers(0, k, steps)
        potentials = np.full((1, steps, k), -50.0, np.float32)
        potentials[0, np.arange(steps), z] += 0.01
        flat = np.full((k, k), 1 / k, np.float32)
        path = np.asarray(VITERBI(flat[0], flat, potentials))[0]
        np.testing.assert_array_equal(path, z)

    def test_impossible_potentials_are_never_on_the_path(self, float32):
        """A label, as a potential of −∞ elsewhere, is kept; a chain without any way through has some path, not NaN."""
        left_to_right = np.array([[0.5, 0.5, 0], [0, 0.5, 0.5], [0, 0, 1]], np.float32)
        initial, potentials = np.array([1, 0, 0], np.float32), np.zeros((2, 5, 3), np.float32)
        potentials[0, 4, :2] = -np.inf
        potentials[1, 2] = -np.inf
        path = np.asarray(VITERBI(initial, left_to_right, potentials))
        assert path[0, 4] == 2
        assert np.all(np.diff(path[0]) >= 0)
        assert np.all((path >= 0) & (path <= 2))


def long_chain(kind, rng, steps, k=3):
    """(initial, transition, potentials [1, T, K]) of a chain of a kind that a block of time could get wrong."""
    initial, transition = random_chain(rng, k)
    potentials = 2 * rng.normal(size=(1, steps, k))
    if kind == "sticky":  # weak evidence, and nothing is forgotten: what a border is guessed from says nothing
        transition = np.where(np.eye(k, dtype=bool), 0.9999, 0.0001 / (k - 1))
        potentials *= 1e-3
    elif kind == "cycle":  # nothing is ever forgotten
        transition = np.eye(k)[[*range(1, k), 0]]
    elif kind == "absorbing":
        transition = np.array([[0.9, 0.1, 0], [0, 0.95, 0.05], [0, 0, 1]])[:k, :k]
        initial = np.eye(k)[0]
        potentials *= 0.1
    elif kind == "frozen":  # K chains that never meet
        transition = np.eye(k)
        potentials *= 0.01
    elif kind == "impossible":
        potentials[0, steps // 2] = -np.inf
    elif kind == "forced":  # one step allows one state only
        potentials[0, steps // 3, 1:] = -np.inf
        potentials[0, 2 * steps // 3, :2] = -np.inf
    return initial, transition, potentials


KINDS = ("mixing", "sticky", "cycle", "absorbing", "frozen", "impossible", "forced")


def same_messages(blocked, whole, rtol, transition=1.0):
    """What is read of the messages: their own scale is not, nor a sum over pairs with a transition of 0."""
    np.testing.assert_allclose(blocked.evidence, whole.evidence, rtol=rtol, atol=rtol)
    if blocked.filtered is not None:
        np.testing.assert_allclose(blocked.filtered, whole.filtered, rtol=0, atol=rtol)
    np.testing.assert_allclose(blocked.marginals, whole.marginals, rtol=0, atol=rtol)
    pairs = [transition * smoothed.pairs for smoothed in (blocked, whole)]
    np.testing.assert_allclose(*pairs, rtol=rtol, atol=rtol * np.max(pairs[1]))


class TestBlocks:
    # 37 steps: no number of blocks divides them.
    @pytest.mark.parametrize("blocks", [2, 8])
    @pytest.mark.parametrize("kind", KINDS)
    def test_blocks_equal_one_scan(self, float64, kind, blocks):
        rng = np.random.default_rng(0)
        initial, transition, potentials = long_chain(kind, rng, 37)
        whole, blocked = (smooth(initial, transition, potentials, blocks=s) for s in (1, blocks))
        same_messages(blocked, whole, 1e-12)
        pairs = [pairs_of(s, transition) for s in (blocked, whole)]
        np.testing.assert_allclose(*pairs, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("kind", KINDS)
    def test_blocks_with_starts(self, float64, kind):
        """Starts inside blocks, at their first step, at their last one, and twice in a row."""
        rng = np.random.default_rng(1)
        initial, transition, potentials = long_chain(kind, rng, 37)
        starts = np.zeros((1, 37), bool)
        starts[0, [0, 4, 9, 10, 11, 20, 36]] = True  # blocks of 10 begin at 0, 10, 20, 30
        whole, blocked = (smooth(initial, transition, potentials, starts, blocks=s) for s in (1, 4))
        same_messages(blocked, whole, 1e-12)

    @pytest.mark.parametrize("kind", KINDS)
    def test_in_float32(self, float32, kind):
        rng = np.random.default_rng(2)
        parts = tuple(np.float32(a) for a in long_chain(kind, rng, 37))
        whole, blocked = (smooth(*parts, blocks=s) for s in (1, 4))
        same_messages(blocked, whole, 3e-6)

    @pytest.mark.parametrize("blocks", [1, 8])
    def test_long_sticky_chains_in_float32(self, blocks):
        """Nothing is forgotten, and evidence of −500 a step, alike in all states, may not cost the digits of the rest."""
        steps, k, rng = 4000, 3, np.random.default_rng(0)
        transition = np.where(np.eye(k, dtype=bool), 0.9999, 0.0001 / (k - 1))
        potentials = -500 + 0.02 * rng.normal(size=(1, steps, k))
        chain = tuple(np.float32(a) for a in (np.full(k, 1 / k), transition, potentials))
        with jax.enable_x64(True):
            exact = jax.device_get(smooth(*(np.float64(a) for a in chain)))
        with jax.enable_x64(False):
            single = smooth(*chain, blocks=blocks)
        np.testing.assert_allclose(single.marginals, exact.marginals, rtol=0, atol=4e-4)
        np.testing.assert_allclose(single.pairs, exact.pairs, rtol=4e-4)
        np.testing.assert_allclose(single.evidence, exact.evidence, rtol=1e-6)

    @pytest.mark.parametrize("blocks", [1, 4])
    @pytest.mark.parametrize("size", [1e2, 1e4])
    def test_huge_potentials_in_float32(self, size, blocks):
        """Differences of 1e4 between the states of a step, either way: nothing overflows or gets lost."""
        rng = np.random.default_rng(6)
        initial, transition = (np.float32(a) for a in random_chain(rng, 3))
        potentials = np.float32(rng.choice([-size, 0.0, size], size=(2, 12, 3)) + rng.normal(size=(2, 12, 3)))
        with jax.enable_x64(True):
            exact = jax.device_get(smooth(*(np.float64(a) for a in (initial, transition, potentials))))
        with jax.enable_x64(False):
            single = smooth(initial, transition, potentials, blocks=blocks)
        np.testing.assert_allclose(single.evidence, exact.evidence, rtol=2e-6, atol=1e-4)
        np.testing.assert_allclose(single.marginals, exact.marginals, rtol=0, atol=2e-3 if size > 1e3 else 2e-5)

    @pytest.mark.parametrize("blocks", [1, 4])
    def test_a_state_that_is_alone_possible_keeps_its_weight(self, float32, blocks):
        """The impossible states look e³⁰⁰ times likelier: their weights must not be what others are compared with."""
        transition = np.float32([[0, 1, 0], [0, 0, 1], [1, 0, 0]])
        potentials = np.full((1, 16, 3), 150, np.float32)
        state = np.arange(16) % 3
        potentials[0, np.arange(16), state] = -150
        weights = np.float32([[*[1] * 15, 0]])
        smoothed = jax.jit(lambda p: forward_backward(p, transition, potentials, None, weights, blocks=blocks))(
            np.float32([1, 0, 0])
        )
        np.testing.assert_allclose(smoothed.evidence, np.full((1, 16), -150), rtol=1e-6)
        np.testing.assert_allclose(smoothed.marginals[0], np.eye(3)[state], rtol=1e-6)
        np.testing.assert_allclose(smoothed.pairs * transition, [[0, 5, 0], [0, 0, 5], [5, 0, 0]], rtol=1e-6)

    def test_several_sequences_under_vmap(self, float64):
        rng = np.random.default_rng(7)
        chains = [long_chain(kind, rng, 37) for kind in ("mixing", "sticky", "cycle")]
        stacked = tuple(np.stack(parts) for parts in zip(*chains, strict=True))
        lanes = jax.jit(jax.vmap(lambda *a: forward_backward(*a, None, jnp.ones((1, 37)), blocks=4)))(*stacked)
        for i, chain in enumerate(chains):
            # One lane that must be computed exactly takes the others with it, and they stay right.
            same_messages(jax.tree.map(lambda a, i=i: a[i], lanes), smooth(*chain), 1e-12)

    @hypothesis.given(
        steps=st.sampled_from([2, 16, 23]),
        concentration=st.sampled_from([0.02, 0.3, 3.0]),
        spread=st.sampled_from([1e-3, 1.0, 30.0]),
        zeros=st.sampled_from([0.0, 0.5]),
        seed=st.integers(0, 2**16),
    )
    @hypothesis.example(steps=16, concentration=0.02, spread=1e-3, zeros=0.5, seed=255)
    @hypothesis.settings(max_examples=40)
    def test_random_chains(self, float64, steps, concentration, spread, zeros, seed):
        rng = np.random.default_rng(seed)
        k = 3
        initial, transition = random_chain(rng, k, zeros)
        transition = transition ** (1 / concentration)
        transition /= transition.sum(axis=1, keepdims=True)
        potentials = spread * rng.normal(size=(2, steps, k))
        starts = (rng.random((2, steps)) < 0.1) | (np.arange(steps) == 0)
        whole, blocked = (smooth(initial, transition, potentials, starts, blocks=s) for s in (1, 3))
        same_messages(blocked, whole, 1e-10, transition)
        assert np.all(np.isfinite(whole.evidence))
        np.testing.assert_allclose(np.sum(blocked.marginals, axis=-1), 1, rtol=1e-10)


class TestTheGuessIsChecked:
    """A wrong guess of the borders must be seen, and the exact way taken."""

    @pytest.mark.parametrize("kind", ["mixing", "sticky", "absorbing", "impossible", "forced"])
    @pytest.mark.parametrize("way", ["forward", "backward"])
    def test_a_wrong_guess_is_not_believed(self, float64, monkeypatch, kind, way):
        calls = []
        guess = MODULE._guess

        def wrong(*args):
            calls.append(None)
            predicted, ahead = guess(*args)
            return (jnp.full_like(predicted, 1 / 3), ahead) if way == "forward" else (predicted, jnp.ones_like(ahead))

        initial, transition, potentials = long_chain(kind, np.random.default_rng(8), 41)
        whole = smooth(initial, transition, potentials)
        monkeypatch.setattr(MODULE, "_guess", wrong)
        blocked = jax.jit(lambda *a: forward_backward(*a, None, jnp.ones((1, 41)), blocks=4))(
            initial, transition, potentials
        )
        assert calls
        same_messages(blocked, whole, 1e-12)

    def test_the_guess_of_a_sticky_chain_is_wrong(self, float64, monkeypatch):
        """So the tests above do test the exact way: without it the sticky chain comes out wrong."""
        initial, transition, potentials = long_chain("sticky", np.random.default_rng(0), 37)
        whole = smooth(initial, transition, potentials)
        monkeypatch.setattr(MODULE, "_agree", lambda guessed, arrived: jnp.array(True))
        believed = jax.jit(lambda *a: forward_backward(*a, blocks=8))(initial, transition, potentials)
        assert np.max(np.abs(believed.marginals - whole.marginals)) > 1e-6


class TestGradients:
    """The derivative of the evidence: marginals with respect to the potentials, expected counts over probabilities."""

    @pytest.mark.parametrize("blocks", [1, 3])
    @pytest.mark.parametrize("starts", [False, True])
    def test_first_derivatives_are_expectations(self, float64, blocks, starts):
        rng = np.random.default_rng(9)
        initial, transition = random_chain(rng, 3)
        potentials = rng.normal(size=(2, 14, 3))
        begins = np.broadcast_to(np.arange(14) % 5 == 0, (2, 14)) if starts else None

        def evidence(initial, transition, potentials):
            return jnp.sum(forward_backward(initial, transition, potentials, begins, blocks=blocks).evidence)

        by_initial, by_transition, by_potentials = jax.jit(jax.grad(evidence, (0, 1, 2)))(
            initial, transition, potentials
        )
        followed = np.ones((2, 14)) if begins is None else 1.0 - np.roll(begins, -1, axis=1)
        followed[:, -1] = 0
        smoothed = smooth(initial, transition, potentials, begins, pair_weights=followed)
        np.testing.assert_allclose(by_potentials, smoothed.marginals, atol=1e-12)
        first = smoothed.marginals[:, 0] if begins is None else np.asarray(smoothed.marginals)[begins]
        np.testing.assert_allclose(by_initial, np.sum(first, axis=0) / initial, rtol=1e-11)
        np.testing.assert_allclose(by_transition, smoothed.pairs, rtol=1e-11)

    def test_second_derivatives_of_blocks_are_those_of_one_scan(self, float64):
        rng = np.random.default_rng(10)
        initial, transition = random_chain(rng, 2)
        potentials = rng.normal(size=(1, 9, 2))

        def evidence(blocks):
            return lambda p, a: jnp.sum(forward_backward(initial, a, p, blocks=blocks).evidence)

        one, several = (jax.jit(jax.hessian(evidence(s), (0, 1)))(potentials, transition) for s in (1, 3))
        chex.assert_trees_all_close(one, several, atol=1e-11)
        # The second derivative in the potentials is a covariance of indicators: rows sum to 0, and it is not all 0.
        square = np.asarray(one[0][0]).reshape(18, 18)
        np.testing.assert_allclose(square.reshape(18, 9, 2).sum(axis=2), 0, atol=1e-12)
        assert np.max(np.abs(square)) > 0.1
        assert np.min(np.linalg.eigvalsh(square)) > -1e-12

    def test_gradients_are_finite_where_steps_are_impossible_or_transitions_zero(self, float64):
        potentials = np.random.default_rng(11).normal(size=(2, 9, 3))
        potentials[1, 4] = -np.inf
        transition = np.array([[0.5, 0.5, 0], [0, 0.5, 0.5], [0, 0, 1.0]])
        initial = np.array([1.0, 0, 0])

        def possible(p, a, blocks):
            evidence = jnp.sum(forward_backward(initial, a, p, blocks=blocks).evidence, axis=1)
            return jnp.sum(jnp.where(jnp.isfinite(evidence), evidence, 0))

        for blocks in (1, 3):
            by_potentials, by_transition = jax.jit(jax.grad(possible, (0, 1)), static_argnums=2)(
                potentials, transition, blocks
            )
            assert np.all(np.isfinite(by_potentials))
            assert np.all(np.isfinite(by_transition))
            np.testing.assert_allclose(np.sum(by_potentials[0], axis=-1), 1, rtol=1e-12)
