"""Paints annotations on a stack, in the study's classes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset

from models.errors import ConfigError, IntramuralError
from silos.dicom.annotation.contours import paint_contours
from silos.dicom.annotation.reference import Annotation, Segment
from silos.dicom.annotation.segmentation import paint_segmentation
from silos.dicom.annotation.unfit import Unfit, UnfitAnnotation
from silos.dicom.header import Flaw, Reason, UnreadableFile, items, open_header
from silos.dicom.series import Stack

MAX_BYTES = 2**29  # of one annotation's file, which is read whole
MAX_ITEMS = 1_000_000  # of its sequences; a hundred organs in 500 slices have half as many
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
        with _open(root / annotation.path) as dataset:
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


@contextmanager
def _open(path: Path) -> Iterator[Dataset]:
    """The whole file, once its header was found sound; any error within is an `UnreadableFile`."""
    try:
        with open_header(path, ()) as header:
            try:
                header.stream.seek(0)  # inflated, if need be
                chunks = iter(partial(header.stream.read, 2**20), b"")
                if path.stat().st_size > MAX_BYTES or sum(map(items, chunks)) > MAX_ITEMS:
                    raise Flaw(Reason.UNREADABLE, "an annotation of absurd size")
                yield dcmread(path, force=True)
            except (Flaw, OSError, IntramuralError, KeyboardInterrupt, SystemExit, GeneratorExit):
                raise
            except BaseException as error:  # a panic of a decoder that is written in Rust is no Exception
                raise Flaw(Reason.UNREADABLE, type(error).__name__) from None
    except OSError as error:
        raise UnreadableFile(path, Reason.UNREADABLE, error.strerror or "") from error
