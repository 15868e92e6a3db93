"""A folder of any shape becomes a table of usable images, and everything else is counted with a reason."""

import builtins
import gzip
import logging
import os
import sqlite3
import stat
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pandas as pd
import pytest
from pydicom import uid
from pydicom.data import data_manager

from models.errors import DataError
from silos.dicom import index as store
from silos.dicom.decode import read_image
from silos.dicom.header import Reason, UnreadableFile
from silos.dicom.scan import ATTRIBUTES, Scan, scan

Make = Callable[..., Path]

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "dicom").mkdir()
    return tmp_path / "dicom"


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return tmp_path / "work" / "index.sqlite"


@pytest.fixture
def opened(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files below the root that anything really opened."""
    names: list[str] = []
    real = builtins.open

    def spy(file: Any, *args: Any, **kwargs: Any) -> Any:
        if str(file).startswith(f"{root}{os.sep}"):
            names.append(os.path.relpath(file, root))
        return real(file, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", spy)
    return names


def paths(found: Scan) -> list[str]:
    return list(found.instances["path"])


def look(root: Path, index: Path, *modality: str, **settings: Any) -> Scan:
    found = scan(root, index, modality=modality or ["MR"], **settings)
    assert len(found.instances) + len(found.annotations) + sum(found.left_out.values()) == found.files
    return found


def test_an_image_is_found_by_what_it_holds_in_any_shape_of_folder(make: Make, root: Path, index: Path) -> None:
    for number, name in enumerate(["IM0001.dcm", "a/b/c/I002", "export/001.IMA", "notes.txt"]):
        make(root / name, InstanceNumber=number)
    found = look(root, index)
    assert paths(found) == ["IM0001.dcm", "a/b/c/I002", "export/001.IMA", "notes.txt"]
    assert (found.left_out, found.files, found.opened) == ({}, 4, 4)


def test_instances_are_in_the_order_of_series_and_number(make: Make, root: Path, index: Path) -> None:
    for name, series, number in [("a", "1.9", 10), ("b", "1.9", 9), ("c", "1.10", 2), ("d", "1.9", "")]:
        make(root / name, SeriesInstanceUID=series, InstanceNumber=number)
    assert paths(look(root, index)) == ["c", "b", "a", "d"]


def test_attributes_are_text_and_those_asked_for_are_there(make: Make, root: Path, index: Path) -> None:
    make(root / "a", SeriesDate="20200102", Manufacturer="ACME", AccessionNumber="A1")
    row = look(root, index, attributes=["SeriesDate"]).instances.iloc[0]
    assert row["SeriesDate"] == "20200102"
    assert row["Rows"] == "32"
    assert row["NumberOfFrames"] == ""
    assert row["TransferSyntaxUID"] == "1.2.840.10008.1.2.1"
    assert {*ATTRIBUTES, "path", "size", "mtime_ns"} < set(row.index)
    assert (row["size"], row["mtime_ns"]) == ((root / "a").stat().st_size, (root / "a").stat().st_mtime_ns)


def test_a_second_scan_opens_nothing(make: Make, root: Path, index: Path, opened: list[str]) -> None:
    for name in "abc":
        make(root / name)
    (root / "text").write_text("no DICOM")
    opened.clear()
    first = look(root, index)
    assert sorted(opened) == ["a", "b", "c", "text"]
    opened.clear()
    second = look(root, index)
    assert (opened, second.opened) == ([], 0)
    pd.testing.assert_frame_equal(first.instances, second.instances)
    assert first.left_out == second.left_out


def test_only_what_changed_is_opened_and_what_vanished_is_gone(
    make: Make, root: Path, index: Path, opened: list[str]
) -> None:
    for name in ("changed", "same", "vanished", "touched"):
        make(root / name)
    look(root, index)
    make(root / "changed", PatientID="MRN2")
    os.utime(root / "changed", ns=(1, (root / "changed").stat().st_mtime_ns + 1))
    os.utime(root / "touched", ns=(1, 1))
    make(root / "added")
    (root / "vanished").unlink()
    opened.clear()
    found = look(root, index)
    assert sorted(opened) == ["added", "changed", "touched"]
    assert found.opened == 3
    assert sorted(paths(found)) == ["added", "changed", "same", "touched"]
    assert found.instances.set_index("path")["PatientID"]["changed"] == "MRN2"


def test_other_settings_of_the_site_need_no_reading(make: Make, root: Path, index: Path) -> None:
    make(root / "us", Modality="US", SeriesInstanceUID="1.1")
    make(root / "mr")
    assert look(root, index).left_out == {Reason.MODALITY: 1}
    found = look(root, index, "US")
    assert (found.opened, found.left_out) == (0, {Reason.MODALITY: 1, Reason.BURNED_IN: 1})
    found = look(root, index, "US", "MR", burned_in="allow-unmarked")
    assert (found.opened, found.left_out) == (0, {})


def test_other_attributes_another_root_and_another_version_build_the_index_anew(
    make: Make, root: Path, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(root / "a")
    assert look(root, index).opened == 1
    assert look(root, index, attributes=["StudyDate", "StudyID"]).opened == 1
    assert look(root, index, attributes=["StudyID", "StudyDate"]).opened == 0
    root.rename(tmp_path / "moved")
    assert look(tmp_path / "moved", index, attributes=["StudyID", "StudyDate"]).opened == 1
    monkeypatch.setattr(store, "VERSION", store.VERSION + 1)
    assert look(tmp_path / "moved", index, attributes=["StudyID", "StudyDate"]).opened == 1


def test_an_interrupted_scan_goes_on_where_it_stopped(
    make: Make, root: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("silos.dicom.scan.BATCH", 4)
    for number in range(10):
        make(root / f"{number}")

    def interrupt(done: int, total: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        look(root, index, progress=interrupt)
    seen: list[tuple[int, int]] = []
    found = look(root, index, progress=lambda done, total: seen.append((done, total)))
    assert found.opened == 6
    assert seen == [(done, 10) for done in range(5, 11)]
    assert len(found.instances) == 10


def test_a_tree_that_went_back_to_what_it_was_during_an_interrupted_scan_is_read_again(
    make: Make, root: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("silos.dicom.scan.BATCH", 1)
    old = make(root / "a").read_bytes()
    make(root / "b")
    stamp = (root / "a").stat().st_mtime_ns
    look(root, index)
    make(root / "a", PatientID="MRN2")
    os.utime(root / "a", ns=(1, 1))
    os.utime(root / "b", ns=(1, 1))

    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        look(root, index, progress=interrupt)
    (root / "a").write_bytes(old)
    os.utime(root / "a", ns=(stamp, stamp))
    assert set(look(root, index).instances["PatientID"]) == {"MRN1"}


def test_the_index_is_private_and_pandas_reads_it(make: Make, root: Path, index: Path) -> None:
    make(root / "a")
    (root / "b").write_text("text")
    look(root, index)
    assert stat.S_IMODE(index.stat().st_mode) == 0o600
    with closing(sqlite3.connect(index)) as database:
        table = pd.read_sql("SELECT path, size, reason, Modality FROM files ORDER BY path", database)
    assert table["path"].tolist() == ["a", "b"]
    assert table["size"].tolist() == [(root / "a").stat().st_size, 4]
    assert table["Modality"].tolist() == ["MR", ""]
    assert table["reason"].fillna("").tolist() == ["", "not DICOM"]


def test_an_index_that_others_could_read_is_closed_to_them(make: Make, root: Path, index: Path) -> None:
    make(root / "a")
    look(root, index)
    index.chmod(0o644)
    assert look(root, index).opened == 0
    assert stat.S_IMODE(index.stat().st_mode) == 0o600


def test_what_was_not_asked_for_is_not_in_the_index(make: Make, root: Path, index: Path) -> None:
    make(root / "a")
    look(root, index)
    assert b"MRN1" in index.read_bytes()
    assert b"Hollowbrook" in (root / "a").read_bytes()
    assert b"Hollowbrook" not in index.read_bytes()


@pytest.mark.parametrize("damage", ["text", "pages", "cut"])
def test_a_damaged_index_is_built_anew_with_a_warning_that_names_no_path(
    damage: str, make: Make, root: Path, index: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(100):
        make(root / f"{number}")
    look(root, index)
    content = index.read_bytes()
    index.write_bytes(
        {
            "text": b"this is no database" * 100,
            "pages": content[:4096] + b"\xa5" * (len(content) - 4096),
            "cut": content[:9000],
        }[damage]
    )
    caplog.set_level(logging.INFO)
    found = look(root, index)
    assert (found.opened, len(found.instances)) == (100, 100)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert caplog.records[0].name == "intramural"
    assert str(root.parent) not in caplog.text
    assert look(root, index).opened == 0


def test_an_index_in_use_is_an_error_and_is_not_deleted(
    make: Make, root: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(root / "a")
    look(root, index)
    real = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path: real(path, timeout=0.01))
    with closing(real(index, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(DataError, match=r"run\.work: .*locked"):
            look(root, index)
        other.execute("ROLLBACK")
    assert look(root, index).opened == 0


def cut(path: Path, by: int) -> None:
    path.write_bytes(path.read_bytes()[:-by])


def text(path: Path) -> None:
    path.write_text("\x08 plain text " * 100)


def compressed(path: Path) -> None:
    path.write_bytes(gzip.compress(path.read_bytes()))


def mislabelled(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.2\0"))


RGB = np.zeros((4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("reason", "attributes", "spoil"),
    [
        (Reason.NOT_DICOM, {}, text),
        (Reason.NOT_DICOM, {}, compressed),
        (Reason.NOT_DICOM, {}, lambda path: path.write_bytes(b"\x08\x00 begins like one" * 50)),
        (Reason.NOT_DICOM, {}, lambda path: path.write_bytes(b"")),
        (Reason.TRUNCATED, {}, lambda path: cut(path, 2)),
        (Reason.TRUNCATED, {}, lambda path: cut(path, 32 * 48 * 2 + 30)),
        (Reason.TRUNCATED, {"syntax": uid.RLELossless}, lambda path: cut(path, 8)),
        (Reason.TRUNCATED, {"syntax": uid.DeflatedExplicitVRLittleEndian}, lambda path: cut(path, 40)),
        (Reason.TRUNCATED, {"NumberOfFrames": 100000}, None),
        (Reason.UNREADABLE, {}, mislabelled),
        (Reason.NO_IMAGE, {"PixelData": None}, None),
        (Reason.MODALITY, {"Modality": "SEG"}, None),
        (Reason.MODALITY, {"Modality": "CT", "NumberOfFrames": 1}, None),
        (Reason.SECONDARY_CAPTURE, {"SOPClassUID": SECONDARY_CAPTURE}, None),
        (Reason.SECONDARY_CAPTURE, {"SOPClassUID": SECONDARY_CAPTURE + ".2"}, None),
        (Reason.SECONDARY_CAPTURE, {"ConversionType": "WSD"}, None),
        (Reason.SECONDARY_CAPTURE, {"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, None),
        (Reason.SECONDARY_CAPTURE, {"Modality": "OT"}, None),
        (Reason.BURNED_IN, {"BurnedInAnnotation": "YES"}, None),
        (Reason.BURNED_IN, {"Modality": "US"}, None),
        (Reason.COLOUR, {"array": RGB, "SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, None),
        (Reason.COLOUR, {"PhotometricInterpretation": "PALETTE COLOR"}, None),
        (Reason.SEVERAL_FRAMES, {"NumberOfFrames": 2, "Rows": 16}, None),
        (Reason.PIXELS, {"BitsAllocated": 12}, None),
        (Reason.PIXELS, {"PhotometricInterpretation": None}, None),
        (Reason.PIXELS, {"HighBit": 15}, None),
    ],
)
def test_what_cannot_be_used_is_counted_in_plain_words(
    reason: Reason,
    attributes: dict[str, Any],
    spoil: Callable[[Path], Any] | None,
    make: Make,
    root: Path,
    index: Path,
) -> None:
    make(root / "good", SeriesInstanceUID="1.2.3.5")
    path = make(root / "bad", **attributes)
    if spoil:
        spoil(path)
    found = look(root, index, "MR", "US")
    assert paths(found) == ["good"]
    assert found.left_out == {reason.value: 1}
    assert look(root, index, "MR", "US").left_out == found.left_out


@pytest.mark.parametrize(
    "attributes",
    [
        {"ImageType": ["DERIVED", "SECONDARY", "MPR"]},
        {"BurnedInAnnotation": "NO"},
        {"NumberOfFrames": 1},
        {"HighBit": None},
        {"SOPInstanceUID": ""},
        {"SeriesInstanceUID": None, "PatientID": None},
    ],
)
def test_what_is_only_unusual_is_used(attributes: dict[str, Any], make: Make, root: Path, index: Path) -> None:
    make(root / "a", **attributes)
    make(root / "b", **attributes)
    assert sorted(paths(look(root, index))) == ["a", "b"]


def test_a_series_that_disagrees_on_its_modality_is_left_out_whole(make: Make, root: Path, index: Path) -> None:
    for name, modality in [("a", "MR"), ("b", "MR"), ("c", "CT")]:
        make(root / name, Modality=modality)
    make(root / "other", SeriesInstanceUID="1.2.3.5")
    found = look(root, index)
    assert paths(found) == ["other"]
    assert found.left_out == {Reason.SEVERAL_MODALITIES: 3}


def test_of_two_files_with_one_identity_the_first_usable_path_stays(make: Make, root: Path, index: Path) -> None:
    for name in ("a-broken", "b", "c/d", "e"):
        make(root / name, SOPInstanceUID="1.2.3.4.5")
    cut(root / "a-broken", 2)
    found = look(root, index)
    assert paths(found) == ["b"]
    assert found.left_out == {Reason.TRUNCATED: 1, Reason.DUPLICATE: 2}


def test_of_each_reason_the_first_file_is_named(make: Make, root: Path, index: Path) -> None:
    make(root / "a")
    for name in ("x/2", "x/1", "b"):
        make(root / name, Modality="US", SeriesInstanceUID="1.2.3.5")
    cut(make(root / "c"), 2)
    assert look(root, index).examples == {Reason.TRUNCATED: "c", Reason.MODALITY: "b"}


def test_every_reason_of_a_scan_has_a_test() -> None:
    marks = test_what_cannot_be_used_is_counted_in_plain_words.pytestmark  # type: ignore[attr-defined]
    tested = {case[0] for case in marks[0].args[1]}
    assert tested | {Reason.SEVERAL_MODALITIES, Reason.DUPLICATE} == set(Reason)


def test_links_are_followed_once_and_only_regular_files_are_opened(make: Make, root: Path, index: Path) -> None:
    make(root / "a" / "image")
    (root / "a" / "loop").symlink_to(root)
    (root / "itself").symlink_to(root / "itself")
    os.mkfifo(root / "pipe")
    (root / "device").symlink_to("/dev/zero")
    found = look(root, index)
    assert paths(found) == [os.path.join("a", "image")]
    assert found.left_out == {Reason.UNREADABLE: 1}


def test_folders_that_cannot_be_opened_are_named_until_they_can(
    make: Make, root: Path, index: Path, shut: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("shut/1", "open/2", "open/within/3"):
        make(root / name)
    with monkeypatch.context() as patch:
        shut(patch, root / "shut", root / "open" / "within")
        for _ in range(2):
            found = look(root, index)
            assert found.closed == tuple(f"{root / name}: Permission denied" for name in ("open/within", "shut"))
            assert found.left_out == {Reason.UNREADABLE: 2}
    found = look(root, index)
    assert (found.closed, found.left_out, len(paths(found))) == ((), {}, 3)


def test_a_folder_that_shows_only_names_is_named_once_and_a_link_that_leads_nowhere_is_not(
    make: Make, root: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(root / "image")
    (root / "names").mkdir()
    (root / "link").symlink_to(root / "gone")
    real = os.scandir

    def only_names(path: Any = ".") -> Any:
        """As of a folder of mode 0644, in which nothing can be reached."""
        if path != root / "names":
            return real(path)
        listing = MagicMock()
        listing.__iter__.return_value = entries = [MagicMock(), MagicMock()]
        for number, entry in enumerate(entries):
            entry.name = str(number)
            entry.stat.side_effect = PermissionError(13, "Permission denied")
            entry.is_symlink.return_value = False
        return listing

    monkeypatch.setattr(os, "scandir", only_names)
    found = look(root, index)
    assert found.closed == (f"{root / 'names'}: Permission denied",)
    assert found.left_out == {Reason.UNREADABLE: 3}


def test_a_file_that_could_not_be_opened_is_tried_again(
    make: Make, root: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(root / "a")
    make(root / "b")
    with monkeypatch.context() as patch:
        real = builtins.open

        def deny(file: Any, *args: Any, **kwargs: Any) -> Any:
            if file == root / "b":
                raise PermissionError(13, "Permission denied")
            return real(file, *args, **kwargs)

        patch.setattr(builtins, "open", deny)
        assert look(root, index).left_out == {Reason.UNREADABLE: 1}
    found = look(root, index)
    assert (found.opened, sorted(paths(found))) == (1, ["a", "b"])


def test_a_name_that_is_no_utf8_is_a_name(make: Make, root: Path, index: Path) -> None:
    name = os.fsdecode(b"M\xfcller.dcm")
    make(root / name)
    for opened in (1, 0):
        found = look(root, index)
        assert (paths(found), found.opened) == ([name], opened)
    assert read_image(root / paths(found)[0]).shape == (32, 48)
    (root / name).rename(root / "plain")
    assert paths(look(root, index)) == ["plain"]


def test_the_root_is_never_written(make: Make, root: Path, index: Path) -> None:
    make(root / "a" / "b")
    before = {path: path.stat().st_mtime_ns for path in [root, *root.rglob("*")]}
    look(root, index)
    assert {path: path.stat().st_mtime_ns for path in [root, *root.rglob("*")]} == before
    with pytest.raises(DataError, match=r"run\.work.*inside data\.root"):
        look(root, root / "a" / "index.sqlite")
    assert sorted(path.name for path in (root / "a").iterdir()) == ["b"]


@pytest.mark.parametrize(
    ("kind", "words"),
    [("missing", "does not exist"), ("file", "is not a folder"), ("empty", "holds no file")],
)
def test_a_root_that_is_none_is_named(kind: str, words: str, tmp_path: Path, index: Path) -> None:
    path = tmp_path / kind
    if kind == "file":
        path.write_text("")
    elif kind == "empty":
        path.mkdir()
    with pytest.raises(DataError, match=rf"data\.root: .*{kind} {words}") as caught:
        look(path, index)
    assert caught.value.hint


@pytest.mark.parametrize("keyword", ["NoSuchKeyword", "ReferencedStudySequence", "PixelData"])
def test_an_attribute_that_is_no_text_is_refused(keyword: str, make: Make, root: Path, index: Path) -> None:
    make(root / "a")
    with pytest.raises(DataError, match=keyword):
        look(root, index, attributes=[keyword])


def test_every_file_that_pydicom_ships_is_read_or_left_out_for_a_reason(
    index: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = Path(data_manager.DATA_ROOT)
    found = look(folder, index, "CT", "MR", "US", "OT", "RTDOSE", "CR", "XA", "SEG", burned_in="allow-unmarked")
    refused = 0
    for path in found.instances["path"]:
        try:
            assert np.isfinite(read_image(folder / path)).all()
        except UnreadableFile:
            refused += 1
    assert capfd.readouterr().err == ""
    assert len(found.instances) + len(found.annotations) + sum(found.left_out.values()) == found.files > 100
    assert len(found.instances) - refused > 15
    assert refused < 5
    assert set(found.left_out) <= set(Reason)


@pytest.mark.zoo
def test_the_zoo_is_scanned_in_seconds_and_whatever_is_found_decodes_or_says_why(
    zoo: Path, index: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    modalities = pd.read_csv(zoo / "manifest.csv")["Modality"].dropna().unique()
    found = look(zoo, index, *modalities, burned_in="allow-unmarked")
    refused = 0
    for path in found.instances["path"]:
        try:
            read_image(zoo / path)
        except UnreadableFile:
            refused += 1
    assert time.monotonic() - began < 60
    assert capfd.readouterr().err == ""
    assert found.files == sum(path.is_file() for path in zoo.rglob("*"))
    assert len(found.instances) > 40
    assert refused < 5
    reasons = set(found.left_out)
    assert {Reason.NOT_DICOM, Reason.TRUNCATED, Reason.NO_IMAGE, Reason.DUPLICATE, Reason.COLOUR} <= reasons


@pytest.mark.zoo
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("text_not_dicom", Reason.NOT_DICOM),
        ("gzipped", Reason.NOT_DICOM),
        ("zero_byte", Reason.NOT_DICOM),
        ("truncated_in_meta", Reason.TRUNCATED),
        ("truncated_in_header", Reason.TRUNCATED),
        ("rows_cols_65535", Reason.TRUNCATED),
        ("frames_100000", Reason.TRUNCATED),
        ("pixeldata_len_4G", Reason.TRUNCATED),
        ("le_labelled_bigendian", Reason.UNREADABLE),
        ("missing_pixeldata", Reason.NO_IMAGE),
        ("phi_burned_in_flagged", Reason.BURNED_IN),
        ("same_sop_uid_other_pixels", Reason.DUPLICATE),
    ],
)
def test_each_broken_file_of_the_zoo_is_left_out_for_its_own_reason(
    name: str, reason: Reason, zoo: Path, root: Path, index: Path
) -> None:
    for file in ("phi_private_tags", name):
        (root / file).write_bytes((zoo / "derived" / f"{file}.dcm").read_bytes())
    assert look(root, index, "CT").left_out == {reason: 1}


@pytest.mark.lgg
@pytest.mark.parametrize(
    ("hospital", "images", "masks"),
    [("north", 284, 13), ("east", 1539, 36), ("south", 505, 11), ("west", 853, 27), ("tiny", 24, 1)],
)
def test_every_image_and_mask_of_each_hospital_is_found(
    hospital: str, images: int, masks: int, lgg: Path, index: Path
) -> None:
    root = lgg / hospital / "dicom"
    found = look(root, index)
    assert len(found.instances) == images
    assert (len(found.annotations), set(found.annotations["Modality"])) == (masks, {"SEG"})
    assert found.left_out == {}
    assert (found.instances["SOPInstanceUID"].nunique(), set(found.instances["Modality"])) == (images, {"MR"})
    assert look(root, index).opened == 0
