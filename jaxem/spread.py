"""Lanes over one axis of a mesh, rows of the data over the other: the same loop on every device.

Each device (or row of them) has lanes and a queue of its own, and loops until they have stopped; lanes of different
devices never wait for each other but at the end of a slice. Devices that share out the rows of the same lanes add their
statistics, and see the same sums, so that they stop alike.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxem.lane import Lane
from jaxem.mesh import check_mesh
from jaxem.slots import Flight, Index, Stage, enter, fly, leave, stages
from jaxem.status import Status
from jaxem.work import Problem, Programs
from jaxem.wrappers.sharded import Sharded, Summed, Whole

LANES, ROWS = "lanes", "data"
_EVERYWHERE, _BY_LANES, _BY_ROWS = PartitionSpec(), PartitionSpec(LANES), PartitionSpec(ROWS)


def check_axes(mesh: Mesh, axes: tuple[str, ...]) -> None:
    """Raise ValueError for a mesh with other axes than these."""
    check_mesh(mesh, mesh.axis_names[0] if isinstance(mesh, Mesh) and mesh.axis_names else axes[0])
    other = [name for name in mesh.axis_names if name not in axes]
    if other:
        raise ValueError(
            f"the axes of a mesh are {' and '.join(map(repr, axes))} here; got {', '.join(map(repr, mesh.axis_names))}"
        )


def replicated(tree: Any, mesh: Mesh) -> Any:
    """The same on every device, of every process."""
    return _replicate(mesh)(tree)


@functools.cache
def _replicate(mesh: Mesh) -> Any:
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, _EVERYWHERE))


@functools.cache
def programs_of(mesh: Mesh | None) -> Programs:
    """The compiled pieces for a mesh, or for none: the same ones for every fit, so that nothing is compiled twice."""
    return Programs() if mesh is None else MeshPrograms(mesh)


def local_problem(problem: Problem) -> tuple[Problem, bool]:
    """What a device sees inside the ``shard_map``: the model that adds up over rows, and whether rows are shared out."""
    model: Any = problem.model
    if not isinstance(model, Sharded):
        return problem, False
    if isinstance(problem.data, Whole):
        return Problem(model.model, problem.data.data, problem.weights, problem.index), False
    return dataclasses.replace(problem, model=Summed(model.model, model.axis)), True


class MeshPrograms(Programs):
    """The compiled pieces over a mesh with an axis of lanes, of rows, or both.

    Flights have an axis of devices in front of their counters; everything else is laid end to end.
    """

    def __init__(self, mesh: Mesh):
        self.mesh = mesh
        self._parts = mesh.shape.get(LANES, 1)
        self._lanes = _BY_LANES if LANES in mesh.axis_names else _EVERYWHERE
        self._enter = jax.jit(self._entered, static_argnums=1)
        self._fly = jax.jit(self._flown, static_argnums=2)
        self._leave = jax.jit(
            self._mapped(lambda flight: leave(_local(flight)), self._lanes, self._lanes),
            out_shardings=NamedSharding(mesh, _EVERYWHERE),
        )
        self._counts = jax.jit(
            self._mapped(_counted, self._lanes, self._lanes), out_shardings=NamedSharding(mesh, _EVERYWHERE)
        )

    def _mapped(self, f: Any, in_specs: Any, out_specs: Any) -> Any:
        return jax.shard_map(f, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)

    def padded(self, lanes: Lane) -> Lane:
        """A number of lanes that the devices divide: the last one again, stopped."""
        return _padded(lanes, -lanes.status.shape[0] % self._parts)

    def stages(self, lanes: Lane, problem: Problem) -> list[Stage]:
        own = jax.tree.map(lambda a: jax.ShapeDtypeStruct((a.shape[0] // self._parts, *a.shape[1:]), a.dtype), lanes)
        problem, shared_out = local_problem(problem)
        index = problem.index
        parts = self._parts if index.data is not None else self.mesh.shape[ROWS] if shared_out else 1
        data = jax.tree.map(lambda a: jax.ShapeDtypeStruct((a.shape[0] // parts, *a.shape[1:]), a.dtype), problem.data)
        return stages(own.status.shape[0], problem.model, data, index, None)

    def enter(self, lanes: Lane, stage: Stage) -> Flight:
        return self._enter(lanes, stage)

    def _entered(self, lanes: Lane, stage: Stage) -> Flight:
        return self._mapped(lambda lanes: _global(enter(lanes, stage)), (self._lanes,), self._lanes)(lanes)

    def fly(self, flight: Flight, stage: Stage, until: int, problem: Problem, algorithm, control) -> Flight:
        problem, shared_out = local_problem(problem)
        target, limit = np.int32(stage.target), np.int32(until)
        return self._fly(flight, problem, shared_out, target, limit, algorithm, control)

    def _flown(self, flight, problem: Problem, shared_out: bool, target, until, algorithm, control) -> Flight:
        def on_device(flight, problem, target, until, algorithm, control):
            own = (problem.model, problem.data, problem.weights, _own_index(problem))
            return _global(fly(_local(flight), target, until, *own, algorithm, control))

        of_sets = problem.index.data is not None
        rows = _BY_ROWS if shared_out else _BY_LANES if of_sets else _EVERYWHERE
        model, index = (_BY_LANES, _BY_LANES) if of_sets else (_EVERYWHERE, _EVERYWHERE)
        specs = (self._lanes, Problem(model, rows, rows, index), *(_EVERYWHERE,) * 4)  # type: ignore[arg-type]
        mapped = self._mapped(on_device, specs, self._lanes)
        return mapped(flight, problem, target, until, algorithm, control)

    def leave(self, flight: Flight) -> Lane:
        return self._leave(flight)

    def counts(self, flight: Flight) -> tuple[int, int]:
        unfinished, ticks = jax.device_get(self._counts(flight))
        return int(np.max(unfinished)), int(np.max(ticks))

    def everywhere(self, tree: Any) -> Any:
        return replicated(tree, self.mesh)

    def laid_out(self, shapes: Any) -> Any:
        sharding = NamedSharding(self.mesh, self._lanes)
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), shapes)


def _counted(flight: Flight) -> Any:
    flight = _local(flight)
    return flight.unfinished[None], flight.ticks[None]


def _own_index(problem: Problem) -> Index:
    """Numbers of data sets as the device that has them counts them: lanes and data sets are shared out alike."""
    if problem.index.data is None:
        return problem.index
    own = jax.tree.leaves(problem.data)[0].shape[0]
    return Index(data=problem.index.data % own)


def _global(flight: Flight) -> Flight:
    counters = {name: getattr(flight, name)[None] for name in ("running", "waiting", "ticks")}
    return dataclasses.replace(flight, **counters)


def _local(flight: Flight) -> Flight:
    counters = {name: getattr(flight, name)[0] for name in ("running", "waiting", "ticks")}
    return dataclasses.replace(flight, **counters)


@functools.partial(jax.jit, static_argnums=1)
def _padded(lanes: Lane, extra: int) -> Lane:
    if not extra:
        return lanes
    longer = jax.tree.map(lambda a: jnp.concatenate([a, jnp.repeat(a[-1:], extra, axis=0)]), lanes)
    return dataclasses.replace(longer, status=longer.status.at[-extra:].set(jnp.int32(Status.OUTRACED)))
