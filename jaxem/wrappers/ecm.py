"""Expectation/conditional maximization: the M-step block by block."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jaxem.model import FrozenLeaves, Model, UnsupportedError, pytree, static
from jaxem.wrappers.base import Wrapper

Blocks = tuple[tuple[str, ...], ...]


@pytree
class _ECM(Wrapper):
    model: Model
    blocks: Blocks = static()

    generalized = True  # type: ignore[assignment]

    def calibrate(self, data, weights=None) -> _ECM:
        return _ECM(self.model.calibrate(data, weights), self.blocks)

    def m_step(self, params, stats, frozen=None) -> Any:
        for block in range(len(self.blocks)):
            params = self.model.m_step(params, stats, held(self.blocks, block, frozen))
        return params


def ECM(model: Model, blocks: Iterable[Iterable[str]]) -> Model:
    """The model with its M-step made of conditional maximizations: each over one block of leaves, the others held.

    ``θ_b ← argmax q(θ, stats)`` over block b, with the blocks before it at their new values and those after it at their
    old ones: q rises in each, and so the likelihood never falls (Meng & Rubin 1993). blocks: lists of names of parameter
    leaves, such as ``[["mean"], ["covariance"]]``, in the order in which they are maximized; leaves that the M-step can
    hold and that no block names make a last block of their own.
    Raises ValueError for a name that the M-step cannot hold fixed (see `Frozen`) or that stands in two blocks;
    UnsupportedError for a model whose M-step wants statistics of the parameters right before it (expanded=True), which
    those of a second block are not: `MulticycleECM` takes them anew.
    """
    checked = check_blocks(model, blocks)
    if not model.averageable:
        raise UnsupportedError(
            f"the M-step of {type(model).__name__} needs statistics of the parameters right before it, which a second "
            "block no longer has: set expanded=False, or use MulticycleECM"
        )
    return _ECM(model, checked)


def check_blocks(model: Model, blocks: Iterable[Iterable[str]]) -> Blocks:
    """Blocks as tuples, every leaf that can be held in exactly one of them."""
    if isinstance(blocks, str) or any(isinstance(block, str) for block in blocks):
        raise ValueError(f"blocks are lists of names of leaves, such as [['mean'], ['covariance']]; got {blocks!r}")
    checked = tuple(tuple(block) for block in blocks)
    names = [name for block in checked for name in block]
    if not names or not all(checked):
        raise ValueError(f"every block needs the name of a leaf; got {blocks!r}")
    for name in names:
        if name not in model.freezable:
            can = sorted(model.freezable) or "nothing"
            raise ValueError(f"the M-step cannot hold {name!r} fixed; it can hold {can}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"a leaf belongs to one block; {', '.join(twice)} stands in several")
    rest = tuple(sorted(set(model.freezable) - set(names)))
    return (*checked, rest) if rest else checked


def held(blocks: Blocks, block: int, frozen: FrozenLeaves | None = None) -> dict[str, Any]:
    """What the M-step of one block holds: the leaves of all the others, and what is frozen anyway."""
    others = {name: True for i, names in enumerate(blocks) if i != block for name in names}
    return {**(frozen or {}), **others}
