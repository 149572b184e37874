"""What is written: the fit for jaxem and for other programs, what it says of every row, and a picture."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import importlib.util
import io
import json
import math
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np

import jaxem
from jaxem.atomic import write_atomically
from jaxem.cli.fitting import Assignment, Factors, Fitted
from jaxem.cli.inputs import Input
from jaxem.cli.models import Kind
from jaxem.io import save
from jaxem.plot.subject import family
from jaxem.result import Result, describe, has_noise, labels, size
from jaxem.select import Selection
from jaxem.status import Status


def write(output: Path, args: argparse.Namespace, kind: Kind, data: Input, fitted: Fitted) -> list[str]:
    """Write every file whole or not at all; returns their names."""
    save(output / "fit.npz", fitted.best)
    written = ["fit.npz"]
    contents = {"fit.json": json_bytes(args, data, fitted)}
    if isinstance(fitted.found, Factors):
        contents |= {"scores.csv": scores(data, fitted.found), "loadings.csv": loadings(data, fitted.found)}
    else:
        contents["assignments.csv"] = assignments(kind, data, fitted.best, fitted.found)
    if fitted.imputed is not None:
        contents["imputed.csv"] = imputed(data, fitted.imputed)
    for name, content in contents.items():
        write_atomically(output / name, lambda file, content=content: _put(file, content))
        written.append(name)
    if importlib.util.find_spec("matplotlib") is not None:
        from jaxem.plot import save_picture

        save_picture(output / "fit.png", _picture(data, fitted))
        written.append("fit.png")
    return written


def _put(file: BinaryIO, content: bytes) -> None:
    file.write(content)


def _picture(data: Input, fitted: Fitted) -> Any:
    from jaxem.plot import fit_picture

    if isinstance(fitted.found, Factors):
        found = {"loadings": fitted.found.standardized}
    else:
        found = {"responsibilities": fitted.found.responsibilities, "assigned": fitted.found.assigned}
    return fit_picture(
        fitted.best if fitted.selection is None else fitted.selection,
        data.data,
        data.columns,
        categories=data.table.categories,
        inputs=data.inputs,
        weights=data.weights,
        title=data.name,
        **found,
    )


def assignments(kind: Kind, data: Input, best: Result, found: Assignment) -> bytes:
    """row, of sequences the sequence, component, its probability, and the probability of every component, as csv."""
    called = labels(best.model)
    r, assigned = data.in_file_order(found.responsibilities), data.in_file_order(found.assigned)
    chosen = np.take_along_axis(r, assigned[:, None], axis=1)
    if data.data.starts is None:
        names = ["row", kind.unit, "probability", *(f"responsibility_{name}" for name in called)]
        leading = [f"{row},{called[k]}" for row, k in enumerate(assigned)]
        return csv_bytes(names, "%.6g", np.hstack([chosen, r]), leading=leading)
    names = ["row", "sequence", kind.unit, "probability", *(f"posterior_{name}" for name in called)]
    groups = np.zeros(len(r), int) if data.table.groups is None else data.table.groups
    words = [_quoted(name) for name in data.table.group_names or ("0",)]
    leading = [f"{row},{words[group]},{state}" for row, (group, state) in enumerate(zip(groups, assigned))]
    return csv_bytes(names, "%.6g", np.hstack([chosen, r]), leading=leading)


def scores(data: Input, found: Factors) -> bytes:
    """row, and its score on every factor, as csv."""
    names = ["row", *(f"factor_{k}" for k in range(found.scores.shape[1]))]
    return csv_bytes(names, "%.6g", found.scores, np.arange(len(found.scores))[:, None])


def loadings(data: Input, found: Factors) -> bytes:
    """Of every column the loadings, those on a column of variance 1, the communality and the noise, as csv."""
    count = found.loadings.shape[1]
    names = ["column", *(f"factor_{k}" for k in range(count)), *(f"standardized_{k}" for k in range(count))]
    values = [found.loadings, found.standardized, found.communalities[:, None], found.noise[:, None]]
    leading = [_quoted(name) for name in data.columns]
    return csv_bytes([*names, "communality", "noise"], "%.6g", np.hstack(values), leading=leading)


def imputed(data: Input, values: np.ndarray) -> bytes:
    """The data with their missing cells filled in, codes by their names, as csv."""
    columns = []
    for column, names in zip(values.T, data.table.categories, strict=True):
        words = [f"{value:.10g}" for value in column] if names is None else [names[int(code)] for code in column]
        columns.append(words)
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([data.columns, *zip(*columns, strict=True)])
    return buffer.getvalue().encode()


def csv_bytes(
    names: Any, pattern: str, values: np.ndarray, integers: np.ndarray | None = None, leading: list[str] | None = None
) -> bytes:
    """A table as csv: text that is ready, then whole numbers, then numbers written by ``pattern``."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(names)
    integers = np.zeros((len(values), 0), int) if integers is None else integers
    line = ",".join(["%d"] * integers.shape[1] + [pattern] * values.shape[1]) + "\n"
    texts = [""] * len(values) if leading is None else [f"{text}," for text in leading]
    for text, whole, row in zip(texts, integers.tolist(), values.tolist(), strict=True):
        buffer.write(text + line % (*whole, *row))
    return buffer.getvalue().encode()


