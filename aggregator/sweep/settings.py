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

from glob import glob
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from models.errors import ConfigError
from models.plan import MetricName
from models.settings import LocalPath, Settings


class Sweep(Settings):
    """What is compared."""

    study: LocalPath
    sites: Annotated[list[LocalPath], Field(min_length=1)]  # `*` stands for any name
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

    def found_sites(self) -> list[Path]:
        """Every hospital's `site.toml`, in the order of the patterns and then of names.

        Raises:
            ConfigError: A pattern fits nothing.
        """
        found: dict[Path, None] = {}
        for number, pattern in enumerate(self.sites, start=1):
            paths = sorted(glob(str(pattern)))
            if not paths:
                raise ConfigError(f"sites: {pattern} (number {number}): there is no such file", "correct the path")
            found |= dict.fromkeys(map(Path, paths))
        return list(found)
