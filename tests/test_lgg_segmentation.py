"""The comparison of ways to outline tumours: what its tables say, and one short trial on the real hospitals."""

import importlib
import json
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("lgg_segmentation")


def write(script: ModuleType, folder: Path, seed: int, dice: dict[str, float], dimensions: int = 2) -> list[Path]:
    """Results of one trial: each arm's Dice, the same in all hospitals."""
    trial = script.Trial(dimensions, seed, folder / f"{dimensions}d-seed{seed}")
    for arm, value in dice.items():
        scores = {name: {"patients": 3, "dice": value} for name in script.TRAINING}
        about = {"dimensions": dimensions, "arm": arm, "seed": seed, "steps": 7, "scores": scores}
        trial.result(arm).parent.mkdir(parents=True, exist_ok=True)
        trial.result(arm).write_text(json.dumps(about))
    return [trial.result(arm) for arm in dice]


ALONE = {"north": 0.1, "east": 0.5, "south": 0.2, "west": 0.4}


def test_the_table_says_which_bars_are_met_and_which_are_missed(script: ModuleType, tmp_path: Path) -> None:
    dice = {**ALONE, "fedavg": 0.68, "fedprox": 0.66, "fedbn": 0.45, "fedbn-prox": 0.68, "pooled": 0.7}
    assert not script.write_results(write(script, tmp_path, 1, dice), tmp_path / "out")
    text = (tmp_path / "out" / "lgg_segmentation.md").read_text()
    assert "- fedavg: +0.180 to the best hospital alone (met), -0.020 to pooled (bar -0.03: met)" in text
    assert "- fedprox: +0.160 to the best hospital alone (met), -0.040 to pooled (bar -0.03: missed)" in text
    assert "- fedbn: -0.050 to the best hospital alone (missed), -0.250 to pooled (bar -0.03: missed)" in text


def test_all_is_well_only_if_every_federation_meets_both_bars_everywhere(script: ModuleType, tmp_path: Path) -> None:
    dice = {**ALONE, "fedavg": 0.68, "fedprox": 0.72, "fedbn": 0.69, "fedbn-prox": 0.69, "pooled": 0.7}
    slices = write(script, tmp_path, 1, dice)
    assert script.write_results(slices, tmp_path / "out")
    volumes = write(script, tmp_path, 1, {**dice, "pooled": 0.8}, dimensions=3)
    assert not script.write_results(slices + volumes, tmp_path / "out")


def test_a_seed_whose_arms_are_not_all_finished_is_not_in_the_table(script: ModuleType, tmp_path: Path) -> None:
    dice = {**ALONE, "fedavg": 0.68, "fedprox": 0.68, "fedbn": 0.68, "fedbn-prox": 0.68, "pooled": 0.7}
    results = write(script, tmp_path, 1, dice) + write(script, tmp_path, 2, ALONE)
    assert script.write_results(results, tmp_path / "out")
    assert "Seed 1 only" in (tmp_path / "out" / "lgg_segmentation.md").read_text()
    assert len((tmp_path / "out" / "lgg_segmentation.csv").read_text().splitlines()) == 1 + 4 * (9 + 4)
    assert not script.write_results(write(script, tmp_path, 3, ALONE), tmp_path / "out")


def test_the_published_table_is_of_all_dimensions_seeds_and_rounds(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "RESULTS", tmp_path / "published")
    (tmp_path / "data" / "north" / "dicom" / "SEG").mkdir(parents=True)
    common = ["lgg_segmentation", "--data", str(tmp_path / "data"), "--work", str(tmp_path / "work"), "--only-write"]
    for smaller in ("--dimensions 2", "--seeds 1", "--rounds 1", "--epochs 2"):
        monkeypatch.setattr("sys.argv", [*common, *smaller.split()])
        script.main()
        assert "# Real brain MR of five hospitals" in capsys.readouterr().out
        assert not script.RESULTS.exists()
    monkeypatch.setattr("sys.argv", common)
    script.main()
    assert {path.name for path in script.RESULTS.iterdir()} == {"lgg_segmentation.csv", "lgg_segmentation.md"}


@pytest.mark.lgg
def test_real_hospitals_are_compared_and_a_finished_arm_is_not_trained_again(
    script: ModuleType, lgg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"TRAINING": ("north", "south"), "ARMS": ("fedbn", "pooled", "south")}.items():
        monkeypatch.setattr(script, name, value)
    options = Namespace(data=lgg, work=tmp_path, dimensions=[2], seeds=[1], rounds=1, epochs=1)
    script.write_hospitals(options)
    (trial,) = script.trials(options)
    script.work_on((trial, options))

    found = {arm: json.loads(trial.result(arm).read_text()) for arm in script.ARMS}
    assert found["fedbn"]["steps"] == found["pooled"]["steps"] > found["south"]["steps"] > 0
    for about in found.values():
        assert set(about["scores"]) == {"north", "south"}
        assert all(0 <= score["dice"] <= 1 and score["patients"] >= 1 for score in about["scores"].values())
    script.write_pictures(trial, tmp_path / "pictures" / "one.png")
    assert (tmp_path / "pictures" / "one.png").stat().st_size > 10_000

    monkeypatch.setattr(script, "work_on_arm", lambda *_: pytest.fail("trained again"))
    script.work_on((trial, options))
