"""The host door: results, batches, selection, starts, wrappers as a user meets them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem

FAITHFUL = jaxem.datasets.load("faithful").x
RNG = np.random.default_rng(0)
# Three groups of the same rows for every test that only needs some data: shapes are shared, and so are programs.
X = np.concatenate([RNG.normal(size=(20, 2)) * s + m for s, m in ((1.0, 0.0), (0.5, 6.0), (1.5, [12.0, 0.0]))])
MODEL = jaxem.Mixture(jaxem.Gaussian(jaxem.Diagonal()), 3)


def key(seed=0):
    return jax.random.key(seed)


class TestResult:
    @pytest.fixture(scope="class", name="result")
    @staticmethod
    def _result():
        return jaxem.fit(MODEL, X, key=key(), num_starts=8)

    def test_every_start_is_kept(self, result):
        starts = result.starts
        assert len(starts) == 8
        assert starts.params.likelihood.mean.shape == (8, 3, 2)
        assert starts.trace.shape == (8, 256)
        assert result.objective == max(starts.objective)
        assert result.steps == starts.steps[result.best]
        assert len(result.trace) == result.steps + 1
        assert np.all(np.diff(result.trace) > -1e-3)

    def test_criteria(self, result):
        p = 2 + 6 + 6
        assert result.num_free_parameters == p
        assert result.aic == pytest.approx(2 * p - 2 * result.log_likelihood)
        assert result.bic == pytest.approx(p * np.log(60) - 2 * result.log_likelihood)
        posterior = np.asarray(result.model.posterior(result.params, X), float)
        entropy = -np.sum(posterior * np.log(np.maximum(posterior, 1e-300)))
        assert jaxem.icl(result, X) == pytest.approx(result.bic + 2 * entropy, abs=1e-3)

    def test_share_at_best(self, result):
        far = np.array(result.starts.objective)
        far[:4] -= 60 * 1e-3
        starts = jaxem.Starts(**{**vars(result.starts), "objective": far})
        best = int(np.argmax(far))
        moved = jaxem.Result(result.model, result.params, starts, best, 60, 60.0, result.num_free_parameters)
        assert moved.share_at_best(1e-4) == pytest.approx(np.mean(far >= far[best] - 60 * 1e-4))
        assert moved.share_at_best(1.0) == 1.0

    def test_it_prints_as_a_short_table(self, result):
        text = str(result)
        assert len(text.splitlines()) <= 8
        assert all(len(line) <= 110 for line in text.splitlines())
        for part in (
            "Gaussian mixture, 3 components, diagonal covariance",
            "60 rows",
            "log-likelihood",
            "BIC",
            "8 starts",
            "converged",
            "median steps",
        ):
            assert part in text

    def test_it_is_a_pytree(self, result):
        doubled = jax.tree.map(lambda a: a, result)
        assert str(doubled) == str(result)

    def test_old_faithful(self, dtype):
        """The published optimum, found by at least half of the starts, in both floating-point types."""
        result = jaxem.fit(jaxem.Mixture(jaxem.Gaussian(), 2), FAITHFUL, key=key(), num_starts=64)
        assert result.starts.objective.dtype == dtype
        assert result.log_likelihood == pytest.approx(-1130.264, abs=1e-3)
        assert np.mean(np.abs(result.starts.objective + 1130.264) < 1e-3) >= 0.5


class TestBatch:
    def test_each_data_set_as_if_alone(self, float64):
        sets = np.stack([X, 3 * X + 1, X[::-1]])
        one = jax.vmap(lambda k: MODEL.init(k, jnp.asarray(X)))(jax.random.split(key(2), 4))
        starts = jax.tree.map(lambda a: jnp.broadcast_to(a, (3, *a.shape)), one)
        batch = jaxem.fit_batch(MODEL, sets, starts=starts, num_starts=4, tol=1e-8, on_failure="ignore")
        assert batch.params.likelihood.mean.shape == (3, 3, 2)
        assert batch.starts.objective.shape == (3, 4)
        for d in range(3):
            alone = jaxem.fit(MODEL, sets[d], starts=one, num_starts=4, tol=1e-8, on_failure="ignore")
            np.testing.assert_array_equal(batch.starts.steps[d], alone.starts.steps)
            np.testing.assert_allclose(batch.starts.objective[d], alone.starts.objective, rtol=1e-11)
            assert batch[d].log_likelihood == pytest.approx(alone.log_likelihood, rel=1e-12)
            assert batch[d].bic == pytest.approx(alone.bic, rel=1e-12)
            assert batch[d].best == alone.best or batch[d].objective == pytest.approx(alone.objective, rel=1e-12)
        with pytest.raises(IndexError):
            batch[3]
        assert len(list(iter(batch))) == 3

    def test_weight_zero_makes_sets_of_unequal_size_one_shape(self, float64):
        sets = np.stack([X, X])
        weights = np.ones((2, 60))
        weights[1, 50:] = 0
        batch = jaxem.fit_batch(MODEL, sets, key=key(), num_starts=4, weights=weights, tol=1e-8)
        short = jaxem.fit(MODEL, X[:50], params=batch[1].params, tol=1e-8)
        assert batch[1].log_likelihood == pytest.approx(short.log_likelihood, abs=1e-5)
        assert batch[1].weight == 50

    def test_it_prints_a_tally(self):
        batch = jaxem.fit_batch(MODEL, np.stack([X, X + 1]), key=key(), num_starts=4)
        assert "2 data sets of 60 rows, 4 starts each" in str(batch)


class TestSelect:
    MODELS = tuple(jaxem.Mixture(jaxem.Gaussian(jaxem.Diagonal()), k) for k in (1, 3, 2))

    def test_one_program_for_several_k_gives_each_its_own_optimum(self, float64):
        """Components beyond a lane's K have weight 0: the optimum of K = 2 among 3 is that of K = 2."""
        selection = jaxem.select(self.MODELS, X, key=key(), num_starts=8, tol=1e-8)
        assert [r.model.num_components for r in selection.results] == [1, 3, 2]
        for model, result in zip(self.MODELS, selection.results, strict=True):
            k = model.num_components
            assert result.params.latent.weights.shape == (k,)
            assert float(np.sum(result.params.latent.weights)) == pytest.approx(1.0)
            assert result.num_free_parameters == (k - 1) + 4 * k
            own = jaxem.fit(model, X, params=result.params, tol=1e-8)
            assert own.log_likelihood == pytest.approx(result.log_likelihood, abs=1e-6)
        assert selection.best.model.num_components == 3
        assert selection.chosen == 1

    def test_models_of_different_kinds_one_after_another(self):
        models = [MODEL, jaxem.Mixture(jaxem.Gaussian(jaxem.Spherical()), 3)]
        selection = jaxem.select(models, X, key=key(), num_starts=4, criterion="icl")
        assert [type(r.model.likelihood.covariance) for r in selection.results] == [jaxem.Diagonal, jaxem.Spherical]
        assert selection.chosen == int(np.argmin(selection.values))

    def test_it_prints_a_table(self):
        text = str(jaxem.select(self.MODELS, X, key=key(), num_starts=8))
        assert "log-likelihood" in text
        assert sum(line.startswith("*") for line in text.splitlines()) == 2  # the row, and the legend

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match="at least one model"):
            jaxem.select([], X, key=key())
        with pytest.raises(ValueError, match="'bic', 'aic' or 'icl'"):
            jaxem.select(self.MODELS, X, key=key(), criterion="hic")


