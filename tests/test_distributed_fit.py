"""Row 17: one of two processes is killed; the fit resumed from the checkpoint is the undisturbed one to the last bit."""

import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

_WORKER = pathlib.Path(__file__).with_name("distributed_fit.py")
_SECONDS = 240


def _free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def _start(folder, name, checkpoint):
    """Two processes of a fit; each writes what it ended with."""
    port = _free_port()
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    return [
        subprocess.Popen(
            [
                sys.executable,
                str(_WORKER),
                str(i),
                "2",
                str(port),
                str(checkpoint),
                str(folder / f"{name}{i}.npz"),
                "4",
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]


def _finish(processes):
    try:
        for process in processes:
            output, _ = process.communicate(timeout=_SECONDS)
            assert process.returncode == 0, output
    finally:
        _kill(processes)


def _kill(processes):
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_one_of_two_processes_is_killed(tmp_path):
    alone = _start(tmp_path, "alone", "-")
    path = tmp_path / "fit.ckpt"
    killed = _start(tmp_path, "killed", path)
    until = time.monotonic() + _SECONDS
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(0.3)
    killed[1].kill()
    assert killed[1].wait() != 0
    _kill(killed)  # the survivor would end by itself when the heartbeats of the other have failed to come
    assert path.exists()
    assert not (tmp_path / "killed0.npz").exists()
    _finish(alone)
    _finish(_start(tmp_path, "resumed", path))
    files = [np.load(tmp_path / f"{name}.npz") for name in ("alone0", "resumed0", "resumed1")]
    for name in files[0].files:
        for other in files[1:]:
            np.testing.assert_array_equal(files[0][name], other[name])
