"""Reads one DICOM file: a few attributes of its header, or its picture as numbers.

    attributes, flaw = read_header(path, ["SOPInstanceUID", "Modality"])
    image = read_image(path)        # (H, W) float32, in modality units such as Hounsfield, larger is brighter

A file is untrusted input. Only the attributes that were asked for are read into memory, every length is
checked against the file before it is believed, and compressed headers are inflated up to a limit. Whatever
is wrong comes out as one exception, `Unusable`, with a reason in plain words that can be counted.

One decoder is fixed for each transfer syntax, so that pixels do not depend on what else is installed.
A JPEG 2000 or JPEG stream that was damaged inside can still decode: the format carries no checksum.
"""

import logging
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from io import SEEK_CUR, SEEK_END, BytesIO
from itertools import count
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.charset import convert_encodings
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.filereader import data_element_generator
from pydicom.multival import MultiValue
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_modality_lut
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag
from pydicom.valuerep import VR

from models.errors import DataError

MAX_PIXELS = 64 * 2**20  # of one image; the largest mammograms have a third of it
MAX_INFLATED = 64 * 2**20  # bytes of a deflated file; a bomb of 133 kB would unfold to 128 MiB
MAX_VALUE = 64 * 2**10  # bytes of one attribute that is read
MAX_ELEMENTS = 50_000  # of a header
MAX_FRAGMENTS = 100_000  # of compressed pixel data

Element: TypeAlias = DataElement | RawDataElement

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

_SHAPE = (
    "SOPClassUID",
    "TransferSyntaxUID",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "NumberOfFrames",
)
_RESCALE = ("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence")

_PIXEL_DATA = 0x7FE00010
_UNDEFINED = 0xFFFFFFFF
_ITEM = b"\xfe\xff\x00\xe0"
_DELIMITER = b"\xfe\xff\xdd\xe0"
_VRS = {vr.value.encode() for vr in VR}
_FIRST_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")  # 0002 or 0008, either byte order
_START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # F7 is JPEG-LS
# What these libraries log can quote a value of the file.
_TALKERS = ("pydicom", "pylibjpeg.utils", "openjpeg.utils", "openjpeg._openjpeg", "jpeg_ls._CharLS")


class Reason(StrEnum):
    """Why a file is left out, in the words of the report."""

    NOT_DICOM = "not DICOM"
    TRUNCATED = "truncated"
    UNREADABLE = "unreadable"
    NO_IMAGE = "no image"
    SEVERAL_MODALITIES = "series of several modalities"
    SECONDARY_CAPTURE = "secondary capture"
    MODALITY = "wrong modality"
    BURNED_IN = "burned-in annotation"
    COLOUR = "colour"
    SEVERAL_FRAMES = "several frames"
    PIXELS = "pixels unreadable"
    DUPLICATE = "duplicate"


class Unusable(DataError):  # noqa: N818 - named as the errors of models/errors.py are
    """A file that cannot be used.

    Args:
        path: The file. Local only, as every message.
        reason: The words by which it is counted.
        detail: What was found.
    """

    def __init__(self, path: Path | str, reason: Reason, detail: str = "") -> None:
        super().__init__(
            f"{path}: {reason}" + (f" ({detail})" if detail else ""),
            "leave the file out, or export it again from the archive",
        )
        self.reason = reason
        self._parts = (path, reason, detail)

    def __reduce__(self) -> tuple[Any, ...]:
        """Survive the way back from a worker process."""
        return type(self), self._parts


