"""One thing that was looked at to see whether a hospital is ready, and what to do about it."""

from collections.abc import Callable
from dataclasses import dataclass

from models.errors import IntramuralError


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: What.
        ok: Whether it is as it must be.
        found: What was found.
        fix: What to do; empty if nothing.
    """

    what: str
    ok: bool
    found: str
    fix: str = ""


def look(what: str, at: Callable[[], str]) -> Finding:
    """Look at one thing.

    Args:
        what: Its name.
        at: Says what was found, or raises what is wrong with it.
    """
    try:
        return Finding(what, True, at())
    except IntramuralError as error:
        return Finding(what, False, str(error), error.hint)
