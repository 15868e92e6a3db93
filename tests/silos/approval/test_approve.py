"""A hospital's yes or no: what may be followed, whoever asks, and what no file can change."""

import errno
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from aggregator.audit import verify
from models.errors import ConfigError, IntramuralError, LedgerError, PolicyError, Replayed, Rule
from models.exchange.channel import Channel
from models.exchange.documents import Agreement, Manifest, Order, Refusal
from models.exchange.enrolment import Invitation
from models.exchange.spec import Vector, vector_digest
from models.exchange.statement import Envelope, Kind, Statement
from models.ledger import Event, Ledger, Record, Signer, read
from models.plan import Plan
from models.tasks import task
from models.tasks.flat import FlatNetwork
from silos import silo as silo_module
from silos.approval import decisions
from silos.approval.approve import approve, revoke
from silos.approval.decisions import Decision
from silos.approval.proposal import REFUSED, explain, read_agreement
from silos.config import Site
from silos.privacy import epsilon
from silos.silo import Silo
from silos.training import Cases

MakePlan = Callable[..., Plan]


class Coordinator:
    """Who asks: a key, a ledger, and studies of one small network."""

    def __init__(self, folder: Path, make_plan: MakePlan, seed: bytes = b"a") -> None:
        self.signer = Signer.from_seed("aggregator", seed * 32)
        self.ledger = Ledger.create(folder / f"coordinator-{seed.decode()}", self.signer)
        self.folder, self.make_plan = folder, make_plan
        self.hospital = Signer.load(folder / "hospitals" / "north" / "keys" / "north.key").verifier
        self.channels: dict[str, Channel] = {}

    def agree(self, **changes: Any) -> Agreement:
        plan = self.make_plan(**{"min_silos": 1, **changes})
        network = FlatNetwork(task(plan.task).build(plan.seed))
        self.model: Vector = network.weights.numpy().copy()
        self.spec = network.spec
        initial = vector_digest(network.spec.digest, self.model)
        return Agreement(plan=plan, coordinator_key=self.signer.vkey, initial=initial, spec=network.spec.digest)

    def file(self, agreement: Agreement) -> Path:
        path = self.folder / f"{agreement.study[:8]}.json"
        path.write_bytes(agreement.encode())
        return path

    def order(self, agreement: Agreement, round_: int = 1) -> Envelope:
        order = Order(agreement=agreement, round=round_, visit="train", base=agreement.initial)
        return self.channel(agreement).offer(Kind.ORDER, round_, order, spec=agreement.spec, vector=self.model)

    def channel(self, agreement: Agreement) -> Channel:
        study = agreement.study
        return self.channels.setdefault(study, Channel(self.ledger, self.signer, self.hospital, study))

    def receive(self, agreement: Agreement, envelope: Envelope) -> int:
        """Take a reply in; how many before it were lost."""
        channel = self.channel(agreement)
        received = channel.verify(envelope, None if envelope.vector is None else self.spec)
        channel.accept(received)
        return received.missed


@pytest.fixture
def coordinator(hospitals: list[Path], tmp_path: Path, make_plan: MakePlan) -> Iterator[Coordinator]:
    made = Coordinator(tmp_path, make_plan)
    yield made
    made.ledger.close()


@pytest.fixture
def path(hospitals: list[Path]) -> Path:
    """The `site.toml` of a hospital whose policy names no study."""
    path = hospitals[1]
    change(path, re.search(r"studies = .*\n", path.read_text())[0], "")  # type: ignore[index]
    return path


@pytest.fixture
def site(path: Path) -> Site:
    return Site.load(path)


@pytest.fixture
def silo(site: Site) -> Iterator[Silo]:
    """The hospital at work."""
    opened = Silo(site)
    yield opened
    opened.close()


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def said(reply: Envelope) -> str:
    """The kind of a reply, or the code of a refusal."""
    kind = Statement.decode(reply.statement).kind
    return Refusal.decode(reply.body).code if kind is Kind.REFUSAL else kind.value


