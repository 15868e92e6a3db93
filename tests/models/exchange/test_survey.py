"""A survey can say nothing but bands in the cells of a closed list."""

import json
from typing import Any

import pytest

from models.errors import Malformed
from models.exchange.documents import Band, Survey
from models.exchange.survey import CELLS, MATRIX, SPACING, YEAR, band, step, steps

PATIENT = "Hollowbrook^Perpetua"


def survey(**changes: Any) -> bytes:
    sides = {"train": {"low": 20, "high": 49}, "held out": None}
    values = {"v": 1, "least": 11, "totals": {"patients": {"low": 20, "high": 49}}, "tables": {"sides": sides}}
    return json.dumps(values | changes).encode()


def test_a_survey_is_the_same_after_the_journey() -> None:
    told = Survey.decode(survey())
    assert Survey.decode(told.encode()) == told
    assert told.fields == ["patients", "sides"]
    assert told.lines(()) == {
        ("patients", ""): "20-49",
        ("patients by sides", "train"): "20-49",
        ("patients by sides", "held out"): "hidden",
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"totals": {PATIENT: {"low": 20, "high": 49}}},
        {"totals": {"patients": {"low": 21, "high": 21}}},
        {"totals": {"patients": {"low": 20, "high": 1e309}}},
        {"totals": {"patients": {"low": 20.5, "high": 49}}},
        {"totals": {"patients": {"low": 0, "high": 0}}},
        {"totals": {"patients": {"low": 6, "high": 10}}},
        {"totals": {"patients": {"low": 20, "high": 49, "note": PATIENT}}},
        {"totals": {"patients": None}},
        {"tables": {"sides": {"train": None}}},
        {"tables": {"sides": {"train": None, "held out": None, PATIENT: None}}},
        {"tables": {"sides": {"train": {"low": 1, "high": 5}, "held out": None}}},
        {"tables": {"names": {PATIENT: {"low": 20, "high": 49}}}},
        {"least": 0},
        {"least": True},
        {"note": PATIENT},
    ],
)
def test_what_is_no_band_of_a_known_cell_is_no_survey(changes: dict[str, Any]) -> None:
    with pytest.raises(Malformed) as caught:
        Survey.decode(survey(**changes))
    assert PATIENT not in str(caught.value)


def test_cells_are_distinct_and_every_step_has_one() -> None:
    assert all(len(set(cells)) == len(cells) for cells in CELLS.values())
    for edges in (SPACING, MATRIX, YEAR):
        assert [step(edge, edges) for edge in edges] == list(steps(edges)[1:-1])
        assert step(edges[0] - 0.01, edges) == steps(edges)[0]
    assert steps(YEAR)[:2] == ("below 2000", "2000 to 2004")
    assert steps(SPACING)[1] == "0.1 to 0.2"


def test_a_band_is_one_of_the_bands() -> None:
    assert str(Band(low=11, high=19)) == "11-19"
    assert Band(low=1_000_000, high=1_000_000).low == band(5_000_000)[0]
