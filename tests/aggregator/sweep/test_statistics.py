"""The arithmetic of a comparison, against SciPy and against published numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from aggregator.history import History, Round
from aggregator.sweep import comparison, statistics
from aggregator.sweep.arms import Arm
from aggregator.sweep.page import page
from aggregator.sweep.running import Run
from models.page import as_markdown
from models.plan import Plan

PLAN = Plan.load(Path(__file__).parents[3] / "configs" / "study.toml")
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


def compared(told: dict[str, list[float]], first: str, target: float | None = None) -> comparison.Comparison:
    """A comparison of arms, each with the values of its seeds."""
    histories = {
        Run(Arm(label, {}, {}), seed, Path(), ()): History(PLAN, [round_(0, north=value)])
        for label, values in told.items()
        for seed, value in enumerate(values)
    }
    found = comparison.compare(histories, "auc", target, first)
    assert found is not None
    return found


def reading(found: comparison.Comparison) -> str:
    return as_markdown(page(PLAN, found, {}, {}))


def test_without_a_run_of_the_first_arm_nothing_is_compared_with_another_one() -> None:
    found = compared({"b": [0.7, 0.8], "c": [0.6, 0.9]}, first="a")
    assert [one.difference for one in found.results] == [None, None]
    assert (found.target, [row[4:] for row in comparison.table(found)[1]]) == (None, [("", "", "")] * 2)
    assert "No run of the first arm, a, is over" in reading(found)
    given = compared({"b": [0.7, 0.8]}, first="a", target=0.75)
    assert [one.reached for one in given.results] == [[None, 0]]
    assert "Target: 0.750." in reading(given)


def test_the_page_counts_the_comparisons_that_were_corrected() -> None:
    found = compared({"a": [0.5, 0.6, 0.7], "b": [0.6, 0.8, 0.7], "c": [0.9], "d": [0.6, 0.7, 0.9]}, first="a")
    assert "corrected by Holm for 2 comparisons" in reading(found)
