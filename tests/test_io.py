"""Results as files: bit-equal when read back, and never anything but a ValueError for a damaged or hostile file."""

import contextlib
import dataclasses
import io as streams
import json
import random
import zipfile
from typing import NamedTuple

import chex
import jax
import numpy as np
import pytest

import jaxem
from jaxem import datasets, io


@pytest.fixture(scope="module")
def result():
    model = jaxem.WithPrior(jaxem.Chunked(jaxem.Mixture(jaxem.Gaussian(jaxem.Diagonal()), 2)), 0.5)
    x = datasets.load("faithful").x[:60]
    return jaxem.fit(model, x, key=jax.random.key(0), num_starts=2, trace_size=4, on_failure="ignore")


def test_a_result_comes_back_bit_equal(result, tmp_path):
    io.save(tmp_path / "fit.npz", result)
    loaded = io.load(tmp_path / "fit.npz")
    assert isinstance(loaded, jaxem.Result)
    chex.assert_trees_all_equal(loaded, result, strict=True)
    assert str(loaded) == str(result)
    x = datasets.load("faithful").x[:5]
    np.testing.assert_array_equal(
        loaded.model.log_likelihood(loaded.params, x), result.model.log_likelihood(result.params, x)
    )


def test_the_file_is_an_npz_with_a_manifest_to_read(result, tmp_path):
    io.save(tmp_path / "fit.npz", result)
    with np.load(tmp_path / "fit.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["result.params.likelihood.mean"], result.params.likelihood.mean)
        manifest = json.loads(arrays["manifest.json"])
    assert manifest["schema"] == "jaxem-result/1"
    assert manifest["jaxem"] == jaxem.__version__
    assert "2 components, diagonal covariance" in manifest["model"]


@pytest.mark.parametrize(
    "model",
    [
        jaxem.Mixture(jaxem.Poisson(), 3),
        jaxem.Frozen(jaxem.Mixture(jaxem.Gaussian(jaxem.Tied()), 2), {"mean": [True, False], "covariance": True}),
        jaxem.Mixture(jaxem.Gaussian(jaxem.Spherical(), center=np.ones(2), scale=np.full(2, np.inf)), 2),
    ],
)
def test_models_come_back(model, tmp_path):
    io.save(tmp_path / "model.npz", model)
    chex.assert_trees_all_equal(io.load(tmp_path / "model.npz"), model, strict=True)


def test_every_model_family_and_latent_of_jaxem_can_be_saved():
    def concrete(cls):
        return [c for sub in cls.__subclasses__() for c in [sub, *concrete(sub)] if dataclasses.is_dataclass(c)]

    own = [c for kind in (jaxem.Model, jaxem.Family, jaxem.Latent) for c in concrete(kind)]
    never = ("jaxem.testing", "jaxem.passes")  # models for a moment, which no result holds
    own = [c for c in own if c.__module__.startswith("jaxem.") and not c.__module__.startswith(never)]
    assert len(own) >= 6
    missing = [c for c in own if io._registry().get(io._class_name(c)) is not c]
    assert not missing


def test_scalars_and_containers_come_back(tmp_path):
    values = {"a": (1, None, True, "é"), "b": [float("inf"), -0.0, 1e-320], "c": {"d": np.float32(2)}, "e": 2**80}
    io.save(tmp_path / "params.npz", values)
    loaded = io.load(tmp_path / "params.npz")
    assert loaded == values
    assert isinstance(loaded["a"], tuple)
    assert np.isnan(io_round_trip(float("nan"), tmp_path))


def io_round_trip(value, tmp_path):
    io.save(tmp_path / "value.npz", value)
    return io.load(tmp_path / "value.npz")


class Point(NamedTuple):
    left: np.ndarray
    right: np.ndarray


@jaxem.pytree
class MyModel(jaxem.Model):
    size: int = jaxem.static(1)


def test_a_users_own_model_is_refused_and_its_parameters_are_not(result, tmp_path):
    own = dataclasses.replace(result, model=MyModel())
    with pytest.raises(ValueError, match=r"MyModel is not one of jaxem's own classes.*result\.params"):
        io.save(tmp_path / "own.npz", own)
    assert not list(tmp_path.iterdir())
    loaded = io_round_trip({"here": Point(np.ones(2), np.zeros(3)), "there": MyModel(3)}, tmp_path)
    assert loaded["there"] == {"size": 3}
    np.testing.assert_array_equal(loaded["here"]["right"], np.zeros(3))


@pytest.mark.parametrize("value", [np.array([None]), np.array(["a"]), len, {1: 2}, jax.random.key(0)])
def test_what_is_not_numbers_is_refused(value, tmp_path):
    with pytest.raises(ValueError, match="cannot save params"):
        io.save(tmp_path / "params.npz", value)


def test_a_failed_write_leaves_the_file_that_was_there(tmp_path):
    path = tmp_path / "fit.npz"
    path.write_bytes(b"before")

    def interrupted(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        io.write_atomically(path, interrupted)
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["fit.npz"]


def test_a_missing_file_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        io.load(tmp_path / "none.npz")


# Damaged and hostile files.


def refused(path, content, message=""):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        io.load(path)
    assert str(path) in str(caught.value)


def test_a_damaged_file_is_refused_or_read_right(result, tmp_path):
    path = tmp_path / "fit.npz"
    io.save(path, result)
    whole = path.read_bytes()
    chance = random.Random(0)
    for trial in range(120):
        damaged = bytearray(whole)
        if trial % 3 == 0:
            del damaged[chance.randrange(len(whole)) :]
        else:
            damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        # A byte that says nothing (a time, a flag nobody reads) may have been hit: then the result is the right one.
        with contextlib.suppress(ValueError):
            chex.assert_trees_all_equal(io.load(path), result, strict=True)


def archive(manifest, compression=zipfile.ZIP_STORED, **arrays):
    buffer = streams.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        file.writestr("manifest.json", manifest if isinstance(manifest, str) else json.dumps(manifest))
        for name, content in arrays.items():
            file.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def tree(value):
    return {"schema": "jaxem-result/1", "tree": value}


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ({"schema": "jaxem-result/2", "tree": 1}, "its schema is 'jaxem-result/2'"),
        ({}, "its schema is None"),
        ([], "its schema is None"),
        ("{", "not a sound jaxem file"),
        ("[" * 100_000, "not a sound jaxem file"),
        ({"schema": "jaxem-result/1"}, "no tree"),
        (tree({"class": "os.system", "fields": {}}), "class 'os.system' is not known"),
        (tree({"class": "builtins.eval", "fields": {}}), "is not known"),
        (tree({"class": "families.Gaussian", "fields": {"evil": 1}}), "no field evil"),
        (tree({"class": "families.Gaussian", "fields": {"floor": -1}}), "floor must be positive"),
        (tree({"class": "models.LatentModel", "fields": {"latent": 1, "likelihood": 2}}), "expected a Latent"),
        (tree({"class": "models.LatentModel", "fields": {}}), "missing"),
        (tree({"class": "result.Result", "fields": {}}), "missing"),
        (tree({"array": "none"}), "not there"),
        (tree({"float": "1e3"}), "tagged"),
        (tree([1]), "tagged value"),
        (tree({"tuple": [], "list": []}), "tagged"),
    ],
)
def test_hostile_manifests(tmp_path, manifest, message):
    refused(tmp_path / "bad.npz", archive(manifest), message)


