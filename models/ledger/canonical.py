"""One value, one text: JSON with exactly one way to write each value, so that a digest has one meaning.

RFC 8785 (JSON Canonicalization Scheme): keys sorted, no spaces, numbers as in ECMAScript. Two programs
that agree on a value agree on its bytes, and so on its SHA-256.
"""

import hashlib
import json
from typing import Any, NoReturn

import rfc8785

_SAFE = 2**53  # beyond it, JSON numbers are doubles: RFC 8785 appendix D


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
    try:
        return bytes(rfc8785.dumps(value))
    except RecursionError:
        raise ValueError("is nested too deeply, or contains itself") from None


def parse(data: bytes) -> Any:
    """Read canonical JSON, and nothing else: what it returns is written as exactly the same bytes.

    Args:
        data: UTF-8 bytes.

    Raises:
        ValueError: Not JSON, or JSON that `canonical` would have written otherwise.
    """
    try:
        value = json.loads(data.decode(), parse_int=_integer, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if canonical(value) != data:
        raise ValueError("is not canonical JSON (RFC 8785)")
    return value


def digest(data: bytes) -> str:
    """SHA-256 (FIPS 180-4) as 64 lower-case hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def _integer(text: str) -> int | float:
    # The float 1e16 is written 10000000000000000; read as an int, it could not be written again.
    number = int(text)
    return number if -_SAFE < number < _SAFE else float(text)


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")
