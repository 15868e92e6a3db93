"""Decodes the picture of one DICOM file, or several frames of one.

    image = read_image(path)        # (H, W) float32, in modality units such as Hounsfield, larger is brighter

Slices of a volume, in which NaN stands for padding until all of them are there:

    pixels[0] = read_slice(path)
    pixels[1:] = read_frames(path, {1: ("0.5", "-1024"), 2: ("0.7", "-1024")})      # (2, H, W) float32
    fill_padding(pixels)

Nothing of a picture's size is allocated before header and compressed data agree on that size. Whatever is
wrong comes out as one exception, `UnreadableFile`, with a reason in plain words that can be counted.

One decoder is fixed for each transfer syntax, so that pixels do not depend on what else is installed.
A JPEG 2000 or JPEG stream that was damaged inside can still decode: the format carries no checksum.
"""

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.encaps import encapsulate, generate_frames, get_frame
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_modality_lut

from silos.dicom.apart import DecoderFailed, decode_apart
from silos.dicom.frames import SEQUENCES, frame_texts
from silos.dicom.header import Flaw, Header, Reason, UnreadableFile, number, open_header

MAX_PIXELS = 64 * 2**20  # of one image; the largest mammograms have a third of it
MAX_OVERHEAD = 2**20  # bytes of a compressed image that are no pixels
PLUGINS: dict[str, str] = {
    uid.ImplicitVRLittleEndian: "",
    uid.ExplicitVRLittleEndian: "",
    uid.ExplicitVRBigEndian: "",
    uid.DeflatedExplicitVRLittleEndian: "",
    uid.RLELossless: "pylibjpeg",
    uid.JPEGBaseline8Bit: "pylibjpeg",
    uid.JPEGExtended12Bit: "pylibjpeg",
    uid.JPEGLossless: "pylibjpeg",
    uid.JPEGLosslessSV1: "pylibjpeg",
    uid.JPEGLSLossless: "pyjpegls",
    uid.JPEGLSNearLossless: "pyjpegls",
    uid.JPEG2000Lossless: "pylibjpeg",
    uid.JPEG2000: "pylibjpeg",
    uid.HTJ2KLossless: "pylibjpeg",
    uid.HTJ2KLosslessRPCL: "pylibjpeg",
    uid.HTJ2K: "pylibjpeg",
}
"""Transfer syntax -> the decoder that pydicom is told to use ("" if uncompressed); no other is read."""

_RESCALE = ("RescaleSlope", "RescaleIntercept")
_PADDING = ("PixelPaddingValue", "PixelPaddingRangeLimit")
_KEYWORDS = ("BitsStored", "HighBit", "PixelRepresentation", *_RESCALE, *_PADDING, "ModalityLUTSequence")
_START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # F7 is JPEG-LS


def read_image(path: Path) -> NDArray[np.float32]:
    """Decode a greyscale image of one frame that is a case by itself: `read_slice`, its padding filled.

    Returns:
        Array (H, W) float32 of finite numbers, in modality units.

    Raises:
        UnreadableFile: As in `read_slice`.
    """
    return fill_padding(read_slice(path))


