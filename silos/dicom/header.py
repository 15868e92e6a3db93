"""Reads named attributes of one DICOM file's header, and finds its pixel data without reading them.

    attributes = read_header(path, ["SOPInstanceUID", "Modality"])

A file is untrusted input. Only the attributes that were asked for are read into memory, every length is
checked against the file before it is believed, and compressed headers are inflated up to a limit. Whatever
is wrong comes out as one exception, `UnreadableFile`, with a reason in plain words that can be counted.
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
from io import SEEK_CUR, SEEK_END, BufferedReader, BytesIO
from math import prod
from pathlib import Path
from typing import BinaryIO, cast

from pydicom import uid
from pydicom.charset import convert_encodings
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.filereader import data_element_generator
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag
from pydicom.valuerep import VR

from models.errors import DataError
from silos.dicom.glance import Glance, glance

MAX_INFLATED = 64 * 2**20  # bytes of a deflated file; a bomb of 133 kB would unfold to 128 MiB
MAX_VALUE = 64 * 2**10  # bytes of one attribute that is read
MAX_SEQUENCE = 16 * 2**20  # bytes of one sequence that is read, such as that of an image's frames
MAX_ITEMS = 100_000  # of such a sequence, which take 1 kB of memory each, if there is nothing in them
MAX_ELEMENTS = 50_000  # of a header
MAX_HEADER = 256 * 2**20  # bytes of memory that a header may take while it is read
MAX_FRAGMENTS = 100_000  # of compressed pixel data

_SIZES = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "NumberOfFrames")
_ALWAYS = ("SOPClassUID", "TransferSyntaxUID", "PhotometricInterpretation", *_SIZES)
_PIXEL_DATA = 0x7FE00010
_OBJECT = 1024  # bytes that an element takes beside its value
_UNDEFINED = 0xFFFFFFFF
_ITEM = b"\xfe\xff\x00\xe0"
_ITEM_BIG = b"\xff\xfe\xe0\x00"
_DELIMITER = b"\xfe\xff\xdd\xe0"
_VRS = {vr.value.encode() for vr in VR}
_FIRST_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")  # 0002 or 0008, either byte order
# What these libraries log can quote a value of the file.
_TALKERS = (
    "pydicom",
    "pydicom.pixels.decoders.base",
    "pylibjpeg.utils",
    "openjpeg.utils",
    "openjpeg._openjpeg",
    "jpeg_ls._CharLS",
)


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
    SEVERAL_FRAMES = "several frames, for volumes only"
    PIXELS = "pixels unreadable"
    DUPLICATE = "duplicate"


class UnreadableFile(DataError):  # noqa: N818 - named as the errors of models/errors.py are
    """A file whose header or picture cannot be read.

    Args:
        path: The file. Local only, as every message.
        reason: The words by which it is counted.
        detail: What was found.
    """

    def __init__(self, path: Path, reason: Reason, detail: str = "") -> None:
        super().__init__(
            f"{path}: {reason}" + (f" ({detail})" if detail else ""),
            "leave the file out, or export it again from the archive",
        )
        self.reason = reason


class Flaw(Exception):  # noqa: N818
    """Inside `open_header`: the reason; `UnreadableFile` adds the file's name."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class Header:
    """The wanted attributes, the same as text, and where in the stream the pixel data lie, of which VR."""

    dataset: Dataset
    texts: dict[str, str]
    stream: BinaryIO
    vr: str
    start: int
    end: int


def read_header(path: Path, keywords: Collection[str]) -> dict[str, str]:
    """Read some attributes of one image, or of contours drawn on one; pixels are not read.

    Args:
        path: The file, of any name.
        keywords: DICOM keywords of text and numbers; nothing else is taken from the file.

    Returns:
        keyword -> value as text ("" where absent; several values joined by a backslash, PS3.5 6.4; whole
        numbers without leading zeros).

    Raises:
        UnreadableFile: `NOT_DICOM`, `TRUNCATED`, `UNREADABLE` or `NO_IMAGE`.
        OSError: The file cannot be opened or read.
    """
    with open(path, "rb", buffering=0) as stream:
        found = glance(stream, frozenset((*_ALWAYS, *keywords)))
        if found and _end_of(found, stream):
            texts = found.texts
        else:
            with _guarded(path):
                texts = _parse(BufferedReader(stream), {*_ALWAYS, *keywords}).texts
    return {keyword: texts[keyword] for keyword in keywords}


