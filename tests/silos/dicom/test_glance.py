"""A glance sees what pydicom sees, of every file it does not leave to the general parser."""

import logging
import struct
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydicom import uid
from pydicom.data import data_manager
from pydicom.datadict import keyword_for_tag

from silos.dicom import header
from silos.dicom.glance import CHUNK, MAX_CHUNKS, glance
from silos.dicom.header import UnreadableFile, open_header, read_header
from silos.dicom.scan import ATTRIBUTES

Make = Callable[..., Path]

BUNDLED = Path(data_manager.DATA_ROOT)
KEYWORDS = frozenset(ATTRIBUTES)


@pytest.fixture(autouse=True)
def _silence() -> Iterator[None]:
    """pydicom complains of damaged files, in words and warnings."""
    logging.disable()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def compare(path: Path) -> int:
    """Ask for each attribute of a file; how many were seen, each of them as pydicom sees it."""
    with path.open("rb") as stream:
        if not glance(stream, frozenset()):
            return 0
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
        present = {word for tag in dataset.keys() if (word := keyword_for_tag(tag))}  # noqa: SIM118
        seen = 0
        for keyword in KEYWORDS | present:
            found = glance(stream, frozenset({keyword}))
            if found:
                source = dataset.file_meta if keyword == "TransferSyntaxUID" else dataset
                assert found.texts[keyword] == header._text(source, keyword), keyword
                seen += 1
        if (found := glance(stream, frozenset(header._ALWAYS))) and header._end_of(found, stream):
            pixels = pydicom.dcmread(path)["PixelData"]
            assert found.vr == pixels.VR or found.implicit
            stream.seek(found.start)
            assert stream.read(len(pixels.value)) == pixels.value
    return seen


@pytest.mark.parametrize("source", ["pydicom", pytest.param("zoo", marks=pytest.mark.zoo)])
def test_no_field_of_any_real_file_differs_from_pydicom(source: str, request: pytest.FixtureRequest) -> None:
    root: Path = BUNDLED if source == "pydicom" else request.getfixturevalue("zoo")
    fields = {path: compare(path) for path in sorted(root.rglob("*")) if path.is_file()}
    assert sum(fields.values()) > 5000
    assert sum(seen > 20 for seen in fields.values()) > 80


def general(content: bytes, keywords: frozenset[str]) -> header.Header | header.Flaw:
    try:
        return header._parse(BytesIO(content), {*header._ALWAYS, *keywords})
    except header.Flaw as flaw:
        return flaw


def agree(content: bytes, keywords: frozenset[str]) -> bool:
    """Whether a glance was enough; it must be what the general parser says."""
    stream = BytesIO(content)
    found = glance(stream, frozenset((*header._ALWAYS, *keywords)))
    end = found and header._end_of(found, stream)
    if not found or not end:
        return False
    slow = general(content, keywords)
    assert isinstance(slow, header.Header)
    assert {keyword: found.texts[keyword] for keyword in slow.texts} == slow.texts
    assert (found.vr, found.start, end) == (slow.vr, slow.start, slow.end)
    plain = {element.tag: str(element.value) for element in slow.dataset}
    assert {element.tag: str(element.value) for element in found.dataset() if element.tag in plain} == plain
    return True


VALUES = st.one_of(
    st.binary(max_size=24),
    st.text("0123456789+-.eE\\ \0", max_size=24).map(str.encode),
    st.text("ABCxyz019\\^= \0\n\x1b", max_size=24).map(str.encode),
)
TAGS = {
    "ImageType": (0x0008, 0x0008),
    "PatientID": (0x0010, 0x0020),
    "SliceThickness": (0x0018, 0x0050),
    "InstanceNumber": (0x0020, 0x0013),
    "ImageComments": (0x0020, 0x4000),
    "Rows": (0x0028, 0x0010),
}
VRS = ["AE", "AS", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "LO", "LT", "PN", "SH", "SL", "SS", "ST", "TM", "UI"]
VRS += ["UL", "US", "UT", "UN", "OB", "SQ", "SV", "UV", "UC", "UR", "AT", "ZZ"]


