"""Hidden Markov models: against sums over every path, in both layouts, and everything a user can ask of a fitted one."""

import dataclasses
import functools

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from paths import every_path, random_chain

import jaxem
from jaxem import Data, LatentParams, MarkovChainParams, PoissonParams, Status, sequences
from jaxem.latents import Hard, MarkovChain, left_to_right

K, D = 3, 2
LENGTHS = (5, 0, 1, 6, 3)
POISSON = jaxem.HMM(jaxem.Poisson(), K)
E_STEP = jax.jit(lambda model, params, data, weights: model.e_step(params, data, weights))
STEP = jax.jit(lambda model, params, data, weights: model.m_step(params, model.e_step(params, data, weights).stats))
RUN = jax.jit(jaxem.run, static_argnames="trace_size")
ASKED = jax.jit(
    lambda model, params, data: (
        model.log_likelihood(params, data),
        model.posterior(params, data),
        model.predict(params, data),
        jaxem.pair_posterior(model, params, data),
    )
)
WEIGHTS = {"plain": None, "weights": (1.0, 2.5, 0.0, 2.5, 1.0)}


def parameters(rng, k=K, zeros=0.0):
    initial, transition = random_chain(rng, k, zeros)
    return LatentParams(MarkovChainParams(initial, transition), PoissonParams(rng.uniform(0.5, 6, (k, D))))


@dataclasses.dataclass
class Problem:
    """Several sequences, each with what is known of it; ``padded`` and ``flat`` are the same thing twice."""

    x: list
    params: LatentParams
    mask: list | None = None
    labels: list | None = None
    weights: np.ndarray | None = None

    def seen(self, b):
        """Which cells of a sequence are observed, [T, D]."""
        if self.mask is None:
            return np.ones(self.x[b].shape, bool)
        mask = self.mask[b]
        return np.broadcast_to(mask[:, None] if mask.ndim == 1 else mask, self.x[b].shape)

    def potentials(self, b):
        """log p(x_t | z_t = k), [T, K], by scipy; a missing cell adds nothing, a label rules the others out."""
        x = self.x[b]
        cells = scipy.stats.poisson.logpmf(x[:, None], self.params.likelihood.rate)
        terms = np.where(self.seen(b)[:, None], cells, 0).sum(axis=2)
        if self.labels is not None:
            label = self.labels[b][:, None]
            terms = np.where((label < 0) | (label == np.arange(terms.shape[1])), terms, -np.inf)
        return terms

    @functools.cached_property
    def paths(self):
        latent = self.params.latent
        return [every_path(latent.initial, latent.transition, self.potentials(b)) for b in range(len(self.x))]

    @property
    def each(self):
        return np.ones(len(self.x)) if self.weights is None else np.asarray(self.weights)

    def table(self, b):
        """T(x) of the Poisson family with its centre at 1: counts, x − 1, log p(x | 1); nothing where nothing is seen."""
        x = self.x[b]
        seen = self.seen(b)
        by_cell = self.mask is not None and self.mask[b].ndim == 2
        count = seen.astype(float) if by_cell else seen[:, :1].astype(float)
        base = np.where(seen, scipy.stats.poisson.logpmf(x, 1.0), 0).sum(axis=1, keepdims=True)
        return np.concatenate([count, np.where(seen, x - 1, 0), base], axis=1)

    @property
    def padded(self):
        """Whatever stands beyond a length, or in a missing cell, is never read."""
        data = sequences.from_list(self.x)
        shape = data.x.shape[:2]
        beyond = np.arange(shape[1]) >= data.lengths[:, None]
        x = np.where(beyond[..., None], np.nan, data.x)
        mask = labels = None
        if self.mask is not None:
            mask = np.ones((*shape, *self.mask[0].shape[1:]), bool)
            for b, own in enumerate(self.mask):
                mask[b, : len(own)] = own
            x = np.where(mask if mask.ndim == 3 else mask[..., None], x, np.inf)
        if self.labels is not None:
            labels = np.full(shape, 1)
            for b, own in enumerate(self.labels):
                labels[b, : len(own)] = own
        return jax.tree.map(jnp.asarray, Data(x=x, mask=mask, labels=labels, lengths=data.lengths))

    @property
    def flat(self):
        lengths = [len(x) for x in self.x if len(x)]
        join = lambda parts: None if parts is None else np.concatenate(parts)  # noqa: E731
        data = sequences.from_concat(np.concatenate(self.x), lengths)
        return jax.tree.map(
            jnp.asarray, Data(x=data.x, starts=data.starts, mask=join(self.mask), labels=join(self.labels))
        )

    @property
    def flat_weights(self):
        return None if self.weights is None else np.repeat(self.weights, [len(x) for x in self.x])


def problem(kind="plain", weights=None, zeros=0.0, seed=0) -> Problem:
    rng = np.random.default_rng(seed)
    x = [rng.poisson(3.0, (t, D)).astype(float) for t in LENGTHS]
    made = Problem(x, parameters(rng, zeros=zeros), weights=None if weights is None else np.array(weights))
    if kind == "missing steps":
        made.mask = [rng.random(t) < 0.6 for t in LENGTHS]
        made.mask[2][:] = False  # a sequence of which nothing is seen
    elif kind == "missing cells":
        made.mask = [rng.random((t, D)) < 0.6 for t in LENGTHS]
        made.mask[3][2] = False
    elif kind == "labels":
        made.labels = [rng.integers(-1, K, t) for t in LENGTHS]
    elif kind == "labels and missing cells":
        made.labels = [rng.integers(-1, K, t) for t in LENGTHS]
        made.mask = [rng.random((t, D)) < 0.6 for t in LENGTHS]
    return made


KINDS = ("plain", "missing steps", "missing cells", "labels", "labels and missing cells")
both = pytest.mark.parametrize("layout", ["padded", "flat"])


