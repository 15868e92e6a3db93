"""The poison table: a silo with a valid key sends something bad, and it costs nobody but itself anything."""

import hashlib
import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, MetricRecord, RecordDict

from aggregator import intake, visits
from aggregator.intake import MAX_EXAMPLES, Asked
from models.canonical import canonical
from models.errors import IntramuralError, NotAppended, NotWitnessed
from models.exchange import wire
from models.exchange.channel import Channel, Received
from models.exchange.documents import Closing, Examples, Order, Refusal
from models.exchange.spec import Spec, Vector, tensor_digests, update_digest, vector_digest
from models.exchange.statement import Envelope, Evidence, Kind, Statement, receipt_bytes, signing_bytes
from models.ledger import Checkpoint, Event, Ledger, Signer, Verifier
from models.plan import Plan

PATIENT = "DOE^JOHN"
SPEC = Spec.of({"conv.bias": (2,), "conv.weight": (2, 3), "head.weight": (4,)})  # as in conftest.py
Hospital = Any  # of conftest.py
Toy = Any
Poison = Callable[[Hospital, Order, str], RecordDict | Error]


def pack(envelope: Envelope, array: Array | None = None) -> RecordDict:
    return wire.pack(envelope, array)


def numbers(change: Callable[[Vector], Vector]) -> Poison:
    """An update that is signed as it is, of other numbers."""
    return lambda hospital, order, asked: pack(hospital.update(order, asked, change(hospital.delta(order.round))))


def put(index: int, value: float) -> Callable[[Vector], Vector]:
    def change(vector: Vector) -> Vector:
        vector[index] = value
        return vector

    return change


def says(**changes: Any) -> Poison:
    """An update whose manifest says something else."""
    return lambda hospital, order, asked: pack(hospital.update(order, asked, **changes))


def counts(low: float, high: float | None = None, unit: str = "images") -> dict[str, Any]:
    return {"unit": unit, "low": low, "high": low if high is None else high}


def listed(hospital: Hospital, order: Order, **changes: Any) -> list[dict[str, Any]]:
    """The list of arrays of an honest manifest, with the first one changed."""
    manifest = json.loads(hospital.manifest(order, hospital.delta(order.round)).content)
    first, *rest = manifest["tensors"]
    return [{**first, **changes}, *rest]


def lists(**changes: Any) -> Poison:
    return lambda hospital, order, asked: pack(
        hospital.update(order, asked, tensors=listed(hospital, order, **changes))
    )


