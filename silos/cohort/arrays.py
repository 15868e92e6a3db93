"""Cases that are arrays in one file: for work on methods, with data that never was DICOM.

    [data]
    arrays = "cases.npz"

The file is NumPy's, without pickles. It holds `images` `(N, ...)` float32, `labels` `(N,)` (whole numbers: indices of
the study's classes), `patients` `(N,)` (numbers or texts that tell patients apart), and may hold `held_out` `(N,)`
(bool), where a data set comes with its own split. All else is as with DICOM: patients, gate, ledger, network.
"""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from models.errors import ConfigError, DataError
from silos.cohort.cases import Cohort, patient_hash, split
from silos.config import Data


@dataclass(frozen=True, eq=False)
class Arrays:
    """Cases as they stand in such a file.

    Attributes:
        images: `(N, ...)` float32.
        labels: `(N,)` int64, the class of each.
        patients: `(N,)` text, whose each is.
        held_out: `(N,)` bool, which are evaluated on and never trained on; None to let the site's salt decide.
    """

    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    patients: npt.NDArray[np.str_]
    held_out: npt.NDArray[np.bool_] | None = None


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Write such a file."""
    given = {item.name: getattr(arrays, item.name) for item in fields(arrays)}
    np.savez(path, **{name: value for name, value in given.items() if value is not None})


def read_arrays(path: Path) -> Arrays:
    """Read such a file.

    Raises:
        ConfigError: It is missing, or is no such file.
        DataError: An array has another type or length than it must have.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            given = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        what = error.strerror if isinstance(error, OSError) and error.strerror else "is no .npz file without pickles"
        raise ConfigError(f"data.arrays: {path}: {what}", "write it with numpy.savez") from error
    known = {item.name for item in fields(Arrays)}
    if given.keys() - known or known - {"held_out"} - given.keys():
        raise ConfigError(
            f"data.arrays: {path}: holds {', '.join(sorted(given)) or 'nothing'}",
            f"give images, labels, patients and, if the data have their own split, held_out; not {sorted(known)}",
        )
    _check(path, given)
    held_out = given.get("held_out")
    return Arrays(given["images"], given["labels"].astype(np.int64), given["patients"].astype(np.str_), held_out)


def match_arrays(arrays: Arrays, data: Data, classes: Sequence[str], *, drawn: bool = False) -> Cohort:
    """The cases of a file of arrays, each on its side.

    Args:
        arrays: What the file holds.
        data: The site's data settings.
        classes: The study's classes, in order.
        drawn: Whether the study needs masks, which such a file has not.

    Raises:
        ConfigError: It needs them.
        DataError: A label is no class of the study, or one patient is on both sides.
    """
    if drawn:
        raise ConfigError(
            f"data.arrays: {data.arrays} holds labels, and the study's task needs what was drawn on the images",
            "name a folder of DICOM files in data.root, and say in data.annotations what its segments are called",
        )
    labels = arrays.labels
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
        raise DataError(
            f"data.arrays: labels run from {labels.min()} to {labels.max()}, the study has {len(classes)} classes",
            "number them from 0, in the order of the study's classes",
        )
    cases = pd.DataFrame({"name": [f"{row:08}" for row in range(len(labels))], "target": labels})
    cases["classes"] = cases["target"].map(lambda target: frozenset({target}))
    patients = pd.Series(arrays.patients.tolist(), dtype=object)
    if arrays.held_out is None:
        return split(cases, patients, {}, data, classes)
    cases["patient"] = patients.map({each: patient_hash(data.salt, each) for each in patients.unique()})
    cases["held_out"] = arrays.held_out
    if (cases.groupby("patient")["held_out"].nunique() > 1).any():
        raise DataError("data.arrays: held_out puts a patient on both sides", "keep each patient's cases together")
    return Cohort(cases, {}, tuple(classes))


def _check(path: Path, given: Mapping[str, npt.NDArray[Any]]) -> None:
    count = len(given["images"]) if given["images"].ndim else -1
    for name, kinds, what in (
        ("images", "f", "float32"),
        ("labels", "iu", "whole numbers"),
        ("patients", "iuU", "whole numbers or texts"),
        ("held_out", "b", "bool"),
    ):
        array = given.get(name)
        if array is None:
            continue
        fits = array.dtype.kind in kinds and (name != "images" or array.dtype == np.float32)
        if not fits or len(array.shape) < 1 or len(array) != count or (name != "images" and array.ndim != 1):
            raise DataError(
                f"data.arrays: {path}: {name} is {array.dtype} of shape {array.shape}", f"give {count} {what}"
            )
    if not np.isfinite(given["images"]).all():
        raise DataError(f"data.arrays: {path}: images hold NaN or infinity", "leave these cases out")
