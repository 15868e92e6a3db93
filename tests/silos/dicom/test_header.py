"""A header gives what was asked of it, and a hostile one comes out as one exception with a reason."""

import logging
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom import config, uid

from models.errors import DataError
from silos.dicom.frames import read_frame_texts
from silos.dicom.header import MAX_INFLATED, MAX_ITEMS, Reason, UnreadableFile, read_header

Make = Callable[..., Path]


def refusal(path: Path) -> Reason:
    with pytest.raises(UnreadableFile, match=path.name) as caught:
        read_header(path, ["SOPInstanceUID"])
    assert isinstance(caught.value, DataError)
    return caught.value.reason


def test_only_the_attributes_asked_for_are_read(make: Make, tmp_path: Path) -> None:
    path = make(tmp_path / "image", InstanceNumber="007", ImageType=["ORIGINAL", "PRIMARY"])
    keywords = ["InstanceNumber", "ImageType", "Modality", "AccessionNumber"]
    assert read_header(path, keywords) == {
        "InstanceNumber": "7",
        "ImageType": "ORIGINAL\\PRIMARY",
        "Modality": "MR",
        "AccessionNumber": "",
    }


def test_text_in_another_alphabet_is_read(make: Make, tmp_path: Path) -> None:
    path = make(tmp_path / "image", SpecificCharacterSet="ISO_IR 192", PatientID="Größe-Ж")
    assert read_header(path, ["PatientID"]) == {"PatientID": "Größe-Ж"}


def test_what_is_no_value_of_its_kind_is_read_as_written_and_goes_nowhere_else(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    odd = {"SOPInstanceUID": "1.2.NOT-A-UID", "InstanceNumber": "seven"}
    with config.disable_value_validation():
        path = make(tmp_path / "odd", SOPInstanceUID=odd["SOPInstanceUID"], InstanceNumber=None)
    content = path.read_bytes()
    at = content.index(b"\x28\x00\x02\x00US")
    path.write_bytes(content[:at] + b"\x20\x00\x13\x00IS\x06\x00seven " + content[at:])
    caplog.clear()
    with caplog.at_level(logging.DEBUG):
        assert read_header(path, odd) == odd
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_a_deflated_bomb_is_inflated_no_further_than_the_limit(make: Make, tmp_path: Path) -> None:
    path = make(tmp_path / "bomb", syntax=uid.DeflatedExplicitVRLittleEndian)
    head = path.read_bytes()
    head = head[: 132 + 12 + struct.unpack_from("<I", head, 140)[0]]
    engine = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    path.write_bytes(head + engine.compress(bytes(4 * MAX_INFLATED)) + engine.flush())
    assert path.stat().st_size < 300_000
    tracemalloc.start()
    try:
        assert refusal(path) == Reason.UNREADABLE
        assert tracemalloc.get_traced_memory()[1] < 2.5 * MAX_INFLATED
    finally:
        tracemalloc.stop()


def nested(depth: int) -> bytes:
    """An undefined-length sequence within a sequence within..., explicit little endian."""
    start = b"\x40\x00\x30\xa7SQ\x00\x00\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    end = b"\xfe\xff\x0d\xe0\x00\x00\x00\x00" + b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"
    return start * depth + end * depth


def test_sequences_nested_without_end_are_refused(make: Make, tmp_path: Path) -> None:
    path = make(tmp_path / "deep")
    content = path.read_bytes()
    at = content.index(b"\xe0\x7f\x10\x00OW")
    path.write_bytes(content[:at] + nested(20) + content[at:])
    assert read_header(path, ["Modality"]) == {"Modality": "MR"}
    path.write_bytes(content[:at] + nested(5000) + content[at:])
    assert refusal(path) == Reason.UNREADABLE


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian])
def test_a_sequence_of_more_items_than_anybody_needs_is_refused_before_it_is_unfolded(
    syntax: uid.UID, make: Make, tmp_path: Path
) -> None:
    path = make(tmp_path / "many", syntax=syntax)
    order = ">" if syntax == uid.ExplicitVRBigEndian else "<"
    content = path.read_bytes()
    at = content.index(struct.pack(f"{order}HH", 0x7FE0, 0x0010))
    items = struct.pack(f"{order}HHL", 0xFFFE, 0xE000, 0) * (MAX_ITEMS + 1)
    head = struct.pack(f"{order}HH2sHL", 0x5200, 0x9230, b"SQ", 0, len(items))
    path.write_bytes(content[:at] + head + items + content[at:])
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableFile, match="absurd"):
            read_frame_texts(path)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(items)
    finally:
        tracemalloc.stop()


def test_a_file_cut_anywhere_is_refused_in_words_and_never_crashes(make: Make, tmp_path: Path) -> None:
    for syntax in (uid.ExplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian, uid.JPEG2000Lossless):
        path = make(tmp_path / "cut", syntax=syntax)
        content = path.read_bytes()
        seen = set()
        for length in range(0, len(content) - 1, 17):
            path.write_bytes(content[:length])
            seen.add(refusal(path))
        assert seen <= {Reason.NOT_DICOM, Reason.TRUNCATED, Reason.NO_IMAGE}
        assert Reason.TRUNCATED in seen


def test_a_file_cut_inside_a_sequence_is_refused_in_words(make: Make, tmp_path: Path) -> None:
    path = make(tmp_path / "cut")
    content = path.read_bytes()
    at = content.index(b"\xe0\x7f\x10\x00OW")
    for length in range(1, len(nested(2))):
        path.write_bytes(content[:at] + nested(2)[:length])
        assert refusal(path) in {Reason.TRUNCATED, Reason.UNREADABLE, Reason.NO_IMAGE}
