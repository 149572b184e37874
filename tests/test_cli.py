"""The command: what it writes and prints, and one line for whatever is wrong."""

import csv
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
from jaxem import cli, datasets, io, tables
from jaxem.cli import arguments, console, files, fitting, inputs, models, process

FILES = ["assignments.csv", "fit.json", "fit.npz", "fit.png"]


def run(*args, status=0):
    assert cli.main([str(arg) for arg in args]) == status


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Nothing is written into the checkout, nor into the home of who runs the tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


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


BAD = [
    ([], "the following arguments are required"),
    (["fit"], "the following arguments are required: DATA"),
    (["guess"], "invalid choice: 'guess'"),
    (
        ["fit", "faithful", "--model", "guess"],
        "no model 'guess'; the models are gaussian-mixture, poisson-mixture, hmm",
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
    (["fit", "missing.csv", "--missing"], "column 'b' is missing and others are not"),
    (["fit", "faithful", "--bogus"], "unrecognized arguments: --bogus"),
    (
        ["fit", "wine"],
        "no file 'wine', nor a data set of that name; the data sets are earthquakes, faithful, hasselblad_deaths, iris",
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
        "it is an option of gaussian-mixture, hmm",
    ),
    (["fit", "faithful", "--model", "poisson", "--no-cache"], "Poisson counts are 0, 1, 2, …; got 3.6 in row 0"),
    (["fit", "negative.csv", "--weights", "b", "--no-cache"], "weights must be finite and at least 0"),
]


@pytest.mark.parametrize(("args", "message"), BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_bad_input_is_one_clear_line_and_status_2(tmp_path, capsys, args, message):
    (tmp_path / "three.csv").write_text("a,b\n1,2\n3,4\n5,7\n")
    (tmp_path / "missing.csv").write_text("a,b\n1,2\n3,\n")
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
    assert inputs.check_components(None, inputs.read(args, models.choose(args))) == (1, 2)


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
    assert process.cache_directory() is None


def test_compiled_programs_are_kept(tmp_path):
    with process.compilation_cache(True):
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "cache" / "jaxem" / "xla")
    assert jax.config.jax_compilation_cache_dir is None


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
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    lines = [process.stderr.readline(), process.stderr.readline()]
    assert "fitting" in lines[1]
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=20)
    assert process.returncode == 130
    assert rest == "jaxem: interrupted\n"
    assert not (tmp_path / "jaxem-faithful").exists()
