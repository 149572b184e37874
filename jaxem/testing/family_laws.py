"""The laws of a family by itself: its products, its M-step, its coordinates, and what it promises of bad data."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem import layout
from jaxem.model import Data, Family, UnsupportedError, leaf_name, num_examples
from jaxem.testing.case import close

#: A power of two scales without rounding; the largest and the least are about 1e±8.
_SCALES = (2.0**27, 2.0**-27)
#: Values that lie outside of some support: negative, fractional, larger than any category or count of trials.
_ODD_VALUES = (-1.0, 0.5, 1e6)


def check_family(
    family: Family,
    data: Any,
    *,
    key: jax.Array,
    num_components: int = 3,
    rtol: float = 1e-10,
    skip: Iterable[str] = (),
) -> None:
    """Check a family by itself: its two products, its M-step, its frozen parameters, its coordinates, and bad data.

    The laws of `check_model` hold for ``Mixture(family, K)`` beside these. All of them read the numbers of one compiled
    program, run on the data and on what bad data do to them.

    Args:
        family: not yet calibrated.
        data: some tens of examples in its support.
        key: for the responsibilities, the start and the draws.
        num_components: the number of members.
        rtol: relative accuracy in float64.
        skip: laws to leave out: "scale" (a family that is not one of scales), "constant", "outside".

    Raises:
        AssertionError: naming the law that fails.

    Example:
        >>> check_family(jaxem.Poisson(), counts, key=jax.random.key(0), skip=["scale"])
    """
    with jax.enable_x64(True):
        raw = data if isinstance(data, Data) else Data(x=jnp.asarray(data, float))
        laws = _FamilyLaws(family, raw, num_components, key, rtol)
        laws.check_products()
        laws.check_m_step()
        laws.check_empty_member()
        laws.check_frozen()
        laws.check_members_and_draws()
        laws.check_masked()
        for name in ("scale", "constant", "outside"):
            if name not in skip:
                getattr(laws, f"check_{name}")()


@dataclasses.dataclass
class _FamilyLaws:
    """A family, data, and the numbers of both that its laws compare."""

    family: Family
    raw: Data
    num_components: int
    key: jax.Array
    rtol: float

    def __post_init__(self):
        self.rows = num_examples(self.raw)
        marginals = jax.random.dirichlet(self.key, jnp.ones(self.num_components), (self.rows,))
        # Of the rows as they are, with a member that has lost its examples, and others to freeze a leaf at.
        self.marginals = np.stack([marginals, marginals.at[:, 0].set(0), marginals**2])
        self._program = jax.jit(self._numbers)
        self.numbers = self.of(self.raw)

    def of(self, raw: Data) -> dict[str, Any]:
        """The numbers for other data of the same shapes: the same compiled program."""
        raw = jax.tree.map(np.asarray, raw)
        return jax.device_get(self._program(raw, self.marginals, self.key))

    def _numbers(self, raw: Data, marginals: Any, key: jax.Array) -> dict[str, Any]:
        family = self.family.calibrate(raw, None)
        statistics = family.statistics(raw)
        if family.starts_from_rows:
            params = family.start(key, raw, marginals[0])
        else:
            params = family.maximize(None, family.accumulate(None, statistics, marginals[0]), {})
        stats = jax.vmap(lambda m: family.accumulate(params, statistics, m))(marginals)
        first, last = (jax.tree.map(lambda a, i=i: a[i], stats) for i in (0, 2))
        updated, kept = _unstack(jax.vmap(lambda s: family.maximize(params, s, {}))(_take(stats, (0, 1))), 2)
        names = sorted(family.freezable)
        frozen = [family.maximize(params, last, {name: True}) for name in names]
        order, turned = _turn(family, params, self.num_components)
        free = family.to_free(params)
        log_prob = family.log_prob(params, statistics)
        # One gradient of q, at the parameters, at the answer, and at the answers with a leaf frozen.
        at = jax.tree.map(lambda *a: jnp.stack(a), free, *(family.to_free(p) for p in (updated, *frozen)))
        which = np.array([0, 0, *(2 for _ in names)])
        q, slopes = jax.vmap(jax.value_and_grad(lambda f, s: family.q(family.from_free(f), s)))(at, _take(stats, which))
        return {
            "statistics": statistics,
            "params": params,
            "back": family.from_free(free),
            "stats": stats,
            "log p": log_prob,
            "log p of turned members": family.log_prob(turned, statistics)[:, np.argsort(order)],
            "q": q,
            "q itself": family.q(params, first),
            "slopes": slopes,
            "updated": updated,
            "kept": kept,
            "log p with an empty member": family.log_prob(kept, statistics),
            "log p at the answer": family.log_prob(updated, statistics),
            "frozen": dict(zip(names, frozen, strict=True)),
            "draws": family.sample(key, params, jnp.arange(self.num_components), _head(raw, self.num_components)),
            **self._direct(family, free, statistics, marginals[0]),
        }

    def _direct(self, family: Family, free: Any, statistics: Any, marginals: Any) -> dict[str, Any]:
        """Σ r log p without the detour over statistics, and where these are augmented its gradient."""

        def direct(free: Any) -> Any:
            return jnp.sum(marginals * family.log_prob(family.from_free(free), statistics))

        value, slope = jax.value_and_grad(direct)(free)
        return {"direct": value, "slope of direct": slope if family.augmented(statistics) else None}

    def check_products(self) -> None:
        """q of the statistics is Σ r log p; of augmented statistics only its gradient is (Fisher's identity)."""
        got = self.numbers
        close("family coordinates", got["back"], got["params"], 1e3 * self.rtol, "parameters → free → parameters")
        if got["slope of direct"] is None:
            close("family products", got["q itself"], got["direct"], self.rtol, "q of the statistics against Σ r log p")
            return
        what = "gradient of q of the statistics against that of Σ r log p"
        slope = _take(got["slopes"], 0)
        close("family products", slope, got["slope of direct"], 1e3 * self.rtol, what, least=1.0)

    def check_m_step(self) -> None:
        """The M-step does not lower q, and its gradient vanishes at the answer."""
        gain = float(self.numbers["q"][1] - self.numbers["q"][0])
        if not gain >= -self.rtol * self.rows:
            raise AssertionError(f"law family M-step: q falls by {-gain:.3g}")
        slope = _take(self.numbers["slopes"], 1)
        worst = max(float(np.max(np.abs(leaf), initial=0.0)) for leaf in jax.tree.leaves(slope))
        if not (self.family.generalized or worst <= 1e4 * self.rtol * self.rows):
            raise AssertionError(f"law family M-step: the gradient of q at the answer is {worst:.3g}")

    def check_empty_member(self) -> None:
        """A member without examples keeps its parameters, and the others do not notice."""
        if not np.all(np.isfinite(self.numbers["log p with an empty member"])):
            raise AssertionError("law family empty member: log p is not finite after a member lost all its examples")
        ends = np.array([0, self.num_components - 1])  # a family may insist on its last member (noise)
        params, kept = self.numbers["params"], self.numbers["kept"]
        first = self.family.take_components(params, ends), self.family.take_components(kept, ends)
        leaves = jax.tree_util.tree_leaves_with_path(params)
        tied = self.family.freezable - self.family.freezable_by_component
        for old, new, (path, whole) in zip(*map(jax.tree.leaves, first), leaves, strict=True):
            # A leaf of all members at once may move with the others, and so may what members share of their own leaves.
            shared = old.shape == np.shape(whole) or leaf_name(path) in tied
            if not shared and not np.array_equal(old[0], new[0]):
                raise AssertionError("law family empty member: a member without examples did not keep its parameters")

    def check_frozen(self) -> None:
        """A frozen leaf stays as it is, and the M-step maximizes over the others given it."""
        for at, (name, new) in enumerate(self.numbers["frozen"].items(), start=2):
            before, after = (
                np.asarray({leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}[name])
                for tree in (self.numbers["params"], new)
            )
            if not np.allclose(before, after, rtol=1e-12, atol=0):
                raise AssertionError(f"law family frozen: {name} moved although it is frozen")
            for path, leaf in jax.tree_util.tree_leaves_with_path(_take(self.numbers["slopes"], at)):
                other, worst = leaf_name(path), float(np.max(np.abs(leaf), initial=0.0))
                if other != name and not worst <= 1e4 * self.rtol * self.rows:
                    raise AssertionError(f"law family frozen: with {name} frozen, q is not maximal over {other}")

    def check_members_and_draws(self) -> None:
        """Members in another order have the same densities; one draw of each is a row of finite numbers."""
        what = "log p of permuted members"
        close("family members", self.numbers["log p of turned members"], self.numbers["log p"], self.rtol, what)
        draws = self.numbers["draws"]
        if draws.shape[0] != self.num_components or not np.all(np.isfinite(draws)):
            raise AssertionError(f"law family sampler: {self.num_components} values of z gave draws {draws}")

    def check_scale(self) -> None:
        """Data in another unit: the same fit, whose log-likelihood is less by the logarithm of the unit for every cell."""
        x = np.asarray(self.raw.x)
        seen = np.ones(x.shape) if self.raw.mask is None else np.broadcast_to(np.asarray(self.raw.mask), x.shape)
        for scale in _SCALES:
            got = self.of(dataclasses.replace(self.raw, x=x * scale))["log p at the answer"]
            expected = self.numbers["log p at the answer"] - np.log(scale) * np.sum(seen, axis=-1)[:, None]
            close("family scale", got, expected, 1e4 * self.rtol, f"log p of the data times {scale:.3g}")

    def check_constant(self) -> None:
        """All rows alike: nothing is divided by zero, the M-step's answer is finite and so is log p there."""
        first = jax.tree.map(lambda a: np.repeat(np.asarray(a)[:1], self.rows, axis=0), self.raw)
        got = self.of(first)
        for name in ("updated", "log p at the answer"):
            if not all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(got[name])):
                raise AssertionError(f"law family constant: with all rows alike, {name} is not finite")

    def check_outside(self) -> None:
        """What the host refuses is no silent number in pure code: its density is 0 or NaN, and other rows keep theirs."""
        for value in _ODD_VALUES:
            x = np.array(self.raw.x, float)
            x[0, 0] = value
            mask = None if self.raw.mask is None else np.array(np.broadcast_to(self.raw.mask, x.shape))
            if mask is not None:
                mask[0, 0] = True
            raw = dataclasses.replace(self.raw, x=x, mask=mask)
            try:
                self.family.validate(raw)
            except ValueError:
                pass
            else:
                continue
            got = self.of(raw)["log p"]
            if not np.all(got[0] == -np.inf):
                raise AssertionError(f"law family outside: {value:g} is refused, and yet its log p is {got[0]}, not −∞")
            if np.any(np.isnan(got[1:])):
                raise AssertionError(f"law family outside: {value:g} in one row makes log p of others NaN")

    def check_masked(self) -> None:
        """What a missing cell holds is never read: another row's value, NaN or 1e30, all numbers are the same bits."""
        if "mask" not in self.family.reads:
            return
        x = np.asarray(self.raw.x)
        mask = np.random.default_rng(0).random(x.shape) < 0.75 if self.raw.mask is None else np.asarray(self.raw.mask)
        raw = dataclasses.replace(self.raw, x=np.where(mask, x, self.family.filler), mask=mask)
        look = jax.jit(self._looks)
        expected = jax.device_get(look(raw, self.marginals[0], self.key))
        # A family is handed values in its support: of another row, or what `prepare` makes of any others.
        spoilt = {"another row's value": dataclasses.replace(raw, x=np.where(mask, x, np.flip(raw.x, 0)))}
        for value in (np.nan, 1e30):
            other = dataclasses.replace(raw, x=np.where(mask, x, value))
            spoilt[f"{value:g}"] = layout.normal(other, False, self.family.filler)
        for what, data in spoilt.items():
            got = look(data, self.marginals[0], self.key)
            for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True):
                if not np.array_equal(a, b):
                    name = jax.tree_util.keystr(path)
                    raise AssertionError(f"law family masked: {what} in missing cells changes {name}")

    def _looks(self, raw: Data, marginals: Any, key: jax.Array) -> dict[str, Any]:
        family = self.family.calibrate(raw, None)
        statistics = family.statistics(raw)
        if family.starts_from_rows:
            params = family.start(key, raw, marginals)
        else:
            params = family.maximize(None, family.accumulate(None, statistics, marginals), {})
        stats = family.accumulate(params, statistics, marginals)
        return {
            "stats": stats,
            "log p": family.log_prob(params, statistics),
            "updated": family.maximize(params, stats, {}),
        }


def _take(tree: Any, index: Any) -> Any:
    """Some of the stacked trees."""
    index = np.asarray(index)
    return jax.tree.map(lambda a: a[index], tree)


def _unstack(tree: Any, count: int) -> list[Any]:
    return [_take(tree, i) for i in range(count)]


def _head(raw: Data, count: int) -> Data:
    return jax.tree.map(lambda a: a[:count], raw)


def _turn(family: Family, params: Any, k: int) -> tuple[np.ndarray, Any]:
    """Another order of the members, and the parameters in it; where the family insists on its last, of the others."""
    order = np.roll(np.arange(k), 1)
    try:
        return order, family.take_components(params, order)
    except UnsupportedError:
        order = np.append(np.roll(np.arange(k - 1), 1), k - 1)
        return order, family.take_components(params, order)