def element(tag: tuple[int, int], vr: str, value: bytes) -> bytes:
    head = struct.pack("<HH2s", *tag, vr.encode())
    if vr in ("UT", "UN", "OB", "SQ", "SV", "UV", "UC", "UR"):
        return head + struct.pack("<2xL", len(value)) + value
    return head + struct.pack("<H", len(value)) + value


@given(st.sampled_from(sorted(TAGS)), st.sampled_from(VRS), VALUES, st.sampled_from(["", "ISO_IR 192", "ISO_IR 13"]))
@example("InstanceNumber", "IS", b"000000056675", "")
@example("InstanceNumber", "IS", b"99999999999 ", "")
@example("SliceThickness", "DS", b"1.5\\ \\2\\", "")
@example("PatientID", "LO", b" a \\ b \0", "")
@example("PatientID", "LO", b"~\\x", "ISO_IR 13")
def test_a_value_of_any_kind_means_what_it_means_to_pydicom(keyword: str, vr: str, value: bytes, charset: str) -> None:
    meta = element((2, 0x10), "UI", uid.ExplicitVRLittleEndian.encode())
    elements = {(0x0008, 0x0005): ("CS", charset.encode()), (0x0008, 0x0016): ("UI", b"1.2.840.10008.5.1.4.1.1.4")}
    elements[TAGS[keyword]] = vr, value
    body = b"".join(element(tag, *elements[tag]) for tag in sorted(elements))
    pixels = element((0x7FE0, 0x0010), "OB", bytes(16))
    agree(bytes(128) + b"DICM" + meta + body + pixels, frozenset({keyword}))


@pytest.fixture(scope="module")
def samples() -> list[bytes]:
    """Real headers of many makers, with a few of their pixels."""
    contents = [path.read_bytes() for path in sorted(BUNDLED.rglob("*.dcm")) if path.stat().st_size < 50_000]
    return [content for content in contents if agree(content, KEYWORDS)]


@given(data=st.data())
def test_damage_never_makes_a_glance_differ_from_the_general_parser(samples: list[bytes], data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(samples)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(128, min(len(content), 2000) - 1))] = data.draw(st.integers(0, 255))
    agree(bytes(content[: data.draw(st.integers(0, len(content)))]), KEYWORDS)
    agree(bytes(content), KEYWORDS)


def test_an_ordinary_file_of_either_encoding_is_read_at_a_glance(make: Make, tmp_path: Path) -> None:
    for syntax in (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.JPEG2000Lossless, uid.RLELossless):
        assert agree(make(tmp_path / "image", syntax=syntax).read_bytes(), KEYWORDS)


@pytest.mark.parametrize("dtype", ["u2", "i2"])
def test_a_number_that_is_signed_as_the_pixels_are_is_read_at_a_glance(dtype: str, make: Make, tmp_path: Path) -> None:
    syntax, pixels = uid.ImplicitVRLittleEndian, np.full((4, 4), 7, dtype)
    content = make(tmp_path / "image", pixels, syntax, PixelPaddingValue=7).read_bytes()
    at = content.index(b"\x28\0\x20\1\2\0\0\0\7\0")
    content = content[: at + 8] + b"\x30\xf8" + content[at + 10 :]
    wanted = frozenset({"PixelPaddingValue", "PixelRepresentation"})
    assert agree(content, wanted)
    found = glance(BytesIO(content), wanted)
    assert found
    assert found.texts["PixelPaddingValue"] == ("63536" if dtype == "u2" else "-2000")


@pytest.mark.parametrize("padding", range(CHUNK - 900, CHUNK - 100, 50))
def test_a_header_longer_than_one_chunk_is_read_through(padding: int, make: Make, tmp_path: Path) -> None:
    content = make(tmp_path / "image").read_bytes()
    at = content.index(b"\x08\x00\x16\x00UI")
    private = element((0x0008, 0x0001), "UN", bytes(padding))
    assert agree(content[:at] + private + content[at:], KEYWORDS)
    assert agree(content[:at] + private * 3 + content[at:], KEYWORDS)


