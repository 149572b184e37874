"""The E-step over many devices: each has some of the rows, and only sums travel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxem.blocks import in_parts
from jaxem.mesh import check_mesh, pad_rows
from jaxem.model import EStep, Model, UnsupportedError, num_examples, pytree, static, unsupported
from jaxem.wrappers.base import Wrapper


@pytree
class Whole:
    """Compressed data that every device holds: so few rows that sharing them out would save nothing."""

    data: Any


@pytree
class Summed(Wrapper):
    """The model inside a ``jax.shard_map`` in which ``data`` are the rows of one device: sums are those of all devices.

    For programs that make a ``shard_map`` of their own (lanes over one axis of a mesh, rows over another); `Sharded`
    makes one itself. axis: the name of the axis of the mesh over which rows are shared out. What needs all rows
    (`calibrate`, `init`, `pseudo_statistics`) belongs before the ``shard_map``, and raises UnsupportedError here.
    """

    model: Model
    axis: str = static(default="data")

    def e_step(self, params, data, weights=None) -> EStep:
        return jax.lax.psum(self.model.e_step(params, data, weights), self.axis)

    def num_observations(self, data, weights=None):
        return jax.lax.psum(self.model.num_observations(data, weights), self.axis)

    def calibrate(self, data, weights=None) -> Model:
        raise unsupported(self, "calibrate", "a program that sees all rows")

    def init(self, key, data, weights=None, strategy=None, used=None) -> Any:
        raise unsupported(self, "init", "a program that sees all rows")

    def pseudo_statistics(self, data, weights=None) -> Any:
        raise unsupported(self, "pseudo_statistics", "a program that sees all rows")


@pytree
class Sharded(Wrapper):
    """The same model with its E-step shared out over the devices of a mesh: each takes some rows, then sums are added.

    All that devices send each other in a step are the statistics, whatever N is (one all-reduce of each leaf of the
    `EStep`); parameters and the M-step are the same on all of them. Numbers are those of the model itself up to the
    rounding of sums in another order. A number of rows that the number of devices does not divide is filled up with rows
    of weight 0; `jaxem.place` puts rows where they belong before a fit. Data that the model compresses to fewer rows
    (moments) are held by every device. ``Sharded(Chunked(model), mesh)`` goes block by block on each device. Where the
    E-step draws (`Sampled`), all devices draw with the same key.

    mesh: as `jaxem.make_mesh` makes it. axis: the name of the axis over which rows are shared out. Raises ValueError for
    a mesh without that axis or with axes of another type than Auto, UnsupportedError for a model whose E-step is not a
    sum over examples, and for flat sequences.
    """

    model: Model
    mesh: Mesh = static()
    axis: str = static(default="data")

    def __post_init__(self):
        check_mesh(self.mesh, self.axis)
        if isinstance(self.model, Model) and not self.model.additive:
            raise UnsupportedError(f"the E-step of {type(self.model).__name__} is not a sum over examples: not Sharded")

    def calibrate(self, data, weights=None) -> Sharded:
        with in_parts(self._parts):
            return Sharded(self._everywhere(self.model.calibrate(data, weights)), self.mesh, self.axis)

    def pseudo_statistics(self, data, weights=None) -> Any:
        with in_parts(self._parts):
            return self._everywhere(self.model.pseudo_statistics(data, weights))

    @property
    def sweepable(self) -> bool:  # type: ignore[override]
        return self.model.sweepable

    def with_components(self, num_components: int) -> Sharded:
        return Sharded(self.model.with_components(num_components), self.mesh, self.axis)

    def explicit(self) -> Model:
        inner = self.model.explicit()
        return self if inner is self.model else inner  # which keeps q of every example, and cannot be cut

    def check_divisible(self, data) -> None:
        self.model.check_divisible(data.data if isinstance(data, Whole) else data)

    def prepare(self, data) -> Any:
        return data if isinstance(data, Whole) else self.model.prepare(data)

    def compress(self, data, weights=None) -> Any:
        """Every device compresses its own rows."""
        self.check_divisible(data)
        data, weights = pad_rows(data, weights, self._parts)
        rows = PartitionSpec(self.axis)
        compress = self._map(lambda model, *own: model.compress(*own), (rows, rows), rows)
        compressed, left = compress(self.model, data, weights)
        if num_examples(compressed) == num_examples(data):
            return compressed, left
        return Whole(self._everywhere(compressed)), self._everywhere(left)

    def num_observations(self, data, weights=None):
        return self.model.num_observations(data.data if isinstance(data, Whole) else data, weights)

    def init(self, key, data, weights=None, strategy=None, used=None) -> Any:
        with in_parts(self._parts):
            return self._everywhere(self.model.init(key, data, weights, strategy, used))

    def e_step(self, params, data, weights=None) -> EStep:
        self.check_divisible(data)
        if isinstance(data, Whole):
            return self.model.e_step(params, data.data, weights)

        def of_own_rows(model: Model, params: Any, data: Any, weights: Any) -> EStep:
            return Summed(model, self.axis).e_step(params, data, weights)

        everywhere, rows = PartitionSpec(), PartitionSpec(self.axis)
        summed = self._map(of_own_rows, (everywhere, rows, rows), everywhere)
        return summed(self.model, params, *pad_rows(data, weights, self._parts))

    def log_likelihood(self, params, data):
        return self._by_rows(lambda model, params, rows: model.log_likelihood(params, rows), params, data)

    def posterior(self, params, data):
        return self._by_rows(lambda model, params, rows: model.posterior(params, rows), params, data)

    def predict(self, params, data):
        return self._by_rows(lambda model, params, rows: model.predict(params, rows), params, data)

    def _by_rows(self, f: Callable[[Model, Any, Any], Any], params: Any, data: Any) -> Any:
        """``f(model, params, data)`` of a function that keeps the rows: every device computes it for its own."""
        self.check_divisible(data)
        n = num_examples(data)
        model = self.model.calibrate(data)
        padded, _ = pad_rows(data, None, self._parts)
        everywhere, rows = PartitionSpec(), PartitionSpec(self.axis)
        result = self._map(f, (everywhere, rows), rows)(model, params, padded)
        return result if n % self._parts == 0 else jax.tree.map(lambda a: a[:n], result)

    @property
    def _parts(self) -> int:
        return self.mesh.shape[self.axis]

    def _map(self, f: Callable[..., Any], in_specs: tuple[PartitionSpec, ...], out_specs: PartitionSpec) -> Any:
        """``f(model, …)`` on every device, the model the same on all."""
        # A model's own loops start from constants that are the same on all devices and end in values that are not:
        # JAX's check of what varies over a mesh would have each of them say so.
        return jax.shard_map(
            f, mesh=self.mesh, in_specs=(PartitionSpec(), *in_specs), out_specs=out_specs, check_vma=False
        )

    def _everywhere(self, tree: Any) -> Any:
        """The same on every device."""
        sharding = NamedSharding(self.mesh, PartitionSpec())
        return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, sharding), tree)
