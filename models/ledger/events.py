"""What a ledger can say: a closed list of events, and the form of one line.

A line is one `Record`, written as canonical JSON. An event that is not in the list can be neither written
nor read, so that whoever reads a ledger in ten years knows every word in it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from typing import Any, Self

from models.canonical import canonical, parse
from models.ledger.merkle import leaf_hash

START = "0" * 64
"""What the first line names as the line before it."""

MAX_LINE = 2**20
"""Bytes of the longest line: that of a round in which six thousand hospitals took part. What is unbounded goes into a
document beside the ledger."""


class Event(StrEnum):
    """What happened.

    Attributes:
        about: Who writes it, and when.
    """

    about: str

    def __new__(cls, word: str, about: str = "") -> Self:
        """The word is the value; `Event("aggregated")` finds it."""
        event = str.__new__(cls, word)
        event._value_, event.about = word, about
        return event

    LOG_OPENED = "log.opened", "Every party, once, as the first line: whose ledger this is, and with which software."
    POLICY_CHANGED = "policy.changed", "Silo, when it starts with another policy than the one recorded last."
    STUDY_CREATED = "study.created", "Aggregator, once per study, before its first round."
    SILO_ENROLLED = "silo.enrolled", "Aggregator, when the coordinator admits a silo's key to a study."
    STUDY_APPROVED = (
        "study.approved",
        "Silo, when a person says yes to a study, or its policy first lets one in; it trains nothing before.",
    )
    STUDY_REVOKED = "study.revoked", "Silo, when a person takes a yes back; it trains nothing after."
    ORDER_OFFERED = "order.offered", "Aggregator, before the bytes of an order leave for a silo."
    ORDER_RECEIVED = (
        "order.received",
        "Silo, when an order is known to come whole from its coordinator, and before it is followed.",
    )
    ORDER_REJECTED = (
        "order.rejected",
        "Silo, when what arrived is no order that can be traced to its coordinator, with a code.",
    )
    UPDATE_OFFERED = "update.offered", "Silo, before the bytes of an update leave the hospital."
    UPDATE_RECEIVED = "update.received", "Aggregator, when an update passed every check, and before it is used."
    REPORT_OFFERED = "report.offered", "Silo, before metrics leave the hospital without an update."
    REPORT_RECEIVED = "report.received", "Aggregator, when such metrics passed every check, and before they are used."
    SURVEY_OFFERED = "survey.offered", "Silo, before banded counts of what it could train on leave the hospital."
    SURVEY_RECEIVED = "survey.received", "Aggregator, when such counts passed every check, and before they are used."
    REFUSAL_OFFERED = (
        "refusal.offered",
        "Silo, before it answers that it does not do what was asked; the document that it names holds the code.",
    )
    REFUSAL_RECEIVED = "refusal.received", "Aggregator, when a silo refused."
    CLOSING_OFFERED = "closing.offered", "Silo, as its last word on a study."
    CLOSING_RECEIVED = "closing.received", "Aggregator, when a silo's last word has come."
    REPLY_REJECTED = (
        "reply.rejected",
        "Aggregator, when a reply failed a check and is not used, with the code of the reason.",
    )
    SILO_SILENT = "silo.silent", "Aggregator, when a silo did not answer before the round's deadline."
    EXCHANGE_RECEIPT = "exchange.receipt", "Either, when the other side's signed receipt of something sent has arrived."
    AGGREGATED = "aggregated", "Aggregator, when a round's updates became the next model, before it is offered."
    ROUND_VOID = "round.void", "Aggregator, when too few updates were accepted and the old model stands."
    STUDY_CLOSED = "study.closed", "Aggregator, when a study is over: it gives no more orders."
    MODEL_RELEASED = (
        "model.released",
        "Aggregator, when the files of a closed study's model are made, and before their folder gets its name.",
    )


@dataclass(frozen=True)
class Entry:
    """What a caller asks a ledger to write.

    Attributes:
        event: What happened.
        body: Its particulars, JSON values; nothing that identifies a patient.
        study: The study's digest (that of its agreement), 64 hex digits, if it belongs to one.
        round: Round of the study, from 0, if it belongs to one.
    """

    event: Event | str
    body: dict[str, Any] = field(default_factory=dict)
    study: str | None = None
    round: int | None = None


@dataclass(frozen=True)
class Record:
    """One line of a ledger.

    Attributes:
        v: Version of this form, 1.
        seq: Number of the line, from 0.
        prev: Leaf hash of the line before, 64 hex digits; zeros for the first.
        ts: When it was written by this machine's clock, UTC: `2026-11-22T13:53:01Z`.
        salt: 32 hex digits that only the writer can know, so that a hidden line cannot be guessed.
        event: What happened.
        study: The study's digest (that of its agreement), or None.
        round: Round of the study, or None.
        body: The particulars of the event.
    """

    v: int
    seq: int
    prev: str
    ts: str
    salt: str
    event: Event
    study: str | None
    round: int | None
    body: dict[str, Any]

    @cached_property
    def line(self) -> bytes:
        """Its canonical JSON, without the newline; of a line that was read, the very bytes."""
        return canonical(self.values())

    @cached_property
    def leaf(self) -> bytes:
        """RFC 6962 leaf hash of the line, 32 bytes."""
        return leaf_hash(self.line)

    def values(self) -> dict[str, Any]:
        """The JSON object that the line is."""
        return {name: getattr(self, name) for name in _VALID}

    @classmethod
    def parse(cls, line: bytes) -> Self:
        """Read one line.

        Raises:
            ValueError: Not the canonical JSON of a record with known keys, values and event.
        """
        if len(line) > MAX_LINE:
            raise ValueError(f"is longer than {MAX_LINE} bytes")
        values = parse(line)
        if not isinstance(values, dict) or values.keys() != _VALID.keys():
            raise ValueError(f"must have exactly the keys {', '.join(sorted(_VALID))}")
        for name, valid in _VALID.items():
            if not valid(values[name]):
                raise ValueError(f"has an impossible {name}: {str(values[name])[:80]!r}")
        values.update(event=_EVENTS[values["event"]], line=line, leaf=leaf_hash(line))
        record = cls.__new__(cls)  # the constructor of a frozen dataclass takes as long as all these checks
        object.__setattr__(record, "__dict__", values)
        return record


def is_digest(value: object) -> bool:
    """Is it a SHA-256, as 64 lower-case hexadecimal digits?"""
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _count(value: object) -> bool:
    return type(value) is int and value >= 0  # True is an int too, and no count


def _time(value: object) -> bool:
    if not isinstance(value, str) or not _TIME.fullmatch(value):
        return False
    try:
        return bool(datetime.fromisoformat(value))
    except ValueError:
        return False


_EVENTS = {event.value: event for event in Event}
_DIGEST, _SALT = re.compile("[0-9a-f]{64}"), re.compile("[0-9a-f]{32}")
_TIME = re.compile("[0-9]{4}(-[0-9]{2}){2}T[0-9]{2}(:[0-9]{2}){2}Z")

_VALID: dict[str, Callable[[Any], bool]] = {
    "v": lambda value: type(value) is int and value == 1,
    "seq": _count,
    "prev": is_digest,
    "ts": _time,
    "salt": lambda value: isinstance(value, str) and _SALT.fullmatch(value) is not None,
    "event": lambda value: isinstance(value, str) and value in _EVENTS,
    "study": lambda value: value is None or is_digest(value),
    "round": lambda value: value is None or _count(value),
    "body": lambda value: isinstance(value, dict),
}
assert list(_VALID) == [item.name for item in fields(Record)]
