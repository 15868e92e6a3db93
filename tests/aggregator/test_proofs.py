"""A proof file: small, shows one exchange or one history to whoever has nothing else, and cannot be bent."""

import hashlib
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aggregator.audit import Proof, check, prove, reconcile
from aggregator.audit.proofs import load
from aggregator.audit_cli import main
from aggregator.folder import read_agreement
from models.canonical import canonical, digest, parse
from models.errors import ConfigError, IntramuralError, LedgerError, Malformed
from models.exchange import wire
from models.exchange.channel import Channel
from models.exchange.documents import Manifest
from models.exchange.statement import Evidence, Statement
from models.ledger import Entry, Event, Signer, Verifier, read

Toy = Any  # of conftest.py
SILO = "north"


def key(name: str = SILO) -> Verifier:
    return Signer.from_seed(name, hashlib.sha256(name.encode()).digest()).verifier


def hub_key(folder: Path) -> Verifier:
    return Signer.load(folder / "toy" / "aggregator.key").verifier


def write(folder: Path, target: Path, silo: str = SILO) -> tuple[Path, Path]:
    """The two proof files of a pair."""
    files = target / "aggregator.proof", target / f"{silo}.proof"
    files[0].write_bytes(prove(folder / "toy" / "ledger", peer=silo).encode())
    files[1].write_bytes(prove(folder / silo).encode())
    return files


def xid(folder: Path, event: Event, number: int = 0) -> str:
    lines = [record for record in read(folder).records if record.event == event]
    return Statement.parse(lines[number].body["statement"]).xid


# What a file shows


@pytest.mark.parametrize("name", ["east", "north", "south", "west"])
def test_two_files_prove_the_same_history_as_the_two_ledgers(finished: Path, tmp_path: Path, name: str) -> None:
    files = write(finished, tmp_path, name)
    ledgers = finished / "toy" / "ledger", finished / name
    assert reconcile(*files) == reconcile(*ledgers)
    assert reconcile(*files).problems == []


def test_a_ledger_and_the_other_sides_file_can_be_compared_too(finished: Path, tmp_path: Path) -> None:
    hub, silo = write(finished, tmp_path)
    expected = reconcile(finished / "toy" / "ledger", finished / SILO)
    assert reconcile(hub, finished / SILO) == reconcile(finished / "toy" / "ledger", silo) == expected


def test_a_file_is_a_few_kilobytes_and_reads_back_as_itself(finished: Path) -> None:
    for folder, peer in ((finished / SILO, None), (finished / "toy" / "ledger", SILO)):
        proof = prove(folder, peer=peer)
        content = proof.encode()
        assert len(content) < 10_000
        assert Proof.decode(content) == proof
        assert canonical(parse(content[:-1])) + b"\n" == content


def test_a_file_shows_the_newest_statement_of_each_direction_with_its_signatures(finished: Path) -> None:
    found = check(prove(finished / SILO), [key(), hub_key(finished)])
    assert found.problems == []
    assert (found.party, found.peer, found.trusted) == (SILO, "aggregator", ["aggregator", SILO])
    assert [(item.statement.kind, item.receipt) for item in found.sent] == [("report", True), ("closing", False)]
    assert [(item.statement.kind, item.receipt) for item in found.received] == [("order", True)]
    assert found.sent[-1].statement.xid == xid(finished / SILO, Event.CLOSING_OFFERED)
    assert found.head == read(finished / SILO).head
    assert found.as_json()["ok"] is True


@pytest.mark.parametrize(
    ("party", "event"),
    [
        (SILO, Event.UPDATE_OFFERED),
        (SILO, Event.ORDER_RECEIVED),
        ("toy/ledger", Event.UPDATE_RECEIVED),
        ("toy/ledger", Event.ORDER_OFFERED),
    ],
)
def test_one_exchange_is_shown_with_both_signatures_and_all_that_it_carried(
    finished: Path, party: str, event: Event
) -> None:
    folder = finished / party
    statement = xid(folder, event, 1)
    found = check(prove(folder, exchange=statement[:12], documents=True), [key(), hub_key(finished), key("south")])
    assert found.problems == []
    (shown,) = [*found.sent, *found.received]
    assert (shown.statement.xid, shown.receipt) == (statement, True)
    assert shown.statement.body in found.documents


