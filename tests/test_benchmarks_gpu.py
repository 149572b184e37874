"""The benchmark of a GPU, in tiny sizes on the processors: every measure comes to its end and says something."""

import pytest

from benchmarks import gpu, report
from benchmarks.harness import Settings

QUICK = Settings(repeats=1, quick=True)


@pytest.mark.parametrize("name", ["precision", "carry"])
def test_a_measure_runs_anywhere(name):
    rows = gpu.MEASURES[name](QUICK)
    assert not any(row.error for row in rows), [row.notes for row in rows]
    assert any(row.ours is not None for row in rows)
    assert report.table(rows)


def test_without_a_gpu_it_says_so():
    assert gpu.unavailable(QUICK) == ""
    assert "no GPU is here" in gpu.unavailable(Settings())


def test_the_roofline_is_the_larger_of_both():
    facts = {"kind": "NVIDIA H100 80GB HBM3", "peaks": [3.35e12, 67e12], "flops": 67e12, "bytes": 6.7e12}
    assert gpu._roofline(facts, 4.0)[0] == pytest.approx(2.0)
    assert gpu._roofline({**facts, "flops": 201e12}, 4.0)[0] == pytest.approx(3.0)
    assert gpu._roofline({**facts, "peaks": None}, 4.0)[0] is None
