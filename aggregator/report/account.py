"""What a ledger says happened, as numbers and words: who shared what, when, how much, and with whose yes.

Read from the signed lines and from the manifests beside them, from either side: a hospital's ledger tells
what left it, the aggregator's what came to it. Each thing that a line leaves open is left open here.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from aggregator.exports.fact import Fact, Outcome, facts, text
from models.errors import IntramuralError
from models.exchange.documents import Agreement
from models.ledger import Event, Opened

_SHARED = {
    *(Event.SURVEY_OFFERED, Event.SURVEY_RECEIVED),
    *(Event.UPDATE_OFFERED, Event.REPORT_OFFERED, Event.REFUSAL_OFFERED, Event.CLOSING_OFFERED),
    *(Event.UPDATE_RECEIVED, Event.REPORT_RECEIVED, Event.REFUSAL_RECEIVED, Event.CLOSING_RECEIVED),
    Event.REPLY_REJECTED,
}
_ORDERS = {Event.ORDER_OFFERED, Event.ORDER_RECEIVED}
_POLICY = {Event.LOG_OPENED, Event.POLICY_CHANGED}


@dataclass(frozen=True)
class Decision:
    """A yes or a no to a study.

    Attributes:
        fact: The line.
        yes: Whether it lets the study in.
        by: `person`, `policy`, or nothing if the line does not say.
    """

    fact: Fact
    yes: bool
    by: str


@dataclass
class Study:
    """All that a ledger holds of one study.

    Attributes:
        digest: Its identity.
        name: As the coordinator called it.
        agreement: What was approved, if its text is still beside the ledger.
        recipient: Who gets what hospitals share, and under which key.
        decisions: Approvals and revocations, oldest first.
        orders: What was asked.
        shared: Whatever hospitals answered; every byte that left one in this study.
        combined: Rounds that ended, with a new model or void.
        released: Models that were handed out.
        trouble: Refusals, rejections, silences.
    """

    digest: str
    name: str = ""
    agreement: Agreement | None = None
    recipient: tuple[str, str] = ("", "")
    decisions: list[Decision] = field(default_factory=list)
    orders: list[Fact] = field(default_factory=list)
    shared: list[Fact] = field(default_factory=list)
    combined: list[Fact] = field(default_factory=list)
    released: list[Fact] = field(default_factory=list)
    trouble: list[Fact] = field(default_factory=list)

    @property
    def disclosed(self) -> list[Fact]:
        """What says anything about patients: updates, metrics and surveys, used or not; the rest does not."""
        return [fact for fact in self.shared if fact.statement.get("kind") in ("update", "report", "survey")]

    @property
    def purpose(self) -> str:
        """Why, in the coordinator's words."""
        return text(self.agreement.plan.purpose) if self.agreement else ""

    @property
    def silos(self) -> list[str]:
        """Every hospital that shared something."""
        return sorted({fact.source for fact in self.shared})

    def bytes_per_round(self) -> list[tuple[int, float]]:
        """Bytes that left hospitals, by round."""
        found: dict[int, float] = {}
        for fact in self.shared:
            if fact.record.round is not None:
                found[fact.record.round] = found.get(fact.record.round, 0.0) + (fact.nbytes or 0)
        return sorted(found.items())

    def norms(self) -> dict[str, list[tuple[int, float]]]:
        """L2 norm of each hospital's update, by round."""
        found: dict[str, list[tuple[int, float]]] = {}
        for fact in self.shared:
            if fact.record.round is not None and fact.manifest is not None and fact.manifest.norm is not None:
                found.setdefault(fact.source, []).append((fact.record.round, fact.manifest.norm))
        return {name: sorted(points) for name, points in sorted(found.items())}

    def epsilons(self) -> dict[str, tuple[int, float | None, float | None]]:
        """By hospital: updates that left, epsilon after the last one and its delta; None where no noise was added."""
        found: dict[str, tuple[int, float | None, float | None]] = {}
        for fact in self.shared:
            if fact.statement.get("kind") == "update" and fact.manifest is not None:
                spent = fact.manifest.privacy
                count = found.get(fact.source, (0, None, None))[0] + 1
                found[fact.source] = (count, spent.epsilon, spent.delta) if spent else (count, None, None)
        return found


@dataclass(frozen=True)
class Account:
    """All that a ledger holds, in words.

    Attributes:
        opened: The ledger.
        facts: Its lines.
        receipts: xids of what its receiver signed to have, as far as that signature was checked.
    """

    opened: Opened
    facts: Sequence[Fact]
    receipts: Collection[str] = ()

    @property
    def party(self) -> str:
        """Whose ledger it is."""
        return text(self.opened.verifier.name)

    @property
    def is_hospital(self) -> bool:
        """Whether a hospital wrote it."""
        return not any(fact.record.event == Event.STUDY_CREATED for fact in self.facts)

    @cached_property
    def studies(self) -> list[Study]:
        """Each study, in order of its first line."""
        found: dict[str, Study] = {}
        for fact in self.facts:
            if fact.study:
                _add(self.opened, found.setdefault(fact.study, Study(fact.study)), fact)
        return list(found.values())

    @property
    def elsewhere(self) -> list[Fact]:
        """Refusals and rejections that belong to no study."""
        return [fact for fact in self.facts if not fact.study and fact.sense.outcome is not Outcome.OK]

    @property
    def policies(self) -> list[tuple[Fact, Mapping[str, Any]]]:
        """Each policy of the hospital, with the line from which on it held."""
        found = [(fact, fact.record.body.get("policy")) for fact in self.facts if fact.record.event in _POLICY]
        return [(fact, policy) for fact, policy in found if isinstance(policy, dict) and policy]

    def acknowledged(self, fact: Fact) -> bool:
        """Whether the receiver signed that it got this."""
        return fact.xid in self.receipts


def account(opened: Opened, receipts: Collection[str] = ()) -> Account:
    """Read a ledger that was verified.

    Args:
        opened: The ledger.
        receipts: xids of what its receiver signed to have, as `verify` found them; without them nothing is told as
            acknowledged.
    """
    return Account(opened, facts(opened), receipts)


def _add(opened: Opened, study: Study, fact: Fact) -> None:
    event, body = fact.record.event, fact.record.body
    study.name = study.name or text(body.get("name"))
    if event in (Event.STUDY_CREATED, Event.STUDY_APPROVED) and study.agreement is None:
        study.agreement = _agreement(opened, body.get("agreement"))
    if event == Event.STUDY_CREATED:
        study.recipient = (opened.verifier.name, opened.verifier.vkey)
    if event in (Event.STUDY_APPROVED, Event.STUDY_REVOKED):
        study.decisions.append(Decision(fact, event == Event.STUDY_APPROVED, text(body.get("by"))))
    if event == Event.STUDY_APPROVED:
        study.recipient = (text(body.get("recipient")), text(body.get("recipient_key")))
    if event in _ORDERS:
        study.orders.append(fact)
    if event in _SHARED and fact.statement:
        study.shared.append(fact)
    if event in (Event.AGGREGATED, Event.ROUND_VOID):
        study.combined.append(fact)
    if event == Event.MODEL_RELEASED:
        study.released.append(fact)
    if fact.sense.outcome is not Outcome.OK:
        study.trouble.append(fact)


def _agreement(opened: Opened, name: object) -> Agreement | None:
    try:
        return Agreement.decode(opened.manifest(str(name)))
    except IntramuralError:
        return None