class _Flaw(Exception):  # noqa: N818
    """Inside this module: the reason, before the file's name is known."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class _File:
    """A parsed header, its wanted attributes as text, and where its pixel data lie."""

    stream: BinaryIO
    dataset: Dataset
    texts: dict[str, str]
    vr: str
    start: int
    end: int


def read_header(path: Path, keywords: Collection[str]) -> tuple[dict[str, str], Reason | None]:
    """Read some attributes of one file; its pixels are not read.

    Args:
        path: The file, of any name.
        keywords: DICOM keywords of text and numbers; nothing else is taken from the file.

    Returns:
        keyword -> value as text ("" where absent; several values joined by a backslash, PS3.5 6.4; whole
        numbers without leading zeros), and why the picture cannot be used although the header can:
        `COLOUR`, `SEVERAL_FRAMES`, `PIXELS` or None.

    Raises:
        Unusable: `NOT_DICOM`, `TRUNCATED`, `UNREADABLE` or `NO_IMAGE`.
        OSError: The file cannot be opened or read.
    """
    with _quiet(path), open(path, "rb") as stream:
        texts = _parse(stream, {*_SHAPE, *keywords}).texts
        return {keyword: texts[keyword] for keyword in keywords}, _picture_flaw(texts)


def read_image(path: Path) -> NDArray[np.float32]:
    """Decode a greyscale image of one frame.

    Stored values go through the modality transformation (PS3.3 C.11.1: rescale or modality LUT).
    MONOCHROME1 is mirrored within the range that its stored bits allow, so that larger is always brighter.

    Args:
        path: The file.

    Returns:
        Array (H, W) float32 of finite numbers, in modality units.

    Raises:
        Unusable: The file is no such image, or cannot be decoded; also a decoded frame that is not
            Rows x Columns, an image of more than `MAX_PIXELS`, and a value that is not finite.
    """
    try:
        with _quiet(path), open(path, "rb") as stream:
            file = _parse(stream, {*_SHAPE, *_RESCALE})
            if flaw := _picture_flaw(file.texts):
                raise _Flaw(flaw)
            try:
                return _modality_units(_stored_values(file), file)
            except (_Flaw, OSError):
                raise
            except Exception as error:
                raise _Flaw(Reason.PIXELS, type(error).__name__) from None
    except OSError as error:
        raise Unusable(path, Reason.UNREADABLE, error.strerror or "") from error


@contextmanager
def _quiet(path: Path) -> Iterator[None]:
    """Silence the libraries, whose warnings can quote a patient's record, and name the file of a flaw."""
    talkers = [talker for name in _TALKERS if not (talker := logging.getLogger(name)).disabled]
    try:
        for talker in talkers:
            talker.disabled = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except _Flaw as flaw:
        raise Unusable(path, flaw.reason, str(flaw)) from None  # the cause can quote a patient's record
    finally:
        for talker in talkers:
            talker.disabled = False


def _parse(stream: BinaryIO, keywords: Collection[str]) -> _File:
    """Read the wanted attributes up to the pixel data, and check that the pixel data are all there."""
    stream.seek(128)
    marked = stream.read(4) == b"DICM"
    stream.seek(0)
    elements: dict[BaseTag, Element] = {}
    try:
        if not marked and stream.read(2) not in _FIRST_GROUPS:
            raise _Flaw(Reason.NOT_DICOM)
        stream.seek(132 if marked else 0)
        file = _file(stream, keywords, elements)
        flaw = None
    except OSError:
        raise
    except _Flaw as error:
        flaw = error
    except (EOFError, struct.error):
        flaw = _Flaw(Reason.TRUNCATED, "ends inside the header")
    except Exception as error:
        flaw = _Flaw(Reason.UNREADABLE, type(error).__name__)
    # Without the mark, only a SOP class tells a DICOM file from a text that begins like one.
    if not marked and not _has_sop_class(elements):
        raise _Flaw(Reason.NOT_DICOM)
    if flaw:
        raise flaw
    return file


def _has_sop_class(elements: dict[BaseTag, Element]) -> bool:
    return re.fullmatch(r"[0-9][0-9.]{6,63}", _text(Dataset(elements), "SOPClassUID")) is not None


