"""A hospital's own configuration, `site.toml`: read here, never sent, never bundled.

What may leave stands in `[policy]`. Everything there is a permission, and what is not permitted is
forbidden: an absent key refuses.
"""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from models.errors import ConfigError
from models.exchange.survey import BANDS, SurveyField, band
from models.plan import MetricName, Name
from models.settings import ByteSize, LocalPath, Settings
from silos.keywords import keywords

Keyword = Annotated[str, Field(pattern=r"^[A-Z][A-Za-z0-9]{1,63}$")]
"""A DICOM keyword such as `SOPInstanceUID`."""


class Labels(Settings):
    """Where this hospital keeps its labels, and how it writes them."""

    file: LocalPath
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","
    join: Annotated[dict[Keyword, str], Field(min_length=1)]  # DICOM keyword -> column of the file
    value: str  # the column that holds the label
    words: Annotated[dict[str, str], Field(min_length=1)]  # this hospital's word -> the study's class

    @field_validator("join")
    @classmethod
    def _known_keywords(cls, join: dict[str, str]) -> dict[str, str]:
        unknown = sorted(join.keys() - keywords())
        if unknown:
            raise ValueError(f"{unknown[0]!r} is not a DICOM keyword")
        return join


class Annotations(Settings):
    """What was drawn on this hospital's images, and what it is called here."""

    kinds: Annotated[list[Literal["SEG", "RTSTRUCT"]], Field(min_length=1)] = ["SEG", "RTSTRUCT"]
    # A segment's name, or its code as "SCT:4147007", or "*" for all others -> the study's class; "" for none.
    words: Annotated[dict[str, str], Field(min_length=1)]
    fraction: Annotated[float, Field(gt=0, le=1)] = 0.5  # of its maximum, from which a fractional SEG counts as drawn


class Data(Settings):
    """What this hospital trains on."""

    root: LocalPath | None = None
    arrays: LocalPath | None = None  # instead of `root`: one file of arrays, for work on methods
    modality: list[str] = []
    salt: Annotated[str, Field(min_length=16)]
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.25
    burned_in: Literal["refuse", "allow-unmarked"] = "refuse"
    patients: LocalPath | None = None  # the PatientIDs that belong to this hospital, one a line; all if absent
    labels: Labels | None = None  # of studies with one label for each case
    annotations: Annotations | None = None  # of studies with a mask for each case

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if (self.root is None) == (self.arrays is None):
            raise ValueError("give either data.root or data.arrays")
        if self.arrays is not None:
            if self.labels or self.annotations or self.modality:
                raise ValueError("data.arrays holds its own labels, and has no modality; leave them out")
            return self
        if not self.modality:
            raise ValueError("data.modality: name at least one")
        if self.labels is None and self.annotations is None:
            raise ValueError("give data.labels, data.annotations or both")
        return self

    @property
    def folder(self) -> Path:
        """The folder with the DICOM files.

        Raises:
            ConfigError: There is none.
        """
        if self.root is None:
            raise ConfigError(
                "data.root: is missing, and this reads the headers of DICOM files",
                "check, preview and training take data.arrays; for the rest, name a folder of DICOM files in data.root",
            )
        return self.root

    @property
    def classes(self) -> list[str]:
        """The classes that this hospital's own words lead to, sorted: of its labels, else of its annotations."""
        words = self.labels or self.annotations
        return sorted(set(words.words.values()) - {""}) if words else []


class Policy(Settings):
    """What may leave this hospital."""

    studies: list[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}(@[0-9a-f]{64})?$")]] = []
    tasks: list[str]
    metrics: list[MetricName]
    survey: list[SurveyField] = []
    min_patients: Annotated[int, Field(ge=1)]
    min_evaluated: Annotated[int, Field(ge=1)] | None = None  # patients behind a metric; min_patients if absent
    counts: Literal["banded", "exact"] = "banded"
    decimals: Annotated[int, Field(ge=0, le=6)] = 3
    max_rounds: Annotated[int, Field(ge=1)]
    max_bytes: Annotated[ByteSize, Field(ge=1)]
    clip: Annotated[float, Field(gt=0)]
    noise: Annotated[float, Field(ge=0)] = 0.0
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    max_epsilon: Annotated[float, Field(gt=0)] | None = None

    @field_validator("min_patients", "min_evaluated")
    @classmethod
    def _begins_a_band(cls, least: int | None) -> int | None:
        if least is not None and least not in BANDS:
            low, high = band(least)
            known = f"{least} to {high}" if least < high else f"exactly {high}"
            take = next((start for start in BANDS if start > least), BANDS[-1])
            starts = ", ".join(str(start) for start in BANDS[:5])
            raise ValueError(f"must be {starts} ...; the band {low} to {high} would then say {known}: take {take}")
        return least

    @property
    def least_evaluated(self) -> int:
        """Held-out patients that must stand behind a metric."""
        return self.min_patients if self.min_evaluated is None else self.min_evaluated


class Run(Settings):
    """This machine."""

    work: LocalPath
    cache: LocalPath | None = None  # index and prepared images, shared by sites of one data.root; `work` if absent
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(ge=1)] = 1
    coordinator: LocalPath | None = None  # its invitation; without one, simulations only
    certificate: LocalPath | None = None  # of client.key, where the coordinator demands one
    proxy: str | None = None  # on the way to the coordinator
    runtime_port: Annotated[int, Field(ge=1024, le=65535)] | None = None  # of the SuperNode; a free one if absent

    @field_validator("proxy")
    @classmethod
    def _plain_proxy(cls, proxy: str | None) -> str | None:
        if proxy is not None and not re.fullmatch(r"http://[^/@\s]+:[0-9]{1,5}", proxy):
            raise ValueError('must be like "http://proxy.example.org:3128", without user and password')
        return proxy


class Site(Settings):
    """One hospital: its name, key, data, policy and machine."""

    name: Name
    key: LocalPath
    data: Data
    policy: Policy
    run: Run

    @property
    def cache(self) -> Path:
        """Folder of the index and of the prepared images."""
        return self.run.cache or self.run.work

    @property
    def ledger(self) -> Path:
        """Folder of the ledger."""
        return self.run.work / "ledger"
