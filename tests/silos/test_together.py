"""Hospitals that train in one computation: each comes to what it would have come to alone, but for the last digits."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models import tasks
from models.errors import ConfigError
from models.exchange.spec import Vector
from models.plan import Plan
from models.tasks import Case
from models.tasks.flat import FlatNetwork
from silos import together, training
from silos.together import Job, fit_many

MakePlan = Callable[..., Plan]

SIZES = (22, 16, 5, 33, 9, 22)  # cases of each hospital; in batches of 8 they end with 6, 8, 5, 1, 1 and 6
SEGMENTATION = {
    "name": "segmentation",
    "dimensions": 2,
    "patch": [16, 16],
    "classes": ["lesion"],
    "modality": ["MR"],
    "percentiles": [1, 99],
    "network": {"name": "unet", "arguments": {"channels": [4, 8], "strides": [2]}},
}
ANYHOW: dict[str, Any] = {"epochs": 3, "batch_size": 8, "learning_rate": 0.1}


@dataclass
class Noise:
    """Images of noise, half of them with a bright square."""

    images: np.ndarray

    @classmethod
    def draw(cls, count: int, seed: int) -> "Noise":
        images = np.random.default_rng(seed).random((count, 1, 16, 16), dtype=np.float32)
        images[::2, :, 4:9, 4:9] += 0.5
        return cls(images)

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: np.ndarray) -> list[Case]:
        return [Case(self.images[row], label=int(row) % 2) for row in rows]


def jobs_of(plan: Plan, mu: float = 0.0) -> list[Job]:
    """One for each of `SIZES`."""
    network, task = tasks.network(plan), tasks.task(plan.task)
    start = network.weights.clone()
    return [
        Job(network, start, task, Noise.draw(count, number), plan.training, mu, number)
        for number, count in enumerate(SIZES)
    ]


def alone(job: Job) -> Vector:
    """What `training.fit` comes to."""
    job.network.weights.copy_(job.start)
    given = job.task, job.data, job.training
    found = training.fit(job.network, *given, mu=job.mu, seed=job.seed, on_step=job.on_step)
    job.network.weights.copy_(job.start)
    return found


def require_close(job: Job, delta: Vector | Exception) -> None:
    """The weights differ by less than 1e-5 of their length, the way they went by less than 1e-4 of its."""
    assert isinstance(delta, np.ndarray)
    expected, start = alone(job), job.start.numpy()
    distance = np.linalg.norm(delta - expected)
    assert distance <= 1e-5 * np.linalg.norm(start + expected)
    assert distance <= 1e-4 * np.linalg.norm(expected)
    assert np.linalg.norm(expected) > 0.01


@pytest.mark.parametrize("norm", ["group", "instance"])
@pytest.mark.parametrize(
    ("how", "mu"),
    [
        ({}, 0.0),
        ({}, 1.0),
        ({"momentum": 0.9, "weight_decay": 0.01, "learning_rate": 0.02}, 0.0),
        ({"momentum": 0.9, "weight_decay": 0.01, "learning_rate": 0.02, "epochs": None, "steps": 7}, 0.5),
    ],
)
def test_hospitals_of_all_sizes_come_to_what_they_would_have_come_to_alone(
    make_plan: MakePlan, how: dict[str, Any], mu: float, norm: str
) -> None:
    network = {"name": "cnn", "arguments": {"channels": [8, 16], "norm": norm}}
    plan = make_plan(task={"network": network, "augment": True}, training=ANYHOW | how)
    jobs = jobs_of(plan, mu)
    for job, delta in zip(jobs, fit_many(jobs), strict=True):
        require_close(job, delta)


def test_more_than_train_at_once_are_trained_in_groups(make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "_AT_ONCE", 4)
    jobs = jobs_of(make_plan(training=ANYHOW))
    for job, delta in zip(jobs, fit_many(jobs), strict=True):
        require_close(job, delta)
    assert fit_many([]) == []


def test_frozen_weights_stay_and_decay_does_not_move_them(make_plan: MakePlan) -> None:
    plan = make_plan(training=ANYHOW | {"weight_decay": 0.1})
    task = tasks.task(plan.task)
    module = task.build(1)
    first = next(module.parameters()).requires_grad_(False)
    network = FlatNetwork(module)
    start = network.weights.clone()
    jobs = [Job(network, start, task, Noise.draw(9, seed), plan.training, 0.5, seed) for seed in (1, 2)]
    for job, delta in zip(jobs, fit_many(jobs), strict=True):
        require_close(job, delta)
        moved = network.spec.named(np.asarray(delta))
        name = next(name for name, parameter in module.named_parameters() if parameter is first)
        assert not moved[name].any()


def test_who_stops_early_or_fails_does_so_alone(make_plan: MakePlan) -> None:
    def crash(done: int, total: int) -> bool:
        if done == 2:
            raise ValueError("after two")
        return True

    jobs = jobs_of(make_plan(training=ANYHOW))
    steps = list[tuple[int, int]]()

    def stop(done: int, total: int) -> bool:
        steps.append((done, total))
        return done < 4

    jobs[0] = Job(*list(vars(jobs[0]).values())[:-1], on_step=stop)
    jobs[3] = Job(*list(vars(jobs[3]).values())[:-1], on_step=crash)
    found = fit_many(jobs)
    assert steps == [(1, 9), (2, 9), (3, 9), (4, 9)]
    assert str(found.pop(3)) == "after two"
    del jobs[3]
    for job, delta in zip(jobs, found, strict=True):
        require_close(job, delta)


def test_a_visit_goes_on_where_it_stopped_and_takes_its_own_training(make_plan: MakePlan) -> None:
    jobs, told = jobs_of(make_plan(training=ANYHOW))[:3], list[str]()

    def visit(number: int) -> Vector | str:
        told.append(f"{number} begins")
        if number == 1:
            return "refused"
        job = jobs[number]
        delta = together.fit(job.network, job.task, job.data, job.training, mu=0.0, seed=job.seed)
        told.append(f"{number} goes on")
        return delta

    answers = together.begin([lambda number=number: visit(number) for number in range(3)])  # type: ignore[misc]
    assert told == ["0 begins", "1 begins", "2 begins"]
    last, first = answers[2](), answers[0]()
    assert told[3:] == ["2 goes on", "0 goes on"]
    assert answers[1]() == "refused"
    require_close(jobs[0], first)  # type: ignore[arg-type]
    require_close(jobs[2], last)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"training": {"optimizer": "adam"}}, r'training\.optimizer: "adam" cannot be trained in a batch'),
        ({"training": {"mixed_precision": True}}, r"training\.mixed_precision cannot"),
        ({"metrics": ["dice"], "task": SEGMENTATION}, r"task\.name: segmentation, whose loss"),
        (
            {"strategy": {"name": "scaffold"}, "weights": "equal"},
            r'strategy\.name: "scaffold", whose hospitals keep state',
        ),
        ({"strategy": {"local_norm": True}}, r"strategy\.local_norm, whose hospitals keep state"),
        ({"task": {"network": {"name": "cnn", "arguments": {}}}}, r"task\.network: cnn with .* more than 100,000,"),
        (
            {"task": {"network": {"name": "cnn", "arguments": {"channels": [8], "norm": "batch"}}}},
            r'task\.network\.arguments: norm = "batch"',
        ),
        (
            {"task": {"network": {"name": "cnn", "arguments": {"channels": [8], "dropout": 0.1}}}},
            r"task\.network\.arguments: dropout",
        ),
    ],
)
def test_what_cannot_be_batched_is_refused_by_its_key(
    make_plan: MakePlan, changes: dict[str, Any], problem: str
) -> None:
    together.require(make_plan())
    drawn = changes.get("task") is SEGMENTATION
    plan = Plan.model_validate(make_plan().model_dump() | changes) if drawn else make_plan(**changes)
    with pytest.raises(ConfigError, match=problem) as caught:
        together.require(plan)
    assert "leave `batched` out" in caught.value.hint


class Stranger(nn.Module):
    """A network that looks at its numbers, which no batch can."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean = images.mean((1, 2, 3)) * self.weight
        return torch.stack([mean, -mean if mean.sum() > 0 else mean], 1)


def test_a_network_that_torch_cannot_batch_is_an_error_and_no_other_result(make_plan: MakePlan) -> None:
    plan = make_plan(training=ANYHOW)
    network, task = FlatNetwork(Stranger()), tasks.task(plan.task)
    job = Job(network, network.weights.clone(), task, Noise.draw(9, 1), plan.training, 0.0, 1)
    with pytest.raises(ConfigError, match="cannot be batched by torch") as caught:
        fit_many([job])
    assert "leave `batched` out" in caught.value.hint