def _quoted(word: str) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="").writerow([word])
    return buffer.getvalue()


def json_bytes(args: argparse.Namespace, data: Input, fitted: Fitted) -> bytes:
    return (json.dumps(_plain(_summary(args, data, fitted)), indent=2, allow_nan=False) + "\n").encode()


def _summary(args: argparse.Namespace, data: Input, fitted: Fitted) -> dict[str, Any]:
    """Everything about a fit that a person, or a program without jaxem, wants to read."""
    best, status = fitted.best, fitted.best.status
    settings = {name: value for name, value in vars(args).items() if name not in ("command", "version")}
    summary = {
        "jaxem": jaxem.__version__,
        "jax": jax.__version__,
        "settings": settings | {"output": None if args.output is None else str(args.output)},
        "data": _data_summary(data) | {"weight": best.weight},
        "model": describe(best.model),
        "components": size(best.model),
        "status": {"name": status.label, "text": status.text, "converged": best.converged, "steps": best.steps},
        "log_likelihood": best.log_likelihood,
        "objective": best.objective,
        "bic": best.bic,
        "aic": best.aic,
        "free_parameters": best.num_free_parameters,
        "degenerate_components": best.degenerate,
        "empty_components": best.empty,
        "parameters": best.params,
        **_noise_summary(data, best),
        "starts": _starts_summary(best),
    }
    if isinstance(fitted.found, Factors):
        skipped = {"scores", "noise"}
        summary["factors"] = {name: value for name, value in vars(fitted.found).items() if name not in skipped}
    if fitted.selection is not None:
        summary["selection"] = _selection_summary(fitted.selection)
    return summary


def _noise_summary(data: Input, best: Result) -> dict[str, Any]:
    """Its density is that of a box: the last of the weights is its own, the other parameters are of the others."""
    if not has_noise(best.model):
        return {}
    noise: Any = family(best)
    box = zip(data.columns, noise.low.tolist(), noise.high.tolist(), strict=True)
    return {"noise": {"component": size(best.model), "box": {name: [low, high] for name, low, high in box}}}


def _data_summary(data: Input) -> dict[str, Any]:
    summary: dict[str, Any] = {"name": data.name, "rows": data.num_rows, "columns": data.columns}
    if data.inputs:
        summary["inputs"] = data.inputs
    if data.data.mask is not None:
        summary["missing_cells"] = int(np.isnan(data.table.x).sum())
    if data.data.starts is not None:
        summary["sequences"] = int(data.data.starts.sum())
    if data.counts:
        summary["counts"] = [data.columns[i] for i in data.counts]
    named = zip(data.columns, data.table.categories, strict=True)
    categories = {name: names for name, names in named if names is not None}
    return summary | ({"categories": categories} if categories else {})


def _starts_summary(result: Result) -> dict[str, Any]:
    starts = result.starts
    values, counts = np.unique(starts.status, return_counts=True)
    return {
        "count": len(starts),
        "share_at_best": result.share_at_best(),
        "status": {Status(int(value)).label: int(count) for value, count in zip(values, counts, strict=True)},
        "objective": starts.objective,
        "steps": starts.steps,
    }


def _selection_summary(selection: Selection) -> dict[str, Any]:
    rows = [
        {
            "components": size(result.model),
            "log_likelihood": result.log_likelihood,
            "free_parameters": result.num_free_parameters,
            selection.criterion: value,
            "status": result.status.label,
        }
        for result, value in zip(selection.results, selection.values, strict=True)
    ]
    return {"criterion": selection.criterion, "chosen": size(selection.best.model), "candidates": rows}


def _plain(value: Any) -> Any:
    """A pytree as JSON has it: fields by name, arrays as nested lists, and null for what is not finite."""
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if hasattr(value, "tolist"):
        return _plain(np.asarray(value).tolist())
    if isinstance(value, (tuple, list)):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