def stored(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def carries(make: Callable[[Vector], Array]) -> Poison:
    """A signed update with another array in the message."""
    return lambda hospital, order, asked: pack(hospital.update(order, asked), make(hospital.delta(order.round)))


def forged(change: Callable[[Envelope], Envelope]) -> Poison:
    """A signed update that was changed afterwards."""
    return lambda hospital, order, asked: pack(change(hospital.update(order, asked)))


def evidence(**changes: Any) -> Poison:
    return forged(lambda envelope: replace(envelope, evidence=replace(envelope.evidence, **changes)))


def signed(**changes: Any) -> Poison:
    """An update with another statement, signed by its own hospital."""

    def poison(hospital: Hospital, order: Order, asked: str) -> RecordDict:
        envelope = hospital.update(order, asked)
        values = {**json.loads(envelope.statement), **changes}
        content = json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
        signature = hospital.signer.sign(signing_bytes(hashlib.sha256(content).hexdigest()))
        return pack(replace(envelope, statement=content, signature=signature))

    return poison


def another_array(**arrays: Array) -> Poison:
    def poison(hospital: Hospital, order: Order, asked: str) -> RecordDict:
        records = pack(hospital.update(order, asked))
        records["arrays"] = ArrayRecord(arrays)
        return records

    return poison


def replayed(hospital: Hospital, order: Order, asked: str) -> RecordDict:
    return pack(hospital.outbox[0])


def anothers(hospital: Hospital, order: Order, asked: str) -> RecordDict:
    copied = hospital.neighbour.outbox[-1]
    assert Statement.decode(copied.statement).round == order.round
    return pack(copied)


def of_another_study(hospital: Hospital, order: Order, asked: str) -> RecordDict:
    hub = Verifier.parse(order.agreement.coordinator_key)
    channel = Channel(hospital.ledger, hospital.signer, hub, "ab" * 32)
    vector = hospital.delta(order.round)
    spec, manifest = SPEC, hospital.manifest(order, vector)
    return pack(channel.offer(Kind.UPDATE, order.round, manifest, spec=spec, vector=vector, answers=asked))


def to_another_coordinator(hospital: Hospital, order: Order, asked: str) -> RecordDict:
    hub = Verifier("other", Verifier.parse(order.agreement.coordinator_key).key)
    channel = Channel(hospital.ledger, hospital.signer, hub, order.agreement.study)
    vector = hospital.delta(order.round)
    spec, manifest = SPEC, hospital.manifest(order, vector)
    envelope = channel.offer(Kind.UPDATE, order.round, manifest, spec=spec, vector=vector, answers=asked)
    return pack(envelope)


def of_another_kind(kind: Kind, vector: bool = False) -> Poison:
    def poison(hospital: Hospital, order: Order, asked: str) -> RecordDict:
        array = hospital.delta(order.round) if vector else None
        document = hospital.manifest(order, array)
        if kind is Kind.CLOSING:
            document = Closing(orders=1, replies=1, records=1)
        return pack(hospital.offer(order, kind, document, array, answers=asked))

    return poison


def without_arrays(hospital: Hospital, order: Order, asked: str) -> RecordDict:
    document = hospital.manifest(order, hospital.delta(order.round))
    return pack(hospital.offer(order, Kind.UPDATE, document, None, answers=asked))


def late(hospital: Hospital, order: Order, asked: str) -> RecordDict:
    """A new update that answers the order of the round before."""
    previous = hospital.channel(order.agreement).received[-2]
    return pack(hospital.update(order, previous))


def of_another_round(hospital: Hospital, order: Order, asked: str) -> RecordDict:
    vector = hospital.delta(order.round)
    document = hospital.manifest(order, vector)
    return pack(hospital.offer(order, Kind.UPDATE, document, vector, answers=asked, round_=1))


def wrote_its_ledger_anew(hospital: Hospital, order: Order, asked: str) -> RecordDict:
    """The same exchange on a ledger in which a line of its own is another."""
    folder = hospital.folder.with_name("anew")
    records = hospital.ledger.records
    hospital.ledger.close()
    with Ledger.create(folder, hospital.signer, {"policy": "other"}) as ledger:
        for record in records[1:]:
            ledger.append(record)
        channel = Channel(
            ledger, hospital.signer, Verifier.parse(order.agreement.coordinator_key), order.agreement.study
        )
        vector = hospital.delta(order.round)
        spec, manifest = SPEC, hospital.manifest(order, vector)
        envelope = channel.offer(Kind.UPDATE, order.round, manifest, spec=spec, vector=vector, answers=asked)
    hospital.ledger = Ledger.open(hospital.folder, hospital.signer)
    hospital._channels.clear()
    return pack(envelope)


def gives_a_receipt_for_nothing(hospital: Hospital, order: Order, asked: str) -> RecordDict:
    xid = "cd" * 32
    receipt = (xid, hospital.signer.sign(receipt_bytes(xid)))
    return evidence(receipt=receipt)(hospital, order, asked)


def shows(make: Callable[[Signer], str]) -> Poison:
    """An update with another head of its ledger, signed by its own hospital."""
    return lambda hospital, order, asked: evidence(note=make(hospital.signer))(hospital, order, asked)


def without(field: str) -> Poison:
    def poison(hospital: Hospital, order: Order, asked: str) -> RecordDict:
        records = pack(hospital.update(order, asked))
        del records["intramural"][field]
        return records

    return poison


ROOT = b"r" * 32
GARBAGE = RecordDict(
    {
        "parameters": ArrayRecord({"w": Array(np.zeros(3))}),
        "config": ConfigRecord({"patient": PATIENT}),
        "metrics": MetricRecord({"num-examples": 1}),
    }
)
SIGNED_BY_OTHERS = Signer.from_seed("north", b"x" * 32)


def resigned(envelope: Envelope) -> Envelope:
    xid = Statement.decode(envelope.statement).xid
    return replace(envelope, signature=SIGNED_BY_OTHERS.sign(signing_bytes(xid)))


TABLE: dict[str, tuple[Poison, str]] = {
    # numbers
    "a NaN": (numbers(put(3, np.nan)), "not-finite.nan"),
    "plus infinity": (numbers(put(11, np.inf)), "not-finite.infinite"),
    "minus infinity": (numbers(put(0, -np.inf)), "not-finite.infinite"),
    "a million times too long": (numbers(lambda vector: vector * np.float32(1e6)), "too-large.norm"),
    "the largest float": (numbers(put(0, np.finfo(np.float32).max)), "too-large.norm"),
    # weights
    "a weight of 1e12": (says(examples=counts(1e12)), "bad-weight.too-many"),
    "a band up to 1e12": (says(examples=counts(1, 1e12)), "bad-weight.too-many"),
    "a weight of infinity": (says(examples=counts(np.inf)), "bad-weight.not-a-number"),
    "a weight of NaN": (says(examples=counts(np.nan)), "bad-weight.not-a-number"),
    "a band up to NaN": (says(examples=counts(1, np.nan)), "bad-weight.not-a-number"),
    "a negative weight": (says(examples=counts(-10)), "bad-weight.not-positive"),
    "a weight of zero": (says(examples=counts(0)), "bad-weight.not-positive"),
    "a band that falls": (says(examples=counts(20, 10)), "bad-weight.not-positive"),
    "no weight": (says(examples=None), "bad-weight.missing"),
    "a weight in patients": (says(examples=counts(10, unit="patients")), "bad-weight.unit"),
    "a share of work that nobody asked for": (says(work=0.5), "malformed.work"),
    "NaN images evaluated": (says(evaluated=counts(np.nan)), "bad-weight.not-a-number"),
    "1e12 images evaluated": (says(evaluated=counts(1e12)), "bad-weight.too-many"),
    # arrays
    "three elements": (carries(lambda vector: Array(vector[:3])), "spec-mismatch.shape"),
    "a matrix": (carries(lambda vector: Array(vector.reshape(3, 4))), "spec-mismatch.shape"),
    "one element, for all": (carries(lambda vector: Array(vector[:1])), "spec-mismatch.broadcastable"),
    "a scalar, for all": (carries(lambda v: Array(np.array(1, np.float32))), "spec-mismatch.broadcastable"),
    "int8": (carries(lambda vector: Array(vector.astype(np.int8))), "spec-mismatch.dtype"),
    "float64": (carries(lambda vector: Array(vector.astype(np.float64))), "spec-mismatch.dtype"),
    "big-endian": (carries(lambda vector: Array(vector.astype(">f4"))), "spec-mismatch.dtype"),
    "fewer elements than declared": (
        carries(lambda vector: Array("float32", vector.shape, "numpy.ndarray", stored(vector[:-1]))),
        "spec-mismatch.declared",
    ),
    "big-endian, declared otherwise": (
        carries(lambda v: Array("float32", v.shape, "numpy.ndarray", stored(v.astype(">f4")))),
        "spec-mismatch.declared",
    ),
    "pickled objects": (
        carries(
            lambda vector: Array(
                "object", vector.shape, "numpy.ndarray", stored(vector.astype(object), allow_pickle=True)
            )
        ),
        "spec-mismatch.pickled",
    ),
    "pickled objects, declared otherwise": (
        carries(
            lambda vector: Array(
                "float32", vector.shape, "numpy.ndarray", stored(vector.astype(object), allow_pickle=True)
            )
        ),
        "spec-mismatch.declared",
    ),
    "arrays of another name": (
        another_array(weights=Array(np.zeros(12, np.float32))),
        "spec-mismatch.names",
    ),
    "arrays missing": (
        lambda h, o, a: RecordDict({"intramural": pack(h.update(o, a))["intramural"]}),
        "digest-mismatch.payload",
    ),
    "arrays missing and not signed": (without_arrays, "digest-mismatch.manifest"),
    "arrays of another digest than listed": (says(digest="ab" * 32), "digest-mismatch.manifest"),
    "an array of another digest than listed": (lists(sha256="ab" * 32), "digest-mismatch.tensor"),
    "an array of more bytes than listed": (lists(bytes=4), "digest-mismatch.tensor"),
    "an array listed in another shape": (lists(shape=[1, 2]), "spec-mismatch.tensors"),
    "an array listed under another name": (lists(name="conv.biases"), "spec-mismatch.tensors"),
    "no array listed": (says(tensors=[]), "spec-mismatch.tensors"),
    "another layout": (says(spec="ab" * 32), "spec-mismatch.spec"),
    # documents
    "a manifest of another version": (says(v=2), "malformed"),
    "a manifest with one key more": (says(remark="also"), "malformed"),
    "a norm of NaN": (says(norm=np.nan), "malformed"),
    "a metric of NaN": (says(metrics={"auc": np.nan}), "malformed"),
    "a metric nobody knows": (says(metrics={"names": 1.0}), "malformed"),
    "a report in place of an update": (of_another_kind(Kind.REPORT), "malformed.kind"),
    "an update called a report": (of_another_kind(Kind.REPORT, vector=True), "malformed.kind"),
    "an update called an order": (of_another_kind(Kind.ORDER, vector=True), "malformed.kind"),
    "a closing in place of an update": (of_another_kind(Kind.CLOSING), "malformed.kind"),
    # rounds
    "an update of another base model": (says(base="ab" * 32), "stale-base"),
    "an update of the round before, again": (replayed, "replayed"),
    "an answer to the order before": (late, "replayed.round"),
    "an update of another round": (of_another_round, "replayed.round"),
    # signatures
    "another silo's update": (anothers, "bad-signature"),
    "a wrong signature": (forged(lambda e: replace(e, signature=b"s" * 64)), "bad-signature"),
    "no signature": (forged(lambda e: replace(e, signature=b"")), "bad-signature"),
    "a signature of another key of that name": (forged(resigned), "bad-signature"),
    "a changed manifest": (
        forged(lambda e: replace(e, body=e.body.replace(b"3.11", PATIENT.encode()))),
        "digest-mismatch.document",
    ),
    "changed arrays": (
        forged(lambda e: replace(e, vector=np.nextafter(e.vector, np.float32(9)))),
        "digest-mismatch.payload",
    ),
    "a statement of another study": (of_another_study, "malformed.study"),
    "a statement to another coordinator": (to_another_coordinator, "malformed.address"),
    "a statement of the wrong size": (signed(nbytes=1), "digest-mismatch.size"),
    "a statement that is none": (forged(lambda e: replace(e, statement=PATIENT.encode())), "malformed"),
    "a statement with one key more": (signed(patient=PATIENT), "malformed"),
    "a statement of round 1e30": (signed(round=10**30), "malformed"),
    "a statement of number 1e30": (signed(n=10**30), "malformed"),
    # ledgers
    "a ledger written anew": (wrote_its_ledger_anew, "ledger-rewritten"),
    "no proof that its ledger goes on": (evidence(proofs={}), "ledger-rewritten"),
    "a receipt for nothing": (gives_a_receipt_for_nothing, "bad-signature.receipt"),
    "a shorter ledger": (shows(lambda key: Checkpoint("north", 1, ROOT).sign(key)), "ledger-rewritten"),
    "a head of another key": (
        shows(lambda key: Checkpoint("north", 9, ROOT).sign(SIGNED_BY_OTHERS)),
        "bad-signature",
    ),
    "a head that is none": (shows(lambda key: PATIENT), "malformed"),
    "more seen than there can be": (evidence(seen=2**62), "malformed.fields"),
    # messages
    "an error with a patient's name": (
        lambda h, o, a: Error(2, f"<class 'FileNotFoundError'>: /data/{PATIENT}/IM1.dcm"),
        "app-failed",
    ),
    "an error that is a patient's name": (lambda h, o, a: Error(2, "doe-john"), "app-failed"),
    "an error without a word": (lambda h, o, a: Error(17), "flower-error-17"),
    "an empty message": (lambda h, o, a: RecordDict(), "malformed.records"),
    "a message of any other Flower app": (lambda h, o, a: GARBAGE, "malformed.records"),
    "an envelope without a signature field": (without("signature"), "malformed.fields"),
    "an envelope without proofs": (without("proofs"), "malformed.fields"),
}


def bytes_under(folder: Path) -> bytes:
    return b"\0".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


@pytest.mark.parametrize("name", TABLE)
def test_a_bad_reply_is_refused_by_its_own_word_and_the_others_go_on(
    begun: Toy, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    poison, code = TABLE[name]
    begun.poison("north", poison)

    first, second = begun.run_one().rounds[1:]
    sys.stdout.write(f"{name:45} {code}\n")

    rejected = begun.lines(Event.REPLY_REJECTED, 2)
    assert [line["code"] for line in rejected] == [code]
    assert [line.get("silo") or line["statement"]["src"] for line in rejected] == ["north"]
    others = ["east", "south", "west"]
    used = [line["statement"]["src"] for line in begun.lines(Event.UPDATE_RECEIVED, 2)]
    assert sorted(used) == others

    expected = begun.model(1) + begun.mean(2, others)
    assert begun.model(2).tobytes() == expected.tobytes()
    aggregated = begun.lines(Event.AGGREGATED, 2)[0]
    assert [item["silo"] for item in aggregated["inputs"]] == others
    assert aggregated["excluded"] == ["north"]
    assert aggregated["model"] == vector_digest(SPEC.digest, expected)

    assert first.accepted == ["east", "north", "south", "west"]
    assert (second.accepted, second.refused) == (others, {"north": code})
    written = bytes_under(begun.study.folder)
    for word in (PATIENT, "doe-john"):
        assert word.encode() not in written
        assert word not in caplog.text


def test_every_poison_is_made_of_an_update_that_would_have_been_used(begun: Toy) -> None:
    begun.poison("north", lambda h, o, a: pack(h.update(o, a)))
    second = begun.run_one().rounds[2]
    assert begun.lines(Event.REPLY_REJECTED) == []
    assert second.accepted == ["east", "north", "south", "west"]
    expected = begun.model(1) + begun.mean(2, second.accepted)
    assert begun.model(2).tobytes() == expected.tobytes()


RECOVERABLE = ["a NaN", "three elements", "a changed manifest", "an error with a patient's name"]


@pytest.mark.parametrize("name", RECOVERABLE)
@pytest.mark.parametrize("round_", [1, 2])
def test_a_silo_that_sent_something_bad_is_heard_again_in_the_next_round(
    toy: Callable[..., Toy], name: str, round_: int
) -> None:
    world = toy(rounds=3)
    world.poison("north", TABLE[name][0], round_=round_)
    outcome = world.run()
    assert [("north" in item.accepted) for item in outcome.history.rounds[1:]] == [
        number != round_ for number in (1, 2, 3)
    ]
    assert "north" in outcome.history.rounds[3].metrics  # it measured the final model too


def test_with_too_few_good_updates_the_round_is_void_and_the_old_model_stands(begun: Toy) -> None:
    begun.poison("north", TABLE["a NaN"][0])
    begun.poison("west", TABLE["a weight of 1e12"][0])
    outcome = begun.run()

    void = begun.lines(Event.ROUND_VOID)
    assert len(void) == 1
    assert (void[0]["accepted"], void[0]["excluded"]) == (["east", "south"], ["north", "west"])
    assert begun.lines(Event.AGGREGATED, 2) == []
    assert not begun.study.model_path(2).exists()
    assert outcome.model == begun.study.model_path(1)
    assert outcome.digest == outcome.history.rounds[1].model == outcome.history.rounds[2].model
    assert [item.void for item in outcome.history.rounds] == [False, False, True]


def test_a_study_of_nothing_but_poison_ends_with_the_model_it_began_with(toy: Callable[..., Toy]) -> None:
    world = toy(rounds=1, min_silos=1)
    for name in world.hospitals:
        world.poison(name, TABLE["a NaN"][0], round_=1)
    outcome = world.run()
    assert outcome.digest == world.study.agreement.initial
    assert outcome.history.rounds[1].void


def test_a_silent_silo_is_written_down_and_the_others_go_on(
    toy: Callable[..., Toy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visits, "POLL", 0.001)
    world = toy(rounds=1, deadline=0.01)
    world.hospitals["north"].silent = True
    outcome = world.run()
    assert world.lines(Event.SILO_SILENT, 1)[0]["silo"] == "north"
    assert outcome.history.rounds[1].refused == {"north": "silent"}
    expected = world.model(0) + world.mean(1, ["east", "south", "west"])
    assert world.model(1).tobytes() == expected.tobytes()


def test_a_refusal_is_a_word_and_no_fault(toy: Callable[..., Toy]) -> None:
    world = toy(rounds=2)
    world.poison(
        "north",
        lambda h, o, a: pack(h.offer(o, Kind.REFUSAL, Refusal(code="too-few-patients"), None, answers=a)),
    )
    outcome = world.run()
    assert [line["code"] for line in world.lines(Event.REFUSAL_RECEIVED)] == ["too-few-patients"]
    assert world.lines(Event.REPLY_REJECTED) == []
    assert outcome.history.rounds[2].refused == {"north": "too-few-patients"}


@pytest.mark.parametrize("round_", [1, 2])
def test_a_hospital_that_says_it_lacks_witnesses_is_asked_again_but_for_its_first_order_which_has_no_past(
    toy: Callable[..., Toy], round_: int
) -> None:
    world = toy(rounds=2)
    refuse = Refusal(code=NotWitnessed.code)
    world.poison("west", lambda h, o, a: pack(h.offer(o, Kind.REFUSAL, refuse, None, answers=a)), round_)
    outcome = world.run()
    assert len(world.lines(Event.REFUSAL_RECEIVED, round_)) == round_
    assert [sorted(item.refused) == ["west"] for item in outcome.history.rounds[1:]] == [round_ == 1, round_ == 2]


def test_an_update_that_could_not_be_written_down_is_not_used(
    toy: Callable[..., Toy], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = toy(rounds=1)
    append = Ledger.append

    def fail(ledger: Ledger, *entries: Any) -> Any:
        if any(entry.event == Event.UPDATE_RECEIVED for entry in entries):
            raise NotAppended("the disk is full")
        return append(ledger, *entries)

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "append", fail)
        with pytest.raises(NotAppended):
            world.run()
    assert world.lines(Event.AGGREGATED) == []
    assert not world.study.model_path(1).exists()

    again = world.reopen()
    try:
        outcome = again.run()  # the disk is well again: the round is done with all four
        assert outcome.history.rounds[1].accepted == ["east", "north", "south", "west"]
        assert again.model(1).tobytes() == (again.model(0) + again.mean(1, again.hospitals)).tobytes()
    finally:
        again.close()


# The checks alone, without a round around them


def received(vector: Vector, plan_round: int = 1, **changes: Any) -> tuple[Received, Asked]:
    """A verified update, and what it answers."""
    manifest = {
        "base": "ab" * 32,
        "spec": SPEC.digest,
        "digest": update_digest(SPEC, tensor_digests(SPEC, vector)),
        "tensors": [
            {
                "name": tensor.name,
                "shape": tensor.shape,
                "bytes": part.nbytes,
                "sha256": hashlib.sha256(part.tobytes()).hexdigest(),
                "l2": 1.0,
            }
            for tensor, part in SPEC.split(vector)
        ],
        "examples": counts(10),
        **changes,
    }
    body = canonical({"v": 1, **manifest})
    statement = Statement(
        study="ef" * 32, round=plan_round, kind=Kind.UPDATE, src="north", dst="aggregator", n=1,
        prev="0" * 64, answers="cd" * 32, body=hashlib.sha256(body).hexdigest(),
        payload=update_digest(SPEC, tensor_digests(SPEC, vector)), nbytes=len(body) + vector.nbytes,
    )  # fmt: skip
    envelope = Envelope(statement.encode(), b"", body, Evidence(None, "", {}, 0), vector)
    asked = Asked("train", plan_round, "cd" * 32, "ab" * 32)
    tensors = tensor_digests(SPEC, vector)
    return Received(statement, envelope, Checkpoint("north", 0, ROOT), 0, tensors=tensors), asked


@pytest.fixture
def plan(toy: Callable[..., Toy]) -> Plan:
    return toy().study.plan


def test_the_norm_limit_is_where_the_plan_puts_it(plan: Plan) -> None:
    for length, ok in ((99.99, True), (100.01, False)):
        vector = np.zeros(12, np.float32)
        vector[5] = length
        message, asked = received(vector)
        if ok:
            intake.check(message, asked, plan, SPEC)
            continue
        with pytest.raises(IntramuralError) as caught:
            intake.check(message, asked, plan, SPEC)
        assert caught.value.wire_code == "too-large.norm"


def test_an_update_of_more_bytes_than_the_plan_allows_is_refused(plan: Plan) -> None:
    message, asked = received(np.ones(12, np.float32))
    with pytest.raises(IntramuralError) as caught:
        intake.check(message, asked, plan.model_copy(update={"max_bytes": 47}), SPEC)
    assert caught.value.wire_code == "too-large.bytes"
    intake.check(message, asked, plan.model_copy(update={"max_bytes": 48}), SPEC)


@pytest.mark.parametrize(
    ("weights", "examples", "code"),
    [
        ("images", counts(MAX_EXAMPLES), None),
        ("images", counts(MAX_EXAMPLES + 1), "too-many"),
        ("patients", counts(11, 19, "patients"), None),
        ("patients", counts(11), "unit"),
        ("equal", counts(1, unit="silos"), None),
        ("equal", counts(2, unit="silos"), "too-many"),
        ("equal", counts(0.5, 1, unit="silos"), "too-many"),
        ("equal", counts(10), "unit"),
    ],
)
def test_a_weight_counts_what_the_plan_counts(
    plan: Plan, weights: str, examples: dict[str, Any], code: str | None
) -> None:
    message, asked = received(np.ones(12, np.float32), examples=examples)
    plan = plan.model_copy(update={"weights": weights})
    if code is None:
        manifest = intake.check(message, asked, plan, SPEC)
        assert manifest.examples == Examples.model_validate(examples)  # type: ignore[union-attr]
        return
    with pytest.raises(IntramuralError) as caught:
        intake.check(message, asked, plan, SPEC)
    assert caught.value.wire_code == f"bad-weight.{code}"


@pytest.mark.parametrize("work", [None, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("stragglers", ["drop", "partial"])
def test_an_update_tells_its_share_of_work_if_and_only_if_the_plan_takes_partial_work(
    plan: Plan, stragglers: str, work: float | None
) -> None:
    message, asked = received(np.ones(12, np.float32), **({} if work is None else {"work": work}))
    plan = plan.model_copy(update={"stragglers": stragglers})
    if (work is not None) == (stragglers == "partial"):
        manifest = intake.check(message, asked, plan, SPEC)
        assert manifest.work == work  # type: ignore[union-attr]
        return
    with pytest.raises(IntramuralError) as caught:
        intake.check(message, asked, plan, SPEC)
    assert caught.value.wire_code == "malformed.work"
