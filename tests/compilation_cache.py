"""Where the compiled programs of all tests are kept, so that the second run on a machine compiles next to nothing.

    python tests/compilation_cache.py

prints the directory that a run should name as XDG_CACHE_HOME. One directory for each version of JAX and each kind of
processor: a program compiled for another processor may not run here. Nothing but the standard library is imported, as all
of it happens before JAX starts.
"""

import contextlib
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import shutil
import time

# All that the suite compiles takes about a third of this.
LARGEST = 3 * 2**30
OLDEST = 30 * 24 * 3600


def processor() -> str:
    """What the compiler may use of this processor, in short."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        told = sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    except OSError:
        told = [platform.machine(), platform.processor()]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:12]


def home() -> pathlib.Path | None:
    """The directory of this JAX and this processor, or None where the user has no cache directory to write to."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        base = pathlib.Path(given) if os.path.isabs(given) else pathlib.Path.home() / ".cache"
        if base.parent.name == "jaxem-tests":  # a run above this one has chosen it
            return base
        versions = [importlib.metadata.version(name) for name in ("jax", "jaxlib")]
        directory = base / "jaxem-tests" / "-".join(["jax", *versions, processor()])
        (directory / "jaxem" / "xla").mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError, importlib.metadata.PackageNotFoundError):
        return None
    return directory if os.access(directory / "jaxem" / "xla", os.W_OK | os.X_OK) else None


def switch_on() -> pathlib.Path | None:
    """Keep every program from now on, unless the environment already says what to keep; the directory, if it is ours."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return None
    directory = home()
    if directory is not None:
        # The command `jaxem` keeps its programs at this place of XDG_CACHE_HOME.
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(directory / "jaxem" / "xla")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    return directory


def prune(directory: pathlib.Path) -> None:
    """Bound the size: drop directories of other versions unused for a month, then the programs used longest ago."""
    for other in directory.parent.iterdir():
        if other != directory and time.time() - max((used for used, _, _ in programs(other)), default=0.0) > OLDEST:
            shutil.rmtree(other, ignore_errors=True)
    kept = 0
    for _, size, path in sorted(programs(directory), reverse=True):
        kept += size
        if kept > LARGEST:
            path.unlink(missing_ok=True)


def programs(directory: pathlib.Path) -> list[tuple[float, int, pathlib.Path]]:
    """When each kept program was used last, and its size; another run may take one away in the meantime."""
    found = []
    for path in (directory / "jaxem" / "xla").glob("*"):
        with contextlib.suppress(OSError):
            status = path.stat()
            found.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    return found


if __name__ == "__main__":
    directory = home()
    if directory is not None:
        prune(directory)
        print(directory)