def words(site: Site) -> list[tuple[str, str]]:
    """What the ledger says of studies, and on whose word."""
    return [(record.event.value, record.body["by"]) for record in lines(site)]


def lines(site: Site) -> list[Record]:
    return decisions.words(read(site.run.work / "ledger").records)


def waiting(site: Site, pattern: str = "*") -> list[str]:
    return sorted(path.name for path in (site.run.work / "approvals").glob(pattern))


# --- a person's word decides --------------------------------------------------------------------------


def test_a_study_is_refused_until_a_person_says_yes_and_then_followed(coordinator: Coordinator, site: Site) -> None:
    agreement = coordinator.agree()
    silo = Silo(site)
    assert said(silo.answer(coordinator.order(agreement))) == "study-not-approved"
    silo.close()

    done = approve(site, agreement)
    assert (done.action, done.name, done.study, done.recorded) == ("approve", "demo", agreement.study, True)
    silo = Silo(site)
    assert said(silo.answer(coordinator.order(agreement))) == "update"
    silo.close()

    assert words(site) == [("study.approved", "person")]
    body = lines(site)[0].body
    assert (body["name"], body["purpose"], body["recipient"]) == ("demo", "find lesions", "aggregator")
    assert body["recipient_key"] == coordinator.signer.vkey
    kept = read(site.run.work / "ledger").manifest(body["agreement"])
    assert Agreement.decode(kept) == agreement
    assert verify(site.run.work / "ledger").ok


def test_a_word_for_a_silo_that_runs_is_a_private_signed_file_until_the_next_order(
    coordinator: Coordinator, site: Site, silo: Silo
) -> None:
    agreement = coordinator.agree()
    assert not approve(site, agreement).recorded
    (name,) = waiting(site)
    assert re.fullmatch(rf"\d{{8}}T\d{{6}}\.\d{{6}}Z-{agreement.study[:8]}-approve\.json", name)
    folder = site.run.work / "approvals"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / name)] == [0o700, 0o600]
    assert words(site) == []

    assert said(silo.answer(coordinator.order(agreement))) == "update"
    assert waiting(site) == []
    assert words(site) == [("study.approved", "person")]


def test_a_word_is_written_down_when_the_silo_is_opened_and_when_it_is_idle(
    coordinator: Coordinator, site: Site, silo: Silo
) -> None:
    approve(site, coordinator.agree())
    silo.close()
    opened = Silo(site)
    assert words(site) == [("study.approved", "person")]
    revoke(site, "demo")
    opened.tend()
    opened.close()
    assert words(site) == [("study.approved", "person"), ("study.revoked", "person")]
    assert lines(site)[1].study == coordinator.agree().study
    assert lines(site)[1].body["name"] == "demo"


def test_a_study_that_was_revoked_gets_nothing_until_it_is_approved_again(
    coordinator: Coordinator, site: Site, silo: Silo
) -> None:
    agreement = coordinator.agree()
    order = lambda round_: said(silo.answer(coordinator.order(agreement, round_)))  # noqa: E731
    approve(site, agreement)
    assert order(1) == "update"
    (done,) = revoke(site, agreement.study)
    assert (done.action, done.name, done.study, done.recorded) == ("revoke", "demo", agreement.study, False)
    assert order(2) == "study-revoked"
    approve(site, agreement)
    assert order(2) == "update"
    revoke(site, "demo")
    assert order(3) == "study-revoked"
    assert verify(site.run.work / "ledger").ok


