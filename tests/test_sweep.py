"""A sweep over hospitals that were made of one data set: real studies, resumed, compared, written down."""

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from aggregator import LocalGrid, Study, run
from aggregator.audit import reconcile
from aggregator.cli import main
from aggregator.history import History, read_study
from aggregator.sweep import Outcome, Run, running, sweep
from aggregator.sweep.running import carry_out_all
from models.errors import ConfigError
from silos.derived import derive
from silos.phantom import write_hospital
from silos.split import split

PLAN = """
name = "trial"
purpose = "Test."
rounds = 2
[task]
name = "classification"
classes = ["none", "lesion"]
modality = ["MR"]
size = [16, 16]
percentiles = [1, 99]
network = { name = "cnn", arguments = { channels = [4, 8] } }
[training]
steps = 2
batch_size = 8
learning_rate = 0.05
"""

SWEEP = """
study = "study.toml"
sites = ["parts/*/site.toml"]
seeds = [1, 2]
processes = 2
[[arms]]
strategy.name = "fedavg"
[[arms]]
label = "pull"
strategy.name = "fedprox"
strategy.mu = 5.0
"""


class Stopped(Exception):  # noqa: N818
    pass


def stop(history: History) -> None:
    raise Stopped


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome, list[str]]:
    """A folder with a sweep that is over; one of its runs had been stopped after the first round before."""
    folder = tmp_path_factory.mktemp("sweep")
    everybody = write_hospital(folder / "all", name="all", patients=24, images=2, size=32, studies=["trial"])
    everybody.write_text(everybody.read_text().replace("min_patients = 11", "min_patients = 6"))
    split(everybody, folder / "parts", into=2)
    (folder / "study.toml").write_text(PLAN)
    (folder / "sweep.toml").write_text(SWEEP)
    begun = folder / "out" / "runs" / "fedavg" / "seed-2"
    begun.mkdir(parents=True)
    (begun / "plan.toml").write_text(PLAN.replace("rounds = 2", "rounds = 2\nseed = 2"))
    sites = [derive(site, begun / "hospitals") for site in sorted((folder / "parts").glob("*/site.toml"))]
    with (
        Study.create(begun / "plan.toml", begun / "study") as study,
        LocalGrid(sites) as grid,
        pytest.raises(Stopped),
    ):
        run(study, grid, stop)
    model = begun / "study" / "models" / "001.safetensors"
    before = model.stat().st_mtime_ns
    told: list[str] = []
    outcome = sweep(folder / "sweep.toml", folder / "out", lambda run, problem: told.append(run.arm.label + problem))
    assert model.stat().st_mtime_ns == before, "the round that was over was done again"
    return folder, outcome, told


def test_every_arm_is_run_with_every_seed(swept: tuple[Path, Outcome, list[str]]) -> None:
    _, outcome, told = swept
    assert sorted(told) == ["fedavg", "fedavg", "pull", "pull"]
    assert not outcome.failed
    assert all(history.closed and len(history.rounds) == 3 for history in outcome.histories.values())
    assert [run.plan.seed for run in outcome.histories] == [1, 2, 1, 2]


def test_every_run_is_a_real_study_whose_ledgers_agree(swept: tuple[Path, Outcome, list[str]]) -> None:
    folder, _, _ = swept
    pairs = [
        reconcile(study / "ledger", hospital / "work" / "ledger")
        for study in folder.glob("out/runs/*/*/study")
        for hospital in (study.parent / "hospitals").iterdir()
    ]
    assert len(pairs) == 8
    assert all(pair.ok and pair.closed and pair.orders == pair.replies == 4 for pair in pairs)


def test_images_are_indexed_and_decoded_in_one_place(swept: tuple[Path, Outcome, list[str]]) -> None:
    folder, _, _ = swept
    assert [path.parents[1].name for path in folder.rglob("index.sqlite") if path.parent.name == "work"] == ["all"]
    assert {path.relative_to(folder).parts[0] for path in folder.rglob("images")} == {"all"}