def test_a_hospital_shows_what_left_after_which_filters_under_which_approval(finished: Path) -> None:
    statement = xid(finished / SILO, Event.UPDATE_OFFERED, 2)
    proof = Proof.decode(prove(finished / SILO, exchange=statement, documents=True).encode())
    (shown,) = check(proof, [key()]).sent
    approval = next(line.record for line in proof.lines if line.record.event == Event.STUDY_APPROVED)
    documents = {digest(content): content for content in proof.documents}
    manifest = Manifest.decode(documents[shown.statement.body])
    assert (manifest.digest, [item.name for item in manifest.filters]) == (shown.statement.payload, ["clip"])
    assert approval.body["agreement"] in documents
    assert approval.body["recipient"] == shown.statement.dst == "aggregator"


def test_a_file_reveals_no_line_but_those_it_shows(finished: Path) -> None:
    records = read(finished / SILO).records
    proof = prove(finished / SILO)
    content = proof.encode().decode()
    shown = {line.record.seq for line in proof.lines}
    assert len(shown) < len(records) / 2
    for record in records:
        assert (record.salt in content) == (record.seq in shown)


def test_an_exchange_without_a_receipt_is_told_from_one_with(finished: Path) -> None:
    found = check(prove(finished / SILO, exchange=xid(finished / SILO, Event.CLOSING_OFFERED)))
    assert (found.ok, found.sent[0].receipt) == (True, False)


def test_a_reply_that_was_received_and_not_used_says_why(begun: Toy) -> None:
    begun.poison("east", lambda h, o, a: wire.pack(h.update(o, a, base="ab" * 32)))
    begun.run()
    folder = begun.study.ledger.folder
    rejected = next(r for r in read(folder).records if r.event == Event.REPLY_REJECTED)
    found = check(prove(folder, exchange=Statement.parse(rejected.body["statement"]).xid))
    assert (found.problems, found.received[0].code) == ([], "stale-base")


def test_statements_that_are_still_on_their_way_are_pending_in_two_files_as_in_two_ledgers(
    begun: Toy, tmp_path: Path
) -> None:
    def lost(hospital: Any, order: Any, asked: str) -> Any:
        hospital.update(order, asked)
        raise Killed

    begun.poison(SILO, lost)
    with pytest.raises(Killed):
        begun.run()
    begun.close()
    files = write(begun.folder, tmp_path)
    found = reconcile(*files)
    assert found == reconcile(begun.folder / "toy" / "ledger", begun.folder / SILO)
    assert (found.problems, found.orders, found.replies, len(found.pending)) == ([], 2, 1, 1)


class Killed(Exception):  # noqa: N818 - nothing is wrong with the message
    """The process died."""


# What a file cannot be made to show


def bent(proof: Proof, **changes: Any) -> list[str]:
    return check(replace(proof, **changes), [key()]).problems


def test_no_line_can_be_left_out_of_its_place_changed_or_taken_from_another_ledger(finished: Path) -> None:
    proof = prove(finished / SILO)
    other = prove(finished / "south")
    first, *rest = proof.lines
    changed = replace(first, record=replace(first.record, ts="2020-02-29T12:00:00Z"))
    assert bent(proof) == []
    assert "not in the ledger" in bent(proof, lines=(changed, *rest))[0]
    assert "not in the ledger" in bent(proof, lines=(*rest, other.lines[-1]))[0]
    assert "not in the ledger" in bent(proof, lines=(replace(first, proof=first.proof[:-1]), *rest))[0]
    assert "another place" in bent(proof, lines=(*rest, first))[0]
    assert "head" in bent(proof, head=other.head)[0]
    assert bent(proof, verifier=other.verifier)
    assert "another study" in bent(proof, study="ab" * 32)[0]
    assert "other parties" in " ".join(bent(proof, peer="south"))
    assert bent(proof, lines=()) == ["it shows no exchange"]
    assert "no line names" in bent(proof, documents=(b"{}",))[0]