def fill_padding(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Make padding as dark as the darkest pixel of the case, or 0 where none of them is below 0.

    Of the case, not of each slice: the slices of a volume would differ in their ground, and one that is padding only
    has no darkest pixel. Never above 0, which is the ground of an MR of a brain alone, whether or not its header calls
    that padding.

    Args:
        pixels: Of a whole case, any shape, float32, NaN where padding; changed in place.

    Returns:
        The same array, of finite numbers; all 0 where nothing was measured.
    """
    if np.isnan(pixels.min()):
        np.fmax(pixels, np.fmin.reduce(pixels, axis=None, initial=0), out=pixels)  # both pass over NaN
    return pixels


def read_slice(path: Path) -> NDArray[np.float32]:
    """Decode a greyscale image of one frame.

    Stored values go through the modality transformation (PS3.3 C.11.1: rescale or modality LUT).
    MONOCHROME1 is mirrored within the range that its stored bits allow, so that larger is always brighter.

    Args:
        path: The file; if an enhanced one, the rescale of its one frame counts.

    Returns:
        Array (H, W) float32, in modality units; NaN in padding, where nothing was measured (PS3.3 C.7.5.1.1.2).

    Raises:
        UnreadableFile: The file is no such image, or cannot be decoded; also a decoded frame that is not
            Rows x Columns, an image of more than `MAX_PIXELS`, and a value that is not finite.
    """
    with _open_picture(path, *SEQUENCES) as header:
        if flaw := picture_flaw(header.texts):
            raise Flaw(flaw)
        if frames := frame_texts(header.dataset):
            header = _rescaled(header, *(frames[0][keyword] for keyword in _RESCALE))
        return _modality_units(_stored_values(header, _data(header)), header)


def read_frames(path: Path, frames: Mapping[int, tuple[str, str]]) -> NDArray[np.float32]:
    """Decode some frames of a greyscale image of several.

    Args:
        path: The file.
        frames: Frame number, from 1 -> the frame's own rescale slope and intercept as text, "" where it has
            none (PS3.3 C.7.6.16.2.9) and the file's apply.

    Returns:
        Array (frames, H, W) float32 in modality units, in the order of `frames`; NaN in padding.

    Raises:
        UnreadableFile: As in `read_slice`; also a frame that the file does not have.
    """
    with _open_picture(path) as header:
        if (flaw := picture_flaw(header.texts)) and flaw != Reason.SEVERAL_FRAMES:
            raise Flaw(flaw)
        shape = number(header.texts, "Rows"), number(header.texts, "Columns")
        result = np.empty((len(frames), *shape), np.float32)
        places = {frame: place for place, frame in enumerate(frames)}
        for frame, data in enumerate(_data_of_frames(header), start=1):
            if frame in places:
                own = _rescaled(header, *frames[frame])
                result[places.pop(frame)] = _modality_units(_stored_values(own, data), own)
        if places:
            raise Flaw(Reason.TRUNCATED, "fewer frames than the header says")
        return result


@contextmanager
def _open_picture(path: Path, *more: str) -> Iterator[Header]:
    """A header, with more attributes if need be, within which any error is an `UnreadableFile`."""
    try:
        with open_header(path, (*_KEYWORDS, *more)) as header:
            try:
                yield header
            except (Flaw, OSError):
                raise
            except DecoderFailed as error:
                raise Flaw(Reason.PIXELS, str(error)) from None
            except Exception as error:
                raise Flaw(Reason.PIXELS, type(error).__name__) from None
    except OSError as error:
        raise UnreadableFile(path, Reason.UNREADABLE, error.strerror or "") from error


def picture_flaw(texts: dict[str, str]) -> Reason | None:
    """Why a picture cannot be decoded here, whatever its bytes are.

    Args:
        texts: What `read_header` gives for SOPClassUID, TransferSyntaxUID, Rows, Columns, SamplesPerPixel,
            PhotometricInterpretation, BitsAllocated, BitsStored, HighBit, PixelRepresentation and NumberOfFrames.

    Returns:
        `NO_IMAGE` (contours), `COLOUR`, `PIXELS`, `SEVERAL_FRAMES` (each of which can be decoded) or None.
    """
    if texts["SOPClassUID"] == uid.RTStructureSetStorage:
        return Reason.NO_IMAGE
    photometric = texts["PhotometricInterpretation"]
    if number(texts, "SamplesPerPixel") > 1 or photometric not in ("MONOCHROME1", "MONOCHROME2", ""):
        return Reason.COLOUR
    allocated, stored = number(texts, "BitsAllocated"), number(texts, "BitsStored")
    frames = number(texts, "NumberOfFrames", 1)
    sound = (
        photometric
        and texts["TransferSyntaxUID"] in PLUGINS
        and frames >= 1
        and number(texts, "SamplesPerPixel") == 1
        and min(number(texts, "Rows"), number(texts, "Columns")) > 0
        and number(texts, "Rows") * number(texts, "Columns") <= MAX_PIXELS
        and allocated in (1, 8, 16, 32)
        and 1 <= stored <= allocated
        and number(texts, "HighBit", stored - 1) == stored - 1  # bits further left (PS3.5 8.1.1) would be cut off
        and number(texts, "PixelRepresentation") in (0, 1)
    )
    if not sound:
        return Reason.PIXELS
    return Reason.SEVERAL_FRAMES if frames > 1 else None


def _data(header: Header) -> bytes:
    """The pixel data of all frames, and no more than they can need."""
    texts, length = header.texts, header.end - header.start
    frames = number(texts, "NumberOfFrames", 1)
    bits = number(texts, "Rows") * number(texts, "Columns") * number(texts, "BitsAllocated")
    size = (frames * bits + 7) // 8
    compressed = bool(PLUGINS[texts["TransferSyntaxUID"]])
    if compressed and length > 2 * size + MAX_OVERHEAD:
        raise Flaw(Reason.PIXELS, "compressed to more than it was")
    header.stream.seek(header.start)
    return header.stream.read(length if compressed else min(length, size + size % 2))


def _data_of_frames(header: Header) -> Iterator[bytes]:
    """The pixel data of each frame, as they would stand in a file of that frame alone."""
    texts = header.texts
    frames = number(texts, "NumberOfFrames", 1)
    if PLUGINS[texts["TransferSyntaxUID"]]:
        yield from (encapsulate([code]) for code in generate_frames(_data(header), number_of_frames=frames))
    elif number(texts, "BitsAllocated") < 8:
        raise Flaw(Reason.PIXELS, "frames that do not begin with a byte")
    else:
        size = number(texts, "Rows") * number(texts, "Columns") * number(texts, "BitsAllocated") // 8
        header.stream.seek(header.start)
        for _ in range(frames):
            yield header.stream.read(size)


def _stored_values(header: Header, data: bytes) -> NDArray[Any]:
    """The stored values of one frame, (H, W) of integers."""
    texts, syntax = header.texts, header.texts["TransferSyntaxUID"]
    shape = number(texts, "Rows"), number(texts, "Columns")
    plugin = PLUGINS[syntax]
    if plugin:
        check_code(get_frame(data, 0, number_of_frames=1), syntax, shape)
    options: dict[str, Any] = {
        "rows": shape[0],
        "columns": shape[1],
        "number_of_frames": 1,
        "samples_per_pixel": 1,
        "photometric_interpretation": texts["PhotometricInterpretation"],
        "bits_allocated": number(texts, "BitsAllocated"),
        "bits_stored": number(texts, "BitsStored"),
        "pixel_representation": number(texts, "PixelRepresentation"),
        "pixel_keyword": "PixelData",
        "pixel_vr": header.vr,
        "view_only": True,  # it is looked at once
    }
    if plugin:
        return decode_apart(syntax, data, plugin, options)
    array, _ = get_decoder(syntax).as_array(data, index=0, raw=True, **options)
    if array.shape != shape:
        raise Flaw(Reason.PIXELS, f"decodes to {array.shape}, not {shape}")
    return array


def check_code(code: bytes, syntax: str, shape: tuple[int, int]) -> None:
    """Refuse a compressed frame that is not Rows x Columns, before anything of its size is allocated."""
    if syntax != uid.RLELossless:
        if (coded := _coded_shape(code)) != (*shape, 1):
            raise Flaw(Reason.PIXELS, f"its frame is {coded}, not {shape}")
    elif not 0 <= _run_length(code) - prod(shape) < min(shape):  # less than a line more is padding
        raise Flaw(Reason.PIXELS, f"its frame has not the pixels of {shape}")


def _run_length(code: bytes) -> int:
    """Pixels in the first segment of a run-length frame (PS3.5 G.3), which knows no rows and columns."""
    _, start, end = struct.unpack_from("<3L", code)
    pixels, position, end = 0, start, end or len(code)
    while position < end - 1:
        head = code[position]
        if head < 128:
            pixels, position = pixels + head + 1, position + head + 2
        elif head > 128:
            pixels, position = pixels + 257 - head, position + 2
        else:
            position += 1
    return pixels


def _coded_shape(code: bytes) -> tuple[int, int, int]:
    """(rows, columns, colours) that a JPEG (ITU T.81 B.2.2), JPEG-LS or JPEG 2000 (T.800 A.5.1) stream declares."""
    if not code.startswith(b"\xff\xd8"):
        start = code.index(b"\xff\x4f\xff\x51") + 8
        width, height, left, top, colours = struct.unpack_from(">4I16xH", code, start)
        return height - top, width - left, colours
    position = 2
    while (marker := code[position + 1]) not in _START_OF_FRAME:
        position += 1 if marker == 0xFF else 2 + struct.unpack_from(">H", code, position + 2)[0]
    rows, columns, colours = struct.unpack_from(">HHB", code, position + 5)
    return rows, columns, colours


def _rescaled(header: Header, *own: str) -> Header:
    """With the slope and intercept of one frame, where it has its own."""
    return replace(header, texts=header.texts | {key: text for key, text in zip(_RESCALE, own, strict=True) if text})


def _modality_units(stored: NDArray[Any], header: Header) -> NDArray[np.float32]:
    values = _rescale(stored, header)
    if header.texts["PhotometricInterpretation"] == "MONOCHROME1":
        bits, signed = number(header.texts, "BitsStored"), number(header.texts, "PixelRepresentation")
        darkest = -(2 ** (bits - 1)) if signed else 0
        ends = np.array([darkest, darkest + 2**bits - 1], dtype=stored.dtype)
        values = _rescale(ends, header).sum() - values
    with np.errstate(over="ignore"):
        result = values.astype(np.float32, copy=False)
    if not np.isfinite(result).all():
        raise Flaw(Reason.PIXELS, "values that are not finite")
    padding = _padding(stored, header)
    if padding is not None:
        result[padding] = np.nan
    return result


def _padding(stored: NDArray[Any], header: Header) -> NDArray[np.bool_] | None:
    """Where padding is, if the file names a value for it, or two and all between them."""
    found = [header.dataset[keyword].value for keyword in _PADDING if keyword in header.dataset]
    ends = [
        int.from_bytes(each, "little") if isinstance(each, bytes) else each for each in found if each not in (None, b"")
    ]
    if not ends or not all(isinstance(each, int) for each in ends):
        return None
    # Signed and unsigned are often confused here, so that the bits are what counts.
    bits = np.array([each % 2 ** (8 * stored.itemsize) for each in ends], f"u{stored.itemsize}")
    low, high = np.sort(bits.view(f"{stored.dtype.kind}{stored.itemsize}"))[[0, -1]]
    padding: NDArray[np.bool_] = stored == low if low == high else (stored >= low) & (stored <= high)
    return padding


def _rescale(stored: NDArray[Any], header: Header) -> NDArray[np.floating]:
    if header.dataset.get("ModalityLUTSequence"):
        return apply_modality_lut(stored, header.dataset).astype(np.float64)
    slope, intercept = float(header.texts["RescaleSlope"] or 1), float(header.texts["RescaleIntercept"] or 0)
    if slope == 0:
        raise Flaw(Reason.PIXELS, "a rescale slope of 0")
    # Whole numbers below 2**24 are exact in float32 too, at half the work.
    exact = slope == 1 and intercept.is_integer() and abs(intercept) < 2**20 and stored.itemsize <= 2
    values: NDArray[np.floating] = stored.astype(np.float32 if exact else np.float64)
    with np.errstate(all="ignore"):
        if not exact:
            values *= slope
        values += intercept
    return values
