"""Compiled programs on disk, so that the next session does not wait for the compiler."""

from __future__ import annotations

import os
from pathlib import Path

import jax

# All programs are kept, however soon they were compiled and however small they are.
SETTINGS = {"jax_persistent_cache_min_compile_time_secs": 0.0, "jax_persistent_cache_min_entry_size_bytes": -1}


def cache_programs(directory: str | os.PathLike | None = None) -> Path:
    """Keep every program that JAX compiles from now on in a directory, and take from there what it holds.

    The first fit of a kind waits seconds for the compiler; with its program in the directory it starts within half a
    second, in this session and in later ones. This sets JAX's persistent compilation cache, for this process and for all
    that it compiles: the only call of jaxem that changes JAX's configuration. What is kept holds for one version of JAX
    and one kind of processor; others get programs of their own. Nothing is ever deleted there: the directory can be, at
    any time.

    Args:
        directory: made where there is none; by default ``jaxem/xla`` in the user's cache directory (``XDG_CACHE_HOME``,
            else ``~/.cache``), which the command ``jaxem`` uses too.
    Returns:
        The directory.
    Raises:
        ValueError: where the directory cannot be written to.
    Example:
        >>> import tempfile
        >>> path = cache_programs(tempfile.mkdtemp())  # at the beginning of a session
    """
    path = user_directory() if directory is None else _made(Path(directory))
    if path is None:
        raise ValueError(f"programs cannot be kept in {directory or 'the user cache directory'}: it is not writable")
    from jax.experimental.compilation_cache import compilation_cache

    for name, value in {"jax_compilation_cache_dir": str(path), **SETTINGS}.items():
        jax.config.update(name, value)
    # JAX decides once, at the first program, whether there is a cache: that decision is taken again.
    compilation_cache.reset_cache()
    return path


def user_directory() -> Path | None:
    """Where programs are kept by default, or None where the user has no cache directory that can be written to."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    try:
        base = Path(home) if os.path.isabs(home) else Path.home() / ".cache"
    except RuntimeError:
        return None
    return _made(base / "jaxem" / "xla")


def _made(directory: Path) -> Path | None:
    """The directory, made if need be, or None where it cannot be written to."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return directory if os.access(directory, os.W_OK | os.X_OK) else None
