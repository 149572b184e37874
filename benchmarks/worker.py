"""One contestant in a process of its own: ``python -m benchmarks.worker MODULE``, requests and answers as JSON lines.

Two libraries with thread pools in one process fight for the cores, so no process ever imports two of them. A request is
``{"command": "setup", "operation": NAME, "arrays": {NAME: PATH.npy}, "options": {...}}``, which imports the library,
loads the arrays, compiles and warms up, and then any number of ``{"command": "run"}``, each one timed repetition.
An operation is a function of the module: ``operation(arrays, options) -> (facts, run)`` with ``run() -> answer``.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np


def _setup(module: str, request: dict[str, Any]) -> tuple[dict[str, Any], Callable[[], dict[str, Any]]]:
    contestant = importlib.import_module(module)
    arrays = {name: np.load(path) for name, path in request["arrays"].items()}
    begin = time.perf_counter()
    facts, run = getattr(contestant, request["operation"])(arrays, request["options"])
    return {"setup_seconds": time.perf_counter() - begin, "versions": contestant.versions(), **facts}, run


def serve(module: str, requests: Any, answers: Any) -> None:
    run: Callable[[], dict[str, Any]] | None = None
    for line in requests:
        request = json.loads(line)
        try:
            if request["command"] == "setup":
                answer, run = _setup(module, request)
            elif run is None:
                answer = {"error": "run before setup"}
            else:
                answer = run()
        except ModuleNotFoundError as problem:
            answer = {"missing": problem.name}
        except Exception:
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main() -> None:
    # Whatever a library prints goes to stderr; the answers have the real stdout for themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    serve(sys.argv[1], sys.stdin, answers)


if __name__ == "__main__":
    main()
