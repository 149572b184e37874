"""What the command changes in its process, and puts back; and the directory it writes to."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import jax

from jaxem.atomic import write_atomically
from jaxem.cli.console import CommandError
from jaxem.program_cache import SETTINGS, user_directory


def arithmetic(dtype: str) -> contextlib.AbstractContextManager:
    """float64 where asked for: an application may allow it, where the library never does."""
    return jax.enable_x64(dtype == "float64")


@contextlib.contextmanager
def compilation_cache(wanted: bool) -> Iterator[None]:
    """Keep compiled programs in the user's cache directory: the second run of a kind starts at once."""
    directory = user_directory() if wanted else None
    if directory is None:
        yield
        return
    settings = {"jax_compilation_cache_dir": str(directory), **SETTINGS}
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


@contextlib.contextmanager
def output_directory(path: Path) -> Iterator[None]:
    """A directory that can be written to, known before the fit begins; taken away again if nothing was written."""
    created = not path.exists()
    if not created and not path.is_dir():
        raise CommandError(f"cannot write to --output {path}: it is not a directory")
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".jaxem-{os.getpid()}"
        write_atomically(probe, lambda file: None)
        probe.unlink()
    except OSError as error:
        raise CommandError(f"cannot write to --output {path}: {error.strerror or error}") from None
    try:
        yield
    finally:
        if created:
            with contextlib.suppress(OSError):  # it is not empty: something was written
                path.rmdir()
