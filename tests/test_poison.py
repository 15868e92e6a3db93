"""The script that poisons a hospital: what of its tables is published."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "poison.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script, with a result of every study at once and a folder of its own for what is published."""
    spec = importlib.util.spec_from_file_location("poison", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "published")
    monkeypatch.setattr(module, "write_sites", lambda *_: ([], []))
    monkeypatch.setattr(module, "auc", lambda *_: 0.75)
    return module


@pytest.mark.parametrize("smaller", ["--only fedavg krum", "--seeds 1", "--rounds 1"])
def test_the_published_table_is_of_a_whole_run(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], smaller: str
) -> None:
    assert script.main(smaller.split()) == 0
    assert "| krum (malicious = 1) | 0.750 |" in capsys.readouterr().out
    assert not script.RESULTS.exists()
    assert script.main([*smaller.split(), "--results", str(tmp_path / "own")]) == 0
    assert {path.name for path in (tmp_path / "own").iterdir()} == {"poison.csv", "poison.md"}
    assert script.main([]) == 0
    assert len((script.RESULTS / "poison.csv").read_text().splitlines()) == 1 + 3 * 13 * 4


@pytest.mark.parametrize("wrong", ["--seeds 0", "--rounds 0", "--rounds -1"])
def test_no_seed_or_no_round_is_refused(script: ModuleType, capsys: pytest.CaptureFixture[str], wrong: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        script.main(wrong.split())
    assert f"{wrong.split()[0]}: must be a whole number of at least 1" in capsys.readouterr().err
    assert not script.RESULTS.exists()
