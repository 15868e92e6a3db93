"""The plan: what a study may say of its task, and that earlier studies keep their identity."""

import math
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from models.canonical import canonical, digest
from models.errors import ConfigError
from models.plan import Classification, Plan, Segmentation, Strategy
from models.settings import LocalPath, Settings

ROOT = Path(__file__).parents[2]

SEGMENTATION: dict[str, Any] = {
    "name": "segmentation",
    "classes": ["oedema", "tumour"],
    "modality": ["MR"],
    "dimensions": 3,
    "spacing": [1.0, 1.0, 2.5],
    "patch": [96, 96, 32],
    "zscore": "nonzero",
    "overlap": 0.5,
    "foreground": 0.7,
    "augment": [{"name": "RandFlip", "arguments": {"prob": 0.5, "spatial_axis": 0}}],
    "network": {"name": "unet"},
}


def plan(task: dict[str, Any], **changes: Any) -> Plan:
    content = tomllib.loads((ROOT / "configs/study.toml").read_text()) | {"metrics": ["loss"], "task": task}
    return Plan.parse(content | changes, source="study.toml")


def classification(**changes: Any) -> dict[str, Any]:
    given = tomllib.loads((ROOT / "configs/study.toml").read_text())["task"]
    return {key: value for key, value in (given | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("file", "identity"),
    [
        ("study.toml", "7ae989ed6d519c4904c57e56c9412826b117d315c40287d0acf5509075bf71ad"),
        ("study-fedprox.toml", "1edfca63baed71b6241eef44413f32097534cdc63e3a606035aa498ea6c9b9c3"),
    ],
)
def test_a_plan_of_version_0_1_has_the_digest_that_it_had_then(file: str, identity: str) -> None:
    # Computed by version 0.1.0. If the shipped file was changed on purpose, compute it there anew.
    plan = Plan.load(ROOT / "configs" / file).model_copy(update={"encoding": "float32"})  # as all were then
    found = plan.model_dump(mode="json")
    assert digest(canonical(found)) == identity


@pytest.mark.parametrize(
    "task",
    [
        classification(),
        classification(percentiles=None, zscore="all"),
        classification(percentiles=None, landmarks={"percentiles": [1, 50, 99], "values": [0, 0.4, 1]}),
        classification(dimensions=3, size=[32, 32, 16], spacing=[1, 1, 3], augment=[{"name": "RandFlip"}]),
        SEGMENTATION,
        SEGMENTATION | {"dimensions": 2, "patch": [64, 64], "spacing": [1, 1]},
    ],
)
def test_a_plan_is_the_same_after_it_travelled(task: dict[str, Any]) -> None:
    there = plan(task, strategy={"name": "fedavg", "local_norm": True})
    text = canonical(there.model_dump(mode="json"))
    back = Plan.model_validate_json(text, strict=True)
    assert back == there
    assert canonical(back.model_dump(mode="json")) == text
    assert type(back.task) is type(there.task)


def test_what_travels_is_read_strictly() -> None:
    text = canonical(plan(SEGMENTATION).model_dump(mode="json")).replace(b'"overlap":0.5', b'"overlap":"0.5"')
    with pytest.raises(ValueError, match=r"task\.overlap"):
        Plan.model_validate_json(text, strict=True)


def test_the_task_s_name_decides_its_keys() -> None:
    assert type(plan(classification()).task) is Classification
    found = plan(SEGMENTATION).task
    assert isinstance(found, Segmentation)
    assert (found.patch, found.patches, found.extent) == ((96, 96, 32), 1, "96 x 96 x 32 voxels of 1 x 1 x 2.5 mm")
    assert plan(classification()).task.extent == "64 x 64 pixels"


@pytest.mark.parametrize(
    ("task", "says"),
    [
        (classification(name="regression"), r"task\.name: no such task is installed; known: classification, segm"),
        ({}, r"task\.name: is required but missing"),
        (classification(patch=[8, 8]), r"task\.patch: is not a known key"),
        (classification(size=[64, 64, 64]), r"task: size must have 2 numbers \(dimensions = 2\)"),
        (classification(dimensions=3, size=[64, 64, 64]), r"task: spacing is of volumes, which need it"),
        (classification(spacing=[1, 1]), r"task: spacing is of volumes"),
        (classification(dimensions=3, size=[8, 8, 8], spacing=[1, 1, 1]), r"augment = true is of 2-D images"),
        (classification(zscore="all"), r"task: give either percentiles or window or zscore or landmarks"),
        (classification(percentiles=None), r"task: give either percentiles or window or zscore or landmarks"),
        (classification(landmarks={"percentiles": [1, 2], "values": [0]}), r"landmarks: give as many values"),
        (classification(landmarks={"percentiles": [9, 2], "values": [0, 1]}), r"landmarks: percentiles and values"),
        (SEGMENTATION | {"patch": [96, 96]}, r"task: patch must have 3 numbers"),
        (SEGMENTATION | {"spacing": [1, 1]}, r"task: spacing must have 3 numbers"),
        (SEGMENTATION | {"spacing": [0, 1, 1]}, r"task\.spacing\.0: must be at least 0\.05 \(got 0\)"),
        (SEGMENTATION | {"patch": [512, 512, 512]}, r"patch must not have more than 16,777,216"),
        (SEGMENTATION | {"classes": ["background", "tumour"]}, r"task: background is implied"),
        (SEGMENTATION | {"classes": ["a", "a"]}, r"task\.classes: must be distinct words"),
        (SEGMENTATION | {"overlap": 1}, r"task\.overlap: must be at most 0\.9"),
        (SEGMENTATION | {"augment": [{"name": "os.system('rm')"}]}, r"task\.augment\.0\.name: "),
        (SEGMENTATION | {"augment": [{"name": "RandFlip", "prob": 1}]}, r"task\.augment\.0\.prob: is not a known"),
    ],
)
def test_a_wrong_task_is_answered_with_its_key(task: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        plan(task)
    assert str(caught.value).startswith("study.toml: task")


def test_a_plan_can_only_ask_for_metrics_that_its_task_gives() -> None:
    with pytest.raises(ConfigError, match="segmentation gives dice, hausdorff95, loss, not auc"):
        plan(SEGMENTATION, metrics=["loss", "auc"])
    with pytest.raises(ConfigError, match="classification gives accuracy, auc, loss, not dice"):
        plan(classification(), metrics=["dice"])
    assert plan(SEGMENTATION, metrics=["dice", "hausdorff95"]).metrics == ["dice", "hausdorff95"]


def test_a_strategy_says_of_local_norm_only_when_it_is_asked_for() -> None:
    assert "local_norm" not in Strategy().model_dump(mode="json")
    assert Strategy(local_norm=True).model_dump(mode="json")["local_norm"] is True


STRATEGIES: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedprox": {},
    "fedavgm": {"server_learning_rate": 1.0, "server_momentum": 0.9},
    "fedadagrad": {"eta": 0.1, "tau": 0.001},
    "fedadam": {"eta": 0.1, "tau": 0.001, "beta_1": 0.9, "beta_2": 0.99},
    "fedyogi": {"eta": 0.1, "tau": 0.001, "beta_1": 0.9, "beta_2": 0.99},
    "fedmedian": {},
    "fedtrimmedavg": {"beta": 0.2},
    "krum": {"malicious": 1, "select": 1},
    "qfedavg": {"q": 0.1, "client_learning_rate": 0.05},
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_an_agreement_spells_out_the_parameters_of_its_strategy_and_no_others(name: str) -> None:
    given = {"client_learning_rate": 0.05} if name == "qfedavg" else {}
    there = plan(classification(), strategy={"name": name, **given}, min_silos=5)
    assert there.strategy.model_dump(mode="json") == {"name": name, "mu": 0.0, **STRATEGIES[name]}
    assert Plan.model_validate_json(canonical(there.model_dump(mode="json")), strict=True) == there


def test_the_example_names_every_strategy_and_its_parameters() -> None:
    text = (ROOT / "configs/study.toml").read_text()
    for name, parameters in STRATEGIES.items():
        assert f'"{name}"' in text
        assert all(key in text for key in parameters)


@pytest.mark.parametrize(
    ("strategy", "says"),
    [
        ({"name": "fedsgd"}, r"strategy\.name: "),
        ({"name": ["fedavg"]}, r"strategy\.name: "),
        ({"name": "fedadam", "etta": 1}, r"strategy\.etta: is not a known key"),
        ({"name": "fedadam", "eta": 0}, r"strategy\.eta: must be more than 0 \(got 0\)"),
        ({"name": "fedadam", "eta": "fast"}, r"strategy\.eta: "),
        ({"name": "fedyogi", "beta_2": 1}, r"strategy\.beta_2: must be less than 1 \(got 1\)"),
        ({"name": "fedavg", "eta": 0.1}, r"strategy: eta is of fedadagrad, fedadam, fedyogi only; fedavg has none"),
        ({"eta": 0.1}, r"strategy: eta is of fedadagrad, fedadam, fedyogi only; fedavg has none"),
        ({"name": "fedadagrad", "beta_1": 0.9}, r"strategy: beta_1 is of fedadam, fedyogi only; fedadagrad has none"),
        ({"name": "fedadam", "mu": 0.1}, r'strategy: mu is of "fedprox" only; fedadam has none'),
        ({"name": "fedtrimmedavg", "beta": 0.5}, r"strategy\.beta: must be less than 0\.5"),
        ({"name": "fedtrimmedavg", "beta": 0.1}, r"strategy\.beta: 0\.1 of min_silos = 5 cuts off no update"),
        ({"name": "krum", "malicious": 2}, r"min_silos: krum with malicious = 2 needs at least 7 \(got 5\)"),
        ({"name": "krum", "malicious": 1.5}, r"strategy\.malicious: "),
        ({"name": "krum", "select": 5}, r"strategy\.select: must be at most min_silos - malicious = 4"),
        ({"name": "qfedavg"}, r"strategy: client_learning_rate is required by qfedavg"),
    ],
)
def test_a_wrong_strategy_is_answered_with_its_key(strategy: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        plan(classification(), strategy=strategy, min_silos=5)


def test_qfedavg_needs_the_hospitals_loss() -> None:
    with pytest.raises(ConfigError, match="metrics: qfedavg needs the silos' loss"):
        plan(classification(), metrics=["auc"], strategy={"name": "qfedavg", "client_learning_rate": 0.1})


def test_a_strategy_in_words_names_its_parameters() -> None:
    assert str(Strategy()) == "fedavg"
    assert str(Strategy(name="fedprox", mu=0.1, local_norm=True)) == "fedprox (local_norm = True, mu = 0.1)"
    assert str(Strategy(name="krum")) == "krum (malicious = 1, select = 1)"


def test_the_example_of_segmentation_explains_every_key_and_can_be_built() -> None:
    from models import tasks
    from models.tasks.augmentation import TRANSFORMS
    from models.tasks.networks import SEGMENTERS

    path = ROOT / "configs/segmentation.toml"
    text = path.read_text()
    assert {
        key for key in Segmentation.model_fields if not re.search(rf"^(# )?\[*([a-z]+\.)?{key}\b", text, re.M)
    } == set()
    assert all(name in text for name in (*TRANSFORMS, *SEGMENTERS))
    network = tasks.network(Plan.load(path))
    assert 0 < network.local_spec.size < network.spec.size


def test_codes_are_of_the_classes_alone_and_their_absence_leaves_the_digest_alone() -> None:
    settings = Plan.load(ROOT / "configs/segmentation.toml").task.model_dump(mode="json")
    codes = settings.pop("codes")
    assert "codes" not in Segmentation.model_validate(settings).model_dump(mode="json")
    assert Segmentation.model_validate({**settings, "codes": codes}).codes["lesion"].type == "SCT:52988006"
    for wrong in ({"tumour": codes["lesion"]}, {"lesion": {"category": "SCT:49755003", "type": "a lesion"}}):
        with pytest.raises(ValueError, match="codes"):
            Segmentation.model_validate({**settings, "codes": wrong})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"max_bytes": "10000 TB"}, r"max_bytes: must be less than 9.*e\+15"),
        ({"max_bytes": f"{'9' * 400} MB"}, r"max_bytes: must be a size"),
        ({"min_silos": 10**20}, r"min_silos: must be at most 10000"),
        ({"silos_per_round": 10**20}, r"silos_per_round: must be at most 10000"),
        ({"deadline": math.inf}, r"deadline: .*finite"),
        ({"task": classification(network={"name": "cnn", "arguments": {"width": 10**20}})}, "too large for JSON"),
    ],
)
def test_a_number_that_no_agreement_can_say_is_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        plan(**{"task": classification(), **changes})