def header(description):
    return b"\x93NUMPY\x01\x00" + len(description).to_bytes(2, "little") + description


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            header(b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,), }\n"),
            "needs 8000000000000000",
        ),
        (header(b"{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }\n"), "cannot have the shape"),
        (header(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n"), "not one of plain numbers"),
        (header(b"__import__('os')\n"), "not a sound array"),
        (b"", "not a sound array"),
    ],
)
def test_hostile_arrays(tmp_path, array, message):
    refused(tmp_path / "bad.npz", archive(tree({"array": "x"}), x=array), message)


def test_nothing_unfolds(tmp_path):
    bomb = archive(tree(None), zipfile.ZIP_DEFLATED, x=b"\0" * 10_000_000)
    assert len(bomb) < 20_000
    refused(tmp_path / "bomb.npz", bomb, "compressed members")


def test_a_result_that_does_not_fit_together_is_refused(result, tmp_path):
    io.save(tmp_path / "bad.npz", dataclasses.replace(result, best=7))
    with pytest.raises(ValueError, match="best start is 7 of 2"):
        io.load(tmp_path / "bad.npz")
    io.save(
        tmp_path / "bad.npz", dataclasses.replace(result, starts=dataclasses.replace(result.starts, steps=np.ones(3)))
    )
    with pytest.raises(ValueError, match="do not fit together"):
        io.load(tmp_path / "bad.npz")
