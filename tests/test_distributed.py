"""Two real processes on the loopback interface: the numbers of one, and errors that reach both."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import types
from typing import Any

import numpy as np
import pytest

import jaxem
from jaxem import distributed
from jaxem.mesh import own_shards

_WORKER = pathlib.Path(__file__).with_name("distributed_worker.py")
_SECONDS = 240


def _start(process, processes, port, path):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, str(_WORKER), str(process), str(processes), str(port), str(path)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """What two processes and the plain fit have written. A process that hangs is killed, and the tests fail."""
    folder = tmp_path_factory.mktemp("distributed")
    paths = [folder / f"{name}.npz" for name in ("first", "second", "plain")]
    port = _free_port()
    running = []
    try:
        running += [_start(0, 2, port, paths[0]), _start(1, 2, port, paths[1]), _start(0, 1, port, paths[2])]
        for process in running:
            output, _ = process.communicate(timeout=_SECONDS)
            assert process.returncode == 0, output
    finally:
        for process in running:
            process.kill()
            process.wait()
    return [np.load(path) for path in paths]


def test_the_fit_is_the_plain_one(files):
    first, second, plain = files
    names = [name for name in plain.files if name != "errors"]
    assert len(names) > 10
    for name in names:
        np.testing.assert_array_equal(first[name], second[name])
        np.testing.assert_allclose(first[name], plain[name], rtol=1e-9, atol=1e-9)
    assert np.all(plain["status"] == jaxem.Status.CONVERGED)


def test_what_one_process_gets_wrong_all_refuse(files):
    first, second, _ = (json.loads(str(file["errors"])) for file in files)
    assert first == second
    bad_cell, other_shape, weights_of_one, no_rows = first
    assert bad_cell.startswith("process 1 of 2: the data hold nan in row 7, column 2")
    assert other_shape.startswith("process 0 gives data of rows (2,) float64; process 1 gives data of rows (3,)")
    assert "process 0 gives data of rows (3,) float64, weights of rows ()" in weights_of_one
    assert no_rows.startswith("process 0 of 2: the data are empty: every process needs at least one row")


def test_of_one_process_they_are_all_rows(float64):
    mesh = jaxem.make_mesh(data=4)
    model = jaxem.HMM(jaxem.Gaussian(), 2)
    data = jaxem.Data(x=np.arange(30.0).reshape(5, 3, 2), lengths=np.array([3, 2, 1, 3, 3]))
    rows = distributed.global_rows(model, data, mesh=mesh)
    assert (rows.num_examples, rows.num_sequences, rows.num_steps) == (5, 5, 12)
    assert rows.weights.tolist() == [1.0] * 5 + [0.0] * 3
    assert rows.data.x.shape == (8, 3, 2)
    with pytest.raises(jaxem.UnsupportedError, match="flat sequences cannot be cut"):
        distributed.global_rows(model, data.x[0], mesh=mesh)
    mixture = jaxem.Mixture(jaxem.Gaussian(), 3)
    with pytest.raises(ValueError, match="needs at least 3 rows of positive weight; all processes together have 1"):
        distributed.global_rows(mixture, np.eye(4), np.array([1.0, 0, 0, 0]), mesh=mesh)
    with pytest.raises(ValueError, match="the data hold nan in row 2, column 1"):
        distributed.global_rows(mixture, np.where(np.arange(8).reshape(4, 2) == 5, np.nan, 0), mesh=mesh)


def test_rows_of_two_processes_on_one_place_are_refused():
    def device(process):
        return types.SimpleNamespace(process_index=process)

    devices = np.array([[device(0), device(1)], [device(0), device(1)]])
    mesh: Any = types.SimpleNamespace(devices=devices, axis_names=("data", "lanes"), shape={"data": 2, "lanes": 2})
    with pytest.raises(ValueError, match=r"place 0 of axis 'data' lies on devices of processes \[0, 1\]"):
        own_shards(mesh, "data")
    assert own_shards(mesh, "lanes") == [0]
