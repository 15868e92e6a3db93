"""Released models of volumes and masks: a MONAI bundle that says of a DICOM series what the study's evaluation says."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, verify_net_in_out
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian

from aggregator import LocalGrid, Study, run
from aggregator.audit import check_model
from aggregator.release import release
from models import tasks
from models.console import OK
from models.errors import ConfigError, DataError
from models.plan import Plan
from silos import inference, local_norm
from silos.cli import main
from silos.config import Site
from silos.dicom.annotation import Unfit, match, read_annotation, read_mask
from silos.dicom.annotation.writing import NO_FRAME
from silos.dicom.header import UnreadableFile
from silos.dicom.scan import scan
from silos.dicom.series import Stack, find_stacks
from silos.inference.written import write
from silos.phantom import write_hospital
from silos.predict import predict
from silos.visit import load_data

PLAN = """
name = "volumes"
purpose = "Test."
rounds = 1
metrics = ["loss", "{metric}"]

[task]
{task}
modality = ["MR"]
zscore = "nonzero"

[task.network]
{network}

[training]
steps = {steps}
batch_size = 4
optimizer = "adam"
learning_rate = 0.01

[strategy]
name = "fedavg"
local_norm = {local}
"""

KINDS: dict[str, dict[str, Any]] = {
    "classification of volumes": {
        "metric": "auc",
        "task": 'name = "classification"\nclasses = ["none", "lesion"]\ndimensions = 3\nsize = [16, 16, 12]\n'
        "spacing = [12.0, 12.0, 6.5]",
        "network": 'name = "cnn"\narguments = { channels = [8, 16] }',
        "steps": 4,
        "local": "false",
    },
    "segmentation of volumes": {
        "metric": "dice",
        "task": 'name = "segmentation"\nclasses = ["lesion"]\ndimensions = 3\nspacing = [9.0, 9.0, 6.5]\n'
        "patch = [16, 16, 8]\npatches = 2\nforeground = 0.7\n"
        'codes = { lesion = { category = "SCT:49755003", type = "SCT:52988006" } }',
        "network": 'name = "unet"\narguments = { channels = [8, 16], num_res_units = 1, norm = "batch" }',
        "steps": 25,
        "local": "true",
    },
    "segmentation of slices": {
        "metric": "dice",
        "task": 'name = "segmentation"\nclasses = ["lesion"]\ndimensions = 2\npatch = [32, 32]\npatches = 2\n'
        "foreground = 0.7",
        "network": 'name = "unet"\narguments = { channels = [8, 16, 32], num_res_units = 1 }',
        "steps": 25,
        "local": "false",
    },
}
DRAWN = [kind for kind in KINDS if kind.startswith("segmentation")]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """For each kind of study a folder with the study, its released model, and two hospitals that trained it.

    North has files of one slice; south has files of many frames.
    """
    written = tmp_path_factory.mktemp("written")
    for name, style in (("north", 0), ("south", 3)):
        write_hospital(
            written / name,
            name=name,
            seed=2,
            patients=8,
            images=8,
            size=32,
            volumes=True,
            style=style,
            studies=["volumes"],
        )
        site = written / name / "site.toml"
        site.write_text(site.read_text().replace("min_patients = 11", "min_patients = 1"))
    found = {}
    for kind, words in KINDS.items():
        folder = found[kind] = tmp_path_factory.mktemp("world")
        shutil.copytree(written, folder, dirs_exist_ok=True)
        (folder / "plan.toml").write_text(PLAN.format(**words))
        sites = [folder / name / "site.toml" for name in ("north", "south")]
        with Study.create(folder / "plan.toml", folder / "study") as study, LocalGrid(sites) as grid:
            run(study, grid)
        release(folder / "study", folder / "model")
    return found


def kept(world: Path, hospital: str = "north") -> Path | None:
    """What a hospital kept of the network, if the study leaves it anything."""
    return local_norm.newest(next(iter((world / hospital / "work" / "local").glob("*")), Path("none")), 99)


def workflow(world: Path, **override: Any) -> ConfigWorkflow:
    """The bundle, as MONAI opens it, in north."""
    local = kept(world)
    paths = {"bundle_root": str(world / "model"), "dataset_dir": str(world / "north" / "dicom"), "device": "cpu"}
    more = {"local": str(local)} if local else {}
    config = str(world / "model" / "configs" / "inference.json")
    opened = ConfigWorkflow(config, workflow_type="infer", logging_file=False, **{**paths, **more, **override})
    opened.initialize()
    return opened


def evaluated(world: Path, hospital: str = "north") -> dict[str, torch.Tensor]:
    """By first file: what the study's own task says of every case, from the cache that evaluation reads."""
    plan, site = Plan.load(world / "plan.toml"), Site.load(world / hospital / "site.toml")
    task, network = tasks.task(plan.task), tasks.network(plan)
    with Study.open(world / "study") as study:
        network.load(study.load_model(study.position.model, study.position.digest))
    if local := kept(world, hospital):
        local_norm.put_back(local, network)
    data, found = load_data(site, plan, task), {}
    for held_out, side in ((False, data.train), (True, data.held_out)):
        cases = side.take(np.arange(len(side)))
        outputs = task.infer(network.module.eval(), cases)
        paths = data.cohort.side(held_out)["path"]
        found |= {path: task.probabilities(out[None])[0] for path, out in zip(paths, outputs, strict=True)}
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_monais_parser_runs_every_kind_of_bundle_on_dicom_series_as_the_studys_evaluation_does(
    worlds: dict[str, Path], kind: str
) -> None:
    world = worlds[kind]
    parser = ConfigParser()
    parser.read_config(str(world / "model" / "configs" / "inference.json"))
    parser.update({"bundle_root": str(world / "model"), "dataset_dir": str(world / "north" / "dicom")})
    if local := kept(world):
        parser["local"] = str(local)
    parser["device"] = "cpu"
    found = parser.get_parsed_content("evaluator").run()
    expected = evaluated(world)
    assert {each.item.source.path for each in found} == set(expected)
    assert len(found) == 8
    for each in found:
        # Evaluation's cache holds 16 bits a value, of an image's range of a few deviations.
        torch.testing.assert_close(each.probabilities, expected[each.item.source.path], rtol=0, atol=2e-3)
    assert torch.stack([each.probabilities.std() for each in found]).min() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_what_metadata_says_of_inputs_and_outputs_is_true(worlds: dict[str, Path], kind: str) -> None:
    world = worlds[kind]
    configs, local = world / "model" / "configs", kept(world)
    verify_net_in_out(
        "network_def",
        str(configs / "metadata.json"),
        str(configs / "inference.json"),
        device="cpu",
        bundle_root=str(world / "model"),
        **({"local": str(local)} if local else {}),
    )
    assert workflow(world).check_properties() == []
    assert check_model(world / "model").problems == []
    outputs = json.loads((configs / "metadata.json").read_text())["network_data_format"]["outputs"]["pred"]
    names = ["none", "lesion"] if kind not in DRAWN else ["background", "lesion"]
    assert list(outputs["channel_def"].values()) == names
    assert outputs["format"] == ("classes" if kind not in DRAWN else "labels")


