"""A ledger in the words of other systems: each record true to its line, valid in its format, nothing added."""

import base64
import getpass
import json
import re
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, cast
from xml.etree import ElementTree as Xml

import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.exports import FORMATS, RENDERS, Fact, export, facts
from aggregator.exports.cef import in_header, in_value
from aggregator.exports.dicom import audit_message
from aggregator.exports.fact import MAX_TEXT, SENSES
from aggregator.exports.fhir import audit_event
from models.canonical import parse
from models.errors import ConfigError, Rewritten
from models.exchange import wire
from models.exchange.documents import Manifest, Refusal
from models.exchange.statement import Kind, Statement
from models.ledger import Entry, Event, Ledger, Opened, Signer, leaf_hash, read, verify_inclusion

HOSTILE = "\x00\x1b[2J\r\n<script>alert(1)</script> ]]> a|b=c\\ \u202egnp.exe \ufffe 'x' \"y\" " + "long " * 400


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger with a line of every event, whose owner wrote into it whatever could do harm."""
    folder = tmp_path_factory.mktemp("hostile") / "ledger"
    with Ledger.create(folder, Signer.from_seed("mallory", bytes(32)), {"policy": HOSTILE}) as ledger:
        bodies: list[dict[str, Any]] = [
            {"statement": {"src": HOSTILE, "dst": HOSTILE, "kind": "update", "nbytes": -1, "body": "../../etc"}},
            {"statement": {"src": ["list"], "dst": None, "nbytes": "many"}, "code": HOSTILE, "silo": {}},
            {"statement": "none", "metrics": {HOSTILE: HOSTILE}, "inputs": [HOSTILE, 3, None, {"silo": []}]},
            {"code": 7, "name": True, "purpose": HOSTILE, "weight": 1e308, "recipient": HOSTILE},
        ]
        for event in Event:
            if event is not Event.LOG_OPENED:
                for body in bodies:
                    ledger.append(Entry(event, body, study="ab" * 32, round=3))
    return folder


@pytest.fixture
def eventful(toy: Callable[..., Any]) -> Iterator[Any]:
    """A study in which one hospital was refused, one refused and one said nothing."""
    world = toy(rounds=1, min_silos=1, deadline=0.3)
    refuse = Refusal(code="round-limit")
    world.poison("east", lambda h, o, a: wire.pack(h.update(o, a, base="ab" * 32)), round_=1)
    world.poison("west", lambda h, o, a: wire.pack(h.offer(o, Kind.REFUSAL, refuse, None, answers=a)), round_=1)
    world.hospitals["south"].silent = True
    world.run()
    return world


@pytest.fixture(params=["hospital", "aggregator", "hostile"])
def opened(request: pytest.FixtureRequest, finished: Path, hostile: Path) -> Opened:
    """One ledger after the other."""
    places = {"hospital": finished / "north", "aggregator": finished / "toy" / "ledger", "hostile": hostile}
    return read(places[request.param])


def of(opened: Opened, event: Event) -> list[Fact]:
    return [fact for fact in facts(opened) if fact.record.event == event]


# What every format has in common


def test_every_event_that_a_ledger_can_hold_has_its_sense_in_words() -> None:
    assert set(SENSES) == set(Event)
    assert len({sense.words for sense in SENSES.values()}) == len(Event)


@pytest.mark.parametrize("name", sorted(RENDERS))
def test_a_file_has_one_line_of_text_for_each_line_of_the_ledger(name: str, opened: Opened, tmp_path: Path) -> None:
    path = tmp_path / "out"
    assert export(opened.folder, name, path) == opened.head.size
    lines = path.read_bytes().split(b"\n")
    assert lines.pop() == b""
    assert len(lines) == opened.head.size
    assert all(line.decode().isprintable() or name == "jsonl" for line in lines)


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_is_exported_of_a_ledger_that_was_rewritten(name: str, begun: Any, tmp_path: Path) -> None:
    begun.close()
    path = begun.folder / "north" / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"round":1', b'"round":2', 1))
    with pytest.raises(Rewritten):
        export(path.parent, name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", sorted(RENDERS))
def test_an_export_says_nothing_of_the_machine_that_it_was_made_on(name: str, opened: Opened) -> None:
    said = b"\n".join(RENDERS[name](fact) for fact in facts(opened)).decode()
    for word in (socket.gethostname(), getpass.getuser(), str(opened.folder), str(Path.cwd()), str(Path.home())):
        if len(word) > 4:  # `root` and the like stand in a ledger for good reasons
            assert word not in said


def test_a_text_in_a_ledger_can_be_neither_endless_nor_invisible(hostile: Path) -> None:
    for fact in facts(read(hostile)):
        values = [fact.source, fact.destination, fact.peer, fact.code, *fact.details.values()]
        assert all(len(value) <= MAX_TEXT and value.isprintable() for value in values)


def test_what_left_is_told_with_its_filters_counts_and_metrics(finished: Path) -> None:
    opened = read(finished / "north")
    (first, *_), manifests = of(opened, Event.UPDATE_OFFERED), []
    assert first.manifest is not None
    manifests.append(first.manifest)
    assert (first.source, first.destination, first.party, first.peer) == ("north", "aggregator", "north", "aggregator")
    statement = Statement.parse(first.record.body["statement"])
    assert (first.xid, first.payload, first.nbytes) == (statement.xid, statement.payload, statement.nbytes)
    assert first.details["filters"] == "clip 10"
    assert first.details["examples"] == "17 images"
    assert first.details["tensors"] == "3"
    assert first.details["metrics"] == "auc 0.67, loss 0.5"


def test_a_lost_manifest_costs_its_details_and_not_the_export(begun: Any) -> None:
    begun.close()
    folder = begun.folder / "north"
    for path in (folder / "manifests").iterdir():
        path.unlink()
    (fact,) = of(read(folder), Event.UPDATE_OFFERED)
    assert fact.manifest is None
    assert "filters" not in fact.details
    assert fact.nbytes


def test_who_refused_was_rejected_or_kept_silent_is_told_with_the_code(eventful: Any) -> None:
    opened = read(eventful.folder / "toy" / "ledger")
    told = {
        fact.peer: (fact.sense.outcome.value, fact.code)
        for event in (Event.REPLY_REJECTED, Event.REFUSAL_RECEIVED, Event.SILO_SILENT)
        for fact in of(opened, event)
        if fact.record.round == 1
    }
    assert told == {
        "east": ("failed", "stale-base"),
        "west": ("refused", "round-limit"),
        "south": ("refused", ""),
    }
    own = [fact for fact in of(read(eventful.folder / "west"), Event.REFUSAL_OFFERED) if fact.record.round == 1]
    assert [(fact.code, fact.details["code"]) for fact in own] == [("round-limit", "round-limit")]


# JSON lines


def test_a_line_of_json_can_still_be_proven_to_stand_in_the_ledger(opened: Opened) -> None:
    for fact in facts(opened):
        line = RENDERS["jsonl"](fact)
        value = parse(line)  # canonical, or this raises
        assert (value["ledger"], value["line"]) == (opened.head.origin, fact.line)
        signed = line[line.index(b'"record":') + len(b'"record":') : -1]
        assert leaf_hash(signed).hex() == value["leaf"]
        proof = opened.tree.inclusion(fact.line - 1)
        assert verify_inclusion(leaf_hash(signed), fact.line - 1, opened.head.size, proof, opened.head.root)


# Parquet


def test_pandas_reads_the_table_and_finds_the_numbers_of_the_ledger(finished: Path, tmp_path: Path) -> None:
    opened = read(finished / "north")
    path = tmp_path / "north.parquet"
    assert export(finished / "north", "parquet", path) == opened.head.size
    table = pandas.read_parquet(path)
    assert list(table.line) == [record.seq + 1 for record in opened.records]
    assert list(table.leaf) == [record.leaf.hex() for record in opened.records]
    assert list(table.record) == [record.line.decode() for record in opened.records]
    assert list(table.time) == [datetime.fromisoformat(record.ts) for record in opened.records]
    left = table[table.event == "update.offered"]
    lines = [record for record in opened.records if record.event == Event.UPDATE_OFFERED]
    manifests = [Manifest.decode(opened.manifest(record.body["statement"]["body"])) for record in lines]
    assert len(lines) == 3
    assert list(left["round"]) == [1, 2, 3]
    assert list(left.nbytes) == [record.body["statement"]["nbytes"] for record in lines]
    assert list(left.norm) == [manifest.norm for manifest in manifests]
    assert list(left.metric_loss) == [manifest.metrics["loss"] for manifest in manifests]
    assert list(left.examples_low) == [manifest.examples.low for manifest in manifests if manifest.examples]
    assert table[table.event == "log.opened"].nbytes.isna().all()
    assert left.metric_accuracy.isna().all()


def test_a_table_of_the_worst_ledger_is_still_a_table(hostile: Path, tmp_path: Path) -> None:
    export(hostile, "parquet", tmp_path / "t.parquet")
    assert len(pandas.read_parquet(tmp_path / "t.parquet")) == read(hostile).head.size


def test_without_pyarrow_a_table_is_refused_with_what_to_install(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError) as caught:
        export(finished / "north", "parquet", tmp_path / "t.parquet")
    assert "pyarrow" in str(caught.value)
    assert "pip install 'intramural[parquet]'" in caught.value.hint
    assert not (tmp_path / "t.parquet").exists()


# FHIR: what fhir.resources does not check stands in the tables of FHIR R4 (4.0.1), copied by hand

TERMS = "http://terminology.hl7.org/CodeSystem/"
DCM = "http://dicom.nema.org/resources/ontology/DCM"
CODES: Mapping[str, set[str]] = {
    DCM: {f"1101{number:02}" for number in (*range(15), *range(20, 43), *range(50, 56))},
    f"{TERMS}iso-21089-lifecycle": {
        *("access", "hold", "amend", "archive", "attest", "decrypt", "deidentify", "deprecate", "destroy"),
        *("disclose", "encrypt", "extract", "link", "merge", "originate", "pseudonymize", "reactivate", "receive"),
        *("reidentify", "unhold", "report", "restore", "transform", "transmit", "unlink", "unmerge", "verify"),
    },
    f"{TERMS}v3-ActReason": {"HRESCH"},
    f"{TERMS}security-source-type": {str(number) for number in range(1, 10)},
    f"{TERMS}audit-entity-type": {"1", "2", "3", "4"},
    f"{TERMS}object-role": {str(number) for number in range(1, 25)},
    f"{TERMS}dicom-audit-lifecycle": {str(number) for number in range(1, 16)},
    "urn:intramural:event": {event.value for event in Event},
}
EVENT_TYPES = {"110100", "110106", "110107", "110113"}  # of CID 400: activity, export, import, alert


def codings(value: Any) -> Iterator[tuple[str, str]]:
    """Every coding in a resource."""
    if isinstance(value, dict):
        if "code" in value and "system" in value:
            yield value["system"], value["code"]
        for item in value.values():
            yield from codings(item)
    elif isinstance(value, list):
        for item in value:
            yield from codings(item)


def complaints(resource: dict[str, Any]) -> list[str]:
    """What R4 forbids in an AuditEvent and fhir.resources lets through."""
    found = [f"{system} has no {code}" for system, code in codings(resource) if code not in CODES.get(system, ())]
    if resource.get("action") not in set("CRUDE"):
        found.append("action")
    if resource.get("outcome") not in {"0", "4", "8", "12"}:
        found.append("outcome")
    if resource["type"]["code"] not in EVENT_TYPES:
        found.append("type")
    if not re.fullmatch(r"[A-Za-z0-9.-]{1,64}", resource["id"]):
        found.append("id")
    if sum(agent["requestor"] for agent in resource["agent"]) < 1:
        found.append("nobody asked for it")
    return found


def test_every_line_is_a_valid_fhir_audit_event(opened: Opened) -> None:
    model: Any = pytest.importorskip("fhir.resources.R4B.auditevent", reason="pip install fhir.resources").AuditEvent
    for fact in facts(opened):
        text = RENDERS["fhir"](fact)
        model.model_validate_json(text)
        assert complaints(json.loads(text)) == []


def test_the_fhir_tables_find_codes_that_do_not_exist(finished: Path) -> None:
    good = audit_event(of(read(finished / "north"), Event.UPDATE_OFFERED)[0])
    assert complaints(good) == []
    for change in (
        {"outcome": "banana"},
        {"action": "X"},
        {"id": "ü"},
        {"type": {"system": DCM, "code": "110199"}},
        {"subtype": [{"system": f"{TERMS}iso-21089-lifecycle", "code": "leak"}]},
        {"agent": [{"requestor": False}]},
    ):
        assert complaints({**good, **change})


def test_a_fhir_audit_event_says_who_gave_what_to_whom(finished: Path) -> None:
    fact = of(read(finished / "north"), Event.UPDATE_OFFERED)[1]
    event = audit_event(fact)
    assert event["type"]["code"] == "110106"
    assert event["recorded"] == fact.record.ts
    roles = {agent["type"]["coding"][0]["code"]: agent["who"]["display"] for agent in event["agent"]}
    assert roles == {"110153": "north", "110152": "aggregator"}
    assert event["source"]["observer"]["display"] == "north"
    line, statement, study = event["entity"]
    assert event["id"] == line["what"]["identifier"]["value"] == fact.leaf
    assert statement["what"]["identifier"]["value"] == fact.xid
    assert statement["lifecycle"]["code"] == "10"
    assert study["what"]["identifier"]["value"] == fact.record.study
    details = {item["type"]: item["valueString"] for item in line["detail"]}
    assert details == dict(fact.details)


# DICOM: the schema of PS3.15 A.5.1, told here as tables of elements and attributes

TOKEN, BOOLEAN, BASE64 = r"\S(.*\S)?", "true|false", r"[A-Za-z0-9+/]+={0,2}"
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
CODE = {"csd-code": TOKEN, "codeSystemName": TOKEN, "originalText": TOKEN, "displayName?": TOKEN}
ONE_TO = {count: "|".join(str(number) for number in range(1, count + 1)) for count in (4, 5, 15, 26)}
SCHEMA: Mapping[str, tuple[Mapping[str, str], str]] = {  # attributes (? may be absent), and a pattern of the children
    "AuditMessage": (
        {},
        "EventIdentification (ActiveParticipant )+AuditSourceIdentification (ParticipantObjectIdentification )*",
    ),
    "EventIdentification": (
        {"EventActionCode?": "[CRUDE]", "EventDateTime": TIME, "EventOutcomeIndicator": "0|4|8|12"},
        "EventID (EventTypeCode )*(EventOutcomeDescription )?",
    ),
    "ActiveParticipant": (
        {
            "UserID": ".*",
            "AlternativeUserID?": ".*",
            "UserName?": ".*",
            "UserIsRequestor": BOOLEAN,
            "NetworkAccessPointID?": TOKEN,
            "NetworkAccessPointTypeCode?": ONE_TO[5],
        },
        "(RoleIDCode )*(MediaIdentifier )?",
    ),
    "AuditSourceIdentification": (
        {"AuditEnterpriseSiteID?": TOKEN, "AuditSourceID": TOKEN},
        "(AuditSourceTypeCode )*",
    ),
    "AuditSourceTypeCode": ({"csd-code": "[1-9]"}, ""),
    "ParticipantObjectIdentification": (
        {
            "ParticipantObjectID": TOKEN,
            "ParticipantObjectTypeCode?": ONE_TO[4],
            "ParticipantObjectTypeCodeRole?": ONE_TO[26],
            "ParticipantObjectDataLifeCycle?": ONE_TO[15],
            "ParticipantObjectSensitivity?": TOKEN,
        },
        "ParticipantObjectIDTypeCode (ParticipantObjectName |ParticipantObjectQuery )(ParticipantObjectDetail )*",
    ),
    "ParticipantObjectDetail": ({"type": TOKEN, "value": BASE64}, ""),
    "EventOutcomeDescription": ({}, ""),
    "ParticipantObjectName": ({}, ""),
    **dict.fromkeys(("EventID", "EventTypeCode", "RoleIDCode", "ParticipantObjectIDTypeCode"), (CODE, "")),
}


def against_schema(element: Xml.Element) -> list[str]:
    """Where an element breaks the schema."""
    if element.tag not in SCHEMA:
        return [f"{element.tag} is unknown"]
    attributes, children = SCHEMA[element.tag]
    known = {name.rstrip("?"): pattern for name, pattern in attributes.items()}
    found = [
        f"{element.tag}: {name} is missing" for name in attributes if "?" not in name and name not in element.attrib
    ]
    found += [
        f"{element.tag}: {name} is {value!r}"
        for name, value in element.attrib.items()
        if name not in known or not re.fullmatch(known[name], value)
    ]
    if not re.fullmatch(children, "".join(f"{child.tag} " for child in element)):
        found.append(f"{element.tag} has {[child.tag for child in element]}")
    return found + [problem for child in element for problem in against_schema(child)]


def test_every_line_is_an_audit_message_by_the_schema_of_dicom(opened: Opened) -> None:
    for fact in facts(opened):
        text = RENDERS["dicom"](fact)
        assert text.startswith(b'<?xml version="1.0" encoding="UTF-8"?><AuditMessage>')
        message = Xml.fromstring(text)
        assert against_schema(message) == []
        assert (DCM, message.find("EventIdentification/EventID").get("csd-code")) in {  # type: ignore[union-attr]
            (DCM, code) for code in EVENT_TYPES
        }


def test_the_schema_of_dicom_finds_what_is_wrong(finished: Path) -> None:
    fact = of(read(finished / "north"), Event.UPDATE_OFFERED)[0]

    def broken(path: str, change: Callable[[Xml.Element], object]) -> list[str]:
        message = audit_message(fact)
        change(cast(Xml.Element, message.find(path)))
        return against_schema(message)

    assert against_schema(audit_message(fact)) == []
    assert broken("EventIdentification", lambda e: e.set("EventOutcomeIndicator", "5"))
    assert broken("EventIdentification/EventID", lambda e: e.attrib.pop("originalText"))
    assert broken("ActiveParticipant", lambda e: e.attrib.pop("UserIsRequestor"))
    assert broken("ParticipantObjectIdentification/ParticipantObjectDetail", lambda e: e.set("value", "plain text"))
    assert broken("ParticipantObjectIdentification", lambda e: e.remove(e[1]))
    assert broken("AuditSourceIdentification", lambda e: Xml.SubElement(e, "Unknown"))


def test_a_dicom_message_says_who_gave_what_to_whom(finished: Path) -> None:
    opened = read(finished / "toy" / "ledger")
    fact = of(opened, Event.UPDATE_RECEIVED)[0]
    message = audit_message(fact)
    roles = {
        cast(Xml.Element, person.find("RoleIDCode")).get("csd-code"): person.get("UserID")
        for person in message.findall("ActiveParticipant")
    }
    assert roles == {"110153": fact.source, "110152": "aggregator"}
    assert cast(Xml.Element, message.find("AuditSourceIdentification")).get("AuditSourceID") == opened.head.origin
    objects = {
        item.get("ParticipantObjectTypeCodeRole"): item for item in message.iter("ParticipantObjectIdentification")
    }
    assert {role: item.get("ParticipantObjectID") for role, item in objects.items()} == {
        "13": fact.leaf,
        "3": fact.xid,
        "20": fact.record.study,
    }
    assert objects["3"].get("ParticipantObjectDataLifeCycle") == "12"
    details = {
        item.get("type"): base64.b64decode(str(item.get("value"))).decode()
        for item in objects["13"].iter("ParticipantObjectDetail")
    }
    assert details == dict(fact.details)


# CEF


def split_header(line: str) -> list[str]:
    """The seven fields of a CEF header and the extension, unescaped, as the format's text says."""
    fields, current, escaped = [], "", False
    for place, char in enumerate(line):
        if escaped:
            current, escaped = current + char, False
        elif char == "\\":
            escaped = True
        elif char == "|":
            fields.append(current)
            current = ""
            if len(fields) == 7:
                return [*fields, line[place + 1 :]]
        else:
            current += char
    raise AssertionError("no seven fields")


