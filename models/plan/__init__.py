"""The study plan: everything a hospital is asked to agree to, in one file that both sides read.

The coordinator writes it as `study.toml`. It travels, whole, inside every order. A hospital approves the
digest of the agreement: this plan, the coordinator's key, the first model and the layout of its arrays. An
order adds the round, the visit, the base model, the roster of witnesses and, with SCAFFOLD, the round whose control
variate is the hospital's, and nothing else.
"""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from models.canonical import canonical
from models.plan.imaging import Augmentation, Classification, Imaging, Landmarks, Segmentation
from models.plan.strategy import Strategy
from models.plan.task import AnyTask, MetricName, Named, Network, TaskSettings, Unit, Word, register
from models.settings import ByteSize, Settings

Encoding = Literal["float32", "bfloat16", "compact"]
"""How finely the numbers of an update are told; `models.exchange.encoding` says what each does."""

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
"""A study or a party: lower-case letters, digits and hyphens."""


class Training(Settings):
    """What one silo does with the model in one round; give either `epochs` or `steps`."""

    epochs: Annotated[int, Field(ge=1, le=1000)] | None = None
    steps: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 16
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: Annotated[float, Field(gt=0, le=10)]
    decay: Annotated[float, Field(gt=0, le=1)] = 1.0  # multiplies the learning rate after every round
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0  # sgd only
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    mixed_precision: bool = False  # bfloat16, where the processor has it

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps")
        return self

    @property
    def cases(self) -> float:
        """Cases that a round takes at most, where it does not go through all of them; else infinite."""
        return math.inf if self.steps is None else self.steps * self.batch_size

    def in_round(self, round_: int) -> Self:
        """The same, with the learning rate of a round (from 1)."""
        return self.model_copy(update={"learning_rate": self.learning_rate * self.decay ** (round_ - 1)})


class Plan(Settings):
    """A study, as `study.toml` says it."""

    name: Name
    purpose: Annotated[str, Field(min_length=1, max_length=500)]  # in plain words, for the hospitals' approval
    coordinator: Name = "aggregator"  # the name that signs orders
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    rounds: Annotated[int, Field(ge=1, le=10_000)]
    min_silos: Annotated[int, Field(ge=1, le=10_000)] = 2  # fewer accepted updates make the round void
    deadline: Annotated[float, Field(gt=0)] = 3600.0  # seconds that a round waits for its silos
    stragglers: Annotated[Literal["drop", "partial"], Field(exclude_if=lambda value: value == "drop")] = "drop"
    # All if absent.
    silos_per_round: Annotated[int | None, Field(ge=1, le=10_000, exclude_if=lambda value: value is None)] = None
    weights: Literal["patients", "images", "equal"] = "images"
    metrics: Annotated[list[MetricName], Field(min_length=1)] = ["loss", "auc"]
    max_norm: Annotated[float, Field(gt=0)] = 100.0  # a longer update (L2) is refused as poisoned
    max_bytes: Annotated[ByteSize, Field(ge=1, lt=2**53)] = 2 * 10**9  # a larger update, in its encoding, is refused
    # How finely updates are told; spelt out in the agreement unless it is what the first studies had.
    encoding: Annotated[Encoding, Field(exclude_if=lambda value: value == "float32")] = "bfloat16"
    keep_updates: bool = False  # keep each silo's update after the round, for replay
    task: AnyTask
    training: Training
    strategy: Strategy = Strategy()

    @model_validator(mode="after")
    def _the_strategy_can_work(self) -> Self:
        if what := self.strategy.wants(self.min_silos, self.metrics):
            raise ValueError(what)
        return self

    @model_validator(mode="after")
    def _scaffold_is_that_of_the_paper(self) -> Self:
        plain = self.training.optimizer == "sgd" and self.training.momentum == 0
        if self.strategy.name == "scaffold" and not plain:
            raise ValueError('training: scaffold needs optimizer = "sgd" without momentum, whose steps are gradients')
        if self.strategy.name == "scaffold" and self.weights != "equal":
            raise ValueError(
                f'weights: must be "equal" with scaffold, whose control variate is the plain mean of the silos\' own '
                f'(got "{self.weights}")'
            )
        return self

    @model_validator(mode="after")
    def _enough_are_asked(self) -> Self:
        if self.silos_per_round is not None and self.silos_per_round < self.min_silos:
            raise ValueError(f"silos_per_round: must be at least min_silos = {self.min_silos}, or every round is void")
        return self

    @model_validator(mode="after")
    def _task_gives_the_metrics(self) -> Self:
        if other := [name for name in self.metrics if name not in self.task.gives]:
            raise ValueError(f"metrics: {self.task.name} gives {', '.join(sorted(self.task.gives))}, not {other[0]}")
        return self

    @model_validator(mode="after")
    def _has_a_digest(self) -> Self:
        canonical(self.model_dump(mode="json"))  # else some number is larger than any canonical JSON can tell
        return self


__all__ = [
    "Augmentation",
    "Classification",
    "Encoding",
    "Imaging",
    "Landmarks",
    "MetricName",
    "Name",
    "Named",
    "Network",
    "Plan",
    "Segmentation",
    "Strategy",
    "TaskSettings",
    "Training",
    "Unit",
    "Word",
    "register",
]
