"""What a coordinator takes for a survey: bands in known cells from those that were asked, and nothing else."""

from collections.abc import Callable
from typing import Any

import pytest

from aggregator.exports.fact import facts
from aggregator.report import as_html, report
from aggregator.rounds import run, survey
from aggregator.surveys import read_surveys, rows
from models.errors import ConfigError
from models.exchange.documents import Survey
from models.exchange.statement import Kind
from models.ledger import Event, Signer, read

Toy = Any  # of conftest.py

PATIENT = "Hollowbrook^Perpetua"
BAND = {"low": 20, "high": 49}


def ask(toy: Toy) -> dict[str, Survey | str]:
    grid = type(toy).run.__globals__["Hospitals"]
    survey(toy.study, grid(toy.hospitals.values()))
    return read_surveys(toy.study.folder)[1]


def tables(**cells: Any) -> dict[str, Any]:
    return {"v": 1, "least": 11, "totals": {"patients": BAND}, "tables": cells}


@pytest.mark.parametrize(
    ("told", "code"),
    [
        (tables(classes={"none": BAND, "lesion": None}), ""),
        (tables(classes={"none": BAND}), "malformed.survey"),
        (tables(classes={"none": BAND, "lesion": None, PATIENT: None}), "malformed.survey"),
        (tables(classes={"none": BAND, "lesion": {"low": 21, "high": 22}}), "malformed"),
        (tables(sides={"train": BAND}), "malformed"),
        (tables(names={PATIENT: BAND}), "malformed"),
        ({"v": 1, "least": 60, "totals": {"patients": BAND}, "tables": {}}, "malformed"),
        ({"v": 1, "code": "policy"}, "malformed"),
    ],
)
def test_a_survey_that_is_not_in_order_is_rejected_with_a_code(
    toy: Callable[..., Toy], told: dict[str, Any], code: str
) -> None:
    study = toy()
    study.hospitals["north"].told = told
    answers = ask(study)
    assert isinstance(answers["east"], Survey)
    assert answers["north"] == code or (not code and isinstance(answers["north"], Survey))
    assert not any(PATIENT in str(record.body) for record in study.study.ledger.records)


def test_a_hospital_that_refuses_a_survey_for_want_of_witnesses_is_heard(toy: Callable[..., Toy]) -> None:
    study = toy()
    study.hospitals["north"].told, study.hospitals["north"].told_as = {"v": 1, "code": "not-witnessed"}, Kind.REFUSAL
    answers = ask(study)
    assert answers["north"] == "not-witnessed"
    assert isinstance(answers["east"], Survey)


def test_a_hospital_that_answers_with_something_else_is_rejected(toy: Callable[..., Toy]) -> None:
    study = toy(deadline=0.5)
    study.hospitals["north"].told_as = Kind.CLOSING
    study.hospitals["west"].silent = True
    answers = ask(study)
    assert answers["north"] == "malformed.kind"
    assert answers["west"] == "silent"


def test_answers_stand_side_by_side(toy: Callable[..., Toy]) -> None:
    study = toy()
    study.hospitals["north"].told = tables(classes={"lesion": None, "none": BAND})
    study.hospitals["south"].told = tables(sides={"train": None, "held out": None})
    agreement, _ = read_surveys(study.study.folder)
    answers = ask(study) | {"west": "silent"}
    assert rows(agreement, answers) == [
        ("patients", "", "20-49", "20-49", "20-49", ""),
        ("patients by classes", "none", "", "20-49", "", ""),
    ]


def test_a_study_that_was_only_surveyed_does_not_begin_with_a_hospital_under_another_key(
    toy: Callable[..., Toy],
) -> None:
    made = toy()
    ask(made)
    grid = type(made).run.__globals__["Hospitals"](made.hospitals.values())
    west = next(node for node, key in grid.roster.items() if key.name == "west")
    grid.roster[west] = Signer.from_seed("west", b"i" * 32).verifier
    with pytest.raises(ConfigError, match="west: has another key"):
        run(made.study, grid)


def test_a_study_that_is_over_surveys_nobody(toy: Callable[..., Toy]) -> None:
    study = toy(rounds=1)
    study.run()
    with pytest.raises(ConfigError, match="is over"):
        ask(study)
    assert study.lines(Event.SURVEY_RECEIVED) == []


def test_the_report_and_the_exports_say_what_was_told(toy: Callable[..., Toy]) -> None:
    study = toy()
    ask(study)
    opened = read(study.study.folder / "ledger")
    told = [fact.details.get("survey") for fact in facts(opened) if fact.record.event == Event.SURVEY_RECEIVED]
    assert told == ["patients"] * 4
    page = as_html(report(study.study.folder / "ledger", view="hipaa"))
    assert "in bands: patients" in page
    assert "4 surveys in bands before the study: patients" in page
