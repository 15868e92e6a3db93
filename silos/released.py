"""What has left this hospital, read from its own ledger; every line verified first."""

from dataclasses import dataclass
from pathlib import Path

from models.exchange.documents import Manifest, Refusal, Survey
from models.exchange.statement import Kind, Statement
from models.ledger import Event, read


@dataclass(frozen=True)
class Sent:
    """One message that left.

    Attributes:
        time: UTC.
        to: Who it was for.
        study: The study's digest.
        round: The study's round.
        what: update, report, survey, refusal or closing.
        nbytes: Document and arrays, in the study's encoding and before compression on the way.
        digest: Of the arrays, if any.
        filters: Applied in this order.
        metrics: Numbers told, the fields of a survey, or the code of a refusal.
        receipt: Whether the receiver's signature for it has come back.
    """

    time: str
    to: str
    study: str
    round: int
    what: str
    nbytes: int
    digest: str | None
    filters: str
    metrics: str
    receipt: bool


def released(folder: Path) -> list[Sent]:
    """Every message that left, oldest first.

    Args:
        folder: The hospital's ledger.

    Raises:
        LedgerError: There is none, or it is not the one that was signed.
    """
    opened = read(folder)
    receipts = {record.body["xid"] for record in opened.records if record.event == Event.EXCHANGE_RECEIPT}
    found = []
    for record in opened.records:
        if not record.event.endswith(".offered"):
            continue
        statement = Statement.parse(record.body["statement"])
        filters = metrics = ""
        if statement.kind in (Kind.UPDATE, Kind.REPORT):
            manifest = Manifest.decode(opened.manifest(statement.body))
            filters = ", ".join(f.name for f in manifest.filters)
            metrics = ", ".join(f"{name} {value}" for name, value in manifest.metrics.items())
            if manifest.work is not None:
                metrics = f"work {manifest.work:g}{', ' if metrics else ''}{metrics}"
        elif statement.kind is Kind.SURVEY:
            metrics = ", ".join(Survey.decode(opened.manifest(statement.body)).fields)
        elif statement.kind is Kind.REFUSAL:
            metrics = Refusal.decode(opened.manifest(statement.body)).code
        found.append(
            Sent(
                time=record.ts,
                to=statement.dst,
                study=statement.study,
                round=statement.round,
                what=statement.kind.value,
                nbytes=statement.nbytes,
                digest=statement.payload,
                filters=filters,
                metrics=metrics,
                receipt=statement.xid in receipts,
            )
        )
    return found
