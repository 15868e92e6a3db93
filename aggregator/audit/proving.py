"""Making a proof file; `proofs` says what it shows and what not."""

import json
from collections.abc import Iterable, Mapping
from itertools import dropwhile
from pathlib import Path

from aggregator.audit.lines import NAMING, offered, received, require_readable, statement, versions
from aggregator.audit.lines import documents as documents_of
from aggregator.audit.proofs import Line, Proof
from models.errors import ConfigError
from models.ledger import Checkpoint, Event, Opened, Parting, Record, read, read_partings
from models.ledger.events import is_digest

_TITLES = {Event.STUDY_CREATED, Event.STUDY_APPROVED}


def prove(
    folder: Path | str,
    study: str | None = None,
    peer: str | None = None,
    exchange: str | None = None,
    documents: bool = False,
) -> Proof:
    """Take from a ledger what a third person needs to know.

    Args:
        folder: The ledger's folder.
        study: The study's digest, the beginning of it, its name, or NAME@DIGEST; needed if the ledger knows of several.
        peer: The other party; needed if the ledger knows of several in the study.
        exchange: xid of one statement, or the beginning of it. Without it, the newest statements of both
            directions between the two parties, and those that are still unacknowledged.
        documents: Whether to give the documents that the lines shown name: orders, manifests, agreements.

    Raises:
        ConfigError: There is no such study, party or exchange, or more than one.
        LedgerError: The ledger is not what was signed, or a line says what no line can say.
    """
    opened = read(folder)
    require_readable(opened)
    study = _chosen(folder, "study", study, _studies(opened))
    parties = _parties(opened, study, exchange or "")
    if exchange and not parties:
        raise ConfigError(f"{folder}: has no exchange {exchange}", "`intramural-audit show` prints those it has")
    peer = _chosen(folder, "peer", peer, parties)
    sent, got = offered(opened.records, study, peer), received(opened.records, study, peer)
    receipts = {r.body["xid"]: r for r in opened.records if r.event == Event.EXCHANGE_RECEIPT and r.body["xid"] in sent}
    tail: list[Record] = []
    if exchange:
        xid = _chosen(folder, "exchange", exchange, {x: x for x in [*sent, *got] if x.startswith(exchange)})
        shown = [side[xid] for side in (sent, receipts, got) if xid in side]
    else:
        first = max((place for place, xid in enumerate(sent) if xid in receipts), default=0)
        tail = list(sent.values())[first:]
        shown = [*tail, *[receipts[xid] for xid in list(sent)[first:] if xid in receipts], *list(got.values())[-1:]]
    shown += [r for r in opened.records if r.study == study and r.event in NAMING and _named(r) == peer][:1]
    shown.sort(key=lambda line: line.seq)
    size, tree = opened.head.size, opened.tree
    last = next((p for p in read_partings(opened.folder) if (p.study, p.peer) == (study, peer)), None)
    seen = {r.body["size"] for r in tail} | _leaves(opened, study, last)
    return Proof(
        of="exchange" if exchange else "pair",
        study=study,
        verifier=opened.verifier,
        peer=peer,
        head=opened.note,
        lines=tuple(Line(r, tuple(tree.inclusion(r.seq, size))) for r in shown),
        earlier={old: tuple(tree.consistency(old, size)) for old in sorted(seen) if old <= size},
        farewell=last.theirs if last else None,
        documents=_documents(opened, shown) if documents else (),
    )


def _studies(opened: Opened) -> dict[str, str]:
    """The studies in which something was exchanged, with their names as far as the ledger has them."""
    exchanged = {str(r.study): str(r.study) for r in opened.records if "statement" in r.body}
    names = {str(r.study): str(r.body["name"]) for r in opened.records if r.event in _TITLES}
    return exchanged | {study: name for study, name in names.items() if study in exchanged}


def _parties(opened: Opened, study: str, exchange: str) -> dict[str, str]:
    """The other parties of the statements of a study whose xid begins so."""
    found = [statement(r) for r in opened.records if r.study == study and "statement" in r.body]
    names = {name for s in found if s.xid.startswith(exchange) for name in (s.src, s.dst)}
    return {name: name for name in names - {opened.verifier.name}}


