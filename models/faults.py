"""What goes wrong in a simulation, as a researcher writes it down: `[[faults]]` of a simulation file.

    [[faults]]
    what = "slow"
    silos = ["north"]        # all if absent
    rounds = [2, 4]          # first and last; all if absent
    probability = 0.5        # with which it strikes each silo in each round; always if absent
    seed = 1
    factor = 4.0

    struck(faults, "north", round_)      # those that strike

Whether a fault strikes depends on its kind and seed, the silo's name and the round alone, so that a file says the same
on every machine; two of one kind with a probability need a seed each. Only a simulation takes faults (`silos.faults`);
no order can carry one.
"""

import hashlib
from collections.abc import Collection, Iterable
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from models.errors import ConfigError
from models.plan import Name
from models.settings import Settings


class Fault(Settings):
    """Whom a fault strikes, and when."""

    what: str
    silos: Annotated[list[Name], Field(min_length=1)] | None = None
    rounds: tuple[int, int] | None = None
    probability: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @model_validator(mode="after")
    def _first_to_last(self) -> Self:
        if self.rounds is not None and not 0 <= self.rounds[0] <= self.rounds[1]:
            raise ValueError("rounds must be the first round and the last one")
        return self

    def strikes(self, silo: str, round_: int) -> bool:
        """Whether it strikes a silo in a round of a study."""
        if self.silos is not None and silo not in self.silos:
            return False
        if self.rounds is not None and not self.rounds[0] <= round_ <= self.rounds[1]:
            return False
        return self.probability == 1 or chance(self.seed, self.what, silo, round_) < self.probability


class Absent(Fault):
    """The silo is not there: it gets no order and answers none. With a probability, drop-outs at random."""

    what: Literal["absent"]


class Slow(Fault):
    """The silo manages the `factor`-th part of its steps in time; it hands that in, or is late, as the study says."""

    what: Literal["slow"]
    factor: Annotated[float, Field(gt=1)]


class Crash(Fault):
    """An exception after so many steps of training."""

    what: Literal["crash"]
    step: Annotated[int, Field(ge=1)] = 1


class Garbage(Fault):
    """The answer is something else than an update.

    `bytes`: no envelope at all. The others are signed updates of numbers that nobody learnt: `nan`, `huge` (1e30 each),
    `noise` (drawn at random) and `opposite` (ten times the opposite of what was learnt). The last two are no longer
    than the study's `max_norm`, so that no check can object to them.
    """

    what: Literal["garbage"]
    content: Literal["bytes", "nan", "huge", "noise", "opposite"]


class Labels(Fault):
    """A part of the silo's labels is wrong: each becomes the next class, the last one the first."""

    what: Literal["labels"]
    fraction: Annotated[float, Field(gt=0, le=1)]


class Scanner(Fault):
    """Another scanner: intensities, as the network sees them, become `gain * x + bias + noise * N(0, 1)`."""

    what: Literal["scanner"]
    gain: float = 1.0
    bias: float = 0.0
    noise: Annotated[float, Field(ge=0)] = 0.0


AnyFault = Annotated[Absent | Slow | Crash | Garbage | Labels | Scanner, Field(discriminator="what")]
"""One fault, of the kind that `what` says."""


def concerning(faults: Iterable[Fault], silo: str) -> list[Fault]:
    """Those of some faults that may ever strike a silo."""
    return [fault for fault in faults if fault.silos is None or silo in fault.silos]


def struck(faults: Iterable[Fault], silo: str, round_: int) -> list[Fault]:
    """Those of some faults that strike a silo in a round."""
    return [fault for fault in faults if fault.strikes(silo, round_)]


def chance(*words: object) -> float:
    """A number from 0 to below 1 that is the same wherever the same words are given."""
    text = "/".join(str(word) for word in words)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def require_known(faults: Iterable[Fault], silos: Collection[str]) -> None:
    """See that every fault names silos that there are.

    Raises:
        ConfigError: One does not, so that it would never strike.
    """
    for fault in faults:
        if unknown := sorted(set(fault.silos or ()) - set(silos)):
            raise ConfigError(
                f"faults: silos: no silo is named {unknown[0]!r}", f"name one of {', '.join(sorted(silos))}"
            )
