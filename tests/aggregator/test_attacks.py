"""The attack table: whoever rewrites its own ledger, with its own key, is found by the other side.

Each row is tried three ways: with the two ledgers, with two proof files made from them, and with what one
ledger shows alone. `pytest -s` prints the table.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

import pytest

from aggregator.audit import prove, reconcile, verify
from models.console import show_table
from models.errors import BadSignature, IntramuralError, LedgerError, ProtocolError
from models.exchange import wire
from models.exchange.channel import Channel, Received
from models.exchange.documents import Refusal
from models.exchange.statement import GENESIS, Kind, Statement, signing_bytes
from models.ledger import Checkpoint, Entry, Event, Ledger, Record, Signer, read
from models.ledger.vocabulary import explain

Toy = Any  # of conftest.py
SILO = "north"
Lines = list[Record]


def hub_key(folder: Path) -> Signer:
    return Signer.load(folder / "toy" / "aggregator.key")


def silo_key(name: str = SILO) -> Signer:
    return Signer.from_seed(name, hashlib.sha256(name.encode()).digest())


def ledgers(folder: Path, silo: str = SILO) -> tuple[Path, Path]:
    return folder / "toy" / "ledger", folder / silo


# A forger's tools


@pytest.fixture
def rebuild(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Writes a ledger anew, line by line and second by second, and signs all of it."""

    def build(source: Path, signer: Signer, edit: Callable[[Lines], Sequence[Record]]) -> Path:
        opened = read(source)
        first, *rest = opened.records
        lines = edit(list(rest))
        times: Iterator[str] = iter([first.ts, *[line.ts for line in lines]])

        class Clock(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
                return datetime.fromisoformat(next(times))

        target = tmp_path / "forged"
        body = {key: value for key, value in first.body.items() if key not in ("origin", "vkey", "software")}
        with monkeypatch.context() as patch:
            patch.setattr("models.ledger.log.datetime", Clock)
            with Ledger.create(target, signer, body, origin=opened.head.origin) as ledger:
                ledger.append(*[Entry(line.event, line.body, line.study, line.round) for line in lines])
        shutil.copytree(source / "manifests", target / "manifests", dirs_exist_ok=True)
        return target

    return build


def find(lines: Lines, event: Event, number: int = 0, silo: str = SILO) -> int:
    """The place of the number-th line of an event that has to do with a silo."""
    places = [place for place, line in enumerate(lines) if line.event == event and (silo in parties(line) or not silo)]
    return places[number]


def parties(line: Record) -> set[str]:
    statement = line.body.get("statement", {})
    return {str(line.body.get(key)) for key in ("silo", "name")} | {
        statement.get("src", ""),
        statement.get("dst", ""),
    }


def change(lines: Lines, place: int, **body: Any) -> Lines:
    lines[place] = replace(lines[place], body={**lines[place].body, **body})
    return lines


def restate(lines: Lines, place: int, **statement: Any) -> Lines:
    return change(lines, place, statement={**lines[place].body["statement"], **statement})


def chained(lines: Lines, signer: Signer, peer: str) -> Lines:
    """Number, chain and sign all that was sent to a peer as if it had always been so."""
    previous, number = GENESIS, 0
    for place, line in enumerate(lines):
        if not line.event.endswith(".offered") or line.body["statement"]["dst"] != peer:
            continue
        number += 1
        restate(lines, place, n=number, prev=previous)
        statement = Statement.parse(lines[place].body["statement"])
        change(lines, place, signature=signer.sign(signing_bytes(statement.xid)).hex())
        previous = statement.xid
    return lines


def without(lines: Lines, places: Sequence[int]) -> Lines:
    return [line for place, line in enumerate(lines) if place not in places]


def swapped(lines: Lines, place: int) -> Lines:
    lines[place], lines[place + 1] = lines[place + 1], lines[place]
    return lines


def back_dated(lines: Lines, place: int) -> Lines:
    lines[place] = replace(lines[place], ts="2020-02-29T12:00:00Z")
    return lines


def moved(lines: Lines, old: int, new: int) -> Lines:
    lines.insert(new, lines.pop(old))
    return lines


def test_a_forger_who_changes_nothing_makes_the_same_ledger(finished: Path, rebuild: Callable[..., Path]) -> None:
    hub, silo = ledgers(finished)
    for source, key in ((hub, hub_key(finished)), (silo, silo_key())):
        forged = rebuild(source, key, lambda lines: lines)
        assert read(forged).head == read(source).head
        shutil.rmtree(forged)


# The attack table: one side rewrites its own ledger and signs all of it again

Attack = Callable[[Lines, Signer], Sequence[Record]]


def silo_sends(lines: Lines, key: Signer) -> Lines:
    return chained(lines, key, "aggregator")


def hub_sends(lines: Lines, key: Signer) -> Lines:
    return chained(lines, key, SILO)


def invent(lines: Lines, place: int, **statement: Any) -> Lines:
    """A copy of a line, with another statement, behind it."""
    lines.insert(place + 1, lines[place])
    return restate(lines, place + 1, **statement)


def refused_instead(lines: Lines, key: Signer) -> Lines:
    place = find(lines, Event.UPDATE_OFFERED, 1)
    restate(lines, place, kind="refusal", payload=None, nbytes=10)
    body = {key: value for key, value in lines[place].body.items() if key != "base"}
    lines[place] = replace(lines[place], event=Event.REFUSAL_OFFERED, body=body)
    return silo_sends(lines, key)


def claims_an_order(lines: Lines, key: Signer) -> Lines:
    """As if the coordinator had asked for something else; the hospital cannot sign that."""
    return restate(lines, find(lines, Event.ORDER_RECEIVED, 1), body="ab" * 32)


def invents_an_update(lines: Lines, key: Signer) -> Lines:
    """An update that the hospital never sent, signed by the coordinator for want of the other key."""
    place = find(lines, Event.UPDATE_RECEIVED, 1)
    invent(lines, place, payload="ab" * 32)
    xid = Statement.parse(lines[place + 1].body["statement"]).xid
    return change(lines, place + 1, signature=key.sign(signing_bytes(xid)).hex())


def silent_instead(lines: Lines, key: Signer) -> Lines:
    place = find(lines, Event.UPDATE_RECEIVED, 1)
    body = {"silo": SILO, "order": lines[place].body["statement"]["answers"]}
    lines[place] = replace(lines[place], event=Event.SILO_SILENT, body=body)
    return lines


def rejected_instead(lines: Lines, key: Signer) -> Lines:
    place = find(lines, Event.UPDATE_RECEIVED, 1)
    facts = ("base", "digest", "weight", "metrics", "evaluated")
    body = {key: value for key, value in lines[place].body.items() if key not in facts}
    lines[place] = replace(lines[place], event=Event.REPLY_REJECTED, body=body)
    return change(lines, place, code="too-large.norm")


def of_another_study(lines: Lines, key: Signer) -> Lines:
    return [replace(line, study="ab" * 32) for line in lines]


def other_weights(lines: Lines, key: Signer) -> Lines:
    place = find(lines, Event.AGGREGATED, 1, silo="")
    inputs = [{**item, "weight": 1.0} for item in lines[place].body["inputs"]]
    return change(lines, place, inputs=inputs)


SILO_ATTACKS: dict[str, Attack] = {
    "edits what it wrote of an update": lambda lines, key: change(
        lines, find(lines, Event.UPDATE_OFFERED, 1), base="ab" * 32
    ),
    "edits the statement of an update": lambda lines, key: silo_sends(
        restate(lines, find(lines, Event.UPDATE_OFFERED, 1), nbytes=1), key
    ),
    "edits the last statement of all": lambda lines, key: silo_sends(
        restate(lines, find(lines, Event.CLOSING_OFFERED), nbytes=1), key
    ),
    "edits the order that it received": claims_an_order,
    "edits its approval": lambda lines, key: change(lines, find(lines, Event.STUDY_APPROVED, silo=""), name="other"),
    "invents the purpose that it approved": lambda lines, key: change(
        lines, find(lines, Event.STUDY_APPROVED, silo=""), purpose="Something that an ethics board did approve."
    ),
    "invents a person's decision": lambda lines, key: change(
        lines, find(lines, Event.STUDY_APPROVED, silo=""), by="person", decision="ab" * 32
    ),
    "invents the policy of its approval": lambda lines, key: change(
        lines, find(lines, Event.STUDY_APPROVED, silo=""), policy="ab" * 32
    ),
    "deletes an update": lambda lines, key: without(lines, [find(lines, Event.UPDATE_OFFERED, 1)]),
    "deletes an update and numbers the others anew": lambda lines, key: silo_sends(
        without(lines, [find(lines, Event.UPDATE_OFFERED, 1)]), key
    ),
    "deletes an order and its update": lambda lines, key: silo_sends(
        without(lines, [find(lines, Event.ORDER_RECEIVED, 1), find(lines, Event.UPDATE_OFFERED, 1)]), key
    ),
    "deletes a receipt": lambda lines, key: without(lines, [find(lines, Event.EXCHANGE_RECEIPT, 1, silo="")]),
    "denies an update: it refused": refused_instead,
    "denies every update": lambda lines, key: [line for line in lines if line.event != Event.UPDATE_OFFERED],
    "denies to have said anything": lambda lines, key: [line for line in lines if not line.event.endswith(".offered")],
    "denies to have been asked": lambda lines, key: [
        line for line in lines if "statement" not in line.body and line.event != Event.EXCHANGE_RECEIPT
    ],
    "truncates half": lambda lines, key: lines[: len(lines) // 2],
    "truncates six lines": lambda lines, key: lines[:-6],
    "drops its very last line": lambda lines, key: lines[:-1],
    "swaps two lines": lambda lines, key: swapped(lines, find(lines, Event.UPDATE_OFFERED, 1) - 1),
    "moves an update": lambda lines, key: moved(lines, find(lines, Event.UPDATE_OFFERED, 1), 2),
    "sends two updates in another order": lambda lines, key: silo_sends(
        moved(lines, find(lines, Event.UPDATE_OFFERED, 2), find(lines, Event.UPDATE_OFFERED, 1)), key
    ),
    "back-dates an update": lambda lines, key: back_dated(lines, find(lines, Event.UPDATE_OFFERED, 1)),
    "invents an update": lambda lines, key: silo_sends(
        invent(lines, find(lines, Event.UPDATE_OFFERED, 1), payload="ab" * 32), key
    ),
}

HUB_ATTACKS: dict[str, Attack] = {
    "edits the weight of an update": lambda lines, key: change(
        lines, find(lines, Event.UPDATE_RECEIVED, 1), weight=1.0
    ),
    "edits the sum": other_weights,
    "leaves an accepted update out of the sum": lambda lines, key: change(
        lines,
        place := find(lines, Event.AGGREGATED, 1, silo=""),
        inputs=[item for item in lines[place].body["inputs"] if item["silo"] != SILO],
    ),
    "makes a sum from another model": lambda lines, key: change(
        lines, find(lines, Event.AGGREGATED, 1, silo=""), base="ab" * 32
    ),
    "edits an order": lambda lines, key: hub_sends(restate(lines, find(lines, Event.ORDER_OFFERED, 1), nbytes=1), key),
    "edits an update that it received": lambda lines, key: restate(
        lines, find(lines, Event.UPDATE_RECEIVED, 1), nbytes=1
    ),
    "deletes an update": lambda lines, key: without(lines, [find(lines, Event.UPDATE_RECEIVED, 1)]),
    "deletes an order and numbers the others anew": lambda lines, key: hub_sends(
        without(lines, [find(lines, Event.ORDER_OFFERED, 1)]), key
    ),
    "deletes an order and its update": lambda lines, key: hub_sends(
        without(lines, [find(lines, Event.ORDER_OFFERED, 1), find(lines, Event.UPDATE_RECEIVED, 1)]), key
    ),
    "deletes a round": lambda lines, key: hub_sends([line for line in lines if line.round != 2], key),
    "erases the hospital": lambda lines, key: [line for line in lines if SILO not in parties(line)],
    "forgets that it admitted the hospital": lambda lines, key: without(lines, [find(lines, Event.SILO_ENROLLED)]),
    "denies an update: it rejected it": rejected_instead,
    "denies an update: the hospital was silent": silent_instead,
    "invents an update": invents_an_update,
    "invents an order": lambda lines, key: hub_sends(
        invent(lines, find(lines, Event.ORDER_OFFERED, 1), body="ab" * 32), key
    ),
    "truncates half": lambda lines, key: lines[: len(lines) // 2],
    "truncates the last round and what came after": lambda lines, key: [line for line in lines if line.round != 3],
    "drops its very last line": lambda lines, key: lines[:-1],
    "drops its last line for another": lambda lines, key: [*lines[:-1], lines[-2]],
    "denies the farewells": lambda lines, key: [line for line in lines if line.event != Event.CLOSING_RECEIVED],
    "swaps two lines": lambda lines, key: swapped(lines, find(lines, Event.UPDATE_RECEIVED, 1) - 1),
    "back-dates an order": lambda lines, key: back_dated(lines, find(lines, Event.ORDER_OFFERED, 1)),
    "back-dates a sum": lambda lines, key: back_dated(lines, find(lines, Event.AGGREGATED, 1, silo="")),
    "calls it another study": of_another_study,
    "names another key of the hospital": lambda lines, key: change(
        lines, find(lines, Event.SILO_ENROLLED), vkey=Signer.from_seed(SILO, b"x" * 32).vkey
    ),
}


ROWS: dict[str, tuple[str, Attack]] = {
    **{f"{SILO}: {name}": (SILO, attack) for name, attack in SILO_ATTACKS.items()},
    **{f"aggregator: {name}": ("aggregator", attack) for name, attack in HUB_ATTACKS.items()},
}

Table = dict[str, tuple[str, str, str]]


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    """What each attack came to; printed when all are done."""
    rows: Table = {}
    yield rows
    columns = ("attack", "that ledger alone", "the two ledgers", "two proof files")
    show_table("attacks", columns, [(name, *(cell[:90] for cell in answers)) for name, answers in rows.items()])


def told(ask: Callable[[], Any]) -> str:
    """What an auditor's command says is wrong; nothing if it finds nothing."""
    try:
        return "; ".join(ask().problems)
    except IntramuralError as error:
        return f"{type(error).__name__}: {error}"


def by_files(hub: Path, silo: Path, folder: Path, name: str = SILO) -> str:
    """The same from proof files, which are a few kB."""
    files = folder / "aggregator.proof", folder / "silo.proof"

    def compare() -> Any:
        for file, ledger, peer in zip(files, (hub, silo), (name, "aggregator"), strict=True):
            file.write_bytes(prove(ledger, peer=peer).encode())
        return reconcile(*files)

    return told(compare)


def detected(hub: Path, silo: Path) -> bool:
    return bool(told(lambda: reconcile(hub, silo)))


@pytest.mark.parametrize("row", ROWS)
def test_whoever_rewrites_its_ledger_and_signs_it_anew_is_found_by_the_other_side(
    finished: Path, rebuild: Callable[..., Path], table: Table, tmp_path: Path, row: str
) -> None:
    side, attack = ROWS[row]
    hub, silo = ledgers(finished)
    key, source = (silo_key(), silo) if side == SILO else (hub_key(finished), hub)
    forged = rebuild(source, key, lambda lines: attack(lines, key))
    opened = read(forged, key.verifier)
    assert opened.head != read(source).head  # as a ledger it is faultless
    assert not any(map(explain, opened.records))  # and says nothing that it could not say
    pair = (hub, forged) if side == SILO else (forged, silo)
    table[row] = told(lambda: verify(forged)), told(lambda: reconcile(*pair)), by_files(*pair, tmp_path)
    assert table[row][1]
    assert table[row][2]


def test_a_coordinator_that_shows_two_hospitals_two_histories_is_found_whichever_it_shows_an_auditor(
    begun: Toy, table: Table, tmp_path: Path
) -> None:
    begun.close()
    fork = type(begun).open(Path(shutil.copytree(begun.folder, tmp_path / "fork")))
    refuse = Refusal(code="round-limit")
    fork.poison("west", lambda h, o, a: wire.pack(h.offer(o, Kind.REFUSAL, refuse, None, answers=a)))
    fork.run()
    fork.close()
    begun = begun.reopen()
    begun.run()
    begun.close()
    for shown, deceived in ((begun, fork), (fork, begun)):
        assert not detected(*ledgers(shown.folder))
        pair = shown.folder / "toy" / "ledger", deceived.folder / SILO
        row = (
            told(lambda pair=pair: verify(pair[0])),
            told(lambda pair=pair: reconcile(*pair)),
            by_files(*pair, tmp_path),
        )  # type: ignore[misc]
        table[f"aggregator: forks, and shows {shown.folder.name}"] = row
        assert not row[0]
        assert row[1]
        assert row[2]


def test_a_coordinator_that_takes_an_update_and_never_writes_it_down_is_found_by_its_receipt(
    begun: Toy, table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Channel._write

    def hide(channel: Channel, received: Received, *line: Any) -> None:
        statement = received.statement
        if (channel.peer.name, statement.kind, statement.round) == (SILO, Kind.UPDATE, 2):
            channel.received.append(statement.xid)  # it is receipted with the next order
            channel._numbers[statement.n] = statement.xid
        else:
            write(channel, received, *line)

    monkeypatch.setattr(Channel, "_write", hide)
    begun.run()
    begun.close()
    pair = ledgers(begun.folder)
    row = told(lambda: verify(pair[0])), told(lambda: reconcile(*pair)), by_files(*pair, tmp_path)
    table["aggregator: takes an update and never writes it down"] = row
    assert "comes after number 1" in row[0]
    assert "aggregator gave a receipt for reply" in row[1]
    assert not row[2]  # the newest statements, which the files show, agree


def test_a_coordinator_that_goes_back_to_an_older_ledger_is_refused_at_once_and_found_later(
    begun: Toy, table: Table, tmp_path: Path
) -> None:
    begun.study.close()
    backup = shutil.copytree(begun.folder / "toy", tmp_path / "backup")
    begun = begun.reopen()
    begun.run()
    begun.close()
    shutil.rmtree(begun.folder / "toy")
    shutil.copytree(backup, begun.folder / "toy")
    pair = ledgers(begun.folder)
    row = told(lambda: verify(pair[0])), told(lambda: reconcile(*pair)), by_files(*pair, tmp_path)
    table["aggregator: rolls back"] = row
    assert not row[0]
    assert row[1]
    assert row[2]
    begun = begun.reopen()
    with pytest.raises((ProtocolError, LedgerError)) as refused:  # by the first hospital that it asks
        begun.run()
    table["aggregator: rolls back and goes on"] = ("", str(refused.value), "")
    begun.close()


@pytest.mark.parametrize("side", ["aggregator", SILO])
def test_a_ledger_written_anew_under_another_key_of_that_name_is_refused(
    finished: Path, rebuild: Callable[..., Path], side: str
) -> None:
    hub, silo = ledgers(finished)
    key = Signer.from_seed(side, b"x" * 32)
    if side == SILO:
        forged = rebuild(silo, key, lambda lines: silo_sends(lines, key))
        with pytest.raises(BadSignature, match="north"):
            reconcile(hub, forged)
    else:
        forged = rebuild(hub, key, lambda lines: hub_sends(lines, key))
        with pytest.raises(BadSignature, match="north"):
            reconcile(forged, silo)


def test_an_update_that_a_hospital_invents_after_the_end_can_only_be_seen_as_pending(
    finished: Path, rebuild: Callable[..., Path]
) -> None:
    hub, silo = ledgers(finished)

    def add(lines: Lines) -> Lines:
        lines.append(lines[find(lines, Event.UPDATE_OFFERED, 2)])
        return silo_sends(restate(lines, len(lines) - 1, payload="ab" * 32), silo_key())

    found = reconcile(hub, rebuild(silo, silo_key(), add))
    assert found.ok
    assert len(found.pending) == 1


def test_an_order_that_a_hospital_drops_while_it_is_the_newest_line_can_only_be_seen_as_pending(
    begun: Toy, rebuild: Callable[..., Path]
) -> None:
    class Killed(Exception):  # noqa: N818
        pass

    def die(*_: Any) -> Any:
        raise Killed

    begun.poison(SILO, die)  # it received the order and died before it answered
    with pytest.raises(Killed):
        begun.run()
    hub, silo = ledgers(begun.folder)
    assert reconcile(hub, silo).orders == 2
    place = len(read(silo).records)

    def drop(lines: Lines) -> Lines:
        return lines[: find(lines, Event.ORDER_RECEIVED, 1)]

    forged = rebuild(silo, silo_key(), drop)
    assert len(read(forged).records) < place
    found = reconcile(hub, forged)
    assert found.ok
    assert (found.orders, len(found.pending)) == (1, 1)


BAD_LINES: dict[str, Callable[[Lines], Lines]] = {
    "a statement that its sender did not sign": lambda lines: change(
        lines, find(lines, Event.ORDER_RECEIVED, 1), signature="00" * 64
    ),
    "an own statement that was not signed": lambda lines: change(
        lines, find(lines, Event.UPDATE_OFFERED, 1), signature="00" * 64
    ),
    "a countersignature that is none": lambda lines: change(
        lines, find(lines, Event.ORDER_RECEIVED, 1), receipt="00" * 64
    ),
    "a receipt that nobody gave": lambda lines: change(
        lines, find(lines, Event.EXCHANGE_RECEIPT, 1, silo=""), receipt="00" * 64
    ),
    "a head that the other did not sign": lambda lines: change(
        lines,
        find(lines, Event.ORDER_RECEIVED, 1),
        head=Checkpoint("aggregator/toy", 5, b"r" * 32).sign(silo_key()),
        size=5,
        root=(b"r" * 32).hex(),
    ),
    "a root that is not that of the head": lambda lines: change(
        lines, find(lines, Event.ORDER_RECEIVED, 1), root="ab" * 32
    ),
    "a signature that is no number": lambda lines: change(
        lines, find(lines, Event.UPDATE_OFFERED, 1), signature="no hex"
    ),
    "a statement that is none": lambda lines: change(
        lines, find(lines, Event.UPDATE_OFFERED, 1), statement={"src": SILO, "dst": "aggregator"}
    ),
    "a statement that is a word": lambda lines: change(lines, find(lines, Event.UPDATE_OFFERED, 1), statement="update"),
    "a line without its signature": lambda lines: [
        replace(line, body={k: v for k, v in line.body.items() if k != "signature"})
        if line.event == Event.UPDATE_OFFERED
        else line
        for line in lines
    ],
    "a receipt of nothing": lambda lines: [
        replace(line, body={}) if line.event == Event.EXCHANGE_RECEIPT else line for line in lines
    ],
    "an approval of nobody": lambda lines: [
        replace(line, body={}) if line.event == Event.STUDY_APPROVED else line for line in lines
    ],
    "a coordinator whose key is none": lambda lines: change(
        lines, find(lines, Event.STUDY_APPROVED, silo=""), recipient_key="no key"
    ),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_line_that_its_writer_signed_and_that_proves_nothing_is_found_and_told(
    finished: Path, rebuild: Callable[..., Path], name: str
) -> None:
    forged = rebuild(finished / SILO, silo_key(), BAD_LINES[name])
    verdict = verify(forged)
    assert not verdict.ok
    assert "line" in verdict.problems[0]
    assert detected(ledgers(finished)[0], forged)


def received_twice(lines: Lines) -> Lines:
    place = find(lines, Event.UPDATE_RECEIVED, 1)
    return [*lines[: place + 1], *lines[place:]]


def of_round_seven(lines: Lines) -> Lines:
    place = find(lines, Event.UPDATE_RECEIVED, 1)
    return [*lines[:place], replace(lines[place], round=7), *lines[place + 1 :]]


def told_otherwise(event: Event, **body: Any) -> Callable[[Lines], Lines]:
    return lambda lines: change(lines, find(lines, event, 1), **body)


CONTRADICTIONS: dict[str, tuple[Callable[[Lines], Lines], str]] = {
    "another weight": (told_otherwise(Event.UPDATE_RECEIVED, weight=1.0), "its weight is not the one in the document"),
    "another model": (told_otherwise(Event.UPDATE_RECEIVED, base="ab" * 32), "its base is not the one in the document"),
    "other metrics": (told_otherwise(Event.UPDATE_RECEIVED, metrics={"auc": 1.0}), "its metrics is not the one"),
    "other arrays": (told_otherwise(Event.UPDATE_RECEIVED, digest="ab" * 32), "names other arrays than the statement"),
    "another round": (of_round_seven, "the statement is of round 2, the line of round 7"),
    "an update twice": (received_twice, "comes after number 2, and 0 are said to be missing"),
    "a hospital that was never enrolled": (
        lambda lines: without(lines, [find(lines, Event.SILO_ENROLLED)]),
        "nobody says which key north has",
    ),
    "an untold gap": (
        lambda lines: without(lines, [find(lines, Event.UPDATE_RECEIVED, 1)]),
        "statement 3 of north to aggregator comes after number 1, and 0 are said to be missing",
    ),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_coordinators_ledger_that_contradicts_itself_is_found_alone(
    finished: Path, rebuild: Callable[..., Path], name: str
) -> None:
    edit, said = CONTRADICTIONS[name]

    def unwitnessed(lines: Lines) -> Lines:  # that the past is another is found too, if its witnesses still stand there
        return [
            replace(line, body={k: v for k, v in line.body.items() if k != "cosignature"}) for line in edit(list(lines))
        ]

    verdict = verify(rebuild(finished / "toy" / "ledger", hub_key(finished), unwitnessed))
    assert said in " ".join(verdict.problems)


@pytest.mark.parametrize("side", ["aggregator", SILO])
def test_a_past_that_the_witnesses_named_in_the_lines_did_not_see_is_found_alone(
    finished: Path, rebuild: Callable[..., Path], side: str
) -> None:
    hub, silo = ledgers(finished)
    source, key = (hub, hub_key(finished)) if side == "aggregator" else (silo, silo_key())
    peer = "east" if side == "aggregator" else "aggregator"
    verdict = verify(rebuild(source, key, lambda lines: back_dated(lines, 0)))
    assert f"{peer} cosigned another past than these" in verdict.problems[0]


def test_orders_and_receipts_that_nobody_signed_are_found_where_the_hospital_hides_its_approval(
    finished: Path, rebuild: Callable[..., Path]
) -> None:
    def unsigned(lines: Lines) -> Lines:
        lines = without(lines, [find(lines, Event.STUDY_APPROVED, silo="")])
        for place, line in enumerate(lines):
            if line.event == Event.EXCHANGE_RECEIPT:
                change(lines, place, receipt="00" * 64)
            elif line.event == Event.ORDER_RECEIVED:
                change(lines, place, signature="00" * 64)
        return lines

    verdict = verify(rebuild(finished / SILO, silo_key(), unsigned))
    assert (verdict.statements, verdict.receipts) == (5, 0)  # its own; the orders' signer is not known
    assert len(verdict.problems) == 9
    assert all("nobody says which key aggregator has" in problem for problem in verdict.problems)
