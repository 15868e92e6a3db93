"""A sweep, as `sweep.toml` says it: one study, what is changed in it, and the seeds.

study = "study.toml"
sites = ["hospitals/*/site.toml"]
seeds = [1, 2, 3]

[[arms]]
strategy.name = "fedavg"

[[arms]]
strategy.name = "fedprox"
strategy.mu = [0.001, 0.01]                # an arm for each

[every]
training.learning_rate = [0.001, 0.01]     # each of them with each of these
"""

from typing import Annotated, Any

from pydantic import Field, field_validator

from aggregator.simulation import Consortium
from models.plan import MetricName


class Sweep(Consortium):
    """What is compared; faults strike every run."""

    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1)]
    processes: Annotated[int, Field(ge=1, le=1024)] = 1  # runs at the same time; each takes one core
    metric: MetricName | None = None  # what is compared; the study's AUC or Dice, or else its first, if absent
    target: float | None = None  # of "rounds to target"; what the first arm reached in the end if absent
    arms: Annotated[list[dict[str, Any]], Field(min_length=1)]  # keys of the study; the first is compared with
    every: dict[str, Any] = {}  # keys of the study that are tried with every arm

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) != len(seeds):
            raise ValueError("must be distinct")
        return seeds
