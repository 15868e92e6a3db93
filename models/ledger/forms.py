"""What a JSON value must look like, said once: as a check that runs here and as JSON Schema for others.

    POINT = record({"x": NUMBER, "y": NUMBER}, {"label": text("[a-z]+")})
    POINT.valid({"x": 1, "y": 2.5})      # True
    POINT.schema                         # {"type": "object", "properties": ...}, draft 2020-12

A form is closed: a key that it does not name is an error.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_LARGEST = 2**53 - 1  # of an integer in canonical JSON


@dataclass(frozen=True)
class Form:
    """One kind of JSON value.

    Attributes:
        schema: JSON Schema of it, draft 2020-12.
        valid: Whether a value, as `canonical.parse` gives it, is of this kind.
    """

    schema: dict[str, Any]
    valid: Callable[[Any], bool]


def text(pattern: str, longest: int | None = None) -> Form:
    """Text that a regular expression describes from its first character to its last.

    Args:
        pattern: Without anchors; of what ECMA-262 and Python read alike.
        longest: Most characters, if the pattern does not say it.
    """
    whole = re.compile(pattern)
    limit = {} if longest is None else {"maxLength": longest}
    return Form(
        {"type": "string", "pattern": f"^(?:{pattern})$", **limit},
        lambda value: (
            isinstance(value, str) and (longest is None or len(value) <= longest) and whole.fullmatch(value) is not None
        ),
    )


def hexadecimal(digits: int) -> Form:
    """Bytes as that many lower-case hexadecimal digits."""
    return text(f"[0-9a-f]{{{digits}}}", digits)


def count(smallest: int = 0) -> Form:
    """A whole number, at least this."""
    return Form(
        {"type": "integer", "minimum": smallest, "maximum": _LARGEST},
        lambda value: type(value) is int and smallest <= value <= _LARGEST,  # True is an int too, and no count
    )


def number(above: float | None = None) -> Form:
    """A number, greater than this."""
    return Form(
        {"type": "number"} if above is None else {"type": "number", "exclusiveMinimum": above},
        lambda value: type(value) in (int, float) and (above is None or value > above),
    )


def one_of(*values: str | int) -> Form:
    """One of these values and no other."""
    known = frozenset(values)
    return Form(
        {"const": values[0]} if len(values) == 1 else {"enum": list(values)},
        lambda value: isinstance(value, str | int) and not isinstance(value, bool) and value in known,
    )


def optional(form: Form) -> Form:
    """That, or null."""
    return Form({"anyOf": [form.schema, NULL.schema]}, lambda value: value is None or form.valid(value))


def either(first: Form, second: Form) -> Form:
    """One of two."""
    return Form({"anyOf": [first.schema, second.schema]}, lambda value: first.valid(value) or second.valid(value))


def many(form: Form) -> Form:
    """A list of them, perhaps empty."""
    return Form(
        {"type": "array", "items": form.schema},
        lambda value: isinstance(value, list) and all(form.valid(item) for item in value),
    )


def mapping(name: Form, form: Form) -> Form:
    """Any number of values of one kind, each under a name."""
    return Form(
        {"type": "object", "propertyNames": name.schema, "additionalProperties": form.schema},
        lambda value: (
            isinstance(value, dict) and all(name.valid(key) and form.valid(item) for key, item in value.items())
        ),
    )


def record(required: Mapping[str, Form], extra: Mapping[str, Form] | None = None) -> Form:
    """An object with these keys.

    Args:
        required: Keys that must be there.
        extra: Keys that may be there. No other key may.
    """
    known = {**required, **(extra or {})}
    needed = set(required)
    return Form(
        {
            "type": "object",
            "properties": {name: form.schema for name, form in known.items()},
            "required": list(required),
            "additionalProperties": False,
        },
        lambda value: (
            isinstance(value, dict)
            and needed <= value.keys() <= known.keys()
            and all(known[key].valid(item) for key, item in value.items())
        ),
    )


def narrowed(form: Form, key: str, to: Form) -> Form:
    """A record, one of whose required values must be of a narrower kind."""
    return Form(
        {"allOf": [form.schema, {"properties": {key: to.schema}}]},
        lambda value: form.valid(value) and to.valid(value[key]),
    )


TRUE = Form({"const": True}, lambda value: value is True)
NULL = Form({"type": "null"}, lambda value: value is None)
ANY_OBJECT = Form({"type": "object"}, lambda value: isinstance(value, dict))
