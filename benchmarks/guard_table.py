"""The guard's table: read and written as JSON, compared with what was measured, and printed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Row

MARGIN = 1.3  # of a speed, which noise reaches
COUNT_MARGIN = 1.1  # of a count, which has none

Entries = dict[str, dict[str, Any]]


def read(path: Path) -> Entries:
    """Name of a row to its value, date, version of JAX and number of cores; empty where there is no table yet."""
    return json.loads(path.read_text())["rows"] if path.exists() else {}


def write(path: Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """One row a line, so that a review sees which have changed."""
    lines = [f"  {json.dumps(name)}: {json.dumps(dict(entry))}" for name, entry in sorted(entries.items())]
    path.write_text('{\n "rows": {\n' + ",\n".join(lines) + "\n }\n}\n")


def updated(entries: Entries, rows: Iterable[Row], facts: Mapping[str, Any], complete: bool) -> Entries:
    """The entries with what was measured now; of a complete run what no longer exists is dropped."""
    new = {
        row.measure: {"value": round(row.figure, 3) if row.figure_unit else row.figure, **facts}
        for row in rows
        if not row.error and row.figure is not None and math.isfinite(row.figure)
    }
    return new if complete else {**entries, **new}


def judge(rows: Iterable[Row], entries: Mapping[str, Mapping[str, Any]], margin: float = MARGIN) -> None:
    """Say of every row whether it is worse than the table's by more than its margin: `passed`, and in words.

    Args:
        rows: what was measured; a ratio has the unit "x", a count none. Larger is worse.
        entries: name to the table's entry, which has a ``value``.
        margin: how many times the table's value a ratio may be; a count may be `COUNT_MARGIN` times its own.
    """
    for row in rows:
        entry = entries.get(row.measure)
        row.passed, verdict = _verdict(row, entry, margin if row.figure_unit == "x" else COUNT_MARGIN)
        row.details |= {"verdict": verdict, "entry": entry}


def _verdict(row: Row, entry: Mapping[str, Any] | None, margin: float) -> tuple[bool, str]:
    if row.error or row.figure is None or not math.isfinite(row.figure):
        return False, "ERROR: " + ("; ".join(row.notes) or "no figure")
    if entry is None:
        return False, "MISSING from the table (--update writes it)"
    times = row.figure / entry["value"] if entry["value"] else math.inf if row.figure else 1.0
    if times > margin:
        return False, f"WORSE: {times:.2f}x the table's, {margin:g}x is allowed"
    if times < 1 / margin:
        return True, f"better: {times:.2f}x the table's (--update keeps it so)"
    return True, "ok"


_HEADER = ("row", "what", "beside", "time", "beside it", "now", "table", "verdict")


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3g} s" if value >= 0.1 else f"{1e3 * value:.3g} ms"


def _value(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:.2f}{unit}" if unit else f"{value:g}"


def table(rows: Sequence[Row]) -> str:
    """One line per row: what was measured, the ratio or count now and in the table, and the verdict."""
    lines = [_HEADER]
    for row in rows:
        entry = row.details.get("entry") or {}
        lines.append(
            (
                row.measure,
                row.details.get("words", ""),
                row.opponent,
                _seconds(row.ours),
                _seconds(row.theirs),
                _value(row.figure, row.figure_unit),
                _value(entry.get("value"), row.figure_unit),
                row.details.get("verdict", ""),
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(_HEADER))]
    text, last = (0, 1, 2), len(_HEADER) - 1

    def join(line: Sequence[str]) -> str:
        cells = (c.ljust(w) if i in text or i == last else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths)))
        return "  ".join(cells).rstrip()

    body = [join(line) for line in lines]
    return "\n".join([body[0], "-" * max(map(len, body)), *body[1:]])


def remarks(rows: Sequence[Row], entries: Entries, facts: Mapping[str, Any]) -> list[str]:
    """What to know when comparing: where the table's rows were measured with another JAX or on other cores."""
    found = []
    for name, words in (("jax", "JAX"), ("cores", "cores:")):
        own = {str(entries[row.measure][name]) for row in rows if row.measure in entries}
        if own - {str(facts[name])}:
            found.append(f"the table was measured with {words} {', '.join(sorted(own))}, this is {facts[name]}")
    if absent := sorted(set(entries) - {row.measure for row in rows}):
        found.append(f"{len(absent)} rows of the table were not measured: {', '.join(absent[:8])}")
    return found
