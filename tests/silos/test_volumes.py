"""Volumes as cases: one label or one mask each, what is left out has a reason, and the cache gives them back."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import generate_uid

from models import tasks
from models.errors import ConfigError
from models.plan import Plan
from models.tasks import Case
from silos import cohort, dataset, reading, visit
from silos.cohort import Cohort
from silos.config import Site
from silos.dataset import Dataset
from silos.dicom.geometry import Misfit
from silos.phantom import STYLES, write_hospital

MakePlan = Callable[..., Plan]
SEGMENTATION: dict[str, Any] = {
    "name": "segmentation",
    "classes": ["lesion"],
    "modality": ["MR"],
    "dimensions": 3,
    "patch": [16, 16, 8],
    "zscore": "nonzero",
    "network": {"name": "unet", "arguments": {"channels": [4, 8], "num_res_units": 0}},
}
CLASSIFICATION: dict[str, Any] = {
    "name": "classification",
    "classes": ["none", "lesion"],
    "modality": ["MR"],
    "dimensions": 3,
    "size": [16, 16, 8],
    "spacing": [12, 12, 6.5],
    "zscore": "nonzero",
    "network": {"name": "cnn", "arguments": {"channels": [4, 8]}},
}


def plan_of(make_plan: MakePlan, task: dict[str, Any], metric: str = "loss") -> Plan:
    plain = make_plan().model_dump(mode="json")
    return Plan.model_validate(plain | {"task": task, "metrics": [metric]})


@pytest.fixture(scope="module", params=range(len(STYLES)), ids=lambda style: STYLES[style].model)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("volumes") / "north"
    path = write_hospital(
        folder, name="north", seed=3, patients=6, images=8, size=32, volumes=True, style=request.param
    )
    return Site.load(path)


def prepared(site: Site, plan: Plan, cases: Cohort, cache: Path) -> Dataset:
    return dataset.prepare(cases, site.data, cache, plan.task, tasks.task(plan.task))


def every(found: Dataset) -> dict[str, Case]:
    return {
        name: case
        for held_out, side in ((False, found.train), (True, found.held_out))
        for name, case in zip(found.cohort.side(held_out)["name"], side.take(np.arange(len(side))), strict=True)
    }


def test_every_volume_has_its_mask_and_comes_out_of_the_cache_as_it_was_read(
    site: Site, make_plan: MakePlan, tmp_path: Path
) -> None:
    plan = plan_of(make_plan, SEGMENTATION)
    cases = visit.load_cohort(site, plan)
    assert (len(cases.cases), cases.left_out) == (6, {})
    late = cases.without({cases.cases["name"][4]: "not yet here"})
    prepared(site, plan, late, tmp_path)
    found = every(prepared(site, plan, cases, tmp_path))
    drawn = 0
    for row in cases.cases.itertuples(index=False):
        case = tasks.task(plan.task).prepare(reading.read_case(row, site.data, plan.task.classes, plan.task.unit))
        kept = found[row.name]
        assert np.abs(np.asarray(kept.image) - case.image).max() <= np.ptp(case.image) / 131070 + 1e-6
        assert kept.spacing == pytest.approx(case.spacing)
        np.testing.assert_array_equal(kept.mask, case.mask)
        assert case.mask is not None
        bright = case.image[0][case.mask == 1]
        assert not bright.size or bright.mean() > np.median(case.image)  # a lesion is bright: mask and image agree
        drawn += bool(bright.size)
    assert drawn == 4  # the others have an annotation that marks nothing


def test_slices_of_volumes_are_cases_of_two_dimensions_with_the_slices_last(site: Site, make_plan: MakePlan) -> None:
    plan = plan_of(make_plan, SEGMENTATION | {"dimensions": 2, "patch": [16, 16]})
    row = next(visit.load_cohort(site, plan).cases.itertuples(index=False))
    case = reading.read_case(row, site.data, plan.task.classes, plan.task.unit)
    assert case.image.shape == (32, 32, 8)
    assert case.spacing == pytest.approx((7.1875, 7.1875, 6.5))


def test_a_volume_takes_the_one_label_of_its_series(site: Site, make_plan: MakePlan, tmp_path: Path) -> None:
    plan = plan_of(make_plan, CLASSIFICATION)
    found = visit.load_cohort(site, plan)
    assert sorted(found.cases["target"]) == [0, 0, 1, 1, 1, 1]
    masks = visit.load_cohort(site, plan_of(make_plan, SEGMENTATION)).cases
    cases = every(prepared(site, plan, found, tmp_path))
    for row in masks.itertuples(index=False):
        mask = reading.read_case(row, site.data, ["lesion"], "volume").mask
        assert mask is not None
        assert cases[row.name].label == int(mask.any())
        assert cases[row.name].image.shape == (1, 16, 16, 8)


def test_a_hospital_is_told_which_table_is_missing(site: Site, make_plan: MakePlan) -> None:
    without = site.model_copy(update={"data": site.data.model_copy(update={"annotations": None})})
    with pytest.raises(ConfigError, match=r"data\.annotations: is missing"):
        visit.load_cohort(without, plan_of(make_plan, SEGMENTATION))
    without = site.model_copy(update={"data": site.data.model_copy(update={"labels": None})})
    for task in (CLASSIFICATION, make_plan().task.model_dump(mode="json")):
        with pytest.raises(ConfigError, match=r"data\.labels: is missing"):
            visit.load_cohort(without, plan_of(make_plan, task))


def test_what_was_not_drawn_or_not_of_the_study_or_of_another_kind_is_counted(site: Site, make_plan: MakePlan) -> None:
    plan = plan_of(make_plan, SEGMENTATION)
    found = visit.scan_site(site, None, plan)
    assert site.data.annotations is not None

    def left_out(**changes: Any) -> dict[str, int]:
        annotations = site.data.annotations.model_copy(update=changes)  # type: ignore[union-attr]
        data = site.data.model_copy(update={"annotations": annotations})
        return cohort.match_volumes(found, data, ["lesion"], unit="volume", drawn=True).left_out

    other = "SEG" if "RTSTRUCT" in set(found.annotations["Modality"]) else "RTSTRUCT"
    assert left_out(kinds=[other]) == {cohort.NO_ANNOTATION: 6, cohort.OTHER_KIND: 6}
    assert left_out(words={"*": ""}) == {cohort.NOT_OF_STUDY: 6}
    with pytest.raises(ConfigError, match=r"data\.annotations\.words"):
        left_out(words={"something else": "lesion"})


def test_volumes_of_one_person_under_two_patient_ids_are_left_out(site: Site, make_plan: MakePlan) -> None:
    found = visit.scan_site(site, None, plan_of(make_plan, SEGMENTATION))
    first, second, *_ = found.instances["PatientID"].unique()
    theirs = found.instances["PatientID"].isin([first, second])
    of_both = found.instances["StudyInstanceUID"].mask(theirs, "1.2.3")
    one = replace(found, instances=found.instances.assign(StudyInstanceUID=of_both))
    matched = cohort.match_volumes(one, site.data, ["lesion"], unit="volume", drawn=True)
    assert len(matched.cases) == 4
    assert matched.left_out[Misfit.SEVERAL_PATIENTS] == int(theirs.sum())


def test_a_volume_that_the_studys_spacing_makes_too_large_has_that_reason(
    site: Site, make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(make_plan, CLASSIFICATION)
    cases = visit.load_cohort(site, plan_of(make_plan, SEGMENTATION))
    labelled = Cohort(cases.cases.assign(target=0), {}, ("none", "lesion"))
    monkeypatch.setattr("models.tasks.preparation._LARGEST", 10)
    assert prepared(site, plan, labelled, tmp_path).cohort.left_out == {"volume too large": len(cases.cases)}


def test_a_volume_is_looked_at_again_when_another_stack_of_its_series_arrives(
    make_plan: MakePlan, tmp_path: Path
) -> None:
    """What was drawn over both stacks fits neither until all images that it names are there."""
    path = write_hospital(tmp_path / "north", name="north", patients=6, images=8, size=32, volumes=True, style=0)
    site, plan = Site.load(path), plan_of(make_plan, SEGMENTATION)
    before = visit.load_cohort(site, plan).cases.set_index("name")
    for each in before["stack"].iloc[0].slices:
        image = dcmread(site.data.folder / each.path)
        image.SOPInstanceUID = generate_uid()
        image.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
        left, back, up = image.ImagePositionPatient
        image.ImagePositionPatient = [left, up, -back]
        image.save_as(site.data.folder / f"{each.path}.late")
    after = visit.load_cohort(site, plan).cases.set_index("name")
    assert list(after.index) == list(before.index)
    assert list(after["stamp"] != before["stamp"]) == [True] + [False] * 5