def test_what_is_wrong_with_the_values_of_a_list_is_not_told_of_the_list_again() -> None:
    with pytest.raises(ConfigError) as caught:
        plan(classification(size=[1, 1]))
    assert str(caught.value).splitlines() == [
        "study.toml: task.size.0: must be at least 8 (got 1)",
        "study.toml: task.size.1: must be at least 8 (got 1)",
    ]
    with pytest.raises(ConfigError, match=r"task\.size: Tuple should have at least 2 items"):
        plan(classification(size=[64]))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"metrics": ["loss", "dice"]}, "metrics"),
        ({"silos_per_round": 1}, "silos_per_round"),
        ({"strategy": {"name": "scaffold"}}, "training"),
        ({"strategy": {"name": "scaffold"}, "training": {"steps": 5, "learning_rate": 0.1}}, "weights"),
        ({"strategy": {"name": "krum"}, "min_silos": 2}, "min_silos"),
        ({"strategy": {"name": "fedtrimmedavg", "beta": 0.1}}, "strategy.beta"),
    ],
)
def test_a_value_that_does_not_fit_the_others_is_named_by_its_key(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(classification(), **changes)
    assert str(caught.value).startswith(f"study.toml: {key}: ")


def test_a_home_folder_that_nobody_has_is_named() -> None:
    class Place(Settings):
        root: LocalPath

    with pytest.raises(ConfigError, match=r"root: there is no home folder of '~nobody-has-this-name'"):
        Place.parse({"root": "~nobody-has-this-name/dicom"}, source="site.toml")
