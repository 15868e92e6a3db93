"""The arms of a sweep: the study with some of its keys changed, every one checked before anything runs.

An arm names keys of `study.toml`, as TOML writes them (`strategy.mu = 0.01`). A list is tried value by value, in every
combination with other lists; where the study's own value is a list (`metrics`, `task.size`), and of a network's
argument that the study does not give, a list is one value and a list of lists is tried value by value. An arm that
gives a table's `name` (`strategy.name`, `task.network.name`) starts with that table empty, because parameters belong to
what is named.
"""

import copy
import itertools
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from aggregator.sweep.settings import Sweep
from models.errors import ConfigError
from models.plan import Plan
from models.settings import flat

_FIXED = {
    "name": "hospitals allow a study by its name",
    "seed": "`seeds` says it",
    "coordinator": "it signs the orders",
}

_ARGUMENTS = "task.network.arguments."


@dataclass(frozen=True, eq=False)
class Arm:
    """One way to run the study.

    Attributes:
        label: What it is called in tables; no two have the same.
        changes: Dotted keys of the study, and their values.
        content: The study as TOML values, changed; its seed is still the study's.
    """

    label: str
    changes: Mapping[str, Any]
    content: Mapping[str, Any]

    @property
    def folder(self) -> str:
        """The label as the name of a folder."""
        return re.sub(r"[^A-Za-z0-9.=]+", "-", self.label).strip("-")

    def toml(self, seed: int) -> bytes:
        """The arm's `study.toml` for a seed."""
        return tomli_w.dumps({**self.content, "seed": seed}).encode()


def read_arms(sweep: Sweep, source: Path) -> list[Arm]:
    """Every arm of a sweep.

    Args:
        sweep: The sweep.
        source: Its file, for errors.

    Raises:
        ConfigError: The study, or a value that an arm gives, is wrong; or two arms are the same.
    """
    own = dict(flat(Plan.load(sweep.study).model_dump(mode="json")))
    with sweep.study.open("rb") as file:
        base = tomllib.load(file)
    arms: list[Arm] = []
    for number, given in enumerate(sweep.arms, start=1):
        table = dict(given)
        label = table.pop("label", None)
        keys = dict(flat(table)) | dict(flat(sweep.every))
        if fixed := [key for key in keys if key in _FIXED]:
            raise ConfigError(
                f"{source}: arms: number {number}: {fixed[0]}: cannot be changed by an arm: {_FIXED[fixed[0]]}",
                "leave it out",
            )
        choices = {key: _alternatives(key, value, own) for key, value in keys.items()}
        if empty := [key for key, values in choices.items() if not values]:
            raise ConfigError(
                f"{source}: arms: number {number}: {empty[0]}: an empty list tries nothing", "give it a value"
            )
        for values in itertools.product(*choices.values()):
            changes = dict(zip(choices, values, strict=True))
            told = changes if label is None else {key: changes[key] for key in choices if len(choices[key]) > 1}
            name = ", ".join(([str(label)] if label else []) + list(_words(told))) or "as planned"
            content = _changed(base, changes)
            Plan.parse(content, source=f"{source}: arms: number {number} ({name})", folder=sweep.study.parent)
            arms.append(Arm(name, changes, content))
    for one, other in itertools.combinations(arms, 2):
        if one.folder == other.folder:
            raise ConfigError(f"{source}: arms: two are called {one.label!r}", "remove one, or give each a `label`")
    return arms


def _alternatives(key: str, value: Any, own: Mapping[str, Any]) -> Sequence[Any]:
    of_lists = isinstance(value, list) and value and all(isinstance(item, list) for item in value)
    whole = isinstance(own[key], list) if key in own else key.startswith(_ARGUMENTS)
    return value if isinstance(value, list) and (of_lists or not whole) else [value]


def _changed(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    content = copy.deepcopy(dict(base))
    # Names first, since they empty their table.
    for key in sorted(changes, key=lambda key: (not key.endswith(".name"), key)):
        *path, last = key.split(".")
        table = content
        for part in path:
            inner = table.get(part)
            table[part] = inner if isinstance(inner, dict) else {}
            table = table[part]
        if last == "name":
            table.clear()
        table[last] = changes[key]
    return content


def _words(changes: Mapping[str, Any]) -> Iterator[str]:
    for key, value in changes.items():
        last = key.rpartition(".")[2]
        yield str(value) if last == "name" else f"{last}={value}"
