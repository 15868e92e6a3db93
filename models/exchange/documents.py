"""The documents that travel: what is asked of a hospital, and what it says has left.

An *agreement* is what a hospital approves; its digest is the study's identity. An *order* is one
visit under it. A *manifest* lists, in full, what leaves with an update (or, without arrays, with a
report of metrics). A *survey* tells in bands what a hospital could train on. A *refusal* is one word. A
*closing* says how each side counts the exchange.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Annotated, Any, Literal, Self, cast, get_args

from pydantic import AfterValidator, AllowInfNan, Field, StringConstraints, ValidationError, model_validator

from models.canonical import canonical, digest, object_once
from models.errors import Malformed, is_wire_code
from models.exchange.spec import Spec, TensorSpec
from models.exchange.survey import BEYOND, CELLS, TableName, Total, band
from models.plan import MetricName, Plan
from models.settings import Settings

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]

MAX_DOCUMENT = 16 * 2**20  # bytes; a manifest of ten thousand arrays is about 2 MB


class Document(Settings):
    """A record that travels as JSON."""

    v: Literal[1] = 1

    def encode(self) -> bytes:
        """Canonical JSON (RFC 8785)."""
        return self._encoded

    @cached_property
    def _encoded(self) -> bytes:
        return canonical(self.model_dump(mode="json"))

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Another document, which is encoded anew."""
        copied = super().model_copy(update=update, deep=deep)
        for name in vars(copied).keys() - type(self).model_fields.keys():
            del vars(copied)[name]
        return copied

    @classmethod
    def decode(cls, content: bytes) -> Self:
        """Read a document.

        Raises:
            Malformed: Not JSON, or not this document. Names no value: it may be a stranger's.
        """
        if len(content) > MAX_DOCUMENT:
            raise Malformed(f"a {cls.__name__} of {len(content)} bytes is above the limit of {MAX_DOCUMENT}")
        try:
            json.loads(content, object_pairs_hook=object_once)
            return cls.model_validate_json(content, strict=True)
        except ValidationError as error:
            # Only our own word for the place: an unknown key, and pydantic's text, are the sender's words.
            place = next(iter(error.errors()[0]["loc"]), None)
            where = place if place in cls.model_fields else "not its form"
            raise Malformed(f"is no valid {cls.__name__}: {where}") from None
        except (ValueError, RecursionError):
            raise Malformed(f"is no valid {cls.__name__}: not JSON") from None


class Agreement(Document):
    """What a hospital approves: the plan, who signs the orders, and the model it starts from."""

    plan: Plan
    coordinator_key: str  # C2SP verifier key
    initial: Digest  # of the first model
    spec: Digest  # of the arrays' names and shapes

    @model_validator(mode="before")
    @classmethod
    def _of_the_first_studies(cls, given: Any) -> Any:
        """An agreement that names no encoding is older than encodings, and its digest stands."""
        plan = given.get("plan") if isinstance(given, dict) else None
        return {**given, "plan": {"encoding": "float32", **plan}} if isinstance(plan, dict) else given

    @cached_property
    def study(self) -> str:
        """The study's identity: SHA-256 (hex) of this document."""
        return digest(self.encode())


VisitKind = Literal["survey", "train", "evaluate", "close"]


class Order(Document):
    """One visit to a silo.

    `survey` asks, in round 0, what it could train on; `train` for an update, `evaluate` for metrics, `close`
    for a farewell. With SCAFFOLD, `train` names the last round whose model took the silo's update.
    """

    agreement: Agreement
    round: Annotated[int, Field(ge=0)]
    visit: VisitKind
    base: Digest  # of the model that comes with it (none comes with `survey` and `close`: of the newest)
    witnesses: Digest | None = None  # of the roster of hospitals whose cosignatures come with it
    counted: Annotated[int | None, Field(ge=1, exclude_if=lambda value: value is None)] = None

    @model_validator(mode="after")
    def _counted_before(self) -> Self:
        if self.counted is not None and self.counted >= self.round:
            raise ValueError("counted: must be a round before this one")
        return self

    @classmethod
    def decode(cls, content: bytes) -> Self:
        """Read an order.

        Raises:
            Malformed: Not JSON, or no order.
        """
        return cast(Self, _read_order(content))


@lru_cache(maxsize=2)  # in a simulation every hospital is sent the same bytes
def _read_order(content: bytes) -> Order:
    return super(Order, Order).decode(content)


class Examples(Settings):
    """How many, as a closed band; an exact count has low == high."""

    unit: Literal["patients", "images", "silos"]
    low: Annotated[float, AllowInfNan()]
    high: Annotated[float, AllowInfNan()]

    @property
    def weight(self) -> float:
        """The band's middle, the weight of the silo in a mean."""
        return (self.low + self.high) / 2


