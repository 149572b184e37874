"""Deliberate faults, one at a time, and for each the test or the law that must see it (run by test_the_tests.py).

A fault is a realistic mistake in one function of the library: a wrong sign, a dropped factor, an off-by-one, a forgotten
weight. `edit` makes it by changing a line of the function's own source; where the fault is in what the function returns or
is given, it is a function around the original.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from default_tier import Case, FamilyLaw, Law, case

import jaxem
from jaxem.model import EStep, pytree, static
from jaxem.stopping import Stopping
from jaxem.testing import LAWS


@dataclasses.dataclass(frozen=True)
class Fault:
    """place: what is broken. what: how. target: the function, ``"jaxem.module:Class.method"``. check: what must see it."""

    place: str
    what: str
    target: str
    change: Callable[[Any], Any]
    check: Law | FamilyLaw | Case

    @property
    def owner(self) -> tuple[Any, str]:
        """Where the function is looked up, and under which name."""
        module, _, path = self.target.partition(":")
        *parents, name = path.split(".")
        return functools.reduce(getattr, parents, importlib.import_module(module)), name


def edit(old: str, new: str) -> Callable[[Any], Any]:
    """The function with one piece of its source replaced; AssertionError where the piece is not there exactly once."""

    def change(original: Any) -> Any:
        function = inspect.unwrap(original)
        source = textwrap.dedent(inspect.getsource(function))
        found = source.count(old)
        assert found == 1, f"{function.__qualname__} has {found} times {old!r}: this fault needs another place"
        # Lines keep their numbers, so that errors show where they are raised.
        padded = "\n" * (function.__code__.co_firstlineno - 1) + source.replace(old, new)
        code = compile(padded, inspect.getsourcefile(function), "exec", annotations.compiler_flag, True)
        names: dict[str, Any] = {}
        exec(code, function.__globals__, names)
        return names[function.__name__]

    return change


def result(of: Callable[..., Any]) -> Callable[[Any], Any]:
    """The function with its result changed: ``of(result, *arguments)``."""
    return lambda original: lambda *args, **options: of(original(*args, **options), *args)


def without_weights(original: Any) -> Any:
    return lambda self, params, data, weights=None: original(self, params, data)


def moved_rates(factor: float) -> Callable[[Any], Any]:
    """An M-step whose rates go ``factor`` times as far as they should."""

    def change(new: Any, self: Any, params: Any, stats: Any, frozen: Any = None) -> Any:
        if params is None:
            return new
        old = params.likelihood.rate
        rate = jnp.maximum(old + factor * (new.likelihood.rate - old), 1e-3)
        return jaxem.LatentParams(new.latent, jaxem.PoissonParams(rate))

    return result(change)


def log_likelihood(of: Callable[..., Any]) -> Callable[[Any], Any]:
    """An E-step whose log-likelihood is ``of(it, data)``."""
    return result(lambda step, self, params, data, *_: EStep(step.stats, of(step.log_likelihood, data), step.weight))


def eager_in_single(value: Any, data: Any) -> Any:
    return value if isinstance(value, jax.core.Tracer) else jnp.asarray(np.float32(value), value.dtype)


def ten_bits(original: Any) -> Any:
    """A product of numbers of 8 + 10 bits in float32 (TF32), of all their bits in float64."""

    def round(a: Any) -> Any:
        return jax.lax.reduce_precision(a, 8, 10) if a.dtype == jnp.float32 else a

    return lambda statistics, natural: original(round(statistics), round(natural))


@pytree
class StaticGain(Stopping):
    """A rule whose tolerance is part of the program."""

    tol: float = static(default=1e-6)

    def check(self, memory: Any, progress: Any) -> Any:
        return memory, jnp.abs(progress.gain) <= self.tol * progress.weight


CATEGORICAL, LATENT = "jaxem.latents.categorical", "jaxem.models.latent_model:LatentModel"
POISSON, COLUMNS = "jaxem.families.poisson:Poisson", "jaxem.families.columns:Columns"
LANE, STOPPING, BLOCKS = "jaxem.lane", "jaxem.stopping", "jaxem.blocks"
MIXTURE = "mixture, poisson"
RULES = "test_stopping:test_"
STOPS = "test_driver:TestStopping.test_"
ROW = "test_reliability:TestRow"
ENUMERATED = case("test_enumeration:test_e_step_is_the_sum_over_all_assignments", name="poisson", k=2, weights=None)
PATHS = case("test_messages:TestAgainstAllPaths.test_messages", k=2, blocks=1)
HIDDEN = case(f"{ROW}02Masked.test_pure_code_looks_at_what_is_seen_only", dtype="float32")
DRAWN = case("test_oracles:TestSampling.test_gaussian", name="spherical")
LOST = case("test_blocks:test_what_an_addition_loses_is_kept", order="large between")
ONCE = case("test_blocks:test_every_row_counts_once_whatever_the_size_of_a_block", size=4)
BEST_SO_FAR = case(f"{ROW}10TheObjectiveFalls.test_best_so_far_is_kept", dtype="float32")
NOT_FINITE = case(f"{ROW}01NotFinite.test_pure_code_gives_a_status_and_keeps_the_start", dtype="float32", value=np.inf)
SLOTS = case("test_driver:TestLanes.test_any_number_of_slots", slots=7)
RANK = case("test_driver:TestRank.test_nan_failed_and_degenerate_lanes")
SHARDED = case("test_sharded:test_gradients_are_those_of_the_model")

# fmt: off
FAULTS = [
    Fault("E-step", "the mixing weights are left out", f"{CATEGORICAL}:Categorical.infer",
          edit("log_or_infinity(params.weights)[None]", "jnp.zeros((1, self.num_components))"), Law("fisher", MIXTURE)),
    Fault("E-step", "responsibilities do not sum to one", f"{CATEGORICAL}:posterior_and_evidence",
          edit("1 / jnp.where(total == 0, 1, total)", "1.0"), Law("fisher", MIXTURE)),
    Fault("E-step", "the peak is not added back to the logarithm", f"{CATEGORICAL}:posterior_and_evidence",
          edit("jnp.squeeze(peak + log_total, axis)", "jnp.squeeze(log_total, axis)"), Law("bound", MIXTURE)),
    Fault("E-step", "the log-likelihood has a factor", f"{LATENT}.e_step",
          log_likelihood(lambda value, data: 1.01 * value), Law("fisher", MIXTURE)),
    Fault("E-step", "means in place of sums", f"{LATENT}.e_step",
          result(lambda step, *_: jax.tree.map(lambda a: a / step.weight, step)), Law("additivity", MIXTURE)),
    Fault("E-step", "the first row counts twice", f"{LATENT}.e_step",
          log_likelihood(lambda value, data: value + jax.tree.leaves(data)[0][0].sum()), Law("order", MIXTURE)),
    Fault("E-step", "eager numbers are rounded, compiled ones are not", f"{LATENT}.e_step",
          log_likelihood(eager_in_single), Law("jit", MIXTURE)),
    Fault("E-step", "products of ten bits, as a GPU's by default", "jaxem.families.base:linear", ten_bits,
          Law("precision", MIXTURE)),
    Fault("E-step", "a constant of the density is forgotten", "jaxem.families.poisson:log_poisson",
          edit("gammaln(modest + 1)", "gammaln(modest)"), ENUMERATED),
    Fault("E-step", "a chain goes backwards", "jaxem.messages.forward_backward:_onward",
          edit("rows.transition.T", "rows.transition"), PATHS),
    Fault("E-step", "the sign of the entropy", f"{LATENT}.elbo", edit("weights) + entropy", "weights) - entropy"),
          Law("bound", MIXTURE)),
    Fault("M-step", "one row too many", f"{POISSON}.estimate", edit("terms[0], count,", "terms[0], count + 1,"),
          Law("stationary", MIXTURE)),
    Fault("M-step", "a little too far", f"{LATENT}.m_step", moved_rates(1.001), Law("stationary", MIXTURE)),
    Fault("M-step", "much too far", f"{LATENT}.m_step", moved_rates(2.5), Law("monotone", MIXTURE)),
    Fault("M-step", "mixing weights are smoothed", f"{CATEGORICAL}:Categorical.maximize",
          edit("weights = stats /", "weights = (stats + 1 - 1e-3 * total) /"), Law("stationary", MIXTURE)),
    Fault("M-step", "the spread around the old mean", "jaxem.families.gaussian:Gaussian.maximize",
          edit("+ columns(average - mean)", "+ columns(average - (mean if old_mean is None else old_mean))"),
          Law("stationary", "mixture, gaussian diagonal")),
    Fault("M-step", "an empty member moves", f"{COLUMNS}.maximize", edit("keep(used, leaf, old)", "leaf"),
          FamilyLaw("law family empty member", "poisson")),
    Fault("M-step", "a frozen leaf moves", f"{COLUMNS}.maximize",
          edit("hold(frozen.get(path[-1].name), keep(used, leaf, old), old)", "keep(used, leaf, old)"),
          FamilyLaw("law family frozen", "poisson")),
    Fault("M-step", "a variance of zero", "jaxem.families.covariance:Diagonal.estimate",
          edit("jnp.maximum(scatter, floor)", "scatter"), FamilyLaw("law family constant", "gaussian diagonal")),
    Fault("M-step", "a floor that knows no unit", "jaxem.families.exponential:Exponential.calibrate",
          edit("mean_of(data, weights)", "None"), FamilyLaw("law family scale", "exponential")),
    Fault("E-step", "what cannot be is likely", f"{COLUMNS}.statistics",
          edit("jnp.where(supported, base, outside)", "base"), FamilyLaw("law family outside", "poisson")),
    Fault("q", "without the counts", f"{COLUMNS}.q", edit("jnp.sum(products)", "jnp.sum(products[..., 1:])"),
          FamilyLaw("law family products", "poisson")),
    Fault("q", "without the latent variable", f"{LATENT}.q",
          edit("self.latent.q(params.latent, stats.latent) + ", ""), Law("fisher", MIXTURE)),
    Fault("q", "shares in place of counts", f"{CATEGORICAL}:expected_log",
          edit("counts * jnp.log", "counts / jnp.sum(counts) * jnp.log"), Law("fisher", MIXTURE)),
    Fault("weights", "none in the E-step", f"{LATENT}.e_step", without_weights, Law("weights", MIXTURE)),
    Fault("weights", "none in the log-likelihood", f"{LATENT}._e_step",
          edit("jnp.where(weights == 0, 0, weights * terms)", "jnp.where(weights == 0, 0, terms)"),
          Law("weights", MIXTURE)),
    Fault("weights", "twice in the statistics", f"{CATEGORICAL}:posterior_and_evidence",
          edit("jnp.expand_dims(weights, axis)", "jnp.expand_dims(weights**2, axis)"), Law("weights", MIXTURE)),
    Fault("weights", "rows are counted, not their weights", f"{LATENT}.num_observations",
          edit("math.prod(axes) if weights is None else", "math.prod(axes) if True else"), Law("weights", MIXTURE)),
    Fault("masks", "cells that are not seen count", f"{COLUMNS}.statistics",
          edit("count = mask.astype(x.dtype)", "count = jnp.ones_like(x)"),
          case("test_families_discrete:TestRow02Missing.test_log_p_is_the_marginal_of_what_is_observed",
               name="poisson")),
    Fault("masks", "cells that are seen do not count", f"{COLUMNS}.statistics",
          edit("mask = data.mask", "mask = ~data.mask"),
          case("test_families_discrete:TestMStep.test_weighted_means", name="poisson", masked=True)),
    Fault("masks", "one step beyond the end of a sequence", "jaxem.latents.axes:within", edit(") < data", ") <= data"),
          case("test_hmm:TestAgainstAllPaths.test_e_step", kind="plain", weights="plain", layout="padded")),
    Fault("masks", "what a missing cell holds counts", f"{COLUMNS}.statistics",
          edit("tuple(jnp.where(mask if term.ndim == 2 else mask[..., None], term, 0) for term in terms)", "terms"),
          FamilyLaw("law family masked", "poisson")),
    Fault("poison", "what is hidden is replaced by arithmetic", "jaxem.layout:hidden",
          edit("xp.where(cells, data.x, xp.asarray(filler, data.x.dtype))", "data.x + (filler - data.x) * ~cells"),
          HIDDEN),
    Fault("poison", "what is hidden is left as it is", "jaxem.layout:hidden",
          edit("xp.where(cells, data.x, xp.asarray(filler, data.x.dtype))", "data.x"),
          Law("masked", "hidden Markov model, left to right, missing steps")),
    Fault("poison", "what is hidden makes the input not finite", f"{LANE}:input_status",
          edit("layout.hidden(data, 0.0) if isinstance(data, Data) else data", "data"),
          HIDDEN),
    Fault("compensation", "what was lost is forgotten", f"{BLOCKS}:two_sum", edit("error + lost", "error"), LOST),
    Fault("compensation", "smaller for larger", f"{BLOCKS}:two_sum", edit(">= jnp.abs(term)", "< jnp.abs(term)"), LOST),
    Fault("compensation", "the error is not added at the end", f"{BLOCKS}:_compensated_sum",
          edit("jax.tree.map(jnp.add, total, error)", "total"), LOST),
    Fault("compensation", "the last terms are forgotten", f"{BLOCKS}:long_sum",
          edit(" + jnp.sum(terms[whole:], axis=0)", ""),
          case("test_blocks:test_a_long_sum_is_the_sum_of_all_its_terms", n=1025)),
    Fault("sampler", "draws have a factor", f"{POISSON}.sample", result(lambda x, *_: 1.2 * x), Law("sample", MIXTURE)),
    Fault("sampler", "probabilities are taken for logarithms", f"{CATEGORICAL}:Categorical.sample",
          edit("jnp.log(params.weights)", "params.weights"), DRAWN),
    Fault("sampler", "one key for z and x", f"{LATENT}.sample",
          edit("latent_key, likelihood_key = jax.random.split(key)", "latent_key = likelihood_key = key"),
          Law("sample", "mixture, exponential")),
    Fault("free coordinates", "they lose something", f"{LATENT}.from_free",
          result(lambda params, *_: jax.tree.map(lambda a: a * 1.0001, params)), Law("coordinates", MIXTURE)),
    Fault("free coordinates", "another inverse", f"{POISSON}.from_free", edit("jnp.exp", "jax.nn.softplus"),
          Law("coordinates", MIXTURE)),
    Fault("free coordinates", "the reference is another component", f"{CATEGORICAL}:Categorical.from_free",
          edit("[free.weights, last]", "[last, free.weights]"), Law("coordinates", MIXTURE)),
    Fault("free coordinates", "K shares are counted as free", f"{LATENT}.num_free_parameters",
          edit("jax.eval_shape(self.latent.to_free, params.latent)", "params.latent"), Law("coordinates", MIXTURE)),
    Fault("stopping rule", "tol is not per example", f"{STOPPING}:RelativeGain.check",
          edit("self.tol * progress.weight", "self.tol"), case(f"{STOPS}relative_and_absolute_gain")),
    Fault("stopping rule", "the gain stands for what is left", f"{STOPPING}:Aitken.check",
          edit("left = gain * ratio / jnp.where(ratio < 1, 1 - ratio, 1)", "left = gain"),
          case(f"{STOPS}aitken_sees_what_is_left")),
    Fault("stopping rule", "one leaf at rest is enough", f"{STOPPING}:ParameterChange.check",
          edit("jnp.all(jnp.stack", "jnp.any(jnp.stack"),
          case(f"{RULES}every_leaf_has_to_rest")),
    Fault("stopping rule", "a fall is small", f"{STOPPING}:AbsoluteGain.check",
          edit("jnp.abs(progress.gain)", "progress.gain"),
          case(f"{RULES}a_fall_is_no_small_gain", rule="AbsoluteGain")),
    Fault("stopping rule", "one step more than max_steps", f"{LANE}:judge",
          edit("lane.step >= control.max_steps", "lane.step > control.max_steps"),
          case("test_driver:TestRun.test_steps_count_parameter_updates")),
    Fault("stopping rule", "one step more than min_steps", f"{LANE}:judge",
          edit("lane.step >= control.min_steps", "lane.step > control.min_steps"),
          case(f"{ROW}12FlatStart.test_a_minimum_of_steps_is_made")),
    Fault("stopping rule", "a new tol is a new program", f"{LAWS['retrace'].__module__}:RelativeGain",
          lambda original: StaticGain, Law("retrace", MIXTURE)),
    Fault("status", "a fall is not seen", f"{LANE}:judge", edit("fell = monotone &", "fell = False &"), BEST_SO_FAR),
    Fault("status", "rounding is called a fall", f"{LANE}:judge", edit("eps**_FALL_DIGITS", "eps"),
          case(f"{ROW}10TheObjectiveFalls.test_rounding_is_not_a_fall")),
    Fault("status", "the last parameters, not the best", f"{LANE}:judge",
          edit("best=where(better, params, lane.best)", "best=params"), BEST_SO_FAR),
    Fault("status", "infinite input is not seen", f"{LANE}:input_status", edit("jnp.isfinite", "~jnp.isnan"), NOT_FINITE),
    Fault("status", "rows of weight 0 are rows", f"{LANE}:input_status", edit("weights > 0", "weights >= 0"),
          case(f"{ROW}03TooFewRows.test_pure_code_gives_a_status", dtype="float32")),
    Fault("best of starts", "NaN is the best", "jaxem.driver:rankable",
          edit("& jnp.isfinite(objective)", ""), RANK),
    Fault("best of starts", "a collapsed start is the best", "jaxem.driver:rankable",
          edit("usable & (status != Status.DEGENERATE)", "usable"), RANK),
    Fault("best of starts", "the worst is kept", "jaxem.driver:rankable", result(lambda rank, *_: -rank),
          RANK),
    Fault("best of starts", "the losers of a race go on", "jaxem.driver:race", edit("top_k(rank,", "top_k(-rank,"),
          case("test_driver:TestRace.test_the_best_go_on_as_if_nothing_had_happened")),
    Fault("lanes", "one that has stopped goes on", "jaxem.slots:fly",
          edit("jnp.where(active, new, old)", "new"), SLOTS),
    Fault("lanes", "one taken in has the data of the one before", "jaxem.slots:fly",
          edit("waiting=waiting), gather(lane_of)", "waiting=waiting), carry[1]"),
          case("test_driver:TestLanes.test_many_data_sets_with_their_own_models_and_weights")),
    Fault("lanes", "each takes the data of another", "jaxem.slots:problem_of",
          edit("rows = index.data[lanes]", "rows = lanes"), Law("lanes", MIXTURE)),
    Fault("chunks", "repeated rows count twice", f"{BLOCKS}:_sum_over_blocks",
          edit("fresh = start + jnp.arange(size) >= begin", "fresh = start + jnp.arange(size) >= 0"), ONCE),
    Fault("chunks", "the last block is forgotten", f"{BLOCKS}:_sum_over_blocks",
          edit("jnp.arange(-(-n // size)", "jnp.arange(n // size"), ONCE),
    Fault("chunks", "a block has the weights of the first", f"{BLOCKS}:sum_over_blocks",
          lambda original: lambda term, data, weights, size, dtype: original(
              lambda block, own: term(block, None if weights is None else weights[: own.shape[0]]),
              data, weights, size, dtype),
          Law("weights", "log joint, closed form, chunked")),
    Fault("shards", "psum is forgotten", "jaxem.wrappers.sharded:Summed.e_step",
          edit("jax.lax.psum(self.model.e_step(params, data, weights), self.axis)",
               "self.model.e_step(params, data, weights)"), SHARDED),
    Fault("shards", "rows that fill up count", "jaxem.mesh:pad_rows",
          edit("jnp.zeros(extra, dtype)", "jnp.ones(extra, dtype)"), SHARDED),
]
# fmt: on
