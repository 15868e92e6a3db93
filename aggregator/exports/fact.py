"""One line of a ledger, as every export tells it.

A ledger's line is made to be proven; other systems want to know who did what with which object, and how it
ended. `facts` reads that out of the lines and out of the manifests that they name, and out of nothing else:
no host name, no user, no path is added. Whatever a line says is taken as text of a bounded length without
control characters, since its writer need not be a friend.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any, TypeVar

from models.canonical import canonical, digest
from models.errors import IntramuralError
from models.exchange.documents import Document, Examples, Manifest, Refusal, Survey
from models.ledger import Event, Opened, Record

MAX_TEXT = 500
"""Characters of the longest text that leaves in an export; what is cut ends in an ellipsis."""


_D = TypeVar("_D", bound=Document)


class Kind(StrEnum):
    """What sort of event it is, for whoever filters; DICOM PS3.16 CID 400 has a code for each."""

    EXPORT = "export"
    IMPORT = "import"
    ACTIVITY = "activity"
    ALERT = "alert"


class Outcome(StrEnum):
    """How it ended."""

    OK = "ok"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True)
class Sense:
    """What an event means to somebody who never heard of this toolkit.

    Attributes:
        words: One sentence.
        kind: What sort of event it is.
        action: Create, Read, Update, Delete or Execute, as its letter (DICOM PS3.15 A.5.1, FHIR AuditEvent).
        lifecycle: Stage of the object's life (DICOM PS3.15 A.5.1.2.3), if one fits.
        step: The same in ISO 21089, as FHIR R4 codes it, if one fits.
        outcome: How it ended.
    """

    words: str
    kind: Kind
    action: str
    lifecycle: str = ""
    step: str = ""
    outcome: Outcome = Outcome.OK


def _leaves(words: str, outcome: Outcome = Outcome.OK) -> Sense:
    return Sense(words, Kind.EXPORT, "R", "10", "transmit", outcome)


def _comes(words: str, lifecycle: str = "12", outcome: Outcome = Outcome.OK) -> Sense:
    return Sense(words, Kind.IMPORT, "C", lifecycle, "receive", outcome)


_E = Event
SENSES: Mapping[Event, Sense] = {
    _E.LOG_OPENED: Sense("The ledger was opened", Kind.ACTIVITY, "C", "1", "originate"),
    _E.POLICY_CHANGED: Sense("The hospital changed its policy", Kind.ACTIVITY, "U", "3", "amend"),
    _E.STUDY_CREATED: Sense("A study was created", Kind.ACTIVITY, "C", "1", "originate"),
    _E.SILO_ENROLLED: Sense("A hospital was admitted to the study", Kind.ACTIVITY, "U", "3", "amend"),
    _E.STUDY_APPROVED: Sense("The hospital approved a study", Kind.ACTIVITY, "E", "4", "attest"),
    _E.STUDY_REVOKED: Sense("The hospital took its approval of a study back", Kind.ACTIVITY, "E", "3", "amend"),
    _E.ORDER_OFFERED: _leaves("An order, with the model, left for a hospital"),
    _E.ORDER_RECEIVED: _comes("An order, with the model, came from the coordinator", "2"),
    _E.ORDER_REJECTED: Sense(
        "A message that is no order of the coordinator was turned away", Kind.ALERT, "E", outcome=Outcome.FAILED
    ),
    _E.UPDATE_OFFERED: _leaves("A model update left the hospital"),
    _E.UPDATE_RECEIVED: _comes("A model update came from a hospital"),
    _E.REPORT_OFFERED: _leaves("Metrics left the hospital"),
    _E.REPORT_RECEIVED: _comes("Metrics came from a hospital"),
    _E.SURVEY_OFFERED: _leaves("Banded counts of the hospital's images left before the study started"),
    _E.SURVEY_RECEIVED: _comes("Banded counts of a hospital's images came before the study started"),
    _E.REFUSAL_OFFERED: _leaves("The hospital refused what was asked; only a code left", Outcome.REFUSED),
    _E.REFUSAL_RECEIVED: _comes("A hospital refused what was asked", "2", Outcome.REFUSED),
    _E.CLOSING_OFFERED: _leaves("The hospital's last word on the study left: how it counts the exchange"),
    _E.CLOSING_RECEIVED: _comes("A hospital's last word on the study came", "2"),
    _E.REPLY_REJECTED: Sense(
        "A hospital's reply failed a check and was not used", Kind.ALERT, "E", outcome=Outcome.FAILED
    ),
    _E.SILO_SILENT: Sense("A hospital did not answer in time", Kind.ACTIVITY, "E", outcome=Outcome.REFUSED),
    _E.EXCHANGE_RECEIPT: Sense("The other side's signed receipt came", Kind.ACTIVITY, "C", "4", "verify"),
    _E.AGGREGATED: Sense("Updates were combined into the next model", Kind.ACTIVITY, "C", "8", "transform"),
    _E.ROUND_VOID: Sense(
        "Too few updates were accepted; the old model stands", Kind.ACTIVITY, "E", outcome=Outcome.REFUSED
    ),
    _E.STUDY_CLOSED: Sense("The study was closed", Kind.ACTIVITY, "U", "13", "archive"),
    _E.MODEL_RELEASED: Sense("The study's model was released", Kind.ACTIVITY, "C", "9", "report"),
}
"""Every event in words; a new event must be given its sense here."""

_SAID = (
    *("name", "purpose", "by", "recipient", "recipient_key", "vkey", "origin", "agreement", "policy", "decision"),
    *("model", "base", "digest", "weight", "order", "xid", "missed", "size", "root", "required"),
)


@dataclass(frozen=True)
class Fact:
    """One line of a ledger in words.

    Attributes:
        record: The line.
        ledger: The ledger's origin, its name among all ledgers.
        party: Whose ledger it is.
        manifest: What left or came, in full, if the line is about an update or a report and its list is
            still beside the ledger.
        survey: What a survey told, likewise.
        refusal: What was said instead, likewise.
    """

    record: Record
    ledger: str
    party: str
    manifest: Manifest | None = None
    survey: Survey | None = None
    refusal: Refusal | None = None

    @property
    def sense(self) -> Sense:
        """What the event means."""
        return SENSES[self.record.event]

    @property
    def line(self) -> int:
        """Number of the line, from 1; with `ledger` it tells a line sent twice from two lines."""
        return self.record.seq + 1

    @cached_property
    def leaf(self) -> str:
        """RFC 6962 leaf hash of the line (hex), which an inclusion proof starts from."""
        return self.record.leaf.hex()

    @property
    def study(self) -> str:
        """Digest of the study, or nothing."""
        return self.record.study or ""

    @property
    def source(self) -> str:
        """From whom something came; whose act it was, if nothing travelled."""
        return self.statement.get("src") or self.party

    @property
    def destination(self) -> str:
        """For whom something was; nothing, if nothing travelled."""
        return self.statement.get("dst", "")

    @property
    def peer(self) -> str:
        """The other party that the line is about, if any."""
        body = self.record.body
        others = [self.source, self.destination, text(body.get("silo")), text(body.get("recipient"))]
        return next((name for name in others if name and name != self.party), "")

    @cached_property
    def statement(self) -> Mapping[str, str]:
        """The signed statement that the line holds, as text; empty if it holds none."""
        found = self.record.body.get("statement")
        return {key: text(value) for key, value in found.items()} if isinstance(found, dict) else {}

    @property
    def nbytes(self) -> int | None:
        """Bytes of document and arrays that travelled."""
        found = self.record.body.get("statement")
        count = found.get("nbytes") if isinstance(found, dict) else None
        return count if type(count) is int and 0 <= count < 2**63 else None

    @cached_property
    def xid(self) -> str:
        """Identity of the statement that travelled: SHA-256 of its canonical JSON; nothing without one."""
        found = self.record.body.get("statement")
        return digest(canonical(found)) if isinstance(found, dict) else ""

    @property
    def payload(self) -> str:
        """Digest of the arrays that travelled, or nothing."""
        return self.statement.get("payload", "")

    @property
    def code(self) -> str:
        """The word that stands for the reason of a refusal or rejection."""
        return text(self.refusal.code if self.refusal else self.record.body.get("code"))

    @cached_property
    def details(self) -> Mapping[str, str]:
        """All that is left to say, as names and texts, in a fixed order."""
        said = {"line": str(self.line), "leaf": self.leaf}
        said |= {f"statement.{key}": self.statement.get(key, "") for key in ("n", "body", "payload", "nbytes")}
        said |= {key: text(self.record.body.get(key)) for key in (*_SAID, "silo", "evaluated")}
        said["code"] = self.code
        said |= {
            key: listed(self.record.body.get(key))
            for key in ("metrics", "asked", "inputs", "selected", "accepted", "excluded", "files")
        }
        if self.manifest is not None:
            said |= {key: text(value) for key, value in in_short(self.manifest).items()}
        if self.survey is not None:
            said["survey"] = ", ".join(self.survey.fields)
        return {key: value for key, value in said.items() if value}


def facts(opened: Opened, start: int = 0) -> list[Fact]:
    """A ledger's signed lines in words.

    Args:
        opened: The ledger, read and verified.
        start: Number of lines to leave out at the beginning.
    """
    origin, party = text(opened.head.origin), text(opened.verifier.name)
    return [
        Fact(
            record,
            origin,
            party,
            manifest=_document(Manifest, opened, record, "update", "report"),
            survey=_document(Survey, opened, record, "survey"),
            refusal=_document(Refusal, opened, record, "refusal"),
        )
        for record in opened.records[start:]
    ]


def text(value: object) -> str:
    """Any JSON scalar as one line of printable text of a bounded length; anything else is nothing."""
    if value is None or not isinstance(value, str | int | float):
        return ""
    if not isinstance(value, str):
        return str(value).lower() if isinstance(value, bool) else repr(value)
    line = "".join(char if char.isprintable() else "\ufffd" for char in " ".join(value.split()))
    return line if len(line) <= MAX_TEXT else f"{line[: MAX_TEXT - 1]}…"


def listed(value: object) -> str:
    """A mapping of numbers, a list of words or the names in a list of inputs or files, as one line."""
    if isinstance(value, dict):
        return text(", ".join(f"{text(key)} {text(item)}" for key, item in value.items()))
    if isinstance(value, list):
        return text(", ".join(text(_name(item) if isinstance(item, dict) else item) for item in value))
    return ""


def _name(item: Mapping[str, object]) -> object:
    return item.get("silo", item.get("name"))


def in_short(manifest: Manifest) -> dict[str, str | float | int]:
    """The parts of a manifest that fit into a line; absent ones are left out."""
    found: dict[str, str | float | int | None] = {
        "tensors": len(manifest.tensors) or None,
        "norm": manifest.norm,
        "filters": ", ".join(filters(manifest)) or None,
        "examples": band(manifest.examples) or None,
        "work": manifest.work,
        "precision": manifest.precision,
        "batched": "yes" if manifest.batched else None,
        "evaluated": band(manifest.evaluated) or None,
        "metrics": listed(manifest.metrics) or None,
        "withheld": ", ".join(manifest.withheld) or None,
        "epsilon": manifest.privacy.epsilon if manifest.privacy else None,
        "delta": manifest.privacy.delta if manifest.privacy else None,
    }
    return {key: value for key, value in found.items() if value is not None}


def filters(manifest: Manifest) -> list[str]:
    """What the gate did to the update, in order, with its numbers."""
    return [
        " ".join([step.name, *(f"{value:g}" for value in (step.bound, step.sd) if value is not None)])
        for step in manifest.filters
    ]


def band(count: Examples | None) -> str:
    """A count as it was told: `11-19 images`, or one number if it was exact."""
    if count is None:
        return ""
    low, high = f"{count.low:g}", f"{count.high:g}"
    return f"{low if low == high else f'{low}-{high}'} {count.unit}"


def _document(form: type[_D], opened: Opened, record: Record, *kinds: str) -> _D | None:
    """The document of a line about such a statement; None where it is not kept or not readable."""
    found: Any = record.body.get("statement")
    if not isinstance(found, dict) or found.get("kind") not in kinds:
        return None
    try:
        return form.decode(opened.manifest(str(found.get("body"))))
    except IntramuralError:
        return None  # `verify` says so; an export tells what there is