class TestAgainstAllPaths:
    @both
    @pytest.mark.parametrize("weights", WEIGHTS)
    @pytest.mark.parametrize("kind", KINDS)
    def test_e_step(self, float64, kind, weights, layout):
        case = problem(kind, WEIGHTS[weights])
        given = case.weights if layout == "padded" else case.flat_weights
        ours = E_STEP(POISSON, case.params, getattr(case, layout), None if given is None else jnp.asarray(given))
        w, paths = case.each, case.paths
        np.testing.assert_allclose(
            ours.log_likelihood, sum(a * p.log_normalizer for a, p in zip(w, paths, strict=True))
        )
        first = sum(a * p.marginals[0] for a, p in zip(w, paths, strict=True) if len(p.best))
        np.testing.assert_allclose(ours.stats.latent.initial, first, rtol=1e-10, atol=1e-12)
        pairs = sum(a * p.pairs.sum(axis=0) for a, p in zip(w, paths, strict=True))
        np.testing.assert_allclose(ours.stats.latent.transition, pairs, rtol=1e-10, atol=1e-12)
        table = sum(a * p.marginals.T @ case.table(b) for b, (a, p) in enumerate(zip(w, paths, strict=True)))
        if case.mask is not None and case.mask[0].ndim == 1:  # steps that are not seen have no part in the emissions
            table = sum(
                a * (p.marginals * case.mask[b][:, None]).T @ case.table(b)
                for b, (a, p) in enumerate(zip(w, paths, strict=True))
            )
        np.testing.assert_allclose(ours.stats.likelihood.table, table, rtol=1e-10, atol=1e-11)
        assert float(ours.weight) == np.sum(w * LENGTHS)

    @both
    @pytest.mark.parametrize("kind", KINDS)
    def test_what_a_fitted_model_is_asked(self, float64, kind, layout):
        case = problem(kind)
        log_likelihood, posterior, path, pairs = map(np.asarray, ASKED(POISSON, case.params, getattr(case, layout)))
        begin = 0
        for b, (expected, t) in enumerate(zip(case.paths, LENGTHS, strict=True)):
            if layout == "padded":
                own = (b, slice(0, t))
                np.testing.assert_allclose(log_likelihood[b], expected.log_normalizer, rtol=1e-11)
                assert np.all(posterior[b, t:] == 0)
                assert np.all(path[b, t:] == -1)
                assert np.all(pairs[b, max(t - 1, 0) :] == 0)
                np.testing.assert_allclose(pairs[b, : max(t - 1, 0)], expected.pairs, atol=1e-11)
            else:
                own = slice(begin, begin + t)
                np.testing.assert_allclose(log_likelihood[own].sum(), expected.log_normalizer, rtol=1e-11, atol=1e-12)
                np.testing.assert_allclose(pairs[begin : begin + max(t - 1, 0)], expected.pairs, atol=1e-11)
                if begin > 0:
                    assert np.all(pairs[begin - 1] == 0)  # from one sequence to the next there is no transition
                begin += t
            np.testing.assert_allclose(posterior[own], expected.marginals, atol=1e-11)
            assert t == 0 or expected.score > expected.second  # no ties
            np.testing.assert_array_equal(path[own], expected.best)

    @both
    @pytest.mark.parametrize("weights", WEIGHTS)
    @pytest.mark.parametrize("kind", ["plain", "missing cells", "labels"])
    def test_hard_assignments(self, float64, kind, weights, layout):
        """The objective is the score of the best path; the statistics are counts along it."""
        case = problem(kind, WEIGHTS[weights])
        given = case.weights if layout == "padded" else case.flat_weights
        model = jaxem.LatentModel(Hard(MarkovChain(K)), jaxem.Poisson())
        ours = E_STEP(model, case.params, getattr(case, layout), None if given is None else jnp.asarray(given))
        w, paths = case.each, case.paths
        np.testing.assert_allclose(
            ours.log_likelihood, sum(a * p.score for a, p in zip(w, paths, strict=True)), rtol=1e-11
        )
        initial, transition, table = np.zeros(K), np.zeros((K, K)), 0
        for b, (a, p) in enumerate(zip(w, paths, strict=True)):
            for z in p.best[:1]:
                initial[z] += a
            for i, j in zip(p.best[:-1], p.best[1:], strict=True):
                transition[i, j] += a
            table = table + a * np.eye(K)[p.best].T @ case.table(b)
        np.testing.assert_allclose(ours.stats.latent.initial, initial, atol=1e-12)
        np.testing.assert_allclose(ours.stats.latent.transition, transition, atol=1e-12)
        np.testing.assert_allclose(ours.stats.likelihood.table, table, rtol=1e-11, atol=1e-11)

    @pytest.mark.parametrize("name", ["full", "tied", "diagonal", "spherical"])
    def test_gaussian_emissions(self, float64, name):
        structure = {"full": jaxem.Full(), "tied": jaxem.Tied(), "diagonal": jaxem.Diagonal()}.get(
            name, jaxem.Spherical()
        )
        rng = np.random.default_rng(3)
        root = rng.normal(size=(K, D, D)) + 1.5 * np.eye(D)
        dense = root @ np.swapaxes(root, 1, 2)
        dense, covariance = {
            "full": lambda: (dense, dense),
            "tied": lambda: (np.stack([dense[0]] * K), dense[0]),
            "diagonal": lambda: (dense * np.eye(D), np.einsum("kdd->kd", dense)),
            "spherical": lambda: (dense[:, :1, :1] * np.eye(D), dense[:, 0, 0]),
        }[name]()
        mean, x = rng.normal(size=(K, D)), [rng.normal(size=(t, D)) for t in LENGTHS]
        initial, transition = random_chain(rng, K)
        params = LatentParams(MarkovChainParams(initial, transition), jaxem.GaussianParams(mean, covariance))
        data = jax.tree.map(jnp.asarray, sequences.from_list(x))
        ours = E_STEP(jaxem.HMM(jaxem.Gaussian(structure), K), params, data, None)
        normals = [scipy.stats.multivariate_normal(m, c) for m, c in zip(mean, dense, strict=True)]
        log_likelihood, first = 0.0, 0.0
        for own in x:
            terms = np.stack([np.atleast_1d(n.logpdf(own)) for n in normals], axis=1) if len(own) else np.zeros((0, K))
            expected = every_path(initial, transition, terms)
            log_likelihood += expected.log_normalizer
            first = first + expected.marginals.T @ own
        np.testing.assert_allclose(ours.log_likelihood, log_likelihood, rtol=1e-11)
        np.testing.assert_allclose(ours.stats.likelihood[:, 1 : 1 + D], first, rtol=1e-10, atol=1e-11)

    @both
    def test_gaussian_emissions_with_missing_cells(self, float64, layout):
        """The marginal density of what is seen, and a step with the conditional moments of what is not."""
        rng = np.random.default_rng(8)
        d, lengths = 3, (5, 1, 4)
        root = rng.normal(size=(K, d, d)) + 1.5 * np.eye(d)
        mean, covariance = rng.normal(size=(K, d)), root @ np.swapaxes(root, 1, 2)
        initial, transition = random_chain(rng, K)
        x = [rng.normal(size=(t, d)) for t in lengths]
        mask = [rng.random((t, d)) < 0.6 for t in lengths]
        mask[0][2], mask[2][1] = False, True
        params = LatentParams(MarkovChainParams(initial, transition), jaxem.GaussianParams(mean, covariance))
        case = Problem(x, params, mask=mask)

        def moments(row, seen, k):
            """log p of what is seen, and E[y] and E[y yᵀ] given it."""
            away, own = row[seen] - mean[k][seen], covariance[k][np.ix_(seen, seen)]
            gain = covariance[k][:, seen] @ np.linalg.inv(own) if seen.any() else np.zeros((d, 0))
            filled = mean[k] + gain @ away
            spread = covariance[k] - gain @ covariance[k][seen]
            density = scipy.stats.multivariate_normal.logpdf(away, cov=own) if seen.any() else 0.0
            return density, filled, np.outer(filled, filled) + spread

        log_likelihood, posterior, sums = 0.0, [], [np.zeros(K), np.zeros((K, d)), np.zeros((K, d, d))]
        for own, seen in zip(x, mask, strict=True):
            each = [[moments(row, cells, k) for k in range(K)] for row, cells in zip(own, seen, strict=True)]
            expected = every_path(initial, transition, np.array([[m[0] for m in row] for row in each]))
            log_likelihood += expected.log_normalizer
            posterior.append(expected.marginals)
            for r, row in zip(expected.marginals, each, strict=True):
                for k in range(K):
                    sums[0][k] += r[k]
                    sums[1][k] += r[k] * row[k][1]
                    sums[2][k] += r[k] * row[k][2]
        new_mean = sums[1] / sums[0][:, None]
        new_covariance = sums[2] / sums[0][:, None, None] - new_mean[:, :, None] * new_mean[:, None, :]

        data = getattr(case, layout)
        model = jaxem.HMM(jaxem.Gaussian(), K)
        np.testing.assert_allclose(np.sum(model.log_likelihood(params, data)), log_likelihood, rtol=1e-11)
        ours = np.asarray(model.posterior(params, data))
        ours = ours if layout == "flat" else np.concatenate([own[:t] for own, t in zip(ours, lengths, strict=True)])
        np.testing.assert_allclose(ours, np.concatenate(posterior), atol=1e-11)
        updated = STEP(model, params, data, None).likelihood
        np.testing.assert_allclose(updated.mean, new_mean, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(updated.covariance, new_covariance, rtol=1e-9, atol=1e-9)

    @both
    def test_emissions_that_depend_on_inputs(self, float64, layout):
        """Switching regressions: the density about the line of a state, and weighted least squares."""
        rng = np.random.default_rng(9)
        lengths = (5, 1, 6, 4)
        inputs, y = ([rng.normal(size=(t, d)) for t in lengths] for d in (2, 1))
        initial, transition = random_chain(rng, K)
        coefficients, variance = rng.normal(size=(K, 1, 3)), rng.uniform(0.3, 1, (K, 1))
        params = LatentParams(
            MarkovChainParams(initial, transition), jaxem.LinearRegressionParams(coefficients, variance)
        )
        design = [np.insert(own, 0, 1, axis=1) for own in inputs]
        terms = [
            scipy.stats.norm.logpdf(own, u @ coefficients[:, 0].T, np.sqrt(variance[:, 0]))
            for own, u in zip(y, design, strict=True)
        ]
        paths = [every_path(initial, transition, own) for own in terms]
        r, u, y_all = np.concatenate([p.marginals for p in paths]), np.concatenate(design), np.concatenate(y)[:, 0]

        data = sequences.from_concat(np.concatenate(y), lengths)
        data = dataclasses.replace(data, inputs=np.concatenate(inputs))
        data = jax.tree.map(jnp.asarray, sequences.pad(data) if layout == "padded" else data)
        model = jaxem.HMM(jaxem.LinearRegression(), K)
        total = sum(p.log_normalizer for p in paths)
        np.testing.assert_allclose(np.sum(model.log_likelihood(params, data)), total, rtol=1e-11)
        updated = STEP(model, params, data, None).likelihood
        for k in range(K):
            best = np.linalg.solve(u.T @ (r[:, k, None] * u), u.T @ (r[:, k] * y_all))
            np.testing.assert_allclose(updated.coefficients[k, 0], best, rtol=1e-8)
            left = r[:, k] @ (y_all - u @ best) ** 2 / r[:, k].sum()
            np.testing.assert_allclose(updated.variance[k, 0], left, rtol=1e-8)

    def test_an_array_of_three_axes_is_sequences_of_one_length_and_of_two_is_one(self, float64):
        rng = np.random.default_rng(4)
        params, x = parameters(rng), rng.poisson(3.0, (2, 4, D)).astype(float)
        case = Problem(list(x), params)
        np.testing.assert_allclose(
            POISSON.log_likelihood(params, jnp.asarray(x)), [p.log_normalizer for p in case.paths], rtol=1e-11
        )
        one = POISSON.log_likelihood(params, jnp.asarray(x[0]))
        assert one.shape == (4,)
        np.testing.assert_allclose(np.sum(one), case.paths[0].log_normalizer, rtol=1e-11)

    @both
    def test_forecast(self, float64, layout):
        """The next steps are steps without an observation: their marginals, by all paths that go so far."""
        case, ahead = problem(), 3
        latent, rate = case.params.latent, case.params.likelihood.rate
        ours = jaxem.forecast(POISSON, case.params, getattr(case, layout), ahead)
        chosen = range(len(LENGTHS)) if layout == "padded" else [len(LENGTHS) - 1]
        assert ours.states.shape == (len(chosen), ahead, K)
        for row, b in enumerate(chosen):
            longer = np.concatenate([case.potentials(b), np.zeros((ahead, K))])
            expected = every_path(latent.initial, latent.transition, longer).marginals[-ahead:]
            np.testing.assert_allclose(ours.states[row], expected, atol=1e-12)
            np.testing.assert_allclose(ours.mean[row], expected @ rate, rtol=1e-11)

    def test_the_entropy_in_icl_is_that_of_paths(self, float64):
        case = problem(weights=WEIGHTS["weights"])
        result = jaxem.fit(
            POISSON, case.padded, params=case.params, weights=case.weights, max_steps=2, on_failure="ignore"
        )
        fitted = Problem(case.x, jax.tree.map(np.asarray, result.params), weights=case.weights)
        entropy = sum(a * p.entropy for a, p in zip(case.weights, fitted.paths, strict=True))
        assert entropy > 0.5
        np.testing.assert_allclose(jaxem.icl(result, case.padded, case.weights), result.bic + 2 * entropy, rtol=1e-10)
        np.testing.assert_allclose(
            jaxem.icl(result, case.flat, case.flat_weights), result.bic + 2 * entropy, rtol=1e-10
        )

    @hypothesis.given(
        lengths=st.permutations([0, 1, 2, 4]), seed=st.integers(0, 2**16), share=st.sampled_from([0.3, 1.0])
    )
    def test_random_sets_in_both_layouts(self, float64, lengths, seed, share):
        rng = np.random.default_rng(seed)
        x = [rng.poisson(3.0, (t, D)).astype(float) for t in lengths]
        mask = [rng.random((t, D)) < share for t in lengths]
        case = Problem(x, parameters(rng, zeros=0.4), mask=mask, weights=rng.choice([0.0, 1.0, 2.5], 4))
        padded = E_STEP(POISSON, case.params, case.padded, jnp.asarray(case.weights))
        total = sum(a * p.log_normalizer for a, p in zip(case.weights, case.paths, strict=True))
        np.testing.assert_allclose(padded.log_likelihood, total, rtol=1e-10, atol=1e-12)
        flat = E_STEP(POISSON, case.params, case.flat, jnp.asarray(case.flat_weights))
        close(padded, flat, 1e-10)


def close(one, other, rtol=1e-9, atol=None):
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        size = max(float(np.max(np.abs(b), initial=0)), 1e-12)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * size if atol is None else atol)


