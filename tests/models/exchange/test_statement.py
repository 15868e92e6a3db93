"""A statement says one thing in one way, and its signature covers every word of it."""

import contextlib
import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.canonical import canonical
from models.errors import BadSignature, Malformed
from models.exchange.statement import GENESIS, Kind, Statement, receipt_bytes, signing_bytes
from models.ledger import Signer

NORTH = Signer.from_seed("north", b"n" * 32)
STATEMENT = Statement(
    study="ab" * 32,
    round=3,
    kind=Kind.UPDATE,
    src="north",
    dst="aggregator",
    n=4,
    prev="cd" * 32,
    answers="ef" * 32,
    body="12" * 32,
    payload="34" * 32,
    nbytes=1000,
)
FIELDS = [item.name for item in dataclasses.fields(Statement)]
CHANGES: dict[str, Any] = {
    "study": "ac" * 32,
    "round": 4,
    "kind": "report",
    "src": "south",
    "dst": "coordinator",
    "n": 5,
    "prev": GENESIS,
    "answers": None,
    "body": "13" * 32,
    "payload": None,
    "nbytes": 1001,
}


def raw(**changes: Any) -> dict[str, Any]:
    return {**STATEMENT.values(), **changes}


def test_a_statement_that_was_encoded_reads_as_itself() -> None:
    assert Statement.decode(STATEMENT.encode()) == STATEMENT


def test_every_field_has_a_change_in_the_table() -> None:
    assert set(CHANGES) | {"v"} == set(FIELDS)


@pytest.mark.parametrize("field", CHANGES)
def test_a_change_of_one_field_breaks_the_signature(field: str) -> None:
    signature = NORTH.sign(signing_bytes(STATEMENT.xid))
    changed = Statement.decode(canonical(raw(**{field: CHANGES[field]})))
    assert changed.xid != STATEMENT.xid
    NORTH.verifier.verify(signing_bytes(STATEMENT.xid), signature)
    with pytest.raises(BadSignature):
        NORTH.verifier.verify(signing_bytes(changed.xid), signature)


def test_a_receipt_is_not_a_statements_signature() -> None:
    with pytest.raises(BadSignature):
        NORTH.verifier.verify(signing_bytes(STATEMENT.xid), NORTH.sign(receipt_bytes(STATEMENT.xid)))


@pytest.mark.parametrize("field", FIELDS)
def test_a_statement_without_one_of_its_fields_is_refused(field: str) -> None:
    content = raw()
    del content[field]
    with pytest.raises(Malformed):
        Statement.decode(canonical(content))


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"extra": 1},
        {"round": -1},
        {"n": 0},
        {"nbytes": -1},
        {"n": "4"},
        {"round": 3.5},
        {"kind": "order.offered"},
        {"src": "North"},
        {"dst": "a b"},
        {"prev": "cd" * 31},
        {"body": "CD" * 32},
        {"study": None},
    ],
    ids=str,
)
def test_an_impossible_statement_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        Statement.decode(canonical(raw(**change)))


@pytest.mark.parametrize("field", ["round", "n", "nbytes"])
def test_a_number_that_canonical_json_cannot_hold_is_refused(field: str) -> None:
    content = json.dumps(raw(**{field: 10**30}), sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(Malformed):
        Statement.decode(content)


def test_a_statement_can_be_written_in_no_second_way() -> None:
    content = STATEMENT.encode()
    ways = [
        json.dumps(raw()).encode(),
        content + b"\n",
        b" " + content,
        content.decode().encode("utf-16"),
        content.replace(b'"n":4', b'"n":4.0'),
        content.replace(b'"n":4', b'"n":4,"n":4'),
        content.replace(b"update", b"\\u0075pdate"),
        canonical({key: value for key, value in raw().items() if key != "v"}),
    ]
    for way in ways:
        with pytest.raises(Malformed):
            Statement.decode(way)


@given(content=st.binary(max_size=80) | st.text(max_size=80).map(str.encode))
def test_what_is_no_statement_is_refused(content: bytes) -> None:
    with pytest.raises(Malformed):
        Statement.decode(content)


@given(position=st.integers(0, len(STATEMENT.encode()) - 1), byte=st.integers(0, 255))
def test_one_changed_byte_gives_no_statement_or_another_one(position: int, byte: int) -> None:
    content = bytearray(STATEMENT.encode())
    if content[position] == byte:
        return
    content[position] = byte
    with contextlib.suppress(Malformed):
        assert Statement.decode(bytes(content)).xid != STATEMENT.xid
