"""Compiled programs on disk: a second session compiles nothing."""

import os
import subprocess
import sys

import jax
import pytest

import jaxem

FIT = """
import jax, jaxem
names = []
jax.monitoring.register_event_listener(lambda name, **_: names.append(name.rsplit("/", 1)[-1]))
jax.numpy.zeros(3) + 1  # a program before the call: JAX has decided that there is no cache
assert str(jaxem.cache_programs({directory!r})) == {directory!r}
jax.jit(lambda x: jax.numpy.sin(x) * 3)(1.0)
print(names.count("cache_misses"), names.count("cache_hits"))
"""


def session(directory):
    code = FIT.format(directory=str(directory))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION_CACHE")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return [int(count) for count in done.stdout.split()]


def test_a_second_session_finds_the_programs_of_the_first(tmp_path):
    misses, hits = session(tmp_path / "programs")
    assert misses >= 1
    assert hits == 0
    assert session(tmp_path / "programs") == [0, misses]


def test_a_directory_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    before = jax.config.jax_compilation_cache_dir
    with pytest.raises(ValueError, match="cannot be kept in"):
        jaxem.cache_programs(tmp_path / "file" / "programs")
    assert jax.config.jax_compilation_cache_dir == before