# Data long enough to fit: sequences of three states that are easy to tell apart.


@functools.cache
def simulated(kind="poisson", count=8, steps=30, seed=0):
    """(model, true parameters, Data padded with unequal lengths) in numpy, float64."""
    rng = np.random.default_rng(seed)
    transition = np.array([[0.85, 0.1, 0.05], [0.1, 0.8, 0.1], [0.05, 0.15, 0.8]])
    chain = MarkovChainParams(np.array([0.5, 0.3, 0.2]), transition)
    lengths = rng.integers(steps // 2, steps + 1, count)
    z = np.zeros((count, steps), int)
    z[:, 0] = rng.choice(3, count, p=chain.initial)
    for t in range(1, steps):
        z[:, t] = [rng.choice(3, p=transition[i]) for i in z[:, t - 1]]
    if kind == "poisson":
        likelihood = PoissonParams(np.array([[1.0, 9.0], [5.0, 2.0], [12.0, 12.0]]))
        x = rng.poisson(likelihood.rate[z]).astype(float)
        model = POISSON
    else:
        mean = np.array([[0.0, 0.0], [4.0, 1.0], [-2.0, 5.0]])
        likelihood = jaxem.GaussianParams(mean, np.tile(np.eye(2), (3, 1, 1)))
        x = mean[z] + rng.normal(size=(count, steps, 2))
        model = jaxem.HMM(jaxem.Gaussian(), 3)
    x[np.arange(steps) >= lengths[:, None]] = np.nan
    return model, LatentParams(chain, likelihood), Data(x=x, lengths=lengths)


def flattened(data):
    """The same sequences one after another."""
    within = np.arange(data.x.shape[1]) < np.asarray(data.lengths)[:, None]
    return sequences.from_concat(np.asarray(data.x)[within], np.asarray(data.lengths))


class TestRuns:
    MODELS = {
        "poisson": lambda: (POISSON, "poisson"),
        "gaussian": lambda: (jaxem.HMM(jaxem.Gaussian(), 3), "gaussian"),
        "prior": lambda: (jaxem.WithPrior(jaxem.HMM(jaxem.Gaussian(), 3), 1.0), "gaussian"),
        "more states than there are": lambda: (jaxem.HMM(jaxem.Poisson(), 5), "poisson"),
        "left to right": lambda: (
            jaxem.HMM(jaxem.Poisson(), 4, allowed=left_to_right(4), allowed_initial=[True, True, False, False]),
            "poisson",
        ),
        "frozen": lambda: (jaxem.Frozen(POISSON, {"transition": [True, False, False], "initial": True}), "poisson"),
        "hard": lambda: (jaxem.LatentModel(Hard(MarkovChain(3)), jaxem.Poisson()), "poisson"),
    }

    @pytest.mark.parametrize("name", MODELS)
    def test_a_run_never_falls(self, float64, name):
        model, kind = self.MODELS[name]()
        data = jax.tree.map(jnp.asarray, simulated(kind)[2])
        model = model.calibrate(data)
        starts = jax.vmap(lambda key: model.init(key, data))(jax.random.split(jax.random.key(0), 6))
        control = jaxem.Control(jaxem.Never(), 60)
        runs = jax.jit(lambda p: jaxem.run_lanes(model, p, data, control=control, trace_size=61))(starts)
        falls = np.diff(runs.trace, axis=1)
        assert np.nanmin(falls) >= -1e-9
        assert np.nanmax(runs.trace) > np.nanmin(runs.trace) + 1  # they moved
        assert np.all(np.isfinite(runs.objective))
        if name not in ("prior", "hard"):
            for i in range(6):
                params = jax.tree.map(lambda a, i=i: a[i], runs.params)
                np.testing.assert_allclose(
                    runs.log_likelihood[i], np.sum(model.log_likelihood(params, data)), rtol=1e-10
                )

    def test_padded_flat_and_repeated_sequences_give_one_fit(self, float64):
        model, truth, data = simulated("gaussian")
        weights = np.array([2.0, 1, 0, 1, 2, 1, 1, 1])
        rows = np.repeat(np.arange(8), weights.astype(int))
        repeated = jax.tree.map(lambda a: np.asarray(a)[rows], data)
        flat = flattened(data)
        options = {"params": truth, "tol": 1e-11}
        by_weight = jaxem.fit(model, data, weights=weights, **options)
        by_rows = jaxem.fit(model, repeated, **options)
        by_flat = jaxem.fit(model, flat, weights=np.repeat(weights, data.lengths), **options)
        for other in (by_rows, by_flat):
            close(other.params, by_weight.params, 1e-8)
            np.testing.assert_allclose(other.log_likelihood, by_weight.log_likelihood, rtol=1e-11)
            assert other.steps == by_weight.steps
            assert other.weight == by_weight.weight
        np.testing.assert_allclose(by_flat.bic, by_weight.bic)

    def test_scores_do_not_depend_on_the_layout(self, float64):
        model, truth, data = simulated("gaussian")
        data = jax.tree.map(jnp.asarray, data)
        padded, flat = model.log_likelihood(truth, data), model.log_likelihood(truth, flattened(data))
        ends = np.cumsum(data.lengths)
        np.testing.assert_allclose(np.diff(np.concatenate([[0], np.cumsum(flat)[ends - 1]])), padded, rtol=1e-10)

    def test_chunks_of_sequences_add_up(self, float64):
        model, truth, data = simulated("gaussian")
        data = jax.tree.map(jnp.asarray, data)
        model = model.calibrate(data)
        whole = E_STEP(model, truth, data, None)
        close(E_STEP(jaxem.Chunked(model, 3), truth, data, None), whole, 1e-11)
        chunked = jaxem.Chunked(model, 3)
        np.testing.assert_allclose(chunked.posterior(truth, data), model.posterior(truth, data), atol=1e-12)
        np.testing.assert_array_equal(chunked.predict(truth, data), model.predict(truth, data))

    def test_flat_sequences_cannot_be_cut(self, float64):
        model, truth, data = simulated("gaussian")
        flat, chunked = flattened(data), jaxem.Chunked(model, 10)
        with pytest.raises(jaxem.UnsupportedError, match="flat sequences cannot be cut"):
            jaxem.fit(chunked, flat, params=truth)
        for ask in (chunked.log_likelihood, chunked.posterior, chunked.predict):
            with pytest.raises(jaxem.UnsupportedError, match="flat sequences cannot be cut"):
                ask(truth, flat)

    def test_many_starts_find_the_truth(self, float64):
        model, truth, data = simulated("gaussian", count=20, steps=60)
        result = jaxem.fit(model, data, key=jax.random.key(0), num_starts=8)
        order = np.argsort(result.params.likelihood.mean[:, 0])
        expected = np.argsort(truth.likelihood.mean[:, 0])
        ours, theirs = model.take_components(result.params, order), model.take_components(truth, expected)
        np.testing.assert_allclose(ours.likelihood.mean, theirs.likelihood.mean, atol=0.25)
        np.testing.assert_allclose(ours.latent.transition, theirs.latent.transition, atol=0.08)
        assert result.log_likelihood >= np.sum(result.model.log_likelihood(truth, data))

    def test_batches(self, float64):
        """Data sets with sequences of their own lengths, as lanes, against one by one."""
        model, truth, data = simulated("gaussian")
        lengths = np.stack([data.lengths, np.minimum(data.lengths, 12), data.lengths])
        sets = Data(x=np.stack([data.x, data.x, data.x + 1.0]), lengths=lengths)
        starts = jax.tree.map(lambda a: np.stack([np.stack([a])] * 3), truth)
        batch = jaxem.fit_batch(model, sets, starts=starts, tol=1e-9)
        for d in range(3):
            one = jaxem.fit(model, jax.tree.map(lambda a, d=d: a[d], sets), params=truth, tol=1e-9)
            close(batch[d].params, one.params, 1e-7)
            np.testing.assert_allclose(batch[d].log_likelihood, one.log_likelihood, rtol=1e-11)
            assert batch[d].weight == one.weight == lengths[d].sum()

    def test_numbers_of_states_in_one_program(self, float64):
        """States beyond a lane's own have no weight and keep none; each optimum is that of fits of their own."""
        _, _, data = simulated("poisson")
        models = [jaxem.HMM(jaxem.Poisson(), k) for k in (1, 2, 3)]
        chosen = jaxem.select(models, data, key=jax.random.key(0), num_starts=8, tol=1e-10)
        assert chosen.best.model.num_components == 3
        for model, result in zip(models, chosen.results, strict=True):
            alone = jaxem.fit(model, data, key=jax.random.key(1), num_starts=8, tol=1e-10)
            np.testing.assert_allclose(result.log_likelihood, alone.log_likelihood, rtol=1e-8)
            assert result.num_free_parameters == alone.num_free_parameters
            np.testing.assert_allclose(result.params.latent.transition.sum(axis=1), 1, rtol=1e-12)
            assert result.params.latent.transition.shape == (model.num_components,) * 2
            # The result stands by itself: its parameters give its log-likelihood.
            np.testing.assert_allclose(result.log_likelihood, np.sum(result.model.log_likelihood(result.params, data)))

    def test_a_pattern_has_its_number_of_states(self):
        model = jaxem.HMM(jaxem.Poisson(), 3, allowed=left_to_right(3))
        assert not model.sweepable
        with pytest.raises(ValueError, match="zero pattern"):
            model.with_components(2)


class TestZeroPatterns:
    PATTERN = left_to_right(4, reach=2)
    MODEL = jaxem.HMM(jaxem.Poisson(), 4, allowed=PATTERN, allowed_initial=[True, False, True, False])

    def test_the_pattern_of_a_bakis_model(self):
        np.testing.assert_array_equal(
            left_to_right(3), np.triu(np.ones((3, 3), bool)) & ~np.triu(np.ones((3, 3), bool), 2)
        )
        np.testing.assert_array_equal(left_to_right(3, 2), np.triu(np.ones((3, 3), bool)))

    def zeros_are_exact(self, params):
        assert np.all(np.asarray(params.latent.transition)[..., ~np.array(self.PATTERN)] == 0)
        assert np.all(np.asarray(params.latent.initial)[..., [1, 3]] == 0)
        np.testing.assert_allclose(np.sum(params.latent.transition, axis=-1), 1, rtol=1e-5)
        np.testing.assert_allclose(np.sum(params.latent.initial, axis=-1), 1, rtol=1e-5)

    def test_after_a_start_and_after_every_step(self, dtype):
        data = jax.tree.map(jnp.asarray, simulated()[2])
        data = dataclasses.replace(data, x=data.x.astype(dtype))
        model = self.MODEL.calibrate(data)
        params = model.init(jax.random.key(0), data)
        self.zeros_are_exact(params)
        for _ in range(12):
            params = STEP(model, params, data, None)
            self.zeros_are_exact(params)
        path = np.asarray(model.predict(params, data))
        within = np.arange(path.shape[1]) < np.asarray(data.lengths)[:, None]
        assert np.all((np.diff(path, axis=1) >= 0) | ~within[:, 1:])
        assert set(path[:, 0]) <= {0, 2}

    def test_through_the_door_with_a_prior(self, float64):
        result = jaxem.fit(
            jaxem.WithPrior(self.MODEL, 2.0),
            simulated()[2],
            key=jax.random.key(0),
            num_starts=4,
            max_steps=50,
            on_failure="ignore",
        )
        self.zeros_are_exact(result.starts.params)
        # Rows of 3, 3, 2, 1 allowed transitions, 2 allowed first states, 8 rates.
        assert result.num_free_parameters == 2 + 2 + 1 + 0 + 1 + 8

    def test_coordinates_skip_what_is_not_allowed(self, float64):
        rng = np.random.default_rng(0)
        chain = self.MODEL.latent
        params = chain.maximize(
            None, MarkovChainParams(jnp.asarray(rng.random(4)), jnp.asarray(rng.random((4, 4)))), {}
        )
        back = chain.from_free(chain.to_free(params))
        close(back, params, 1e-13)
        assert np.all(np.asarray(back.transition)[~np.array(self.PATTERN)] == 0)

    def test_what_is_zero_stays_zero_without_a_pattern(self, float32):
        data = jax.tree.map(
            lambda a: jnp.asarray(a, "float32" if np.asarray(a).dtype.kind == "f" else None), simulated()[2]
        )
        model = POISSON.calibrate(data)
        params = model.init(jax.random.key(0), data)
        transition = params.latent.transition.at[0, 1].set(0)
        transition = transition / transition.sum(axis=1, keepdims=True)
        params = LatentParams(MarkovChainParams(params.latent.initial.at[2].set(0), transition), params.likelihood)
        for _ in range(5):
            params = STEP(model, params, data, None)
            assert params.latent.transition[0, 1] == 0
            assert params.latent.initial[2] == 0

    def test_rows_that_are_all_alike_still_start(self, float64):
        """Every step in one cluster: the others hold nothing, and the pattern leaves some states no other way."""
        x = np.full((3, 10, 2), 4.0)
        model = jaxem.HMM(
            jaxem.Poisson(), 3, allowed=[[False, True, False], [False, False, True], [True, False, False]]
        )
        result = jaxem.fit(model, x, key=jax.random.key(0), num_starts=4, on_failure="ignore")
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(result.starts.params))
        assert result.status.success, result.status.text
        np.testing.assert_allclose(result.log_likelihood, 60 * scipy.stats.poisson.logpmf(4, 4.0), rtol=1e-6)

    @pytest.mark.parametrize(
        ("allowed", "message"),
        [
            (np.ones((2, 3), bool), r"booleans of shape \(3, 3\); got bool \(2, 3\)"),
            (np.ones((3, 3)), r"booleans of shape \(3, 3\); got float64"),
            ([[True, True, False], [False, False, False], [True, True, True]], "row 1 of it is all False"),
        ],
    )
    def test_a_pattern_that_cannot_be_is_refused(self, allowed, message):
        with pytest.raises(ValueError, match=message):
            jaxem.HMM(jaxem.Poisson(), 3, allowed=allowed)
        with pytest.raises(ValueError, match="it is all False"):
            jaxem.HMM(jaxem.Poisson(), 2, allowed_initial=[False, False])


