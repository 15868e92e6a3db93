"""Looks at the pixels of usable images: their intensities, which of them are the same, and a small picture."""

import hashlib
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from silos.dicom.decode import fill_padding, read_frames, read_image
from silos.dicom.frames import read_frame_texts
from silos.dicom.header import Reason, UnreadableFile

_SIDE = 112  # pixels of a thumbnail's longer side, at most
_PERCENTILES = (1, 50, 99)


@dataclass(frozen=True, eq=False)
class Seen:
    """What was seen.

    Attributes:
        images: One row per image that could be read: `path`, `digest` (SHA-256 of shape and values), `low`,
            `median`, `high` (1st, 50th and 99th percentile, modality units), `blank` (one single value).
        unreadable: Reason -> number of the others.
    """

    images: pd.DataFrame
    unreadable: dict[str, int]


def look(root: Path, paths: list[str], progress: Callable[[int, int], None] | None = None) -> Seen:
    """Decode images, one at a time.

    Args:
        root: What the paths are relative to.
        paths: The files.
        progress: Called with (images done, images in all).
    """
    rows, unreadable = [], Counter[str]()
    for done, path in enumerate(paths, start=1):
        try:
            image = read_picture(root / path)
        except UnreadableFile as error:
            unreadable[error.reason.value] += 1
        else:
            low, median, high = (float(value) for value in np.percentile(image, _PERCENTILES))
            rows.append((path, fingerprint(image), low, median, high, bool(image.min() == image.max())))
        if progress:
            progress(done, len(paths))
    columns = ["path", "digest", "low", "median", "high", "blank"]
    images = pd.DataFrame(rows, columns=columns).astype({"blank": bool})
    return Seen(images, dict(sorted(unreadable.items())))


def read_picture(path: Path) -> NDArray[np.float32]:
    """The picture of a file, (H, W) in modality units; where it has several frames, the middle one.

    Raises:
        UnreadableFile: As in `read_image`; also several frames of which the file does not say where they lie.
    """
    try:
        return read_image(path)
    except UnreadableFile as error:
        if error.reason != Reason.SEVERAL_FRAMES or not (frames := read_frame_texts(path)):
            raise
    middle = _middle([frame["ImagePositionPatient"] for frame in frames])
    rescale = frames[middle]["RescaleSlope"], frames[middle]["RescaleIntercept"]
    (picture,) = read_frames(path, {middle + 1: rescale})
    return fill_padding(picture)


def _middle(positions: list[str]) -> int:
    """The place of the frame that lies in the middle; where the file does not say where they lie, of the middle one."""
    half = len(positions) // 2
    try:
        places = np.array([position.split("\\") for position in positions], float)
    except ValueError:
        return half
    along = places[:, np.ptp(places, axis=0).argmax()]
    return int(np.argsort(along, kind="stable")[half])


def spread(paths: list[str], count: int | None) -> list[str]:
    """At most so many of them, evenly spread over their order."""
    if count is None or len(paths) <= count:
        return paths
    return [paths[place] for place in np.linspace(0, len(paths) - 1, count).round().astype(int)]


def fingerprint(image: NDArray[np.float32]) -> str:
    """SHA-256 (hex) of an image's shape and values, whatever file it came from."""
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image, "<f4").tobytes()).hexdigest()


def thumbnail(image: NDArray[np.float32]) -> bytes:
    """A small picture.

    Args:
        image: (H, W) in modality units.

    Returns:
        A PNG file, 8 bits grey, the 1st percentile black and the 99th white.
    """
    by = -(-max(image.shape) // _SIDE)
    high, wide = (max(length // by, 1) * by for length in image.shape)
    image = np.pad(image, [(0, max(0, by - image.shape[0])), (0, max(0, by - image.shape[1]))], "edge")[:high, :wide]
    small = image.reshape(high // by, by, wide // by, by).mean(axis=(1, 3))
    black, white = np.percentile(small, (1, 99))
    grey = np.clip((small - black) / max(white - black, 1e-9), 0, 1) * 255
    return png(grey.round().astype(np.uint8))


def png(grey: NDArray[np.uint8]) -> bytes:
    """A greyscale PNG file (ISO/IEC 15948).

    Args:
        grey: (H, W).
    """
    height, width = grey.shape
    lines = np.hstack([np.zeros((height, 1), np.uint8), grey]).tobytes()  # each begins with its filter: none
    head = struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