class TestStarts:
    """Strategies look at weights, differ by key, and put K centres on K different rows."""

    SEGMENTS = jaxem.Segments(np.arange(60) / 60)
    STRATEGIES = (jaxem.KMeansPlusPlus(), jaxem.RandomPoints(), jaxem.RandomResponsibilities(), SEGMENTS)

    @pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: type(s).__name__)
    def test_a_key_is_a_start(self, strategy):
        used = jnp.ones(3, bool)
        features, weights = jnp.asarray(X, jnp.float32), jnp.ones(60)
        a, b, c = (strategy.responsibilities(key(s), features, weights, used) for s in (0, 0, 1))
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)
        np.testing.assert_allclose(np.sum(a, axis=1), 1, rtol=1e-5)

    @pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: type(s).__name__)
    def test_only_components_in_use(self, strategy):
        used = jnp.array([True, True, False, False])
        got = strategy.responsibilities(key(), jnp.asarray(X, jnp.float32), jnp.ones(60), used)
        np.testing.assert_array_equal(got[:, 2:], 0)
        assert (np.sum(got, axis=0)[:2] > 0).all()

    @pytest.mark.parametrize("strategy", STRATEGIES[:2], ids=lambda s: type(s).__name__)
    def test_rows_of_weight_zero_are_never_centres(self, strategy):
        """All weight on three rows: they are the centres, whatever the key."""
        weights = jnp.zeros(60).at[jnp.array([3, 30, 50])].set(jnp.array([1.0, 1e-3, 5.0]))
        features, used = jnp.asarray(X, jnp.float32), jnp.ones(3, bool)
        for seed in range(20):
            r = strategy.responsibilities(key(seed), features, weights, used)
            assert sorted(np.argmax(r, axis=1)[np.array([3, 30, 50])].tolist()) == [0, 1, 2]

    def test_segments_follow_one_another(self):
        features, used = jnp.asarray(X, jnp.float32), jnp.ones(3, bool)
        for seed in range(5):
            piece = np.argmax(self.SEGMENTS.responsibilities(key(seed), features, jnp.ones(60), used), axis=1)
            assert piece[0] == 0
            assert set(np.diff(piece)) <= {0, 1}

    def test_kmeans_plus_plus_spreads(self):
        """Far groups get a centre each far more often than random points give them one."""

        def hits(strategy):
            run = jax.jit(
                lambda k: strategy.responsibilities(k, jnp.asarray(X, jnp.float32), jnp.ones(60), jnp.ones(3, bool))
            )
            labels = [np.argmax(run(key(s)), axis=1) for s in range(60)]
            return np.mean([len({int(g[0]), int(g[20]), int(g[40])}) == 3 for g in labels])

        assert hits(jaxem.KMeansPlusPlus()) > hits(jaxem.RandomPoints()) + 0.2

    def test_large_data_start_from_a_sample(self):
        """Starts look at some thousand rows only, and still find the groups."""
        x = np.concatenate([RNG.normal(size=(30_000, 1)), RNG.normal(size=(30_000, 1)) + 8]).astype(np.float32)
        model = jaxem.Mixture(jaxem.Gaussian(jaxem.Diagonal()), 2)
        params = jax.jit(lambda k: model.calibrate(x).init(k, jnp.asarray(x)))(key())
        assert sorted(np.round(np.asarray(params.likelihood.mean)[:, 0]).tolist()) == [0, 8]

    def test_warm_start_and_given_starts(self):
        first = jaxem.fit(MODEL, X, key=key(), num_starts=4)
        again = jaxem.fit(MODEL, X, params=first.params, min_steps=0)
        assert again.steps <= 2
        assert again.log_likelihood == pytest.approx(first.log_likelihood, abs=1e-3)
        several = jaxem.fit(MODEL, X, starts=first.starts.params, num_starts=4, min_steps=0)
        assert len(several.starts) == 4

    def test_given_starts_are_checked(self):
        params = jaxem.fit(MODEL, X, key=key(), num_starts=4).params
        with pytest.raises(ValueError, match="not both"):
            jaxem.fit(MODEL, X, params=params, starts=params)
        with pytest.raises(ValueError, match="num_starts=3"):
            jaxem.fit(MODEL, X, params=params, num_starts=3)
        with pytest.raises(ValueError, match=r"weights need shape \(3,\); got \(2,\)"):
            jaxem.fit(MODEL, X, params=MODEL.take_components(params, np.arange(2)))
        with pytest.raises(ValueError, match="NaN"):
            jaxem.fit(MODEL, X, params=jax.tree.map(lambda a: a * np.nan, params))
        with pytest.raises(ValueError, match="structure"):
            jaxem.fit(MODEL, X, params={"mean": np.zeros((3, 2))})


