"""The study plan: everything a hospital is asked to agree to, in one file that both sides read.

The coordinator writes it as `study.toml`. It travels, whole, inside every order; a hospital approves
its digest, and what it then trains is decided by the plan alone: an order adds the round, the base
model and nothing else.
"""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from models.settings import ByteSize, Settings

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
"""A study or a party: lower-case letters, digits and hyphens."""

Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")]

MetricName = Literal["loss", "auc", "accuracy"]


class Network(Settings):
    """A network by its registered name, with the arguments its constructor takes."""

    name: Word
    arguments: dict[str, bool | int | float | str | list[int] | list[float]] = {}


class Classification(Settings):
    """One label per 2-D image."""

    name: Literal["classification"]
    classes: Annotated[list[Word], Field(min_length=2)]
    modality: Annotated[list[str], Field(min_length=1)]
    size: tuple[Annotated[int, Field(ge=8, le=1024)], Annotated[int, Field(ge=8, le=1024)]]
    percentiles: tuple[float, float] | None = None  # of each image, mapped to 0..1
    window: tuple[float, float] | None = None  # centre and width in modality units, mapped to 0..1
    augment: bool = False  # random flips, small rotations and zooms of training images
    network: Network

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: list[str]) -> list[str]:
        if len(set(classes)) != len(classes):
            raise ValueError("must be distinct words")
        return classes

    @model_validator(mode="after")
    def _one_normalisation(self) -> Self:
        if (self.percentiles is None) == (self.window is None):
            raise ValueError("give either percentiles or window")
        if self.percentiles and not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError("percentiles must be two rising numbers from 0 to 100")
        if self.window and not self.window[1] > 0:
            raise ValueError("window must be a centre and a width above 0")
        return self


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
    mixed_precision: bool = False  # bfloat16 autocast, on CUDA only

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps")
        return self

    def in_round(self, round_: int) -> Self:
        """The same, with the learning rate of a round (from 1)."""
        return self.model_copy(update={"learning_rate": self.learning_rate * self.decay ** (round_ - 1)})


class Strategy(Settings):
    """How updates become the next model.

    `fedavg`: McMahan et al., AISTATS 2017 (arXiv 1602.05629). `fedprox`: Li et al., MLSys 2020
    (arXiv 1812.06127), which adds mu/2 * ||w - w0||^2 to each silo's loss; mu = 0 is FedAvg to the bit.
    """

    name: Literal["fedavg", "fedprox"] = "fedavg"
    mu: Annotated[float, Field(ge=0, le=100)] = 0.0

    @model_validator(mode="after")
    def _mu_belongs_to_fedprox(self) -> Self:
        if self.name == "fedavg" and self.mu != 0:
            raise ValueError('mu is of "fedprox" only; fedavg has none')
        return self


class Plan(Settings):
    """A study, as `study.toml` says it."""

    name: Name
    purpose: Annotated[str, Field(min_length=1, max_length=500)]  # in plain words, for the hospitals' approval
    coordinator: Name = "aggregator"  # the name that signs orders
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    rounds: Annotated[int, Field(ge=1, le=10_000)]
    min_silos: Annotated[int, Field(ge=1)] = 2  # fewer accepted updates make the round void
    deadline: Annotated[float, Field(gt=0)] = 3600.0  # seconds that a round waits for its silos
    weights: Literal["patients", "images", "equal"] = "images"
    metrics: Annotated[list[MetricName], Field(min_length=1)] = ["loss", "auc"]
    max_norm: Annotated[float, Field(gt=0)] = 100.0  # a longer update (L2) is refused as poisoned
    max_bytes: Annotated[ByteSize, Field(ge=1)] = 2 * 10**9  # a larger update is refused
    keep_updates: bool = False  # keep each silo's update after the round, for replay
    task: Classification
    training: Training
    strategy: Strategy = Strategy()

    @field_validator("deadline", "max_norm")
    @classmethod
    def _finite(cls, value: float) -> float:
        if not math.isfinite(value):
            raise ValueError("must be a finite number")
        return value
