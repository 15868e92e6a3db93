"""A released model, from DICOM to a MONAI bundle that predicts what the study's task predicts."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, verify_net_in_out
from pydicom import dcmread

from aggregator import LocalGrid, Study, run
from aggregator.audit import check_model
from aggregator.release import release
from aggregator.release.bundle import FORMATS, data_format
from models import tasks
from models.errors import ConfigError, DataError, SpecMismatch
from models.exchange.spec import load_vector, save_vector
from models.plan import Classification, Network, Strategy, TaskSettings
from models.tasks import Case
from models.tasks.flat import FlatNetwork
from silos import inference
from silos.config import Site
from silos.dicom.decode import read_image
from silos.inference.sources import Source, Sources
from silos.phantom import write_hospital
from silos.predict import predict

PLAN = """
name = "trial"
purpose = "Test."
rounds = 2
metrics = ["loss", "auc"]

[task]
name = "classification"
classes = ["none", "lesion"]
modality = ["MR"]
size = [32, 32]
percentiles = [1.0, 99.0]

[task.network]
name = "cnn"
arguments = { channels = [8, 16], dropout = 0.2 }

[training]
epochs = 1
learning_rate = 0.05
"""


@pytest.fixture(scope="module")
def world(written_hospitals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study that is over, its released model, and a hospital that took no part."""
    folder = tmp_path_factory.mktemp("world")
    shutil.copytree(written_hospitals, folder / "hospitals")
    plan = folder / "plan.toml"
    plan.write_text(PLAN)
    with (
        Study.create(plan, folder / "study") as study,
        LocalGrid(sorted((folder / "hospitals").glob("*/site.toml"))) as grid,
    ):
        run(study, grid)
    release(folder / "study", folder / "model")
    write_hospital(folder / "elsewhere", name="elsewhere", seed=5, patients=3, images=4, size=48)
    return folder


def workflow(world: Path, **override: Any) -> ConfigWorkflow:
    """The bundle, as MONAI opens it."""
    paths = {"bundle_root": str(world / "model"), "dataset_dir": str(world / "elsewhere" / "dicom"), "device": "cpu"}
    config = str(world / "model" / "configs" / "inference.json")
    opened = ConfigWorkflow(config, workflow_type="infer", logging_file=False, **{**paths, **override})
    opened.initialize()
    return opened


def own_prediction(world: Path, images: list[Path]) -> torch.Tensor:
    """What the study's task says of images with the model of the study's folder, without the bundle."""
    with Study.open(world / "study") as study:
        task, position = tasks.task(study.plan.task), study.position
        network = FlatNetwork(task.build(0))
        network.load(study.load_model(position.model, position.digest))
    inputs = torch.from_numpy(np.stack([task.prepare(Case(read_image(path))).image for path in images]))
    with torch.no_grad():
        return network.module.eval()(inputs).softmax(1)


def test_monai_finds_every_part_of_an_inference_bundle(world: Path) -> None:
    opened = workflow(world)
    assert opened.check_properties() == []
    assert opened.version == "1.0.0"
    assert opened.channel_def == {"0": "none", "1": "lesion"}
    assert opened.monai_version == "1.6.1"
    assert isinstance(opened.network_def, torch.nn.Module)
    assert not opened.network_def.training


def test_monais_parser_runs_the_bundle_on_a_dicom_folder_and_predicts_what_the_task_predicts(
    world: Path, tmp_path: Path
) -> None:
    parser = ConfigParser()
    parser.read_config(str(world / "model" / "configs" / "inference.json"))
    parser.update({"bundle_root": str(world / "model"), "dataset_dir": str(world / "elsewhere" / "dicom")})
    parser["device"] = "cpu"
    found = parser.get_parsed_content("evaluator").run()
    assert len(found) == 12
    expected = own_prediction(world, [each.item.source.root / each.item.source.path for each in found])
    torch.testing.assert_close(torch.stack([each.probabilities for each in found]), expected, rtol=0, atol=0)
    assert expected.std() > 0
    assert torch.allclose(expected.sum(1), torch.ones(12))


def test_a_series_is_predicted_in_order_and_written_for_its_owner_alone(world: Path, tmp_path: Path) -> None:
    workflow(world, output=str(tmp_path / "found"), batch_size=5).run()
    table, about = tmp_path / "found" / "predictions.csv", tmp_path / "found" / "about.json"
    assert {path.stat().st_mode & 0o777 for path in (table, about)} == {0o600}
    said = json.loads(about.read_text())
    assert (said["study"], said["predicted"], said["left_out"]) == (check_model(world / "model").study, 12, {})
    rows = list(csv.DictReader(table.read_text().splitlines()))
    predictions = torch.tensor([[float(row["none"]), float(row["lesion"])] for row in rows])
    expected = own_prediction(world, [Path(row["path"]) for row in rows])
    torch.testing.assert_close(predictions, expected, rtol=0, atol=2e-6)
    assert len({row["SOPInstanceUID"] for row in rows}) == 12
    before = table.read_bytes()
    with pytest.raises(RuntimeError) as error:  # MONAI's own word around ours
        workflow(world, output=str(tmp_path / "found")).run()
    assert isinstance(error.value.__cause__, ConfigError)
    assert table.read_bytes() == before


def test_one_file_is_enough(world: Path) -> None:
    image = next(path for path in sorted((world / "elsewhere" / "dicom").rglob("*")) if path.is_file())
    (found,) = workflow(world, dataset_dir=str(image)).evaluator.run()
    assert found.item.source.root / found.item.source.path == image
    torch.testing.assert_close(found.probabilities, own_prediction(world, [image])[0], rtol=0, atol=1e-6)
    with pytest.raises(DataError, match="no mask"):
        found.mask()