class TestWrappers:
    def test_chunked_is_the_same_fit(self, float64):
        start = MODEL.calibrate(jnp.asarray(X)).init(key(), jnp.asarray(X))
        plain = jaxem.fit(MODEL, X, params=start, tol=1e-8)
        for size in (7, 60, 1000, None):
            chunked = jaxem.fit(jaxem.Chunked(MODEL, size), X, params=start, tol=1e-8)
            assert chunked.steps == plain.steps
            np.testing.assert_allclose(chunked.params.likelihood.mean, plain.params.likelihood.mean, rtol=1e-9)
            model = chunked.model
            np.testing.assert_allclose(
                model.posterior(plain.params, X), plain.model.posterior(plain.params, X), atol=1e-12
            )
            np.testing.assert_array_equal(model.predict(plain.params, X), plain.model.predict(plain.params, X))

    def test_a_model_whose_e_step_is_no_sum_is_refused(self):
        @jaxem.pytree
        class Whole(jaxem.Model):
            additive = False

        with pytest.raises(jaxem.UnsupportedError, match="Whole is not a sum"):
            jaxem.Chunked(Whole())

    def test_prior_pulls_and_its_strength_is_differentiable(self, float64):
        plain = jaxem.fit(MODEL, X, key=key(), num_starts=4, tol=1e-10)
        weak, strong = (jaxem.fit(jaxem.WithPrior(MODEL, s), X, params=plain.params, tol=1e-10) for s in (1e-9, 50.0))
        np.testing.assert_allclose(weak.params.likelihood.mean, plain.params.likelihood.mean, rtol=1e-5)
        spread = [np.ptp(np.asarray(r.params.likelihood.mean), axis=0).sum() for r in (weak, strong)]
        assert spread[1] < 0.9 * spread[0]
        assert strong.objective != strong.log_likelihood
        assert strong.log_likelihood < plain.log_likelihood

    def test_a_prior_prevents_collapse(self):
        """Three equal rows far away: a component collapses on them, unless a prior says that it has a spread."""
        x = np.concatenate([X[:40], np.full((3, 2), 40.0)])
        with pytest.warns(jaxem.ConvergenceWarning, match="degenerate"):
            collapsed = jaxem.fit(MODEL, x, key=key(), num_starts=4)
        assert collapsed.degenerate
        held = jaxem.fit(jaxem.WithPrior(MODEL, 0.5), x, key=key(), num_starts=4)
        assert held.status.success
        assert held.degenerate == ()

    def test_frozen_values_are_put_into_every_start(self):
        weights = np.array([0.2, 0.3, 0.5], np.float32)
        model = jaxem.Frozen(MODEL, ["weights"], values={"weights": weights})
        result = jaxem.fit(model, X, key=key(), num_starts=4)
        np.testing.assert_array_equal(result.starts.params.latent.weights, np.broadcast_to(weights, (4, 3)))
        assert result.num_free_parameters == MODEL.num_free_parameters(result.params) - 2
        with pytest.raises(ValueError, match="nothing holds fixed"):
            jaxem.Frozen(MODEL, ["weights"], values={"mean": weights})

    def test_repr_names_wrappers(self):
        model = jaxem.Chunked(jaxem.WithPrior(MODEL, 0.5))
        assert "Chunked(WithPrior(" in str(jaxem.fit(model, X, key=key(), num_starts=2))