def test_a_statement_left_out_between_two_others_is_missed(begun: Toy) -> None:
    def lost(hospital: Any, order: Any, asked: str) -> Any:
        for _ in range(3):
            hospital.update(order, asked)
        raise Killed

    begun.poison(SILO, lost)
    with pytest.raises(Killed):
        begun.run()
    proof = prove(begun.hospitals[SILO].ledger.folder)
    offered = [line for line in proof.lines if line.record.event.endswith(".offered")]
    assert len(offered) == 4
    assert check(proof).ok
    without = tuple(line for line in proof.lines if line is not offered[2])
    assert "does not continue" in check(replace(proof, lines=without)).problems[0]


def test_of_random_changes_to_a_file_none_passes(finished: Path) -> None:
    content = prove(finished / SILO, documents=True).encode()
    dice = random.Random(7)
    for _ in range(300):
        place, byte = dice.randrange(len(content)), dice.randrange(256)
        forged = content[:place] + bytes([byte]) + content[place + 1 :]
        if forged == content:
            continue
        try:
            found = check(Proof.decode(forged), [key(), hub_key(finished)])
        except Malformed:
            continue
        # All but the consistency proofs, which only a comparison of two files needs.
        assert not found.ok or Proof.decode(forged).earlier != Proof.decode(content).earlier


def test_a_file_under_another_key_than_the_one_given_is_refused(finished: Path) -> None:
    proof = prove(finished / SILO)
    stranger = Signer.from_seed(SILO, b"x" * 32).verifier
    false_hub = Signer.from_seed("aggregator", b"x" * 32).verifier
    assert check(proof).trusted == []
    assert check(proof, [key()]).trusted == [SILO]
    assert "another key" in check(proof, [stranger]).problems[0]
    assert "another key of aggregator" in check(proof, [key(), false_hub]).problems[0]
    assert "no key was given for north" in check(proof, [hub_key(finished)]).problems[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.update(extra=1),
        lambda values: values.update(v=2),
        lambda values: values.update(of="all"),
        lambda values: values.pop("head"),
        lambda values: values.update(study="short"),
        lambda values: values.update(vkey="north+00000000+" + "A" * 44),
        lambda values: values["lines"][0].update(line="{}"),
        lambda values: values["lines"][0].update(proof=["AA=="]),
        lambda values: values.update(earlier=[{"size": 0, "proof": []}]),
        lambda values: values.update(documents=[1]),
    ],
)
def test_what_is_no_proof_file_is_refused(finished: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    values = parse(prove(finished / SILO).encode()[:-1])
    change(values)
    with pytest.raises(Malformed, match="is no proof file"):
        Proof.decode(canonical(values) + b"\n")


@pytest.mark.parametrize("content", [b"", b"{}", b"\n", b"\xff\n", b"[" * 9999 + b"\n"])
def test_what_is_no_file_of_this_kind_is_refused(content: bytes) -> None:
    with pytest.raises(Malformed):
        Proof.decode(content)


# What two files cannot be made to show


def test_a_file_longer_than_any_proof_is_not_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "proof").touch()
    os.truncate(tmp_path / "proof", 2**40)
    with pytest.raises(Malformed, match="proof: is longer than the 67108864 bytes of the longest proof"):
        load(tmp_path / "proof")


def test_files_that_do_not_belong_together_are_not_compared(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "south").mkdir()
    hub, silo = write(finished, tmp_path)
    other = write(finished, tmp_path / "south", "south")[1]
    with pytest.raises(LedgerError, match="one pair"):
        reconcile(hub, other)
    with pytest.raises(LedgerError, match="is not of an aggregator"):
        reconcile(silo, hub)
    single = tmp_path / "single.proof"
    single.write_bytes(prove(finished / SILO, exchange=xid(finished / SILO, Event.UPDATE_OFFERED)).encode())
    with pytest.raises(LedgerError, match="one exchange"):
        reconcile(hub, single)


def test_a_file_without_the_proof_that_the_ledger_went_on_does_not_agree(finished: Path, tmp_path: Path) -> None:
    hub, silo = write(finished, tmp_path)
    whole = load(hub)
    cut = {size: proof[:-1] for size, proof in whole.earlier.items()}
    for earlier, said in (({}, "does not prove"), (cut, "rewritten")):
        hub.write_bytes(replace(whole, earlier=earlier).encode())
        found = reconcile(hub, silo)
        assert not found.ok
        assert said in found.problems[0]


