"""What the image cache promises: each image decoded once, never the wrong one, for its owner only."""

import importlib.metadata
import os
import re
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydicom
import pytest
import torch

from models import tasks
from models.errors import DataError
from models.plan import Classification, Plan
from models.tasks import Case
from silos import cohort, dataset, reading
from silos.cohort import Cohort
from silos.config import Site
from silos.dataset import Dataset, InMemory
from silos.dicom.decode import read_image
from silos.dicom.header import Reason, UnreadableFile
from silos.dicom.scan import scan
from silos.packed import Packed, pack, row_type

IMAGES = 36


HALF_A_STEP = 0.5 / (2**16 - 1) + 1e-7  # and the rounding of float32


def unpacked(image: np.ndarray) -> np.ndarray:
    return Packed(np.frombuffer(pack(image), row_type(image.shape)))[0]


class Hospital:
    """A copy of a make-believe hospital's images, and what a study makes of them."""

    def __init__(self, site: Site, plan: Plan, folder: Path) -> None:
        self.root, self.work = folder / "dicom", folder / "work"
        self.data, self.plan = site.data.model_copy(update={"root": self.root}), plan
        shutil.copytree(site.data.root, self.root)

    @property
    def cache(self) -> Path:
        return self.work / "cache"

    def task(self, **changes: Any) -> Classification:
        return Classification.model_validate(self.plan.task.model_dump() | changes)

    def cohort(self) -> Cohort:
        join = list(self.data.labels.join)
        found = scan(self.root, self.work / "index.sqlite", modality=["MR"], attributes=join)
        return cohort.match(found.instances, self.data, self.plan.task.classes, found.left_out)

    def prepare(self, cases: Cohort | None = None, **changes: Any) -> Dataset:
        settings = self.task(**changes)
        return dataset.prepare(cases or self.cohort(), self.data, self.cache, settings, tasks.task(settings))

    def check(self, found: Dataset, **changes: Any) -> None:
        """Every image and class of both sides is that of the file it belongs to."""
        task = tasks.task(self.task(**changes))
        for held_out, side in ((False, found.train), (True, found.held_out)):
            cases = found.cohort.side(held_out)
            taken = side.take(np.arange(len(cases)))
            for path, target, case in zip(cases["path"], cases["target"], taken, strict=True):
                image = task.prepare(Case(read_image(self.root / path))).image
                assert case.image.shape == (1, *self.task(**changes).size)
                assert case.image.dtype == np.float32
                assert np.abs(case.image - image).max() <= HALF_A_STEP * np.ptp(image)
                assert case.image.tobytes() == unpacked(image).tobytes()
                assert case.label == target
            assert side.targets.tolist() == cases["target"].tolist()
            assert side.targets.dtype == np.int64

    def images_file(self) -> Path:
        (path,) = self.cache.glob("*/images")
        return path


@pytest.fixture
def hospital(phantom: Callable[[int], Site], make_plan: Callable[..., Plan], tmp_path: Path) -> Hospital:
    return Hospital(phantom(0), make_plan(), tmp_path)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are decoded from now on."""
    names: list[str] = []

    def counting(path: Path) -> np.ndarray:
        names.append(path.name)
        return read_image(path)

    monkeypatch.setattr(reading, "read_image", counting)
    return names


def exchange_pixels(path: Path, other: Path) -> None:
    """A file changes: its header, and so its label, stays; its pixels become another image's."""
    image, source = pydicom.dcmread(path), pydicom.dcmread(other)
    image.PixelData, image.RescaleSlope = source.PixelData, source.RescaleSlope
    changed = path.stat().st_mtime_ns + 1_000_000_000
    image.save_as(path)
    os.utime(path, ns=(changed, changed))


# --- what is in it ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{}, {"size": [24, 20]}, {"size": [40, 40]}, {"percentiles": None, "window": [500.0, 1000.0]}],
)
def test_every_row_is_the_prepared_image_of_its_own_case(hospital: Hospital, changes: dict[str, Any]) -> None:
    found = hospital.prepare(**changes)
    assert len(found.train.targets) + len(found.held_out.targets) == IMAGES
    assert len(found.held_out.targets) > 0
    hospital.check(found, **changes)


def test_images_can_be_taken_in_any_order_and_more_than_once(hospital: Hospital) -> None:
    train = hospital.prepare().train
    everything = train.take(np.arange(len(train)))
    rows = np.array([7, 0, 7, 3])
    for row, case in zip(rows, train.take(rows), strict=True):
        np.testing.assert_array_equal(case.image, everything[row].image)
        assert case.label == everything[row].label