def sequence(items: bytes, vr: bytes = b"SQ\0\0") -> bytes:
    return b"\x40\x00\x75\x02" + vr + b"\xff" * 4 + items + b"\xfe\xff\xdd\xe0\0\0\0\0"


@pytest.mark.parametrize("open_ended", [False, True])
@pytest.mark.parametrize("depth", [1, 3, 12])
@pytest.mark.parametrize("implicit", [False, True])
def test_sequences_without_a_length_are_stepped_over(
    open_ended: bool, depth: int, implicit: bool, make: Make, tmp_path: Path
) -> None:
    syntax = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
    content = make(tmp_path / "image", syntax=syntax).read_bytes()
    inner = struct.pack("<HHL", 0x28, 0x10, 2) + b"\7\0" if implicit else element((0x28, 0x10), "US", b"\7\0")
    for _ in range(depth):
        length = b"\xff" * 4 if open_ended else struct.pack("<L", len(inner))
        item = b"\xfe\xff\x00\xe0" + length + inner + (b"\xfe\xff\x0d\xe0\0\0\0\0" if open_ended else b"")
        inner = sequence(item * 2, b"" if implicit else b"SQ\0\0")
    at = content.index(b"\xe0\x7f\x10\x00")
    assert agree(content[:at] + inner + content[at:], KEYWORDS)


def test_what_is_not_ordinary_is_left_to_the_general_parser(make: Make, tmp_path: Path) -> None:
    unusual = {
        "deflated": {"syntax": uid.DeflatedExplicitVRLittleEndian},
        "big endian": {"syntax": uid.ExplicitVRBigEndian},
        "another alphabet": {"SpecificCharacterSet": "ISO_IR 192", "PatientID": "Größe"},
        "a yen sign for a backslash": {"SpecificCharacterSet": "ISO_IR 13"},
    }
    for name, changes in unusual.items():
        content = make(tmp_path / name, **changes).read_bytes()
        assert not agree(content, KEYWORDS)
        assert isinstance(general(content, KEYWORDS), header.Header)
    assert not agree(make(tmp_path / "no preamble").read_bytes()[132:], KEYWORDS)


def test_a_header_that_never_ends_is_given_up_soon_and_in_little_memory(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 8 * 2**20
    monkeypatch.setattr(header, "MAX_HEADER", limit)
    path = make(tmp_path / "image")
    content = path.read_bytes()
    at = content.index(b"\xe0\x7f\x10\x00OW")
    hostile = {
        "items": sequence(b"\xfe\xff\x00\xe0\0\0\0\0" * 500_000),
        "elements": element((0x0029, 0x1010), "LO", b"") * 500_000,
        "value": sequence(b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + element((0x0029, 0x1010), "OB", bytes(2 * limit))),
        "lies": sequence(b"\xfe\xff\x00\xe0\xff\xff\xff\xff\x29\0\x10\x10OB\0\0\xf0\xff\xff\xff"),
    }
    for header_ in hostile.values():
        path.write_bytes(content[:at] + header_ + content[at:])
        tracemalloc.start()
        try:
            with pytest.raises(UnreadableFile, match="absurd"):
                read_header(path, ["Modality"])
            assert tracemalloc.get_traced_memory()[1] < 1.5 * limit
        finally:
            tracemalloc.stop()
    assert len(hostile["elements"]) > MAX_CHUNKS * CHUNK


def test_what_is_read_of_pixels_and_tables_does_not_depend_on_who_read_the_header(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path / "image", RescaleSlope="2", RescaleIntercept="-1024", ImageType=["A", "B"])
    with open_header(path, ["RescaleSlope", "ImageType"]) as at_a_glance:
        dataset = at_a_glance.dataset
    monkeypatch.setattr(header, "glance", lambda *_: None)
    with open_header(path, ["RescaleSlope", "ImageType"]) as parsed:
        assert {**at_a_glance.texts} == parsed.texts
        assert dataset.RescaleSlope == parsed.dataset.RescaleSlope == 2
        assert dataset.ImageType == parsed.dataset.ImageType == ["A", "B"]
