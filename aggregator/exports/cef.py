r"""CEF: one line of text per line of the ledger, for ArcSight, Splunk, QRadar and Sentinel.

Common Event Format, version 0 (ArcSight, revision 25): in the header `\` and `|` are escaped, in a value
`\`, `=` and line breaks; nothing else is.
"""

import importlib.metadata
from datetime import datetime

from aggregator.exports.fact import Fact, Kind, Outcome

VENDOR, PRODUCT = "Intramural", "intramural"
_SEVERITY = {Outcome.OK: 3, Outcome.REFUSED: 5, Outcome.FAILED: 8}


def cef(fact: Fact) -> bytes:
    """One event, UTF-8, without a newline."""
    sense = fact.sense
    header = [VENDOR, PRODUCT, _version(), fact.record.event.value, sense.words, str(_SEVERITY[sense.outcome])]
    extension = " ".join(f"{key}={in_value(value)}" for key, value in _fields(fact).items() if value)
    return f"CEF:0|{'|'.join(map(in_header, header))}|{extension}".encode()


def in_header(text: str) -> str:
    """Escape a field of the header; it has no line breaks."""
    return " ".join(text.splitlines()).replace("\\", "\\\\").replace("|", "\\|")


def in_value(text: str) -> str:
    """Escape a value of the extension."""
    escaped = text.replace("\\", "\\\\").replace("=", "\\=")
    return escaped.replace("\r", "\\r").replace("\n", "\\n")


def _fields(fact: Fact) -> dict[str, str]:
    """Keys of the CEF dictionary; what has none goes, as names and values, into `msg`."""
    bytes_key = "in" if fact.sense.kind is Kind.IMPORT else "out"
    details = "; ".join(f"{key}: {value}" for key, value in fact.details.items() if key not in ("line", "leaf"))
    return {
        "rt": str(int(datetime.fromisoformat(fact.record.ts).timestamp() * 1000)),
        "externalId": str(fact.line),
        "dvchost": fact.party,
        "shost": fact.source,
        "dhost": fact.destination,
        "act": fact.record.event.value,
        "outcome": fact.sense.outcome.value,
        "reason": fact.code,
        bytes_key: "" if fact.nbytes is None else str(fact.nbytes),
        "fileHash": fact.payload,
        **_labelled(1, "ledger", fact.ledger),
        **_labelled(2, "leaf", fact.leaf),
        **_labelled(3, "study", fact.study),
        **_labelled(4, "xid", fact.xid),
        **_labelled(1, "round", "" if fact.record.round is None else str(fact.record.round), "cn"),
        "msg": details[:1000],
    }


def _labelled(number: int, label: str, value: str, kind: str = "cs") -> dict[str, str]:
    return {f"{kind}{number}Label": label, f"{kind}{number}": value} if value else {}


def _version() -> str:
    try:
        return importlib.metadata.version("intramural")
    except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
        return "0"