@contextmanager
def open_header(path: Path, keywords: Collection[str]) -> Iterator[Header]:
    """Parse a header up to the pixel data, check that these are all there, and keep the file open for them.

    While it is open, libraries are silent, and a `Flaw` becomes an `UnreadableFile`.

    Args:
        path: The file.
        keywords: As in `read_header`.

    Raises:
        UnreadableFile: As in `read_header`.
        OSError: The file cannot be opened or read.
    """
    with _guarded(path), open(path, "rb") as stream:
        found = glance(stream, frozenset((*_ALWAYS, *keywords)))
        if found and (end := _end_of(found, stream)):
            yield Header(found.dataset(), found.texts, stream, found.vr, found.start, end)
        else:
            yield _parse(stream, {*_ALWAYS, *keywords})


@contextmanager
def _guarded(path: Path) -> Iterator[None]:
    """Keeps libraries silent, and makes a `Flaw` an `UnreadableFile`."""
    talkers = [talker for name in _TALKERS if not (talker := logging.getLogger(name)).disabled]
    try:
        for talker in talkers:
            talker.disabled = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Flaw as flaw:
        raise UnreadableFile(path, flaw.reason, str(flaw)) from None  # the cause can quote a patient's record
    finally:
        for talker in talkers:
            talker.disabled = False


def number(texts: dict[str, str], keyword: str, absent: int = -1) -> int:
    """A whole number of a header's texts: `absent` if it is missing, -1 if it is none."""
    text = texts[keyword]
    return int(text) if text.isascii() and text.isdigit() else -1 if text else absent


def _end_of(found: Glance, stream: BinaryIO) -> int:
    """Where the pixel data of an ordinary file end; 0 if `_parse` must say what is wrong with them."""
    try:
        return _pixel_end(stream, found.texts, found.start, found.length)
    except Flaw:
        return 0


def _parse(stream: BinaryIO, keywords: Collection[str]) -> Header:
    stream.seek(128)
    marked = stream.read(4) == b"DICM"
    stream.seek(0)
    if not marked and stream.read(2) not in _FIRST_GROUPS:
        raise Flaw(Reason.NOT_DICOM)
    stream.seek(132 if marked else 0)
    dataset = Dataset()
    try:
        header = _header(stream, keywords, dataset)
        flaw = None
    except Flaw as error:
        flaw = error
    except (EOFError, struct.error):
        flaw = Flaw(Reason.TRUNCATED, "ends inside the header")
    except Exception as error:
        if isinstance(error, OSError) and error.errno:  # pydicom raises some without, for damaged sequences
            raise
        flaw = Flaw(Reason.UNREADABLE, type(error).__name__)
    # Without the mark, only a SOP class tells a DICOM file from a text that begins like one.
    sop_class = _text(dataset, "SOPClassUID")
    if not marked and not re.fullmatch(r"[0-9][0-9.]{6,63}", sop_class):
        raise Flaw(Reason.NOT_DICOM)
    if flaw:
        raise flaw
    return header


def _header(stream: BinaryIO, keywords: Collection[str], dataset: Dataset) -> Header:
    """The file meta information (PS3.10 7.1), then the data set in the encoding that it names."""
    implicit, _ = _encoding(stream, True)
    _read(stream, implicit, True, keywords, dataset, lambda tag: tag >> 16 != 2)
    syntax = _text(dataset, "TransferSyntaxUID")
    if syntax == uid.DeflatedExplicitVRLittleEndian:
        stream = _inflate(stream)
    implicit, little = _encoding(stream, syntax != uid.ExplicitVRBigEndian)
    if not syntax:
        syntax = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
        syntax = syntax if little else uid.ExplicitVRBigEndian
    elif little == (syntax == uid.ExplicitVRBigEndian):
        raise Flaw(Reason.UNREADABLE, "not in the byte order that it names")
    pixels = _read(stream, implicit, little, keywords, dataset, lambda tag: tag == _PIXEL_DATA)
    if not pixels and _text(dataset, "SOPClassUID") != uid.RTStructureSetStorage:
        raise Flaw(Reason.NO_IMAGE)
    charset = convert_encodings(dataset.get("SpecificCharacterSet", "ISO_IR 6"))
    dataset.set_original_encoding(implicit, little, charset)
    texts = {keyword: _text(dataset, keyword) for keyword in keywords} | {"TransferSyntaxUID": syntax}
    if not pixels:  # contours of an image, which have no pixels of their own
        end = stream.seek(0, SEEK_END)
        return Header(dataset, texts, stream, "", end, end)
    vr, start, length = pixels
    return Header(dataset, texts, stream, vr, start, _pixel_end(stream, texts, start, length))