def test_pandas_reads_a_row_per_run_round_hospital_and_metric(swept: tuple[Path, Outcome, list[str]]) -> None:
    folder, outcome, _ = swept
    csv, parquet = pd.read_csv(folder / "out" / "results.csv"), pd.read_parquet(folder / "out" / "results.parquet")
    assert list(csv.columns) == list(parquet.columns)
    assert len(csv) == len(parquet) == 2 * 2 * 3 * 2 * 2
    assert not csv.duplicated(["arm", "seed", "round", "hospital", "metric"]).any()
    (first, *_), row = outcome.histories.items(), csv.iloc[-1]
    assert row["strategy.mu"] == 5.0
    last = csv[(csv["arm"] == "fedavg") & (csv["seed"] == 1) & (csv["round"] == 2) & (csv["metric"] == "auc")]
    told = {name: values["auc"] for name, values in first[1].rounds[2].metrics.items()}
    assert dict(zip(last["hospital"], last["value"], strict=True)) == told


def test_the_page_stands_alone_and_tells_every_arm(swept: tuple[Path, Outcome, list[str]]) -> None:
    folder, outcome, _ = swept
    page = (folder / "out" / "sweep.html").read_text()
    assert page.count("<svg") == 3
    assert "http" not in page.replace("http-equiv", "")
    assert outcome.comparison is not None
    for one in outcome.comparison.results:
        assert one.label in page
        assert str(one.final) in page
    for run_, history in outcome.histories.items():
        assert history.rounds[-1].model in page, run_.folder
    assert {path.name for path in outcome.files} >= {"curves.svg", "hospitals.svg", "targets.svg", "sweep.md"}


def test_what_goes_wrong_in_a_simulation_can_go_wrong_in_every_run(swept: tuple[Path, Outcome, list[str]]) -> None:
    folder, _, _ = swept
    absent = '[[faults]]\nwhat = "absent"\nrounds = [1, 1]\n'
    (folder / "faults.toml").write_text(SWEEP.split("[[arms]]\nlabel")[0].replace("[1, 2]", "[3]") + absent)
    (history,) = sweep(folder / "faults.toml", folder / "faults").histories.values()
    assert [len(item.accepted) for item in history.rounds[1:]] == [0, 2]


def test_what_is_over_is_not_run_again(
    swept: tuple[Path, Outcome, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _, _ = swept
    before = {path: path.stat().st_mtime_ns for path in (folder / "out" / "runs").rglob("*") if path.is_file()}
    assert main(["sweep", str(folder / "sweep.toml"), str(folder / "out")]) == 0
    assert {path: path.stat().st_mtime_ns for path in (folder / "out" / "runs").rglob("*") if path.is_file()} == before
    told = capsys.readouterr()
    assert "pull" in told.out
    assert "done" not in told.err


def test_a_run_of_another_plan_is_not_taken_for_this_one(
    swept: tuple[Path, Outcome, list[str]], tmp_path: Path
) -> None:
    folder, _, _ = swept
    (tmp_path / "study.toml").write_text(PLAN.replace("steps = 2", "steps = 3"))
    changed = SWEEP.replace("parts/", f"{folder}/parts/")
    (tmp_path / "sweep.toml").write_text(changed)
    with pytest.raises(ConfigError, match=r"fedavg/seed-1: holds a run of another plan"):
        sweep(tmp_path / "sweep.toml", folder / "out")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("parts/*/site", "parts/[!x]*1/site", "`sites`"),
        ("processes = 2", "batched = true", "`batched`"),
        ("processes = 2", "processes = 1", ""),
        ("strategy.mu = 5.0", 'strategy.mu = 5.0\n[[faults]]\nwhat = "absent"\nrounds = [1, 1]', "`faults`"),
    ],
)
def test_a_run_with_other_hospitals_or_faults_is_not_taken_for_this_one(
    swept: tuple[Path, Outcome, list[str]], old: str, new: str, says: str
) -> None:
    folder, outcome, _ = swept
    assert old in SWEEP
    (folder / "other.toml").write_text(SWEEP.replace(old, new))
    if not says:
        assert len(sweep(folder / "other.toml", folder / "out").histories) == len(outcome.histories)
        return
    with pytest.raises(ConfigError, match=f"fedavg/seed-1: was made with other {says}") as caught:
        sweep(folder / "other.toml", folder / "out")
    assert "choose another folder" in caught.value.hint