class TestOnFailure:
    def test_max_steps_warns_by_default_and_raises_on_request(self):
        with pytest.warns(jaxem.ConvergenceWarning, match="max_steps"):
            result = jaxem.fit(MODEL, X, key=key(5), max_steps=2, tol=0.0, start=jaxem.RandomPoints())
        assert result.status == jaxem.Status.MAX_STEPS
        assert not result.converged
        assert result.steps == 2
        with pytest.raises(jaxem.FitError, match="max_steps"):
            jaxem.fit(MODEL, X, key=key(5), max_steps=2, tol=0.0, start=jaxem.RandomPoints(), on_failure="raise")
        jaxem.fit(MODEL, X, key=key(5), max_steps=2, tol=0.0, start=jaxem.RandomPoints(), on_failure="ignore")
        with pytest.raises(ValueError, match="'raise', 'warn', 'ignore'"):
            jaxem.fit(MODEL, X, key=key(), on_failure="panic")


class TestOwnModel:
    """A model of two methods: what it does not define is asked for by name, and nothing else is needed."""

    @jaxem.pytree
    class Exponential(jaxem.Model):
        def e_step(self, rate, x, weights=None):
            weights = jnp.ones(len(x)) if weights is None else weights
            log_likelihood = jnp.log(rate) - rate * x
            stats = jnp.stack([weights.sum(), weights @ x])
            return jaxem.EStep(stats, weights @ log_likelihood, weights.sum())

        def m_step(self, rate, stats):
            return stats[0] / stats[1]

    def test_it_fits(self):
        x = np.array([1.0, 2.0, 3.0], np.float32)
        result = jaxem.fit(self.Exponential(), x, params=jnp.float32(3.0))
        assert float(result.params) == pytest.approx(0.5)
        weighted = jaxem.fit(self.Exponential(), x, params=jnp.float32(3.0), weights=np.array([0, 0, 1.0]))
        assert float(weighted.params) == pytest.approx(1 / 3)
        assert "Exponential" in str(result)

    def test_what_it_lacks_is_named(self):
        x = np.array([1.0, 2.0, 3.0], np.float32)
        with pytest.raises(
            jaxem.UnsupportedError, match=r"Exponential does not define init.*given starting parameters"
        ):
            jaxem.fit(self.Exponential(), x, key=key())
        result = jaxem.fit(self.Exponential(), x, params=jnp.float32(3.0))
        with pytest.raises(TypeError, match="to_free"):
            _ = result.bic


def test_structures_of_equal_fields_are_different_programs():
    """Classes without fields of their own must not look alike to jit, or one's program would serve the other."""
    models = [jaxem.Mixture(jaxem.Gaussian(c), 2) for c in (jaxem.Full(), jaxem.Tied(), jaxem.Diagonal())]
    structures = [jax.tree.structure(m) for m in models]
    assert len(set(structures)) == 3
    assert all(a != b for i, a in enumerate(structures) for b in structures[:i])


def test_data_fields_nobody_reads_are_refused():
    with pytest.raises(ValueError, match="inputs given, but neither Categorical nor Gaussian reads it"):
        jaxem.fit(MODEL, jaxem.Data(x=X, inputs=np.ones_like(X)), key=key())
