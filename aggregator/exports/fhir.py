"""FHIR R4 AuditEvent: one resource per line of the ledger, for a hospital's audit repository.

Written as NDJSON (one resource a line), the form of FHIR's bulk data and of an `ATX: FHIR Feed`. The
resource's id is the line's leaf hash, so that sending a line twice changes nothing.

No IHE BALP profile is claimed: its disclosure profile demands exactly one patient, and here there is none.
Its ways are kept: a source and a destination agent, the party that wrote the ledger as the observer.
"""

import json
from typing import Any

from aggregator.exports.fact import Fact, Kind, Outcome

DICOM = "http://dicom.nema.org/resources/ontology/DCM"
TERMS = "http://terminology.hl7.org/CodeSystem"
OWN = "urn:intramural"

TYPES = {
    Kind.EXPORT: ("110106", "Export"),
    Kind.IMPORT: ("110107", "Import"),
    Kind.ACTIVITY: ("110100", "Application Activity"),
    Kind.ALERT: ("110113", "Security Alert"),
}
"""DICOM PS3.16 CID 400, audit event identifiers."""

ROLES = {
    "source": ("110153", "Source Role ID"),
    "destination": ("110152", "Destination Role ID"),
    "application": ("110150", "Application"),
}
"""DICOM PS3.16 CID 402, audit active participant roles."""

OUTCOMES = {Outcome.OK: "0", Outcome.REFUSED: "4", Outcome.FAILED: "8"}
"""DICOM PS3.15 A.5.1: success, minor failure, serious failure."""


def fhir(fact: Fact) -> bytes:
    """One AuditEvent as JSON, UTF-8, without a newline."""
    return json.dumps(audit_event(fact), ensure_ascii=False, separators=(",", ":")).encode()


def audit_event(fact: Fact) -> dict[str, Any]:
    """One AuditEvent (FHIR R4, 4.0.1) as JSON values."""
    sense, code = fact.sense, fact.code
    kind, words = TYPES[sense.kind]
    return {
        "resourceType": "AuditEvent",
        "id": fact.leaf,
        "type": {"system": DICOM, "code": kind, "display": words},
        "subtype": _subtypes(fact),
        "action": sense.action,
        "recorded": fact.record.ts,
        "outcome": OUTCOMES[sense.outcome],
        "outcomeDesc": f"{sense.words}: {code}" if code else sense.words,
        "purposeOfEvent": [{"coding": [_coding(f"{TERMS}/v3-ActReason", "HRESCH", "healthcare research")]}],
        "agent": _agents(fact),
        "source": {
            "observer": _party(fact.party),
            "type": [_coding(f"{TERMS}/security-source-type", "4", "Application Server")],
        },
        "entity": [_entity(fact), *_statement(fact), *_study(fact)],
    }


def _subtypes(fact: Fact) -> list[dict[str, str]]:
    own = {"system": f"{OWN}:event", "code": fact.record.event.value}
    if not fact.sense.step:
        return [own]
    return [{"system": f"{TERMS}/iso-21089-lifecycle", "code": fact.sense.step}, own]


def _agents(fact: Fact) -> list[dict[str, Any]]:
    """Who took part; the one whose act this was is the requestor."""
    if not fact.destination:
        return [_agent("application", fact.party, fact)]
    return [_agent("source", fact.source, fact), _agent("destination", fact.destination, fact)]


def _agent(role: str, name: str, fact: Fact) -> dict[str, Any]:
    code, words = ROLES[role]
    return {
        "type": {"coding": [_coding(DICOM, code, words)]},
        "who": _party(name),
        "requestor": name == fact.source,
    }


def _entity(fact: Fact) -> dict[str, Any]:
    """The line itself, with all that it says; SIEM and ledger meet in its leaf hash."""
    return {
        "what": {"identifier": {"system": f"{OWN}:leaf", "value": fact.leaf}},
        "type": _coding(f"{TERMS}/audit-entity-type", "2", "System Object"),
        "role": _coding(f"{TERMS}/object-role", "13", "Security Resource"),
        "name": f"line {fact.line} of {fact.ledger}",
        "detail": [{"type": key, "valueString": value} for key, value in fact.details.items()],
    }


def _statement(fact: Fact) -> list[dict[str, Any]]:
    """What travelled, under the name that both sides signed."""
    if not fact.xid:
        return []
    entity = {
        "what": {"identifier": {"system": f"{OWN}:xid", "value": fact.xid}},
        "type": _coding(f"{TERMS}/audit-entity-type", "2", "System Object"),
        "role": _coding(f"{TERMS}/object-role", "3", "Report"),
        "name": fact.statement.get("kind") or "statement",
    }
    if fact.sense.lifecycle:
        entity["lifecycle"] = _coding(f"{TERMS}/dicom-audit-lifecycle", fact.sense.lifecycle)
    return [entity]


def _study(fact: Fact) -> list[dict[str, Any]]:
    """What it was done for."""
    if not fact.study:
        return []
    round_ = "" if fact.record.round is None else f", round {fact.record.round}"
    return [
        {
            "what": {"identifier": {"system": f"{OWN}:study", "value": fact.study}},
            "type": _coding(f"{TERMS}/audit-entity-type", "2", "System Object"),
            "role": _coding(f"{TERMS}/object-role", "20", "Job"),
            "name": f"study{round_}",
        }
    ]


def _party(name: str) -> dict[str, Any]:
    return {"identifier": {"system": f"{OWN}:party", "value": name}, "display": name}


def _coding(system: str, code: str, display: str = "") -> dict[str, str]:
    return {"system": system, "code": code} | ({"display": display} if display else {})
