"""The contract: what a model, a latent variable, a family and an algorithm are.

A latent-variable model is ``p(x, z | θ) = p(x | z, θ) p(z | θ)``. For any distribution ``q(z)``

    log p(x | θ) = ELBO(q, θ) + KL(q ‖ p(z | x, θ)),    ELBO(q, θ) = E_q[log p(x, z | θ)] + H[q].

The E-step maximizes the bound over ``q`` (the KL term becomes 0), the M-step maximizes it over ``θ``, or only
raises it. That is coordinate ascent, so the log-likelihood never falls. This file is that paragraph as signatures:

* a `Model` holds what is *given*; ``params``, a pytree passed as an argument, holds what is *learnt*;
* `Model.e_step` returns an `EStep`, **every leaf of which is a sum over examples**. Chunks, shards, weights, online
  averages and conjugate priors all follow from that one law, and none of them knows the others;
* `Latent` is ``p(z | θ)`` with exact inference, `Family` is ``p(x | z, θ)``; `jaxem.models.LatentModel` joins any pair;
* an `Algorithm` says how the iterates move; the driver says when to stop.

Classes here are interfaces: a concrete class implements the methods and is final; variation is by wrapping.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import Bool, Float, Int

    from jaxem.passes import Place

T = TypeVar("T")

PyTree = Any
#: Names of frozen parameter leaves, each with True or a boolean mask over components.
FrozenLeaves = Mapping[str, Any]


def static(default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field that is part of the program (hashable, compared on a jit call), not of its data."""
    return dataclasses.field(default=default, metadata={"static": True})


@dataclass_transform(frozen_default=True, eq_default=False, field_specifiers=(dataclasses.field, static))
def pytree(cls: type[T]) -> type[T]:
    """Turn a class into a frozen dataclass that JAX knows as a pytree; fields made by `static` are metadata."""
    cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    meta = tuple(f.name for f in fields if f.metadata.get("static", False))
    data = tuple(f.name for f in fields if f.name not in meta)

    # The class is part of the metadata: jax.tree_util.register_dataclass takes two classes with the same fields for the
    # same structure (`Diagonal()` for `Spherical()`), and a compiled program of the one could then serve the other.
    def flatten(value: Any) -> tuple[tuple[Any, ...], Any]:
        return tuple(getattr(value, name) for name in data), (cls, tuple(getattr(value, name) for name in meta))

    def flatten_with_keys(value: Any) -> tuple[tuple[Any, ...], Any]:
        children, aux = flatten(value)
        return tuple((jax.tree_util.GetAttrKey(n), c) for n, c in zip(data, children, strict=True)), aux

    def unflatten(aux: Any, children: Any) -> Any:
        # Not the constructor: JAX also builds pytrees of placeholders, which a check of arguments would refuse.
        value = object.__new__(cls)
        for name, child in (*zip(data, children, strict=True), *zip(meta, aux[1], strict=True)):
            object.__setattr__(value, name, child)
        return value

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


class UnsupportedError(TypeError):
    """A model was asked for something it does not define; the message names the method and who needs it."""


def unsupported(owner: object, method: str, needed_by: str) -> UnsupportedError:
    name = type(owner).__name__
    return UnsupportedError(f"{name} does not define {method}, which {needed_by} needs; add {method} to {name}")


@pytree
class Data:
    """Examples and what is known about them; every field that is not None has the examples as its leading axis.

    x: observations, [N, D]; sequences are padded, [B, T, D] with ``lengths``, or flat, [N, D] with ``starts`` (one after
    another; without starts one sequence). mask: True where a cell of x is observed, shaped like x, or like x without its
    last axis for observations that are missing whole. inputs: covariates, [N, C] or [B, T, C]. lengths: of the
    sequences, [B], 0 allowed. starts: True where a sequence begins, [N]. labels: known components, [N] or [B, T], −1
    where unknown.
    What is masked or lies beyond a length is never read. A model that does not read a field refuses it by name: nothing
    given is ever ignored.
    """

    x: Any = None
    mask: Any = None
    inputs: Any = None
    lengths: Any = None
    starts: Any = None
    labels: Any = None

    def given(self) -> frozenset[str]:
        """The names of the fields that hold something."""
        return frozenset(f.name for f in dataclasses.fields(self) if getattr(self, f.name) is not None)