def test_a_no_that_comes_while_the_silo_trains_keeps_the_update_inside(
    coordinator: Coordinator, site: Site, silo: Silo, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreement = coordinator.agree()
    approve(site, agreement)
    work = silo_module.visit

    def visit(*args: Any, **more: Any) -> Any:
        release = work(*args, **more)
        revoke(site, "demo")
        return release

    monkeypatch.setattr(silo_module, "visit", visit)
    assert said(silo.answer(coordinator.order(agreement))) == "study-revoked"
    assert not any(record.event == Event.UPDATE_OFFERED for record in silo.ledger.records)


def test_two_studies_of_one_name_are_approved_and_revoked_each_by_its_digest(
    coordinator: Coordinator, site: Site, silo: Silo
) -> None:
    first, second, third = (coordinator.agree(rounds=rounds) for rounds in (5, 6, 7))
    answers = lambda: [said(silo.answer(coordinator.order(item))) for item in (first, second, third)]  # noqa: E731
    approve(site, first)
    assert answers() == ["update", "study-changed", "study-changed"]
    approve(site, second)
    assert answers() == ["update", "update", "study-changed"]
    revoke(site, first.study)
    assert answers() == ["study-revoked", "update", "study-changed"]
    approve(site, first)
    assert {item.study for item in revoke(site, "demo")} == {first.study, second.study}
    assert answers() == ["study-revoked", "study-revoked", "study-not-approved"]


def test_a_study_that_the_policy_names_is_let_in_on_its_word_and_a_person_can_revoke_it(
    coordinator: Coordinator, path: Path
) -> None:
    change(path, "[policy]\n", '[policy]\nstudies = ["demo"]\n')
    site, agreement = Site.load(path), coordinator.agree()
    silo = Silo(site)
    assert said(silo.answer(coordinator.order(agreement))) == "update"
    assert words(site) == [("study.approved", "policy")]
    revoke(site, "demo")
    assert said(silo.answer(coordinator.order(agreement))) == "study-revoked"
    silo.close()
    change(path, '"demo"', f'"demo@{agreement.study}"')
    silo = Silo(Site.load(path))
    assert said(silo.answer(coordinator.order(agreement))) == "study-revoked"
    approve(site, agreement)
    assert said(silo.answer(coordinator.order(agreement))) == "update"
    silo.close()
    assert words(site) == [("study.approved", "policy"), ("study.revoked", "person"), ("study.approved", "person")]


@pytest.mark.parametrize("what", ["demo", "0" * 64, "dem", ""])
def test_only_what_was_let_in_can_be_revoked_and_only_once(coordinator: Coordinator, site: Site, what: str) -> None:
    with pytest.raises(ConfigError, match="stands approved"):
        revoke(site, what)
    if what == "demo":
        approve(site, coordinator.agree())
        assert len(revoke(site, what)) == 1
        with pytest.raises(ConfigError, match="stands approved"):
            revoke(site, what)
    assert waiting(site) == []


def test_a_no_overtakes_a_yes_that_still_waits(coordinator: Coordinator, site: Site, silo: Silo) -> None:
    agreement = coordinator.agree()
    approve(site, agreement)
    assert len(revoke(site, "demo")) == 1
    assert len(waiting(site)) == 2
    assert said(silo.answer(coordinator.order(agreement))) == "study-revoked"


def test_the_newest_word_counts_although_the_clock_was_set_back_meanwhile(
    coordinator: Coordinator, site: Site, silo: Silo, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Earlier(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) - timedelta(hours=1)

    agreement = coordinator.agree()
    approve(site, agreement)
    monkeypatch.setattr("silos.approval.approve.datetime", Earlier)
    assert len(revoke(site, "demo")) == 1
    assert said(silo.answer(coordinator.order(agreement))) == "study-revoked"


def test_a_word_that_finds_no_space_names_its_file_and_says_that_it_was_not_recorded(
    coordinator: Coordinator, site: Site, silo: Silo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *more: Any) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("silos.approval.approve.disk.create", full)
    with pytest.raises(ConfigError, match=r"approvals/.*\.json: No space left on device: no word on demo was recorded"):
        approve(site, coordinator.agree())
    assert os.listdir(site.run.work / "approvals") == []


# --- what is no word of this hospital changes nothing -------------------------------------------------


def forge(of: Agreement, **changes: Any) -> Decision:
    usual: dict[str, Any] = {
        "action": "approve",
        "name": of.plan.name,
        "study": of.study,
        "time": "20260101T000000.000000Z",
        "agreement": of,
    }
    return Decision(**usual | changes)


@pytest.mark.parametrize(
    "what",
    [
        "unsigned",
        "signed by another",
        "changed after it was signed",
        "of another agreement",
        "a yes without an agreement",
        "of another name",
        "cut short",
        "no JSON",
        "a number that cannot be signed",
        "empty",
    ],
)
def test_a_forged_or_damaged_file_is_set_aside_and_the_silo_goes_on(
    coordinator: Coordinator, site: Site, silo: Silo, what: str
) -> None:
    agreement, own = coordinator.agree(), silo.signer
    other = coordinator.agree(rounds=1)
    good = forge(agreement).sign(own)
    huge = json.loads(good.encode())
    huge["agreement"]["plan"]["task"]["network"]["arguments"]["channels"] = 10**30
    content = {
        "unsigned": forge(agreement).encode(),
        "signed by another": forge(agreement).sign(Signer.from_seed("north", b"x" * 32)).encode(),
        "changed after it was signed": forge(other).sign(own).model_copy(update={"agreement": agreement}).encode(),
        "of another agreement": forge(agreement, agreement=other).sign(own).encode(),
        "a yes without an agreement": forge(agreement, agreement=None).sign(own).encode(),
        "of another name": forge(agreement, name="other").sign(own).encode(),
        "cut short": good.encode()[:-9],
        "no JSON": b"\x00\xff",
        "a number that cannot be signed": json.dumps(huge).encode(),
        "empty": b"",
    }[what]
    folder = site.run.work / "approvals"
    folder.mkdir()
    (folder / "forged.json").write_bytes(content)
    assert said(silo.answer(coordinator.order(agreement))) == "study-not-approved"
    assert waiting(site) == ["forged.json.rejected"]
    assert words(site) == []
    approve(site, agreement)
    assert said(silo.answer(coordinator.order(agreement))) == "update"


def test_what_is_no_file_is_no_word_and_what_cannot_be_read_may_be_a_no(
    coordinator: Coordinator, site: Site, silo: Silo, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreement, folder = coordinator.agree(), site.run.work / "approvals"
    approve(site, agreement)
    (folder / "a-folder.json").mkdir()
    os.mkfifo(folder / "a-pipe.json")
    read_bytes, readable = Path.read_bytes, False

    def read_or_deny(path: Path) -> bytes:
        assert not path.is_fifo()  # would wait for ever
        if path.parent == folder and not readable:
            raise PermissionError(13, "Permission denied")
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", read_or_deny)
    with pytest.raises(LedgerError, match=r"approve\.json: Permission denied"):
        silo.answer(coordinator.order(agreement))
    readable = True
    assert said(silo.answer(coordinator.order(agreement))) == "update"


def test_a_folder_of_words_that_cannot_be_read_stops_the_silo_too(
    coordinator: Coordinator, site: Site, silo: Silo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(_: Path) -> list[str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("silos.approval.decisions.os.listdir", deny)
    with pytest.raises(LedgerError, match="approvals: Permission denied"):
        silo.answer(coordinator.order(coordinator.agree()))


def test_a_word_of_another_user_than_the_silos_is_refused_before_it_is_written(
    coordinator: Coordinator, site: Site, silo: Silo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("silos.approval.approve.os.geteuid", lambda: 4711)
    with pytest.raises(ConfigError, match=r"run\.work: .*ledger belongs to .*, and this command runs as 4711"):
        approve(site, coordinator.agree())
    assert not (site.run.work / "approvals").exists()


def test_a_yes_that_was_written_down_cannot_be_brought_back_after_a_no(
    coordinator: Coordinator, site: Site, silo: Silo
) -> None:
    agreement = coordinator.agree()
    approve(site, agreement)
    (name,) = waiting(site)
    old = (site.run.work / "approvals" / name).read_bytes()
    silo.tend()
    revoke(site, "demo")
    silo.tend()
    (site.run.work / "approvals" / name).write_bytes(old)  # from a backup, or by whoever would like to
    assert said(silo.answer(coordinator.order(agreement))) == "study-revoked"
    assert waiting(site) == []
    assert words(site) == [("study.approved", "person"), ("study.revoked", "person")]


def test_a_word_that_cannot_be_written_down_stays_a_file(
    coordinator: Coordinator, site: Site, silo: Silo, monkeypatch: pytest.MonkeyPatch
) -> None:
    from models.errors import NotAppended

    agreement = coordinator.agree()
    approve(site, agreement)

    def full(*_: Any) -> None:
        raise NotAppended("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(silo.ledger, "append", full)
        with pytest.raises(NotAppended):
            silo.answer(coordinator.order(agreement))
    assert len(waiting(site)) == 1
    silo.close()
    Silo(site).close()
    assert waiting(site) == []
    assert words(site) == [("study.approved", "person")]


# --- what is approved, in words -----------------------------------------------------------------------


def rows(site: Site, agreement: Agreement) -> dict[str, str]:
    return dict(explain(site, agreement))


def with_policy(site: Site, **changes: Any) -> Site:
    return site.model_copy(update={"policy": site.policy.model_copy(update=changes)})


def test_the_explanation_says_what_is_asked_what_leaves_and_to_whom(coordinator: Coordinator, site: Site) -> None:
    agreement = coordinator.agree(strategy={"name": "fedprox", "mu": 0.1}, metrics=["loss", "auc", "accuracy"])
    told = rows(with_policy(site, metrics=["loss"]), agreement)
    assert told["study"] == f"demo@{agreement.study}"
    assert told["purpose"] == "find lesions"
    assert re.fullmatch(r"aggregator, key ([0-9a-f]{4}-){7}[0-9a-f]{4}", told["who asks"])
    assert told["task"] == "classification: none, lesion"
    assert told["images"] == "MR; 16 x 16 pixels"
    assert told["network"] == "cnn (channels = [8, 16])"
    assert told["rounds"] == "5"
    assert told["work in each round"] == "1 epoch, batches of 8"
    assert told["learning"] == "sgd, learning rate 0.1"
    assert told["combined by"] == "fedprox (mu = 0.1)"
    assert f"{2 * coordinator.model.size / 1000:.1f} kB" in told["leaves in each round"]  # bfloat16
    assert "at most 2.0 GB" in told["leaves in each round"]
    assert "at most 200.0 MB" in told["leaves in each round"]
    assert told["metrics told"] == "loss; with at least 1 held-out patient"
    assert told["metrics withheld"] == "accuracy, auc"
    assert told["counts told"] == "images trained on, images evaluated on: as ranges"
    rounded = "every number rounded to 8 significant bits"
    assert told["changed before it leaves"] == f"shortened to a length of 10; no noise; {rounded}"
    assert told["goes to"] == "aggregator"
    assert told["kept there"] == "each update until its round is over"
    assert REFUSED not in told
    assert not (site.run.work / "ledger").exists()
    assert waiting(site) == []


def test_the_explanation_follows_the_study_and_the_policy(coordinator: Coordinator, site: Site) -> None:
    training = {
        "epochs": None,
        "steps": 20,
        "optimizer": "adamw",
        "decay": 0.9,
        "weight_decay": 0.01,
        "mixed_precision": True,
    }
    late = {"stragglers": "partial", "deadline": 60}
    agreement = coordinator.agree(training=training, weights="equal", keep_updates=True, **late)
    told = rows(with_policy(site, metrics=[], counts="exact", noise=2.0), agreement)
    shared = "what is done of it when 60 s are nearly over is shared"
    assert told["work in each round"] == f"20 steps, batches of 8; {shared}"
    learning = "adamw, learning rate 0.1, times 0.9 after every round, weight decay 0.01"
    assert told["learning"] == f"{learning}, in bfloat16 where the processor has it"
    assert (told["metrics told"], told["counts told"]) == ("none", "none")
    assert "noise of standard deviation 20 on every number" in told["changed before it leaves"]
    assert "epsilon" in told["changed before it leaves"]
    assert told["kept there"] == "every update, for good"
    told = rows(with_policy(site, counts="exact"), coordinator.agree(weights="patients"))
    assert told["counts told"] == "patients trained on, images evaluated on: exactly"
    assert told["metrics told"] == "auc, loss; with at least 1 held-out patient, auc of every class"


def test_a_coordinators_words_cannot_overwrite_those_of_the_hospital_on_the_screen(
    coordinator: Coordinator, site: Site
) -> None:
    agreement = coordinator.agree(purpose="lésions\x1b[2K\r\n\u202ehidden", task={"modality": ["MR", "\x9b1A"]})
    told = rows(site, agreement)
    assert told["purpose"] == "lésions?[2K???hidden"
    assert told["images"].startswith("MR, ?1A;")


@pytest.mark.parametrize(
    ("policy", "plan", "said"),
    [
        ({"max_rounds": 3}, {}, "round 4 and all after it: policy.max_rounds"),
        ({"noise": 4.0, "max_epsilon": 1.0}, {"rounds": 100}, "and all after it: policy.max_epsilon"),
    ],
)
def test_a_limit_that_a_study_reaches_later_is_told_and_can_be_approved(
    coordinator: Coordinator, site: Site, policy: dict[str, Any], plan: dict[str, Any], said: str
) -> None:
    agreement, site = coordinator.agree(**plan), with_policy(site, **policy)
    assert said in rows(site, agreement)[REFUSED]
    assert approve(site, agreement).recorded


def test_a_study_whose_steps_take_fewer_images_than_patients_are_required_cannot_be_approved(
    coordinator: Coordinator, site: Site
) -> None:
    agreement = coordinator.agree(training={"epochs": None, "steps": 1, "batch_size": 8})
    with pytest.raises(PolicyError, match="the steps of a round take at most 8 images") as caught:
        approve(site, agreement)
    assert caught.value.rule is Rule.MIN_PATIENTS
    assert rows(site, agreement)[REFUSED] == str(caught.value)


@pytest.mark.parametrize(
    ("policy", "plan", "rule"),
    [
        ({"tasks": []}, {}, Rule.TASK),
        ({"metrics": ["auc"]}, {"strategy": {"name": "qfedavg", "client_learning_rate": 0.1}}, Rule.METRIC),
        ({"max_bytes": 1000}, {}, Rule.MAX_BYTES),
        ({"max_epsilon": 1.0}, {}, Rule.EPSILON),
    ],
)
def test_what_the_policy_could_never_follow_cannot_be_approved(
    coordinator: Coordinator, site: Site, policy: dict[str, Any], plan: dict[str, Any], rule: Rule
) -> None:
    agreement, site = coordinator.agree(**plan), with_policy(site, **policy)
    with pytest.raises(PolicyError) as caught:
        approve(site, agreement)
    assert caught.value.rule == rule
    assert rows(site, agreement)[REFUSED] == str(caught.value)
    assert not (site.run.work / "approvals").exists()
    assert not (site.run.work / "ledger").exists()


def test_a_study_of_another_network_or_coordinator_than_it_says_cannot_be_approved(
    coordinator: Coordinator, site: Site
) -> None:
    good = coordinator.agree()
    for bad, reason in (
        (good.model_copy(update={"spec": "0" * 64}), "other arrays"),
        (good.model_copy(update={"coordinator_key": "no key"}), "is no key"),
        (coordinator.agree(coordinator="somebody"), "not of 'somebody'"),
    ):
        with pytest.raises(ConfigError, match=reason):
            approve(site, bad)
        assert reason in rows(site, bad)[REFUSED]
    assert not (site.run.work / "approvals").exists()


def certificate() -> str:
    """Any certificate, as text."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, datetime(2026, 1, 1), datetime(2036, 1, 1))  # noqa: DTZ001
    return builder.sign(key, SHA256()).public_bytes(Encoding.PEM).decode()


def test_only_a_study_of_the_coordinator_that_was_joined_can_be_approved(
    coordinator: Coordinator, path: Path, tmp_path: Path
) -> None:
    change(path, "[run]\n", '[run]\ncoordinator = "coordinator.json"\n')
    site, agreement = Site.load(path), coordinator.agree()
    invitation = path.parent / "coordinator.json"
    with pytest.raises(ConfigError, match=r"coordinator\.json: No such file"):
        approve(site, agreement)
    invitation.write_bytes(b"{}")
    with pytest.raises(ConfigError, match="is no valid Invitation"):
        approve(site, agreement)

    def invite(signer: Signer) -> None:
        made = Invitation(
            name="aggregator", key=signer.vkey, address="study.example.org:8443", certificates=certificate()
        )
        invitation.write_bytes(made.encode())

    invite(Signer.from_seed("aggregator", b"z" * 32))
    with pytest.raises(ConfigError, match=r"is not the one of run\.coordinator"):
        approve(site, agreement)
    assert "known by" not in rows(site, agreement)
    invite(coordinator.signer)
    told = rows(site, agreement)
    assert told["goes to"] == "aggregator at study.example.org:8443"
    assert told["known by"] == f"the invitation {Invitation.decode(invitation.read_bytes()).fingerprint}"
    assert approve(site, agreement).recorded


@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"v": 1}', b"name = 1"])
def test_a_file_that_is_no_agreement_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "agreement.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        read_agreement(path)


# --- who was killed answers again ---------------------------------------------------------------------


@pytest.mark.parametrize("answered", [False, True], ids=["before the answer's line", "after it"])
def test_an_order_is_followed_again_by_a_silo_that_was_killed_over_it(
    coordinator: Coordinator, site: Site, monkeypatch: pytest.MonkeyPatch, answered: bool
) -> None:
    agreement = coordinator.agree()
    approve(site, agreement)
    order, silo = coordinator.order(agreement), Silo(site)
    if answered:
        first = silo.answer(order)
    else:
        with monkeypatch.context() as patch:
            patch.setattr(silo_module, "visit", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                silo.answer(order)
    silo.close()

    silo = Silo(site)
    with pytest.raises(Replayed):
        silo.answer(order)
    reply = silo.answer(order, again=True)
    assert said(reply) == "update"
    statement = Statement.decode(reply.statement)
    assert statement.n == (2 if answered else 1)
    if answered:
        assert reply.vector is not None
        assert first.vector is not None
        assert np.array_equal(reply.vector, first.vector)
    received = [r for r in silo.ledger.records if r.event == Event.ORDER_RECEIVED]
    assert len(received) == 1
    assert coordinator.receive(agreement, reply) == (1 if answered else 0)
    assert coordinator.receive(agreement, silo.answer(coordinator.order(agreement, 2))) == 0
    silo.close()
    assert verify(site.run.work / "ledger").ok


def test_an_order_that_was_never_received_is_received_even_if_it_is_said_to_come_again(
    coordinator: Coordinator, site: Site, silo: Silo
) -> None:
    agreement = coordinator.agree()
    approve(site, agreement)
    reply = silo.answer(coordinator.order(agreement), again=True)
    assert said(reply) == "update"
    assert [r.event.value for r in silo.ledger.records][-2:] == ["order.received", "update.offered"]
    assert coordinator.receive(agreement, reply) == 0


def test_an_older_or_a_forged_order_is_refused_even_if_it_is_said_to_come_again(
    coordinator: Coordinator, site: Site, silo: Silo
) -> None:
    agreement = coordinator.agree()
    approve(site, agreement)
    older, newest = coordinator.order(agreement), coordinator.order(agreement)
    for order in (older, newest):
        silo.answer(order)
    for wrong in (older, replace(newest, signature=older.signature)):
        with pytest.raises(IntramuralError):
            silo.answer(wrong, again=True)
    events = [record.event.value for record in silo.ledger.records]
    assert events.count("update.offered") == 2
    assert events.count("order.rejected") == 2


def test_a_round_that_was_answered_twice_is_counted_once(coordinator: Coordinator, path: Path) -> None:
    change(path, "max_rounds = 100", "max_rounds = 2")
    site, agreement = Site.load(path), coordinator.agree()
    approve(site, agreement)
    silo = Silo(site)
    first = coordinator.order(agreement, 1)
    answers = [silo.answer(first), *(silo.answer(first, again=True) for _ in range(3))]
    answers.append(silo.answer(coordinator.order(agreement, 2)))
    assert [said(answer) for answer in answers] == ["update"] * 5
    assert said(silo.answer(coordinator.order(agreement, 3))) == "round-limit"
    silo.close()


def test_another_update_of_a_round_stays_here(coordinator: Coordinator, site: Site) -> None:
    agreement = coordinator.agree()
    approve(site, agreement)
    silo, chance = Silo(site), np.random.default_rng(0)

    def fit(network: FlatNetwork, _: Any, data: Cases, *__: Any, **___: Any) -> Vector:
        data.take(np.arange(len(data)))
        return chance.standard_normal(network.spec.size).astype(np.float32)

    silo.fit = fit
    order = coordinator.order(agreement, 1)
    answers = [silo.answer(order), silo.answer(order, again=True), silo.answer(coordinator.order(agreement, 1))]
    assert [said(answer) for answer in answers] == ["update", "replayed.round", "replayed.round"]
    assert said(silo.answer(coordinator.order(agreement, 2))) == "update"
    silo.close()


def test_what_was_told_without_noise_stays_told_when_the_policy_asks_for_noise_later(
    coordinator: Coordinator, path: Path
) -> None:
    agreement = coordinator.agree()
    approve(Site.load(path), agreement)
    for noise, limit, answer, spent in (
        ("4.0", "max_epsilon = 100.0\n", "update", 1),
        ("8.0", "max_epsilon = 100.0\n", "update", 2),
        ("0.0", "", "update", None),
        ("8.0", "max_epsilon = 100.0\n", "epsilon-spent", None),
        ("8.0", "", "update", None),
    ):
        path.write_text(
            re.sub(r"(?m)^noise = .*\n(max_epsilon = .*\n)?", f"noise = {noise}\n{limit}", path.read_text())
        )
        silo = Silo(Site.load(path))
        reply = silo.answer(coordinator.order(agreement, len(coordinator.ledger.records)))
        silo.close()
        assert said(reply) == answer
        if spent is not None:
            told = Manifest.decode(reply.body).privacy
            assert told is not None
            assert told.epsilon == pytest.approx(epsilon([4.0, 8.0][:spent], 1e-5), abs=1e-5)
        elif answer == "update":
            assert Manifest.decode(reply.body).privacy is None


def test_no_more_models_are_looked_at_than_the_rounds_of_a_study_make(
    coordinator: Coordinator, site: Site, silo: Silo
) -> None:
    agreement = coordinator.agree(rounds=2)
    approve(site, agreement)

    def answer(scale: float) -> str:
        model = coordinator.model * np.float32(scale)
        order = Order(agreement=agreement, round=1, visit="evaluate", base=vector_digest(agreement.spec, model))
        channel = coordinator.channel(agreement)
        return said(silo.answer(channel.offer(Kind.ORDER, 1, order, spec=agreement.spec, vector=model)))

    assert [answer(scale) for scale in (1.0, 0.5, 0.5, 2.0, 3.0, 1.0)] == ["report"] * 4 + ["replayed.round"] * 2


def test_a_study_of_another_coordinator_does_not_spoil_the_farewell(
    coordinator: Coordinator, path: Path, make_plan: MakePlan, tmp_path: Path
) -> None:
    stranger = Coordinator(tmp_path, make_plan, b"b")
    site, before = Site.load(path), stranger.agree(name="before")
    approve(site, before)
    agreement = coordinator.agree()
    approve(site, agreement)
    silo = Silo(site)
    silo._coordinator = coordinator.signer.vkey  # as if it had joined this one meanwhile
    coordinator.receive(agreement, silo.answer(coordinator.order(agreement)))
    farewell = silo.part(coordinator.channel(agreement).farewell())
    coordinator.channel(agreement).part(farewell)
    silo.close()
    stranger.ledger.close()


def test_a_study_revoked_before_the_silo_came_back_is_refused_although_the_order_comes_again(
    coordinator: Coordinator, site: Site, silo: Silo
) -> None:
    agreement = coordinator.agree()
    approve(site, agreement)
    order = coordinator.order(agreement)
    silo.answer(order)
    revoke(site, "demo")
    assert said(silo.answer(order, again=True)) == "study-revoked"
