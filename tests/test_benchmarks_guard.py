"""The guard of speeds and program sizes: what it says of a measure and its table. Nothing is timed here."""

import argparse

import jax
import jax.numpy as jnp
import pytest

from benchmarks import guard, guard_table, operations
from benchmarks.harness import Row

FACTS = {"date": "2026-01-01", "jax": "0.0", "cores": 2}


def entry(value):
    return {"value": value, **FACTS}


def ratio(name, figure):
    return Row(name, figure=figure)


def count(name, figure):
    return Row(name, figure=figure, figure_unit="")


def judged(row, value, **options):
    guard_table.judge([row], {} if value is None else {row.measure: entry(value)}, **options)
    return row


@pytest.fixture
def options(tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "TABLE", tmp_path / "guard.json")
    return argparse.Namespace(update=False, margin=1.3)


class TestJudgement:
    @pytest.mark.parametrize(("figure", "passed"), [(2.0, True), (2.59, True), (2.61, False), (1.0, True)])
    def test_a_ratio_may_be_so_many_times_the_table(self, figure, passed):
        assert judged(ratio("speed", figure), 2.0).passed is passed

    @pytest.mark.parametrize(("figure", "passed"), [(100, True), (110, True), (111, False), (10, True)])
    def test_a_count_has_a_margin_of_its_own(self, figure, passed):
        """Noise does not reach it, so the margin asked for is not its own."""
        assert judged(count("size", figure), 100, margin=2.0).passed is passed

    def test_the_margin_is_the_caller_s(self):
        assert judged(ratio("speed", 3.9), 2.0, margin=2.0).passed
        assert not judged(ratio("speed", 4.1), 2.0, margin=2.0).passed

    def test_what_is_far_better_asks_for_an_update(self):
        assert "--update" in judged(ratio("speed", 1.0), 2.0).details["verdict"]
        assert judged(ratio("speed", 1.9), 2.0).details["verdict"] == "ok"

    @pytest.mark.parametrize("figure", [None, float("nan"), float("inf")])
    def test_no_figure_fails(self, figure):
        assert not judged(ratio("speed", figure), 2.0).passed

    def test_a_broken_measure_fails_and_says_why(self):
        row = judged(Row("speed", error=True, notes=["it ran into a wall"]), 2.0)
        assert not row.passed
        assert "ran into a wall" in row.details["verdict"]

    def test_a_row_that_the_table_does_not_have_fails(self):
        row = judged(ratio("speed", 1.0), None)
        assert not row.passed
        assert "MISSING" in row.details["verdict"]

    def test_a_count_of_none_may_not_become_some(self):
        assert judged(count("size", 0), 0).passed
        assert not judged(count("size", 1), 0).passed


class TestConclusion:
    def test_a_worse_row_is_named_and_ends_in_status_1(self, options, capsys):
        guard_table.write(guard.TABLE, {"fine": entry(1.0), "lost": entry(1.0)})
        assert guard.conclude([ratio("fine", 1.0), ratio("lost", 1.5)], options, complete=True) == 1
        assert capsys.readouterr().out.splitlines()[-1] == "guard: failed: lost"

    def test_nothing_worse_is_status_0(self, options, capsys):
        guard_table.write(guard.TABLE, {"fine": entry(1.0)})
        assert guard.conclude([ratio("fine", 1.2)], options, complete=True) == 0
        assert "1.20x" in capsys.readouterr().out

    @pytest.mark.parametrize(("complete", "status"), [(True, 1), (False, 0)])
    def test_a_row_that_is_measured_no_more(self, options, complete, status):
        guard_table.write(guard.TABLE, {"fine": entry(1.0), "gone": entry(1.0)})
        assert guard.conclude([ratio("fine", 1.0)], options, complete=complete) == status

    def test_without_a_table_everything_is_missing(self, options):
        assert guard.conclude([ratio("fine", 1.0)], options, complete=True) == 1

    @pytest.mark.parametrize("complete", [True, False])
    def test_an_update_is_what_is_read_next(self, options, complete):
        guard_table.write(guard.TABLE, {"old": entry(9.0), "speed": entry(9.0)})
        options.update = True
        rows = [ratio("speed", 1.23456), count("size", 1234), Row("broken", error=True, notes=["why"])]
        assert guard.conclude(rows, options, complete) == 1  # the broken one is no row of any table
        found = guard_table.read(guard.TABLE)
        assert set(found) == {"speed", "size"} | (set() if complete else {"old"})
        assert found["speed"]["value"] == 1.235
        assert found["size"]["value"] == 1234
        assert set(found["size"]) == {"value", *FACTS}
        options.update = False
        assert guard.conclude(rows[:2], options, complete) == 0


class TestCommandLine:
    @pytest.mark.parametrize("wrong", [["--only", "speed"], ["--repeats", "0"], ["--margin", "0.5"]])
    def test_a_wrong_one_is_status_2(self, wrong, capsys):
        assert guard.main(wrong) == 2
        assert capsys.readouterr().err.count("\n") == 1

    def test_a_quick_pass_is_no_table(self):
        assert guard.main(["--quick", "--update"]) == 2

    def test_every_speed_has_its_measure(self):
        from benchmarks.contestants import guard_speeds

        assert set(guard.SPEEDS) == set(guard_speeds.SPEEDS)

    def test_the_table_that_is_committed_has_rows_of_measures_that_exist(self):
        """A row without a value is the guard's own error; a value without a row would be read by nobody."""
        found = set(guard_table.read(guard.TABLE))
        sizes = {name for name in found if name.startswith("operations.")}
        assert {name.split(".")[1] for name in sizes} == set(operations.cases())
        others = {"first_gmm", "first_gmm_64", "programs.first_fit", "programs.lengths"}
        assert found - sizes <= set(guard.SPEEDS) | others


class TestOperations:
    def test_every_operation_counts_once(self):
        assert operations.count_operations(lambda a: jnp.sin(a) + a, 1.0) == 2

    def test_a_loop_counts_as_it_stands(self):
        def loop(a):
            return jax.lax.fori_loop(0, 1000, lambda _, b: jnp.sin(b), a)

        text = jax.jit(loop).lower(1.0).as_text()
        kinds = operations.kinds_of_operations(text)
        assert kinds["stablehlo.sine"] == kinds["stablehlo.while"] == 1
        assert kinds["stablehlo.return"] == 0
        assert operations.count_operations(loop, 1.0) == sum(kinds.values())

    def test_shapes_are_enough(self):
        shape = jax.ShapeDtypeStruct((3, 2), jnp.float32)
        assert operations.count_operations(lambda a: a @ a.T, shape) == operations.count_operations(
            lambda a: a @ a.T, jnp.zeros((3, 2))
        )
