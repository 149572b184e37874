# ruff: noqa: E402 (the environment is set before jax is imported)
"""What every test starts from: four virtual CPU devices, both floating-point types, a repeatable hypothesis."""

import os

# Before jax is imported anywhere: the number of devices is fixed when its backend starts.
_DEVICES = "--xla_force_host_platform_device_count=4"
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import contextlib
import gc
import pathlib

import hypothesis
import jax
import jax.numpy as jnp
import pytest

hypothesis.settings.register_profile(
    "jaxem",
    derandomize=True,
    max_examples=12,
    deadline=None,
    database=None,
    # The floating-point fixtures hold for all examples of a test alike, which is what is wanted.
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("jaxem")


def x64(enabled: bool) -> contextlib.AbstractContextManager:
    """64-bit types on or off, for as long as the context lasts; the global setting is never touched."""
    context = getattr(jax, "enable_x64", None)
    if context is None:
        from jax.experimental import enable_x64 as context
    return context(enabled)


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """The test runs once in each floating-point type; the value is the dtype."""
    with x64(request.param == "float64"):
        yield jnp.dtype(request.param)


@pytest.fixture
def float64():
    """The test runs in float64."""
    with x64(True):
        yield jnp.dtype("float64")


@pytest.fixture
def float32():
    """The test runs in float32, whatever a test before it did."""
    with x64(False):
        yield jnp.dtype("float32")


_MAPS = pathlib.Path("/proc/self/maps")


@pytest.fixture(autouse=True)
def _few_programs():
    """Every compiled program holds some maps of memory, of which Linux gives a process 65 530: before that, forget them."""
    yield
    if _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > 25_000:
        jax.clear_caches()
        gc.collect()
