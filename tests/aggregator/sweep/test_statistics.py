"""The arithmetic of a comparison, against SciPy and against published numbers."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from aggregator.history import History, Round
from aggregator.sweep import statistics

VALUES = st.lists(st.floats(0, 1), min_size=3, max_size=9)


def round_(number: int, **told: float) -> Round:
    return Round(number, "", metrics={name: {"auc": value, "loss": 1 - value} for name, value in told.items()})


@given(VALUES)
def test_an_interval_is_that_of_student(values: list[float]) -> None:
    found = statistics.estimate(values)
    spread = stats.sem(values)
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), spread) if spread else (values[0], values[0])
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9))


@given(VALUES, st.data())
def test_p_is_that_of_the_paired_t_test(first: list[float], data: st.DataObject) -> None:
    second = data.draw(st.lists(st.floats(0, 1), min_size=len(first), max_size=len(first)))
    gaps = np.subtract(second, first)
    p = statistics.paired_p(list(gaps))
    if gaps.std() < 1e-6:
        return
    assert p == pytest.approx(stats.ttest_rel(second, first).pvalue, rel=1e-6)


def test_differences_that_are_all_the_same_have_no_p() -> None:
    assert statistics.paired_p([0.1, 0.1, 0.1]) is None
    assert statistics.paired_p([0.1]) is None


def test_holm_is_that_of_the_textbook() -> None:
    # Holm 1979: the smallest times m, the next times m - 1, never falling.
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.5, 0.9]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_arms_are_compared_by_the_seeds_that_both_have() -> None:
    found = statistics.differences({"a": {1: 0.5, 2: 0.6, 3: 0.7}, "b": {2: 0.7, 3: 0.9, 4: 0.1}, "c": {9: 1.0}})
    assert found["b"] is not None
    assert found["b"].mean.mean == pytest.approx(0.15)
    assert found["b"].corrected == found["b"].p
    assert found["c"] is None


def test_each_hospital_counts_alike_and_one_that_withholds_does_not_count() -> None:
    model = round_(1, north=0.9, south=0.5)
    model.metrics["west"] = {"loss": 0.3}
    assert statistics.mean(model, "auc") == pytest.approx(0.7)
    assert (statistics.worst(model, "auc"), statistics.worst(model, "loss")) == (0.5, pytest.approx(0.5))


@pytest.mark.parametrize(("metric", "target", "expected"), [("auc", 0.6, 1), ("auc", 0.95, None), ("loss", 0.2, 2)])
def test_the_target_is_reached_by_the_first_round_that_is_as_good(metric: str, target: float, expected: Any) -> None:
    history = History(None, [round_(0, a=0.5), round_(1, a=0.6), round_(2, a=0.9)])  # type: ignore[arg-type]
    assert statistics.reached(history, metric, target) == expected


def test_an_interval_ends_where_the_metric_does() -> None:
    assert statistics.level([0.9, 1.0], "auc").high == 1.0
    assert statistics.level([0.1, 3.0], "loss").low == 0.0
    assert statistics.level([0.1, 3.0], "loss").high > 3.0
