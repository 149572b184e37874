"""The tiers: what the default one leaves out is covered, and the rows that it names are there."""

import itertools
import types

import pytest
import tiers
from reference_rows import every_row
from test_laws import MODELS
from test_reference import CASES, LABELLED


def items(*lists):
    """Stand-ins for the items of a test over the product of some lists."""
    return [types.SimpleNamespace(callspec=types.SimpleNamespace(_idlist=ids)) for ids in itertools.product(*lists)]


@pytest.mark.parametrize("sizes", [(5, 2), (2, 3, 5), (2, 2, 2, 7)], ids=str)
def test_every_value_or_every_pair_is_met_by_fewer_tests(sizes):
    lists = [[f"{place}{value}" for value in range(size)] for place, size in enumerate(sizes)]
    group = items(*lists)
    rows = [item.callspec._idlist for item in tiers.covering(group)]
    strength = 1 if len(sizes) == 2 else 2
    for chosen in itertools.combinations(lists, strength):
        for values in itertools.product(*chosen):
            assert any(set(values) <= set(row) for row in rows)
    assert len(rows) < len(group)


def test_a_list_is_kept_whole():
    assert len(tiers.covering(items(["a", "b", "c"]))) == 3


def test_the_rows_that_every_change_passes_exist():
    rows = {
        "test_reference.py::test_the_given_start_leads_to_the_published_optimum": {str(c) for c in CASES},
        "test_reference.py::test_many_starts_reach_the_best_known_optimum": {str(c) for c in LABELLED},
        "test_reference.py::test_other_models_reach_the_published_optimum": {str(row) for row in every_row()},
        "test_laws.py::test_model": set(MODELS),
    }
    for name, there in rows.items():
        # Rows of one file and fit are told apart by a number that pytest adds.
        assert {row if row in there else row.rsplit("_", 1)[0] for row in tiers.KEPT[name]} <= there
