"""The table that is printed and the JSON that is kept."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.harness import Row

RESULTS = Path(__file__).resolve().parent / "results"
_HEADER = ("measure", "jaxem", "log-lik", "opponent", "time", "log-lik", "figure", "bar", "runs", "")
_PACKAGES = ("jaxem", "jax", "jaxlib", "numpy", "scikit-learn", "gmmx", "pomegranate", "torch")


def table(rows: Sequence[Row]) -> str:
    """One table: medians, final log-likelihood per example beside each time, numbered notes below."""
    notes: list[str] = []
    lines = [_HEADER]
    for row in rows:
        lines.append(_cells(row, _marks(row.notes, notes)))
    widths = [max(len(line[i]) for line in lines) for i in range(len(_HEADER))]
    left = (0, 3)  # text columns; the others are figures

    def join(line: Sequence[str]) -> str:
        cells = (c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(line[:-1], widths)))
        return "  ".join([*cells, line[-1]]).rstrip()

    body = [join(line) for line in lines]
    body.insert(1, "-" * max(len(line) for line in body))
    return "\n".join([*body, "", *(f"[{i}] {note}" for i, note in enumerate(notes, 1))])


def line(row: Row) -> str:
    """A row by itself, for progress."""
    return "  ".join(cell for cell in (*_cells(row, ""), *row.notes) if cell)


def _marks(own: Sequence[str], notes: list[str]) -> str:
    for note in own:
        if note not in notes:
            notes.append(note)
    return "".join(f"[{notes.index(note) + 1}]" for note in own)


def _cells(row: Row, marks: str) -> tuple[str, ...]:
    verdict = {True: "pass", False: "MISS", None: "error" if row.error else "-"}[row.passed]
    return (
        row.measure,
        _figure(row.ours, row.unit),
        _log_likelihood(row.our_log_likelihood),
        row.opponent,
        _figure(row.theirs, row.unit),
        _log_likelihood(row.their_log_likelihood),
        _figure(row.figure, row.figure_unit),
        "" if row.bar is None else str(row.bar),
        row.runs,
        f"{verdict} {marks}".rstrip(),
    )


def _figure(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    if unit == "s" and value < 0.1:
        value, unit = 1e3 * value, "ms"
    digits = str(value) if isinstance(value, int) else f"{value:.3g}" if abs(value) < 1000 else f"{value:.4f}"
    return digits + (unit if unit in ("x", "%", "") else f" {unit}")


def _log_likelihood(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def machine() -> dict[str, Any]:
    """The machine in generic terms: nothing that names it."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def write(suite: str, rows: Sequence[Row], partial: bool) -> str:
    """``results/<suite>-<date>.json``; a run of some measures only gets a name of its own. The name, not the path."""
    RESULTS.mkdir(exist_ok=True)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    content = {
        "suite": suite,
        "date": today,
        "partial": partial,
        "machine": machine(),
        "rows": [{**dataclasses.asdict(row), "bar": None if row.bar is None else str(row.bar)} for row in rows],
    }
    path = RESULTS / f"{suite}{'-partial' if partial else ''}-{today}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    return f"benchmarks/results/{path.name}"
