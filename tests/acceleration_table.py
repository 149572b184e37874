"""Every row of the table of models from given starts: the accelerators against EM, one line each.

    python tests/acceleration_table.py [pattern] [--starts S] [--part I/N] [--steps M]

Per accelerator: by how much of EM's objective its own differs, its E-steps, and the lowest difference of its trace. A start
is a MISS where an objective falls by more than 1e-9 or ends lower than EM's by more than 1e-6 of it. Float64; a run ends
where a step gains at most 1e-12 per example, or no more than the rounding of the objective.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from test_laws import MODELS

import jaxem
from jaxem.model import UnsupportedError, as_data
from jaxem.status import Status

ACCELERATORS = {
    "Squarem": jaxem.Squarem(),
    "Squarem(scheme=3)": jaxem.Squarem(scheme=3),
    "Anderson": jaxem.Anderson(),
}
FALL, WORSE = 1e-9, 1e-6
STOPPING = jaxem.RelativeGain(1e-12)


@dataclasses.dataclass
class Outcome:
    """How one algorithm ended from one start; lowest: the minimum of the differences of its trace."""

    objective: float
    steps: int
    status: str
    lowest: float

    def above(self, plain: Outcome) -> float:
        """How much higher than EM, of EM's objective."""
        return (self.objective - plain.objective) / max(abs(plain.objective), 1e-300)

    def passes(self, plain: Outcome) -> bool:
        return self.lowest >= -FALL and self.above(plain) >= -WORSE


def outcomes(name: str, starts: int, max_steps: int, only: str = "") -> Iterator[dict[str, Outcome]]:
    """EM and the accelerators from each start of a row; float64 must be on. Each algorithm is compiled once."""
    model, data = MODELS[name]
    raw = as_data(data) if hasattr(data, "shape") else data
    raw = jax.tree.map(lambda a: jnp.asarray(a, float) if np.issubdtype(np.asarray(a).dtype, np.floating) else a, raw)
    model = model.specialize(raw)
    model, prepared = jax.jit(lambda m: (own := m.calibrate(raw), own.prepare(raw)))(model)
    start = jax.jit(lambda key: model.init(key, raw))
    programs = {"EM": _program(model, prepared, jaxem.EM(), max_steps)}
    programs |= {n: _program(model, prepared, a, max_steps) for n, a in ACCELERATORS.items() if only in n}
    for seed in range(starts):
        params = start(jax.random.key(seed))
        yield {algorithm: program(params) for algorithm, program in programs.items()}


def _program(model: Any, data: Any, algorithm: Any, max_steps: int) -> Callable[[Any], Outcome]:
    control = jaxem.Control(STOPPING, max_steps)

    @jax.jit
    def fitted(params: Any) -> Any:
        return jaxem.run(model, params, data, algorithm=algorithm, control=control, trace_size=max_steps + 1)

    def outcome(params: Any) -> Outcome:
        result = fitted(params)
        trace = np.asarray(result.trace)
        falls = np.diff(trace[~np.isnan(trace)])
        return Outcome(
            float(result.objective),
            int(result.steps),
            Status(int(result.status)).name.lower(),
            float(np.min(falls, initial=np.inf)),
        )

    return outcome


def line(name: str, found: dict[str, Outcome]) -> str:
    plain = found["EM"]
    passed = all(one.passes(plain) for algorithm, one in found.items() if algorithm != "EM")
    parts = [f"EM {plain.objective:.8g} in {plain.steps} ({plain.status})"]
    for algorithm, one in found.items():
        if algorithm != "EM":
            parts.append(f"{algorithm} {one.above(plain):+.1e} in {one.steps} ({one.status}), min {one.lowest:.0e}")
    return f"{'PASS' if passed else 'MISS'} | {name} | " + " | ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pattern", nargs="?", default="", help="a regular expression: rows whose name it matches")
    parser.add_argument("--starts", type=int, default=1, help="starts of each row, by the model's own init")
    parser.add_argument("--part", default="0/1", help="I/N: every N-th row, from the I-th")
    parser.add_argument("--steps", type=int, default=10_000, help="E-steps at most")
    parser.add_argument("--only", default="", help="accelerators whose name contains this")
    options = parser.parse_args()
    first, every = (int(number) for number in options.part.split("/"))
    names = [name for name in MODELS if re.search(options.pattern, name)][first::every]
    misses = rows = 0
    for name in names:
        try:
            for seed, found in enumerate(outcomes(name, options.starts, options.steps, options.only)):
                said = line(name if options.starts == 1 else f"{name}, start {seed}", found)
                rows, misses = rows + 1, misses + said.startswith("MISS")
                print(said, flush=True)
        except (ValueError, UnsupportedError) as refusal:
            print(f"SKIP | {name} | {refusal}", flush=True)
    print(f"{rows} starts of {len(names)} rows, {misses} missed", flush=True)
    sys.exit(1 if misses else 0)


if __name__ == "__main__":
    with jax.enable_x64(True):
        main()
