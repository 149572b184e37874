"""A model standing where a family stands: mixtures of factor analyzers, of hidden Markov models, of mixtures.

The K members are K parameter sets of one model, along a leading axis of its parameters; its E-step and M-step run for
all of them at once by vmap, the responsibilities as weights of the examples.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.families.base import keep, occupied, weighted_mean
from jaxem.model import Data, Family, FrozenLeaves, Model, as_data, pytree, static, unsupported

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


@pytree
class MemberStats:
    """weight: what each member holds, [K]. stats: those of the model, with a leading axis of members."""

    weight: Float[Array, " K"]
    stats: Any


@pytree
class OfModel(Family):
    """The family whose members are parameter sets of one model, ``log p(x | k) = log p(x | θ_k)`` with z_n summed out.

    model: any model that defines init and log_likelihood; `jaxem.Mixture` and `jaxem.HMM` wrap one by themselves. A row is
    an example of it: where those are sequences, a whole sequence. shared: names of parameter leaves that are one for all
    members (of factor analysis "noise"). Raises ValueError, when it is built, for a leaf that the model's M-step cannot
    share.
    """

    model: Model
    shared: tuple[str, ...] = static(default=())

    def __post_init__(self):
        # A list is taken as well; as a tuple it is part of the program.
        object.__setattr__(self, "shared", tuple(self.shared))
        if not isinstance(self.model, Model):
            raise ValueError(f"expected a model; got {self.model!r}")
        for name in self.shared:
            if name not in self.model.shareable:
                can = sorted(self.model.shareable) or "nothing"
                raise ValueError(f"members of {type(self.model).__name__} can share {can}; got {name!r}")

    @property
    def reads(self) -> frozenset[str]:  # type: ignore[override]
        return self.model.reads - {"starts", "labels"}

    @property
    def sequential(self) -> bool:  # type: ignore[override]
        return self.model.sequential

    @property
    def calibrated(self) -> bool:
        """Never known here: the model looks for itself whether there is anything left to do."""
        return False

    @property
    def freezable(self) -> frozenset[str]:  # type: ignore[override]
        return self.model.freezable

    @property
    def generalized(self) -> bool:  # type: ignore[override]
        return self.model.generalized

    @property
    def monotone(self) -> bool:  # type: ignore[override]
        return self.model.monotone

    @property
    def averageable(self) -> bool:  # type: ignore[override]
        return self.model.averageable

    starts_from_rows = True

    def augmented(self, statistics: Any) -> bool:
        return True

    def calibrate(self, data: Data, weights: Array | None) -> OfModel:
        return OfModel(self.model.calibrate(data, weights), self.shared)

    def redraw(self, key: Array) -> OfModel:
        return OfModel(self.model.redraw(key), self.shared)

    def specialize(self, data: Data) -> OfModel:
        return OfModel(self.model.specialize(data), self.shared)

    def validate(self, data: Data) -> None:
        self.model.validate(data)

    def statistics(self, data: Data) -> Any:
        return self.model.prepare(data)

    def features(self, data: Data) -> Float[Array, "N F"]:
        """Standardized columns of the rows; of sequences mean, spread and size of the steps of each column."""
        x = as_data(data).x
        if x.ndim == 2:
            return _standardized(x, data.mask)
        within = jnp.ones(x.shape[:2], bool)
        if data.lengths is not None:
            within = jnp.arange(x.shape[1]) < data.lengths[:, None]
        seen = jnp.broadcast_to(within[..., None], x.shape)
        if data.mask is not None:
            seen = seen & (data.mask if data.mask.ndim == x.ndim else data.mask[..., None])
        mean = _mean_of(x, seen)
        spread = jnp.sqrt(_mean_of((x - mean[:, None]) ** 2, seen))
        step = _mean_of(jnp.abs(x[:, 1:] - x[:, :-1]), seen[:, 1:] & seen[:, :-1])
        return _standardized(jnp.concatenate([mean, spread, step], axis=1), None)

    def log_prob(self, params: Any, statistics: Any) -> Float[Array, "N K"]:
        return jax.vmap(self.model.log_likelihood, in_axes=(0, None), out_axes=-1)(params, statistics)

    def accumulate(self, params: Any, statistics: Any, marginals: Float[Array, "N K"]) -> MemberStats:
        if params is None:
            raise unsupported(self, "statistics without parameters", "WithPrior")

        def member(own: Any, weights: Array) -> MemberStats:
            expected = self.model.e_step(own, statistics, weights)
            return MemberStats(expected.weight, expected.stats)

        return jax.vmap(member, in_axes=(0, 1))(params, marginals)

    def maximize(self, params: Any, stats: MemberStats, frozen: FrozenLeaves) -> Any:
        held = {name: True for name in self.model.freezable if frozen.get(name) is True}
        if self.shared:
            new = self.model.shared_m_step(params, stats.stats, self.shared, held)
        elif held:
            new = jax.vmap(lambda p, s: self.model.m_step(p, s, held))(params, stats.stats)
        else:
            new = jax.vmap(self.model.m_step)(params, stats.stats)
        used = occupied(stats.weight)

        def settle(path: Any, leaf: Array, old: Array) -> Array:
            return leaf if _name(path) in self.shared else keep(used, leaf, old)

        return jax.tree_util.tree_map_with_path(settle, new, params)

    def q(self, params: Any, stats: MemberStats) -> Float[Array, ""]:
        return jnp.sum(jax.vmap(self.model.q)(params, stats.stats))

    def start(self, key: Array, data: Data, marginals: Float[Array, "N K"]) -> Any:
        """A start of the model for every member, on the rows weighted by its marginals."""
        keys = jax.random.split(key, marginals.shape[1])
        params = jax.vmap(lambda k, w: self.model.init(k, data, w), in_axes=(0, 1))(keys, marginals)

        def pool(path: Any, leaf: Array) -> Array:
            return jnp.broadcast_to(jnp.mean(leaf, axis=0), leaf.shape) if _name(path) in self.shared else leaf

        return jax.tree_util.tree_map_with_path(pool, params)

    def sample(
        self, key: Array, params: Any, z: Array, data: Data, num_steps: int | None = None
    ) -> Float[Array, "N *T D"]:
        def draw(key: Array, member: Array, inputs: Any) -> Array:
            own = jax.tree.map(lambda a: jnp.asarray(a)[member], params)
            x, _ = self.model.sample(key, own, 1, num_steps, None if inputs is None else inputs[None])
            return x[0]

        axes = (0, 0, None if data.inputs is None else 0)
        return jax.vmap(draw, in_axes=axes)(jax.random.split(key, z.shape[0]), z, data.inputs)

    def conditional_moments(self, params: Any, data: Data) -> tuple[Array, Array]:
        if data.mask is not None and data.mask.ndim == data.x.ndim and "mask" not in self.model.reads:
            data = dataclasses.replace(data, mask=jnp.all(data.mask, axis=-1))  # all that can be missing are whole rows
        imputed = jax.vmap(self.model.impute, in_axes=(0, None), out_axes=data.x.ndim - 1)(params, data)
        # Of sequences one row for every step.
        mean, covariance = imputed.mean, imputed.covariance
        return mean.reshape(-1, *mean.shape[-2:]), covariance.reshape(-1, *covariance.shape[-3:])

    def take_components(self, params: Any, components: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[components], params)

    def degenerate(self, params: Any) -> Bool[Array, " K"]:
        """Members of which any part is degenerate."""
        one = jnp.ones(())
        return jax.vmap(lambda p: jnp.any(self.model.diagnose(p, one).degenerate))(params)

    def to_free(self, params: Any) -> Any:
        def once(path: Any, leaf: Array) -> Array:
            return leaf[:1] if _name(path) in self.shared else leaf

        return jax.tree_util.tree_map_with_path(once, jax.vmap(self.model.to_free)(params))

    def from_free(self, free: Any) -> Any:
        k = max(leaf.shape[0] for leaf in jax.tree.leaves(free))

        def every(path: Any, leaf: Array) -> Array:
            return jnp.broadcast_to(leaf, (k, *leaf.shape[1:])) if _name(path) in self.shared else leaf

        return jax.vmap(self.model.from_free)(jax.tree_util.tree_map_with_path(every, free))

    def held(self, params: Any) -> Any:
        one = self.model.held(jax.tree.map(lambda a: a[0], params))
        return jax.tree.map(lambda mask, leaf: np.broadcast_to(mask, np.shape(leaf)), one, params)

    def num_free_parameters(self, params: Any) -> int:
        k = jax.tree.leaves(params)[0].shape[0]
        one = jax.tree.map(lambda a: a[0], params)
        leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(self.model.to_free, one))
        repeated = sum(leaf.size for path, leaf in leaves if _name(path) in self.shared)
        return k * self.model.num_free_parameters(one) - (k - 1) * repeated


def family_of(family: Family | Model) -> Family:
    """A family as it is; a model as the family of its parameter sets."""
    return OfModel(family) if isinstance(family, Model) else family


def _name(path: Any) -> str:
    return str(getattr(path[-1], "name", path[-1]))


def _mean_of(x: Float[Array, "B T D"], seen: Bool[Array, "B T D"]) -> Float[Array, "B D"]:
    """Means over time of what is seen, 0 where nothing is."""
    count = jnp.sum(seen, axis=1)
    return jnp.sum(jnp.where(seen, x, 0), axis=1) / jnp.maximum(count, 1)


def _standardized(x: Float[Array, "N F"], mask: Bool[Array, "N F"] | None) -> Float[Array, "N F"]:
    """Columns about their mean, in standard deviations, constant ones as they are; what is not observed at the mean."""
    away = x - weighted_mean(x, None, mask)
    away = away if mask is None else jnp.where(mask, away, 0)
    variance = weighted_mean(away**2, None, mask)
    return away / jnp.sqrt(jnp.where(variance > 0, variance, 1))
