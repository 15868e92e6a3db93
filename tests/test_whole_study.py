"""A study from DICOM folders to a model, through the real exchange, gate and ledgers."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message

from aggregator import LocalGrid, Outcome, Study, run
from aggregator.audit import reconcile, verify
from aggregator.audit.replay import replay
from aggregator.history import History
from aggregator.local import LocalGrid as Grid
from models.errors import ConfigError
from models.exchange.documents import Manifest
from models.exchange.spec import load_vector
from models.exchange.statement import Statement
from models.ledger import Event, read
from silos.app import AGAIN
from silos.approval.approve import approve, revoke
from silos.approval.proposal import read_agreement
from silos.config import Site

Write = Callable[..., Path]


def digests(study: Path) -> list[str]:
    """The model of every round, as the ledger has it."""
    opened = read(study / "ledger")
    return [record.body["model"] for record in opened.records if record.event in (Event.AGGREGATED, Event.ROUND_VOID)]


def finish(plan: Path, folder: Path, sites: list[Path]) -> Outcome:
    with Study.create(plan, folder) as study, LocalGrid(sites) as grid:
        return run(study, grid)


def name_in_policy(sites: list[Path], old: str, digest: str) -> None:
    """Name the digest of the study `trial` in each policy, in place of what stands there."""
    for site in sites:
        change(site, '"trial"' if old == "trial" else f'"trial@{old}"', f'"trial@{digest}"')


def change(site: Path, old: str, new: str) -> None:
    text = site.read_text()
    assert old in text
    site.write_text(text.replace(old, new))


def test_a_study_ends_with_a_model_and_ledgers_that_agree(
    hospitals: list[Path], write_plan: Write, tmp_path: Path
) -> None:
    outcome = finish(write_plan(rounds=3), tmp_path / "study", hospitals)

    assert [r.accepted for r in outcome.history.rounds[1:]] == [["east", "north", "south"]] * 3
    assert len({r.model for r in outcome.history.rounds}) == 4
    assert all(0 <= (r.mean("auc") or -1) <= 1 for r in outcome.history.rounds)
    _, vector = load_vector(outcome.model, outcome.digest)
    assert np.isfinite(vector).all()
    for site in hospitals:
        ledger = Site.load(site).run.work / "ledger"
        assert verify(ledger).ok
        pair = reconcile(tmp_path / "study" / "ledger", ledger)
        assert (pair.ok, pair.orders, pair.replies, pair.pending, pair.closed) == (True, 5, 5, [], True)
    assert verify(tmp_path / "study" / "ledger").ok
    lines = (tmp_path / "study" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [0, 1, 2, 3]
    assert not list((tmp_path / "study").glob("updates/*/*"))


def test_the_same_seed_gives_the_same_models_to_the_bit(
    hospitals: list[Path], write_plan: Write, tmp_path: Path
) -> None:
    first = finish(write_plan(), tmp_path / "first", hospitals)
    name_in_policy(hospitals, "trial", first.study)
    with Study.create(write_plan(), tmp_path / "second") as study:
        name_in_policy(hospitals, first.study, study.digest)
    with Study.open(tmp_path / "second") as study, LocalGrid(hospitals) as grid:
        second = run(study, grid)
    finish(write_plan("trial-prox", seed=8), tmp_path / "other", hospitals)

    assert first.study != second.study  # another key, another study
    assert digests(tmp_path / "first") == digests(tmp_path / "second")
    assert digests(tmp_path / "first") != digests(tmp_path / "other")


def test_fedprox_without_pull_is_fedavg_to_the_bit_and_with_it_is_not(
    hospitals: list[Path], write_plan: Write, tmp_path: Path
) -> None:
    finish(write_plan(), tmp_path / "avg", hospitals)
    finish(write_plan("trial-prox", strategy='name = "fedprox"\nmu = 0.0'), tmp_path / "zero", hospitals)
    assert digests(tmp_path / "avg") == digests(tmp_path / "zero")

    for site in hospitals:
        change(site, '"trial-prox"]', '"trial-prox", "pulled"]')
    finish(write_plan("pulled", strategy='name = "fedprox"\nmu = 1.0'), tmp_path / "one", hospitals)
    assert digests(tmp_path / "avg")[0] != digests(tmp_path / "one")[0]


def test_one_silos_fedavg_is_the_base_plus_that_silos_difference(
    hospitals: list[Path], write_plan: Write, tmp_path: Path
) -> None:
    plan = write_plan(rounds=1, more="keep_updates = true")
    plan.write_text(plan.read_text().replace("min_silos = 2", "min_silos = 1"))
    outcome = finish(plan, tmp_path / "study", hospitals[:1])

    _, base = load_vector(tmp_path / "study" / "models" / "000.safetensors")
    _, difference = load_vector(tmp_path / "study" / "updates" / "001" / "east.safetensors")
    _, model = load_vector(outcome.model)
    assert np.array_equal(model, base + difference)
    assert difference.any()


def test_a_hospital_that_may_not_take_part_refuses_and_the_others_go_on(
    hospitals: list[Path], write_plan: Write, tmp_path: Path
) -> None:
    change(hospitals[0], "min_patients = 11", "min_patients = 1000")
    outcome = finish(write_plan(), tmp_path / "study", hospitals)

    assert [r.refused for r in outcome.history.rounds[1:]] == [{"east": "too-few-patients"}] * 2
    assert [r.accepted for r in outcome.history.rounds[1:]] == [["north", "south"]] * 2
    opened = read(Site.load(hospitals[0]).run.work / "ledger")
    assert not any(record.event == Event.UPDATE_OFFERED for record in opened.records)
    assert sum(record.event == Event.REFUSAL_OFFERED for record in opened.records) == 3
    assert reconcile(tmp_path / "study" / "ledger", Site.load(hospitals[0]).run.work / "ledger").ok


def test_a_study_that_the_policy_does_not_name_gets_no_update(
    hospitals: list[Path], write_plan: Write, tmp_path: Path
) -> None:
    change(hospitals[2], '"trial", ', "")
    outcome = finish(write_plan(rounds=1), tmp_path / "study", hospitals)
    assert outcome.history.rounds[1].refused == {"south": "study-not-approved"}


def test_a_study_that_changed_under_its_name_is_refused(
    hospitals: list[Path], write_plan: Write, tmp_path: Path
) -> None:
    finish(write_plan(rounds=1), tmp_path / "first", hospitals)
    everybody = "refused: east: study-changed, north: study-changed, south: study-changed"
    with pytest.raises(ConfigError, match=everybody):
        finish(write_plan(rounds=2), tmp_path / "second", hospitals)
    for site in hospitals:
        approve(Site.load(site), read_agreement(tmp_path / "second" / "agreement.json"))
    with Study.open(tmp_path / "second") as study, LocalGrid(hospitals) as grid:
        assert [r.accepted for r in run(study, grid).history.rounds[1:]] == [["east", "north", "south"]] * 2


def test_with_too_few_updates_the_round_is_void_and_the_old_model_stands(
    hospitals: list[Path], write_plan: Write, tmp_path: Path
) -> None:
    for site in hospitals[:2]:
        change(site, "min_patients = 11", "min_patients = 1000")
    outcome = finish(write_plan(), tmp_path / "study", hospitals)
    assert [r.void for r in outcome.history.rounds] == [False, True, True]
    assert len({r.model for r in outcome.history.rounds}) == 1


def test_a_metric_that_the_policy_does_not_name_stays_inside(
    hospitals: list[Path], write_plan: Write, tmp_path: Path
) -> None:
    change(hospitals[1], 'metrics = ["loss", "auc", "accuracy"]', 'metrics = ["loss"]')
    outcome = finish(write_plan(rounds=1), tmp_path / "study", hospitals)
    assert set(outcome.history.rounds[1].metrics["north"]) == {"loss"}
    opened = read(tmp_path / "study" / "ledger")
    manifests = [
        Manifest.decode(opened.manifest(record.body["statement"]["body"]))
        for record in opened.records
        if record.event == Event.UPDATE_RECEIVED and record.body["statement"]["src"] == "north"
    ]
    assert [m.withheld for m in manifests] == [["auc"]]


def test_noise_is_named_in_the_manifest_and_its_epsilon_is_counted(
    hospitals: list[Path], write_plan: Write, tmp_path: Path
) -> None:
    for site in hospitals:
        change(site, "noise = 0.0", "noise = 0.001\nmax_epsilon = 1e9")
    finish(write_plan(), tmp_path / "study", hospitals)
    opened = read(tmp_path / "study" / "ledger")
    spent = [
        Manifest.decode(opened.manifest(r.body["statement"]["body"])).privacy
        for r in opened.records
        if r.event == Event.UPDATE_RECEIVED and r.body["statement"]["src"] == "east"
    ]
    assert len(spent) == 2
    assert spent[0] is not None
    assert spent[1] is not None
    assert 0 < spent[0].epsilon < spent[1].epsilon


class Killed(BaseException):
    """Stands for the death of the process."""


@pytest.mark.parametrize("survives", range(1, 12))
def test_a_killed_run_resumes_to_the_digests_of_an_unbroken_one(
    hospitals: list[Path], write_plan: Write, tmp_path: Path, survives: int
) -> None:
    plan, folder = write_plan(), tmp_path / "study"

    class DyingGrid(Grid):
        replies = 0

        def pull_messages(self, message_ids):  # type: ignore[no-untyped-def]
            for reply in super().pull_messages(message_ids):
                DyingGrid.replies += 1
                if DyingGrid.replies == survives:
                    raise Killed  # after the silo's line, before the aggregator's
                yield reply

    with pytest.raises(Killed), Study.create(plan, folder) as study, DyingGrid(hospitals) as grid:
        run(study, grid)
    with Study.open(folder) as study, LocalGrid(hospitals) as again:
        run(study, again)

    assert digests(folder) == unbroken(write_plan, hospitals, tmp_path)
    for site in hospitals:
        pair = reconcile(folder / "ledger", Site.load(site).run.work / "ledger")
        assert pair.ok, pair.problems
        assert pair.closed
    lost = [len(reconcile(folder / "ledger", Site.load(s).run.work / "ledger").pending) for s in hospitals]
    assert any(lost)  # what was on its way when the process died stands as pending, on either side


def test_a_killed_study_with_control_variates_resumes_to_the_same_digests_and_can_be_replayed(
    hospitals: list[Path], write_plan: Write, tmp_path: Path
) -> None:
    asked = {"rounds": 3, "strategy": 'name = "scaffold"', "weights": "equal"}
    asked["more"] = "keep_updates = true\nsilos_per_round = 2"
    plan, folder = write_plan(**asked), tmp_path / "broken"

    class DyingGrid(Grid):
        replies = 0

        def pull_messages(self, message_ids):  # type: ignore[no-untyped-def]
            for reply in super().pull_messages(message_ids):
                DyingGrid.replies += 1
                if DyingGrid.replies == 5:
                    raise Killed  # in round 2, when hospitals have written down their own variates
                yield reply

    with pytest.raises(Killed), Study.create(plan, folder) as study, DyingGrid(hospitals) as grid:
        run(study, grid)
    with Study.open(folder) as study, LocalGrid(hospitals) as again:
        run(study, again)
    finish(write_plan("trial-prox", **asked), tmp_path / "whole", hospitals)

    assert digests(folder) == digests(tmp_path / "whole")
    assert replay(folder).ok
    assert len(replay(folder).models) == 3


_unbroken: list[str] = []


def unbroken(write_plan: Write, hospitals: list[Path], tmp_path: Path) -> list[str]:
    """The digests of the same study without a break; run once."""
    if not _unbroken:
        for site in hospitals:
            change(site, '"trial", ', '"trial", "whole", ')
        finish(write_plan("whole"), tmp_path / "unbroken", hospitals)
        _unbroken.extend(digests(tmp_path / "unbroken"))
    return _unbroken


def test_a_run_killed_with_sigkill_in_the_middle_resumes(
    hospitals: list[Path], write_plan: Write, tmp_path: Path
) -> None:
    folder = tmp_path / "study"
    Study.create(write_plan(), folder).close()
    command = [sys.executable, "-m", "aggregator.cli", "run", str(folder), "--local", *map(str, hospitals)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ledger = folder / "ledger" / "ledger.jsonl"
    deadline = time.monotonic() + 120
    while b'"update.received"' not in ledger.read_bytes():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()

    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert digests(folder) == unbroken(write_plan, hospitals, tmp_path)
    assert all(reconcile(folder / "ledger", Site.load(s).run.work / "ledger").ok for s in hospitals)


@pytest.mark.parametrize(("visit", "event"), [("train", "update"), ("evaluate", "report"), ("query", "closing")])
def test_a_silo_killed_after_it_wrote_its_answer_down_answers_again_and_one_exchange_counts_as_lost(
    hospitals: list[Path], write_plan: Write, tmp_path: Path, visit: str, event: str
) -> None:
    class StutteringGrid(Grid):
        def _answer(self, message: Message) -> Message:
            node = message.metadata.dst_node_id
            if (self.roster[node].name, message.metadata.message_type) != ("north", visit):
                return super()._answer(message)
            super()._answer(message)  # the line is durable, the answer never leaves
            self._nodes[node].close()
            self._contexts[node].node_config[AGAIN] = True
            try:
                return super()._answer(message)
            finally:
                del self._contexts[node].node_config[AGAIN]

    plan, folder = write_plan(rounds=2), tmp_path / "study"
    lost = 2 if visit == "train" else 1  # one in each round
    with Study.create(plan, folder) as study, StutteringGrid(hospitals) as grid:
        outcome = run(study, grid)

    assert [r.accepted for r in outcome.history.rounds[1:]] == [["east", "north", "south"]] * 2
    assert digests(folder) == unbroken(write_plan, hospitals, tmp_path)
    ledger = Site.load(hospitals[1]).run.work / "ledger"
    assert verify(ledger).ok
    assert verify(folder / "ledger").ok
    pair = reconcile(folder / "ledger", ledger)
    assert (pair.problems, pair.orders, pair.replies, pair.closed) == ([], 4, 4, True)
    records = [record for record in read(ledger).records if record.study == outcome.study]
    answers: dict[str, list[str]] = {}
    for record in records:
        if record.event == f"{event}.offered":
            statement = Statement.parse(record.body["statement"])
            answers.setdefault(str(statement.answers), []).append(statement.xid)
    assert pair.pending == [first for first, _ in answers.values()]
    assert len(pair.pending) == lost
    assert sum(record.event == Event.ORDER_RECEIVED for record in records) == 4
    theirs = [record.body for record in read(folder / "ledger").records if "missed" in record.body]
    assert sum(body["missed"] for body in theirs if body["statement"]["src"] == "north") == lost


def test_a_hospital_that_revokes_in_the_middle_refuses_from_then_on_and_the_others_finish(
    hospitals: list[Path], write_plan: Write, tmp_path: Path
) -> None:
    site, folder = Site.load(hospitals[2]), tmp_path / "study"

    def revoke_once(history: History) -> None:
        if len(history.rounds) == 2:
            revoke(site, "trial")

    with Study.create(write_plan(rounds=3), folder) as study, LocalGrid(hospitals) as grid:
        outcome = run(study, grid, revoke_once)

    assert [r.refused for r in outcome.history.rounds] == [{}, {}, *[{"south": "study-revoked"}] * 2]
    assert [r.accepted for r in outcome.history.rounds[2:]] == [["east", "north"]] * 2
    pair = reconcile(folder / "ledger", site.run.work / "ledger")
    assert (pair.problems, pair.pending, pair.closed) == ([], [], True)


def test_a_hospital_that_approves_the_agreement_of_the_study_folder_takes_part_in_it_and_in_no_other(
    hospitals: list[Path], write_plan: Write, tmp_path: Path
) -> None:
    folder = tmp_path / "study"
    for path in hospitals:
        change(path, 'studies = ["trial", "trial-prox"]', "studies = []")
    with Study.create(write_plan(rounds=1), folder):
        for path in hospitals:
            assert approve(Site.load(path), read_agreement(folder / "agreement.json")).recorded
    with Study.open(folder) as study, LocalGrid(hospitals) as grid:
        assert run(study, grid).history.rounds[1].accepted == ["east", "north", "south"]
    with pytest.raises(ConfigError, match="refused: east: study-changed, "):
        finish(write_plan(rounds=1), tmp_path / "other", hospitals)


def test_a_finished_study_is_not_run_again(hospitals: list[Path], write_plan: Write, tmp_path: Path) -> None:
    first = finish(write_plan(rounds=1), tmp_path / "study", hospitals)
    lines = len(read(tmp_path / "study" / "ledger").records)
    with Study.open(tmp_path / "study") as study, LocalGrid(hospitals) as grid:
        second = run(study, grid)
    assert second.digest == first.digest
    assert len(read(tmp_path / "study" / "ledger").records) == lines


def test_three_lines_of_python_run_a_study(hospitals: list[Path], write_plan: Write) -> None:
    study = Study.load(write_plan(rounds=1))
    with study, LocalGrid(hospitals) as grid:
        outcome = run(study, grid)
    assert outcome.model.is_file()
    assert Study.load(outcome.model.parent.parent).position.closed


def test_a_hospital_whose_ledger_cannot_be_written_sends_nothing(
    hospitals: list[Path], write_plan: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from models.errors import NotAppended
    from models.ledger import Ledger

    append = Ledger.append

    def full(self: Ledger, *entries):  # type: ignore[no-untyped-def]
        if "south" in str(self.folder) and any(entry.event == Event.UPDATE_OFFERED for entry in entries):
            raise NotAppended("no space left")
        return append(self, *entries)

    monkeypatch.setattr(Ledger, "append", full)
    outcome = finish(write_plan(rounds=1), tmp_path / "study", hospitals)
    assert outcome.history.rounds[1].refused == {"south": "ledger-not-appended"}
    assert outcome.history.rounds[1].accepted == ["east", "north"]
