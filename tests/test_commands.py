"""The commands, as the people they are for type them: results, exit codes, and errors that say what to do."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from aggregator import LocalGrid, Study, run
from aggregator.audit_cli import main as audit
from aggregator.cli import main as aggregator
from models.ledger import Event, read
from silos.cli import main as silo
from silos.config import Site
from silos.silo import Silo

Write = Callable[..., Path]


def change(site: Path, old: str, new: str) -> None:
    text = site.read_text()
    assert old in text
    site.write_text(text.replace(old, new))


@pytest.fixture
def north(hospitals: list[Path]) -> Path:
    return next(site for site in hospitals if site.parent.name == "north")


def test_a_newcomers_walk(tmp_path: Path, write_plan: Write, capsys: pytest.CaptureFixture[str]) -> None:
    plan = str(write_plan(rounds=1))
    sites = []
    for name in ("lakeside", "hilltop"):
        assert silo(["phantom", str(tmp_path / name), "--patients", "16", "--images", "2", "--study", "trial"]) == 0
        sites.append(capsys.readouterr().out.strip())
    for site in sites:
        assert silo(["check", site, "--study", plan]) == 0
        assert silo(["preview", site, plan]) == 0
    assert "nothing was sent" in capsys.readouterr().out
    study = str(tmp_path / "study")
    assert aggregator(["create", plan, study]) == 0
    assert capsys.readouterr().out.startswith("trial@")
    assert aggregator(["run", study, "--local", *sites]) == 0
    assert aggregator(["show", study]) == 0
    assert audit(["verify", study, *(str(Path(site).parent / "work") for site in sites)]) == 0
    assert audit(["reconcile", study, *(str(Path(site).parent / "work") for site in sites)]) == 0
    assert audit(["show", study]) == 0
    out = capsys.readouterr().out
    assert "agree" in out
    assert "update" in out
    assert silo(["released", sites[0]]) == 0
    _, columns, *rows = capsys.readouterr().out.splitlines()
    assert columns.split()[-1] == "receipt"
    assert [row.split()[-1] for row in rows] == ["yes", "yes", "no"]


def test_every_reading_command_prints_json(
    hospitals: list[Path], write_plan: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, study = write_plan(rounds=1), tmp_path / "study"
    with Study.create(plan, study) as opened, LocalGrid(hospitals) as grid:
        run(opened, grid)
    site, work = str(hospitals[0]), str(hospitals[0].parent / "work")
    commands = [
        (silo, ["scan", site]),
        (silo, ["check", site]),
        (silo, ["preview", site, str(plan)]),
        (silo, ["released", site]),
        (aggregator, ["show", str(study)]),
        (aggregator, ["run", str(study), "--local", *map(str, hospitals)]),
        (audit, ["verify", work]),
        (audit, ["reconcile", str(study), work]),
        (audit, ["show", work]),
    ]
    for command, arguments in commands:
        capsys.readouterr()
        assert command([*arguments, "--json"]) == 0, arguments
        json.loads(capsys.readouterr().out)


def test_before_the_first_order_nothing_has_left(north: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert silo(["released", str(north), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_a_hospital_without_a_key_is_told_how_to_make_it(north: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Site.load(north).key.unlink()
    assert silo(["check", str(north)]) == 1
    assert "make it: intramural-silo key SITE.toml" in capsys.readouterr().out


def test_preview_sends_nothing_and_writes_no_ledger(
    north: Path, write_plan: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert silo(["preview", str(north), str(write_plan()), "--json"]) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest["digest"]
    assert manifest["tensors"]
    assert manifest["examples"]["low"] < manifest["examples"]["high"]
    assert not (north.parent / "work" / "ledger").exists()


def test_preview_shows_what_the_first_round_then_sends(
    hospitals: list[Path], north: Path, write_plan: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = write_plan(rounds=1)
    silo(["preview", str(north), str(plan), "--json"])
    shown = json.loads(capsys.readouterr().out)
    with Study.create(plan, tmp_path / "study") as study, LocalGrid(hospitals) as grid:
        run(study, grid)
    opened = read(north.parent / "work" / "ledger")
    offered = next(r for r in opened.records if r.event == Event.UPDATE_OFFERED)
    assert json.loads(opened.manifest(offered.body["statement"]["body"])) == shown


def test_a_tampered_ledger_fails_verification_with_exit_code_3(
    hospitals: list[Path], write_plan: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Study.create(write_plan(rounds=1), tmp_path / "study") as study, LocalGrid(hospitals) as grid:
        run(study, grid)
    path = hospitals[0].parent / "work" / "ledger" / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"round":1', b'"round":2', 1))
    assert audit(["verify", str(path.parent)]) == 3
    assert audit(["reconcile", str(tmp_path / "study"), str(path.parent)]) == 3
    assert "line" in capsys.readouterr().err


def test_a_tampered_manifest_fails_verification(
    hospitals: list[Path], write_plan: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Study.create(write_plan(rounds=1), tmp_path / "study") as study, LocalGrid(hospitals) as grid:
        run(study, grid)
    folder = hospitals[0].parent / "work" / "ledger" / "manifests"
    largest = max(folder.iterdir(), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes().replace(b"clip", b"none"))
    capsys.readouterr()
    assert audit(["verify", str(folder.parent), "--json"]) == 3
    assert largest.stem in str(json.loads(capsys.readouterr().out)[0]["problems"])


BAD_INPUT: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "missing folder": (
        lambda site: shutil.rmtree(site.parent / "dicom"),
        ["data.root", "dicom"],
    ),
    "empty folder": (
        lambda site: (shutil.rmtree(site.parent / "dicom"), (site.parent / "dicom").mkdir()),
        ["data.root", "holds no file"],
    ),
    "no DICOM in the folder": (
        lambda site: (
            shutil.rmtree(site.parent / "dicom"),
            (site.parent / "dicom").mkdir(),
            (site.parent / "dicom" / "notes.txt").write_text("nothing here"),
        ),
        ["patients", "min_patients"],
    ),
    "unknown label word": (
        lambda site: (site.parent / "labels.csv").write_text(
            (site.parent / "labels.csv").read_text().rstrip("\n") + "?\n"
        ),
        ["data.labels.words", "labels.csv", "rows"],
    ),
    "missing label file": (
        lambda site: (site.parent / "labels.csv").unlink(),
        ["data.labels.file", "labels.csv"],
    ),
    "wrong TOML key": (
        lambda site: change(site, "min_patients = 11", "min_patient = 11"),
        ["policy.min_patient", "is not a known key", "policy.min_patients", "missing"],
    ),
    "wrong value": (
        lambda site: change(site, "min_patients = 11", "min_patients = 0"),
        ["policy.min_patients: must be at least 1 (got 0)"],
    ),
    "no TOML": (lambda site: site.write_text("= ="), ["site.toml", "TOML"]),
    "a key that others can read": (
        lambda site: os.chmod(site.parent / "keys" / "north.key", 0o644),
        ["north.key", "0644", "chmod 600"],
    ),
    "a key of another hospital": (
        lambda site: change(site, 'name = "north"', 'name = "nowhere"'),
        ["north.key", "nowhere"],
    ),
    "no key": (
        lambda site: (site.parent / "keys" / "north.key").unlink(),
        ["north.key"],
    ),
    "task not allowed": (
        lambda site: change(site, 'tasks = ["classification"]', 'tasks = ["segmentation"]'),
        ["policy.tasks", "classification"],
    ),
}


@pytest.mark.parametrize("what", BAD_INPUT)
def test_bad_input_is_named_with_file_key_value_and_what_to_do(
    north: Path, write_plan: Write, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    spoil, expected = BAD_INPUT[what]
    spoil(north)
    assert silo(["preview", str(north), str(write_plan())]) == 1
    error = capsys.readouterr().err
    for text in expected:
        assert text in error
    assert "do: " in error
    assert "Traceback" not in error


def test_a_study_that_is_not_approved_can_be_previewed_and_is_told_by_check(
    north: Path, write_plan: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    change(north, 'studies = ["trial", "trial-prox"]', 'studies = ["another"]')
    assert silo(["preview", str(north), str(write_plan())]) == 0
    capsys.readouterr()
    assert silo(["check", str(north), "--study", str(write_plan()), "--json"]) == 1
    wrong = [item for item in json.loads(capsys.readouterr().out)["findings"] if not item["ok"]]
    assert len(wrong) == 1
    assert "'trial' is not approved" in wrong[0]["found"]
    assert "approve the study" in wrong[0]["fix"]


def test_labels_that_match_nothing_show_the_keys_shape_and_no_value(
    north: Path, write_plan: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = Site.load(north).data.labels
    column = next(iter(labels.join.values()))
    lines = labels.file.read_text().splitlines()
    at = lines[0].split(labels.delimiter).index(column)
    rows = [line.split(labels.delimiter) for line in lines[1:]]
    first = rows[0][at]
    for row in rows:
        row[at] = "Q7-" + row[at]
    labels.file.write_text("\n".join([lines[0], *(labels.delimiter.join(row) for row in rows)]) + "\n")
    assert silo(["preview", str(north), str(write_plan())]) == 1
    error = capsys.readouterr().err
    assert f"none of {len(rows)} images" in error
    assert "A9-" in error
    assert first not in error


def test_check_says_of_each_thing_what_is_wrong(north: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(north, "min_patients = 11", "min_patients = 500")
    os.chmod(north.parent / "keys" / "north.key", 0o640)
    assert silo(["check", str(north), "--json"]) == 1
    found = {item["what"]: item for item in json.loads(capsys.readouterr().out)["findings"]}
    assert not found["key"]["ok"]
    assert "chmod 600" in found["key"]["fix"]
    assert not found["patients to train on"]["ok"]
    assert found["images and labels"]["ok"]
    assert found["pixels"]["ok"]


@pytest.mark.parametrize("command", ["scan", "preview"])
def test_a_work_folder_that_is_a_file_or_cannot_be_made_names_its_key(
    north: Path,
    write_plan: Write,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    arguments = [command, str(north), *([str(write_plan())] if command == "preview" else [])]
    change(north, 'work = "work"', 'work = "labels.csv"')
    assert silo(arguments) == 1
    error = capsys.readouterr().err
    assert f"run.work: {north.parent / 'labels.csv'} is a file" in error
    assert "do: give a folder" in error

    def deny(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("models.ledger.disk.make_folder", deny)
    assert silo(arguments) == 1
    error = capsys.readouterr().err
    assert f"run.work: {north.parent / 'labels.csv'}: Permission denied" in error
    assert "do: give a folder that this user can write" in error


def test_a_scan_says_which_folder_could_not_be_opened(
    north: Path, shut: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert silo(["scan", str(north)]) == 0
    assert "could not be opened" not in capsys.readouterr().out
    closed = min((north.parent / "dicom").iterdir())
    shut(monkeypatch, closed)
    assert silo(["scan", str(north)]) == 0
    told = f"{closed}: Permission denied"
    assert f"folders that could not be opened: 1; the first is {told}" in capsys.readouterr().out
    assert silo(["scan", str(north), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["closed"] == [told]


def test_predict_takes_a_released_model_and_nothing_else_and_tells_only_what_was_left_out(
    hospitals: list[Path], north: Path, write_plan: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Study.create(write_plan(rounds=1), tmp_path / "study") as study, LocalGrid(hospitals) as grid:
        run(study, grid)
    for none in (tmp_path / "study", tmp_path / "nowhere"):
        assert silo(["predict", str(north), str(none), str(tmp_path / "out")]) == 1
        error = capsys.readouterr().err
        assert f"error: {none} is no released model" in error
        assert "do: release one first: intramural-aggregator release" in error
    assert aggregator(["release", str(tmp_path / "study"), str(tmp_path / "model")]) == 0
    capsys.readouterr()
    assert silo(["predict", str(north), str(tmp_path / "model"), str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{tmp_path / 'out'}: predictions of 48 cases")
    (north.parent / "dicom" / "notes.txt").write_text("nothing here")
    assert silo(["predict", str(north), str(tmp_path / "model"), str(tmp_path / "again")]) == 0
    assert "north: not predicted\nreason     files\n" in capsys.readouterr().out


def test_create_never_overwrites(write_plan: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert aggregator(["create", str(write_plan()), str(tmp_path / "study")]) == 0
    key = (tmp_path / "study" / "aggregator.key").read_bytes()
    assert aggregator(["create", str(write_plan()), str(tmp_path / "study")]) == 1
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "study" / "aggregator.key").read_bytes() == key


def test_a_wrong_study_names_its_file_and_key(
    write_plan: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = write_plan()
    change(plan, "learning_rate = 0.01", "learning_rate = -1")
    assert aggregator(["create", str(plan), str(tmp_path / "study")]) == 1
    assert "training.learning_rate: must be more than 0 (got -1)" in capsys.readouterr().err
    change(plan, "learning_rate = -1", "learning_rate = 0.01")
    change(plan, 'name = "cnn"', 'name = "resnet9000"')
    assert aggregator(["create", str(plan), str(tmp_path / "study")]) == 1
    error = capsys.readouterr().err
    assert f"error: {plan}: task.network.name: no network is called 'resnet9000'" in error
    assert "densenet121" in error


@pytest.mark.parametrize("name", ["fedavgm", "fedadagrad", "fedadam", "fedyogi"])
def test_running_statistics_are_no_weights_that_a_server_could_step(
    write_plan: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    for strategy, status in ((f'name = "{name}"', 1), (f'name = "{name}"\nlocal_norm = true', 0), ('name = "krum"', 0)):
        plan = write_plan(strategy=strategy)
        change(plan, "channels = [8, 16]", 'channels = [8, 16], norm = "batch"')
        change(plan, "min_silos = 2", "min_silos = 5")  # krum wants them
        assert aggregator(["create", str(plan), str(tmp_path / f"study-{len(strategy)}")]) == status
        if status:
            said = capsys.readouterr().err
            assert f'error: {plan}: strategy.name: "{name}" would step ' in said
            assert ".running_mean like a weight" in said
            assert 'norm = "group"' in said
            assert "local_norm = true" in said


def test_a_folder_that_cannot_be_written_is_named(
    write_plan: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert aggregator(["create", str(write_plan()), str(tmp_path / "file" / "study")]) == 1
    error = capsys.readouterr().err
    assert str(tmp_path / "file") in error
    assert "do: " in error


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("--local site.toml --detach", "--detach: goes with --service only"),
        ("--local site.toml --detach --json", "--detach: goes with --service only"),
        ("--local site.toml --engine ray --workers 4", "--workers: goes with --engine local only"),
        ("--service home --engine ray", "--engine: goes with --local only"),
        ("--service home --workers 4", "--workers: goes with --local only"),
        ("--service home --batched", "--batched: goes with --local only"),
        ("--service home --log tensorboard:logs", "--log: goes with --local only"),
    ],
)
def test_run_refuses_an_option_that_nobody_would_read(
    capsys: pytest.CaptureFixture[str], arguments: str, told: str
) -> None:
    assert aggregator(["run", "study", *arguments.split()]) == 1
    assert f"error: {told}\n  do: leave it out; " in capsys.readouterr().err


def test_too_few_hospitals_for_the_plan_are_told_before_anything_is_sent(
    hospitals: list[Path], write_plan: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    aggregator(["create", str(write_plan()), str(tmp_path / "study")])
    assert aggregator(["run", str(tmp_path / "study"), "--local", str(hospitals[0])]) == 1
    assert "min_silos" in capsys.readouterr().err


def test_a_study_that_is_over_says_so_and_takes_no_hospital_that_was_not_in_it(
    hospitals: list[Path],
    write_plan: Write,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    *both, south = map(str, hospitals)
    study = str(tmp_path / "study")
    aggregator(["create", str(write_plan(rounds=1)), study])
    aggregator(["show", study])
    assert "0 of 1 rounds are over" in capsys.readouterr().out
    assert aggregator(["run", study, "--local", *both]) == 0
    assert "nothing was run" not in caplog.text
    assert aggregator(["run", study, "--local", *both[:1]]) == 0
    assert f"{study}: the study is over; nothing was run" in caplog.text
    capsys.readouterr()
    assert aggregator(["run", study, "--local", both[0], south]) == 1
    told = capsys.readouterr()
    assert f"{study}: the study is over, and south took no part in it" in told.err
    assert not told.out
    aggregator(["show", study])
    assert "the study is over" in capsys.readouterr().out


def test_a_path_without_a_ledger_is_no_failed_verification(
    north: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere, work = str(tmp_path / "nowhere"), north.parent / "work"
    Silo.open(north).close()
    assert audit(["verify", nowhere]) == 1
    assert "nowhere: there is no ledger here; give the ledger's folder" in capsys.readouterr().out
    assert audit(["verify", str(north)]) == 1
    assert f"{north}: is a file, not a ledger's folder" in capsys.readouterr().out
    assert audit(["verify", str(work), nowhere]) == 1
    path = work / "ledger" / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b"north", b"south"))
    assert audit(["verify", str(work), nowhere]) == 3
    path.unlink()
    assert audit(["verify", str(work)]) == 3  # there was one


def test_check_gives_every_key_of_a_plan_a_row_of_its_own(
    write_plan: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_plan()
    assert aggregator(["check", str(path)]) == 0
    assert re.search(r"^task\.network\.arguments\.channels +\[8, 16\]$", capsys.readouterr().out, re.MULTILINE)
    change(path, "channels = [8, 16]", "")
    assert aggregator(["check", str(path)]) == 0
    told = capsys.readouterr().out
    assert re.search(r"^task\.network\.arguments +\{\}$", told, re.MULTILINE)
    for key in (
        "stragglers +drop",
        "silos_per_round",
        "strategy.local_norm +False",
        "task.dimensions +2",
        "task.zscore",
    ):
        assert re.search(f"^{key}", told, re.MULTILINE), key  # at their default, and so in no agreement


def test_check_says_what_it_does_not_look_at(write_plan: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_plan()
    change(path, 'name = "cnn"', 'name = "resnet"')
    for more in [], ["--json"]:
        assert aggregator(["check", str(path), *more]) == 0
        assert "networks, their arguments and augmentations are looked at by `create`" in capsys.readouterr().err
    assert aggregator(["create", str(path), str(path.parent / "study")]) == 1
    assert "no network is called 'resnet'" in capsys.readouterr().err


def test_two_processes_cannot_write_one_ledger(hospitals: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    first = Silo.open(hospitals[0])
    with pytest.raises(Exception, match="ledger"):
        Silo.open(hospitals[0])
    first.close()
    Silo.open(hospitals[0]).close()