def _chosen(folder: Path | str, what: str, asked: str | None, known: Mapping[str, str]) -> str:
    """The one that is asked for, by its name, by the beginning of its digest, or by both as NAME@DIGEST."""
    named, at, begins = (asked or "").partition("@")
    found = [
        key
        for key, name in known.items()
        if asked in (None, name) or key.startswith(str(asked)) or (at and name == named and key.startswith(begins))
    ]
    exact = [key for key in found if asked in (key, known[key])]
    if len(found) != 1 and len(exact) != 1:
        names = ", ".join(sorted(_told(key, name) for key, name in known.items())) or "none"
        if asked is None and found:
            several = "studies" if what == "study" else "peers"
            missing = f"{folder}: --{what} is missing: the ledger has several {several}"
            raise ConfigError(missing, f"give one of {names}")
        which = "several" if found else "none"
        raise ConfigError(f"{folder}: {what} {asked or ''}: the ledger has {which} of that", f"it has: {names}")
    return (exact or found)[0]


def _told(key: str, name: str) -> str:
    """A study as NAME@DIGEST, a party or an exchange as it is; of a digest as much as tells it from others."""
    short = key[:16] if is_digest(key) else key
    return short if name == key else f"{name}@{short}"


def _leaves(opened: Opened, study: str, last: Parting | None) -> set[int]:
    """Sizes of the heads that the other side may have been shown at the end of a study.

    A coordinator that got no answer has kept none; what it showed was a head of its study's ledger after the close.
    """
    notes = [note for note in (last.ours, last.shown) if note] if last else []
    records = [record for record in opened.records if record.study == study]
    over = dropwhile(lambda record: record.event != Event.STUDY_CLOSED, records)
    return {Checkpoint.open(note, opened.verifier).size for note in notes} | {record.seq + 1 for record in over}


def _named(record: Record) -> str:
    return str(record.body[NAMING[record.event][0]])


def _documents(opened: Opened, shown: Iterable[Record]) -> tuple[bytes, ...]:
    found = tuple(opened.manifest(name) for name in dict.fromkeys(n for r in shown for n in documents_of(r)))
    for content in found:
        try:
            content.decode()
        except UnicodeDecodeError:
            raise ConfigError("a document of this exchange is no text", "make the file without documents") from None
    return found


def prove_model(folder: Path | str, study: str) -> Proof:
    """Take from a coordinator's ledger what its newest release of a model rests on; see `origin`.

    Args:
        folder: The ledger's folder.
        study: The study's digest.

    Raises:
        ConfigError: No model of the study was released.
        LedgerError: The ledger is not what was signed, or a line says what no line can say.
    """
    opened = read(folder)
    require_readable(opened)
    records = [record for record in opened.records if record.study == study]
    released = next((r for r in reversed(records) if r.event == Event.MODEL_RELEASED), None)
    if released is None:
        raise ConfigError(f"{folder}: no model of this study was released", "run: intramural-aggregator release")
    made = [r for r in records if r.event == Event.AGGREGATED and r.round == released.round]
    inputs = {item["xid"] for record in made for item in record.body["inputs"]}
    updates = [r for r in records if r.event == Event.UPDATE_RECEIVED and statement(r).xid in inputs]
    reports = _reports(opened, records, released.body["model"])
    parties = {statement(record).src for record in [*updates, *reports]}
    enrolled = [r for r in records if r.event == Event.SILO_ENROLLED and r.body["name"] in parties]
    around = [r for r in records if r.event in (Event.STUDY_CREATED, Event.STUDY_CLOSED)]
    shown = sorted([*around, *enrolled, *made, *updates, *reports, released], key=lambda line: line.seq)
    tree, size = opened.tree, opened.head.size
    return Proof(
        of="model",
        study=study,
        verifier=opened.verifier,
        peer=opened.verifier.name,
        head=opened.note,
        lines=tuple(Line(record, tuple(tree.inclusion(record.seq, size))) for record in shown),
        earlier={},
        documents=_documents(opened, reports),
    )


def _reports(opened: Opened, records: Iterable[Record], model: str) -> list[Record]:
    """Each hospital's newest report of a model's metrics.

    One that says more of its software than names and versions is left with the coordinator: it is free text of
    a hospital, and what is released goes to anybody.
    """
    found: dict[str, Record] = {}
    for record in records:
        if record.event != Event.REPORT_RECEIVED or "metrics" not in record.body:
            continue
        said = json.loads(opened.manifest(statement(record).body))
        software = said.get("software", {})
        if said["base"] == model and versions(software) == software:
            found[statement(record).src] = record
    return list(found.values())
