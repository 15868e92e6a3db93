"""Reads one case of a study from the hospital's files: its pixels, upright, and what was drawn on it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from models.plan import Unit
from models.tasks import Case
from silos.config import Data
from silos.dicom.annotation import read_mask
from silos.dicom.decode import read_image
from silos.dicom.geometry import Floats
from silos.dicom.series import Stack, read_volume
from silos.dicom.upright import spacing_of, upright


def read_case(case: Any, data: Data, classes: Sequence[str], unit: Unit) -> Case:
    """Decode one case, whatever it is made of.

    Args:
        case: A row of a cohort's cases.
        data: The site's data settings.
        classes: The study's classes.
        unit: What the study's cases are made of.

    Returns:
        An image `(rows, columns)`; or a volume in RAS with its spacing, its slices along the last axis where the
        network sees single slices, and its mask if it has no label.

    Raises:
        ConfigError: The annotations name what the site's words do not know.
        DataError: It cannot be read, or its annotations do not fit.
    """
    label = None if case.target < 0 else int(case.target)
    stack = getattr(case, "stack", None)
    if stack is None:
        return Case(read_image(data.folder / case.path), label=label)
    image, _ = read_stack(stack, data.folder, unit)
    if label is not None or data.annotations is None:
        return replace(image, label=label)
    words, fraction = data.annotations.words, data.annotations.fraction
    drawn = read_mask(case.annotations, stack, data.folder, words, ["background", *classes], fraction)
    mask, _ = upright(drawn, stack, slices_last=unit == "either")
    return replace(image, mask=mask[..., 0] if image.image.ndim == 2 else mask)


def read_stack(stack: Stack, root: Path, unit: Unit) -> tuple[Case, Floats]:
    """Decode a stack.

    Args:
        stack: One that `find_stacks` found.
        root: Folder that its paths are relative to.
        unit: What the study's cases are made of.

    Returns:
        The volume in RAS with its spacing, its slices along the last axis where the network sees single slices;
        `(rows, columns)` of a slice without others. And the affine (4, 4) of the volume, to mm in RAS.

    Raises:
        UnreadableFile: A slice cannot be decoded.
    """
    slices = unit == "either"
    image, affine = upright(read_volume(stack, root).pixels, stack, slices_last=slices)
    spacing = spacing_of(affine)
    alone = slices and image.shape[2] == 1
    return (Case(image[..., 0], spacing[:2]) if alone else Case(image, spacing)), affine
