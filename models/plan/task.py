"""A study's `[task]`, whatever its kind: what every kind has, and how a kind is found by its name.

    [task]
    name = "segmentation"

The name decides which keys may follow. Classification and segmentation are known from the start. Any
other kind comes from a package that is installed on the machine: it names, as an entry point of the group
`intramural.tasks`, the module that registers the kind. Only the module of that one name is imported, and
nothing that is not installed can be named.
"""

import importlib
import json
from importlib.metadata import entry_points
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

from pydantic import (
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from models.errors import ConfigError
from models.settings import Settings

Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")]

MetricName = Literal["loss", "auc", "accuracy", "dice", "hausdorff95"]
"""`hausdorff95` is in mm; `loss` in the loss's own unit; the others run from 0 to 1."""

Unit = Literal["image", "volume", "either"]
"""What a case is made of: an image of one frame, a volume, or (`either`) a volume and where a series has one slice
only, that slice."""

GROUP = "intramural.tasks"
"""Entry points of further kinds of task: the kind's name, and the module that registers it."""


class Named(Settings):
    """Something of the toolkit by its registered name, with the arguments that it takes."""

    name: Word
    arguments: dict[str, bool | int | float | str | list[int] | list[float]] = {}


class Network(Named):
    """A network."""


class TaskSettings(Settings):
    """What every kind of task has. A kind fixes `name` to one word, and adds its own keys."""

    gives: ClassVar[frozenset[str]] = frozenset(get_args(MetricName))
    """The metrics that it can give; a plan cannot ask for others."""

    drawn: ClassVar[bool] = False
    """Whether a case has a mask that somebody drew on it; else it has one label."""

    unprepared: ClassVar[frozenset[str]] = frozenset({"modality", "classes", "network"})
    """Keys that `prepare` does not look at; a change of any other prepares every case anew."""

    name: Word
    classes: Annotated[list[Word], Field(min_length=1)]
    modality: Annotated[list[str], Field(min_length=1)]
    network: Network

    @property
    def unit(self) -> Unit:
        """What a case is made of."""
        return "image"

    @property
    def extent(self) -> str:
        """What the network sees at a time, in words for people."""
        return "as they are"

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: list[str]) -> list[str]:
        if len(set(classes)) != len(classes):
            raise ValueError("must be distinct words")
        return classes


_KINDS: dict[str, type[TaskSettings]] = {}

Kind = TypeVar("Kind", bound=TaskSettings)


def register(kind: type[Kind]) -> type[Kind]:
    """Make a kind of task known by the one word that its `name` may be.

    Raises:
        ConfigError: `name` is not one fixed word, or another kind has it.
    """
    words = get_args(kind.model_fields["name"].annotation)
    if len(words) != 1:
        raise ConfigError(f'{kind.__name__}.name: must be one word, as in name: Literal["my-task"]')
    known = _KINDS.setdefault(words[0], kind)
    if (known.__module__, known.__qualname__) != (kind.__module__, kind.__qualname__):
        raise ConfigError(f"{kind.__name__}.name: {words[0]!r} is the name of {known.__name__}", "choose another name")
    _KINDS[words[0]] = kind
    return kind


def kind_of(name: object) -> type[TaskSettings]:
    """The settings of a kind of task, from this package or an installed one.

    Raises:
        ConfigError: There is none of that name, or it cannot be imported.
    """
    if not isinstance(name, str) or name not in _KINDS:
        found = entry_points(group=GROUP)
        for module in sorted({point.module for point in found if point.name == name}):
            try:
                importlib.import_module(module)
            except Exception as error:  # whatever a stranger's module does
                raise ConfigError(f"the task is installed, but {module} cannot be imported: {error}") from error
        if not isinstance(name, str) or name not in _KINDS:
            known = sorted({*_KINDS, *(point.name for point in found)})
            raise ConfigError(f"no such task is installed; known: {', '.join(known)}")
    return _KINDS[name]


def _by_name(value: Any, _: ValidatorFunctionWrapHandler, info: ValidationInfo) -> TaskSettings:
    """The settings of the kind that they name; a table of the kind's own keys, or settings already made."""
    if isinstance(value, TaskSettings):
        return value
    if not isinstance(value, dict):
        raise ValueError("must be a table")
    if "name" not in value:
        raise _wrong("missing", value)
    try:
        kind = kind_of(value["name"])
    except ConfigError as error:
        raise _wrong(PydanticCustomError("task", "{reason}", {"reason": str(error)}), value["name"]) from None
    if info.mode == "json":  # what came over the wire is read strictly, and JSON has no tuples
        return kind.model_validate_json(json.dumps(value), strict=True, context=info.context)
    return kind.model_validate(value, context=info.context)


def _wrong(what: Any, value: object) -> ValidationError:
    return ValidationError.from_exception_data("task", [InitErrorDetails(type=what, loc=("name",), input=value)])


AnyTask = Annotated[SerializeAsAny[TaskSettings], WrapValidator(_by_name)]
"""The `[task]` of a plan: of the kind that its `name` says."""
