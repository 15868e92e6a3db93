"""Before a study starts, hospitals tell what their policies allow of their images: in bands, once, and nothing else."""

import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from aggregator import LocalGrid, Study, rounds, run, survey
from aggregator.audit import reconcile, verify
from aggregator.cli import main as aggregator
from aggregator.surveys import read_surveys
from models.exchange.documents import Survey
from models.ledger import Event, read
from models.plan import Plan
from silos import visit
from silos.cli import main as silo
from silos.config import Site
from silos.released import released

Search = Callable[[Iterable[str], Iterable[bytes]], set[str]]
Write = Callable[..., Path]


@pytest.fixture
def study(write_plan: Write, tmp_path: Path) -> Path:
    Study.create(write_plan(rounds=1), tmp_path / "study").close()
    return tmp_path / "study"


def ask(study: Path, hospitals: Iterable[Path]) -> dict[str, Survey | str]:
    with Study.open(study) as opened, LocalGrid(list(hospitals)) as grid:
        survey(opened, grid)
    return read_surveys(study)[1]


def permit(site: Path, *fields: str) -> None:
    """Let a hospital's survey tell these fields and no other."""
    text = site.read_text()
    start, end = text.index("survey = ["), text.index("# Refuse to train")
    site.write_text(f"{text[:start]}survey = {json.dumps(fields)}\n{text[end:]}")


def ledgers(study: Path, hospitals: Iterable[Path]) -> Iterable[tuple[Path, Path]]:
    return ((study / "ledger", site.parent / "work" / "ledger") for site in hospitals)


