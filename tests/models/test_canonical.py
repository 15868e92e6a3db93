"""A value has one text, and only that text is read back."""

import json
import struct

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from models.canonical import canonical, parse

numbers = st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=8,
)


@given(json_values)
def test_canonical_json_is_read_back_as_what_was_written(value: object) -> None:
    assert parse(canonical(value)) == value
    assert canonical(parse(canonical(value))) == canonical(value)


doubles = st.integers(0, 2**64 - 1).map(lambda bits: struct.unpack("<d", struct.pack("<Q", bits))[0])


@given(json_values | st.floats() | doubles | st.integers() | st.text() | st.dictionaries(st.text(), st.text()))
def test_canonical_json_is_that_of_another_implementation(value: object) -> None:
    try:
        expected = rfc8785.dumps(value)  # type: ignore[arg-type]
    except ValueError:
        with pytest.raises(ValueError, match=r".+"):
            canonical(value)
    else:
        assert canonical(value) == expected


@pytest.mark.parametrize(
    "number",
    [0.0, -0.0, 5e-324, 1.7976931348623157e308, 1e20, 1e21, 123456789012345678901.0, 1e-6, 1e-7, 9.5e-7, 0.1, -12.5]
    + [float(f"{digits}e{power}") for digits in ("1", "1.5", "9.87654321") for power in range(-12, 25)],
)
def test_a_number_is_written_as_another_implementation_writes_it(number: float) -> None:
    assert canonical(number) == rfc8785.dumps(number)
    assert canonical(-number) == rfc8785.dumps(-number)


def test_canonical_json_is_that_of_the_standard() -> None:
    # RFC 8785 section 3.2.2, as far as JSON text goes.
    value = {
        "numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": '\u20ac$\u000f\nA\'B"\\\\"/',
        "literals": [None, True, False],
    }
    assert canonical(value).decode() == (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )


@given(json_values)
def test_of_all_ways_to_write_a_value_only_the_canonical_one_is_read(value: object) -> None:
    for ascii_only in (True, False):
        for separators in ((",", ":"), (", ", ": ")):
            written = json.dumps(value, ensure_ascii=ascii_only, separators=separators, sort_keys=True).encode()
            if written == canonical(value):
                assert canonical(parse(written)) == written
            else:
                with pytest.raises(ValueError, match=r".+"):
                    parse(written)


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":1e2}',
        b'{"a":-0}',
        b'{"a":-0.0}',
        b'{"a":1.50}',
        b'{"a":2.0}',
        b'{"a":1e-05}',
        b'{"a":1e+16}',
        b"9007199254740993",
        b'{"a":100000000000000000000000}',
    ],
)
def test_a_number_in_another_than_its_canonical_form_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="canonical"):
        parse(data)


def nested() -> list[object]:
    value: list[object] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "value", [float("nan"), float("-inf"), 2**53, b"bytes", {1: 2}, {"a": {3}}, "\ud800", nested()]
)
def test_what_has_no_canonical_json_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r".+"):
        canonical(value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b'{"a": 1}',
        b'{"b":1,"a":1}',
        b'{"a":1,"a":1}',
        b"1.0",
        b"NaN",
        b'"\\u0041"',
        b"1e999",
        b'"\\ud800"',
        b"\xff",
        b"[" * 10**5,
    ],
)
def test_json_that_is_not_canonical_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse(data)


def test_keys_are_in_the_order_of_utf_16_and_not_of_unicode() -> None:
    ordered = '{"é":1,"\U0001f600":2,"\ue000":3}'.encode()
    assert canonical(parse(ordered)) == ordered
    with pytest.raises(ValueError, match="canonical"):
        parse('{"é":1,"\ue000":3,"\U0001f600":2}'.encode())


@pytest.mark.parametrize("data", [b"0.0001", b"0.00001", b"1e-7", b"-0.5", b"10000000000000000", b"1e+21", b"[0.1,2]"])
def test_a_number_in_its_canonical_form_is_read(data: bytes) -> None:
    assert canonical(parse(data)) == data