def _file(stream: BinaryIO, keywords: Collection[str], elements: dict[BaseTag, Element]) -> _File:
    """The file meta information (PS3.10 7.1), then the data set in the encoding that it names."""
    implicit, _ = _encoding(stream, True)
    meta: dict[BaseTag, Element] = {}
    _read(stream, implicit, True, keywords, meta, lambda tag: tag >> 16 != 2)
    syntax = _text(Dataset(meta), "TransferSyntaxUID")
    if syntax == uid.DeflatedExplicitVRLittleEndian:
        stream = _inflate(stream)
    implicit, little = _encoding(stream, syntax != uid.ExplicitVRBigEndian)
    if not syntax:
        syntax = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
        syntax = syntax if little else uid.ExplicitVRBigEndian
    elif little == (syntax == uid.ExplicitVRBigEndian):
        raise _Flaw(Reason.UNREADABLE, "not in the byte order that it names")
    pixels = _read(stream, implicit, little, keywords, elements, lambda tag: tag == _PIXEL_DATA)
    if not pixels:
        raise _Flaw(Reason.NO_IMAGE)

    dataset = Dataset({**meta, **elements})
    charset = convert_encodings(dataset.get("SpecificCharacterSet", "ISO_IR 6"))
    dataset.set_original_encoding(implicit, little, charset)
    texts = {keyword: _text(dataset, keyword) for keyword in keywords} | {"TransferSyntaxUID": syntax}
    vr, start, length = pixels
    return _File(stream, dataset, texts, vr, start, _pixel_end(stream, texts, start, length))


def _read(
    stream: BinaryIO,
    implicit: bool,
    little: bool,
    keywords: Collection[str],
    into: dict[BaseTag, Element],
    last: Callable[[int], bool],
) -> tuple[str, int, int] | None:
    """Read the wanted elements up to the first for which `last` is true; its VR, position and length."""
    wanted = {tag for keyword in keywords if (tag := tag_for_keyword(keyword)) is not None}
    size = _size(stream)
    counter = count(1)
    reach = stream.tell()  # where the last element seen ends
    end: list[tuple[str, int, int]] = []

    def stop(tag: BaseTag, vr: str | None, length: int) -> bool:
        nonlocal reach
        reach = stream.tell() + (0 if length == _UNDEFINED else length)
        if last(tag):
            end.append((vr or "OW", stream.tell(), length))
            return True
        if reach > size:
            raise _Flaw(Reason.TRUNCATED, "ends inside the header")
        if next(counter) > MAX_ELEMENTS or (tag in wanted and MAX_VALUE < length < _UNDEFINED):
            raise _Flaw(Reason.UNREADABLE, "a header of absurd size")
        return False

    for element in data_element_generator(stream, implicit, little, stop, specific_tags=list(wanted)):
        into[BaseTag(element.tag)] = element
    if not end and 0 < size - reach < 8:
        raise _Flaw(Reason.TRUNCATED, "ends inside the header")
    return end[0] if end else None


def _encoding(stream: BinaryIO, little: bool) -> tuple[bool, bool]:
    """(implicit VR, little endian) of what follows, as its first element shows; `little` if it does not."""
    head = stream.read(8)
    stream.seek(-len(head), SEEK_CUR)
    if len(head) < 8:
        raise EOFError
    return head[4:6] not in _VRS, {b"\x08\x00": True, b"\x00\x08": False}.get(head[:2], little)


def _size(stream: BinaryIO) -> int:
    here = stream.tell()
    size = stream.seek(0, SEEK_END)
    stream.seek(here)
    return size


def _inflate(stream: BinaryIO) -> BytesIO:
    """Unfold a deflated data set (PS3.5 A.5), never further than `MAX_INFLATED`."""
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    data = engine.decompress(stream.read(MAX_INFLATED), MAX_INFLATED)
    if len(data) == MAX_INFLATED:
        raise _Flaw(Reason.UNREADABLE, f"inflates to {MAX_INFLATED} bytes or more")
    if not engine.eof:
        raise _Flaw(Reason.TRUNCATED, "the deflated data end early")
    return BytesIO(data)


