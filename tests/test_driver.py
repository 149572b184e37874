"""The loop: purity, lanes and their queue, stopping rules, gradients through a fixed point."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem.driver import rankable
from jaxem.slots import _slot_sizes
from jaxem.stopping import Progress

RNG = np.random.default_rng(0)
X = np.concatenate([RNG.normal(size=(30, 2)), RNG.normal(size=(30, 2)) * [1.0, 0.5] + [3.0, 2.0]])
MODEL = jaxem.Mixture(jaxem.Gaussian(jaxem.Diagonal()), 2)
TIGHT = jaxem.Control(jaxem.ParameterChange(1e-13), max_steps=3000)


def prepared(x=X, model=MODEL):
    x = jnp.asarray(x)
    model = model.calibrate(x)
    return model, model.prepare(x)


def starts(model, x, n, seed=0):
    return jax.vmap(lambda k: model.init(k, jnp.asarray(x), None, jaxem.RandomPoints()))(
        jax.random.split(jax.random.key(seed), n)
    )


def lane(tree, i):
    return jax.tree.map(lambda a: a[i], tree)


class TestRun:
    def test_jit_and_eager_agree_and_vmap_is_lanes(self):
        with jax.enable_x64(True):
            model, data = prepared()
            params = starts(model, X, 3)
            control = jaxem.Control(jaxem.RelativeGain(1e-8))
            mapped = jax.jit(jax.vmap(lambda p: jaxem.run(model, p, data, control=control)))(params)
            lanes = jax.jit(lambda p: jaxem.run_lanes(model, p, data, control=control))(params)
            np.testing.assert_array_equal(mapped.steps, lanes.steps)
            np.testing.assert_allclose(mapped.objective, lanes.objective, rtol=1e-12)
            single = jax.jit(lambda p: jaxem.run(model, p, data, control=control))(lane(params, 1))
            np.testing.assert_allclose(single.objective, mapped.objective[1], rtol=1e-12)

    def test_steps_count_parameter_updates(self):
        """After ``max_steps`` updates, not one more or less, and the objective is that of the parameters returned."""
        with jax.enable_x64(True):
            model, data = prepared()
            start = lane(starts(model, X, 1), 0)
            result = jaxem.run(model, start, data, control=jaxem.Control(jaxem.Never(), max_steps=3), trace_size=6)
            params, objectives = start, []
            for _ in range(4):
                expected = model.e_step(params, data)
                objectives.append(float(expected.log_likelihood))
                last, params = params, model.m_step(params, expected.stats)
            assert int(result.steps) == 3
            assert int(result.status) == jaxem.Status.MAX_STEPS
            np.testing.assert_allclose(result.params.likelihood.mean, last.likelihood.mean, rtol=1e-12)
            assert float(result.objective) == pytest.approx(objectives[-1], rel=1e-13)
            np.testing.assert_allclose(result.trace[:4], objectives, rtol=1e-13)
            assert np.isnan(result.trace[4:]).all()

    def test_a_trace_shorter_than_the_run_keeps_its_beginning(self):
        model, data = prepared()
        start = lane(starts(model, X, 1), 0)
        long, short = (
            jaxem.run(model, start, data, control=jaxem.Control(jaxem.Never(), max_steps=8), trace_size=n)
            for n in (9, 4)
        )
        np.testing.assert_allclose(long.trace[:4], short.trace, rtol=1e-6)
        assert int(short.steps) == 8


class TestLanes:
    """Slots, the queue of waiting lanes and the gathering of unfinished ones change nothing but the time."""

    @pytest.mark.parametrize("slots", [1, 3, 7, 20])
    def test_any_number_of_slots(self, slots, monkeypatch):
        monkeypatch.setattr("jaxem.slots._SMALL_STEP", {"cpu": 1})  # gather down to one slot, however small the data
        with jax.enable_x64(True):
            model, data = prepared()
            params = starts(model, X, 20)
            control = jaxem.Control(jaxem.RelativeGain(1e-7))
            got = jaxem.run_lanes(model, params, data, control=control, slots=slots, trace_size=50)
            expected = jax.vmap(lambda p: jaxem.run(model, p, data, control=control, trace_size=50))(params)
            np.testing.assert_array_equal(got.steps, expected.steps)
            np.testing.assert_array_equal(got.status, expected.status)
            np.testing.assert_allclose(got.objective, expected.objective, rtol=1e-12)
            np.testing.assert_allclose(got.trace, expected.trace, rtol=1e-12)
            assert len(set(got.steps.tolist())) > 3  # lanes of different length, or the test shows nothing

    def test_many_data_sets_with_their_own_models_and_weights(self):
        with jax.enable_x64(True):
            sets = np.stack([X, 10 * X + 5, X[::-1] - 100, 0.01 * X])
            weights = RNG.integers(0, 3, sets.shape[:2]).astype(float)
            models, data = jax.vmap(lambda x, w: ((m := MODEL.calibrate(x, w)), m.prepare(x)))(
                sets, jnp.asarray(weights)
            )
            index = jnp.array([0, 1, 1, 2, 3, 3])
            params = [
                MODEL.calibrate(sets[d]).init(jax.random.key(i), jnp.asarray(sets[d])) for i, d in enumerate(index)
            ]
            stacked = jax.tree.map(lambda *a: jnp.stack(a), *params)
            control = jaxem.Control(jaxem.RelativeGain(1e-7))
            got = jaxem.run_lanes(
                models, stacked, data, jnp.asarray(weights), index=jaxem.Index(data=index), control=control, slots=2
            )
            for i, d in enumerate(index):
                model = lane(models, d)
                alone = jaxem.run(model, params[i], lane(data, d), jnp.asarray(weights[d]), control=control)
                assert int(alone.steps) == int(got.steps[i])
                assert float(alone.objective) == pytest.approx(float(got.objective[i]), rel=1e-11)

    def test_weights_of_their_own_on_shared_data(self):
        """Bootstrap and folds: the data are shared, the weights are not."""
        with jax.enable_x64(True):
            model, data = prepared()
            weights = jnp.asarray(RNG.multinomial(len(X), np.full(len(X), 1 / len(X)), 5), float)
            params = starts(model, X, 5)
            index = jaxem.Index(weights=jnp.arange(5))
            got = jaxem.run_lanes(model, params, data, weights, index=index, control=TIGHT, slots=2)
            for i in range(5):
                alone = jaxem.run(model, lane(params, i), data, weights[i], control=TIGHT)
                assert float(alone.objective) == pytest.approx(float(got.objective[i]), rel=1e-10)

    def test_slot_sizes(self):
        assert _slot_sizes(64, 100_000, None) == [4]  # on a CPU fewer slots are one more program to compile
        assert _slot_sizes(64, 100_000, 16) == [16, 4]
        assert _slot_sizes(1, 10**9, None) == [1]
        assert _slot_sizes(1000, 10, None) == [1000]  # tiny data: fewer slots would save nothing
        for sizes in (_slot_sizes(2000, 7200, None), _slot_sizes(10**6, 7200, None)):
            assert sizes == sorted(sizes, reverse=True)
            assert len(sizes) <= 6  # compiled bodies do not grow with the number of lanes


class TestRace:
    def test_the_best_go_on_as_if_nothing_had_happened(self):
        with jax.enable_x64(True):
            model, data = prepared()
            params = starts(model, X, 12)
            control = jaxem.Control(jaxem.RelativeGain(1e-9))
            full = jaxem.run_lanes(model, params, data, control=control, trace_size=200)
            raced = jaxem.race_lanes(model, params, data, control=control, short_steps=4, keep=3, trace_size=200)
            out = np.asarray(raced.status) == jaxem.Status.OUTRACED
            assert out.sum() == 9
            np.testing.assert_allclose(raced.objective[~out], full.objective[~out], rtol=1e-13)
            np.testing.assert_array_equal(raced.steps[~out], full.steps[~out])
            np.testing.assert_allclose(raced.trace[~out], full.trace[~out], rtol=1e-13)
            np.testing.assert_array_equal(raced.steps[out], 4)
            # Those that went on were ahead after the short run, and everyone's objective is that of its parameters.
            assert full.trace[~out, 4].min() >= full.trace[out, 4].max()
            at = jax.vmap(lambda p: model.e_step(p, data).log_likelihood)(raced.params)
            np.testing.assert_allclose(at, raced.objective, rtol=1e-12)

    def test_every_data_set_keeps_its_own_best(self):
        result = jaxem.fit_batch(
            MODEL, np.stack([X, 100 * X]), key=jax.random.key(0), num_starts=6, race=jaxem.Race(3, keep=2)
        )
        assert (result.starts.status == jaxem.Status.OUTRACED).sum(axis=1).tolist() == [4, 4]


class TestRank:
    def test_nan_failed_and_degenerate_lanes(self):
        s = jaxem.Status
        objective = jnp.array([[1.0, jnp.nan, 3.0, 99.0, 2.0]])
        status = jnp.array([[s.CONVERGED, s.CONVERGED, s.NON_FINITE, s.DEGENERATE, s.MAX_STEPS]])
        order = np.argsort(-rankable(objective, status)[0], stable=True)
        assert order[:3].tolist() == [4, 0, 3]  # the best sound ones, then the degenerate one; the others never
        only = rankable(jnp.array([-5.0, -3.0]), jnp.array([s.DEGENERATE, s.DEGENERATE]))
        assert int(jnp.argmax(only)) == 1


class TestStopping:
    def progress(self, objective, previous, weight=10.0):
        return Progress(jnp.ones(2), jnp.float32(objective), jnp.float32(previous), jnp.float32(weight))

    def test_relative_and_absolute_gain(self):
        assert bool(jaxem.RelativeGain(0.1).check((), self.progress(-9.5, -10.0))[1])
        assert not bool(jaxem.RelativeGain(0.01).check((), self.progress(-9.5, -10.0))[1])
        assert bool(jaxem.AbsoluteGain(0.5).check((), self.progress(-9.5, -10.0))[1])
        assert not bool(jaxem.AbsoluteGain(0.4).check((), self.progress(-9.5, -10.0))[1])

    def test_aitken_sees_what_is_left(self):
        """Gains 1, 0.9, …: the gain is small beside the 8.1 that are left; with ratio 0.1 it is not."""
        rule = jaxem.Aitken(0.2)
        memory, _ = rule.check(rule.start(None, jnp.float32(0)), self.progress(1.0, 0.0))
        assert not bool(rule.check(memory, self.progress(1.9, 1.0))[1])
        assert bool(rule.check(memory, self.progress(1.1, 1.0))[1])

    def test_parameter_change(self):
        rule = jaxem.ParameterChange(0.01)
        assert bool(rule.check(jnp.array([1.0, 1.001]), self.progress(0, 0))[1])
        assert not bool(rule.check(jnp.array([1.0, 1.1]), self.progress(0, 0))[1])

    @pytest.mark.parametrize("rule", [jaxem.RelativeGain, jaxem.AbsoluteGain, jaxem.Aitken, jaxem.ParameterChange])
    def test_every_rule_ends_a_fit_and_a_smaller_tol_ends_it_later(self, rule):
        with jax.enable_x64(True):
            loose, tight = (
                jaxem.fit(MODEL, X, key=jax.random.key(1), start=jaxem.RandomPoints(), stopping=rule(tol), min_steps=1)
                for tol in (1e-2, 1e-6)
            )
        assert loose.status == tight.status == jaxem.Status.CONVERGED
        assert loose.steps < tight.steps
        assert loose.log_likelihood <= tight.log_likelihood

    def test_below_the_noise_is_stalled_not_endless(self):
        result = jaxem.fit(MODEL, X.astype(np.float32), key=jax.random.key(1), tol=0.0, max_steps=100_000)
        assert result.status in (jaxem.Status.STALLED, jaxem.Status.CONVERGED)
        assert result.steps < 2000


class TestGradient:
    """d(fitted parameters)/d(data, weights, prior), by the implicit function theorem, against finite differences."""

    def fitted(self, x, weights, strength):
        model = jaxem.WithPrior(MODEL, strength).calibrate(jnp.asarray(X))
        start = lane(starts(model, X, 1, seed=4), 0)
        return jaxem.run(model, start, x, weights, control=TIGHT)

    def summary(self, x, weights, strength):
        p = self.fitted(x, weights, strength).params
        return p.likelihood.mean[0, 0] + 2 * p.likelihood.covariance[1, 1] + 3 * p.latent.weights[0]

    @pytest.fixture
    def arguments(self):
        with jax.enable_x64(True):
            weights = np.random.default_rng(1).uniform(0.5, 1.5, len(X))
            return jnp.asarray(X), jnp.asarray(weights), jnp.asarray(2.0)

    @pytest.mark.parametrize("mode", ["reverse", "forward"])
    def test_matches_finite_differences(self, arguments, mode):
        with jax.enable_x64(True):
            directions = [jnp.asarray(RNG.normal(size=a.shape)) for a in arguments]
            f = jax.jit(self.summary)
            for i, direction in enumerate(directions):

                def along(t, i=i, direction=direction):
                    return f(*(a + t * direction if j == i else a for j, a in enumerate(arguments)))

                finite = (along(1e-5) - along(-1e-5)) / 2e-5
                if mode == "reverse":
                    gradient = jax.jit(jax.grad(self.summary, argnums=i))(*arguments)
                    got = jnp.sum(gradient * direction)
                else:
                    got = jax.jit(jax.jvp, static_argnums=0)(
                        lambda a, i=i: self.summary(*(a if j == i else b for j, b in enumerate(arguments))),
                        (arguments[i],),
                        (direction,),
                    )[1]
                assert float(got) == pytest.approx(float(finite), rel=1e-5)

    def test_objective_follows_the_data(self, arguments):
        with jax.enable_x64(True):
            x, weights, strength = arguments
            f = jax.jit(lambda w: self.fitted(x, w, strength).objective)
            direction = jnp.asarray(RNG.normal(size=weights.shape))
            finite = (f(weights + 1e-5 * direction) - f(weights - 1e-5 * direction)) / 2e-5
            got = jnp.sum(jax.grad(f)(weights) * direction)
            assert float(got) == pytest.approx(float(finite), rel=1e-6)

    def test_under_vmap(self, arguments):
        with jax.enable_x64(True):
            x, weights, _ = arguments
            strengths = jnp.array([0.5, 1.0, 4.0])
            gradient = jax.grad(lambda s: self.summary(x, weights, s))
            together = jax.jit(jax.vmap(gradient))(strengths)
            one_by_one = jnp.stack([jax.jit(gradient)(s) for s in strengths])
            np.testing.assert_allclose(together, one_by_one, rtol=1e-6)

    def test_no_gradient_without_an_optimum(self, arguments):
        """A lane that did not converge is not at a fixed point: NaN, not a number that means nothing."""
        with jax.enable_x64(True):
            x, weights, strength = arguments
            model = jaxem.WithPrior(MODEL, strength).calibrate(x)
            start = lane(starts(model, X, 1, seed=4), 0)
            short = jaxem.Control(jaxem.RelativeGain(1e-12), max_steps=2)

            def summary(weights):
                return jaxem.run(model, start, x, weights, control=short).params.likelihood.mean[0, 0]

            assert np.isnan(jax.grad(summary)(weights)).all()


class TestCompilation:
    def test_new_values_do_not_compile(self):
        """tol, max_steps, min_steps, a prior's strength, data and keys: values, not programs."""
        compiled, listening = [], [True]

        def listen(event, duration, fun_name="?", **_):
            if listening and event.endswith("backend_compile_duration"):
                compiled.append(fun_name)

        model = jaxem.WithPrior(MODEL, 1.0)
        jaxem.fit(model, X, key=jax.random.key(0), num_starts=2, tol=1e-3, max_steps=10, weights=np.ones(len(X)))
        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            jaxem.fit(
                jaxem.WithPrior(MODEL, 2.5),
                2 * X,
                key=jax.random.key(5),
                num_starts=2,
                tol=1e-4,
                max_steps=20,
                min_steps=2,
                weights=np.full(len(X), 0.5),
            )
            assert compiled == []
            jaxem.fit(model, X[:-1], key=jax.random.key(0), num_starts=2, tol=1e-3, weights=np.ones(len(X) - 1))
            assert compiled == []  # another number of rows in the same bucket
            jaxem.fit(model, X[: len(X) // 2], key=jax.random.key(0), num_starts=2)
            assert compiled  # another bucket is another program: the listener does hear
        finally:
            listening.clear()  # JAX 0.8 cannot take a listener away