class TestFrozen:
    def step(self, leaves, seed=0):
        rng = np.random.default_rng(seed)
        data, params = jax.tree.map(jnp.asarray, simulated()[2]), parameters(rng)
        model = jaxem.Frozen(POISSON, leaves)
        return params, STEP(model, params, data, None), STEP(POISSON, params, data, None), model

    def test_the_whole_transition(self, float64):
        params, held, free, model = self.step(["transition"])
        np.testing.assert_array_equal(held.latent.transition, params.latent.transition)
        close((held.latent.initial, held.likelihood), (free.latent.initial, free.likelihood), 1e-12)
        assert model.num_free_parameters(params) == 2 + K * D

    def test_some_rows_of_the_transition(self, float64):
        params, held, free, model = self.step({"transition": [True, False, True]})
        np.testing.assert_array_equal(held.latent.transition[::2], params.latent.transition[::2])
        np.testing.assert_allclose(held.latent.transition[1], free.latent.transition[1], rtol=1e-12)
        assert model.num_free_parameters(params) == 2 + 2 + K * D

    def test_some_of_the_first_states(self, float64):
        params, held, free, model = self.step({"initial": [False, True, False]})
        assert held.latent.initial[1] == params.latent.initial[1]
        others = np.array([0, 2])
        ratio = np.asarray(free.latent.initial)[others] / np.sum(np.asarray(free.latent.initial)[others])
        np.testing.assert_allclose(
            np.asarray(held.latent.initial)[others], (1 - params.latent.initial[1]) * ratio, rtol=1e-12
        )
        assert model.num_free_parameters(params) == 1 + 6 + K * D

    @pytest.mark.parametrize(
        ("leaves", "count"),
        [
            ({"transition": [True, False, False, False]}, 3 + 3 + 1 + 8),  # of rows with 3, 3, 2, 1 ways
            ({"transition": [False, False, True, True]}, 2 + 2 + 1 + 8),
            ({"transition": [False, True, True, True], "initial": True}, 2 + 8),
            ({"initial": [True, False, False, False]}, 2 + 2 + 1 + 8),
        ],
    )
    def test_parameters_are_counted_by_what_is_left(self, float64, leaves, count):
        allowed = TestZeroPatterns.MODEL
        data = simulated()[2]
        params = allowed.init(jax.random.key(0), data)
        if "transition" in leaves and leaves["transition"][0]:
            count = 2 + 1 + 1 + 8  # rows 1 and 2, the first states, the rates
        assert jaxem.Frozen(allowed, leaves).num_free_parameters(params) == count

    def test_values_are_put_into_every_start(self, float64):
        rows = np.array([[0.9, 0.1, 0.0], [0.0, 0.9, 0.1], [0.1, 0.0, 0.9]])
        model = jaxem.Frozen(POISSON, ["transition"], {"transition": rows})
        result = jaxem.fit(model, simulated()[2], key=jax.random.key(0), num_starts=3)
        np.testing.assert_array_equal(result.starts.params.latent.transition, np.stack([rows] * 3))


