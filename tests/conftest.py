# ruff: noqa: E402 (the environment is set before jax is imported)
"""What every test starts from: four virtual CPU devices, both floating-point types, a repeatable hypothesis."""

import importlib.metadata
import os

import compilation_cache

# Before jax is imported anywhere: the number of devices is fixed when its backend starts. The programs of the tests are
# small and run once: one thread, and no optimizations that take longer than they save (compiling costs about half).
# JAXEM_TEST_COMPILER=default leaves the compiler as users have it.
_FLAGS = {"xla_force_host_platform_device_count": "4"}
if os.environ.get("JAXEM_TEST_COMPILER") != "default":
    _FLAGS |= {
        "xla_cpu_multi_thread_eigen": "false",
        "xla_cpu_parallel_codegen_split_count": "1",
        "xla_backend_optimization_level": "1",
    }
    # A flag that the compiler does not know ends the process; later versions have no choice of emitters.
    if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):
        _FLAGS["xla_cpu_use_fusion_emitters"] = "false"
_GIVEN = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join([_GIVEN, *(f"--{k}={v}" for k, v in _FLAGS.items() if k not in _GIVEN)]).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
_CACHE = compilation_cache.switch_on()

import contextlib
import gc
import pathlib

import hypothesis
import jax
import jax.numpy as jnp
import pytest
import tiers
from compile_report import Recorder, Summary

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


def pytest_addoption(parser):
    dearest = 40 if os.environ.get("CI") else 0
    parser.addoption(
        "--compile-report",
        type=int,
        default=dearest,
        metavar="N",
        help="at the end name the N tests that cost the compiler most, and the cost of every file (in CI: 40)",
    )


def pytest_configure(config):
    worker = hasattr(config, "workerinput")
    config.pluginmanager.register(Recorder(), "compile-recorder")
    if not worker:
        if _CACHE is not None:
            compilation_cache.prune(_CACHE)
        config.pluginmanager.register(Summary(config.getoption("--compile-report")), "compile-summary")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    tiers.assign(items)


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