def test_a_run_that_fails_is_told_and_does_not_stop_the_others(
    swept: tuple[Path, Outcome, list[str]], tmp_path: Path
) -> None:
    folder, _, _ = swept
    (tmp_path / "study.toml").write_text(PLAN)
    text = SWEEP.replace("parts/", f"{folder}/parts/").replace("seeds = [1, 2]", "seeds = [1]")
    (tmp_path / "sweep.toml").write_text(text + '[[arms]]\nlabel = "damaged"\nrounds = 1\n')
    shutil.copytree(folder / "out" / "runs", tmp_path / "out" / "runs")
    (tmp_path / "out" / "runs" / "damaged" / "seed-1" / "study").mkdir(parents=True)
    told: dict[str, str] = {}

    def ended(run: Run, problem: str) -> None:
        told[run.arm.label] = problem

    outcome = sweep(tmp_path / "sweep.toml", tmp_path / "out", ended)
    assert list(told) == ["damaged"]
    assert "is no study folder" in told["damaged"]
    assert len(outcome.histories) == 2
    assert told["damaged"].split(" (")[0] in (tmp_path / "out" / "sweep.html").read_text()


NETWORK = "task.network.name = "
FAULT = '[[faults]]\nwhat = "absent"\nsilos = ["nrth"]'


@pytest.mark.parametrize(
    ("top", "last", "says"),
    [
        ("", f'{NETWORK}"resnet99"', "arms: last: task.network.name: no network is called 'resnet99'"),
        ("", "task.network.arguments.chanels = 4", "arms: last: task.network.arguments.chanels: is not an argument"),
        (
            "",
            f'strategy.name = "fedavgm"\n{NETWORK}"cnn"\ntask.network.arguments.norm = "batch"',
            'arms: last: strategy.name: "fedavgm" would step ',
        ),
        ("", "min_silos = 9", "arms: last: min_silos: 9 are required, `sites` has 2"),
        ("batched = true", 'training.optimizer = "adam"', 'arms: last: training.optimizer: "adam" cannot be'),
        ("", f"rounds = 1\n{FAULT}", "faults: silos: no silo is named 'nrth'"),
    ],
)
def test_what_no_run_could_be_made_of_is_named_once_and_before_any_run(
    swept: tuple[Path, Outcome, list[str]], tmp_path: Path, top: str, last: str, says: str
) -> None:
    folder, _, _ = swept
    (tmp_path / "study.toml").write_text(PLAN)
    text = SWEEP.replace("parts/", f"{folder}/parts/").replace("processes = 2", top)
    path = tmp_path / "sweep.toml"
    path.write_text(f'{text}[[arms]]\nlabel = "last"\n{last}\n')
    with pytest.raises(ConfigError, match=re.escape(f"{path}: {says}")):
        sweep(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_arms_of_one_network_have_it_built_once(
    swept: tuple[Path, Outcome, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, outcome, _ = swept
    built: list[Path | str] = []
    monkeypatch.setattr(running, "initial_model", lambda plan, source: built.append(source))
    running.require_possible(list(outcome.histories), tmp_path / "sweep.toml")
    assert built == [f"{tmp_path / 'sweep.toml'}: arms: fedavg"]


class Deadly:
    """What kills the process that reads it, as a system short of memory does."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (9,)


def test_a_run_whose_process_is_killed_does_not_stop_the_others(
    swept: tuple[Path, Outcome, list[str]], tmp_path: Path
) -> None:
    _, outcome, _ = swept
    first, second, *_ = (replace(run, folder=tmp_path / str(run.seed)) for run in outcome.histories)
    deadly = replace(first, folder=tmp_path / "deadly", sites=(Deadly(),))  # type: ignore[arg-type]
    told: dict[Run, str] = {}
    carry_out_all([first, deadly, second], 2, told.__setitem__)
    assert told == {first: "", second: "", deadly: "its process was killed (short of memory?)"}
    before = [history.rounds[-1].model for history in outcome.histories.values()]
    assert [history.rounds[-1].model for run in (first, second) if (history := run.history())] == before[:2]


def test_a_study_of_a_run_is_found_by_the_other_commands(swept: tuple[Path, Outcome, list[str]]) -> None:
    folder, outcome, _ = swept
    agreement, history = read_study(folder / "out" / "runs" / "pull" / "seed-2" / "study")
    assert agreement.plan.strategy.mu == 5.0
    assert history.rounds[-1].model == list(outcome.histories.values())[-1].rounds[-1].model
