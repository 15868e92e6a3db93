"""A released model is whole or not there, stands in the ledger first, and cannot be passed off as another one."""

import hashlib
import importlib
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Error

from aggregator.audit import Proof, check, check_model, prove, verify
from aggregator.audit.origin import AGREEMENT, MODEL, PARTS, PROOF
from aggregator.audit.proving import prove_model
from aggregator.audit_cli import main as audit
from aggregator.cli import main as aggregator
from aggregator.exports.fact import facts
from aggregator.release import papers, release
from aggregator.release.bundle import CONFIGURATION, as_json, metadata
from aggregator.release.card import card
from aggregator.report import report
from aggregator.study import Study
from models.canonical import digest
from models.errors import ConfigError, DigestMismatch, LedgerError, Malformed, NotAppended
from models.exchange import wire
from models.exchange.documents import Refusal
from models.exchange.spec import load_vector
from models.exchange.statement import Kind
from models.ledger import Entry, Event, Ledger, Record, Signer, Verifier, read
from models.page import as_markdown

Toy = Any  # of conftest.py
FILES = {AGREEMENT, MODEL, "configs/inference.json", "configs/metadata.json", "docs/README.md"}


@pytest.fixture
def study(finished: Path, tmp_path: Path) -> Path:
    """The folder of a closed study of three rounds, to work on."""
    return Path(shutil.copytree(finished / "toy", tmp_path / "toy"))


@pytest.fixture
def out(study: Path, tmp_path: Path) -> Path:
    """A released model."""
    release(study, tmp_path / "out", exact_counts=True)
    return tmp_path / "out"


def hub_key(study: Path) -> Verifier:
    return Signer.load(study / "aggregator.key").verifier


def silo_key(name: str) -> Verifier:
    return Signer.from_seed(name, hashlib.sha256(name.encode()).digest()).verifier


def released(study: Path) -> list[Record]:
    return [record for record in read(study / "ledger").records if record.event == Event.MODEL_RELEASED]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# What is released


def test_the_ledger_names_every_file_of_a_release_with_its_digest(study: Path, out: Path) -> None:
    (record,) = released(study)
    there = files(out)
    assert there.keys() == FILES | {PROOF}
    assert {item["name"]: (item["sha256"], item["bytes"]) for item in record.body["files"]} == {
        name: (digest(content), len(content)) for name, content in there.items() if name != PROOF
    }
    last = [r for r in read(study / "ledger").records if r.event == Event.AGGREGATED][-1]
    assert (record.round, record.body["model"]) == (last.round, last.body["model"]) == (3, last.body["model"])
    load_vector(out / MODEL, record.body["model"])
    assert verify(study / "ledger", hub_key(study)).problems == []
    assert digest(there[AGREEMENT]) == record.study


def test_a_release_shows_round_study_updates_and_what_hospitals_signed_of_it(study: Path, out: Path) -> None:
    found = check_model(out, [hub_key(study), silo_key("north")])
    assert found.problems == []
    assert (found.name, found.round, found.party, found.files) == ("toy", 3, "aggregator", len(FILES))
    assert found.inputs == ["east", "north", "south", "west"]
    assert found.trusted == ["aggregator", "north"]
    assert found.keys["north"] == silo_key("north").vkey
    assert found.measured["east"] == {"loss": 0.25, "auc": 0.6}
    assert found.measured.keys() == {"east", "north", "south", "west"}
    assert found.as_json()["ok"] is True
    assert json.loads(json.dumps(found.as_json()))["head"]["size"] == found.head.size  # type: ignore[union-attr]


