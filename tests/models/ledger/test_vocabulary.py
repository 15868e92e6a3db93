"""A ledger can say what its published schema says, and no more; and both checks of it agree."""

import base64
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.canonical import canonical
from models.exchange.statement import Kind
from models.ledger import Event, Record
from models.ledger.forms import count, hexadecimal, many, mapping, narrowed, number, one_of, optional, record, text
from models.ledger.vocabulary import KINDS, ROWS, explain, json_schema
from models.plan import Strategy

SCHEMA = jsonschema.Draft202012Validator(json_schema())

D, S = "ab" * 32, "cd" * 64
VKEY = "north+0123abcd+" + base64.b64encode(b"\x01" + bytes(32)).decode()


def statement(kind: str) -> dict[str, Any]:
    values = {"v": 1, "study": D, "round": 1, "kind": kind, "src": "north", "dst": "aggregator", "n": 1, "prev": D}
    return {**values, "answers": D, "body": D, "payload": None, "nbytes": 10}


def offered(kind: str) -> dict[str, Any]:
    return {"statement": statement(kind), "signature": S, "size": 3}


def received(kind: str) -> dict[str, Any]:
    return {**offered(kind), "receipt": S, "head": "note\n", "root": D, "seen": 0, "missed": 0}


MEASURED = {"metrics": {"loss": 0.5, "auc": 1}, "evaluated": 12.5}
BODIES: dict[Event, dict[str, Any]] = {
    Event.LOG_OPENED: {
        "origin": "north",
        "vkey": VKEY,
        "software": {"name": "intramural", "version": "0.1.0", "python": "3.11.2"},
        "policy": {"studies": []},
    },
    Event.POLICY_CHANGED: {"policy": {}},
    Event.STUDY_CREATED: {"agreement": D, "name": "toy", "model": D},
    Event.SILO_ENROLLED: {"name": "north", "vkey": VKEY},
    Event.STUDY_APPROVED: {
        "agreement": D,
        "name": "toy",
        "purpose": "To test.",
        "recipient": "aggregator",
        "recipient_key": VKEY,
        "policy": D,
        "by": "person",
        "decision": D,
    },
    Event.STUDY_REVOKED: {"name": "toy", "by": "person", "decision": D},
    Event.ORDER_REJECTED: {"code": "bad-signature"},
    **{Event(f"{kind}.offered"): offered(kind) for kind in KINDS},
    **{Event(f"{kind}.received"): received(kind) for kind in KINDS},
    Event.UPDATE_OFFERED: {**offered("update"), "base": D},
    Event.UPDATE_RECEIVED: {**received("update"), "base": D, "digest": D, "weight": 1.5, **MEASURED},
    Event.REPORT_RECEIVED: {**received("report"), **MEASURED},
    Event.REFUSAL_RECEIVED: {**received("refusal"), "code": "round-limit"},
    Event.REPLY_REJECTED: {**received("update"), "code": "too-large.norm"},
    Event.SILO_SILENT: {"silo": "north", "order": D},
    Event.EXCHANGE_RECEIPT: {"xid": D, "receipt": S},
    Event.AGGREGATED: {
        "inputs": [{"silo": "north", "xid": D, "digest": D, "weight": 2}],
        "excluded": ["south"],
        "strategy": {"name": "fedprox", "mu": 0.1, "local_norm": True},
        "base": D,
        "model": D,
    },
    Event.ROUND_VOID: {"accepted": [], "excluded": ["north"], "required": 2, "model": D},
    Event.STUDY_CLOSED: {"model": D},
    Event.MODEL_RELEASED: {
        "model": D,
        "files": [{"name": "models/model.safetensors", "sha256": D, "bytes": 1024}],
    },
}


MAY_MISS = {
    Event.LOG_OPENED: {"policy"},  # a coordinator has none
    Event.STUDY_APPROVED: {"decision"},  # the policy's yes needs none
    Event.UPDATE_RECEIVED: {"metrics", "evaluated"},
    Event.REPORT_RECEIVED: {"metrics", "evaluated"},
}


def line(event: Event, body: dict[str, Any]) -> dict[str, Any]:
    study = D if ROWS[event].study.valid(D) else None
    round_ = 1 if ROWS[event].round.valid(1) else None
    values = {"v": 1, "seq": 4, "prev": D, "ts": "2026-11-22T13:53:01Z", "salt": "0" * 32, "event": event.value}
    return {**values, "study": study, "round": round_, "body": body}


def said(values: dict[str, Any]) -> str:
    """What the toolkit's own check says of a line."""
    try:
        return explain(Record.parse(canonical(values)))
    except ValueError as error:
        return str(error)