class TestSampling:
    def test_the_law_of_the_chain(self, float64):
        model, truth, _ = simulated("poisson")
        count, steps = 4000, 6
        x, z = jax.jit(lambda k, p: model.sample(k, p, count, steps))(jax.random.key(0), truth)
        assert x.shape == (count, steps, D)
        assert z.shape == (count, steps)
        z = np.asarray(z)
        initial = np.bincount(z[:, 0], minlength=3) / count
        spread = np.sqrt(truth.latent.initial * (1 - truth.latent.initial) / count)
        assert np.max(np.abs(initial - truth.latent.initial) / spread) < 5
        for t in (1, steps - 1):  # the same law at every step
            for i in range(3):
                here = z[:, t - 1] == i
                share = np.bincount(z[here, t], minlength=3) / here.sum()
                row = truth.latent.transition[i]
                assert np.max(np.abs(share - row) / np.sqrt(row * (1 - row) / here.sum())) < 5
        for k in range(3):
            rows = np.asarray(x)[z == k]
            rate = truth.likelihood.rate[k]
            assert np.max(np.abs(rows.mean(axis=0) - rate) / np.sqrt(rate / len(rows))) < 5

    def test_lengths(self, float64):
        model, truth, _ = simulated("poisson")
        x, z = model.sample(jax.random.key(0), truth, 2, num_steps=1)
        assert x.shape == (2, 1, D)
        assert z.shape == (2, 1)
        with pytest.raises(ValueError, match="num_steps"):
            model.sample(jax.random.key(0), truth, 2)

    def test_zeros_are_never_drawn(self, float64):
        model = jaxem.HMM(jaxem.Poisson(), 3, allowed=left_to_right(3))
        chain = MarkovChainParams(np.array([1.0, 0, 0]), np.array([[0.5, 0.5, 0], [0, 0.5, 0.5], [0, 0, 1.0]]))
        _, z = model.sample(jax.random.key(0), LatentParams(chain, PoissonParams(np.ones((3, 1)))), 500, 8)
        assert set(np.unique(np.diff(z, axis=1))) == {0, 1}
        assert np.all(z[:, 0] == 0)