def test_a_leave_that_one_side_alone_knows_of_is_no_rewriting(
    toy: Callable[..., Toy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one hospital the answer is lost; another one writes a line between its last word and its leave."""
    world, keep = toy(rounds=1), Channel.part

    def part(channel: Channel, evidence: Evidence) -> None:
        if channel.peer.name == "east":
            raise Malformed("the answer was lost")
        if channel.ledger is world.hospitals[SILO].ledger:
            channel.ledger.append(Entry(Event.POLICY_CHANGED, {"policy": {}}))
        keep(channel, evidence)

    monkeypatch.setattr(Channel, "part", part)
    world.run()
    world.close()
    for name, kept in (("east", 0), (SILO, 1)):
        assert len(list((world.folder / "toy" / "ledger" / "parted").glob(f"*-{name}.json"))) == kept
        assert len(list((world.folder / name / "parted").iterdir())) == 1
        files = write(world.folder, tmp_path, name)
        assert reconcile(*files).problems == []
        assert reconcile(world.folder / "toy" / "ledger", files[1]).problems == []


def test_a_file_that_hides_a_receipted_statement_does_not_agree(finished: Path, tmp_path: Path) -> None:
    hub, silo = write(finished, tmp_path)
    whole = load(hub)
    hidden = tuple(line for line in whole.lines if not line.record.event.endswith(".received"))
    hub.write_bytes(replace(whole, lines=hidden).encode())
    found = reconcile(hub, silo)
    assert (found.ok, found.replies) == (False, 0)
    assert "shows no reply" in found.problems[0]


# The commands


def test_a_hospital_writes_a_file_and_a_third_person_checks_it(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, hub = tmp_path / "north.proof", tmp_path / "hub.proof"
    assert main(["prove", str(finished / SILO), "--study", "toy", "--out", str(file)]) == 0
    assert main(["prove", str(finished / "toy"), "--peer", SILO, "--out", str(hub)]) == 0
    assert main(["check", str(file), str(hub), "--key", key().vkey, hub_key(finished).vkey]) == 0
    assert main(["check", str(file), "--json"]) == 0
    assert main(["reconcile", str(hub), str(file)]) == 0
    out = capsys.readouterr().out
    assert "the key given" in out
    assert "agree" in out
    assert main(["prove", str(finished / SILO), "--out", str(file)]) == 1  # nothing is overwritten
    assert main(["check", str(file), "--key", Signer.from_seed(SILO, b"x" * 32).vkey]) == 3
    file.write_bytes(file.read_bytes().replace(b"report", b"update", 1))
    assert main(["check", str(file)]) != 0


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"study": "other"}, "study other"),
        ({"peer": "nobody"}, "peer nobody"),
        ({"exchange": "zz"}, "no exchange zz"),
        ({}, "several"),
        ({"exchange": "", "peer": "x"}, "peer x"),
    ],
)
def test_what_a_ledger_does_not_have_cannot_be_asked_for(finished: Path, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        prove(finished / "toy" / "ledger", **asked)


def test_of_several_studies_or_peers_each_is_named_as_it_can_be_asked_for(
    finished: Path, toy: Callable[..., Toy], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"--peer is missing: the ledger has several peers") as caught:
        prove(finished / "toy" / "ledger")
    assert caught.value.hint == "give one of east, north, south, west"
    world = toy(rounds=1)
    world.run()
    first = read_agreement(world.folder / "toy").study
    shutil.copytree(world.folder / "toy", tmp_path / "before")
    world.close()
    shutil.rmtree(world.folder / "toy")
    again = type(world).create(world.folder, rounds=2)  # the same hospitals in another study of the same name
    again.run()
    again.close()
    second, ledger = read_agreement(world.folder / "toy").study, world.folder / SILO
    with pytest.raises(ConfigError, match=r"--study is missing: the ledger has several studies") as caught:
        prove(ledger)
    names = sorted(f"toy@{study[:16]}" for study in (first, second))
    assert caught.value.hint == f"give one of {', '.join(names)}"
    assert {prove(ledger, name).study for name in names} == {first, second}
    assert prove(ledger, f"toy@{first}").study == first
    with pytest.raises(ConfigError, match="study toy: the ledger has several of that"):
        prove(ledger, "toy")


def test_a_ledger_that_is_not_what_was_signed_proves_nothing(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(IntramuralError):
        prove(tmp_path)
