"""One of the processes of test_distributed.py: a fit over the rows of all of them, and rows that one of them gets wrong.

Arguments: the number of this process, the number of all, the port of the first, the file to write. With one process,
which is the plain fit, nothing is distributed.
"""

import json
import sys

import jax
import numpy as np

import jaxem
from jaxem import distributed

process, processes, port, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
if processes > 1:
    jax.distributed.initialize(
        f"localhost:{port}", processes, process, initialization_timeout=60, heartbeat_timeout_seconds=20
    )


@jax.jit
def program(model, key, data, weights):
    model = model.calibrate(data, weights)
    starts = jax.vmap(lambda k: model.init(k, data, weights))(jax.random.split(key, 2))
    rows, left = model.compress(data, weights)
    return jaxem.run_lanes(model, starts, rows, left)


def mine(rows):
    """This process's rows: of two, 41 and the rest; the plain fit has all."""
    return rows if processes == 1 else jax.tree.map(lambda a: a[:41] if process == 0 else a[41:], rows)


rng = np.random.default_rng(0)
x = np.concatenate([rng.normal(-1, 1, (60, 3)), rng.normal(1, 0.7, (55, 3))])
steps = rng.normal(size=(50, 6, 2)) + 3 * (np.arange(6)[:, None] > 2)
sequences = jaxem.Data(x=steps, lengths=rng.integers(2, 7, 50).astype(np.int32))
weights = rng.uniform(0.2, 2, 50)
errors = []


def refused(model, *args):
    try:
        distributed.global_rows(model, *args, mesh=jaxem.make_mesh())
    except ValueError as error:
        errors.append(str(error))
    else:
        errors.append("not refused")


results = {}
with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64(True):
    hmm = jaxem.Chunked(jaxem.HMM(jaxem.Gaussian(jaxem.Diagonal()), 2), 5)
    cases = {"mixture": (jaxem.Mixture(jaxem.Gaussian(), 2), x, None), "hmm": (hmm, sequences, weights)}
    if processes > 1:
        model = cases["mixture"][0]
        bad = mine(x).copy()
        if process == 1:
            bad[7, 2] = np.nan
        refused(model, bad)
        refused(model, mine(x)[:, : 2 + process])
        refused(model, mine(x), None if process else np.ones(41))
        refused(model, mine(x)[: 20 * process])
    for name, (model, data, given) in cases.items():
        if processes > 1:
            mesh = jaxem.make_mesh()
            rows = distributed.global_rows(model, mine(data), None if given is None else mine(given), mesh=mesh)
            assert rows.num_examples == jax.tree.leaves(data)[0].shape[0]
            model, data, given = jaxem.Sharded(model, mesh), rows.data, rows.weights
        run = jax.device_get(program(model, jax.random.key(3), data, given))
        results |= {
            f"{name}{jax.tree_util.keystr(path)}": leaf for path, leaf in jax.tree_util.tree_leaves_with_path(run)
        }
np.savez(path, errors=json.dumps(errors), **results)
