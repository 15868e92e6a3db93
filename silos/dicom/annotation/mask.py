"""Paints annotations on a stack, in the study's classes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.errors import ConfigError
from silos.dicom.annotation.contours import paint_contours
from silos.dicom.annotation.opening import open_annotation
from silos.dicom.annotation.reference import Annotation, Segment
from silos.dicom.annotation.segmentation import paint_segmentation
from silos.dicom.annotation.unfit import Unfit, UnfitAnnotation
from silos.dicom.series import Stack

OTHERS = "*"  # the word for every segment that no other word names


def read_mask(
    annotations: Sequence[Annotation],
    stack: Stack,
    root: Path,
    words: Mapping[str, str],
    classes: Sequence[str],
    fraction: float = 0.5,
) -> NDArray[np.uint8]:
    """The classes of a stack's voxels.

    Where segments overlap, the class that comes later in `classes` wins; so `["none", "oedema", "core"]` keeps a
    core within its oedema. Where nothing is drawn a voxel is of the first class.

    Args:
        annotations: Those that `match` found for the stack.
        stack: The stack.
        root: Folder that their paths are relative to.
        words: The hospital's names or codes (`SCT:4147007`) of segments -> the study's class, or "" to leave such
            segments out; `*` stands for all that are not named.
        classes: The study's classes, the background first.
        fraction: Of its maximum, from which a pixel of a fractional segmentation counts as drawn.

    Returns:
        Array (columns, rows, slices) uint8, index of the class.

    Raises:
        ConfigError: A segment that no word names, or a word for a class that the study has not.
        UnfitAnnotation: An annotation does not fit the stack, or two draw one class.
        UnreadableFile: An annotation cannot be read.
    """
    mask = np.zeros(stack.shape, np.uint8)
    painted: set[int] = set()
    for annotation in annotations:
        wanted = classes_of(annotation.segments, words, classes)
        if not painted.isdisjoint(wanted.values()):
            raise UnfitAnnotation(Unfit.TWICE)
        painted |= set(wanted.values())
        with open_annotation(root / annotation.path) as dataset:
            if annotation.kind == "RTSTRUCT":
                paint_contours(dataset, annotation, wanted, stack, mask)
            else:
                paint_segmentation(dataset, wanted, stack, mask, fraction)
    return mask


def classes_of(segments: Sequence[Segment], words: Mapping[str, str], classes: Sequence[str]) -> dict[int, int]:
    """The class of each segment that has one.

    Args:
        segments: An annotation's segments.
        words: As in `read_mask`.
        classes: The study's classes.

    Returns:
        Segment number -> index of the class.

    Raises:
        ConfigError: As in `read_mask`.
    """
    for key, name in words.items():
        if name and name not in classes:
            raise ConfigError(
                f"data.annotations.words.{key}: {name!r} is no class of the study; "
                f"its classes are {', '.join(classes)}",
                'use one of the study\'s classes, or "" to leave these segments out',
            )
    found = {}
    for segment in segments:
        word = next((each for each in (segment.name, *segment.codes, OTHERS) if each in words), None)
        if word is None:
            codes = f" ({', '.join(segment.codes)})" if segment.codes else ""
            raise ConfigError(
                f"data.annotations.words: an annotation has a segment {segment.name!r}{codes}; "
                f"known words are {', '.join(words)}",
                f'add {segment.name!r} or its code; "" leaves such segments out, and "*" stands for all others',
            )
        if words[word]:
            found[segment.number] = classes.index(words[word])
    return found