@pytest.mark.parametrize("hospital", ["north", "south"])
@pytest.mark.parametrize("kind", DRAWN)
def test_predictions_are_written_back_as_segmentations_of_the_very_images(
    worlds: dict[str, Path], kind: str, hospital: str, tmp_path: Path
) -> None:
    world = worlds[kind]
    root = world / hospital / "dicom"
    local = kept(world, hospital)
    more = {"local": str(local)} if local else {}
    evaluator = workflow(world, dataset_dir=str(root), **more).evaluator
    masks = [prediction.mask() for prediction in evaluator.predictions()]
    sources = [source.stack for source in evaluator.dataset.data.found]
    out = write(world / "model", evaluator, tmp_path / "out")
    assert len(masks) == 8
    assert sum(bool(mask.any()) for mask in masks) > 3
    for number, (mask, stack) in enumerate(zip(masks, sources, strict=True), start=1):
        path = out / f"{number:05}.dcm"
        assert path.stat().st_mode & 0o777 == 0o600
        segmentation = highdicom.seg.segread(path)
        np.testing.assert_array_equal(on_stack(segmentation, stack), mask)
        assert segmentation.FrameOfReferenceUID == stack.frame_of_reference
        assert segmentation.SeriesInstanceUID != stack.series
        (segment,) = segmentation.SegmentSequence
        assert segment.SegmentLabel == "lesion"
        assert segment.SegmentAlgorithmType == "AUTOMATIC"
        (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
        assert algorithm.AlgorithmName == "intramural"
        assert check_model(world / "model").model in algorithm.AlgorithmParameters
        coded = segment.SegmentedPropertyTypeCodeSequence[0]
        wanted = ("SCT", "52988006", "Lesion") if kind == DRAWN[0] else ("99INTRAMURAL", "lesion", "lesion")
        assert (coded.CodingSchemeDesignator, coded.CodeValue, coded.CodeMeaning) == wanted


def on_stack(segmentation: highdicom.seg.Segmentation, stack: Stack) -> NDArray[np.uint8]:
    """What highdicom finds for each image of a stack, by the images that the segmentation refers to."""
    instances = [each.instance for each in stack.slices]
    referred = {uid for _, _, uid in segmentation.get_source_image_uids()}
    assert referred == set(instances)
    if len(referred) == 1:
        pixels = segmentation.get_pixels_by_source_frame(
            instances[0], [each.frame for each in stack.slices], assert_missing_frames_are_empty=True
        )
    else:
        pixels = segmentation.get_pixels_by_source_instance(instances, assert_missing_frames_are_empty=True)
    return np.asarray(pixels[..., 0].transpose(2, 1, 0), np.uint8)


@pytest.mark.parametrize("hospital", ["north", "south"])
def test_our_own_reader_finds_the_predicted_masks_on_their_series(
    worlds: dict[str, Path], hospital: str, tmp_path: Path
) -> None:
    world = worlds[DRAWN[0]]
    out, evaluator = predict(Site.load(world / hospital / "site.toml"), world / "model", tmp_path / "out")
    predicted = {each.item.source.series: each for each in evaluator.predictions()}
    for path in out.glob("*.dcm"):
        annotation = read_annotation(out, path.name)
        prediction = predicted.pop(*annotation.series)
        stack, words = prediction.item.source.stack, {"SCT:52988006": "lesion"}  # as the study codes it
        assert isinstance(stack, Stack)
        mask = read_mask([annotation], stack, out, words, ["background", "lesion"])
        np.testing.assert_array_equal(mask, prediction.mask())
    assert not predicted


def test_predictions_in_the_archive_are_not_learnt_from(worlds: dict[str, Path], tmp_path: Path) -> None:
    world = worlds[DRAWN[0]]
    predict(Site.load(world / "north" / "site.toml"), world / "model", tmp_path / "out")
    shutil.copytree(world / "north" / "dicom", tmp_path / "dicom")
    shutil.copytree(tmp_path / "out", tmp_path / "dicom" / "predicted")
    found = scan(tmp_path / "dicom", tmp_path / "index.sqlite", modality=["MR"], several_frames=True)
    stacks = find_stacks(found.instances, tmp_path / "dicom").stacks
    matches = match(found.annotations, stacks, tmp_path / "dicom")
    assert matches.left_out == {Unfit.AUTOMATIC: 8}
    assert [len(matches.by_stack[stack]) for stack in stacks] == [1] * 8


def test_what_no_segmentation_can_be_written_of_is_measured_all_the_same(
    worlds: dict[str, Path], tmp_path: Path
) -> None:
    world = worlds[DRAWN[0]]
    shutil.copytree(world / "north" / "dicom", tmp_path / "dicom")
    shutil.rmtree(tmp_path / "dicom" / "drawn")
    first = scan(tmp_path / "dicom", tmp_path / "index.sqlite", modality=["MR"]).instances.iloc[0]
    for path in [path for path in (tmp_path / "dicom").rglob("*") if path.is_file()]:
        image = dcmread(path)
        if image.SeriesInstanceUID == first["SeriesInstanceUID"]:
            del image.FrameOfReferenceUID
            image.save_as(path)
    site = Site.load(world / "north" / "site.toml")
    out, evaluator = predict(site, world / "model", tmp_path / "out", tmp_path / "dicom")
    rows = list(csv.DictReader((out / "predictions.csv").read_text().splitlines()))
    for row, prediction in zip(rows, evaluator.predictions(), strict=True):
        assert bool(row["file"]) == (row["SeriesInstanceUID"] != first["SeriesInstanceUID"])
        stack = prediction.item.source.stack
        assert isinstance(stack, Stack)
        millilitres = int(prediction.mask().sum()) * np.prod(stack.spacing) / 1000
        assert float(row["lesion (ml)"]) == pytest.approx(millilitres, abs=1e-3)
    about = json.loads((out / "about.json").read_text())
    assert (about["predicted"], about["left_out"], about["without_file"]) == (8, {}, {NO_FRAME: 1})


@pytest.mark.parametrize("kind", KINDS)
def test_a_case_of_which_the_network_says_nothing_finite_is_left_out(
    worlds: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    evaluator = workflow(worlds[kind]).evaluator
    usual, calls = evaluator.postprocessing, iter(range(8))
    evaluator.postprocessing = lambda outputs: usual(outputs * (torch.nan if next(calls) == 3 else 1))
    out = write(worlds[kind] / "model", evaluator, tmp_path / "out")
    paths = {str(each.root / each.path) for each in evaluator.dataset.data.found}
    rows = list(csv.DictReader((out / "predictions.csv").read_text().splitlines()))
    assert len(paths - {row["path"] for row in rows}) == 1
    assert len(list(out.glob("*.dcm"))) == (7 if kind in DRAWN else 0)
    about = json.loads((out / "about.json").read_text())
    assert (about["predicted"], about["left_out"]) == (7, {inference.NOT_FINITE: 1})


@pytest.mark.parametrize("hospital", ["north", "south"])
@pytest.mark.parametrize("thickness", ["5", ""])
def test_a_single_slice_has_millilitres_if_it_says_how_thick_it_is(
    worlds: dict[str, Path], hospital: str, thickness: str, tmp_path: Path
) -> None:
    world = worlds["segmentation of slices"]
    images = [dcmread(path) for path in (world / hospital / "dicom").rglob("*") if path.is_file()]
    image = next(image for image in images if image.Modality == "MR")
    measures = image
    if hospital == "south":
        measures = image.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        image.PixelData = image.pixel_array[0].tobytes()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.PerFrameFunctionalGroupsSequence, image.NumberOfFrames = image.PerFrameFunctionalGroupsSequence[:1], 1
    measures.SliceThickness = thickness
    (tmp_path / "dicom").mkdir()
    image.save_as(tmp_path / "dicom" / "alone")
    evaluator = workflow(world, dataset_dir=str(tmp_path / "dicom")).evaluator
    evaluator.postprocessing = lambda outputs: torch.zeros_like(outputs).index_fill(1, torch.tensor(1), 1.0)
    out = write(world / "model", evaluator, tmp_path / "out")
    (row,) = csv.DictReader((out / "predictions.csv").read_text().splitlines())
    volume = image.Rows * image.Columns * np.prod([float(each) for each in measures.PixelSpacing]) * 5 / 1000
    assert row["lesion (ml)"] == (f"{volume:.3f}" if thickness else "")
    (written,) = dcmread(out / row["file"]).SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    assert written.get("SliceThickness") == (5 if thickness else None)


def test_where_the_study_leaves_the_grid_alone_the_mask_is_that_of_the_evaluation(worlds: dict[str, Path]) -> None:
    world = worlds["segmentation of slices"]
    evaluator = workflow(world).evaluator
    task = tasks.task(inference.agreement(world / "model").plan.task)
    for prediction in evaluator.run()[:3]:
        own = task.predict(evaluator.network, prediction.item.case)  # type: ignore[attr-defined]
        # North's slices are axial, rows to the back and columns to the left; RAS is the other way.
        np.testing.assert_array_equal(prediction.mask(), own[::-1, ::-1])


def test_the_command_writes_a_table_for_the_hospital_and_says_what_was_left_out(
    worlds: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = worlds["segmentation of volumes"]
    site, out = world / "north" / "site.toml", tmp_path / "out"
    assert main(["predict", str(site), str(world / "model"), str(out)]) == OK
    assert "8 cases" in capsys.readouterr().out
    rows = list(csv.DictReader((out / "predictions.csv").read_text().splitlines()))
    assert out.stat().st_mode & 0o777 == 0o700
    assert [row["file"] for row in rows] == [f"{n:05}.dcm" for n in range(1, 9)]
    first = highdicom.seg.segread(out / "00001.dcm")
    voxels = int(first.pixel_array.sum())
    spacing = first.get_volume_geometry().spacing
    assert float(rows[0]["lesion (ml)"]) == pytest.approx(voxels * np.prod(spacing) / 1000, abs=1e-3)
    about = json.loads((out / "about.json").read_text())
    assert (about["study"], about["model"]) == (check_model(world / "model").study, check_model(world / "model").model)
    assert main(["predict", str(site), str(world / "model"), str(out)]) != OK  # nothing is overwritten
    assert "exists already" in capsys.readouterr().err


def test_a_classification_of_volumes_is_a_table_of_probabilities(worlds: dict[str, Path], tmp_path: Path) -> None:
    world = worlds["classification of volumes"]
    out, evaluator = predict(Site.load(world / "north" / "site.toml"), world / "model", tmp_path / "out")
    rows = list(csv.DictReader((out / "predictions.csv").read_text().splitlines()))
    assert not list(out.glob("*.dcm"))
    expected = [each.probabilities for each in evaluator.predictions()]
    told = torch.tensor([[float(row["none"]), float(row["lesion"])] for row in rows])
    torch.testing.assert_close(told, torch.stack(expected), rtol=0, atol=1e-6)
    assert all(row["images"] == "8" for row in rows)


def test_a_network_whose_layers_stay_at_home_runs_only_with_them(worlds: dict[str, Path], tmp_path: Path) -> None:
    world = worlds["segmentation of volumes"]
    card = (world / "model" / "docs" / "README.md").read_text()
    assert "each hospital keeps its own normalisation layers" in card
    assert "--local WORK/local/STUDY/ROUND.safetensors" in card
    assert json.loads((world / "model" / "configs" / "metadata.json").read_text())["local_norm"] is True
    with pytest.raises(ConfigError, match="normalisation layers, which no release holds"):
        inference.network(world / "model")
    north, south = (inference.network(world / "model", local=kept(world, name)) for name in ("north", "south"))
    differ = {name for name, value in north.state_dict().items() if not torch.equal(value, south.state_dict()[name])}
    assert differ
    assert all(re.search(r"adn\.N|\.N\.", name) for name in differ)  # MONAI's name for normalisation
    with pytest.raises(DataError, match="other layers"):
        inference.network(world / "model", local=world / "model" / "models" / "model.safetensors")
    plain = worlds["segmentation of slices"] / "model"
    with pytest.raises(ConfigError, match="keeps no layers"):
        inference.network(plain, local=kept(world))
    write_hospital(tmp_path / "elsewhere", name="elsewhere", patients=2, images=8, size=32, volumes=True)
    with pytest.raises(ConfigError, match="kept no normalisation layers"):
        predict(Site.load(tmp_path / "elsewhere" / "site.toml"), world / "model", tmp_path / "out")


def test_one_damaged_slice_leaves_its_volume_out(worlds: dict[str, Path], tmp_path: Path) -> None:
    world = worlds["classification of volumes"]
    evaluator = workflow(world).evaluator
    first = evaluator.dataset.data.found[0]
    assert isinstance(first.stack, Stack)
    shutil.copytree(world / "north" / "dicom", tmp_path / "dicom")
    evaluator = workflow(world, dataset_dir=str(tmp_path / "dicom")).evaluator
    damaged = tmp_path / "dicom" / first.stack.slices[3].path
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with pytest.raises(UnreadableFile):
        evaluator.dataset[0]
    assert len(evaluator.run()) == 7
    assert sum(evaluator.left_out.values()) == 1
    with pytest.raises(DataError, match="one file, and the study is of volumes"):
        inference.dicom_sources(world / "model", damaged)
