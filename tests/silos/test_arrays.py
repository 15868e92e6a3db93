"""A hospital whose cases are arrays: for methods, with everything else as it is with DICOM."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aggregator import LocalGrid, Study, run
from models import tasks
from models.errors import ConfigError, DataError
from models.ledger import Signer
from models.plan import Plan
from silos.check import check_site
from silos.cohort import Arrays, match_arrays, read_arrays, write_arrays
from silos.config import Data, Site
from silos.visit import load_cohort, load_data

SITE = """
name = "{name}"
key = "{name}.key"
[data]
arrays = "cases.npz"
salt = "0123456789abcdef"
[policy]
studies = ["trial"]
tasks = ["classification"]
metrics = ["loss", "auc"]
min_patients = 6
max_rounds = 10
max_bytes = "1 MB"
clip = 10.0
[run]
work = "work"
"""


def cases(seed: int, count: int = 40) -> Arrays:
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    images = rng.normal(labels[:, None, None], 1.0, (count, 40, 40)).astype(np.float32)
    return Arrays(images, labels, np.array([f"p{row // 2}" for row in range(count)]))


@pytest.fixture
def site(tmp_path: Path) -> Callable[[str, Arrays], Path]:
    def write(name: str, arrays: Arrays) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        write_arrays(folder / "cases.npz", arrays)
        Signer.create(folder / f"{name}.key", name)
        (folder / "site.toml").write_text(SITE.format(name=name))
        return folder / "site.toml"

    return write


def data(site: Path) -> Data:
    return Site.load(site).data


def test_hospitals_with_arrays_train_like_others(
    site: Callable[[str, Arrays], Path], write_plan: Callable[..., Path], tmp_path: Path
) -> None:
    sites = [site(name, cases(seed, 100)) for seed, name in enumerate(("east", "north"))]
    with Study.create(write_plan(rounds=1), tmp_path / "study") as study, LocalGrid(sites) as grid:
        rounds = run(study, grid).history.rounds
    assert rounds[1].accepted == ["east", "north"]
    assert set(rounds[1].metrics) == {"east", "north"}


def test_patients_are_split_as_ever_or_as_the_data_come(site: Callable[[str, Arrays], Path]) -> None:
    arrays = cases(1)
    path = site("east", arrays)
    matched = match_arrays(read_arrays(path.parent / "cases.npz"), data(path), ["none", "lesion"])
    assert matched.patients(held_out=False) + matched.patients(held_out=True) == 20
    assert matched.cases.groupby("patient")["held_out"].nunique().max() == 1
    given = replace(arrays, held_out=np.arange(40) >= 30)
    assert match_arrays(given, data(path), ["none", "lesion"]).patients(held_out=True) == 5
    with pytest.raises(DataError, match="puts a patient on both sides"):
        match_arrays(replace(arrays, held_out=np.arange(40) >= 31), data(path), ["none", "lesion"])
    with pytest.raises(DataError, match="labels run from 0 to 1, the study has 1 classes"):
        match_arrays(arrays, data(path), ["none"])


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"images": np.zeros((40, 4, 4))}, "images is float64"),
        ({"labels": np.zeros(39, np.int64)}, r"labels is int64 of shape \(39,\)"),
        ({"patients": np.zeros((40, 2), np.int64)}, r"patients is int64 of shape \(40, 2\)"),
        ({"held_out": np.zeros(40)}, "held_out is float64"),
        ({"images": np.full((40, 4, 4), np.nan, np.float32)}, "images hold NaN"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes: dict[str, np.ndarray], problem: str, tmp_path: Path) -> None:
    arrays = cases(1)
    given = {"images": arrays.images, "labels": arrays.labels, "patients": arrays.patients} | changes
    np.savez(tmp_path / "cases.npz", **given)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=problem):
        read_arrays(tmp_path / "cases.npz")


def test_a_file_that_is_none_or_holds_pickles_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cases\.npz: No such file"):
        read_arrays(tmp_path / "cases.npz")
    (tmp_path / "cases.npz").write_bytes(b"no zip")
    with pytest.raises(ConfigError, match=r"is no \.npz file without pickles"):
        read_arrays(tmp_path / "cases.npz")
    np.savez(tmp_path / "cases.npz", images=np.array([object()], dtype=object))
    with pytest.raises(ConfigError, match=r"is no \.npz file without pickles"):
        read_arrays(tmp_path / "cases.npz")
    np.savez(tmp_path / "cases.npz", images=np.zeros(3), names=np.zeros(3))
    with pytest.raises(ConfigError, match="holds images, names"):
        read_arrays(tmp_path / "cases.npz")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("salt =", 'root = "dicom"\nsalt ='), "give either data.root or data.arrays"),
        (('arrays = "cases.npz"\n', ""), "give either data.root or data.arrays"),
        (("salt =", 'modality = ["MR"]\nsalt ='), "has no modality"),
    ],
)
def test_a_site_has_dicom_or_arrays(change: tuple[str, str], problem: str, tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text(SITE.format(name="east").replace(*change))
    with pytest.raises(ConfigError, match=problem):
        Site.load(tmp_path / "site.toml")


def test_arrays_have_no_masks_for_a_study_that_outlines(site: Callable[[str, Arrays], Path]) -> None:
    path = site("east", cases(1))
    plan = Plan.load(Path(__file__).parents[2] / "configs" / "segmentation.toml")
    for load in (load_cohort, lambda site, plan: load_data(site, plan, tasks.task(plan.task))):
        with pytest.raises(ConfigError, match=r"data\.arrays: .*cases\.npz holds labels, and .* needs what was drawn"):
            load(Site.load(path), plan)
    finding = next(each for each in check_site(path, plan) if each.what == "images and labels")
    assert (finding.ok, "data.arrays" in finding.found) == (False, True)


def test_check_looks_at_arrays_as_it_does_at_dicom(
    site: Callable[[str, Arrays], Path], write_plan: Callable[..., Path]
) -> None:
    path = site("east", replace(cases(1), held_out=np.arange(40) >= 24))
    for plan, told in ((None, "8 0, 8 1"), (Plan.load(write_plan()), "8 none, 8 lesion")):
        findings = {finding.what: finding for finding in check_site(path, plan)}
        assert findings["images and labels"].found == "40 labelled images of 40 x 40 in cases.npz"
        assert findings["patients held out"].found == f"8; images: {told}"
        assert findings["pixels"].found == "a sample of 8 images was read"
        assert ("a batch through the network" in findings) == (plan is not None)
        assert [finding for finding in findings.values() if not finding.ok] == []
    one = replace(cases(1), held_out=np.arange(40) >= 24, labels=(np.arange(40) % 24 == 3).astype(np.int64))
    findings = {finding.what: finding for finding in check_site(site("west", one), None)}
    assert findings["patients held out"].found == "8; images: 15 0, 1 1; too few patients of a class to tell auc"
    assert findings["patients held out"].ok
    volumes = replace(cases(1), images=np.zeros((40, 8, 8, 8), np.float32))
    problems = {finding.what: finding for finding in check_site(site("north", volumes), Plan.load(write_plan()))}
    assert problems["a batch through the network"].found == "an image has 3 axes, the study 2"


def test_what_needs_dicom_says_so_and_what_does_not(site: Callable[[str, Arrays], Path]) -> None:
    with pytest.raises(ConfigError, match=r"data\.root: is missing, and this reads the headers of DICOM") as error:
        _ = data(site("east", cases(1))).folder
    assert "check, preview and training take data.arrays" in error.value.hint