class TestSequences:
    def test_a_list(self):
        parts = [np.ones((2, 3)), np.zeros((0, 3)), np.arange(12.0).reshape(4, 3)]
        data = sequences.from_list(parts)
        assert data.x.shape == (3, 4, 3)
        np.testing.assert_array_equal(data.lengths, [2, 0, 4])
        for part, row, length in zip(parts, data.x, data.lengths, strict=True):
            np.testing.assert_array_equal(row[:length], part)

    def test_round_trip(self):
        rng = np.random.default_rng(0)
        x, lengths = rng.normal(size=(9, 2)), [4, 1, 3, 1]
        flat = sequences.from_concat(x, lengths)
        np.testing.assert_array_equal(np.flatnonzero(flat.starts), [0, 4, 5, 8])
        mask, labels, inputs = rng.random((9, 2)) < 0.5, rng.integers(-1, 3, 9), rng.normal(size=(9, 4))
        padded = sequences.pad(dataclasses.replace(flat, mask=mask, labels=labels, inputs=inputs))
        np.testing.assert_array_equal(padded.lengths, lengths)
        within = np.arange(4) < padded.lengths[:, None]
        for ours, given in ((padded.x, x), (padded.mask, mask), (padded.labels, labels), (padded.inputs, inputs)):
            np.testing.assert_array_equal(ours[within], given)
        assert np.all(padded.labels[~within] == -1)
        assert not np.any(padded.mask[~within])
        again = sequences.from_list([row[:n] for row, n in zip(padded.x, padded.lengths, strict=True)])
        np.testing.assert_array_equal(again.x, padded.x)

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: sequences.from_list([]), "no sequence"),
            (lambda: sequences.from_list([np.ones((2, 3)), np.ones((2, 2))]), r"one D; got \[\(2, 2\), \(2, 3\)\]"),
            (lambda: sequences.from_list([np.ones(3)]), r"\[T, D\]"),
            (lambda: sequences.from_concat(np.ones((4, 1)), [2, 1]), "add up to 4 rows"),
            (lambda: sequences.from_concat(np.ones((4, 1)), [4, 0]), "at least 1"),
            (lambda: sequences.from_concat(np.ones(4), [4]), r"\[N, D\]; got shape \(4,\)"),
            (lambda: sequences.pad(Data(x=np.ones((4, 1)))), "with starts"),
        ],
    )
    def test_errors(self, make, message):
        with pytest.raises(ValueError, match=message):
            make()

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (Data(x=np.ones((2, 5, 1)), lengths=np.array([5, 6])), "from 0 to 5; sequence 1 has 6"),
            (Data(x=np.ones((2, 5, 1)), lengths=np.array([-1, 5])), "from 0 to 5; sequence 0 has -1"),
            (Data(x=np.ones((2, 5, 1)), lengths=np.array([0, 0])), "all sequences have length 0"),
            (Data(x=np.ones((2, 5, 1)), lengths=np.array([1, 1])), "3 states need at least as many steps; got 2"),
            (Data(x=np.ones((2, 1))), "3 states need at least as many steps; got 2"),
            (Data(x=np.ones((2, 5, 1)), lengths=np.array([5, 5, 5])), "same number of examples"),
            (Data(x=np.ones((2, 5, 1)), starts=np.ones(2, bool)), "starts belong to flat sequences"),
            (Data(x=np.ones((5, 1)), lengths=np.ones(5, int)), "lengths belong to padded sequences"),
            (Data(x=np.ones((5, 1)), labels=np.array([0, 1, 2, 3, -1])), r"from 0 to 2.*label \[3\] is 3"),
            (Data(x=np.ones((2, 5, 1)), labels=np.zeros((2, 4), int)), r"labels needs shape \(2, 5\); got \(2, 4\)"),
            (Data(x=np.ones((2, 3, 4, 1))), r"got shape \(2, 3, 4, 1\)"),
        ],
    )
    def test_the_door_refuses_what_cannot_be(self, data, message):
        with pytest.raises(ValueError, match=message):
            jaxem.fit(POISSON, data, key=jax.random.key(0))

    def test_labels_beyond_a_length_are_not_looked_at(self, float64):
        data = simulated()[2]
        labels = np.full(data.x.shape[:2], 99)
        labels[np.arange(labels.shape[1]) < data.lengths[:, None]] = -1
        truth = simulated()[1]
        plain, labelled = (
            jaxem.fit(POISSON, d, params=truth) for d in (data, dataclasses.replace(data, labels=labels))
        )
        close(labelled.params, plain.params, 1e-12)

    def test_starts_from_chance_do_not_read_beyond_a_length(self, float64):
        """A sequence of length 0 has no first state, at a start neither."""
        model, _, data = simulated()
        one_hot = np.random.default_rng(0).dirichlet(np.ones(K), data.x.shape[:2])
        lengths = np.where(np.arange(8) < 4, 0, data.lengths)
        stats = model.complete_statistics(jnp.asarray(one_hot), dataclasses.replace(data, lengths=lengths))
        np.testing.assert_allclose(stats.latent.initial, one_hot[4:, 0].sum(axis=0), rtol=1e-12)
        np.testing.assert_allclose(np.sum(stats.latent.transition), np.sum(lengths[4:] - 1), rtol=1e-12)

    def test_a_weight_is_that_of_a_sequence(self):
        data = sequences.from_concat(np.ones((6, 1)), [3, 3])
        with pytest.raises(ValueError, match=r"whole sequence.*row 4 has 2.0 after 1.0"):
            jaxem.fit(POISSON, data, weights=np.array([1.0, 1, 1, 1, 2, 1]), key=jax.random.key(0))


