"""The command: what it writes and prints, and one line for whatever is wrong."""

import csv
import dataclasses
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem import cli, datasets, io, program_cache, tables
from jaxem.cli import arguments, console, files, fitting, inputs, models, process

FILES = ["assignments.csv", "fit.json", "fit.npz", "fit.png"]


def run(*args, status=0):
    assert cli.main([str(arg) for arg in args]) == status


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Nothing is written into the checkout or the home of who runs the tests; tables are as wide as outside a terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")


def read_json(path):
    with open(path) as file:
        return json.load(file)


def write_rows(path, columns, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """One choice between two numbers of components, and all that was said about it."""
    output = tmp_path_factory.mktemp("fitted") / "out"
    command = ["fit", "faithful", "--components", "1:2", "--starts", "3", "--output", str(output), "--no-cache"]
    result = subprocess.run([sys.executable, "-m", "jaxem.cli", *command], capture_output=True, text=True, check=True)
    return output, result.stdout, result.stderr


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def test_the_files(fitted):
    output, _, _ = fitted
    assert sorted(path.name for path in output.iterdir()) == FILES


def test_what_is_printed(fitted):
    _, out, err = fitted
    assert "faithful: 272 rows, 2 columns (eruptions, waiting)" in out
    assert "*    2        -1130.264          11       2322.192     100%  converged" in out
    assert "converged: the stopping rule is met" in out
    assert "54.479" in out
    assert "wrote fit.npz, fit.json, assignments.csv, fit.png in" in out
    assert [line.split(" ")[1] for line in err.splitlines()] == ["reading", "fitting", "writing"]


def test_the_result_can_be_loaded(fitted):
    output, _, _ = fitted
    result = io.load(output / "fit.npz")
    assert result.converged
    assert result.params.likelihood.mean.dtype == np.float64
    np.testing.assert_allclose(result.log_likelihood, -1130.264, atol=1e-3)


def test_the_json_is_the_result(fitted):
    output, _, _ = fitted
    summary = json.loads((output / "fit.json").read_text())
    result = io.load(output / "fit.npz")
    assert summary["jaxem"] == jaxem.__version__
    assert summary["jax"] == jax.__version__
    assert summary["status"]["converged"] is True
    assert summary["components"] == 2
    assert summary["bic"] == result.bic
    assert summary["parameters"]["likelihood"]["mean"] == result.params.likelihood.mean.tolist()
    assert summary["starts"]["count"] == 3
    assert summary["settings"]["starts"] == 3
    assert [row["components"] for row in summary["selection"]["candidates"]] == [1, 2]


def test_the_assignments_are_the_posterior(fitted):
    output, _, _ = fitted
    header, *rows = read_csv(output / "assignments.csv")
    assert header == ["row", "component", "probability", "responsibility_0", "responsibility_1"]
    values = np.array(rows, float)
    np.testing.assert_array_equal(values[:, 0], np.arange(272))
    np.testing.assert_allclose(values[:, 3:].sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(values[:, 2], values[:, 3:].max(axis=1))
    result = io.load(output / "fit.npz")
    with jax.enable_x64(True):
        posterior = result.model.posterior(result.params, datasets.load("faithful").x)
    np.testing.assert_allclose(values[:, 3:], posterior, rtol=1e-5, atol=1e-8)


def test_the_picture_is_one(fitted):
    output, _, _ = fitted
    assert (output / "fit.png").read_bytes().startswith(b"\x89PNG")


def test_frequencies_are_weights_and_the_default_directory_is_named_after_the_data(tmp_path, capsys):
    run("fit", "hasselblad_deaths", "--model", "poisson", "--components", "2", "--starts", "2", "--no-cache")
    result = io.load(tmp_path / "jaxem-hasselblad_deaths" / "fit.npz")
    assert result.weight == 1096
    np.testing.assert_allclose(result.log_likelihood, -1989.946, atol=0.2)
    out = capsys.readouterr().out
    assert "weights with sum 1096" in out
    assert "rate" in out


def test_the_process_is_left_as_it_was(tmp_path, capsys):
    (tmp_path / "data.csv").write_text("a\n1\n2\n4\n")
    before = dict(jax.config.values), warnings.showwarning, list(warnings.filters)
    run("fit", "data.csv", "--components", "1", "--starts", "1")
    assert jnp.ones(1).dtype == jnp.float32
    assert (dict(jax.config.values), warnings.showwarning, list(warnings.filters)) == before


def test_warnings_of_the_fit_are_lines(tmp_path, capsys):
    (tmp_path / "data.csv").write_text("a,b\n1,5\n2,5\n4,5\n9,5\n")
    run("fit", "data.csv", "--components", "1", "--starts", "1", "--max-steps", "1", "--tol", "0", "--no-cache")
    err = capsys.readouterr().err
    assert "jaxem: warning: constant columns carry no information: 1" in err
    assert "Traceback" not in err


def test_a_fit_that_fails_is_one_line_and_status_1(capsys, monkeypatch):
    def fail(*args, **kwargs):
        raise jaxem.FitError("no start is usable: 64 non-finite")

    monkeypatch.setattr(fitting, "compute", fail)
    run("fit", "faithful", "--no-cache", status=1)
    assert capsys.readouterr().err.splitlines()[-1] == "jaxem: error: no start is usable: 64 non-finite"
    assert not os.path.exists("jaxem-faithful")


def test_an_interrupt_while_writing_leaves_whole_files(tmp_path, capsys, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "json_bytes", interrupted)
    (tmp_path / "data.csv").write_text("a\n1\n2\n4\n")
    run("fit", "data.csv", "--components", "1", "--starts", "1", "--output", "out", "--no-cache", status=130)
    assert os.listdir("out") == ["fit.npz"]
    assert isinstance(io.load("out/fit.npz"), jaxem.Result)
    assert "interrupted" in capsys.readouterr().err


def test_without_matplotlib_there_is_a_line_instead_of_a_picture(tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    (tmp_path / "data.csv").write_text("a\n1\n2\n4\n")
    run("fit", "data.csv", "--components", "1", "--starts", "1", "--output", "out", "--no-cache")
    assert sorted(os.listdir("out")) == FILES[:3]
    assert 'pip install "jaxem[plot]"' in capsys.readouterr().out


def test_hidden_markov_model_of_several_sequences(tmp_path, capsys):
    """Rows of a sequence need not be adjacent, and every row is written where the file has it."""
    rows = [(name, value) for step in range(8) for name, value in (("b", step // 4 * 20), ("a,1", 20 - step // 4 * 20))]
    write_rows("data.csv", ["who", "y"], rows)
    run("fit", "data.csv", "--model", "hmm", "--emission", "poisson", "--sequence", "who", "--components", "2",
        "--starts", "4", "--output", "out", "--no-cache")  # fmt: skip
    out = capsys.readouterr().out
    assert "data: 16 rows, 1 column (y), 2 sequences" in out
    assert "Poisson hidden Markov model, 2 states" in out
    assert re.search(r"^state +initial +0 +1 +rate$", out, flags=re.M)
    header, *assigned = read_csv("out/assignments.csv")
    assert header == ["row", "sequence", "state", "probability", "posterior_0", "posterior_1"]
    assert [row[:2] for row in assigned] == [[str(i), name] for i, (name, _) in enumerate(rows)]
    result = io.load("out/fit.npz")
    low = str(int(result.params.likelihood.rate[1, 0] < result.params.likelihood.rate[0, 0]))
    assert [row[2] == low for row in assigned] == [value == 0 for _, value in rows]
    assert all(float(row[3]) > 0.99 for row in assigned)
    np.testing.assert_allclose(result.params.latent.initial, [0.5, 0.5], atol=1e-6)
    assert read_json("out/fit.json")["data"]["sequences"] == 2
    assert sorted(os.listdir("out")) == FILES


def test_hidden_markov_model_of_the_earthquakes(capsys):
    """Zucchini & MacDonald, as the reference cases have it."""
    run("fit", "earthquakes", "--model", "hmm", "--emission", "poisson", "--components", "1:2", "--starts", "4",
        "--output", "out", "--no-cache")  # fmt: skip
    summary = read_json("out/fit.json")
    assert summary["components"] == 2
    np.testing.assert_allclose(summary["log_likelihood"], -341.8787, atol=1e-3)
    np.testing.assert_allclose(sorted(np.ravel(summary["parameters"]["likelihood"]["rate"])), [15.42, 26.02], atol=0.02)
    assert "*    2         -341.879           5        707.122" in capsys.readouterr().out


def test_left_to_right_never_returns():
    write_rows("data.csv", ["y"], [(value,) for value in [0, 0.1, 0, 5, 5.1, 5, 9, 9.1, 9.05]])
    run("fit", "data.csv", "--model", "hmm", "--left-to-right", "--covariance", "tied", "--components", "2,3",
        "--starts", "16", "--output", "out", "--no-cache")  # fmt: skip
    transition = io.load("out/fit.npz").params.latent.transition
    assert np.all(np.tril(transition, -1) == 0)
    assert [row[2] for row in read_csv("out/assignments.csv")[1:]] == list("000111222")


LOW, HIGH = (1, 2, 3, 2, 1, 2), (400, 410, 390, 420, 400, 380)

MIXTURES = [
    (["gamma"], "Gamma", ["shape", "rate"]),
    (["exponential"], "Exponential", ["rate"]),
    (["lognormal"], "LogNormal", ["mean", "variance"]),
    (["inverse-gaussian"], "InverseGaussian", ["mean", "shape"]),
    (["geometric"], "Geometric", ["prob"]),
    (["binomial", "--trials", "500"], "Binomial", ["prob"]),
    (["negative-binomial"], "NegativeBinomial", ["mean", "size"]),
    (["zero-inflated-poisson"], "ZeroInflated", ["inflation", "rate"]),
    (["student-t", "--covariance", "tied"], "StudentT", ["dof", "mean", "scale"]),
]


@pytest.mark.parametrize(("model", "name", "parameters"), MIXTURES, ids=lambda value: str(value[0]))
def test_every_mixture_finds_two_groups(capsys, model, name, parameters):
    write_rows("data.csv", ["y"], [(value,) for value in (*LOW, *HIGH)])
    run("fit", "data.csv", "--model", *model, "--components", "2", "--starts", "2", "--output", "out", "--no-cache")
    assert sorted(os.listdir("out")) == FILES
    out = capsys.readouterr().out
    structure = ", tied covariance" if "tied" in model else ""
    assert f"{name} mixture, 2 components{structure}, fitted to 12 rows" in out
    assert re.search(rf"^component +weight +{' +'.join(parameters)}$", out, flags=re.M)
    assigned = [row[1] for row in read_csv("out/assignments.csv")[1:]]
    assert assigned in (list("000000111111"), list("111111000000"))
    summary = read_json("out/fit.json")
    np.testing.assert_allclose(summary["parameters"]["latent"]["weights"], 0.5, atol=0.05)
    first = int(assigned[0])
    result = io.load("out/fit.npz")
    with jax.enable_x64(True):
        mean = np.asarray(result.model.likelihood.mean(result.params.likelihood, jaxem.Data()))[:, 0]
    np.testing.assert_allclose(mean[[first, 1 - first]], [np.mean(LOW), 400], rtol=0.1)


SHARES = [
    (
        "beta",
        "Beta",
        ["a", "b", "a", "b"],
        [(0.9, 0.8), (0.8, 0.95), (0.85, 0.7)],
        [(0.1, 0.3), (0.2, 0.1), (0.3, 0.2)],
    ),
    (
        "dirichlet",
        "Dirichlet",
        ["concentration", "concentration"],
        [(0.875, 0.125), (0.75, 0.25), (0.9375, 0.0625)],
        [(0.125, 0.875), (0.25, 0.75), (0.0625, 0.9375)],
    ),
    (
        "von-mises-fisher",
        "VonMisesFisher",
        ["concentration", "mean", "mean"],
        [(1, 0), (0.8, 0.6), (0.96, -0.28)],
        [(-1, 0), (-0.8, 0.6), (-0.96, 0.28)],
    ),
]


@pytest.mark.parametrize(("model", "name", "parameters", "high", "low"), SHARES, ids=lambda value: str(value)[:16])
def test_shares_and_directions(capsys, model, name, parameters, high, low):
    write_rows("data.csv", ["u", "v"], [*high, *low])
    run("fit", "data.csv", "--model", model, "--components", "2", "--starts", "2", "--output", "out", "--no-cache")
    out = capsys.readouterr().out
    assert f"{name} mixture, 2 components, fitted to 6 rows" in out
    assert re.search(rf"^component +weight +{' +'.join(parameters)}$", out, flags=re.M)
    assert "".join(row[1] for row in read_csv("out/assignments.csv")[1:]) in ("000111", "111000")
    write_rows("data.csv", ["u", "v"], [*high, (0.9, 1.7)])
    run("fit", "data.csv", "--model", model, "--no-cache", status=2)
    assert re.search(r"\brow [34]\b|1\.7", capsys.readouterr().err.splitlines()[-1])


def test_multinomial_rows(capsys):
    write_rows("data.csv", ["a", "b", "c"], [(8, 1, 1), (16, 2, 2), (1, 8, 1), (2, 14, 3), (9, 0, 1), (1, 9, 0)])
    run("fit", "data.csv", "--model", "multinomial", "--components", "2", "--starts", "4", "--output", "out",
        "--no-cache")  # fmt: skip
    assert re.search(r"^component +weight +prob +prob +prob$", capsys.readouterr().out, flags=re.M)
    assert "".join(row[1] for row in read_csv("out/assignments.csv")[1:]) in ("001101", "110010")
    write_rows("data.csv", ["a", "b"], [(1, 2), ("", 3), ("", "")])
    run("fit", "data.csv", "--model", "multinomial", "--missing", "--no-cache", status=2)
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith("of a row --model multinomial-mixture takes all or nothing")
    assert "row 1: column 'a' is missing and others are not" in error


def test_the_latent_classes_of_values(capsys):
    """Goodman (1974), as poLCA has it."""
    run("fit", "values", "--model", "latent-class", "--components", "2", "--starts", "4", "--tol", "1e-9",
        "--output", "out", "--no-cache")  # fmt: skip
    assert read_json("out/fit.json")["log_likelihood"] == pytest.approx(-504.46767, abs=1e-4)


def test_latent_classes_of_words(capsys):
    """Words and numbers become codes; what is printed and written has the words."""
    rows = 6 * [("yes", 10, "a, b")] + 6 * [("no", 2, "c")] + [("yes", 2, "")]
    write_rows("data.csv", ["item", "score", "letters"], rows)
    run("fit", "data.csv", "--model", "latent-class", "--components", "2", "--starts", "4", "--missing", "--output",
        "out", "--no-cache")  # fmt: skip
    captured = capsys.readouterr()
    assert "1 of 39 cells are missing, in 1 of 13 rows" in captured.err
    assert re.search(r"^component +weight +no +yes +2 +10 +a, b +c$", captured.out, flags=re.M)
    summary = read_json("out/fit.json")
    assert summary["data"]["categories"] == {"item": ["no", "yes"], "score": ["2", "10"], "letters": ["a, b", "c"]}
    prob = np.array(summary["parameters"]["likelihood"]["prob"])
    first = int(prob[1, 2, 0] > prob[0, 2, 0])
    np.testing.assert_allclose(prob[first, 2], [1, 0], atol=1e-3)
    imputed = read_csv("out/imputed.csv")
    assert imputed[:-1] == [["item", "score", "letters"], *([str(cell) for cell in row] for row in rows[:-1])]
    assert imputed[-1][:2] == ["yes", "2"]
    assert imputed[-1][2] in ("a, b", "c")
    assert sorted(os.listdir("out")) == sorted([*FILES, "imputed.csv"])


def test_latent_classes_need_categories(capsys):
    write_rows("data.csv", ["a", "b", "id"], [(1, 0.5, f"r{i}") for i in range(120)])
    run("fit", "data.csv", "--model", "latent-class", "--columns", "b", "--no-cache", status=2)
    assert "column 'b': '0.5' in row 0 (line 2) is neither a word nor a whole number" in capsys.readouterr().err
    run("fit", "data.csv", "--model", "latent-class", "--components", "1", "--starts", "1", "--no-cache")
    notes = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert notes[0].startswith("jaxem: note: column 'b' is left out: '0.5' in row 0")
    assert notes[1] == "jaxem: note: column 'id' is left out: it has 120 different values, more than 100 categories"


REGRESSIONS = [
    ("linear", [[1.0, 2.0], [30.0, -1.0]], lambda mean: mean),
    ("poisson", [[0.0, 0.3], [5.0, 0.1]], lambda mean: np.round(np.exp(mean))),
]


@pytest.mark.parametrize(
    ("family", "lines", "response"), REGRESSIONS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_regressions(capsys, family, lines, response):
    """Two lines through every place; text columns are left out."""
    z, t = np.arange(40) % 2, np.arange(40) // 2 / 3
    y = response(np.array(lines)[z, 0] + np.array(lines)[z, 1] * t)
    write_rows("data.csv", ["y", "word", "t"], [(a, "w", b) for a, b in zip(y, t, strict=True)])
    run("fit", "data.csv", "--model", "regression-mixture", "--family", family, "--response", "y", "--components", "2",
        "--starts", "4", "--output", "out", "--no-cache")  # fmt: skip
    out = capsys.readouterr().out
    assert "data: 40 rows, response y given t" in out
    assert re.search(rf"^component +weight +intercept +t{' +sd' if family == 'linear' else ''}$", out, flags=re.M)
    assigned = np.array([int(row[1]) for row in read_csv("out/assignments.csv")[1:]])
    summary = read_json("out/fit.json")
    assert summary["data"]["inputs"] == ["t"]
    coefficients = np.array(summary["parameters"]["likelihood"]["coefficients"])[:, 0]
    order = np.argsort(coefficients[:, 0])
    np.testing.assert_allclose(coefficients[order], lines, atol=1e-3 if family == "linear" else 0.3)
    assert np.mean(order[z] == assigned) > 0.9
    assert sorted(os.listdir("out")) == FILES


def test_experts_and_gates(capsys):
    """Which line a row is on, and which class, depends on an input."""
    t = np.linspace(-3, 3, 40)
    y = np.where(t < 0, 1 - t, 30 + 2 * t) + 0.1 * np.cos(40 * t)
    write_rows("data.csv", ["t", "y", "word"], zip(t, y, np.where(t + np.sin(9 * t) < 0, "no", "yes"), strict=True))
    run("fit", "data.csv", "--model", "experts", "--response", "y", "--components", "2", "--starts", "4", "--output",
        "out", "--no-cache")  # fmt: skip
    assert re.search(r"^component +intercept +t +intercept +t +sd$", capsys.readouterr().out, flags=re.M)
    assigned = "".join(row[1] for row in read_csv("out/assignments.csv")[1:])
    assert assigned in (20 * "0" + 20 * "1", 20 * "1" + 20 * "0")
    assert sorted(os.listdir("out")) == FILES
    run("fit", "data.csv", "--model", "latent-class", "--columns", "word", "--gate", "t", "--components", "2",
        "--starts", "4", "--output", "gated", "--no-cache")  # fmt: skip
    out = capsys.readouterr().out
    assert "data: 40 rows, 1 column (word) given t" in out
    assert re.search(r"^component +intercept +t +no +yes$", out, flags=re.M)
    summary = read_json("gated/fit.json")
    assert np.shape(summary["parameters"]["latent"]["gate"]) == (2, 2)
    assert summary["data"]["inputs"] == ["t"]
    assert sorted(os.listdir("gated")) == FILES


def test_mixture_of_factor_analyzers(capsys):
    run("fit", "iris", "--model", "factor-analyzers", "--factors", "1", "--components", "2", "--starts", "2",
        "--max-steps", "50", "--output", "out", "--no-cache")  # fmt: skip
    out = capsys.readouterr().out
    assert re.search(r"^component +weight" + 4 * " +mean +sd" + "$", out, flags=re.M)
    assert [row[1] for row in read_csv("out/assignments.csv")[1:]][:50] in (50 * ["0"], 50 * ["1"])
    assert np.shape(read_json("out/fit.json")["parameters"]["likelihood"]["loadings"]) == (2, 4, 1)
    assert sorted(os.listdir("out")) == FILES


def test_noise_takes_what_fits_nowhere(capsys):
    """Two clusters, and rows far from both; the noise has its name wherever components have numbers."""
    rng = np.random.default_rng(0)
    far = [(-50, 40), (60, -30), (10, 70), (-20, -60), (70, 60), (-60, 0)]
    x = np.concatenate([rng.normal(size=(40, 2)), rng.normal(size=(30, 2)) + 25, far])
    write_rows("data.csv", ["a", "b"], x)
    run("fit", "data.csv", "--noise", "--components", "1,2", "--starts", "8", "--output", "out", "--no-cache")
    out = capsys.readouterr().out
    assert "smallest BIC: Gaussian mixture, 2 components and noise, full covariance" in out
    assert re.search(r"^\*    2 +-[\d.]+ +12 ", out, flags=re.M)
    assert re.search(r"^component +weight +mean +sd +mean +sd$", out, flags=re.M)
    assert re.search(r"^    noise +0\.0\d+$", out, flags=re.M)
    assert "noise is uniform over a -60 to 70, b -60 to 70" in out
    header, *rows = read_csv("out/assignments.csv")
    assert header[3:] == ["responsibility_0", "responsibility_1", "responsibility_noise"]
    assigned = [row[1] for row in rows]
    assert assigned[70:] == 6 * ["noise"]
    assert assigned[:70] in (40 * ["0"] + 30 * ["1"], 40 * ["1"] + 30 * ["0"])
    summary = read_json("out/fit.json")
    assert summary["components"] == 2
    assert summary["noise"] == {"component": 2, "box": {"a": [-60, 70], "b": [-60, 70]}}
    assert np.shape(summary["parameters"]["likelihood"]["mean"]) == (2, 2)
    np.testing.assert_allclose(summary["parameters"]["latent"]["weights"][2], 6 / 76, atol=0.01)
    assert [row["components"] for row in summary["selection"]["candidates"]] == [1, 2]
    assert sorted(os.listdir("out")) == FILES


def test_an_empty_noise_is_called_so(capsys):
    write_rows("data.csv", ["y"], [(value,) for value in np.linspace(-1, 1, 20) ** 3])
    run("fit", "data.csv", "--noise", "--components", "1", "--starts", "1", "--max-steps", "1", "--output", "out",
        "--no-cache")  # fmt: skip
    out = capsys.readouterr().out
    assert "Gaussian mixture, 1 component and noise, full covariance, fitted to 20 rows" in out
    result = io.load("out/fit.npz")
    assert str(dataclasses.replace(result, empty=(1,))).splitlines()[3] == "empty components: noise"


def test_columns_of_several_kinds(capsys):
    """Numbers, counts, words and codes; every column is printed, filled in and drawn as what it holds."""
    rng = np.random.default_rng(0)
    z = np.arange(60) % 2
    size, visits = 10 * z + rng.normal(size=60), rng.poisson(np.array([1, 20])[z])
    rows = [list(row) for row in zip(size, np.array(["no", "yes"])[z], visits, 3 + 2 * z, strict=True)]
    rows[1][1], rows[2][0], rows[5][2] = "", "NA", ""
    write_rows("data.csv", ["size", "smokes", "visits", "ward"], rows)
    run("fit", "data.csv", "--model", "mixed", "--counts", "visits", "--categories", "3", "--components", "1,2",
        "--starts", "4", "--missing", "--output", "out", "--no-cache")  # fmt: skip
    captured = capsys.readouterr()
    assert "only the values" not in captured.err
    assert "data: 60 rows, 4 columns (size, smokes, visits, ward)" in captured.out
    assert "Gaussian × Poisson × Categorical mixture, 2 components, full covariance, fitted to 60 rows" in captured.out
    assert re.search(r"^ +size +smokes +visits +ward$", captured.out, flags=re.M)
    assert re.search(r"^component +weight +mean +sd +no +yes +rate +3 +5$", captured.out, flags=re.M)
    assigned = "".join(row[1] for row in read_csv("out/assignments.csv")[1:])
    assert assigned in (30 * "01", 30 * "10")
    first = int(assigned[0])
    summary = read_json("out/fit.json")
    assert summary["data"]["counts"] == ["visits"]
    assert summary["data"]["categories"] == {"smokes": ["no", "yes"], "ward": ["3", "5"]}
    likelihood = summary["parameters"]["likelihood"]
    seen = [[size[k::2][np.arange(30) != 1 if k == 0 else slice(None)].mean()] for k in (0, 1)]
    np.testing.assert_allclose(np.array(likelihood["numbers"]["mean"])[[first, 1 - first]], seen, atol=1e-5)
    np.testing.assert_allclose(np.array(likelihood["counts"]["rate"])[first, 0], visits[::2].mean(), atol=1e-3)
    np.testing.assert_allclose(np.array(likelihood["categories"]["prob"])[first], np.eye(2)[[0, 0]], atol=1e-6)
    header, *imputed = read_csv("out/imputed.csv")
    assert header == ["size", "smokes", "visits", "ward"]
    assert imputed[1][1:] == ["yes", str(visits[1]), "5"]
    np.testing.assert_allclose([float(imputed[2][0]), float(imputed[5][2])],
                               [seen[0][0], likelihood["counts"]["rate"][1 - first][0]], atol=1e-3)  # fmt: skip
    assert sorted(os.listdir("out")) == sorted([*FILES, "imputed.csv"])


def test_few_values_may_be_categories(capsys):
    write_rows("data.csv", ["grade", "size"], [(1 + i % 2, i * i % 7) for i in range(12)])
    run("fit", "data.csv", "--model", "mixed", "--components", "1", "--starts", "1", "--output", "out", "--no-cache")
    notes = [line for line in capsys.readouterr().err.splitlines() if "note" in line]
    assert notes[0].startswith("jaxem: note: column 'grade' has only the values 1, 2, fitted as normal numbers")
    assert len(notes) == 2
    assert "counts" not in read_json("out/fit.json")["data"]


def test_logistic_regressions(capsys):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 2))
    y = rng.uniform(size=60) < 1 / (1 + np.exp(-x @ [1, -1]))
    write_rows("data.csv", ["a", "b", "y"], np.column_stack([x, y]))
    run("fit", "data.csv", "--model", "regression-mixture", "--family", "logistic", "--response", "y", "--components",
        "1", "--starts", "1", "--output", "out", "--no-cache")  # fmt: skip
    assert re.search(r"^component +weight +intercept +a +b$", capsys.readouterr().out, flags=re.M)
    assert sorted(os.listdir("out")) == FILES


def test_hidden_markov_model_of_words(capsys):
    write_rows("data.csv", ["weather"], [(word,) for word in 8 * ["rain"] + 8 * ["sun"] + 4 * ["rain"]])
    run("fit", "data.csv", "--model", "hmm", "--emission", "categorical", "--components", "2", "--starts", "4",
        "--output", "out", "--no-cache")  # fmt: skip
    assert re.search(r"^state +initial +0 +1 +rain +sun$", capsys.readouterr().out, flags=re.M)
    states = "".join(row[2] for row in read_csv("out/assignments.csv")[1:])
    assert states in ("00000000111111110000", "11111111000000001111")


@pytest.mark.parametrize("rotation", ["varimax", "promax", "none"])
def test_factor_analysis(capsys, rotation):
    """Whatever the rotation, loadings times scores are what the factors say of the rows, and missing cells hold it."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 2)) @ np.array([[2, 2, 1, 0, 0.1, 0], [0, 0.2, 0, 1, 3, 30]]) + rng.normal(size=(40, 6))
    names = ["a", "b", "c", "d", "e", "f"]
    write_rows("data.csv", names, [["" if (i, j) == (3, 1) else v for j, v in enumerate(r)] for i, r in enumerate(x)])
    run("fit", "data.csv", "--model", "factor-analysis", "--components", "2", "--starts", "2", "--missing",
        "--rotation", rotation, "--output", "out", "--no-cache")  # fmt: skip
    out = capsys.readouterr().out
    assert "Factor analysis, 2 factors, fitted to 40 rows" in out
    assert ("correlations" in out) == (rotation == "promax")
    assert sorted(os.listdir("out")) == sorted([*FILES[1:], "imputed.csv", "loadings.csv", "scores.csv"])
    header, *rows = read_csv("out/loadings.csv")
    assert header == ["column", "factor_0", "factor_1", "standardized_0", "standardized_1", "communality", "noise"]
    assert [row[0] for row in rows] == names
    loadings, standardized, communality, noise = np.split(np.array([row[1:] for row in rows], float), [2, 4, 5], axis=1)
    scores = np.array(read_csv("out/scores.csv")[1:], float)[:, 1:]
    result = io.load("out/fit.npz")
    params = result.params
    with jax.enable_x64(True):
        mask = np.ones(x.shape, bool)
        mask[3, 1] = False
        z = np.asarray(result.model.factor_scores(params, jaxem.Data(x=x, mask=mask)).mean)
    np.testing.assert_allclose(scores @ loadings.T, z @ params.loadings.T, rtol=1e-4, atol=1e-3)
    explained = np.sum(params.loadings**2, axis=1)
    np.testing.assert_allclose(communality[:, 0], explained / (explained + params.noise), rtol=1e-5)
    np.testing.assert_allclose(noise[:, 0], params.noise, rtol=1e-5)
    np.testing.assert_allclose(standardized, loadings / np.sqrt(explained + params.noise)[:, None], rtol=1e-4)
    assert np.all(np.sum(standardized, axis=0) > 0)
    imputed = np.array(read_csv("out/imputed.csv")[1:], float)
    np.testing.assert_allclose(imputed[mask], x[mask], rtol=1e-9)
    np.testing.assert_allclose(imputed[3, 1], (params.mean + params.loadings @ z[3])[1], rtol=1e-6)
    if rotation == "none":
        np.testing.assert_allclose(
            (loadings / noise).T @ loadings, np.diag(np.sum(loadings**2 / noise, axis=0)), atol=1e-3
        )


def test_the_number_of_factors_is_chosen(capsys):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(200, 1)) @ np.full((1, 5), 2.0) + rng.normal(size=(200, 5))
    write_rows("data.csv", list("abcde"), x)
    run("fit", "data.csv", "--model", "ppca", "--components", "1:2", "--starts", "1", "--output", "out", "--no-cache")
    assert re.search(r"^\*    1 ", capsys.readouterr().out, flags=re.M)
    summary = read_json("out/fit.json")
    assert summary["components"] == 1
    assert [row["components"] for row in summary["selection"]["candidates"]] == [1, 2]
    assert summary["factors"]["communalities"] == pytest.approx([0.8] * 5, abs=0.05)


def test_default_numbers_of_factors():
    """As many as the covariances can tell apart: 3 for 6 columns, and 1 where that is none."""
    kind = models.MODELS["factor-analysis"]
    for columns, factors in ((6, (1, 2, 3)), (3, (1,)), (2, (1,))):
        table = tables.Table(np.zeros((9, columns)), tuple(map(str, range(columns))))
        assert inputs.check_components(None, kind, inputs.Input("data", table, jaxem.Data(x=table.x))) == factors


def test_missing_cells(capsys):
    write_rows("data.csv", ["a", "b"], [(0, 0), ("NA", 1), (0, ""), (1, 0), (20, 19), ("nan", 21), (18, "NULL")])
    run("fit", "data.csv", "--model", "poisson", "--components", "2", "--no-cache", status=2)
    error = capsys.readouterr().err.splitlines()[-1]
    assert "row 1 (line 3), column 'a': the value is missing" in error
    assert error.endswith("--missing treats empty cells as missing")
    run("fit", "data.csv", "--model", "poisson", "--components", "2", "--starts", "4", "--missing", "--output", "out",
        "--no-cache")  # fmt: skip
    assert "jaxem: note: 4 of 14 cells are missing, in 4 of 7 rows" in capsys.readouterr().err
    rates = np.sort(io.load("out/fit.npz").params.likelihood.rate, axis=0)
    np.testing.assert_allclose(rates, [[1 / 3, 1 / 3], [19, 20]], atol=1e-3)
    assert read_json("out/fit.json")["data"]["missing_cells"] == 4
    header, *imputed = read_csv("out/imputed.csv")
    assert header == ["a", "b"]
    np.testing.assert_allclose(
        np.array(imputed, float)[[1, 2, 5, 6]], [[1 / 3, 1], [0, 1 / 3], [19, 21], [18, 20]], atol=1e-3
    )


BAD = [
    ([], "the following arguments are required"),
    (["fit"], "the following arguments are required: DATA"),
    (["guess"], "invalid choice: 'guess'"),
    (
        ["fit", "faithful", "--model", "guess"],
        "no model 'guess'; the models are gaussian-mixture, student-t-mixture, poisson-mixture, ",
    ),
    (["fit", "faithful", "--model", "hmm", "--emission", "guess"], "invalid choice: 'guess'"),
    (["fit", "faithful", "--emission", "poisson"], "--emission does not apply to --model gaussian-mixture"),
    (["fit", "faithful", "--sequence", "waiting"], "--sequence does not apply to --model gaussian-mixture"),
    (
        ["fit", "faithful", "--model", "hmm", "--emission", "poisson", "--covariance", "full"],
        "--covariance does not apply to --model hmm --emission poisson",
    ),
    (["fit", "faithful", "--model", "hmm", "--criterion", "icl"], "--criterion icl does not apply to --model hmm"),
    (
        ["fit", "three.csv", "--model", "hmm", "--sequence", "s"],
        "no column 's'; its 2 columns are 'a', 'b'",
    ),
    (
        ["fit", "weighted.csv", "--model", "hmm", "--sequence", "s", "--weights", "w"],
        "the rows of sequence 'u' differ in theirs",
    ),
    (["fit", "faithful", "--model", "binomial", "--no-cache"], "binomial counts need --trials"),
    (["fit", "faithful", "--model", "regression-mixture"], "--model regression-mixture needs --response"),
    (
        ["fit", "faithful", "--model", "regression-mixture", "--response", "x"],
        "no column 'x'; its 2 columns are 'eruptions', 'waiting'",
    ),
    (
        ["fit", "three.csv", "--model", "regression-mixture", "--response", "x"],
        "column 'x' is not there; the columns are a, b",
    ),
    (
        ["fit", "three.csv", "--model", "regression-mixture", "--response", "a", "--columns", "a"],
        "no column of numbers besides the response 'a'",
    ),
    (["fit", "faithful", "--model", "ppca", "--gate", "waiting"], "--gate does not apply to --model ppca"),
    (["fit", "faithful", "--gate", "waiting", "--columns", "waiting"], "cannot explain the others and be fitted too"),
    (["fit", "missing.csv", "--gate", "b", "--missing"], "row 1 (line 3), column 'b': the value is missing (remove"),
    (
        ["fit", "faithful", "--model", "factor-analyzers", "--factors", "2", "--no-cache"],
        "--factors must be below the number of columns, 2; got 2",
    ),
    (
        ["fit", "faithful", "--model", "poisson", "--noise"],
        "--noise does not apply to --model poisson-mixture; it is an option of gaussian-mixture",
    ),
    (
        ["fit", "three.csv", "--noise", "--components", "3"],
        "3 components and noise need at least as many rows; three has 3 rows",
    ),
    (
        ["fit", "three.csv", "--counts", "a"],
        "--counts does not apply to --model gaussian-mixture; it is an option of mixed",
    ),
    (["fit", "three.csv", "--model", "mixed", "--counts", "x"], "column 'x' of counts is not fitted; a, b are"),
    (
        ["fit", "three.csv", "--model", "mixed", "--counts", "a", "--categories", "a"],
        "column 'a' holds categories, so no counts",
    ),
    (
        ["fit", "three.csv", "--model", "mixed", "--columns", "a", "--categories", "b"],
        "column 'b' is to hold categories, but is not fitted",
    ),
    (
        ["fit", "fractions.csv", "--model", "mixed", "--counts", "a", "--components", "1", "--no-cache"],
        "Poisson counts are 0, 1, 2, …; got 0.5 in row 1",
    ),
    (["fit", "faithful", "--response", "waiting"], "--response does not apply to --model gaussian-mixture"),
    (["fit", "faithful", "--rotation", "none"], "--rotation does not apply to --model gaussian-mixture"),
    (
        ["fit", "faithful", "--model", "factor-analysis", "--components", "2"],
        "2 factors need more columns; faithful has 2 (eruptions, waiting)",
    ),
    (["fit", "faithful", "--bogus"], "unrecognized arguments: --bogus"),
    (
        ["fit", "wine"],
        "no file 'wine', nor a data set of that name; the data sets are airquality, earthquakes, faithful",
    ),
    (["fit", "."], ". is not a file"),
    (["fit", "missing.csv"], "column 'b': the value is missing"),
    (["fit", "three.csv", "--columns", "c"], "no column 'c'; its 2 columns are 'a', 'b'"),
    (["fit", "three.csv", "--columns", "a,"], "expected names or numbers parted by commas; got 'a,'"),
    (["fit", "three.csv", "--weights", "w"], "no column 'w'"),
    (["fit", "three.csv", "--components", "4"], "4 components need at least as many rows; three has 3 rows"),
    (["fit", "three.csv", "--output", "three.csv"], "cannot write to --output three.csv: it is not a directory"),
    (["fit", "three.csv", "--output", "three.csv/x"], "cannot write to --output three.csv/x"),
    (["fit", "iris", "--columns", "species"], "'setosa' is not a number"),
    (["fit", "faithful", "--components", "0"], "from 1 to 10000; got '0'"),
    (["fit", "faithful", "--components", "a:b"], "expected a number (3), a range (1:9) or a list (1,2,4); got 'a:b'"),
    (["fit", "faithful", "--components", "9:1"], "the range 9:1 is empty"),
    (["fit", "faithful", "--components", "1:99999999999"], "from 1 to 10000"),
    (["fit", "faithful", "--components", "2,x"], "got '2,x'"),
    (["fit", "faithful", "--starts", "0"], "at least 1; got '0'"),
    (["fit", "faithful", "--starts", "1.5"], "at least 1; got '1.5'"),
    (["fit", "faithful", "--seed", "-1"], "got '-1'"),
    (["fit", "faithful", "--tol=-1e-3"], "at least 0; got '-1e-3'"),
    (["fit", "faithful", "--tol", "nan"], "at least 0; got 'nan'"),
    (["fit", "faithful", "--prior", "inf"], "at least 0; got 'inf'"),
    (["fit", "faithful", "--max-steps", "0"], "at least 1; got '0'"),
    (["fit", "faithful", "--covariance", "round"], "invalid choice: 'round'"),
    (
        ["fit", "faithful", "--model", "poisson", "--covariance", "full"],
        "it is an option of gaussian-mixture, student-t-mixture, mixed, hmm",
    ),
    (["fit", "faithful", "--model", "poisson", "--no-cache"], "Poisson counts are 0, 1, 2, …; got 3.6 in row 0"),
    (["fit", "negative.csv", "--weights", "b", "--no-cache"], "weights must be finite and at least 0"),
]


@pytest.mark.parametrize(("args", "message"), BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_bad_input_is_one_clear_line_and_status_2(tmp_path, capsys, args, message):
    (tmp_path / "three.csv").write_text("a,b\n1,2\n3,4\n5,7\n")
    (tmp_path / "missing.csv").write_text("a,b\n1,2\n3,\n")
    (tmp_path / "fractions.csv").write_text("a,b\n1,2\n0.5,3\n4,1\n")
    (tmp_path / "weighted.csv").write_text("x,s,w\n1,v,1\n1,u,2\n2,u,3\n")
    (tmp_path / "negative.csv").write_text("a,b\n1,-2\n3,1\n")
    run(*args, status=2)
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("jaxem: error: ")]
    assert len(errors) == 1
    assert captured.err.splitlines()[-1] == errors[0]
    assert message in errors[0]
    assert not captured.out


def test_a_file_wins_over_a_data_set_of_its_name(tmp_path):
    (tmp_path / "iris").write_text("1")
    run("fit", "iris", status=2)


def test_default_components_are_no_more_than_the_rows(tmp_path):
    (tmp_path / "data.csv").write_text("a,w\n1,1\n2,0\n4,3\n")
    args = arguments.parser().parse_args(["fit", "data.csv", "--weights", "w"])
    kind = models.choose(args)
    assert inputs.check_components(None, kind, inputs.read(args, kind)) == (1, 2)


@pytest.mark.parametrize(("text", "numbers"), [("3", (3,)), ("1:4", (1, 2, 3, 4)), ("4,1,4", (1, 4)), ("2:2", (2,))])
def test_components(text, numbers):
    assert arguments._components(text) == numbers


def test_models():
    def model(*args, rows=100):
        options = arguments.parser().parse_args(["fit", "faithful", *args])
        table = tables.Table(np.zeros((rows, 1)), ("a",))
        return models.choose(options).build(options, inputs.Input("data", table, jaxem.Data(x=table.x)), 3)

    assert isinstance(model("--covariance", "tied").likelihood.covariance, jaxem.Tied)
    assert model("--covariance", "VEI").likelihood.covariance is jaxem.EigenDecomposed("VEI")
    assert isinstance(model(rows=10**6), jaxem.Chunked)
    assert isinstance(model("--prior", "2"), jaxem.WithPrior)
    assert isinstance(model("--model", "poisson").likelihood, jaxem.Poisson)


def test_a_list_of_the_data_sets(capsys):
    run("datasets")
    out = capsys.readouterr().out
    assert all(name in out for name in datasets.names())


def test_version_and_help(capsys):
    run("--version")
    assert capsys.readouterr().out == f"jaxem {jaxem.__version__} (jax {jax.__version__})\n"
    run("fit", "--help")
    assert "--components" in capsys.readouterr().out


@pytest.mark.parametrize("home", ["file/cache", "relative"])
def test_a_cache_directory_that_cannot_be_written_is_done_without(tmp_path, monkeypatch, home):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / home) if "/" in home else home)
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    assert program_cache.user_directory() is None


def test_compiled_programs_are_kept(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    with process.compilation_cache(True):
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "cache" / "jaxem" / "xla")
    assert jax.config.jax_compilation_cache_dir == before


def test_progress_on_a_terminal_is_one_line_that_is_rewritten(capsys):
    class Terminal:
        text = ""

        def isatty(self):
            return True

        def write(self, text):
            self.text += text

        def flush(self):
            pass

    terminal = Terminal()
    progress = console.Progress(terminal)
    progress.stage("fitting")
    progress.tick()
    progress.clear()
    assert terminal.text == "\r\x1b[Kjaxem: fitting … 0 s" * 2 + "\r\x1b[K"


def test_interrupting_a_fit_is_one_line_and_status_130(tmp_path):
    command = [sys.executable, "-m", "jaxem.cli", "fit", "faithful", "--components", "9", "--starts", "20000"]
    command += ["--tol", "0", "--max-steps", "100000", "--no-cache"]
    # Tests that run in the background hand down an interrupt that is ignored.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    try:
        lines = [process.stderr.readline(), process.stderr.readline()]
        assert "fitting" in lines[1]
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert rest == "jaxem: interrupted\n"
    assert not (tmp_path / "jaxem-faithful").exists()