def _text(dataset: Dataset, keyword: str) -> str:
    """One attribute as text; what its VR forbids stays as it was written."""
    tag = tag_for_keyword(keyword)
    if tag is None or tag not in dataset:
        return ""
    try:
        value = dataset[tag].value
    except Exception:
        value = dataset.get_item(tag).value
    several = value if isinstance(value, MultiValue | list) else [value]
    return "\\".join(_word(each) for each in several).encode(errors="replace").decode()


def _word(value: object) -> str:
    if value is None or isinstance(value, Sequence):
        return ""
    if isinstance(value, int):
        return str(int(value))
    text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
    return text.strip(" \0")


def _number(texts: dict[str, str], keyword: str, absent: int = -1) -> int:
    """A whole number of the header; -1 if it is none."""
    text = texts[keyword]
    return int(text) if text.isascii() and text.isdigit() else -1 if text else absent


def _bits(texts: dict[str, str]) -> int:
    """Bits that the pixels take when they are not compressed."""
    numbers = [_number(texts, key) for key in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated")]
    return prod(max(number, 0) for number in (*numbers, _number(texts, "NumberOfFrames", 1)))


def _pixel_end(stream: BinaryIO, texts: dict[str, str], start: int, length: int) -> int:
    """Where the pixel data end, if all of them are there."""
    native = PLUGINS.get(texts["TransferSyntaxUID"]) == ""
    if length == _UNDEFINED:
        if native:
            raise _Flaw(Reason.UNREADABLE, "uncompressed pixel data of undefined length")
        return _fragments_end(stream, start)
    if start + length > _size(stream):
        raise _Flaw(Reason.TRUNCATED, "ends inside the pixel data")
    subsampled = texts["PhotometricInterpretation"].endswith(("422", "420"))
    if native and not subsampled and length * 8 < _bits(texts):
        raise _Flaw(Reason.TRUNCATED, "fewer pixels than the header says")
    return start + length


def _fragments_end(stream: BinaryIO, position: int) -> int:
    """Follow the items of encapsulated pixel data (PS3.5 A.4) to their delimiter."""
    for _ in range(MAX_FRAGMENTS):
        stream.seek(position)
        head = stream.read(8)
        if len(head) < 8:
            raise _Flaw(Reason.TRUNCATED, "ends inside the compressed pixel data")
        if head[:4] == _DELIMITER:
            return position + 8
        if head[:4] != _ITEM:
            break
        position += 8 + int.from_bytes(head[4:], "little")
    raise _Flaw(Reason.UNREADABLE, "compressed pixel data in no order")


def _picture_flaw(texts: dict[str, str]) -> Reason | None:
    """Why this picture cannot be decoded here, whatever its bytes are."""
    photometric = texts["PhotometricInterpretation"]
    if _number(texts, "SamplesPerPixel") > 1 or photometric not in ("MONOCHROME1", "MONOCHROME2", ""):
        return Reason.COLOUR
    if _number(texts, "NumberOfFrames", 1) > 1:
        return Reason.SEVERAL_FRAMES
    allocated = _number(texts, "BitsAllocated")
    sound = (
        photometric
        and texts["TransferSyntaxUID"] in PLUGINS
        and _number(texts, "NumberOfFrames", 1) == 1
        and _number(texts, "SamplesPerPixel") == 1
        and min(_number(texts, "Rows"), _number(texts, "Columns")) > 0
        and _number(texts, "Rows") * _number(texts, "Columns") <= MAX_PIXELS
        and allocated in (1, 8, 16, 32)
        and 1 <= _number(texts, "BitsStored") <= allocated
        and _number(texts, "PixelRepresentation") in (0, 1)
    )
    return None if sound else Reason.PIXELS


def _stored_values(file: _File) -> NDArray[Any]:
    """The stored values, (H, W) of integers."""
    texts, syntax = file.texts, file.texts["TransferSyntaxUID"]
    shape = _number(texts, "Rows"), _number(texts, "Columns")
    plugin = PLUGINS[syntax]
    file.stream.seek(file.start)
    data = file.stream.read(file.end - file.start)
    if plugin:
        _check_code(get_frame(data, 0, number_of_frames=1), syntax, shape)
    options: dict[str, Any] = {
        "rows": shape[0],
        "columns": shape[1],
        "number_of_frames": 1,
        "samples_per_pixel": 1,
        "photometric_interpretation": texts["PhotometricInterpretation"],
        "bits_allocated": _number(texts, "BitsAllocated"),
        "bits_stored": _number(texts, "BitsStored"),
        "pixel_representation": _number(texts, "PixelRepresentation"),
        "pixel_keyword": "PixelData",
        "pixel_vr": file.vr,
    }
    array, _ = get_decoder(syntax).as_array(data, index=0, raw=True, decoding_plugin=plugin, **options)
    if array.shape != shape:
        raise _Flaw(Reason.PIXELS, f"decodes to {array.shape}, not {shape}")
    return array


def _check_code(code: bytes, syntax: str, shape: tuple[int, int]) -> None:
    """Refuse a compressed frame that is not Rows x Columns, before anything of its size is allocated."""
    if syntax != uid.RLELossless:
        if (coded := _coded_shape(code)) != shape:
            raise _Flaw(Reason.PIXELS, f"its frame is {coded}, not {shape}")
    elif not 0 <= _run_length(code) - prod(shape) < min(shape):  # less than a line more is padding
        raise _Flaw(Reason.PIXELS, f"its frame has not the pixels of {shape}")


def _run_length(code: bytes) -> int:
    """Pixels in the first segment of a run-length frame (PS3.5 G.3), which knows no rows and columns."""
    _, start, end = struct.unpack_from("<3L", code)
    pixels, position, end = 0, start, end or len(code)
    while position < end - 1:
        head = code[position]
        pixels += head + 1 if head < 128 else 257 - head if head > 128 else 0
        position += head + 2 if head < 128 else 2 if head > 128 else 1
    return pixels


def _coded_shape(code: bytes) -> tuple[int, int]:
    """(rows, columns) that a JPEG (ITU T.81 B.2.2), JPEG-LS or JPEG 2000 (T.800 A.5.1) stream declares."""
    if not code.startswith(b"\xff\xd8"):
        width, height, left, top = struct.unpack_from(">4I", code, code.index(b"\xff\x4f\xff\x51") + 8)
        return height - top, width - left
    position = 2
    while (marker := code[position + 1]) not in _START_OF_FRAME:
        position += 1 if marker == 0xFF else 2 + struct.unpack_from(">H", code, position + 2)[0]
    rows, columns = struct.unpack_from(">HH", code, position + 5)
    return rows, columns


def _modality_units(stored: NDArray[Any], file: _File) -> NDArray[np.float32]:
    values = _rescale(stored, file)
    if file.texts["PhotometricInterpretation"] == "MONOCHROME1":
        bits, signed = _number(file.texts, "BitsStored"), _number(file.texts, "PixelRepresentation")
        darkest = -(2 ** (bits - 1)) if signed else 0
        ends = np.array([darkest, darkest + 2**bits - 1], dtype=stored.dtype)
        values = _rescale(ends, file).sum() - values
    with np.errstate(over="ignore"):
        result = values.astype(np.float32)
    if not np.isfinite(result).all():
        raise _Flaw(Reason.PIXELS, "values that are not finite")
    return result


def _rescale(stored: NDArray[Any], file: _File) -> NDArray[np.float64]:
    if file.dataset.get("ModalityLUTSequence"):
        return apply_modality_lut(stored, file.dataset).astype(np.float64)
    slope, intercept = float(file.texts["RescaleSlope"] or 1), float(file.texts["RescaleIntercept"] or 0)
    if slope == 0:
        raise _Flaw(Reason.PIXELS, "a rescale slope of 0")
    with np.errstate(all="ignore"):
        return stored.astype(np.float64) * slope + intercept
