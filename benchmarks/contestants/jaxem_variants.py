"""jaxem's algorithms, and optax on the marginal log-likelihood: the same model, data and start for all, in float64."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxem
from benchmarks.contestants.jaxem_gmm import _first, _full, _timed, versions
from benchmarks.contestants.jaxem_gmm import _params as _mixture_params
from benchmarks.contestants.jaxem_hmm import _params as _chain_params
from jaxem.free import coordinates
from jaxem.model import pytree
from jaxem.stopping import Stopping

__all__ = ["counts", "log_joint", "race", "versions"]

# Within 1e-6 of the highest objective known, relative to it and per example, is there.
_TOLERANCE = 1e-6
# Programs slower than this are timed once; what is not there after so many times EM's E-steps has lost.
_LONG_SECONDS, _PATIENCE, _LEAST_LIMIT = 4.0, 5, 1000
_RATES = (0.1, 0.03, 0.3, 0.01, 1.0)
_POINTS = 80


@pytree
class Reaches(Stopping):
    """Stop at an objective of at least ``target``."""

    target: float | jax.Array

    watches_objective = False

    def check(self, memory, progress):
        return memory, progress.objective >= self.target


@pytree
class Change(Stopping):
    """The rule of SQUAREM's vignette: ‖θ_t − θ_(t−1)‖ ≤ tol, of the weights all but the last."""

    tol: float = 1e-8

    watches_objective = False

    def start(self, params, objective):
        return params

    def check(self, memory, progress):
        def listed(params):
            return [params.latent.weights[:-1], *jax.tree.leaves(params.likelihood)]

        squares = [jnp.sum((a - b) ** 2) for a, b in zip(listed(progress.params), listed(memory), strict=True)]
        return progress.params, jnp.sqrt(sum(squares)) <= self.tol


@dataclasses.dataclass(frozen=True)
class Problem:
    """A calibrated model, its data as a fit's loop has them, the same as rows, and one start.

    others: names and models of the same likelihood whose EM differs. blocks: of ECM. batch: examples in a mini-batch.
    """

    model: Any
    data: Any
    weights: Any
    rows: Any
    params: Any
    size: float
    others: dict[str, Any] = dataclasses.field(default_factory=dict)
    blocks: tuple[tuple[str, ...], ...] = ()
    batch: int | None = None


def _problem(model, x, weights, params, **more):
    x, weights = jax.tree.map(jnp.asarray, (x, weights))
    params = jax.tree.map(lambda a: jnp.asarray(a, x.dtype), params)
    model = model.calibrate(x, weights)
    data, own = jax.jit(lambda m, a, w: m.compress(a, w))(model, x, weights)
    size = float(model.num_observations(data, own))
    return Problem(model, data, own, model.prepare(x), params, size, **more)


def _start(arrays, latent, likelihood):
    return jaxem.LatentParams(jaxem.CategoricalParams(arrays["weights"]), likelihood)


def poisson(arrays, options):
    params = _start(arrays, None, jaxem.PoissonParams(arrays["rates"]))
    model = jaxem.Mixture(jaxem.Poisson(), len(arrays["rates"]))
    return _problem(model, arrays["x"], arrays["counts"], params, blocks=(("weights",), ("rate",)))


def binomial(arrays, options):
    params = _start(arrays, None, jaxem.BinomialParams(arrays["probs"]))
    model = jaxem.Mixture(jaxem.Binomial([options["trials"]]), len(arrays["probs"]))
    return _problem(model, arrays["x"], arrays["counts"], params)