class TestResults:
    def test_a_result_comes_back_from_a_file(self, float64, tmp_path):
        data = simulated()[2]
        result = jaxem.fit(TestZeroPatterns.MODEL, data, key=jax.random.key(0), max_steps=20, on_failure="ignore")
        jaxem.save(tmp_path / "hmm.jaxem", result)
        again = jaxem.load(tmp_path / "hmm.jaxem")
        assert jax.tree.structure(again) == jax.tree.structure(result)
        chex.assert_trees_all_equal(again, result)
        assert again.model.latent.allowed == TestZeroPatterns.PATTERN
        assert (again.num_sequences, again.num_steps) == (8, int(np.sum(data.lengths)))
        np.testing.assert_array_equal(
            again.model.predict(again.params, data), result.model.predict(result.params, data)
        )

    def test_it_says_what_it_was_fitted_to(self, float64):
        model, truth, data = simulated("gaussian")
        steps = int(np.sum(data.lengths))
        for given in (data, flattened(data)):
            text = str(jaxem.fit(model, given, params=truth))
            head = f"Gaussian hidden Markov model, 3 states, full covariance, fitted to 8 sequences, {steps} steps"
            assert text.splitlines()[0] == head
        one = jaxem.fit(model, np.asarray(data.x)[0, :12], params=truth, on_failure="ignore")
        assert "fitted to 1 sequence, 12 steps" in str(one)
        several = jaxem.fit(POISSON, simulated()[2], key=jax.random.key(0), num_starts=2)
        assert "2 starts, " in str(several)
        assert "per step of the best" in str(several)

    def test_hard_assignments_are_named(self):
        from jaxem.result import describe

        chain = jaxem.LatentModel(Hard(MarkovChain(2)), jaxem.Poisson())
        assert describe(chain) == "Poisson hidden Markov model, 2 states, hard assignments"
        assert describe(jaxem.HMM(jaxem.Poisson(), 1)) == "Poisson hidden Markov model, 1 state"

    def test_questions_go_through_wrappers(self, float64):
        model, truth, data = simulated("gaussian")
        wrapped = jaxem.WithPrior(jaxem.Chunked(model, 4), 1.0)
        data = jax.tree.map(jnp.asarray, data)
        close(jaxem.forecast(wrapped, truth, data, 2), jaxem.forecast(model, truth, data, 2), 1e-12)
        close(jaxem.pair_posterior(wrapped, truth, data), jaxem.pair_posterior(model, truth, data), 1e-12)
        mixture = jaxem.Mixture(jaxem.Gaussian(), 3)
        with pytest.raises(jaxem.UnsupportedError, match="Categorical has no Markov chain"):
            jaxem.forecast(mixture, None, data.x[0])
        with pytest.raises(ValueError, match="num_steps must be at least 1; got 0"):
            jaxem.forecast(model, truth, data, 0)


