"""The arithmetic of a comparison, against SciPy and against published numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from aggregator.history import History, Round
from aggregator.sweep import comparison, statistics, table
from aggregator.sweep.arms import Arm
from aggregator.sweep.page import page
from aggregator.sweep.running import Run
from models.page import as_markdown
from models.plan import Plan

PLAN = Plan.load(Path(__file__).parents[3] / "configs" / "study.toml")
METRIC = st.floats(0, 1, allow_subnormal=False)  # SciPy divides by them
VALUES = st.lists(METRIC, min_size=3, max_size=9)


def round_(number: int, **told: float) -> Round:
    metrics = {name: {"auc": value, "loss": 1 - value} for name, value in told.items()}
    return Round(number, "", metrics=metrics, examples=dict.fromkeys(told, 9.0))


@given(VALUES)
def test_an_interval_is_that_of_student(values: list[float]) -> None:
    found = statistics.estimate(values)
    spread = stats.sem(values)
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), spread) if spread else (values[0], values[0])
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9))


@given(VALUES, st.data())
def test_p_is_that_of_the_paired_t_test(first: list[float], data: st.DataObject) -> None:
    second = data.draw(st.lists(METRIC, min_size=len(first), max_size=len(first)))
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
    assert statistics.means(History(PLAN, [model]), "auc") == {1: pytest.approx(0.7)}
    assert (statistics.worst(model, "auc"), statistics.worst(model, "loss")) == (0.5, pytest.approx(0.5))


@pytest.mark.parametrize(("metric", "target", "expected"), [("auc", 0.6, 1), ("auc", 0.95, None), ("loss", 0.2, 2)])
def test_the_target_is_reached_by_the_first_round_that_is_as_good(metric: str, target: float, expected: Any) -> None:
    history = History(None, [round_(0, a=0.5), round_(1, a=0.6), round_(2, a=0.9)])  # type: ignore[arg-type]
    assert statistics.reached(history, metric, target) == expected


def test_a_round_without_one_of_those_who_judge_the_last_model_reaches_nothing() -> None:
    rounds = [round_(0, a=0.5, b=0.1), round_(1, a=0.9), round_(2, a=0.9, b=0.2, c=0.0), round_(3, a=0.9, b=0.9)]
    history = History(PLAN, rounds)
    assert statistics.means(history, "auc") == {0: 0.3, 2: pytest.approx(0.55), 3: 0.9}
    assert statistics.reached(history, "auc", 0.8) == 3


def test_a_last_model_that_not_everybody_measured_is_told() -> None:
    runs = {Run(Arm("fedavg", {}, {}), seed, Path(), ()): seed for seed in (1, 2, 3)}
    last = {1: round_(1, a=0.5, b=0.5), 2: round_(1, b=0.5), 3: Round(1, "")}
    found = comparison.incomplete({run: History(PLAN, [last[seed]]) for run, seed in runs.items()}, "auc")
    assert {runs[run]: what for run, what in found.items()} == {
        2: "auc of its last model is missing at a",
        3: "auc of its last model is missing at a, b",
    }


def test_a_column_of_several_kinds_is_one_of_text(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    changes: list[dict[str, Any]] = [{"a": False, "b": 1, "c": "x"}, {"a": [{"name": "RandFlip"}], "b": 0.5}, {}]
    histories = {
        Run(Arm(str(number), change, {}), 1, Path(), ()): History(PLAN, [round_(0, north=0.5)])
        for number, change in enumerate(changes)
    }
    table.write(tmp_path, table.rows(histories))
    found = pandas.read_parquet(tmp_path / "results.parquet").query("metric == 'auc'")
    assert list(found["a"])[:2] == ["False", "[{'name': 'RandFlip'}]"]
    assert list(found["b"])[:2] == [1, 0.5]
    assert (found["c"][0], found["c"].isna().sum()) == ("x", 2)


def test_an_interval_ends_where_the_metric_does() -> None:
    assert statistics.level([-2.0, -2.2, -1.8], "loss").low == pytest.approx(-2.497, abs=1e-3)
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
    return as_markdown(page(PLAN, found, {}, {}, {}))


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