def gmm(arrays, options):
    params, blocks = _first(_mixture_params(arrays)), (("weights", "mean"), ("covariance",))
    return _problem(_full(arrays), arrays["x"], None, params, blocks=blocks, batch=len(arrays["x"]) // 10)


def hmm(arrays, options):
    model = jaxem.HMM(jaxem.Gaussian(), len(arrays["means"]))
    blocks = (("initial", "transition", "mean"), ("covariance",))
    batch = max(1, len(arrays["x"]) // 10)
    return _problem(model, arrays["x"], None, _chain_params(arrays), blocks=blocks, batch=batch)


def factors(arrays, options):
    x, size = jnp.asarray(arrays["x"]), options["factors"]
    model = jaxem.FactorAnalysis(size, expanded=False).calibrate(x)
    params = model.init(jax.random.key(0), x)
    others = {"expanded": dataclasses.replace(model, expanded=True)}
    return _problem(model, x, None, params, others=others, batch=len(x) // 10)


def _read(arrays, options):
    """The problem, of arrays in float64."""
    arrays = {name: np.asarray(a, np.float64) for name, a in arrays.items()}
    return globals()[options["problem"]](arrays, options)


# Programs. Each is compiled once, its arrays are arguments, and it answers (value reached, evaluations, parameters,
# objectives on the way).


def _compiled(program, *arrays):
    return functools.partial(jax.jit(program), *arrays)


def _driver(problem, algorithm, model=None, trace_size=0):
    """jaxem's own loop: an E-step for every evaluation, the one that sees the target too."""

    def program(model, params, data, weights, target, limit):
        control = jaxem.Control(Reaches(target), max_steps=limit - 1, min_steps=0)
        result = jaxem.run(model, params, data, weights, algorithm=algorithm, control=control, trace_size=trace_size)
        return result.objective, result.steps + 1, result.params, result.trace

    model = problem.model if model is None else model
    return _compiled(program, model, problem.params, problem.data, problem.weights)


def _passes(problem, algorithm):
    """Passes of an algorithm whose objectives on the way are estimates; ``judge``: whether the true ones are asked."""

    def program(model, params, data, target, limit, judge):
        def visit(carry):
            state, count, _ = carry
            state, _ = algorithm.step(model, state, data, None)
            value = jax.lax.cond(
                judge, lambda p: model.e_step(p, data).log_likelihood, lambda p: -jnp.inf, state.params
            )
            return state, count + 1, value

        def unfinished(carry):
            return (carry[1] < limit) & (carry[2] < target)

        start = algorithm.init(model, params, data, None), jnp.int32(0), -jnp.inf
        state, count, value = jax.lax.while_loop(unfinished, visit, start)
        return value, count, state.params, None

    return _compiled(program, problem.model, problem.params, problem.rows)


def _noted(trace, place, value):
    return trace.at[place].set(value, mode="drop") if trace.size else trace


def _loss(model, params, data, weights):
    """The start in free coordinates, −log-likelihood per example of such, and examples."""
    start, back = coordinates(model, params)
    size = model.num_observations(data, weights)
    return start, back, lambda v: -model.e_step(back(v), data, weights).log_likelihood / size, size


def _adam(problem, trace_size=0):
    """A gradient of the marginal log-likelihood for every evaluation."""

    def program(model, params, data, weights, target, limit, rate):
        begin, back, loss, size = _loss(model, params, data, weights)
        optimizer = optax.chain(optax.scale_by_adam(), optax.scale(-rate))

        def visit(carry):
            v, state, count, best, trace = carry
            value, slope = jax.value_and_grad(loss)(v)
            updates, state = optimizer.update(slope, state, v)
            best = jnp.fmax(best, -value * size)
            return v + updates, state, count + 1, best, _noted(trace, count, best)

        def unfinished(carry):
            return (carry[2] < limit) & (carry[3] < target)

        start = begin, optimizer.init(begin), jnp.int32(0), -jnp.inf, jnp.full(trace_size, jnp.nan)
        v, _, count, best, trace = jax.lax.while_loop(unfinished, visit, start)
        return best, count, back(v), trace

    return _compiled(program, problem.model, problem.params, problem.data, problem.weights)


def _lbfgs(problem, trace_size=0):
    """optax.lbfgs as it comes; every trial step of its line search is an evaluation of value and gradient."""

    def program(model, params, data, weights, target, limit):
        begin, back, loss, size = _loss(model, params, data, weights)
        optimizer = optax.lbfgs()

        def visit(carry):
            v, state, count, value, slope, trace = carry
            updates, state = optimizer.update(slope, state, v, value=value, grad=slope, value_fn=loss)
            search = state[-1]
            count = count + jnp.maximum(search.info.num_linesearch_steps, 1)
            trace = _noted(trace, count - 1, -search.value * size)
            return v + updates, state, count, search.value, search.grad, trace

        def unfinished(carry):
            return (carry[2] < limit) & (-carry[3] * size < target)

        value, slope = jax.value_and_grad(loss)(begin)
        trace = _noted(jnp.full(trace_size, jnp.nan), 0, -value * size)
        start = begin, optimizer.init(begin), jnp.asarray(1), value, slope, trace
        v, _, count, value, _, trace = jax.lax.while_loop(unfinished, visit, start)
        return -value * size, count, back(v), trace

    return _compiled(program, problem.model, problem.params, problem.data, problem.weights)


# The race.


def race(arrays, options):
    """Every variant from the same start to 1e-6 of the highest objective known; seconds of each."""
    problem, limit = _read(arrays, options), options["limit"]
    runs: dict[str, Callable[[], Any]] = {}
    outcomes: dict[str, dict[str, Any]] = {}
    em, adam, lbfgs = _driver(problem, jaxem.EM()), _adam(problem), _lbfgs(problem)
    optimum = _optimum(problem, limit, em if options["quick"] else lbfgs, options["quick"])
    target = optimum - _TOLERANCE * min(abs(optimum), problem.size)

    def add(name, kind, program, *rest, bound=limit):
        first, (value, count, params, _) = _timed(program, target, bound, *rest)
        reached = bool(value >= target)
        outcomes[name] = {
            "kind": kind,
            "evaluations": int(count),
            "reached": reached,
            "log_likelihood": float(value) / problem.size,
            "first_seconds": first,
        }
        if not reached:
            outcomes[name]["steepest"] = _steepest(problem, params)
        runs[name] = lambda: program(target, bound, *rest)
        _say(options["problem"], name, outcomes[name])
        return int(count) if reached else None

    plain = add("EM", "em", em)
    bound = limit if plain is None else min(limit, max(_LEAST_LIMIT, _PATIENCE * plain))
    rate = _tuned(adam, target, bound, options["quick"])
    for name, (kind, model, algorithm) in _variants(problem, rate, options["few"]).items():
        if isinstance(algorithm, jaxem.StochasticEM):
            program = _passes(problem, algorithm)
            passes = add(name, kind, program, True, bound=bound)
            runs[name] = lambda program=program, passes=passes: program(jnp.inf, passes or bound, False)
        else:
            add(name, kind, _driver(problem, algorithm, model), bound=bound)
    add(f"optax.adam({rate:g})", "marginal", adam, rate, bound=bound)
    add("optax.lbfgs", "marginal", lbfgs, bound=bound)

    facts = {"optimum": optimum, "target": target, "size": problem.size, "outcomes": outcomes}
    if options["traces"]:
        facts["traces"] = _traces(problem, optimum, bound, rate)
    seconds: dict[str, list[float]] = {name: [] for name in runs}

    def run():
        for name, program in runs.items():
            if not seconds[name] or (max(seconds[name]) < _LONG_SECONDS and outcomes[name]["reached"]):
                seconds[name].append(_timed(program)[0])
        return {"seconds": {name: own[-1] for name, own in seconds.items()}}

    return facts, run


def _steepest(problem, params):
    """The largest derivative of the log-likelihood per example at these parameters."""

    def program(model, params, data, weights):
        start, _, loss, _ = _loss(model, params, data, weights)
        return jnp.max(jnp.abs(jax.grad(loss)(start)))

    return float(jax.jit(program)(problem.model, params, problem.data, problem.weights))


def _say(problem, name, outcome):
    print(f"    {problem}: {name} {outcome}", file=sys.stderr, flush=True)


def _optimum(problem, limit, other, quick):
    """The highest objective of another program and the accelerators, all run far longer than to the target."""
    values = [other(jnp.inf, min(limit, _LEAST_LIMIT))[0]]
    control = jaxem.Control(jaxem.ParameterChange(1e-10), limit)
    for model in () if quick else (problem.model, *problem.others.values()):
        for algorithm in (jaxem.Squarem(), jaxem.Anderson()):
            fit = jax.jit(functools.partial(jaxem.run, algorithm=algorithm, control=control))
            values.append(fit(model, problem.params, problem.data, problem.weights).objective)
    return max(float(value) for value in values if np.isfinite(value))


def _tuned(program, target, bound, quick):
    """The learning rate with which Adam is there first: each may take as long as the best so far."""
    best, rate, closest = bound, _RATES[0], -np.inf
    for tried in _RATES[:1] if quick else _RATES:
        value, count, _, _ = program(target, best, tried)
        if value >= target and int(count) <= best:
            best, rate, closest = int(count), tried, np.inf
        elif value > closest:
            rate, closest = tried, float(value)
    return rate


def _variants(problem, rate, few):
    """name → (kind, model, algorithm)."""
    model, key = problem.model, jax.random.key(0)
    found: dict[str, Any] = {
        "Squarem": ("accelerated", model, jaxem.Squarem()),
        "Squarem, scheme 3": ("accelerated", model, jaxem.Squarem(scheme=3)),
        "Anderson": ("accelerated", model, jaxem.Anderson()),
    }
    if few:
        return found
    for name, other in problem.others.items():
        found[f"EM, {name}"] = ("em", other, jaxem.EM())
        found[f"Squarem, {name}"] = ("accelerated", other, jaxem.Squarem())
        found[f"Anderson, {name}"] = ("accelerated", other, jaxem.Anderson())
    found["GradientM, Newton"] = ("variant", jaxem.GradientM(model), jaxem.EM())
    found["GradientM, 5 steps of L-BFGS"] = ("variant", jaxem.GradientM(model, optax.lbfgs(), steps=5), jaxem.EM())
    found["GradientM, 10 steps of Adam"] = ("variant", jaxem.GradientM(model, optax.adam(0.03), steps=10), jaxem.EM())
    found[f"GradientEM(adam({rate:g}))"] = ("variant", model, jaxem.GradientEM(optax.adam(rate)))
    if problem.blocks:
        found["ECM"] = ("variant", jaxem.ECM(model, problem.blocks), jaxem.EM())
        found["MulticycleECM"] = ("variant", model, jaxem.MulticycleECM(problem.blocks))
    if problem.batch is not None:
        for update in (jaxem.Online(), jaxem.Incremental(), jaxem.VarianceReduced()):
            algorithm = jaxem.StochasticEM(key, problem.batch, update)
            found[f"StochasticEM, {type(update).__name__}"] = ("variant", model, algorithm)
    if isinstance(model, jaxem.LatentModel):
        found["Annealing from 2 in 20"] = ("variant", model, jaxem.Annealing(jaxem.Cooling(2.0, 20)))
    return found


def _traces(problem, optimum, bound, rate):
    """The gap to the optimum per example after some of the evaluations, best so far, for the picture."""
    size = int(min(bound, 2000))
    algorithms = {"EM": jaxem.EM(), "Squarem": jaxem.Squarem(), "Anderson": jaxem.Anderson()}
    calls: dict[str, Any] = {name: (_driver(problem, a, trace_size=size), ()) for name, a in algorithms.items()}
    calls["Adam"] = _adam(problem, size), (rate,)
    calls["L-BFGS"] = _lbfgs(problem, size), ()
    places = np.unique(np.geomspace(1, size, _POINTS).astype(int)) - 1
    found = {}
    for name, (program, rest) in calls.items():
        trace = np.asarray(program(jnp.inf, size, *rest)[3])
        highest = np.fmax.accumulate(np.where(np.isnan(trace), -np.inf, trace))
        gaps = (optimum - highest[places]) / problem.size
        found[name] = [(int(p) + 1, float(g)) for p, g in zip(places, gaps, strict=True) if np.isfinite(g)]
    return found


# Counts of E-steps by the vignette's rule.


def counts(arrays, options):
    """Fits to ‖Δθ‖ ≤ tol by EM and its accelerators."""
    problem = _read(arrays, options)
    algorithms = {
        "EM": jaxem.EM(),
        "Squarem": jaxem.Squarem(),
        "Squarem, scheme 3": jaxem.Squarem(scheme=3),
        "Anderson": jaxem.Anderson(),
    }
    control = jaxem.Control(Change(options["tol"]), options["limit"])

    def program(algorithm):
        fit = jax.jit(lambda p, d, w: jaxem.run(problem.model, p, d, w, algorithm=algorithm, control=control))
        return lambda: fit(problem.params, problem.data, problem.weights)

    programs = {name: program(algorithm) for name, algorithm in algorithms.items()}
    facts = {}
    for name, fit in programs.items():
        result = fit()
        status = jaxem.Status(int(result.status))
        facts[name] = {"steps": int(result.steps), "log_likelihood": float(result.objective), "status": status.label}

    def run():
        return {"seconds": {name: _timed(fit)[0] for name, fit in programs.items()}}

    return {"fits": facts}, run


# Models from their log joint alone.


def _gaussians(params, x, z):
    cholesky = jnp.linalg.cholesky(params["covariance"][z])
    away = jax.scipy.linalg.solve_triangular(cholesky, x - params["mean"][z], lower=True)
    log_det = jnp.sum(jnp.log(jnp.diagonal(cholesky)))
    return jnp.log(params["weights"][z]) - 0.5 * away @ away - log_det - 0.5 * len(x) * jnp.log(2 * jnp.pi)


def _gmm_log_joint(params):
    start = {
        "weights": params.latent.weights,
        "mean": params.likelihood.mean,
        "covariance": params.likelihood.covariance,
    }
    constraints = {"weights": "simplex", "covariance": "positive definite"}
    space = jaxem.Discrete(len(start["weights"]))
    return jaxem.LogJoint(_gaussians, space, constraints=constraints), start


def _hmm_log_joint(params):
    """Of sequences of one feature."""
    start = {
        "initial": params.latent.initial,
        "transition": params.latent.transition,
        "mean": params.likelihood.mean[:, 0],
        "scale": jnp.sqrt(params.likelihood.covariance[:, 0, 0]),
    }
    log_joint = jaxem.ChainLogJoint(
        initial=lambda p, z: jnp.log(p["initial"][z]),
        transition=lambda p, z, after: jnp.log(p["transition"][z, after]),
        emission=lambda p, x, z: jax.scipy.stats.norm.logpdf(x[0], p["mean"][z], p["scale"][z]),
    )
    constraints = {"initial": "simplex", "transition": "simplex", "scale": "positive"}
    return jaxem.LogJoint(log_joint, jaxem.Chain(len(start["initial"])), constraints=constraints), start


def log_joint(arrays, options):
    """EM with closed forms, and on the log joint alone, to the same objective; and the parts of an EM step of both."""
    problem, limit = _read(arrays, options), options["limit"]
    written, start = {"gmm": _gmm_log_joint, "hmm": _hmm_log_joint}[options["problem"]](problem.params)
    x = jnp.asarray(arrays["x"], jnp.float64)
    own = _problem(written, x, None, start)
    sides = {"closed": (problem, jaxem.EM()), "log joint": (own, jaxem.EM())}
    if not options["quick"]:
        sides["log joint, Anderson"] = own, jaxem.Anderson()
    programs = {name: _driver(side, algorithm) for name, (side, algorithm) in sides.items()}
    optimum = _optimum(problem, limit, programs["closed"], options["quick"])
    target, facts = optimum - _TOLERANCE * min(abs(optimum), problem.size), {}
    for name, program in programs.items():
        first, (value, count, _, _) = _timed(program, target, limit)
        facts[name] = {
            "evaluations": int(count),
            "reached": bool(value >= target),
            "log_likelihood": float(value) / problem.size,
            "first_seconds": first,
        }
        _say(f"{options['problem']} as log joint", name, facts[name])
    parts = {"closed": _parts(problem), "log joint": _parts(own)}

    def run():
        seconds = {name: _timed(program, target, limit)[0] for name, program in programs.items()}
        each = {side: {part: _each(call) for part, call in calls.items()} for side, calls in parts.items()}
        return {"seconds": seconds, "parts": each}

    return {"optimum": optimum, "size": problem.size, "sides": facts}, run


def _each(call):
    """Seconds for one of twenty calls."""
    return _timed(lambda: [call() for _ in range(20)])[0] / 20


def _parts(problem):
    """One E-step, one gradient of q and one M-step, compiled, each by itself."""
    model, params = problem.model, problem.params
    start, back = coordinates(model, params)
    e_step = _compiled(lambda m, d, w, p: m.e_step(p, d, w), model, problem.data, problem.weights, params)
    stats = e_step().stats
    calls = {
        "E-step": e_step,
        "gradient of q": _compiled(jax.grad(lambda v, m, s: m.q(back(v), s)), start, model, stats),
        "M-step": _compiled(lambda m, p, s: m.m_step(p, s), model, params, stats),
    }
    for call in calls.values():
        jax.block_until_ready(call())
    return calls