def test_an_image_that_cannot_be_read_is_left_out_with_its_reason(world: Path, tmp_path: Path) -> None:
    (tmp_path / "damaged").write_bytes(b"no DICOM")
    evaluator = workflow(world).evaluator
    data = [*evaluator.dataset.data.found[:2], Source(tmp_path, "damaged")]
    evaluator.dataset.data = Sources(tuple(data), {"wrong modality": 3})
    assert [each.item.source for each in evaluator.run()] == data[:2]
    assert evaluator.left_out == {"not DICOM": 1, "wrong modality": 3}


def test_a_folder_without_images_of_the_study_is_named(world: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(DataError, match="no usable image of modality MR"):
        inference.dicom_sources(world / "model", tmp_path)
    with pytest.raises(ConfigError, match=r"agreement\.json"):
        inference.network(tmp_path)


def test_a_folder_that_is_named_is_read_as_the_hospital_reads_its_own(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "model", tmp_path / "model")
    agreement = inference.agreement(world / "model")
    task = agreement.plan.task.model_copy(update={"modality": ["US"]})
    changed = agreement.model_copy(update={"plan": agreement.plan.model_copy(update={"task": task})})
    (tmp_path / "model" / "agreement.json").write_bytes(changed.encode())
    shutil.copytree(world / "elsewhere" / "dicom", tmp_path / "dicom")
    for path in (path for path in (tmp_path / "dicom").rglob("*") if path.is_file()):
        image = dcmread(path)
        image.Modality = "US"
        del image.BurnedInAnnotation
        image.save_as(path)
    site = Site.load(world / "elsewhere" / "site.toml")
    with pytest.raises(DataError, match="burned-in annotation"):
        predict(site, tmp_path / "model", tmp_path / "out", tmp_path / "dicom")
    lenient = site.model_copy(update={"data": site.data.model_copy(update={"burned_in": "allow-unmarked"})})
    _, evaluator = predict(lenient, tmp_path / "model", tmp_path / "out", tmp_path / "dicom")
    assert (len(evaluator.dataset), evaluator.left_out) == (12, {})


def test_what_metadata_says_of_inputs_and_outputs_is_true(world: Path) -> None:
    configs = world / "model" / "configs"
    verify_net_in_out(
        "network_def",
        str(configs / "metadata.json"),
        str(configs / "inference.json"),
        device="cpu",
        bundle_root=str(world / "model"),
    )


def test_a_model_of_another_network_is_not_loaded(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "model", tmp_path / "model")
    path = tmp_path / "model" / "models" / "model.safetensors"
    spec, vector = load_vector(path)
    smaller = type(spec)(spec.tensors[1:])
    save_vector(path, smaller, vector[spec.tensors[0].size :])
    with pytest.raises(SpecMismatch, match="other arrays"):
        inference.network(tmp_path / "model")


def test_every_kind_of_task_that_the_toolkit_brings_has_a_bundle() -> None:
    kinds = {kind.model_fields["name"].annotation.__args__[0] for kind in tasks._TASKS}  # type: ignore[union-attr]
    assert kinds - {"grading"} == set(FORMATS)  # grading is the tests' own
    with pytest.raises(ConfigError, match="a task of your own"):
        data_format(TaskSettings(name="grading", classes=["a"], modality=["MR"], network=Network(name="cnn")))


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        ({"percentiles": [1, 99]}, [0, 1]),
        ({"window": [40, 400]}, [0, 1]),
        ({"zscore": "all"}, []),
        ({"landmarks": {"percentiles": [1, 99], "values": [0, 1]}}, []),
    ],
)
def test_metadata_promises_a_range_only_where_the_preparation_keeps_one(way: dict[str, Any], expected: Any) -> None:
    task = {"name": "classification", "classes": ["a", "b"], "modality": ["CT"], "network": {"name": "cnn"}}
    image = data_format(Classification.model_validate({**task, **way, "size": [8, 8]}))["inputs"]["image"]
    assert image["value_range"] == expected


def test_every_hospitals_metrics_are_proven_and_stand_in_the_card_with_bands_alone(world: Path) -> None:
    found = check_model(world / "model")
    assert (found.problems, found.inputs) == ([], ["east", "north", "south"])
    text = (world / "model" / "docs" / "README.md").read_text()
    for name in ("east", "north", "south"):
        auc, loss = found.measured[name]["auc"], found.measured[name]["loss"]
        assert f"| {name} | 2 | 20-49 images | clip 10, bfloat16 |" in text
        assert f"| {name} | 11-19 images | {auc:g} | {loss:g} | - |" in text


def test_a_model_that_travelled_with_control_variates_runs_without_a_hospitals_own(world: Path, tmp_path: Path) -> None:
    found = inference.agreement(world / "model")
    plan = found.plan.model_copy(update={"strategy": Strategy(name="scaffold"), "weights": "equal"})
    flat = tasks.network(plan)
    assert flat.control is not None
    flat.control.fill_(3.0)
    (tmp_path / "models").mkdir()
    (tmp_path / "agreement.json").write_bytes(
        found.model_copy(update={"plan": plan, "spec": flat.spec.digest}).encode()
    )
    save_vector(tmp_path / "models" / "model.safetensors", flat.spec, flat.vector.numpy())
    network = inference.network(tmp_path)
    for name, value in tasks.network(found.plan).module.state_dict().items():
        assert torch.equal(network.state_dict()[name], value)