@pytree
class Prepared:
    """Data after `Model.prepare`: the sufficient statistics of each row, and whatever else the model still reads."""

    statistics: PyTree
    rest: Data = Data()


def leaf_name(path: Any) -> str:
    """The name of a parameter leaf: its field, after the dict entries it lies in (``"age.mean"``)."""
    entries = [str(part.key) for part in path if isinstance(part, jax.tree_util.DictKey)]
    last = path[-1]
    return ".".join(
        entries if isinstance(last, jax.tree_util.DictKey) else [*entries, str(getattr(last, "name", last))]
    )


def as_data(data: Any) -> Any:
    """Arrays become ``Data(x)``; `Data` and `Prepared` pass through."""
    return data if isinstance(data, (Data, Prepared)) else Data(x=data)


def num_examples(data: PyTree) -> int:
    """The length of the leading axis, which every leaf of the data shares."""
    sizes: set[int] = {leaf.shape[0] if leaf.ndim else -1 for leaf in jax.tree.leaves(data)}
    if len(sizes) != 1 or -1 in sizes:
        shapes = [leaf.shape for leaf in jax.tree.leaves(data)]
        raise ValueError(f"every leaf of the data needs the examples as its leading axis; got shapes {shapes}")
    return next(iter(sizes))


def float_type(data: PyTree) -> Any:
    """The floating-point type of the data: that of its floating-point leaves, or JAX's default."""
    floats = [leaf.dtype for leaf in jax.tree.leaves(data) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.result_type(*floats) if floats else jnp.result_type(float)


@pytree
class EStep:
    """What one pass over the data leaves behind. Every leaf is a sum over examples, so two of them add.

    stats: expected sufficient statistics, E[T(x, z) | x, θ] summed with the examples' weights.
    log_likelihood: Σ_n w_n log p(x_n | θ). weight: Σ_n w_n, of sequences times their steps.
    """

    stats: PyTree
    log_likelihood: Float[Array, ""]
    weight: Float[Array, ""]

    def __add__(self, other: EStep) -> EStep:
        return jax.tree.map(jnp.add, self, other)


@pytree
class Diagnosis:
    """Per component: has its spread collapsed onto the floor (degenerate), does it hold no example (empty)?"""

    degenerate: Bool[Array, " K"]
    empty: Bool[Array, " K"]


@pytree
class Imputation:
    """E[x | what is observed] and its covariance; observed cells keep their value and have covariance 0.

    mean: shaped like x. covariance: [N, D, D] (of sequences [B, T, D, D]).
    """

    mean: Float[Array, "*N D"]
    covariance: Float[Array, "*N D D"]


def healthy(num_components: int = 0) -> Diagnosis:
    """A diagnosis with nothing to report."""
    return Diagnosis(jnp.zeros(num_components, bool), jnp.zeros(num_components, bool))


class Model:
    """A latent-variable model: a frozen pytree of what is given. `e_step` and `m_step` are all that EM needs.

    The other methods are optional; each says by name who needs it when it is missing.
    """

    #: Parameter leaves the M-step can hold fixed (see `jaxem.Frozen`), and those it can hold for some components only.
    freezable: frozenset[str] = frozenset()
    freezable_by_component: frozenset[str] = frozenset()

    #: The fields of `Data` it reads, and whether an example is a whole sequence: what a mixture of models asks.
    reads: frozenset[str] = frozenset({"x"})
    sequential: bool = False
    #: Parameter leaves that members of a mixture of this model can share (see `shared_m_step`).
    shareable: frozenset[str] = frozenset()

    #: True where whole numbers in the data stay whole: a user's function may take them as indices.
    keeps_types: bool = False

    #: False where a leaf of the E-step is not a sum over examples; wrappers that add E-steps refuse such a model.
    additive: bool = True

    #: True where the M-step raises q without maximizing it (generalized EM).
    generalized: bool = False

    #: What the objective, without the prior, is called where a fit is described.
    objective_name: str = "log-likelihood"

    #: False where the E-step draws, and so only estimates the objective or its statistics: the objective may then fall.
    monotone: bool = True

    #: False where the M-step holds only for statistics taken at the parameters before it, as that of a larger model
    #: (PX-EM): statistics of different parameters, which stochastic EM averages, are then nothing to it.
    averageable: bool = True

    @property
    def min_examples(self) -> int:
        """Fewer examples of positive weight than this cannot be fitted."""
        return 1

    @property
    def num_components(self) -> int:
        """Length of the component axis of `posterior`; 0 where the latent variable is not discrete."""
        return 0

    def e_step(self, params: PyTree, data: PyTree, weights: Float[Array, " N"] | None = None) -> EStep:
        """Expected sufficient statistics and log-likelihood at ``params``: every leaf a sum over examples."""
        raise unsupported(self, "e_step", "EM")

    def m_step(self, params: PyTree, stats: PyTree, frozen: FrozenLeaves | None = None) -> PyTree:
        """Parameters that maximize, or at least raise, ``q(·, stats)``. ``params`` are the ones before the step.

        ``frozen`` is only ever passed to a model that lists names in `freezable`.
        """
        raise unsupported(self, "m_step", "EM")

    def redraw(self, key: Array) -> Model:
        """The model with other random numbers in place of those that its E-step holds, if it holds any."""
        return self

    def tempered(self, temperature: Float[Array, ""] | float) -> Model:
        """The model with its posterior at a temperature, ``q(z) ∝ p(x, z)^(1/T)``, and the free energy of that."""
        raise unsupported(self, "tempered", "Annealing")

    def shared_m_step(
        self, params: PyTree, stats: PyTree, shared: tuple[str, ...], frozen: FrozenLeaves | None = None
    ) -> PyTree:
        """`m_step` of K members at once, along a leading axis, with the leaves named in ``shared`` equal in all of them."""
        raise unsupported(self, "shared_m_step", "a mixture of models that share parameters")

    def calibrate(self, data: PyTree, weights: Float[Array, " N"] | None = None) -> Model:
        """The model with its numerical constants (centre, scale) taken from the data; they are leaves of it.

        They keep float32 accurate and the covariance floor relative; they are not learnt and carry no opinion.
        """
        return self

    def specialize(self, data: PyTree | None) -> Model:
        """The model with what concrete data say about the shape of its program (the number of missing patterns, say).

        Asked on the host, before tracing; a model it was not asked of gives the same numbers more slowly. It holds for
        these data alone: with None the model forgets what it was told.
        """
        return self

    def prepare(self, data: PyTree) -> PyTree:
        """What can be computed once, row by row, before the loop: the sufficient statistics of each row, say."""
        return data

    def compress(self, data: PyTree, weights: Float[Array, " N"] | None = None) -> tuple[PyTree, PyTree]:
        """Prepared data and weights with the same E-step, in fewer rows where the model knows how (its moments, say).

        What the loop iterates over; N is forgotten where the statistics of the whole data set are enough.
        """
        return self.prepare(data), weights

    def num_observations(self, data: PyTree, weights: Float[Array, " N"] | None = None) -> Float[Array, ""]:
        """The weighted number of observations, `EStep.weight`: rows, or of sequences their steps."""
        n = num_examples(data)
        return jnp.asarray(n, float_type(data)) if weights is None else jnp.sum(weights)

    def check_divisible(self, data: PyTree) -> None:
        """Raise UnsupportedError where the E-step of these data is not the sum of those of any parts of them."""
        if not self.additive:
            raise UnsupportedError(f"the E-step of {type(self).__name__} is not a sum over examples: it cannot be cut")

    def validate(self, data: PyTree) -> None:
        """Raise ValueError, naming the row and column, where concrete data lie outside the model's domain."""

    #: True when components may start, and then stay, at weight 0, so that one program serves several numbers of them.
    sweepable: bool = False

    def with_components(self, num_components: int) -> Model:
        """The same model with another number of components."""
        raise unsupported(self, "with_components", "a sweep over the number of components")

    def init(
        self,
        key: Array,
        data: PyTree,
        weights: Float[Array, " N"] | None = None,
        strategy: Any = None,
        used: Bool[Array, " K"] | None = None,
    ) -> PyTree:
        """Starting parameters, different for every key. ``used``: components that start with weight, if sweepable."""
        raise unsupported(self, "init", "a fit without given starting parameters")

    def q(self, params: PyTree, stats: PyTree) -> Float[Array, ""]:
        """E[log p(x, z | params)] as a function of the expected statistics: the M-step's objective."""
        raise unsupported(self, "q", "the check of the M-step, a prior and a gradient M-step")

    def explicit(self) -> Model:
        """The same model with statistics that `q` is a function of: itself, unless its own hold less than that."""
        return self

    def pseudo_statistics(self, data: PyTree, weights: Float[Array, " N"] | None = None) -> PyTree:
        """Statistics of one imagined example per component, like the data as a whole: a conjugate prior's unit."""
        raise unsupported(self, "pseudo_statistics", "WithPrior")

    def log_prior(self, params: PyTree) -> Float[Array, ""] | float:
        """log p(params) up to a constant; the objective is log-likelihood + log-prior."""
        return 0.0

    def to_free(self, params: PyTree) -> PyTree:
        """Unconstrained coordinates of the parameters."""
        raise unsupported(self, "to_free", "counting free parameters, gradients and standard errors")

    def from_free(self, free: PyTree) -> PyTree:
        """The inverse of `to_free`."""
        raise unsupported(self, "from_free", "gradients and standard errors")

    def held(self, params: PyTree) -> PyTree:
        """Which entries of the parameters the M-step holds fixed: booleans shaped like them, on the host."""
        return nothing_held(params)

    def elbo(self, params: PyTree, data: PyTree, q: PyTree, weights: Float[Array, " N"] | None = None) -> Array:
        """Σ_n w_n (E_q[log p(x_n, z | params)] + H[q_n]) for any q (see `jaxem.elbo`)."""
        raise unsupported(self, "elbo", "the bound of a given q")

    def log_likelihood(self, params: PyTree, data: PyTree) -> Float[Array, " N"]:
        """log p(x_n | params) of every example."""
        raise unsupported(self, "log_likelihood", "scoring")

    def posterior(self, params: PyTree, data: PyTree) -> Float[Array, "N K"]:
        """p(z_n | x_n, params) of every example."""
        raise unsupported(self, "posterior", "prediction")

    def predict(self, params: PyTree, data: PyTree) -> PyTree:
        """The most probable latent value of every example."""
        raise unsupported(self, "predict", "prediction")

    def sample(
        self, key: Array, params: PyTree, num_examples: int, num_steps: int | None = None, inputs: Any = None
    ) -> tuple[PyTree, PyTree]:
        """Draws (x, z) from the model: ``num_examples`` of them, of sequences each ``num_steps`` long.

        inputs: covariates of the draws, where the model reads them.
        """
        raise unsupported(self, "sample", "sampling")

    def impute(self, params: PyTree, data: PyTree) -> Imputation:
        """Conditional means and covariances of what is missing, given what is observed."""
        raise unsupported(self, "impute", "imputation")

    def take_components(self, params: PyTree, components: Any) -> PyTree:
        """The parameters of some components, in the order given: what sorting and dropping components need."""
        raise unsupported(self, "take_components", "reordering components")

    def diagnose(self, params: PyTree, weight: Float[Array, ""]) -> Diagnosis:
        """Which components are degenerate or empty at ``params``, with ``weight`` the total weight of the data."""
        return healthy(self.num_components)

    def num_free_parameters(self, params: PyTree) -> int:
        """The number of coordinates of `to_free`: what AIC and BIC count."""
        return _count_leaves(jax.eval_shape(self.to_free, params))


def nothing_held(params: PyTree) -> PyTree:
    """False for every entry of the parameters."""
    return jax.tree.map(lambda leaf: np.zeros(np.shape(leaf), bool), params)


def _count_leaves(tree: PyTree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytree
class Inference:
    """What a latent infers from the potentials.

    marginals: w_n p(z_n = k | x_n), shaped like the potentials. stats: the latent's own expected statistics,
    summed over examples. log_normalizer: log p(x_n | θ) of every example, without its weight.
    """

    marginals: Float[Array, "*N K"]
    stats: PyTree
    log_normalizer: Float[Array, " N"]


class Latent:
    """A discrete latent variable p(z | θ) and exact inference in it.

    ``potentials`` are log p(x | z = k): [N, K], or [B, T, K] for B sequences; ``data`` brings what the latent itself
    reads (inputs, lengths or starts), its observations already turned into potentials. ``weights`` is one number per
    example. A sequential latent gets padded sequences with ``data.lengths``, or flat ones, [N, K] with ``data.starts``,
    whose weights and log-normalizers are those of the steps (log p(x_t | x_1 … x_{t−1})).
    """

    #: The fields of `Data` it reads beside the potentials.
    reads: frozenset[str] = frozenset()
    freezable: frozenset[str] = frozenset()
    freezable_by_component: frozenset[str] = frozenset()
    #: True when a value of z of probability 0 keeps it (see `Model.sweepable`).
    sweepable: bool = False
    #: Fewer examples (rows of the potentials, or sequences) of positive weight than this cannot be fitted.
    min_examples: int = 1
    #: True when the z of different examples (rows of the potentials) are independent given x.
    independent: bool = False
    #: True when an example is a sequence.
    sequential: bool = False
    #: What its log-normalizer is called (see `Model.objective_name`).
    objective_name: str = "log-likelihood"
    #: True where `maximize` raises q without maximizing it (see `Model.generalized`).
    generalized: bool = False
    #: False where `infer` draws, so that what is climbed may fall (see `Model.monotone`).
    monotone: bool = True
    num_components: int

    def calibrate(self, data: Data, weights: Array | None) -> Latent:
        """The latent with its numerical constants taken from the data (see `Model.calibrate`)."""
        return self

    def with_components(self, num_components: int) -> Latent:
        """The same latent with another number of values."""
        raise unsupported(self, "with_components", "a sweep over the number of components")

    def infer(self, params: PyTree, potentials: Array, data: Data, weights: Array | None) -> Inference:
        """Posterior marginals, own statistics and log-normalizer, given the log-likelihood of each value of z."""
        raise unsupported(self, "infer", "the E-step")

    def infer_tempered(
        self, params: PyTree, potentials: Array, data: Data, weights: Array | None, inverse_temperature: Array | float
    ) -> Inference:
        """`infer` in the distribution ∝ p(x, z)^β, β the inverse temperature: marginals, stats and log Σ_z p(x, z)^β."""
        raise unsupported(self, "infer_tempered", "Annealed")

    def draw(self, key: Array, params: PyTree, potentials: Array, data: Data) -> Array:
        """A draw of z given the potentials, shaped like `mode`; of an `independent` latent `infer` says enough."""
        raise unsupported(self, "draw", "Sampled")

    def redraw(self, key: Array) -> Latent:
        """The latent with other random numbers in place of those that it holds, if it holds any."""
        return self

    def accumulate(self, marginals: Array, data: Data, params: PyTree | None = None) -> PyTree:
        """The latent's statistics for given (weighted) marginals: what a start from responsibilities needs.

        ``params`` are the current ones, for statistics that depend on them (expansions about them); None at a start.
        """
        raise unsupported(self, "accumulate", "a start from responsibilities")

    def maximize(self, params: PyTree | None, stats: PyTree, frozen: FrozenLeaves) -> PyTree:
        """The M-step of p(z | θ). ``params`` is None at a start."""
        raise unsupported(self, "maximize", "the M-step")

    def q(self, params: PyTree, stats: PyTree) -> Array:
        """E[log p(z | params)] from the statistics."""
        raise unsupported(self, "q", "the check of the M-step and a prior")

    def mode(self, params: PyTree, potentials: Array, data: Data) -> Array:
        """The most probable z given the potentials: of a sequence the most probable path."""
        raise unsupported(self, "mode", "prediction")

    def log_prob(self, params: PyTree, z: Array, data: Data) -> Array:
        """log p(z | params) of every example."""
        raise unsupported(self, "log_prob", "classification EM")

    def sample(self, key: Array, params: PyTree, shape: tuple[int, ...], data: Data) -> Array:
        """Draws of z, [N] or [B, T]; ``data`` has the inputs, where the latent reads them."""
        raise unsupported(self, "sample", "sampling")

    def pseudo_statistics(self) -> PyTree:
        """Statistics of one imagined example per component, for a conjugate prior."""
        raise unsupported(self, "pseudo_statistics", "WithPrior")

    def take_components(self, params: PyTree, components: Any) -> PyTree:
        """The parameters of some values of z, in the order given."""
        raise unsupported(self, "take_components", "reordering components")

    def empty(self, params: PyTree, weight: Array) -> Bool[Array, " K"]:
        """Components that hold less than half an example of a data set of total ``weight``."""
        return jnp.zeros(self.num_components, bool)

    def to_free(self, params: PyTree) -> PyTree:
        raise unsupported(self, "to_free", "counting free parameters, gradients and standard errors")

    def from_free(self, free: PyTree) -> PyTree:
        raise unsupported(self, "from_free", "gradients and standard errors")


class Family:
    """The K members of p(x | z = k, θ) at once, so that tying parameters across them is the family's own business.

    ``statistics`` is whatever the family wants of each row (an array [N, P] for an exponential family, any pytree with
    rows as the leading axis otherwise); it is computed once per data set, or once per chunk. A family always sees rows:
    the steps of sequences are flattened for it, and what is masked or padded holds `filler`.
    """

    #: The fields of `Data` it reads. A family that reads "mask" takes cells that are missing one by one, [N, D]; rows
    #: that are missing whole need nothing of it.
    reads: frozenset[str] = frozenset({"x"})
    #: A number inside the support, or one for each column, put wherever nothing is observed.
    filler: Any = 0.0
    #: True where `maximize` raises q without maximizing it (see `Model.generalized`).
    generalized: bool = False
    #: False where its log-probabilities or its statistics are drawn (see `Model.monotone`).
    monotone: bool = True
    #: False where statistics of different parameters cannot be averaged (see `Model.averageable`).
    averageable: bool = True
    freezable: frozenset[str] = frozenset()
    freezable_by_component: frozenset[str] = frozenset()
    #: True when any of the K members may go unused (see `Model.sweepable`).
    sweepable: bool = True
    #: True when a row is a whole sequence: x is [B, T, D], and what `Data` says of its steps comes with it.
    sequential: bool = False
    #: True when a start is made from the rows (see `start`), because statistics need parameters.
    starts_from_rows: bool = False

    def start(self, key: Array, data: Data, marginals: Float[Array, "N K"]) -> PyTree:
        """Starting parameters from weighted responsibilities, of a family that `starts_from_rows`."""
        raise unsupported(self, "start", "a random start")

    def redraw(self, key: Array) -> Family:
        """The family with other random numbers in place of those that it holds, if it holds any."""
        return self

    def calibrate(self, data: Data, weights: Array | None) -> Family:
        """The family with its centre and scale taken from the data (see `Model.calibrate`)."""
        return self

    @property
    def calibrated(self) -> bool:
        """True when `calibrate` has nothing left to do."""
        return True

    def specialize(self, data: Data | None) -> Family:
        """The family with what concrete data say about the shape of its program (see `Model.specialize`)."""
        return self

    def validate(self, data: Data) -> None:
        """Raise ValueError, naming the row and column, where concrete data lie outside the support."""

    def statistics(self, data: Data) -> PyTree:
        """T(x) of each row."""
        raise unsupported(self, "statistics", "the E-step")

    def features(self, data: Data) -> Float[Array, "N F"]:
        """Coordinates in which Euclidean distance makes sense, for starts by distance."""
        raise unsupported(self, "features", "a start by distances")

    def log_prob(self, params: PyTree, statistics: PyTree) -> Float[Array, "*N K"]:
        """log p(x_n | z_n = k, params)."""
        raise unsupported(self, "log_prob", "the E-step")

    def accumulate(self, params: PyTree, statistics: PyTree, marginals: Float[Array, "*N K"]) -> PyTree:
        """Σ_n marginals[n, k] T(x_n). ``params`` is None at a start, also where the family is `augmented`."""
        raise unsupported(self, "accumulate", "the E-step")

    def maximize(self, params: PyTree | None, stats: PyTree, frozen: FrozenLeaves) -> PyTree:
        """The M-step of p(x | z, θ). A component without examples keeps its ``params``, which are None at a start."""
        raise unsupported(self, "maximize", "the M-step")

    def q(self, params: PyTree, stats: PyTree) -> Array:
        """E[log p(x | z, params)] from the statistics."""
        raise unsupported(self, "q", "the check of the M-step and a prior")

    def sample(self, key: Array, params: PyTree, z: Int[Array, " N"], data: Data) -> Array:
        """One x, [N, D], for every z; ``data`` has the inputs, where the family reads them."""
        raise unsupported(self, "sample", "sampling")

    def mean(self, params: PyTree, data: Data) -> Array:
        """E[x | z = k]: [K, D], or [N, K, D] where the family reads inputs."""
        raise unsupported(self, "mean", "prediction of observations")

    def conditional_moments(self, params: PyTree, data: Data) -> tuple[Array, Array]:
        """Mean [N, K, D] and covariance [N, K, D, D] of x given z = k and the observed cells of each row."""
        raise unsupported(self, "conditional_moments", "imputation")

    def augmented(self, statistics: PyTree) -> bool:
        """True when `accumulate` needs the parameters: to fill in what is missing beside z (cells of x, a scale).

        q of such statistics has the gradient of Σ_nk r_nk log p(x_n | z = k) at these parameters, but another value.
        """
        return False

    def pseudo_statistics(self, overall: PyTree) -> PyTree:
        """Statistics of one imagined example per component, from those of the data, averaged per example, [K, …]."""
        raise unsupported(self, "pseudo_statistics", "WithPrior")

    def take_components(self, params: PyTree, components: Any) -> PyTree:
        """The parameters of some members, in the order given."""
        raise unsupported(self, "take_components", "reordering components")

    def degenerate(self, params: PyTree) -> Bool[Array, " K"]:
        """Components whose spread has collapsed onto the floor."""
        raise unsupported(self, "degenerate", "a diagnosis")

    def to_free(self, params: PyTree) -> PyTree:
        raise unsupported(self, "to_free", "counting free parameters, gradients and standard errors")

    def from_free(self, free: PyTree) -> PyTree:
        raise unsupported(self, "from_free", "gradients and standard errors")

    def held(self, params: PyTree) -> PyTree:
        """Which entries of the parameters the members hold fixed (see `Model.held`)."""
        return nothing_held(params)

    def num_free_parameters(self, params: PyTree) -> int:
        """The number of coordinates of `to_free`."""
        return _count_leaves(jax.eval_shape(self.to_free, params))


@pytree
class Info:
    """What one step of an algorithm saw. The objective belongs to the parameters that *came into* the step.

    provisional: True where those parameters are not to be judged: a proposal that the algorithm turned down, or a
    tempered start that has not cooled. The driver then keeps the best it has and asks no stopping rule.
    """

    objective: Float[Array, ""]
    log_likelihood: Float[Array, ""]
    weight: Float[Array, ""]
    provisional: Bool[Array, ""] | bool = False


class Algorithm:
    """How the iterates move: a frozen pytree; one algorithm varies another by holding it.

    Its state is carried from step to step and has the current parameters as its field ``params``; `Info` is looked at.
    One step is one E-step, whatever the algorithm, so that steps compare.
    """

    #: True when the objective of successive parameters may only rise.
    monotone: bool = True
    #: True when ``info.objective`` is an estimate. The driver then keeps the last finite parameters instead of the best,
    #: and evaluates the objective of those it returns once more, with a full E-step.
    estimates: bool = False

    def stopping(self, tol: float | None) -> Any:
        """Its own stopping rule, of this tolerance where one is given; None for `RelativeGain`."""
        return None

    def limit(self) -> Algorithm:
        """An algorithm whose first step leaves the parameters where this one ends: derivatives go through that step."""
        return self

    def init(self, model: Model, params: PyTree, data: PyTree, weights: Array | None) -> Any:
        """The state before the first step."""
        raise unsupported(self, "init", "the driver")

    def step(self, model: Model, state: Any, data: PyTree, weights: Array | None) -> tuple[Any, Info]:
        """One step; ``info.objective`` is the objective of ``state.params``, the incoming ones."""
        raise unsupported(self, "step", "the driver")

    # Data that come in blocks (`jaxem.Stream`): a step is a pass over them. What follows serves every algorithm whose step
    # looks at the data by one E-step at ``state.params``; others override it, or are refused by name.

    #: True where the number of blocks must be known before the first pass.
    counts_blocks: bool = False

    def on_blocks(self, block_size: int) -> Algorithm:
        """The algorithm as it is on blocks of so many examples. Raises UnsupportedError where there is none."""
        return self

    def init_pass(self, model: Model, params: PyTree, block: PyTree, weights: Array, num_blocks: int | None) -> Any:
        """The state before the first pass over ``num_blocks`` blocks (None: not known) such as this one."""
        return self.init(model, params, block, weights)

    def begin_pass(self, model: Model, state: Any, block: PyTree, weights: Array) -> Any:
        """What a pass over blocks such as this one carries, before it has seen any: sums of E-steps."""
        from jaxem import passes  # which builds on this file

        return passes.begin(model, state.params, block, weights)

    def see(self, model: Model, state: Any, carry: Any, block: PyTree, weights: Array, place: Place) -> Any:
        """The carry after one more block."""
        return carry.plus(model.e_step(state.params, block, weights))

    def end_pass(self, model: Model, state: Any, carry: Any) -> tuple[Any, Info]:
        """What `step` returns, after the last block."""
        from jaxem import passes

        return passes.end(self, model, state, carry)
