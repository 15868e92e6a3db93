"""The studies of a service: asked for by commands, read by the service, kept with the reason why one ended."""

from pathlib import Path

import pytest

from aggregator.service import runs
from aggregator.service.home import Home
from models.errors import ConfigError

STUDY, OTHER = "ab" * 32, "cd" * 32


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.create(tmp_path / "home", "localhost:8443")


def test_studies_are_wanted_until_they_are_not(home: Home, tmp_path: Path) -> None:
    runs.want(home, STUDY, tmp_path / "lgg")
    runs.want(home, OTHER, tmp_path / "other")
    runs.set_run(home, STUDY, 2**64 - 1)
    runs.want(home, STUDY, tmp_path / "lgg")  # again: goes on as it is
    wanted = runs.wanted(Home.open(home.folder))
    assert set(wanted) == {STUDY, OTHER}
    assert (wanted[STUDY].folder, wanted[STUDY].run_id) == (tmp_path / "lgg", 2**64 - 1)
    assert (wanted[OTHER].folder, wanted[OTHER].run_id) == (tmp_path / "other", None)
    runs.unwant(home, STUDY)
    runs.unwant(home, STUDY)
    runs.set_run(home, STUDY, 7)
    assert set(runs.wanted(home)) == {OTHER}
    assert runs.studies(home)[STUDY].run_id == 2**64 - 1  # what came to an end is not changed any more


def test_a_study_that_cannot_go_on_is_remembered_with_its_reason(home: Home, tmp_path: Path) -> None:
    runs.want(home, STUDY, tmp_path / "lgg")
    runs.want(home, OTHER, tmp_path / "other")
    runs.unwant(home, STUDY, ("the ledger was rewritten", "restore it"))
    runs.unwant(home, OTHER)
    assert runs.wanted(home) == {}
    found = runs.studies(home)
    assert (found[STUDY].problem, found[OTHER].problem) == (("the ledger was rewritten", "restore it"), None)
    runs.want(home, STUDY, tmp_path / "lgg")
    assert runs.wanted(home)[STUDY].problem is None


def test_where_a_study_lies_is_kept_whole(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs.want(home, STUDY, Path("lgg"))
    assert runs.wanted(home)[STUDY].folder == tmp_path / "lgg"


def test_one_study_is_not_run_from_two_folders(home: Home, tmp_path: Path) -> None:
    runs.want(home, STUDY, tmp_path / "lgg")
    with pytest.raises(ConfigError, match="is run from"):
        runs.want(home, STUDY, tmp_path / "copy")
    assert runs.wanted(home)[STUDY].folder == tmp_path / "lgg"


def test_a_study_is_surveyed_or_run_and_not_both(home: Home, tmp_path: Path) -> None:
    runs.want(home, STUDY, tmp_path / "lgg", survey=True)
    assert runs.wanted(home)[STUDY].survey
    with pytest.raises(ConfigError, match="being surveyed"):
        runs.want(home, STUDY, tmp_path / "lgg")
    runs.unwant(home, STUDY)
    runs.want(home, STUDY, tmp_path / "lgg")
    assert not runs.wanted(home)[STUDY].survey
    with pytest.raises(ConfigError, match="it runs already"):
        runs.want(home, STUDY, tmp_path / "lgg", survey=True)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"run_id": 1}', '{"folder": "x", "run_id": -1}', '{"folder": "x", "y": 1}']
)
def test_a_damaged_note_of_a_study_is_named(home: Home, text: str) -> None:
    (home.runs / f"{STUDY}.json").write_text(text)
    with pytest.raises(ConfigError, match=rf"{STUDY}.json"):
        runs.wanted(home)