class TestPromises:
    """Rows of the table of promises, for sequences."""

    @pytest.mark.parametrize("value", [np.nan, 1e30, -np.inf])
    def test_02_what_is_not_observed_is_never_read(self, dtype, value):
        """Masked steps, masked cells and what lies beyond a length: the same bits, and finite gradients."""
        rng = np.random.default_rng(0)
        data = simulated()[2]
        within = np.arange(data.x.shape[1]) < data.lengths[:, None]
        truth = jax.tree.map(lambda a: jnp.asarray(a, dtype), simulated()[1])
        for mask in (rng.random(data.x.shape[:2]) < 0.7, rng.random(data.x.shape) < 0.7):
            hidden = ~within[..., None] | ~(mask if mask.ndim == 3 else mask[..., None])
            clean, spoilt = (
                dataclasses.replace(data, x=jnp.asarray(np.where(hidden, fill, data.x), dtype), mask=jnp.asarray(mask))
                for fill in (3.0, value)
            )
            model = POISSON.calibrate(clean)
            chex.assert_trees_all_equal(model, POISSON.calibrate(spoilt))
            chex.assert_trees_all_equal(E_STEP(model, truth, clean, None), E_STEP(model, truth, spoilt, None))

            def evidence(free, data, model=model):
                return model.e_step(model.from_free(free), data).log_likelihood

            gradient = jax.jit(jax.grad(evidence))(model.to_free(truth), spoilt)
            assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
            assert np.max(np.abs(jax.tree.leaves(gradient)[0])) > 0

    @pytest.mark.parametrize("kind", ["poisson", "gaussian"])
    def test_02_nan_beyond_a_length_passes_the_door(self, dtype, kind):
        """The simulated sequences are padded with NaN; a NaN inside one is named with its place."""
        model, truth, data = simulated(kind)
        data = dataclasses.replace(data, x=np.asarray(data.x, dtype))
        truth = jax.tree.map(lambda a: np.asarray(a, dtype), truth)
        zeros = dataclasses.replace(data, x=np.nan_to_num(data.x))
        fits = [jaxem.fit(model, d, params=truth) for d in (data, zeros)]
        chex.assert_trees_all_equal(fits[0].params, fits[1].params)
        chunked = jaxem.fit(jaxem.Chunked(model, 3), data, params=truth)
        np.testing.assert_allclose(chunked.log_likelihood, fits[0].log_likelihood, rtol=1e-5)
        bad = np.array(data.x)
        bad[3, 5, 1] = np.nan
        with pytest.raises(ValueError, match=r"nan in sequence 3, step 5, column 1"):
            jaxem.fit(model, dataclasses.replace(data, x=bad), params=truth)

    def test_03_a_sequence_of_length_zero_adds_nothing(self, float64):
        model, truth, data = simulated("gaussian")
        more = Data(
            x=np.concatenate([data.x, np.full((2, *data.x.shape[1:]), np.nan)]), lengths=np.append(data.lengths, [0, 0])
        )
        data, more = (jax.tree.map(jnp.asarray, d) for d in (data, more))
        close(E_STEP(model, truth, more, None), E_STEP(model, truth, data, None), 1e-13)
        assert np.all(model.log_likelihood(truth, more)[-2:] == 0)
        fits = [jaxem.fit(model, d, params=truth) for d in (data, more)]
        close(fits[0].params, fits[1].params, 1e-9)
        assert fits[0].weight == fits[1].weight
        # From a start of its own too: what is drawn differs, nothing is NaN.
        assert jaxem.fit(model, more, key=jax.random.key(0), num_starts=4).converged

    def test_05_an_empty_state_keeps_its_parameters_and_is_named(self, dtype):
        _, truth, data = simulated("poisson")
        data = dataclasses.replace(data, x=np.asarray(data.x, dtype))
        initial = np.append(truth.latent.initial, 0)
        transition = np.zeros((4, 4))
        transition[:3, :3] = truth.latent.transition
        transition[3] = 0.1, 0.2, 0.3, 0.4
        rate = np.concatenate([truth.likelihood.rate, [[70.0, 0.3]]])
        params = LatentParams(MarkovChainParams(initial, transition), PoissonParams(rate))
        params = jax.tree.map(lambda a: np.asarray(a, dtype), params)
        with pytest.warns(jaxem.ConvergenceWarning, match="less than half a row: 3"):
            result = jaxem.fit(jaxem.HMM(jaxem.Poisson(), 4), data, params=params)
        assert result.empty == (3,)
        np.testing.assert_array_equal(result.params.likelihood.rate[3], params.likelihood.rate[3])
        np.testing.assert_array_equal(result.params.latent.transition[3], params.latent.transition[3])
        alone = jaxem.fit(POISSON, data, params=jax.tree.map(lambda a: np.asarray(a, dtype), truth))
        np.testing.assert_allclose(result.log_likelihood, alone.log_likelihood, rtol=1e-6)

    def test_05_a_state_that_is_left_for_good_is_not_empty(self, float64):
        """The first state of a left-to-right chain, long before the end; and rounding of a million steps names nobody."""
        chain = MarkovChain(3)
        transition = jnp.array([[0.9, 0.1, 0], [0, 0.9, 0.1], [0, 0, 1]])
        for number in (jnp.float64, jnp.float32):
            params = MarkovChainParams(jnp.array([1.0, 0, 0], number), transition.astype(number))
            assert not np.any(chain.empty(params, jnp.asarray(1e6, number)))
            params = MarkovChainParams(jnp.array([0, 1.0, 0], number), transition.astype(number))
            np.testing.assert_array_equal(chain.empty(params, jnp.asarray(1e9, number)), [True, False, False])

    @pytest.mark.slow
    def test_07_a_million_steps_in_float32(self):
        t, k = 1_000_000, 3
        rng = np.random.default_rng(0)
        transition = np.array([[0.99, 0.005, 0.005], [0.02, 0.97, 0.01], [0.001, 0.004, 0.995]])
        uniform, z = rng.random(t), np.zeros(t, int)
        rows = transition.cumsum(axis=1)[:, :-1].tolist()
        state = 0
        for i, u in enumerate(uniform.tolist()):
            z[i] = state
            state = (u > rows[state][0]) + (u > rows[state][1])
        mean = np.array([[0.0], [2.5], [6.0]])
        x = (mean[z] + rng.normal(size=(t, 1))).astype(np.float32)
        params = LatentParams(
            MarkovChainParams(np.ones(k) / k, transition), jaxem.GaussianParams(mean, np.ones((k, 1, 1)))
        )
        model = jaxem.HMM(jaxem.Gaussian(), k)

        @jax.jit
        def once(params, x):
            own = model.calibrate(x)
            expected = own.e_step(params, x)
            return expected, own.posterior(params, x), own.m_step(params, expected.stats)

        with jax.enable_x64(True):
            exact = jax.device_get(once(params, x.astype(float)))
        with jax.enable_x64(False):
            single = jax.device_get(once(jax.tree.map(np.float32, params), x))
        np.testing.assert_allclose(single[0].log_likelihood, exact[0].log_likelihood, rtol=1e-6)
        np.testing.assert_allclose(single[1].sum(axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(single[1], exact[1], atol=2e-4)
        pairs = single[0].stats.latent.transition
        np.testing.assert_allclose(np.sum(pairs, dtype=float), t - 1, rtol=1e-6)
        np.testing.assert_allclose(pairs, exact[0].stats.latent.transition, rtol=2e-5)
        close(single[2].likelihood, exact[2].likelihood, 1e-5)

    @pytest.mark.parametrize("bad", [-1.0, 2.5])
    def test_08_a_count_that_is_none(self, bad):
        data = simulated()[2]
        x = np.array(data.x)
        x[2, 4, 1] = bad
        with pytest.raises(ValueError, match=f"Poisson counts are 0, 1, 2, …; got {bad}"):
            jaxem.fit(POISSON, dataclasses.replace(data, x=x), key=jax.random.key(0))
        # Beyond a length it is nobody's business.
        x = np.where(np.isnan(data.x), bad, data.x)
        jaxem.fit(POISSON, dataclasses.replace(data, x=x), key=jax.random.key(0), max_steps=5, on_failure="ignore")

    def test_a_few_labels_leave_every_way_open(self, float64):
        """Steps that a start gives to nobody, between those of a label: what would be 0 then stayed 0 forever."""
        model, _, data = simulated("gaussian")
        labels = np.full(data.x.shape[:2], -1)
        labels[[2, 5], [4, 9]] = 0, 1
        data = dataclasses.replace(data, labels=labels)
        start = model.init(jax.random.key(0), data)
        assert np.min(start.latent.transition) > 0
        assert np.min(start.latent.initial) > 0
        assert jaxem.fit(model, data, key=jax.random.key(0), num_starts=4).converged

    @both
    def test_09_impossible_data_name_the_sequence_and_the_step(self, dtype, layout):
        """A label that the pattern cannot reach."""
        data = simulated()[2]
        data = dataclasses.replace(data, x=np.asarray(data.x, dtype))
        labels = np.full(data.x.shape[:2], -1)
        labels[5, 3], labels[5, 7] = 1, 0
        if layout == "flat":
            within = np.arange(labels.shape[1]) < data.lengths[:, None]
            data = dataclasses.replace(flattened(data), labels=labels[within])
            place = f"row {int(np.sum(simulated()[2].lengths[:5])) + 7}"
        else:
            data = dataclasses.replace(data, labels=labels)
            place = "step 7 of sequence 5"
        model = jaxem.HMM(jaxem.Poisson(), 3, allowed=left_to_right(3))
        with pytest.raises(jaxem.FitError, match=place):
            jaxem.fit(model, data, key=jax.random.key(0), num_starts=2)
        result = jaxem.fit(model, data, key=jax.random.key(0), on_failure="ignore")
        assert result.status == Status.ZERO_LIKELIHOOD
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(result.params))

    def test_09_impossible_sequences_in_a_chunked_model_are_named_too(self, float64):
        data = simulated()[2]
        labels = np.full(data.x.shape[:2], -1)
        labels[5, 3], labels[5, 7] = 1, 0
        model = jaxem.Chunked(jaxem.HMM(jaxem.Poisson(), 3, allowed=left_to_right(3)), 3)
        with pytest.raises(jaxem.FitError, match="step 7 of sequence 5"):
            jaxem.fit(model, dataclasses.replace(data, labels=labels), key=jax.random.key(0))

    def test_13_the_reported_objective_is_that_of_the_parameters(self, dtype):
        model, _, data = simulated("gaussian")
        data = dataclasses.replace(data, x=np.asarray(data.x, dtype))
        result = jaxem.fit(model, data, key=jax.random.key(0), max_steps=7, on_failure="ignore")
        total = np.sum(result.model.log_likelihood(result.params, data))
        np.testing.assert_allclose(result.log_likelihood, total, rtol=1e-12 if dtype == np.float64 else 1e-6)

    def test_21_two_runs_are_the_same_to_the_last_bit(self, dtype):
        data = simulated()[2]
        fits = [jaxem.fit(POISSON, data, key=jax.random.key(3), num_starts=3) for _ in range(2)]
        chex.assert_trees_all_equal(fits[0].starts, fits[1].starts)
