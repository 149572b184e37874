"""A process of the fits over several that test_distributed.py kills and resumes: prints what its fit ended with.

Arguments: the number of this process, of all, the port of the first, the file of the checkpoint ("-" for none), the file
to write, and the steps of the loop between checkpoints.
"""

import sys
import time
import warnings

import jax
import numpy as np

import jaxem

process, processes, port, checkpoint, path, every = (int(a) if a.isdigit() else a for a in sys.argv[1:])
warnings.simplefilter("ignore")
if processes > 1:
    jax.distributed.initialize(
        f"localhost:{port}", processes, process, initialization_timeout=60, heartbeat_timeout_seconds=10
    )
rng = np.random.default_rng(0)
x = np.concatenate([rng.poisson(2.0, (60, 1)), rng.poisson(3.0, (51, 1))]).astype(np.float32)


def slowly(report):
    """Long enough for somebody to kill this process."""
    if checkpoint != "-":
        time.sleep(0.1)


mine = x if processes == 1 else x[:50] if process == 0 else x[50:]
result = jaxem.fit(
    jaxem.Mixture(jaxem.Poisson(), 2),
    mine,
    key=jax.random.key(0),
    num_starts=3,
    tol=0.0,
    max_steps=60,
    mesh=jaxem.make_mesh(data=processes) if processes > 1 else None,
    resume=None if checkpoint == "-" else jaxem.Checkpoint(checkpoint, steps=every),
    progress=slowly,
    on_failure="ignore",
)
np.savez(path, *jax.tree.leaves((result.params, result.starts)))
print(result)
