"""A hospital as a witness: it goes on only with a past that most hospitals are known to have been shown."""

from models.errors import DigestMismatch
from models.exchange import witness
from models.exchange.channel import Received
from models.exchange.documents import Order
from models.exchange.statement import Evidence, Statement
from models.exchange.witness import Testimony
from models.ledger import Event, Ledger, Record, Verifier


def keep_roster(ledger: Ledger, order: Order, evidence: Evidence) -> None:
    """Keep the roster of hospitals that an order names; it was signed with the order.

    Raises:
        DigestMismatch: What came is not the roster that was signed.
        Malformed: It cannot be read.
        NotAppended: It could not be made durable.
    """
    if order.witnesses is None:
        return
    testimony = witness.read_testimony(evidence.testimony)
    if testimony.roster_digest != order.witnesses:
        raise DigestMismatch("the roster is not the one that was signed", detail="witnesses")
    ledger.store(testimony.roster_document)


def require(ledger: Ledger, silo: Verifier, coordinator: Verifier, order: Order, received: Received) -> None:
    """Refuse to go on with a past that most hospitals are not known to have seen.

    Args:
        ledger: This hospital's.
        silo: Its key.
        coordinator: The coordinator's key.
        order: The order.
        received: The verified message that it came in; its roster is kept.

    Raises:
        NotWitnessed: Too few hospitals have seen what this one was shown before.
        Rewritten: They have seen something else.
    """
    last = _last_followed(ledger, received.statement)
    if last is None:  # a first order shows a past that nobody can have seen
        return
    before = Order.decode(ledger.manifest(last.body["statement"]["body"])).witnesses
    evidence = received.envelope.evidence
    witness.require(
        witness.read_testimony(evidence.testimony) if order.witnesses else Testimony(),
        coordinator,
        received.head,
        evidence.proofs,
        silo=silo,
        since=last.body["size"],
        before=witness.read_roster(ledger.manifest(before)) if before else (),
        min_silos=order.agreement.plan.min_silos,
    )


def _last_followed(ledger: Ledger, asked: Statement) -> Record | None:
    """The line of the newest order that was followed before this one."""
    offered = ledger.of(Event.UPDATE_OFFERED, Event.REPORT_OFFERED)
    answers = {record.body["statement"]["answers"] for record in offered if record.study == asked.study}
    orders = (record for record in reversed(ledger.of(Event.ORDER_RECEIVED)) if record.study == asked.study)
    followed = answers - {asked.xid}
    return next((r for r in orders if Statement.parse(r.body["statement"]).xid in followed), None)
