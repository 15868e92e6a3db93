"""What a study may name, and the arguments it may give: a function's signature is the list of them.

Networks and augmentations are chosen in `study.toml` by name and keywords. A name is looked up in a table
that is part of the toolkit, a keyword in the signature of the function found there, and the value is checked
against the type and range written there. Nothing is evaluated, and nothing else can be reached.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from models.errors import ConfigError
from models.plan import Named


def find(table: Mapping[str, Callable[..., Any]], chosen: Named, key: str, what: str) -> Callable[..., Any]:
    """The function of a name.

    Args:
        table: Functions by the names that a study may give.
        chosen: What it gave.
        key: Where in the plan that stands, for the error.
        what: Such as "network", for the error.

    Raises:
        ConfigError: The table has no such name.
    """
    if chosen.name not in table:
        raise ConfigError(
            f"{key}.name: no {what} is called {chosen.name!r}", f"known {what}s: {', '.join(sorted(table))}"
        )
    return table[chosen.name]


def checked(
    function: Callable[..., Any], chosen: Named, key: str, more: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The arguments that a study gives, each checked against the function's keyword-only parameters.

    Args:
        function: Its keyword-only parameters are what a study may give.
        chosen: What the study gives.
        key: Where in the plan that stands, for the error.
        more: Types of further arguments, by name.

    Raises:
        ConfigError: An unknown argument, or a value of another type or range.
    """
    kinds = get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters.values()
    accepted = {p.name: kinds[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY} | dict(more or {})
    hint = f"arguments of {chosen.name}: {', '.join(sorted(accepted))}"
    found = {}
    for name, value in chosen.arguments.items():
        where = f"{key}.arguments.{name}"
        if name not in accepted:
            raise ConfigError(f"{where}: is not an argument of {chosen.name} (got {value!r})", hint)
        try:
            found[name] = TypeAdapter(accepted[name]).validate_python(value, strict=True)
        except ValidationError as error:
            raise ConfigError(f"{where}: {error.errors()[0]['msg']} (got {value!r})", hint) from error
    return found
