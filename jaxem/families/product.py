"""Blocks of columns, each with a family of its own: data of mixed types."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.families.base import observations
from jaxem.model import Data, Family, pytree, static

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


@pytree
class Product(Family):
    """Blocks of columns that are independent given z, ``p(x | k) = Π_b p_b(x_b | k)``.

    ``Product({"size": (Gaussian(), [0, 1]), "smoker": (Bernoulli(), 2), "visits": (Poisson(), slice(3, 6))})``: for
    every block its family and its columns, as a number, a list of numbers or a slice with an end. Parameters are a dict,
    ``params.likelihood["size"].mean``, and so is ``"size.mean"`` the name of that leaf for `jaxem.Frozen`. Cells may be
    missing where every block's family takes a mask; inputs reach the families that read them.
    Raises ValueError for columns in no block or in two, and for anything that is not a family with its columns.
    """

    families: Mapping[str, Any]
    #: (name, columns) of every block, in the order given; filled in from ``families``.
    columns: tuple[tuple[str, tuple[int, ...]], ...] | None = static(default=None)

    def __post_init__(self):
        if self.columns is None:
            families, columns = _blocks(self.families)
            object.__setattr__(self, "families", families)
            object.__setattr__(self, "columns", columns)

    @property
    def reads(self) -> frozenset[str]:  # type: ignore[override]
        each = [family.reads for family in self.families.values()]
        return frozenset.union(*each) - {"mask"} | frozenset.intersection(*each)

    @property
    def filler(self) -> np.ndarray:  # type: ignore[override]
        """[D]: of every column its family's."""
        fillers = [np.broadcast_to(self.families[name].filler, (len(where),)) for name, where in self._columns]
        return np.concatenate(fillers)[self._inverse]

    @property
    def monotone(self) -> bool:  # type: ignore[override]
        return all(family.monotone for family in self.families.values())

    @property
    def averageable(self) -> bool:  # type: ignore[override]
        return all(family.averageable for family in self.families.values())

    @property
    def generalized(self) -> bool:  # type: ignore[override]
        return any(family.generalized for family in self.families.values())

    @property
    def sweepable(self) -> bool:  # type: ignore[override]
        return all(family.sweepable for family in self.families.values())

    @property
    def freezable(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset(f"{block}.{leaf}" for block, family in self.families.items() for leaf in family.freezable)

    @property
    def freezable_by_component(self) -> frozenset[str]:  # type: ignore[override]
        named = ((block, leaf) for block, family in self.families.items() for leaf in family.freezable_by_component)
        return frozenset(f"{block}.{leaf}" for block, leaf in named)

    @property
    def calibrated(self) -> bool:
        return all(family.calibrated for family in self.families.values())

    def calibrate(self, data: Data, weights: Array | None) -> Product:
        return self._with(lambda family, block: family.calibrate(block, weights), data)

    def specialize(self, data: Data | None) -> Product:
        return self._with(lambda family, block: family.specialize(block), data)

    def validate(self, data: Data) -> None:
        for name, where, block in self._split(data):
            try:
                self.families[name].validate(block)
            except ValueError as error:
                places = ", ".join(map(str, where))
                raise ValueError(f"block {name!r}, whose columns are {places} of the data: {error}") from None

    def augmented(self, statistics: Mapping[str, Any]) -> bool:
        return any(family.augmented(statistics[name]) for name, family in self.families.items())

    def statistics(self, data: Data) -> dict[str, Any]:
        return {name: self.families[name].statistics(block) for name, _, block in self._split(data)}

    def features(self, data: Data) -> Float[Array, "N F"]:
        """The features of all blocks, scaled so that on average every column of x counts alike."""
        scaled = []
        for name, where, block in self._split(data):
            each = self.families[name].features(block)
            variance = jnp.sum(jnp.var(each, axis=0)) / len(where)
            scaled.append(each / jnp.sqrt(jnp.where(variance > 0, variance, 1)))
        return jnp.concatenate(scaled, axis=-1)

    def log_prob(self, params: Any, statistics: Mapping[str, Any]) -> Float[Array, "N K"]:
        each = [family.log_prob(params[name], statistics[name]) for name, family in self.families.items()]
        return functools.reduce(jnp.add, each)

    def accumulate(self, params: Any, statistics: Mapping[str, Any], marginals: Float[Array, "N K"]) -> dict[str, Any]:
        return {
            name: family.accumulate(None if params is None else params[name], statistics[name], marginals)
            for name, family in self.families.items()
        }

    def maximize(self, params: Any, stats: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict[str, Any]:
        new = {}
        for name, family in self.families.items():
            start = f"{name}."
            own = {leaf.removeprefix(start): held for leaf, held in frozen.items() if leaf.startswith(start)}
            new[name] = family.maximize(None if params is None else params[name], stats[name], own)
        return new

    def q(self, params: Any, stats: Mapping[str, Any]) -> Float[Array, ""]:
        each = [family.q(params[name], stats[name]) for name, family in self.families.items()]
        return functools.reduce(jnp.add, each)

    def pseudo_statistics(self, overall: Mapping[str, Any]) -> dict[str, Any]:
        return {name: family.pseudo_statistics(overall[name]) for name, family in self.families.items()}

    def mean(self, params: Any, data: Data) -> Array:
        inputs = Data(inputs=data.inputs)
        return self._side_by_side([self.families[name].mean(params[name], inputs) for name, _ in self._columns])

    def conditional_moments(self, params: Any, data: Data) -> tuple[Array, Array]:
        """Of every block given its own cells; blocks do not covary given z."""
        blocks = self._split(data)
        each = [self.families[name].conditional_moments(params[name], block) for name, _, block in blocks]
        mean = self._side_by_side([moments[0] for moments in each])
        covariance = jnp.zeros((*mean.shape, mean.shape[-1]), mean.dtype)
        for (_, where, _), (_, own) in zip(blocks, each, strict=True):
            places = np.asarray(where)
            covariance = covariance.at[..., places[:, None], places].set(own)
        return mean, covariance

    def sample(self, key: jax.Array, params: Any, z: Array, data: Data) -> Array:
        inputs = Data(inputs=data.inputs)
        keys = jax.random.split(key, len(self._columns))
        drawn = [
            self.families[name].sample(own, params[name], z, inputs)
            for own, (name, _) in zip(keys, self._columns, strict=True)
        ]
        return self._side_by_side(drawn)

    def take_components(self, params: Any, components: Any) -> dict[str, Any]:
        return {name: family.take_components(params[name], components) for name, family in self.families.items()}

    def degenerate(self, params: Any) -> Bool[Array, " K"]:
        """Components whose spread has collapsed in some block."""
        each = [family.degenerate(params[name]) for name, family in self.families.items()]
        return jnp.any(jnp.stack(each), axis=0)

    def to_free(self, params: Any) -> dict[str, Any]:
        return {name: family.to_free(params[name]) for name, family in self.families.items()}

    def held(self, params: Any) -> dict[str, Any]:
        return {name: family.held(params[name]) for name, family in self.families.items()}

    def from_free(self, free: Any) -> dict[str, Any]:
        return {name: family.from_free(free[name]) for name, family in self.families.items()}

    @property
    def _columns(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        return self.columns or ()

    @property
    def _inverse(self) -> np.ndarray:
        """Where each column of x stands when the blocks lie side by side."""
        return np.argsort(np.concatenate([where for _, where in self._columns]))

    def _side_by_side(self, parts: list[Array]) -> Array:
        """The columns of all blocks, in the order of x."""
        shape = np.broadcast_shapes(*(part.shape[:-1] for part in parts))
        parts = [jnp.broadcast_to(part, (*shape, part.shape[-1])) for part in parts]
        return jnp.concatenate(parts, axis=-1)[..., self._inverse]

    def _split(self, data: Data) -> list[tuple[str, tuple[int, ...], Data]]:
        """(name, columns, its part of the data) of every block."""
        x, covered = observations(data), len(self._inverse)
        if x.shape[-1] != covered:
            raise ValueError(f"the blocks of Product have {covered} columns; x has {x.shape[-1]}")
        blocks = []
        for name, where in self._columns:
            reads, places = self.families[name].reads, np.asarray(where)
            mask = data.mask[:, places] if data.mask is not None and "mask" in reads else None
            inputs = data.inputs if "inputs" in reads else None
            blocks.append((name, where, Data(x=x[:, places], mask=mask, inputs=inputs)))
        return blocks

    def _with(self, change: Callable[[Family, Any], Family], data: Data | None) -> Product:
        """Every family changed by what it is given of the data."""
        parts = {} if data is None else {name: block for name, _, block in self._split(data)}
        families = {name: change(family, parts.get(name)) for name, family in self.families.items()}
        return dataclasses.replace(self, families=families)


def _blocks(given: Any) -> tuple[dict[str, Family], tuple[tuple[str, tuple[int, ...]], ...]]:
    """Families and columns of blocks as a user writes them."""
    if not isinstance(given, Mapping) or not given:
        raise ValueError(f'Product takes blocks by name, {{"size": (Gaussian(), [0, 1]), …}}; got {given!r}')
    families: dict[str, Family] = {}
    columns: list[tuple[str, tuple[int, ...]]] = []
    owner: dict[int, str] = {}
    for name, block in given.items():
        if not isinstance(name, str) or not name or "." in name:
            raise ValueError(f"names of blocks are words without dots; got {name!r}")
        if not isinstance(block, tuple) or len(block) != 2 or not isinstance(block[0], Family):
            raise ValueError(f"block {name!r} takes (family, columns); got {block!r}")
        families[name] = block[0]
        columns.append((name, _column_numbers(name, block[1])))
        for column in columns[-1][1]:
            if column in owner:
                raise ValueError(f"column {column} is in two blocks, {owner[column]!r} and {name!r}")
            owner[column] = name
    missing = sorted(set(range(max(owner) + 1)) - set(owner))
    if missing:
        raise ValueError(f"column {missing[0]} is in no block: every column of x needs a family")
    return families, tuple(columns)


def _column_numbers(name: str, given: Any) -> tuple[int, ...]:
    if isinstance(given, slice):
        if given.stop is None or any(part is not None and part < 0 for part in (given.start, given.stop)):
            raise ValueError(f"the columns of block {name!r} need an end, both ends counted from the left; got {given}")
        given = range(given.stop)[given]
    listed = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]
    numbers = [c for c in listed if isinstance(c, (int, np.integer)) and not isinstance(c, bool) and c >= 0]
    if not listed or len(numbers) != len(listed):
        raise ValueError(f"the columns of block {name!r} are numbers from 0; got {given!r}")
    return tuple(int(c) for c in numbers)
