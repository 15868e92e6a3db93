"""Every word that a ledger can say, and the JSON Schema that tells it to other programs.

An event's line has the keys of its row here and no others, so whoever reads a ledger in ten years, or hands
it to a log collector today, knows all that can stand in it. `intramural-audit verify` finds a line that says
anything else.

    explain(record)     # "" or what is wrong with the line
    json_schema()       # draft 2020-12, one definition per event

Digests are SHA-256 and signatures Ed25519, both as lower-case hexadecimal digits.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.ledger.events import Event, Record
from models.ledger.forms import (
    ANY_OBJECT,
    NULL,
    TRUE,
    Form,
    count,
    either,
    hexadecimal,
    many,
    mapping,
    narrowed,
    number,
    one_of,
    optional,
    record,
    text,
)

_SHARED: dict[str, Form] = {}


def _shared(name: str, form: Form) -> Form:
    _SHARED[name] = form
    return Form({"$ref": f"#/$defs/{name}"}, form.valid)


DIGEST = _shared("digest", hexadecimal(64))
SIGNATURE = _shared("signature", hexadecimal(128))
NAME = _shared("name", text("[a-z0-9][a-z0-9-]{0,62}"))
VKEY = _shared("vkey", text(r"[^\s+]+\+[0-9a-f]{8}\+[A-Za-z0-9+/]{44}", 200))
CODE = _shared("code", text(r"[a-z][a-z0-9-]*(\.[a-z-]+)?", 100))
KINDS = ("order", "update", "report", "survey", "refusal", "closing")

STATEMENT = _shared(
    "statement",
    record(
        {
            "v": one_of(1),
            "study": DIGEST,
            "round": count(),
            "kind": one_of(*KINDS),
            "src": NAME,
            "dst": NAME,
            "n": count(1),
            "prev": DIGEST,
            "answers": optional(DIGEST),
            "body": DIGEST,
            "payload": optional(DIGEST),
            "nbytes": count(),
        }
    ),
)

_WORD = text("[A-Za-z0-9][A-Za-z0-9_.+-]{0,62}")
_PURPOSE = Form(
    {"type": "string", "minLength": 1, "maxLength": 500}, lambda value: isinstance(value, str) and 0 < len(value) <= 500
)
_NOTE = Form({"type": "string"}, lambda value: isinstance(value, str))  # others may have signed it below
_SOFTWARE = record({"name": _WORD, "version": _WORD, "python": _WORD})


def _offered(kind: str) -> dict[str, Form]:
    return {"statement": narrowed(STATEMENT, "kind", one_of(kind)), "signature": SIGNATURE, "size": count(1)}


def _received(*kinds: str) -> dict[str, Form]:
    return {
        "statement": narrowed(STATEMENT, "kind", one_of(*kinds)),
        "signature": SIGNATURE,
        "receipt": SIGNATURE,
        "head": _NOTE,
        "size": count(),
        "root": DIGEST,
        "seen": count(),
        "missed": count(),
    }


_COSIGNED = {"cosignature": hexadecimal(144)}
_METRICS = {"metrics": mapping(_WORD, number()), "evaluated": number(above=0)}
_FILE = record(
    {
        "name": text(r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)*", 200),
        "sha256": DIGEST,
        "bytes": count(),
    }
)
_STRATEGY = record(
    {"name": _WORD, "mu": number()},
    {
        "local_norm": TRUE,
        **dict.fromkeys(("server_learning_rate", "server_momentum", "eta", "tau", "beta_1", "beta_2"), number()),
        **dict.fromkeys(("beta", "q", "client_learning_rate"), number()),
        "malicious": count(),
        "select": count(1),
    },
)
_INPUT = record({"silo": NAME, "xid": DIGEST, "digest": DIGEST, "weight": number(above=0)})


@dataclass(frozen=True)
class _Row:
    """What the lines of one event hold besides what all lines hold."""

    body: Form
    study: Form = DIGEST
    round: Form = NULL


_ROUND = count()

ROWS: Mapping[Event, _Row] = {
    Event.LOG_OPENED: _Row(
        record({"origin": text(r"[^\n]+", 200), "vkey": VKEY, "software": _SOFTWARE}, {"policy": ANY_OBJECT}), NULL
    ),
    Event.POLICY_CHANGED: _Row(record({"policy": ANY_OBJECT}), NULL),
    Event.STUDY_CREATED: _Row(record({"agreement": DIGEST, "name": NAME, "model": DIGEST})),
    Event.SILO_ENROLLED: _Row(record({"name": NAME, "vkey": VKEY})),
    Event.STUDY_APPROVED: _Row(
        record(
            {
                "agreement": DIGEST,
                "name": NAME,
                "purpose": _PURPOSE,
                "recipient": NAME,
                "recipient_key": VKEY,
                "policy": DIGEST,
                "by": one_of("person", "policy"),
            },
            {"decision": DIGEST},
        )
    ),
    Event.STUDY_REVOKED: _Row(record({"name": NAME, "by": one_of("person"), "decision": DIGEST})),
    Event.ORDER_OFFERED: _Row(record(_offered("order")), round=_ROUND),
    Event.ORDER_RECEIVED: _Row(record(_received("order"), _COSIGNED), round=_ROUND),
    Event.ORDER_REJECTED: _Row(record({"code": CODE}, {"evidence": DIGEST}), NULL),
    Event.UPDATE_OFFERED: _Row(record({**_offered("update"), "base": DIGEST}), round=_ROUND),
    Event.UPDATE_RECEIVED: _Row(
        record(
            {**_received("update"), "base": DIGEST, "digest": DIGEST, "weight": number(above=0)},
            _COSIGNED | _METRICS | {"work": number()},
        ),
        round=_ROUND,
    ),
    Event.REPORT_OFFERED: _Row(record(_offered("report")), round=_ROUND),
    Event.REPORT_RECEIVED: _Row(record(_received("report"), _COSIGNED | _METRICS), round=_ROUND),
    Event.SURVEY_OFFERED: _Row(record(_offered("survey")), round=_ROUND),
    Event.SURVEY_RECEIVED: _Row(record(_received("survey"), _COSIGNED), round=_ROUND),
    Event.REFUSAL_OFFERED: _Row(record(_offered("refusal")), round=_ROUND),
    Event.REFUSAL_RECEIVED: _Row(record({**_received("refusal"), "code": CODE}, _COSIGNED), round=_ROUND),
    Event.CLOSING_OFFERED: _Row(record(_offered("closing")), round=_ROUND),
    Event.CLOSING_RECEIVED: _Row(record(_received("closing"), _COSIGNED), round=_ROUND),
    Event.REPLY_REJECTED: _Row(
        either(
            record({**_received(*KINDS), "code": CODE}, _COSIGNED),
            record({"silo": NAME, "order": DIGEST, "code": CODE}),
        ),
        round=_ROUND,
    ),
    Event.SILO_SILENT: _Row(record({"silo": NAME, "order": DIGEST}), round=_ROUND),
    Event.EXCHANGE_RECEIPT: _Row(record({"xid": DIGEST, "receipt": SIGNATURE})),
    Event.AGGREGATED: _Row(
        record(
            {
                "inputs": many(_INPUT),
                "excluded": many(NAME),
                "strategy": _STRATEGY,
                "base": DIGEST,
                "model": DIGEST,
            },
            {"state": mapping(_WORD, DIGEST), "selected": many(NAME), "asked": many(NAME)},
        ),
        round=_ROUND,
    ),
    Event.ROUND_VOID: _Row(
        record(
            {"accepted": many(NAME), "excluded": many(NAME), "required": count(1), "model": DIGEST},
            {"asked": many(NAME)},
        ),
        round=_ROUND,
    ),
    Event.STUDY_CLOSED: _Row(record({"model": DIGEST}), round=_ROUND),
    Event.MODEL_RELEASED: _Row(record({"model": DIGEST, "files": many(_FILE)}), round=_ROUND),
}
assert set(ROWS) == set(Event)


def explain(line: Record) -> str:
    """What a line says that its event cannot say; nothing if all is well."""
    row = ROWS[line.event]
    for part, form, value in (
        ("study", row.study, line.study),
        ("round", row.round, line.round),
        ("body", row.body, line.body),
    ):
        if not form.valid(value):
            return f"{line.event} does not say what it must: its {part} has another form"
    return ""


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of one line of a ledger: one definition per event."""
    shared = {name: form.schema for name, form in _SHARED.items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A line of an Intramural ledger, v1",
        "description": "Each line of ledger.jsonl is one such object as canonical JSON (RFC 8785).",
        "oneOf": [{"$ref": f"#/$defs/{event}"} for event in ROWS],
        "$defs": {**shared, **{event.value: _line(event, row) for event, row in ROWS.items()}},
    }


def _line(event: Event, row: _Row) -> dict[str, Any]:
    whole = record(
        {
            "v": one_of(1),
            "seq": count(),
            "prev": DIGEST,
            "ts": text("[0-9]{4}(-[0-9]{2}){2}T[0-9]{2}(:[0-9]{2}){2}Z", 20),
            "salt": hexadecimal(32),
            "event": one_of(event.value),
            "study": row.study,
            "round": row.round,
            "body": row.body,
        }
    )
    return {"description": event.about, **whole.schema}