def test_the_schema_is_a_schema_with_a_definition_for_every_event() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    for event in Event:
        assert json_schema()["$defs"][event.value]["description"] == event.about != ""


def test_the_statements_kinds_are_those_of_the_exchange() -> None:
    assert list(KINDS) == [kind.value for kind in Kind]


@pytest.mark.parametrize("event", Event)
def test_a_line_of_every_event_is_allowed(event: Event) -> None:
    values = line(event, BODIES[event])
    assert said(values) == ""
    SCHEMA.validate(values)


@pytest.mark.parametrize("event", Event)
def test_an_unknown_key_or_one_too_few_is_not(event: Event) -> None:
    body = BODIES[event]
    assert said(line(event, {**body, "patient": "DOE^JOHN"}))
    assert not SCHEMA.is_valid(line(event, {**body, "patient": "DOE^JOHN"}))
    for missing in body:
        values = line(event, {key: value for key, value in body.items() if key != missing})
        assert (said(values) == "") == SCHEMA.is_valid(values) == (missing in MAY_MISS.get(event, ()))


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "fedadam", "fedtrimmedavg", "krum", "qfedavg"])
@pytest.mark.parametrize("more", [{}, {"local_norm": True}])
def test_a_line_says_every_parameter_of_its_strategy_and_nothing_else(name: str, more: dict[str, Any]) -> None:
    given = {"client_learning_rate": 0.1} if name == "qfedavg" else {}
    strategy = Strategy.model_validate({"name": name, **given, **more}).model_dump(mode="json")
    rest = {"state": {"second-moment": D}, "selected": ["north"]}
    values = line(Event.AGGREGATED, {**BODIES[Event.AGGREGATED], **rest, "strategy": strategy})
    assert said(values) == ""
    SCHEMA.validate(values)
    for wrong in ({"eta": "fast"}, {"local_norm": 1}, {"patient": 1}, {"select": 0}):
        bad = line(Event.AGGREGATED, {**BODIES[Event.AGGREGATED], "strategy": {**strategy, **wrong}})
        assert said(bad)
        assert not SCHEMA.is_valid(bad)


def test_an_unknown_event_is_not_a_line() -> None:
    values = {**line(Event.STUDY_CLOSED, {"model": D}), "event": "study.deleted"}
    assert said(values)
    assert not SCHEMA.is_valid(values)


@pytest.mark.parametrize("event", [event for event in Event if "statement" in BODIES[event]])
def test_a_line_holds_a_statement_of_its_own_kind(event: Event) -> None:
    other = "order" if not event.startswith("order") else "update"
    values = line(event, {**BODIES[event], "statement": statement(other)})
    assert (said(values) == "") == SCHEMA.is_valid(values) == (event == Event.REPLY_REJECTED)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], by: Any) -> Any:
    if not path:
        return by
    if isinstance(value, dict):
        return {**value, path[0]: replaced(value[path[0]], path[1:], by)}
    return [replaced(item, path[1:], by) if place == path[0] else item for place, item in enumerate(value)]


anything = st.sampled_from(
    [None, True, 0, 1, -1, 1.5, 2**53, "", "north", "North", D, D.upper(), D + "0", S, "DOE^JOHN", [], ["north"], {}]
) | st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)


@given(st.data(), st.sampled_from(list(Event)))
def test_the_toolkits_check_and_the_schema_agree_on_changed_lines(data: st.DataObject, event: Event) -> None:
    values = line(event, BODIES[event])
    path = data.draw(st.sampled_from(list(places(values))[1:]))
    changed = replaced(values, path, data.draw(anything))
    try:
        canonical(changed)
    except ValueError:
        return  # no line can hold it
    assert (said(changed) == "") == SCHEMA.is_valid(changed)


FORMS = [
    text("[a-z]+", 3),
    hexadecimal(4),
    count(2),
    number(above=0),
    one_of("a", "b"),
    one_of(1),
    optional(count()),
    many(count()),
    mapping(text("[a-z]"), number()),
    record({"a": count()}, {"b": one_of("x")}),
    narrowed(record({"a": count()}), "a", one_of(1, 2)),
]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["a", "b", "x", "ab", "abcd", "12ab", "A", 0.5]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "c", "aa"]), inner),
    max_leaves=4,
)


@given(st.sampled_from(FORMS), json_values)
def test_a_form_and_its_schema_agree_on_any_value(form: Any, value: Any) -> None:
    assert form.valid(value) == jsonschema.Draft202012Validator(form.schema).is_valid(value)
