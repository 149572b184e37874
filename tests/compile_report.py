"""What each test costs the compiler: counted where it runs, added up and printed where pytest was started."""

import collections
import dataclasses
import time

import jax
import pytest

_SECONDS = {
    "/jax/core/compile/jaxpr_trace_duration": "tracing",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lowering",
    "/jax/core/compile/backend_compile_duration": "compiling",
}
_HIT = "/jax/compilation_cache/cache_hits"


@dataclasses.dataclass
class Cost:
    """Seconds and number of programs; tracing counts what is traced inside of something traced a second time."""

    compiling: float = 0.0
    tracing: float = 0.0
    lowering: float = 0.0
    programs: int = 0
    found: int = 0  # programs that came out of the persistent cache
    wall: float = 0.0
    cpu: float = 0.0  # of the process with its threads: what a loaded machine does not change

    def add(self, other: "Cost") -> None:
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def __str__(self) -> str:
        seconds = (self.wall, self.cpu, self.compiling, self.lowering, self.tracing)
        return " ".join([*(f"{value:8.1f}" for value in seconds), f"{self.programs:6d}", f"{self.found:6d}"])


HEADER = "    wall      cpu  compile lowering  tracing progs. cached"


class Recorder:
    """Listens to JAX in the process that runs tests, and gives each test's report what was heard during the test."""

    def __init__(self):
        self.cost, self.cpu = Cost(), time.process_time()
        jax.monitoring.register_event_duration_secs_listener(self._duration)
        jax.monitoring.register_event_listener(self._event)

    def _duration(self, event: str, seconds: float, **_) -> None:
        name = _SECONDS.get(event)
        if name is not None:
            setattr(self.cost, name, getattr(self.cost, name) + seconds)
            self.cost.programs += name == "compiling"

    def _event(self, event: str, **_) -> None:
        self.cost.found += event == _HIT

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(self, item, call):
        self.cost.wall += call.duration
        if call.when == "teardown":
            self.cost.cpu, self.cpu = time.process_time() - self.cpu, time.process_time()
            item.user_properties.append(("compiler", dataclasses.asdict(self.cost)))
            self.cost = Cost()


class Summary:
    """Adds up what the reports carry; with xdist they come from all workers."""

    def __init__(self, dearest: int):
        self.dearest = dearest
        self.tests: dict[str, Cost] = {}

    def pytest_runtest_logreport(self, report):
        if report.when == "teardown":
            for name, cost in report.user_properties:
                if name == "compiler":
                    self.tests[report.nodeid] = Cost(**cost)

    def pytest_terminal_summary(self, terminalreporter):
        files: dict[str, Cost] = collections.defaultdict(Cost)
        for test, cost in self.tests.items():
            files[test.split("::")[0]].add(cost)
        total = Cost()
        for cost in files.values():
            total.add(cost)
        line = terminalreporter.write_line
        if self.dearest > 0 and self.tests:
            terminalreporter.section("seconds of the compiler, by file")
            line(HEADER)
            self._table(line, files, len(files))
            terminalreporter.section(f"the {self.dearest} tests that cost the compiler most")
            line(HEADER)
            self._table(line, self.tests, self.dearest)
        if total.programs:
            line(
                f"compiler: {total.programs} programs, {total.found} of them from the cache, {total.compiling:.0f} s of "
                f"{total.wall:.0f} s of tests, {total.cpu:.0f} s of processor (--compile-report N names the dearest)"
            )

    @staticmethod
    def _table(line, costs: dict[str, Cost], most: int) -> None:
        dearest = sorted(costs, key=lambda name: -costs[name].compiling - costs[name].lowering)[:most]
        for name in dearest:
            line(f"{costs[name]}  {name}")
