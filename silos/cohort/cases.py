"""The cases of one hospital for one study, and on which side of the split each of them is."""

import hashlib
import hmac
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd

from silos.config import Data

NO_PATIENT = "no PatientID"


@dataclass(frozen=True)
class Cohort:
    """The cases of one hospital for one study.

    Attributes:
        cases: One row per case, in the scan's order: `name` (tells cases apart: the image's path; of a volume, that of
            its first slice), `path` (of that file), `stamp` (changes when any of its files does), `target` (int64,
            index of the class; -1 where a mask says it), `classes` (frozenset of such indices: the label's, or
            those that an annotation names), `patient` (keyed hash), `held_out` (bool). Of volumes also `stack` (where
            its slices are) and `annotations` (what was drawn on it, a tuple).
        left_out: Files, cases, or rows of the label table, that are not among them, by reason.
        classes: The study's classes.
    """

    cases: pd.DataFrame
    left_out: dict[str, int]
    classes: tuple[str, ...]

    def side(self, held_out: bool) -> pd.DataFrame:
        """The cases to train on, or those held out."""
        return self.cases[self.cases["held_out"] == held_out]

    def whose(self, held_out: bool) -> npt.NDArray[np.object_]:
        """The patient of each case on that side, in order."""
        return self._whose[held_out]

    def patients(self, held_out: bool) -> int:
        """Patients on that side."""
        return len(set(self.whose(held_out)))

    @cached_property
    def _whose(self) -> dict[bool, npt.NDArray[np.object_]]:
        return {side: self.side(side)["patient"].to_numpy(object) for side in (False, True)}

    @cached_property
    def rarest(self) -> int:
        """Held-out patients of the class that the fewest of them have; 0 where nobody has it."""
        patients = (self.of_class(index, held_out=True)["patient"].nunique() for index in range(len(self.classes)))
        return min(patients, default=0)

    def of_class(self, index: int, held_out: bool) -> pd.DataFrame:
        """The cases on that side in which a class occurs."""
        cases = self.side(held_out)
        return cases[np.array([index in classes for classes in cases["classes"]], bool)]  # a list of none is no mask

    def without(self, names: Mapping[str, str]) -> "Cohort":
        """The cohort less some cases, by name, each with its reason."""
        kept = self.cases[~self.cases["name"].isin(list(names))].reset_index(drop=True)
        left_out = Counter(self.left_out) + Counter(names.values())
        return Cohort(kept, dict(sorted(left_out.items())), self.classes)


def split(
    cases: pd.DataFrame, patients: pd.Series, left_out: Mapping[str, int], data: Data, classes: Sequence[str]
) -> Cohort:
    """Give each case its patient and its side.

    Args:
        cases: All other columns of a cohort's cases.
        patients: The PatientID of each.
        left_out: What is no case, by reason.
        data: The site's data settings.
        classes: The study's classes.
    """
    hashes = {each: patient_hash(data.salt, each) for each in patients.unique()}
    cases["patient"] = patients.map(hashes)
    cases["held_out"] = cases["patient"].map(lambda value: is_held_out(value, data.held_out)).astype(bool)
    return Cohort(cases.reset_index(drop=True), dict(sorted(left_out.items())), tuple(classes))


def patient_hash(salt: str, patient_id: str) -> str:
    """HMAC-SHA256 (hex) of a PatientID under the site's salt; for this process's memory only."""
    return hmac.new(salt.encode(), patient_id.strip().encode(), hashlib.sha256).hexdigest()


def is_held_out(patient: str, fraction: float) -> bool:
    """Whether a patient is held out; depends on that patient alone, so it never changes."""
    return int(patient[:16], 16) < fraction * 2**64