class Tensor(Settings):
    """One array that leaves: enough to recognise it, nothing of its content but a digest and a norm."""

    name: str
    shape: list[int]
    dtype: Literal["float32"] = "float32"
    bytes: int
    sha256: Digest
    l2: float


class Filter(Settings):
    """One step that the gate applied, in order."""

    name: Literal["clip", "noise", "bfloat16", "compact"]
    bound: float | None = None  # clip: L2 bound on the whole update; compact: on a number, in ranges of its array
    sd: float | None = None  # noise: Gaussian standard deviation per element


class Privacy(Settings):
    """Differential privacy spent, with the silo's whole update as the unit (not a patient)."""

    unit: Literal["silo"] = "silo"
    epsilon: float
    delta: float


MAX_METRIC = 1e9
"""No metric is larger; such a number would spoil the mean of all."""


class Manifest(Document):
    """All that leaves a silo in one visit. Without `digest` it is a report: metrics and no arrays.

    In a study that takes partial work, an update tells `work`, the share of the planned local work that was done, in
    whole tenths, rounded down: finer, it would tell how many images there are. `precision` is told where training was
    done in less than float32, `batched` where it was one computation with that of other hospitals, as only a
    simulation does it.
    """

    base: Digest
    spec: Digest
    digest: Digest | None = None
    norm: float | None = None
    tensors: list[Tensor] = []
    filters: list[Filter] = []
    examples: Examples | None = None
    work: Annotated[float | None, Field(ge=0, le=1, exclude_if=lambda value: value is None)] = None
    precision: Annotated[Literal["bfloat16"] | None, Field(exclude_if=lambda value: value is None)] = None
    batched: Annotated[bool, Field(exclude_if=lambda value: not value)] = False
    evaluated: Examples | None = None
    metrics: dict[MetricName, float] = {}
    withheld: list[MetricName] = []
    privacy: Privacy | None = None
    software: dict[str, str] = {}

    def matches(self, spec: Spec) -> bool:
        """Whether the listed arrays are exactly the spec's."""
        return tuple(TensorSpec(t.name, tuple(t.shape)) for t in self.tensors) == spec.tensors


class Band(Settings):
    """A count as one of the bands in which counts are told."""

    low: Annotated[int, Field(ge=1)]
    high: int

    def __str__(self) -> str:
        return f"{self.low}-{self.high}"

    @model_validator(mode="after")
    def _is_a_band(self) -> Self:
        if (self.low, self.high) not in (band(self.low), band(BEYOND)):
            raise ValueError("is none of the bands")
        return self


class Survey(Document):
    """What a silo could train on: counts of the images that the study could use, and tables of their patients.

    Every table has all its cells. A cell that is None is not told: it has fewer than `least` patients, or
    hides another one that has.
    """

    least: Annotated[int, Field(ge=1)]
    totals: dict[Total, Band] = {}
    tables: dict[TableName, dict[str, Band | None]] = {}

    @property
    def fields(self) -> list[str]:
        """What it tells, in alphabetical order."""
        return sorted([*self.totals, *self.tables])

    def lines(self, classes: Sequence[str]) -> dict[tuple[str, str], str]:
        """What it tells, for people, in a fixed order.

        Args:
            classes: The plan's, in order.

        Returns:
            By what is counted and the cell ("" of a total): the band, such as `11-19`, or `hidden`.
        """
        found = {(name, ""): f"{self.totals[name]}" for name in get_args(Total) if name in self.totals}
        for name in get_args(TableName):
            cells = self.tables.get(name, {})
            names = [cell for cell in CELLS.get(name, classes) if cell in cells]
            what = f"patients by {name.replace('_', ' ')}"
            found |= {(what, cell): "hidden" if cells[cell] is None else f"{cells[cell]}" for cell in names}
        return found

    @model_validator(mode="after")
    def _closed(self) -> Self:
        for name, cells in self.tables.items():
            if name in CELLS and set(cells) != set(CELLS[name]):
                raise ValueError(f"{name} has other cells than a survey")
        told = [cell for cells in self.tables.values() for cell in cells.values() if cell]
        if any(cell.high < self.least for cell in [*told, *self.totals.values()]):
            raise ValueError("tells fewer than it may")
        return self


def _known(code: str) -> str:
    if not is_wire_code(code):
        raise ValueError("is none of the toolkit's codes")
    return code


class Refusal(Document):
    """A silo does not do what was asked; the code is all it says."""

    code: Annotated[str, AfterValidator(_known)]


class Closing(Document):
    """How a silo counts the exchange at the end of a study."""

    orders: int  # received, this one included
    replies: int  # sent before this one
    records: int  # in the silo's ledger so far
