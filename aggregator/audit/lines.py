"""What the lines of a ledger say of an exchange: who sent what to whom, who got it, and whose key is whose.

Everything here reads lines that `require_readable`, or the ledger's vocabulary, let pass.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from models.errors import LedgerError, Malformed
from models.exchange.statement import Statement
from models.ledger import Event, Opened, Record, Verifier
from models.ledger.vocabulary import explain

NAMING: Mapping[Event, tuple[str, str]] = {
    Event.SILO_ENROLLED: ("name", "vkey"),
    Event.STUDY_APPROVED: ("recipient", "recipient_key"),
}
"""The events by which a party takes another one's key for its own, and where name and key stand."""

_SOFTWARE = {"python", "intramural", "torch", "monai", "numpy", "pandas", "pydicom", "nibabel", "flwr"}
_VERSION = re.compile(r"[0-9]{1,4}(\.[0-9A-Za-z]{1,12}){1,3}(\+[0-9A-Za-z.]{1,40})?")  # 2.6.0a0+ecf3bae40a.nv25.1

Peer = tuple[str | None, str]
"""Study and name: a coordinator of the same name may have another key in another study."""


def require_readable(opened: Opened) -> None:
    """Let a ledger pass whose lines all say what they must.

    Raises:
        LedgerError: One does not.
    """
    for record in opened.records:
        if problem := explain(record):
            raise LedgerError(f"{opened.folder}: line {record.seq + 1}: {problem}", "this line proves nothing")


def peers(records: Iterable[Record]) -> dict[Peer, Verifier]:
    """The other parties' keys, by study and name, as far as these lines name them.

    Raises:
        Malformed: One is no key of that name.
    """
    return {(record.study, verifier.name): verifier for record in records if (verifier := named_key(record))}


def named_key(record: Record) -> Verifier | None:
    """The other party's key that a line names, if it does.

    Raises:
        Malformed: It is no key of that name.
    """
    if record.event not in NAMING:
        return None
    name, key = NAMING[record.event]
    verifier = Verifier.parse(record.body[key])
    if verifier.name != record.body[name]:
        raise Malformed(f"the key of {record.body[name]} is one of {verifier.name}")
    return verifier


def statement(record: Record) -> Statement:
    """The statement in a line that has one."""
    return Statement.parse(record.body["statement"])


def is_offer(record: Record) -> bool:
    """Whether the line says what its writer is about to send."""
    return record.event.endswith(".offered")


def is_receipt(record: Record) -> bool:
    """Whether the line says what its writer received, used or not."""
    return "statement" in record.body and "receipt" in record.body


def documents(record: Record) -> list[str]:
    """Digests of the documents that a line names."""
    body: dict[str, Any] = record.body
    named = [body["statement"]["body"]] if "statement" in body else []
    return [*named, *(body[name] for name in ("agreement", "decision", "evidence") if name in body)]


def offered(records: Iterable[Record], study: str, to: str) -> dict[str, Record]:
    """Statements that this party sent to another in a study, by xid, oldest first."""
    return {
        statement(r).xid: r for r in records if r.study == study and is_offer(r) and r.body["statement"]["dst"] == to
    }


def received(records: Iterable[Record], study: str, source: str | None = None) -> dict[str, Record]:
    """Statements that this party received in a study, used or not, by xid, oldest first."""
    return {
        statement(r).xid: r
        for r in records
        if r.study == study and is_receipt(r) and source in (None, r.body["statement"]["src"])
    }


def heads(records: Iterable[Record], study: str, source: str) -> list[tuple[int, str]]:
    """The other side's ledger heads that this party saw: size and root (hex)."""
    return [(r.body["size"], r.body["root"]) for r in received(records, study, source).values()]


def taken(made: Record) -> list[dict[str, Any]]:
    """Of the updates that a round accepted, those that went into its model: all, unless the strategy chose some."""
    return [item for item in made.body["inputs"] if item["silo"] in made.body.get("selected", [item["silo"]])]


def versions(software: Mapping[str, Any]) -> dict[str, str]:
    """What a hospital says of its software, less all that is no known name with a version."""
    return {
        name: value
        for name, value in software.items()
        if name in _SOFTWARE and isinstance(value, str) and _VERSION.fullmatch(value)
    }