def _read(
    stream: BinaryIO,
    implicit: bool,
    little: bool,
    keywords: Collection[str],
    into: Dataset,
    last: Callable[[int], bool],
) -> tuple[str, int, int] | None:
    """Read the wanted elements up to the first for which `last` is true; its VR, position and length."""
    wanted = {tag for keyword in keywords if (tag := tag_for_keyword(keyword)) is not None}
    sequences = {tag for tag in wanted if dictionary_VR(tag) == VR.SQ}
    elements = 0
    end: tuple[str, int, int] | None = None
    reach = stream.tell()  # where the last element seen ends
    size = stream.seek(0, SEEK_END)
    stream.seek(reach)

    def stop(tag: BaseTag, vr: str | None, length: int) -> bool:
        nonlocal elements, end, reach
        elements += 1
        reach = stream.tell() + (0 if length == _UNDEFINED else length)
        if last(tag):
            end = (vr or "OW", stream.tell(), length)
            return True
        if reach > size:
            raise Flaw(Reason.TRUNCATED, "ends inside the header")
        limit = MAX_SEQUENCE if tag in sequences else MAX_VALUE
        if elements > MAX_ELEMENTS or (tag in wanted and limit < length < _UNDEFINED):
            raise Flaw(Reason.UNREADABLE, "a header of absurd size")
        return False

    metered = cast(BinaryIO, _Meter(stream))
    for element in data_element_generator(metered, implicit, little, stop, specific_tags=list(wanted)):
        # A sequence that says how long it is stays bytes until somebody looks at it.
        if element.tag in sequences and isinstance(element.value, bytes) and items(element.value) > MAX_ITEMS:
            raise Flaw(Reason.UNREADABLE, "a header of absurd size")
        into[element.tag] = element
    if not end and 0 < size - reach < 8:
        raise Flaw(Reason.TRUNCATED, "ends inside the header")
    return end


def items(content: bytes) -> int:
    """How many items of sequences there can be at most, in either byte order; parsed, they take more than bytes."""
    return max(map(content.count, (_ITEM, _ITEM_BIG)))


class _Meter:
    """A stream of which no more than `MAX_HEADER` is read: sequences are parsed whole, wanted or not."""

    def __init__(self, stream: BinaryIO) -> None:
        self.seek, self.tell = stream.seek, stream.tell
        self._read = stream.read
        self._left = MAX_HEADER

    def read(self, length: int) -> bytes:
        self._left -= length + _OBJECT
        if self._left < 0:
            raise Flaw(Reason.UNREADABLE, "a header of absurd size")
        return self._read(length)


def _encoding(stream: BinaryIO, little: bool) -> tuple[bool, bool]:
    """(implicit VR, little endian) of what follows, as its first element shows; `little` if it does not."""
    head = stream.read(8)
    stream.seek(-len(head), SEEK_CUR)
    if len(head) < 8:
        raise EOFError
    return head[4:6] not in _VRS, {b"\x08\x00": True, b"\x00\x08": False}.get(head[:2], little)


def _inflate(stream: BinaryIO) -> BytesIO:
    """Unfold a deflated data set (PS3.5 A.5), never further than `MAX_INFLATED`."""
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    data = engine.decompress(stream.read(MAX_INFLATED), MAX_INFLATED)
    if len(data) == MAX_INFLATED:
        raise Flaw(Reason.UNREADABLE, f"inflates to {MAX_INFLATED} bytes or more")
    if not engine.eof:
        raise Flaw(Reason.TRUNCATED, "the deflated data end early")
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


def _pixel_end(stream: BinaryIO, texts: dict[str, str], start: int, length: int) -> int:
    """Where the pixel data end, if all of them are there."""
    native = texts["TransferSyntaxUID"] in uid.UncompressedTransferSyntaxes
    if length == _UNDEFINED:
        if native:
            raise Flaw(Reason.UNREADABLE, "uncompressed pixel data of undefined length")
        return _fragments_end(stream, start)
    if start + length > stream.seek(0, SEEK_END):
        raise Flaw(Reason.TRUNCATED, "ends inside the pixel data")
    bits = prod(max(number(texts, keyword, 1), 0) for keyword in _SIZES)
    subsampled = texts["PhotometricInterpretation"].endswith(("422", "420"))
    if native and not subsampled and length * 8 < bits:
        raise Flaw(Reason.TRUNCATED, "fewer pixels than the header says")
    return start + length


def _fragments_end(stream: BinaryIO, position: int) -> int:
    """Follow the items of encapsulated pixel data (PS3.5 A.4) to their delimiter."""
    for _ in range(MAX_FRAGMENTS):
        stream.seek(position)
        head = stream.read(8)
        if len(head) < 8:
            raise Flaw(Reason.TRUNCATED, "ends inside the compressed pixel data")
        if head[:4] == _DELIMITER:
            return position + 8
        if head[:4] != _ITEM:
            break
        position += 8 + int.from_bytes(head[4:], "little")
    raise Flaw(Reason.UNREADABLE, "compressed pixel data in no order")
