"""DICOM audit messages: the XML that hospitals' audit repositories take from every PACS (PS3.15 A.5).

The message follows the schema of PS3.15 A.5.1. It claims none of the event tables of A.5.3, which describe
images of patients; here no patient takes part. Values that the ledger's writer chose stand in base64, as
the standard wants them.
"""

import base64
from xml.etree import ElementTree as Xml

from aggregator.exports.fact import Fact
from aggregator.exports.fhir import OUTCOMES, ROLES, TYPES

OWN = "99INTRAMURAL"
"""Coding scheme of this toolkit's own words; `99` marks a private one (PS3.16 chapter 8)."""

SYSTEM_OBJECT = "2"
REPORT, SECURITY_RESOURCE, JOB = "3", "13", "20"
APPLICATION_SERVER = "4"


def dicom(fact: Fact) -> bytes:
    """One AuditMessage as XML, UTF-8, on one line, with its XML declaration."""
    text = Xml.tostring(audit_message(fact), encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>{text}'.encode()


def audit_message(fact: Fact) -> Xml.Element:
    """One AuditMessage (DICOM PS3.15 A.5.1)."""
    message, sense = Xml.Element("AuditMessage"), fact.sense
    event = Xml.SubElement(
        message,
        "EventIdentification",
        EventActionCode=sense.action,
        EventDateTime=fact.record.ts,
        EventOutcomeIndicator=OUTCOMES[sense.outcome],
    )
    _code(event, "EventID", *TYPES[sense.kind])
    _code(event, "EventTypeCode", fact.record.event.value, sense.words, OWN)
    description = Xml.SubElement(event, "EventOutcomeDescription")
    description.text = f"{sense.words}: {fact.code}" if fact.code else sense.words
    if fact.destination:
        _participant(message, "source", fact.source, fact)
        _participant(message, "destination", fact.destination, fact)
    else:
        _participant(message, "application", fact.party, fact)
    source = Xml.SubElement(
        message, "AuditSourceIdentification", AuditEnterpriseSiteID=fact.party, AuditSourceID=fact.ledger
    )
    Xml.SubElement(source, "AuditSourceTypeCode", {"csd-code": APPLICATION_SERVER})
    line = _object(message, fact.leaf, SECURITY_RESOURCE, "ledger-line", f"line {fact.line} of {fact.ledger}")
    for key, value in fact.details.items():
        Xml.SubElement(line, "ParticipantObjectDetail", type=key, value=base64.b64encode(value.encode()).decode())
    if fact.xid:
        name = fact.statement.get("kind") or "statement"
        _object(message, fact.xid, REPORT, "statement", name, fact.sense.lifecycle)
    if fact.study:
        round_ = "" if fact.record.round is None else f", round {fact.record.round}"
        _object(message, fact.study, JOB, "study", f"study{round_}")
    return message


def _code(parent: Xml.Element, tag: str, code: str, words: str, system: str = "DCM") -> None:
    values = {"csd-code": code, "codeSystemName": system, "originalText": words}
    Xml.SubElement(parent, tag, values)


def _participant(message: Xml.Element, role: str, name: str, fact: Fact) -> None:
    requestor = "true" if name == fact.source else "false"
    _code(
        Xml.SubElement(message, "ActiveParticipant", UserID=name, UserIsRequestor=requestor), "RoleIDCode", *ROLES[role]
    )


def _object(message: Xml.Element, id_: str, role: str, kind: str, name: str, lifecycle: str = "") -> Xml.Element:
    values = {
        "ParticipantObjectID": id_,
        "ParticipantObjectTypeCode": SYSTEM_OBJECT,
        "ParticipantObjectTypeCodeRole": role,
    }
    if lifecycle:
        values["ParticipantObjectDataLifeCycle"] = lifecycle
    found = Xml.SubElement(message, "ParticipantObjectIdentification", values)
    _code(found, "ParticipantObjectIDTypeCode", kind, kind, OWN)
    Xml.SubElement(found, "ParticipantObjectName").text = name
    return found
