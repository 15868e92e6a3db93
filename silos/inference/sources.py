"""What there is to predict in a folder of DICOM: images, or volumes, as the study has them."""

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from models.errors import DataError
from models.plan import TaskSettings
from silos.dicom.scan import scan
from silos.dicom.series import Stack, find_stacks


@dataclass(frozen=True, eq=False)
class Source:
    """What one prediction is of.

    Attributes:
        root: The folder.
        path: Of the image, or of the first slice's file, below the root.
        series: SeriesInstanceUID, "" if nobody looked.
        instance: SOPInstanceUID of an image; "" of a volume.
        stack: The slices of a volume.
    """

    root: Path
    path: str
    series: str = ""
    instance: str = ""
    stack: Stack | None = None


@dataclass(frozen=True)
class Sources:
    """Everything to predict in a folder, and how many other files there are, by reason."""

    found: tuple[Source, ...]
    left_out: dict[str, int]


def find(path: Path, task: TaskSettings, burned_in: Literal["refuse", "allow-unmarked"] = "refuse") -> Sources:
    """Look through a folder, as for training: the study's modality, no screenshots, no burned-in names.

    Args:
        path: The folder; or one image, which is taken as it is.
        task: The study's.
        burned_in: As for `scan`; a hospital's own setting.

    Raises:
        DataError: The folder is missing, or holds nothing that the study could use; or the study is of volumes, and
            this is one file.
    """
    if path.is_file():
        if task.unit != "image":
            raise DataError(f"{path}: is one file, and the study is of volumes", "give the folder of the series")
        return Sources((Source(path.parent, path.name),), {})
    with tempfile.TemporaryDirectory() as work:
        index = Path(work) / "index.sqlite"
        several = task.unit != "image"
        found = scan(path, index, modality=task.modality, burned_in=burned_in, several_frames=several)
    return of_instances(found.instances, found.left_out, path, task)


def of_instances(instances: pd.DataFrame, left_out: dict[str, int], root: Path, task: TaskSettings) -> Sources:
    """Sort the usable images of a scan into what the study predicts.

    Args:
        instances: Of a scan that let images of several frames in, if the study is of volumes.
        left_out: Other files, by reason.
        root: Folder that their paths are relative to.
        task: The study's.

    Raises:
        DataError: There is nothing that the study could use.
    """
    if task.unit == "image":
        columns = instances[["path", "SeriesInstanceUID", "SOPInstanceUID"]].itertuples(index=False, name=None)
        found = [Source(root, *row) for row in columns]
    else:
        stacks = find_stacks(instances, root, single=task.unit == "either")
        left_out = dict(sorted((Counter(left_out) + Counter(stacks.left_out)).items()))
        found = [Source(root, each.slices[0].path, each.series, "", each) for each in stacks.stacks]
    if not found:
        what = "image" if task.unit == "image" else "volume"
        raise DataError(
            f"{root}: holds no usable {what} of modality {', '.join(task.modality)} ({left_out} left out)",
            "give a folder with DICOM images as the study has them",
        )
    return Sources(tuple(found), left_out)
