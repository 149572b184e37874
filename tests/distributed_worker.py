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
lengths = rng.integers(0, 5, 60).astype(np.int32)
weights = rng.uniform(0.2, 2, 60)
errors = []


def refused(model, *args):
    try:
        distributed.global_rows(model, *args, mesh=jaxem.make_mesh())
    except ValueError as error:
        errors.append(str(error))
    else:
        errors.append("not refused")


results = {}
with jax.enable_x64(True):
    model = jaxem.Chunked(jaxem.Mixture(jaxem.Gaussian(), 2), 16)
    if processes > 1:
        bad = mine(x).copy()
        if process == 1:
            bad[7, 2] = np.nan
        refused(model, bad)
        refused(model, mine(x)[:, : 2 + process])
        refused(model, mine(x), None if process else np.ones(41))
        refused(model, mine(x)[: 20 * process])

    # Sequences of all processes are counted, and every one has its weight.
    hmm = jaxem.HMM(jaxem.Gaussian(), 2)
    sequences = jaxem.Data(x=rng.normal(size=(60, 4, 1)), lengths=lengths)
    rows = distributed.global_rows(hmm, mine(sequences), mine(weights), mesh=jaxem.make_mesh())
    counts = [rows.num_examples, rows.num_sequences, rows.num_steps]
    shared = jax.jit(lambda rows, w: (rows.lengths @ w, w @ rows.x[:, :, 0]))(rows.data, rows.weights)
    results |= {"counts": counts, "steps of weight": shared[0], "sums": shared[1]}

    if processes > 1:
        mesh = jaxem.make_mesh()
        rows = distributed.global_rows(model, mine(x), mesh=mesh)
        assert rows.num_examples == len(x)
        run = program(jaxem.Sharded(model, mesh), jax.random.key(3), rows.data, rows.weights)
    else:
        run = program(model, jax.random.key(3), x, None)
    run = jax.device_get(run)
    results |= {jax.tree_util.keystr(path)[1:]: leaf for path, leaf in jax.tree_util.tree_leaves_with_path(run)}
np.savez(path, errors=json.dumps(errors), **results)