def test_the_commands_release_and_check(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "terms").write_text("Only for research.")
    target = str(tmp_path / "model")
    arguments = ["release", str(study), target, "--exact-counts", "--license", str(tmp_path / "terms"), "--json"]
    assert aggregator(arguments) == 0
    assert json.loads(capsys.readouterr().out)["round"] == 3
    assert (tmp_path / "model" / "LICENSE").read_text() == "Only for research."
    assert audit(["check", target, "--key", hub_key(study).vkey]) == 0
    assert "the key given" in capsys.readouterr().out
    assert audit(["check", f"{target}/{PROOF}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["name"] == "toy"
    (tmp_path / "model" / "LICENSE").write_text("For everything.")
    assert audit(["check", target]) == 3
    assert "LICENSE: is not the file that was released" in capsys.readouterr().out
    assert audit(["check", str(tmp_path)]) == 1
    assert "is no release" in capsys.readouterr().err


def test_the_card_tells_what_each_hospital_told_and_no_count_that_came_exactly(out: Path) -> None:
    text = (out / "docs" / "README.md").read_text()
    assert "| east | told to the coordinator, and not here | 0.6 | 0.25 | - |" in text
    assert "| west | 3 | told to the coordinator, and not here | clip 10 | no noise: not bounded |" in text
    assert "round 3 of 3, with fedavg; 0 rounds were void" in text
    assert not re.search(r"\b(10|17|24|31) images", text)


def test_bands_stand_in_the_card_as_the_hospitals_told_them(toy: Callable[..., Toy], tmp_path: Path) -> None:
    made = toy(rounds=1)
    band = {"unit": "images", "low": 20, "high": 49}
    for hospital in made.hospitals.values():
        plain = hospital.manifest
        hospital.manifest = lambda order, vector, plain=plain, **more: plain(
            order, vector, **{"evaluated": band, **({} if vector is None else {"examples": band}), **more}
        )
    made.run()
    made.close()
    release(made.folder / "toy", tmp_path / "out")
    text = (tmp_path / "out" / "docs" / "README.md").read_text()
    assert text.count("| 20-49 images |") == 8
    assert check_model(tmp_path / "out").problems == []


def test_noise_of_a_hospital_that_was_away_in_the_last_round_is_told_too(
    toy: Callable[..., Toy], tmp_path: Path
) -> None:
    made = toy(rounds=2)
    north = made.hospitals["north"]
    plain = north.manifest
    noisy = {"filters": [{"name": "noise", "sd": 20.0}], "privacy": {"unit": "silo", "epsilon": 1.5, "delta": 1e-5}}
    north.manifest = lambda order, vector, **more: plain(order, vector, **({} if vector is None else noisy), **more)
    made.poison("north", lambda hospital, order, answers: Error(4, "late"), round_=2)
    made.run()
    made.close()
    told = release(made.folder / "toy", tmp_path / "out", exact_counts=True)
    assert (told.hospitals["north"].rounds, told.hospitals["east"].rounds) == (1, 2)
    text = (tmp_path / "out" / "docs" / "README.md").read_text()
    assert "| north | 1 |  | noise 20 | 1.5 |" in text
    assert "| east | 2 | told to the coordinator, and not here | clip 10 | no noise: not bounded |" in text


def test_counts_that_were_told_exactly_are_not_handed_on_unasked(study: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="east, north, south, west were told exactly"):
        release(study, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [study]
    assert released(study) == []


def test_a_hospital_that_refused_and_one_that_was_void_are_told_too(toy: Callable[..., Toy], tmp_path: Path) -> None:
    made = toy(rounds=3, min_silos=4)
    refuse = Refusal(code="round-limit")
    made.poison("west", lambda h, o, a: wire.pack(h.offer(o, Kind.REFUSAL, refuse, None, answers=a)), round_=3)
    made.run()
    made.close()
    told = release(made.folder / "toy", tmp_path / "out", exact_counts=True)
    assert (told.round, told.void) == (2, 1)
    found = check_model(tmp_path / "out")
    assert (found.problems, found.round, sorted(found.measured)) == ([], 2, ["east", "north", "south", "west"])
    assert "1 rounds were void" in (tmp_path / "out" / "docs" / "README.md").read_text()


def test_an_update_that_krum_did_not_take_is_nowhere_said_to_have_gone_in(
    toy: Callable[..., Toy], tmp_path: Path
) -> None:
    names = ("aarau", "east", "north", "south", "west")
    made = toy(rounds=1, min_silos=5, strategy='name = "krum"\nmalicious = 1\nselect = 2', names=names)
    assert made.run().history.rounds[1].accepted == list(names)
    made.close()
    folder = made.folder / "toy"
    opened = read(folder / "ledger")
    (fact,) = [fact for fact in facts(opened) if fact.record.event == Event.AGGREGATED]
    selected = fact.record.body["selected"]
    assert len(selected) == 2
    assert fact.details["selected"] == ", ".join(selected)
    with pytest.raises(ConfigError, match="aarau, east, north, south, west were told exactly"):  # the proof repeats all
        release(folder, tmp_path / "out")
    told = release(folder, tmp_path / "out", exact_counts=True)
    assert [name for name, hospital in told.hospitals.items() if hospital.rounds] == selected
    assert [name for name, hospital in told.hospitals.items() if hospital.filters] == selected
    found = check_model(tmp_path / "out")
    assert (found.problems, found.inputs) == ([], selected)
    row = f"| {', '.join(selected)} | {told.model} |"
    assert row in as_markdown(report(folder / "ledger"))


def test_the_report_of_the_ledger_tells_of_the_release(study: Path, out: Path) -> None:
    text = as_markdown(report(study / "ledger"))
    assert "model that was released" in text
    assert "models/model.safetensors" in text


# When nothing is released


def test_what_is_there_is_not_overwritten_and_a_second_folder_holds_the_same(
    study: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(out)
    assert aggregator(["release", str(study), str(out), "--exact-counts"]) == 1
    error = capsys.readouterr().err
    assert f"{out}: exists already" in error
    assert "nothing is overwritten" in error
    assert (files(out), len(released(study))) == (before, 1)
    (tmp_path / "again").mkdir()
    release(study, tmp_path / "again", exact_counts=True)
    again = files(tmp_path / "again")
    assert again.pop(PROOF) != before.pop(PROOF)
    assert again == before
    assert len(released(study)) == 2
    assert check_model(tmp_path / "again").ok
    assert check_model(out).ok


@pytest.mark.parametrize("way", ["current", "link"])
def test_an_empty_folder_becomes_the_release_whatever_it_is_called_by(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    monkeypatch.chdir(tmp_path / ("empty" if way == "current" else "."))
    release(Path(os.path.relpath(study)), Path("." if way == "current" else "link"), exact_counts=True)
    assert check_model(tmp_path / "empty").problems == []
    assert len(released(study)) == 1


def test_a_study_that_is_not_closed_releases_nothing(begun: Toy, tmp_path: Path) -> None:
    begun.close()
    with pytest.raises(ConfigError, match="is not closed"):
        release(begun.folder / "toy", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert released(begun.folder / "toy") == []


def test_a_study_whose_rounds_were_all_void_has_nothing_to_release(toy: Callable[..., Toy], tmp_path: Path) -> None:
    made = toy(rounds=1, min_silos=4)
    refuse = Refusal(code="round-limit")
    made.poison("west", lambda h, o, a: wire.pack(h.offer(o, Kind.REFUSAL, refuse, None, answers=a)), round_=1)
    made.run()
    made.close()
    with pytest.raises(ConfigError, match="no round of the study made a model"):
        release(made.folder / "toy", tmp_path / "out", exact_counts=True)
    assert not (tmp_path / "out").exists()


def test_a_model_that_was_exchanged_on_the_coordinators_disk_is_not_released(study: Path, tmp_path: Path) -> None:
    shutil.copy(study / "models" / "001.safetensors", study / "models" / "003.safetensors")
    with pytest.raises(DigestMismatch):
        release(study, tmp_path / "out", exact_counts=True)
    assert not (tmp_path / "out").exists()
    assert released(study) == []


class Killed(BaseException):
    """The process died."""


@pytest.mark.parametrize(
    "call", ["models.ledger.Ledger.append", "aggregator.release.prove_model", "aggregator.release.rename"]
)
def test_a_release_that_dies_leaves_no_folder_and_the_next_one_is_whole(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(call, die)
        with pytest.raises(Killed):
            release(study, tmp_path / "out", exact_counts=True)
    assert not (tmp_path / "out").exists()
    assert len(released(study)) == (0 if call.endswith("append") else 1)
    release(study, tmp_path / "out", exact_counts=True)
    assert check_model(tmp_path / "out", [hub_key(study)]).problems == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "toy"]


def test_what_cannot_be_written_down_is_not_released(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = os.write

    def no_space(number: int, data: bytes) -> int:
        if b"model.released" in bytes(data):
            raise OSError(28, "No space left on device")
        return full(number, data)

    monkeypatch.setattr(os, "write", no_space)
    with pytest.raises(NotAppended):
        release(study, tmp_path / "out", exact_counts=True)
    assert not (tmp_path / "out").exists()


# What cannot be passed off as released


def other_bytes(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


def by_link(path: Path) -> None:
    path.rename(path.parents[2] / "elsewhere")
    path.symlink_to(path.parents[2] / "elsewhere")


TAMPERED: dict[str, tuple[Callable[[Path], object], str]] = {
    "one bit of the model": (lambda out: other_bytes(out / MODEL), "model.safetensors: is not the file"),
    "a word of the card": (lambda out: other_bytes(out / "docs/README.md"), "README.md: is not the file"),
    "the configuration": (lambda out: other_bytes(out / "configs/inference.json"), "inference.json: is not the file"),
    "the agreement": (lambda out: other_bytes(out / AGREEMENT), "agreement.json: is not the file"),
    "a file less": (lambda out: (out / "configs/metadata.json").unlink(), "metadata.json: is not the file"),
    "a file more": (lambda out: (out / "configs/logging.conf").write_text("x"), "logging.conf: is no file of this"),
    "a pickle more": (lambda out: (out / "models/model.pt").write_bytes(b"x"), "model.pt: is no file of this"),
    "a file by a link": (lambda out: by_link(out / MODEL), "model.safetensors: is not the file"),
    "a link more": (lambda out: (out / "silos").symlink_to("/"), "silos: is no file of this"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_whatever_is_changed_in_a_release_is_found(out: Path, what: str) -> None:
    tamper, expected = TAMPERED[what]
    tamper(out)
    problems = check_model(out).problems
    assert any(expected in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"network_def": '$__import__("os").system("id")'}, "inference.json: holds something to be evaluated"),
        ({"dataset": {"data": ["%elsewhere.json::run"]}}, "inference.json: holds something to be evaluated"),
        (
            {"run": {"_target_": "silos.inference.written.os.system", "command": "id"}},
            "inference.json: calls something",
        ),
        ({"run": {"_target_": ["os.system"]}}, "inference.json: calls something"),
    ],
    ids=["an expression", "another file", "what a module imports", "no name"],
)
def test_a_release_that_would_run_what_its_coordinator_wrote_is_found(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], said: str
) -> None:
    monkeypatch.setattr("aggregator.release.CONFIGURATION", {**CONFIGURATION, **change})
    release(study, tmp_path / "model", exact_counts=True)
    (problem,) = check_model(tmp_path / "model").problems
    assert said in problem


def test_a_file_that_no_release_has_is_found_although_it_was_released(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aggregator.release.LICENCE", "configs/logging.conf")
    (tmp_path / "text").write_text("[loggers]")
    release(study, tmp_path / "model", exact_counts=True, licence=tmp_path / "text")
    assert check_model(tmp_path / "model").problems == ["configs/logging.conf: is no file that a release has"]


def test_two_releases_from_two_pasts_of_one_ledger_are_found_side_by_side_and_by_the_ledger(
    study: Path, out: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(finished / "toy", tmp_path / "other"))
    (tmp_path / "licence").write_text("Do what you like.")
    release(other, tmp_path / "second", exact_counts=True, licence=tmp_path / "licence")
    assert audit(["check", str(out)]) == audit(["check", str(tmp_path / "second")]) == 0
    assert audit(["check", str(out), str(tmp_path / "second")]) == 3
    assert "aggregator signed two different ledgers of" in capsys.readouterr().out
    assert audit(["verify", str(study), "--seen", str(out / PROOF)]) == 0
    assert audit(["verify", str(other), "--seen", str(out / PROOF), str(tmp_path / "second" / PROOF)]) == 3
    assert f"{out / PROOF}: no ledger here continues the one of aggregator" in capsys.readouterr().out
    assert audit(["verify", str(other), str(study), "--seen", str(out / PROOF), str(tmp_path / "second" / PROOF)]) == 0
    assert audit(["verify", str(finished / "north"), "--seen", str(out / PROOF)]) == 1
    assert "is from the ledger of aggregator" in capsys.readouterr().err


def test_a_release_without_its_proof_or_with_anothers_is_none(
    out: Path, finished: Path, toy: Callable[..., Toy], tmp_path: Path
) -> None:
    made = toy(rounds=1)
    made.run()
    made.close()
    release(made.folder / "toy", tmp_path / "other", exact_counts=True)
    shutil.copy(tmp_path / "other" / PROOF, out / PROOF)
    assert len(check_model(out).problems) >= 4
    (out / PROOF).write_bytes(b"{}\n")
    with pytest.raises(Malformed, match="is no proof file"):
        check_model(out)
    (out / PROOF).unlink()
    with pytest.raises(LedgerError, match="is no release"):
        check_model(out)


def test_another_key_than_the_one_that_is_known_is_refused(study: Path, out: Path) -> None:
    stranger = Signer.from_seed("aggregator", b"x" * 32).verifier
    assert "another key" in check_model(out, [stranger]).problems[0]
    assert "no key was given" in check_model(out, [silo_key("north")]).problems[0]
    false = Signer.from_seed("north", b"x" * 32).verifier
    assert "another key of north" in check_model(out, [hub_key(study), false]).problems[0]


def test_the_proof_of_a_model_is_not_taken_for_that_of_an_exchange_nor_the_other_way_round(
    study: Path, out: Path
) -> None:
    assert "give the release's folder" in check(Proof.decode((out / PROOF).read_bytes())).problems[0]
    (out / PROOF).write_bytes(prove(study / "ledger", peer="north").encode())
    assert "shows an exchange" in check_model(out).problems[0]


def test_of_random_changes_to_the_proof_none_passes(out: Path, study: Path) -> None:
    content, dice = (out / PROOF).read_bytes(), random.Random(11)
    for _ in range(300):
        place, byte = dice.randrange(len(content)), dice.randrange(256)
        forged = content[:place] + bytes([byte]) + content[place + 1 :]
        if forged == content:
            continue
        (out / PROOF).write_bytes(forged)
        try:
            assert not check_model(out, [hub_key(study)]).ok, place
        except Malformed:
            continue


@pytest.fixture
def insider(study: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """A coordinator, with its key, writes another ledger and releases from it; what a check then says."""

    def forge(edit: Callable[[Record], dict[str, Any] | None]) -> list[str]:
        release(study, tmp_path / "out", exact_counts=True)
        opened, signer = read(study / "ledger"), Signer.load(study / "aggregator.key")
        folder = tmp_path / "forged"
        with Ledger.create(folder, signer, origin=opened.head.origin) as ledger:
            bodies = [(r, edit(r)) for r in opened.records[1:]]
            ledger.append(*[Entry(r.event, body, r.study, r.round) for r, body in bodies if body is not None])
        shutil.copytree(study / "ledger" / "manifests", folder / "manifests", dirs_exist_ok=True)
        (tmp_path / "out" / PROOF).write_bytes(prove_model(folder, str(opened.records[1].study)).encode())
        return check_model(tmp_path / "out", [signer.verifier]).problems

    return forge


def changed(event: Event, **change: Any) -> Callable[[Record], dict[str, Any]]:
    return lambda record: {**record.body, **change} if record.event == event else record.body


def test_an_honest_copy_of_the_ledger_passes(insider: Callable[..., list[str]]) -> None:
    assert insider(lambda record: record.body) == []


def test_a_model_that_no_round_made_cannot_be_released_by_the_coordinator_either(
    insider: Callable[..., list[str]],
) -> None:
    problems = insider(changed(Event.MODEL_RELEASED, model="ab" * 32))
    assert any("is not the one that the round made" in problem for problem in problems)


def test_a_round_cannot_be_given_another_model_than_its_file(insider: Callable[..., list[str]]) -> None:
    def edit(record: Record) -> dict[str, Any]:
        return {**record.body, "model": "ab" * 32} if "model" in record.body and record.round == 3 else record.body

    problems = insider(edit)
    assert any("is not the model that the round made" in problem for problem in problems)


def test_an_update_that_no_hospital_signed_cannot_be_among_the_inputs(insider: Callable[..., list[str]]) -> None:
    def edit(record: Record) -> dict[str, Any]:
        if record.event != Event.AGGREGATED or record.round != 3:
            return record.body
        first, *rest = record.body["inputs"]
        return {**record.body, "inputs": [{**first, "digest": "ab" * 32}, *rest]}

    assert "another update than the one of east" in insider(edit)[0]


def test_an_input_cannot_be_left_out_of_the_ledger(insider: Callable[..., list[str]]) -> None:
    def edit(record: Record) -> dict[str, Any] | None:
        dropped = record.event == Event.UPDATE_RECEIVED and record.body["statement"]["src"] == "north"
        return None if dropped and record.round == 3 else record.body

    assert "does not show the update of north" in insider(edit)[0]


def test_metrics_that_a_hospital_did_not_sign_are_found(insider: Callable[..., list[str]]) -> None:
    problems = insider(changed(Event.REPORT_RECEIVED, metrics={"auc": 0.99}))
    assert "is not one of this model's metrics" in problems[0]


def test_a_study_that_was_not_closed_with_the_model_is_found(insider: Callable[..., list[str]]) -> None:
    assert insider(lambda record: None if record.event == Event.STUDY_CLOSED else record.body) == [
        "it shows 0 lines of study.closed, not one"
    ]


def test_a_plan_that_the_hospitals_did_not_approve_cannot_go_with_the_model(insider: Callable[..., list[str]]) -> None:
    problems = insider(changed(Event.STUDY_CREATED, agreement="ab" * 32))
    assert any("is not what the study was created with" in problem for problem in problems)


# What MONAI and a browser make of it


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for item in [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []:
        yield from texts(item)


def test_no_configuration_of_a_release_holds_anything_that_monai_would_evaluate(out: Path) -> None:
    for name in ("inference", "metadata"):
        content = json.loads((out / "configs" / f"{name}.json").read_bytes())
        assert not [text for text in texts(content) if text.startswith(("$", "%"))]
    assert (out / "configs" / "inference.json").read_bytes() == as_json(CONFIGURATION)


def test_words_of_a_plan_do_nothing_in_metadata_and_card(study: Path) -> None:
    opened = Study.open(study)
    opened.close()
    told = papers(read(study / "ledger"), opened.agreement)
    hostile = (
        "$__import__('os').system('x') @network_def %a.json#b @####c <script>alert(1)</script> | [x](http://e.org)"
    )
    task = told.plan.task.model_copy(update={"modality": [hostile]})
    plan = told.plan.model_copy(update={"purpose": hostile, "task": task})
    told = type(told)(**{**vars(told), "agreement": told.agreement.model_copy(update={"plan": plan})})
    assert not [text for text in texts(metadata(told)) if set("$@%#") & set(text)]
    text = as_markdown(card(told))
    assert "<script" not in text
    assert "](http" not in text.replace("\\]\\(", "")
    assert "purpose | $" not in text.replace("\\$", "")


def test_metadata_has_every_field_of_monais_schema(out: Path) -> None:
    found = json.loads((out / "configs" / "metadata.json").read_bytes())
    required = "schema version monai_version pytorch_version numpy_version required_packages_version task description"
    assert {*required.split(), "authors", "copyright", "network_data_format"} <= found.keys()
    for side in ("inputs", "outputs", "post_processed_outputs"):
        for tensor in found["network_data_format"][side].values():
            assert {"type", "format", "num_channels", "spatial_shape", "dtype", "value_range"} <= tensor.keys()
    outputs = found["network_data_format"]["outputs"]["pred"]
    assert outputs["channel_def"] == {"0": "none", "1": "lesion"}
    assert (found["model_digest"], found["study"]) == (check_model(out).model, check_model(out).study)


def test_software_that_is_no_version_is_neither_in_the_card_nor_in_the_proof(
    toy: Callable[..., Toy], tmp_path: Path
) -> None:
    made = toy(rounds=1)
    secret = "Quillfeather^Ottoline"
    plain = made.hospitals["east"].manifest
    made.hospitals["east"].manifest = lambda order, vector, **more: plain(
        order, vector, **{"software": {"python": secret, "note": secret, "torch": "2.6.0a0+ecf3bae40a.nv25.1"}, **more}
    )
    made.run()
    made.close()
    release(made.folder / "toy", tmp_path / "out", exact_counts=True)
    assert not [name for name, content in files(tmp_path / "out").items() if secret.encode() in content]
    found = check_model(tmp_path / "out")
    assert (found.problems, sorted(found.measured)) == ([], ["north", "south", "west"])
    assert "| east | - | 2.6.0a0\\+ecf3bae40a.nv25.1 |" in (tmp_path / "out" / "docs" / "README.md").read_text()


def test_no_part_of_a_bundle_has_the_name_of_a_module_which_some_pythons_would_find_instead() -> None:
    named = set(re.findall(r'"_target_": ?"([^"]+)"', as_json(CONFIGURATION).decode()))
    assert named == PARTS
    for name in named:
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(name)