def test_what_training_is_given_is_a_copy_that_it_may_change(hospital: Hospital) -> None:
    found = hospital.prepare()
    taken = found.train.take(np.arange(3))
    taken[0].image.fill(-1)
    inputs, _ = tasks.task(hospital.task()).sample(taken, torch.Generator())
    inputs.fill_(-1)
    hospital.check(found)


def test_a_cohort_without_cases_has_no_images(hospital: Hospital) -> None:
    everybody = hospital.cohort()
    nobody = everybody.without(dict.fromkeys(everybody.cases["path"], "gone"))
    found = hospital.prepare(nobody)
    assert (len(found.train.targets), len(found.held_out.targets)) == (0, 0)
    assert found.train.take(np.arange(0)) == []


# --- decoding once ------------------------------------------------------------------------------------


def test_the_second_time_nothing_is_decoded_and_the_images_are_the_same(hospital: Hospital, decoded: list[str]) -> None:
    hospital.prepare()
    assert len(decoded) == IMAGES
    decoded.clear()
    hospital.check(hospital.prepare())
    assert decoded == []


def test_a_changed_file_is_prepared_anew_and_no_other(hospital: Hospital, decoded: list[str]) -> None:
    cases = hospital.prepare().cohort.cases["path"]
    changed, other = hospital.root / cases.iloc[5], hospital.root / cases.iloc[30]
    assert not np.array_equal(read_image(changed), read_image(other))
    exchange_pixels(changed, other)
    decoded.clear()
    found = hospital.prepare()
    assert decoded == [changed.name]
    np.testing.assert_array_equal(read_image(changed), read_image(other))
    hospital.check(found)


def test_new_files_are_added_and_the_old_ones_not_decoded_again(hospital: Hospital, decoded: list[str]) -> None:
    everybody = hospital.cohort()
    late = list(everybody.cases["path"][::3])
    hospital.prepare(everybody.without(dict.fromkeys(late, "not yet here")))
    decoded.clear()
    hospital.check(hospital.prepare())
    assert sorted(decoded) == sorted(Path(path).name for path in late)


def test_a_file_that_is_gone_leaves_the_others_as_they_were(hospital: Hospital, decoded: list[str]) -> None:
    cases = hospital.prepare().cohort.cases["path"]
    (hospital.root / cases.iloc[0]).unlink()
    decoded.clear()
    found = hospital.prepare()
    assert decoded == []
    assert len(found.cohort.cases) == IMAGES - 1
    hospital.check(found)


@pytest.mark.parametrize(
    "changes",
    [{"size": [24, 24]}, {"percentiles": [2, 98]}, {"percentiles": None, "window": [500.0, 1000.0]}],
)
def test_another_preparation_has_another_cache(hospital: Hospital, decoded: list[str], changes: dict[str, Any]) -> None:
    hospital.prepare()
    decoded.clear()
    hospital.check(hospital.prepare(**changes), **changes)
    assert len(decoded) == IMAGES
    assert len(list(hospital.cache.iterdir())) == 2
    decoded.clear()
    hospital.check(hospital.prepare())
    assert decoded == []


