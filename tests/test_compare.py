"""The script that compares strategies: whose results it shows, and what it refuses."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from aggregator.sweep import Outcome
from silos.phantom import write_hospital

SCRIPT = Path(__file__).parents[1] / "scripts" / "compare.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, whose sweep is over at once."""
    spec = importlib.util.spec_from_file_location("compare", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "sweep", lambda *_, **__: Outcome(None, {}, {}, {}, []))
    return module


def test_hospitals_of_another_site_or_other_labels_are_not_taken_for_these(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "study.toml").write_text(script.STUDY)
    one, other = (
        write_hospital(tmp_path / name, name="all", seed=seed, patients=24, images=1, size=32, studies=["compare"])
        for seed, name in enumerate(("one", "other"))
    )

    def compare(site: Path, alpha: str = "0.5", work: str = "work") -> tuple[int, str]:
        given = f"--site {site} --study {tmp_path / 'study.toml'} --into 2 --alpha {alpha} --work {tmp_path / work}"
        return script.main(given.split()), capsys.readouterr().err

    made = tmp_path / "work" / "all-2-0.5"
    assert compare(one)[0] == compare(one)[0] == 0
    code, said = compare(other)
    assert code == 1
    assert f"error: {made}: was made with other `site` and `site.toml` and `labels`" in said
    assert "choose another folder" in said
    assert compare(other, work="another")[0] == 0
    assert "was made with other `alpha`" in compare(one, alpha="0.50000001")[1]
    labels = one.parent / "labels.csv"
    labels.write_text(labels.read_text() + "\n")
    assert "was made with other `labels`" in compare(one)[1]


@pytest.mark.parametrize("wrong", ["--alpha -1", "--alpha nan", "--alpha 0", "--into 0", "--seeds 0", "--processes 0"])
def test_an_impossible_number_is_refused_by_its_option(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        script.main([*wrong.split(), "--work", str(tmp_path / "work")])
    assert f"argument {wrong.split()[0]}: must be " in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def test_a_file_in_the_place_of_the_work_folder_is_named(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("")
    assert script.main(["--work", str(tmp_path / "taken")]) == 1
    assert f"error: {tmp_path / 'taken'}: File exists" in capsys.readouterr().err


def test_a_site_goes_with_a_study(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--site", "site.toml", "--work", str(tmp_path / "work")]) == 1
    assert "error: --site, --study: one goes with the other" in capsys.readouterr().err
