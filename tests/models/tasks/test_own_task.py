"""A task of one's own: one file, found by its name where it is installed, and nowhere else."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from models import plan as plans
from models import tasks
from models.canonical import canonical
from models.errors import ConfigError
from models.plan import Plan, TaskSettings, Training
from models.tasks import Case
from silos import training

OWN = Path(__file__).with_name("own_task.py")

CONTENT: dict[str, Any] = {
    "name": "grades",
    "purpose": "Test.",
    "rounds": 1,
    "metrics": ["loss"],
    "task": {
        "name": "grading",
        "classes": ["one", "two", "three"],
        "modality": ["MR"],
        "size": [16, 16],
        "window": [0.5, 1],
        "far": 2.0,
        "network": {"name": "cnn", "arguments": {"channels": [4, 8]}},
    },
    "training": {"steps": 3, "batch_size": 4, "learning_rate": 0.1},
}

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a package of one file where Python finds it, as pip would; it is forgotten afterwards."""
    monkeypatch.setattr(plans.task, "_KINDS", dict(plans.task._KINDS))
    monkeypatch.setattr(tasks, "_TASKS", dict(tasks._TASKS))

    def put(name: str, text: str, module: str) -> None:
        (tmp_path / f"{module}.py").write_text(text)
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[intramural.tasks]\n{name} = {module}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, module, raising=False)

    yield put
    for module in [name for name in sys.modules if name.startswith("hospital_")]:
        del sys.modules[module]


class Cases(list[Case]):
    def take(self, rows: np.ndarray) -> list[Case]:
        return [self[row] for row in rows]


def test_a_task_of_one_file_is_found_by_its_name_and_trains(install: Install) -> None:
    install("grading", OWN.read_text(), "hospital_grading")
    assert "hospital_grading" not in sys.modules
    plan = Plan.parse(CONTENT, source="study.toml")
    assert "hospital_grading" in sys.modules
    assert plan.task.model_dump()["far"] == 2.0
    assert Plan.model_validate_json(canonical(plan.model_dump(mode="json")), strict=True) == plan

    task, network = tasks.task(plan.task), tasks.network(plan)
    outputs, targets = torch.tensor([[0.0, 0.0, 9.0]]), torch.tensor([0])
    assert task.loss(outputs, targets) > task.loss(outputs.roll(-1, 1), targets)  # nearer is better
    images = np.random.default_rng(1).random((6, 20, 20), dtype=np.float32)
    cases = Cases(task.prepare(Case(image, label=k % 3)) for k, image in enumerate(images))
    delta = training.fit(network, task, cases, Training(**CONTENT["training"]), mu=0.0, seed=1)
    assert delta.any()
    assert set(training.evaluate(network, task, cases)) == {"loss", "accuracy", "auc"}


def test_its_keys_are_checked_like_any_other(install: Install) -> None:
    install("grading", OWN.read_text(), "hospital_grading")
    with pytest.raises(ConfigError, match=r"study\.toml: task\.far: must be at most 10 \(got 99\)"):
        Plan.parse(CONTENT | {"task": CONTENT["task"] | {"far": 99}}, source="study.toml")


def test_a_task_that_is_not_installed_is_refused_and_nothing_is_imported(install: Install) -> None:
    install("other", "raise AssertionError('imported')", "hospital_other")
    with pytest.raises(ConfigError, match=r"task\.name: no such task is installed; known: .*other.* \(got 'grading'\)"):
        Plan.parse(CONTENT, source="study.toml")
    assert "hospital_other" not in sys.modules


@pytest.mark.parametrize("name", ["classification", "hospital_evil", "os", "../x", "", 3, None])
def test_a_name_reaches_no_module(install: Install, name: object) -> None:
    install("evil", "raise AssertionError('imported')", "hospital_evil")
    assert "hospital_evil" not in sys.modules
    with pytest.raises(ConfigError):
        Plan.parse(CONTENT | {"task": CONTENT["task"] | {"name": name}}, source="study.toml")
    assert "hospital_evil" not in sys.modules


def test_a_task_that_cannot_be_imported_says_which_module(install: Install) -> None:
    install("grading", "import no_such_library", "hospital_broken")
    with pytest.raises(ConfigError, match=r"task\.name: the task is installed, but hospital_broken cannot be imported"):
        Plan.parse(CONTENT, source="study.toml")


def test_two_tasks_cannot_have_one_name(install: Install) -> None:
    class Mine(TaskSettings):
        name: Literal["segmentation"]

    class Vague(TaskSettings):
        pass

    with pytest.raises(ConfigError, match="'segmentation' is the name of Segmentation"):
        tasks.register(Mine)
    with pytest.raises(ConfigError, match=r"Vague\.name: must be one word"):
        tasks.register(Vague)


def test_settings_without_a_task_are_refused(install: Install) -> None:
    class Bare(TaskSettings):
        name: Literal["bare"]

    plans.register(Bare)
    content = {key: CONTENT["task"][key] for key in ("classes", "modality", "network")} | {"name": "bare"}
    plan = Plan.parse(CONTENT | {"task": content}, source="study.toml")
    with pytest.raises(ConfigError, match=r"task\.name: 'bare' has no task here"):
        tasks.task(plan.task)