def split_extension(text: str) -> dict[str, str]:
    """Keys and values of an extension, unescaped."""
    keys = list(re.finditer(r"(?:^| )([A-Za-z0-9]+)=", re.sub(r"\\.", "..", text, flags=re.DOTALL)))
    ends = [key.start() for key in keys[1:]] + [len(text)]
    meant = {"n": "\n", "r": "\r"}
    return {
        key.group(1): re.sub(r"\\(.)", lambda m: meant.get(m.group(1), m.group(1)), text[key.end() : end])
        for key, end in zip(keys, ends, strict=True)
    }


@given(st.text(), st.text())
def test_whatever_stands_in_a_cef_line_is_read_back_as_it_was(one: str, two: str) -> None:
    header = "|".join(in_header(field) for field in ("CEF:0", one, two, "d", "e", "f", "g"))
    extension = f"first={in_value(one)} second={in_value(two)}"
    *fields, rest = split_header(f"{header}|{extension}")
    assert fields == ["CEF:0", " ".join(one.splitlines()), " ".join(two.splitlines()), "d", "e", "f", "g"]
    assert split_extension(rest) == {"first": one, "second": two}


def test_a_cef_line_says_who_gave_what_to_whom(finished: Path) -> None:
    fact = of(read(finished / "north"), Event.UPDATE_OFFERED)[0]
    *header, extension = split_header(RENDERS["cef"](fact).decode())
    assert header[:2] + header[4:] == ["CEF:0", "Intramural", "update.offered", "A model update left the hospital", "3"]
    values = split_extension(extension)
    assert (values["shost"], values["dhost"], values["dvchost"]) == ("north", "aggregator", "north")
    assert (values["out"], values["externalId"]) == (str(fact.nbytes), str(fact.line))
    assert (values["cs4Label"], values["cs4"], values["fileHash"]) == ("xid", fact.xid, fact.payload)
    assert datetime.fromtimestamp(int(values["rt"]) / 1000, datetime.fromisoformat(fact.record.ts).tzinfo) == (
        datetime.fromisoformat(fact.record.ts)
    )


def test_no_text_in_a_ledger_can_add_a_field_to_a_cef_line(hostile: Path) -> None:
    for fact in facts(read(hostile)):
        *header, extension = split_header(RENDERS["cef"](fact).decode())
        assert header[4] == fact.record.event.value
        values = split_extension(extension)
        assert values["shost"] == fact.source
        assert values.get("reason", "") == fact.code
        assert "c" not in values  # of a|b=c in the hostile text