def test_three_hospitals_tell_bands_and_no_identifier_leaves(
    study: Path,
    hospitals: list[Path],
    tapped_grid: Any,
    search: Search,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    with Study.open(study) as opened, tapped_grid(hospitals) as grid:
        survey(opened, grid)
    _, answers = read_surveys(study)
    assert list(answers) == ["east", "north", "south"]
    for answer in answers.values():
        assert isinstance(answer, Survey)
        assert f"{answer.totals['patients']}" == "11-19"
        assert f"{answer.totals['images']}" == "20-49"  # 48 of them
        assert {f"{cell}" for cell in answer.tables["classes"].values()} == {"11-19"}
        assert answer.tables["sides"] == {"train": None, "held out": None}  # 4 held out, of at most 19
        assert set(answer.tables["manufacturer"].values()) == {None}  # 16 of at most 19 would tell who has no other
    planted = [line for site in hospitals for line in (site.parent / "canaries.txt").read_text().splitlines()]
    makers = ["Aurelia Imaging", "Nordlys Medical", "Tidewater Magnetics", "Corvid Systems", "Meridian", "Polaris"]
    everything = [path.read_bytes() for path in sorted(study.rglob("*")) if path.is_file()]
    assert len(grid.tapped) > 20
    assert search([*planted, *makers], grid.tapped) == set()
    assert search([*planted, *makers], everything) == set()
    assert search(planted, [record.getMessage().encode() for record in caplog.records]) == set()
    for theirs, ours in ledgers(study, hospitals):
        assert verify(ours).ok
        assert reconcile(theirs, ours).ok
    assert [item.what for item in released(hospitals[0].parent / "work" / "ledger")] == ["survey"]


def test_a_survey_is_made_of_headers_and_trains_nothing(
    study: Path, hospitals: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("not for a survey")

    monkeypatch.setattr(visit.dataset, "prepare", fail)
    monkeypatch.setattr(visit.training, "evaluate", fail)
    assert all(isinstance(answer, Survey) for answer in ask(study, hospitals).values())


def test_a_hospital_whose_policy_names_nothing_refuses_and_the_others_are_heard(
    study: Path, hospitals: list[Path]
) -> None:
    permit(hospitals[0])
    permit(hospitals[1], "images")
    answers = ask(study, hospitals)
    assert answers["east"] == "survey-not-allowed"
    assert isinstance(answers["north"], Survey)
    assert answers["north"].fields == ["images"]
    events = [record.event for record in read(hospitals[0].parent / "work" / "ledger").records]
    assert events[-1] == Event.REFUSAL_OFFERED
    assert Event.SURVEY_OFFERED not in events


def test_a_study_that_nobody_let_in_is_told_nothing(study: Path, hospitals: list[Path]) -> None:
    text = hospitals[2].read_text()
    hospitals[2].write_text(text.replace('studies = ["trial", "trial-prox"]', "studies = []"))
    assert ask(study, hospitals)["south"] == "study-not-approved"


def test_a_hospital_with_too_few_patients_tells_nothing(study: Path, hospitals: list[Path]) -> None:
    text = hospitals[1].read_text()
    hospitals[1].write_text(text.replace("min_patients = 11", "min_patients = 20"))
    assert ask(study, hospitals)["north"] == "too-few-patients"


def test_a_second_survey_asks_only_who_has_not_answered(study: Path, hospitals: list[Path]) -> None:
    permit(hospitals[0])
    ask(study, hospitals)
    permit(hospitals[0], "patients")
    answers = ask(study, hospitals)
    assert isinstance(answers["east"], Survey)
    for site, asked in zip(hospitals, (2, 1, 1), strict=True):
        records = read(site.parent / "work" / "ledger").records
        assert [record.event for record in records].count(Event.ORDER_RECEIVED) == asked


def test_a_second_answer_is_the_first_one_whatever_has_changed_since(study: Path, hospitals: list[Path]) -> None:
    first = ask(study, hospitals)
    for site in hospitals:  # half of the images are gone
        for path in sorted(path for path in (site.parent / "dicom").rglob("*") if path.is_file())[::2]:
            path.unlink()
    insist(study, hospitals)
    assert read_surveys(study)[1] == first
    permit(hospitals[0], "patients")
    insist(study, hospitals)
    for site, last in zip(hospitals, ("refusal", "survey", "survey"), strict=True):
        sent = released(site.parent / "work" / "ledger")
        assert [item.what for item in sent] == ["survey", "survey", last]
    assert released(hospitals[0].parent / "work" / "ledger")[-1].metrics == "survey-not-allowed"


def insist(study: Path, hospitals: list[Path]) -> None:
    """Ask those again who have answered, as a coordinator could who wants to compare two answers."""
    with Study.open(study) as opened, LocalGrid(hospitals) as grid:
        again = rounds._Run(opened, grid, 0)
        again.visit(dict.fromkeys(again.wait_for(3, 0), "survey"), 0, opened.position)


def test_the_study_that_follows_is_not_disturbed(
    study: Path, hospitals: list[Path], write_plan: Write, tmp_path: Path
) -> None:
    ask(study, hospitals)
    with Study.open(study) as opened, LocalGrid(hospitals) as grid:
        outcome = run(opened, grid)
    assert outcome.history.rounds[1].accepted == ["east", "north", "south"]
    assert outcome.history.rounds[1].refused == {}
    assert outcome.history.closed
    for theirs, ours in ledgers(study, hospitals):
        assert reconcile(theirs, ours).ok
    assert aggregator(["survey", str(study), "--local", *map(str, hospitals)]) == 1  # it is over


def test_the_command_prints_a_table_or_json(
    study: Path, hospitals: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    permit(hospitals[2])
    sites = [str(site) for site in hospitals]
    assert aggregator(["survey", str(study), "--local", *sites]) == 0
    printed = capsys.readouterr().out
    assert "patients by classes" in printed
    assert "south tells nothing: survey-not-allowed" in printed
    assert aggregator(["survey", str(study), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["hospitals"]
    assert told["north"]["totals"]["patients"] == {"low": 11, "high": 19}
    assert told["south"] == "survey-not-allowed"


def test_a_hospital_sees_beforehand_what_it_would_tell(
    study: Path, hospitals: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = study / "study.toml"
    assert silo(["describe", str(hospitals[0]), "--study", str(plan), "--images", "1", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["survey"]
    answer = ask(study, hospitals)["east"]
    assert isinstance(answer, Survey)
    assert answer.model_dump(mode="json") == shown
    site = Site.load(hospitals[0])
    assert visit.survey(site, Plan.load(plan)) == answer
