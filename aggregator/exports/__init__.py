"""A ledger for other systems: what a hospital's security desk, auditors and analysts can read.

Every export reads a ledger with its public key, checks its lines against the signed head, and makes one record of
each signed line; the signatures within the lines are `intramural-audit verify`'s to check. Nothing is added: no host
name, no user, no path, and no identifier that the ledger does not hold. Lines that no signed head covers yet are left
for the next time.

    fhir      FHIR R4 AuditEvent, one JSON object a line, for an audit repository
    dicom     DICOM PS3.15 A.5 audit message, XML, what PACS send; over syslog, the IHE ATNA form
    cef       Common Event Format, for Splunk, ArcSight, QRadar, Sentinel
    jsonl     each line as it was signed, with its leaf hash; the copy can still be proven
    parquet   a table for pandas; needs pyarrow

Each record carries the ledger's name, the line's number and its leaf hash, so that whoever holds the copy
can ask for the proof. `cursor` sends only what was not sent yet, to a file or to a log server; it is a
process of its own that only reads, so a log server that is down never stops a training.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from aggregator.exports.cef import cef
from aggregator.exports.cursor import File, Sink, forward
from aggregator.exports.dicom import dicom
from aggregator.exports.fact import Fact, facts
from aggregator.exports.fhir import fhir
from aggregator.exports.jsonl import jsonl
from aggregator.exports.syslog import DIALECTS, Syslog
from aggregator.exports.table import write_table
from models.ledger import Verifier, read
from models.ledger.disk import publish

RENDERS: Mapping[str, Callable[[Fact], bytes]] = {"fhir": fhir, "dicom": dicom, "cef": cef, "jsonl": jsonl}
"""How each format that has one text per line makes it."""

FORMATS = (*RENDERS, "parquet")
"""Every format by the name that a command takes."""

__all__ = ["DIALECTS", "FORMATS", "RENDERS", "Fact", "File", "Sink", "Syslog", "export", "facts", "forward"]


def export(folder: Path, name: str, path: Path, verifier: Verifier | None = None) -> int:
    """Write a whole ledger to a file, in place of what was there.

    Args:
        folder: The ledger.
        name: One of `FORMATS`.
        path: The file.
        verifier: The key that the ledger must be signed with; by default the one it names.

    Returns:
        Number of lines.

    Raises:
        LedgerError: The ledger is not the one that was signed.
        ConfigError: `parquet`, and pyarrow is not installed.
    """
    found = facts(read(folder, verifier))
    if name == "parquet":
        write_table(path, found)
    else:
        publish(path, b"".join(RENDERS[name](fact) + b"\n" for fact in found))
    return len(found)