def test_another_folder_has_another_cache_though_its_files_look_the_same(hospital: Hospital, tmp_path: Path) -> None:
    """An archive that is unpacked gives files the times that it holds; an export of other pixels may be as large."""
    hospital.prepare()
    first = hospital.root
    hospital.root = tmp_path / "another"
    shutil.copytree(first, hospital.root)
    hospital.data = hospital.data.model_copy(update={"root": hospital.root})
    for path in hospital.cohort().cases["path"]:
        image, before = pydicom.dcmread(hospital.root / path), (hospital.root / path).stat()
        image.PixelData = image.PixelData[::-1]
        image.save_as(hospital.root / path)
        os.utime(hospital.root / path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (hospital.root / path).stat().st_size == before.st_size
    hospital.check(hospital.prepare())


def test_one_folder_has_one_cache_whatever_leads_to_it(hospital: Hospital, decoded: list[str], tmp_path: Path) -> None:
    hospital.prepare()
    decoded.clear()
    (tmp_path / "link").symlink_to(hospital.root)
    hospital.data = hospital.data.model_copy(update={"root": tmp_path / "link"})
    hospital.check(hospital.prepare())
    assert decoded == []


def test_two_windows_are_two_preparations(hospital: Hospital) -> None:
    for window in ([500.0, 1000.0], [400.0, 300.0]):
        hospital.check(hospital.prepare(percentiles=None, window=window), percentiles=None, window=window)


def test_what_does_not_change_an_image_does_not_change_the_cache(hospital: Hospital, decoded: list[str]) -> None:
    hospital.prepare()
    decoded.clear()
    hospital.check(hospital.prepare(augment=True, network={"name": "resnet18"}))
    assert decoded == []


def test_progress_counts_the_images_that_are_not_there_yet(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "_BATCH", 16)
    settings, told = hospital.task(), []
    for _ in range(2):
        dataset.prepare(
            hospital.cohort(),
            hospital.data,
            hospital.cache,
            settings,
            tasks.task(settings),
            lambda done, total: told.append((done, total)),
        )
    assert told == [(16, 36), (32, 36), (36, 36)]


# --- trouble ------------------------------------------------------------------------------------------


def test_unreadable_pixels_are_left_out_and_counted_and_the_rest_is_right(hospital: Hospital) -> None:
    paths = hospital.cohort().cases["path"]
    everybody = hospital.cohort()
    for path in paths[[0, 10, 35]]:  # damaged after the scan has seen them
        file = hospital.root / path
        file.write_bytes(file.read_bytes()[:-100])
    found = hospital.prepare(everybody)
    assert len(found.cohort.cases) == IMAGES - 3
    assert sum(found.cohort.left_out.values()) == 3
    assert set(found.cohort.left_out) <= {reason.value for reason in Reason}
    hospital.check(found)


def test_an_image_that_could_not_be_reached_once_is_there_the_next_time(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network drive that hiccups must not cost a patient for ever."""
    unreachable = hospital.cohort().cases["path"].iloc[3]

    def failing(path: Path) -> np.ndarray:
        if path == hospital.root / unreachable:
            raise UnreadableFile(path, Reason.UNREADABLE, "Stale file handle")
        return read_image(path)

    with monkeypatch.context() as patch:
        patch.setattr(reading, "read_image", failing)
        assert hospital.prepare().cohort.left_out == {Reason.UNREADABLE.value: 1}
    found = hospital.prepare()
    assert found.cohort.left_out == {}
    hospital.check(found)


def test_what_another_decoder_refused_is_tried_again_with_the_decoder_that_is_installed_now(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(path: Path) -> np.ndarray:
        raise UnreadableFile(path, Reason.PIXELS)

    with monkeypatch.context() as patch:
        patch.setattr(reading, "read_image", refusing)
        assert hospital.prepare().cohort.left_out == {Reason.PIXELS.value: IMAGES}
    assert hospital.prepare().cohort.left_out == {Reason.PIXELS.value: IMAGES}
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: version(name) + (".1" if name == "pylibjpeg-rle" else "")
    )
    hospital.check(hospital.prepare())


@pytest.mark.parametrize("after", [0, 1, 5, 17, 35])
def test_work_that_was_interrupted_goes_on_where_it_stopped_and_loses_and_doubles_nothing(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, decoded: list[str], after: int
) -> None:
    monkeypatch.setattr(dataset, "_BATCH", 5)
    counting = reading.read_image

    def dying(path: Path) -> np.ndarray:
        if len(decoded) == after:
            raise KeyboardInterrupt
        return counting(path)

    with monkeypatch.context() as patch:
        patch.setattr(reading, "read_image", dying)
        with pytest.raises(KeyboardInterrupt):
            hospital.prepare()
    decoded.clear()
    found = hospital.prepare()
    assert len(decoded) == IMAGES - after // 5 * 5
    assert len(found.train.targets) + len(found.held_out.targets) == IMAGES
    hospital.check(found)
    assert hospital.images_file().stat().st_size == IMAGES * row_type((1, 16, 16)).itemsize


def test_half_a_row_that_a_killed_process_left_behind_does_no_harm(hospital: Hospital, decoded: list[str]) -> None:
    everybody = hospital.cohort()
    first = everybody.without(dict.fromkeys(everybody.cases["path"][20:], "not yet here"))
    hospital.prepare(first)
    with hospital.images_file().open("ab") as file:
        file.write(b"\x01" * 1500)
    hospital.check(hospital.prepare(first))  # as when another study needs no more images
    hospital.check(hospital.prepare(everybody))
    assert len(decoded) == IMAGES


def test_images_that_somebody_deleted_are_decoded_again(hospital: Hospital) -> None:
    everybody = hospital.cohort()
    hospital.prepare(everybody.without(dict.fromkeys(everybody.cases["path"][20:], "not yet here")))
    hospital.images_file().unlink()
    hospital.check(hospital.prepare(everybody))
    hospital.images_file().unlink()
    hospital.check(hospital.prepare(everybody))


def test_what_one_process_has_mapped_is_not_written_over_when_another_finds_its_last_case_damaged(
    hospital: Hospital,
) -> None:
    """Else one patient's image would be trained on under another's label."""
    everybody = hospital.cohort()
    late = everybody.cases["path"].iloc[-1]
    without_late = everybody.without({late: "not yet here"})
    training = hospital.prepare(without_late)
    last = hospital.root / without_late.cases["path"].iloc[-1]
    content, age = last.read_bytes(), last.stat().st_mtime_ns
    last.write_bytes(content[:-100])
    os.utime(last, ns=(age + 1, age + 1))
    stamps = without_late.cases["stamp"].where(without_late.cases["path"] != without_late.cases["path"].iloc[-1], "new")
    changed = replace(without_late, cases=without_late.cases.assign(stamp=stamps))
    assert len(hospital.prepare(changed).cohort.cases) == IMAGES - 2
    hospital.prepare(everybody)
    last.write_bytes(content)
    hospital.check(training)


def test_two_processes_that_fill_one_cache_never_mix_up_its_rows(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when somebody previews a study while the silo decodes for it; the second may wait or give up."""
    monkeypatch.setattr(dataset, "_BATCH", 8)
    everybody = hospital.cohort()
    backwards = replace(everybody, cases=everybody.cases[::-1].reset_index(drop=True))
    halfway, go_on = threading.Event(), threading.Event()
    read: list[str] = []

    def slow(path: Path) -> np.ndarray:
        if threading.current_thread().name == "first":
            read.append(path.name)
            if len(read) == 13:
                halfway.set()
                go_on.wait(30)
        return read_image(path)

    monkeypatch.setattr(reading, "read_image", slow)
    found: list[Dataset] = []
    errors: list[Exception] = []

    def work(cases: Cohort) -> None:
        try:
            found.append(hospital.prepare(cases))
        except Exception as error:
            errors.append(error)

    first = threading.Thread(target=work, args=(everybody,), name="first")
    second = threading.Thread(target=work, args=(backwards,), name="second")
    first.start()
    assert halfway.wait(30)
    second.start()
    second.join(0.5)
    go_on.set()
    first.join(30)
    second.join(30)
    assert not first.is_alive()
    assert not second.is_alive()
    assert all(isinstance(error, DataError) for error in errors)
    assert found
    for each in [*found, hospital.prepare(everybody)]:
        hospital.check(each)


def test_a_path_that_is_no_text_is_as_good_as_any(hospital: Hospital) -> None:
    path = hospital.root / hospital.cohort().cases["path"].iloc[0]
    try:
        path.rename(path.with_name(os.fsdecode(b"Z\xfcrich.dcm")))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    found = hospital.prepare()
    assert any(b"Z\xfcrich" in os.fsencode(path) for path in found.cohort.cases["path"])
    hospital.check(found)
    hospital.check(hospital.prepare())


def test_a_cache_whose_place_is_taken_says_where_and_what_to_do(hospital: Hospital) -> None:
    everybody = hospital.cohort()
    hospital.cache.write_text("not a folder")
    with pytest.raises(DataError, match=re.escape(f"run.work: the image cache {hospital.cache}")) as caught:
        hospital.prepare(everybody)
    assert caught.value.hint


def test_only_the_owner_can_read_the_cache(hospital: Hospital) -> None:
    before = os.umask(0o022)
    try:
        hospital.prepare()
    finally:
        os.umask(before)
    (folder,) = hospital.cache.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    files = [file for file in folder.iterdir() if file.is_file()]
    assert {file.name for file in files} >= {"images", "index.sqlite"}
    for file in files:
        assert file.stat().st_mode & 0o777 == 0o600


def test_metrics_tell_of_the_held_out_patients_in_whom_something_is_drawn() -> None:
    cases = pd.DataFrame({"held_out": [True] * 4 + [False], "patient": ["a", "a", "b", "c", "d"]})
    image = np.zeros((1, 2, 2), np.float32)
    drawn = [Case(image, mask=np.full((2, 2), value, np.uint8)) for value in (0, 1, 0, 1)]
    nobody = InMemory((), np.empty(0, np.int64))
    matched = Cohort(cases, {}, ("lesion",))
    assert Dataset(matched, nobody, InMemory(tuple(drawn), np.full(4, -1))).judged == 2  # b has nothing
    labelled = tuple(Case(image, label=0) for _ in range(4))
    assert Dataset(matched, nobody, InMemory(labelled, np.zeros(4, np.int64))).judged == 3
