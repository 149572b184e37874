"""Data larger than memory: memory and time of a pass over a file, one pass of online EM, and reading ahead."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from benchmarks import problems
from benchmarks.harness import Bar, Contestant, Row, Settings, contest, skipped

DESCRIPTION = "data larger than memory: a 4 GB file in bounded memory, one online pass, reading ahead"

JAXEM = Contestant("jaxem", "benchmarks.contestants.jaxem_stream")


def _write(path: Path, n: int, d: int, k: int) -> None:
    """N draws from K Gaussians of unit variance, in a file, block by block.

    Written, not mapped: a process begins with the peak of resident memory of the one that started it.
    """
    rng = np.random.default_rng(0)
    means = rng.normal(0, 2, (k, d)).astype(np.float32)
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (n, d)})
        for begin in range(0, n, 2**18):
            rows = rng.standard_normal((min(2**18, n - begin), d), dtype=np.float32)
            rows += means[rng.integers(0, k, len(rows))]
            file.write(rows.tobytes())


def memmap(settings: Settings) -> list[Row]:
    """A mixture over a file larger than the memory it may take."""
    n, d, k = settings.size(2**26, 20_000), 16, settings.size(16, 3)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        _write(path, n, d, k)
        options = {"path": str(path), "k": k, "covariance": "full", "part": settings.size(2**22, 10_000)}
        own = contest([JAXEM], "memmap", {}, options, min(settings.repeats, 3))["jaxem"]
    size = n * d * 4 / 1e9
    measure = f"a pass over a file of {size:.3g} GB, {n} x {d}, K={k} full"
    if own.problem:
        return [skipped(measure, "", f"jaxem {own.problem}", error=not own.missing)]
    peak, bar = own.facts["peak_bytes"] / 1e9, Bar("<=", 1.0, " GB")
    note = f"of which {own.facts['bytes_before'] / 1e9:.2f} GB before the fit: imports, a sample of rows and the start"
    ours, theirs = own.median() * 1e9, own.median("in_memory") * 1e9
    ratio, slower = ours / theirs, Bar("<=", 1.25, "x")
    return [
        Row(
            measure,
            figure=peak,
            figure_unit="GB",
            bar=bar,
            passed=bar.met(peak),
            notes=[note],
            details={"jaxem": own.details()},
        ),
        Row(
            "  time per row",
            ours=ours,
            unit="ns",
            opponent=f"{options['part']} rows in memory, Chunked",
            theirs=theirs,
            figure=ratio,
            bar=slower,
            our_log_likelihood=own.last("log_likelihood"),
            runs=str(len(own.answers)),
            passed=slower.met(ratio),
            notes=["of one E-step and M-step, the file in the page cache"],
        ),
    ]


def online(settings: Settings) -> list[Row]:
    """One pass of online EM against EM."""
    n, d, k = settings.size(2_000_000, 20_000), settings.size(8, 2), settings.size(8, 2)
    x = problems.mixture(7, n + n // 10, d, k, spread=2.0)
    np.random.default_rng(0).shuffle(x)
    arrays, options = {"x": x[:n], "held_out": x[n:]}, {"k": k, "covariance": "full"}
    own = contest([JAXEM], "online", arrays, options, settings.size(min(settings.repeats, 3), 1))["jaxem"]
    measure = f"online EM, one pass, {n} x {d}, K={k} full"
    if own.problem:
        return [skipped(measure, "", f"jaxem {own.problem}", error=not own.missing)]
    gap, bar = own.facts["optimum"] - own.last("held_out"), Bar("<=", 1e-3)
    passes, fewer = own.last("steps") / own.facts["batch_passes"], Bar("<=", 0.2, "x")
    return [
        Row(
            f"{measure}: held-out log-likelihood",
            ours=own.last("held_out"),
            unit="",
            opponent="EM at its optimum",
            theirs=own.facts["optimum"],
            figure=gap,
            figure_unit="",
            bar=bar,
            runs=str(len(own.answers)),
            passed=bar.met(gap),
            notes=["per example, natural logarithms, rows that no fit has seen"],
            details={"jaxem": own.details()},
        ),
        Row(
            "  E-step passes",
            ours=own.last("steps"),
            unit="",
            opponent="EM, tol=1e-6",
            theirs=own.facts["batch_passes"],
            figure=passes,
            bar=fewer,
            passed=fewer.met(passes),
            notes=[f"EM is within 1e-3 of its optimum after {own.facts['batch_passes_to_bar']} passes"],
        ),
    ]


def prefetch(settings: Settings) -> list[Row]:
    """What the device waits for blocks with and without the thread that reads ahead."""
    n, d, k = settings.size(2**23, 20_000), 16, settings.size(16, 3)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        _write(path, n, d, k)
        options = {"path": str(path), "k": k, "covariance": "full"}
        own = contest([JAXEM], "prefetch", {}, options, settings.repeats)["jaxem"]
    measure = f"a pass with blocks read ahead, {n} x {d}, K={k} full"
    if own.problem:
        return [skipped(measure, "", f"jaxem {own.problem}", error=not own.missing)]
    compute, read = own.median("compute"), own.median("read")
    notes = [f"E-steps of blocks on the device {compute:.3g} s, reading alone {read:.3g} s"]
    return [
        Row(
            measure if name == "ahead" else "  without the thread",
            ours=own.median(name),
            opponent="waiting for blocks",
            theirs=own.median(f"{name}_waited"),
            figure=own.median(name) / compute,
            runs=str(len(own.answers)),
            notes=notes if name == "ahead" else [],
            details={"jaxem": own.details()} if name == "ahead" else {},
        )
        for name in ("ahead", "behind")
    ]


MEASURES = {"memmap": memmap, "online": online, "prefetch": prefetch}
