"""One value, one text: JSON with exactly one way to write each value, so that a digest has one meaning.

RFC 8785 (JSON Canonicalization Scheme): keys sorted, no spaces, numbers as in ECMAScript. Two programs
that agree on a value agree on its bytes, and so on its SHA-256. Written here with nothing but the standard
library, so that a stranger can check a ledger without trusting one package more.
"""

import hashlib
import json
import math
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from json.encoder import encode_basestring as _text  # escapes what RFC 8785 section 3.2.2.2 does, and no more
from typing import Any, NoReturn

_SAFE = 2**53  # beyond it, JSON numbers are doubles: RFC 8785 appendix D
_ENCODER = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), check_circular=False)
_WORDS = {None: "null", True: "true", False: "false"}


def canonical(value: Any) -> bytes:
    """Write a value as canonical JSON.

    Args:
        value: `None`, bool, int (at most 2**53 - 1 in size), finite float, str, list, tuple, or dict with
            str keys, nested at will.

    Returns:
        UTF-8 bytes (RFC 8785), without a newline.

    Raises:
        ValueError: NaN, infinity, a larger int, text that is not Unicode, or another type.
    """
    parts: list[str] = []
    try:
        _write(value, parts.append)
    except RecursionError:
        raise ValueError("is nested too deeply, or contains itself") from None
    return "".join(parts).encode()


def parse(data: bytes) -> Any:
    """Read canonical JSON, and nothing else: what it returns is written as exactly the same bytes.

    Args:
        data: UTF-8 bytes.

    Raises:
        ValueError: Not JSON, or JSON that `canonical` would have written otherwise.
    """
    try:
        text = data.decode()
        # Of almost all lines, the standard library's encoder writes the same as `canonical`, and is faster.
        if text.isascii() or len(text.encode("utf-16-le")) == 2 * len(text):  # else keys may have another order
            with suppress(_Unusual):
                value, _ = _DECODER.raw_decode(text)  # of what comes after it, the comparison knows
                if _ENCODER.encode(value).encode() == data:
                    return value
        value = json.loads(text, parse_int=_integer, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if canonical(value) != data:
        raise ValueError("is not canonical JSON (RFC 8785)")
    return value


def object_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object for `json.loads`; one in which a name stands twice could be read in two ways.

    Raises:
        ValueError: A name does.
    """
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a name stands there twice")
    return dict(pairs)


def digest(data: bytes) -> str:
    """SHA-256 (FIPS 180-4) as 64 lower-case hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def _write(value: Any, write: Callable[[str], None]) -> None:
    if isinstance(value, str):
        write(_text(value))
    elif value is None or isinstance(value, bool):
        write(_WORDS[value])
    elif isinstance(value, int):
        if not -_SAFE < value < _SAFE:
            raise ValueError(f"{value} is too large for JSON")
        write(int.__repr__(value))
    elif isinstance(value, float):
        write(_number(value))
    elif isinstance(value, dict):
        try:
            usual = "".join(value).isascii()  # then text has the order of its UTF-16
        except TypeError:
            raise ValueError("the keys of an object must be text") from None
        before = "{"
        for key in sorted(value) if usual else sorted(value, key=_utf16):
            write(f"{before}{_text(key)}:")
            _write(value[key], write)
            before = ","
        write("}" if value else "{}")
    elif isinstance(value, list | tuple):
        before = "["
        for item in value:
            write(before)
            _write(item, write)
            before = ","
        write("]" if value else "[]")
    else:
        raise ValueError(f"{type(value).__name__} is no JSON value")


def _utf16(key: str) -> bytes:
    return key.encode("utf-16-be")  # the order of RFC 8785 section 3.2.3


def _number(value: float) -> str:
    """ECMA-262 Number::toString: the digits that Python's repr has too, and another place for the point."""
    if not math.isfinite(value):
        raise ValueError(f"{value} is not JSON")
    mantissa, _, exponent = float.__repr__(abs(value)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    significant = (whole + fraction).lstrip("0")
    point = len(whole) + int(exponent or 0) - len(whole + fraction) + len(significant)
    digits = significant.rstrip("0")
    sign = "-" if value < 0 else ""
    if not digits:
        return "0"
    if len(digits) <= point <= 21:
        return sign + digits.ljust(point, "0")
    if 0 < point <= 21:
        return f"{sign}{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    return f"{sign}{digits[0]}{'.' * (len(digits) > 1)}{digits[1:]}e{point - 1:+d}"


def _integer(text: str) -> int | float:
    # The float 1e16 is written 10000000000000000; read as an int, it could not be written again.
    number = int(text)
    return number if -_SAFE < number < _SAFE else float(text)


class _Unusual(Exception):  # noqa: N818 - it says what it is
    """A number that Python may not write as ECMAScript does."""


@lru_cache(maxsize=1024)  # the same versions, rounds and sizes stand in line after line
def _whole(text: str) -> int:
    number = int(text)
    if not -_SAFE < number < _SAFE:
        raise _Unusual
    return number


def _fraction(text: str) -> float:
    number = float(text)
    if text != repr(number) or "e" in text or text.endswith(".0"):
        raise _Unusual
    return number


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


_DECODER = json.JSONDecoder(parse_int=_whole, parse_float=_fraction, parse_constant=_refuse)
