"""What a study trains, by name: how its network is built, its cases prepared and its results scored.

    task = tasks.task(plan.task)
    network = tasks.network(plan)

Both sides build the same task from the same settings. A further kind of task is one file: settings, a class
that keeps the promises of `Task`, and `register` before it. `tests/models/tasks/own_task.py` is one.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from models import plan as plans
from models.errors import ConfigError
from models.plan import Classification, Plan, Segmentation, TaskSettings
from models.tasks.case import Case
from models.tasks.classification import ClassificationTask
from models.tasks.flat import FlatNetwork
from models.tasks.networks import norm_state, running_statistics
from models.tasks.segmentation import SegmentationTask


class Task(Protocol):
    """What training and evaluation need to know of a task."""

    @property
    def metrics(self) -> frozenset[str]:
        """Every name that `score` can give."""
        ...

    def build(self, seed: int) -> nn.Module:
        """The network on the CPU, its weights drawn from the seed alone."""
        ...

    def prepare(self, case: Case) -> Case:
        """A case as it was decoded, made ready for the network; once, before the first round."""
        ...

    def sample(self, cases: Sequence[Case], generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """What one step trains on: inputs and targets, with chance drawn from the generator alone."""
        ...

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The scalar that training lowers, of the network's float outputs and the targets of `sample`."""
        ...

    def probabilities(self, outputs: torch.Tensor) -> torch.Tensor:
        """What the network's float outputs say to a user: probabilities `(B, K, ...)` of `(B, K, ...)`."""
        ...

    def infer(self, network: nn.Module, cases: Sequence[Case]) -> list[torch.Tensor]:
        """The float outputs of a network in evaluation mode for whole prepared cases, `(K, ...)` each, on the CPU."""
        ...

    def examine(self, network: nn.Module, cases: Sequence[Case], wanted: Collection[str]) -> dict[str, torch.Tensor]:
        """What evaluation keeps of some cases: small tensors by name, one row for each case."""
        ...

    def score(self, findings: dict[str, torch.Tensor]) -> dict[str, float]:
        """Finite metrics by name, of what `examine` kept of all cases."""
        ...


Made = TypeVar("Made", bound=Callable[[Any], Task])

_TASKS: dict[type[TaskSettings], Callable[[Any], Task]] = {
    Classification: ClassificationTask,
    Segmentation: SegmentationTask,
}


def register(settings: type[TaskSettings]) -> Callable[[Made], Made]:
    """Make a kind of task known; stands before its class.

        @register(GradingSettings)
        class GradingTask: ...

    Args:
        settings: The keys of its `[task]`, with `name` fixed to one word.

    Raises:
        ConfigError: `name` is not one fixed word, or another kind has it.
    """
    plans.register(settings)

    def add(made: Made) -> Made:
        _TASKS[settings] = made
        return made

    return add


def task(settings: TaskSettings) -> Task:
    """The task that a study's settings name.

    Args:
        settings: The plan's `[task]`; its `name` has been checked when the plan was read.

    Raises:
        ConfigError: The kind has settings but no task.
    """
    if type(settings) not in _TASKS:
        raise ConfigError(f"task.name: {settings.name!r} has no task here", "register one for its settings")
    return _TASKS[type(settings)](settings)


def network(plan: Plan, device: torch.device | str = "cpu") -> FlatNetwork:
    """The network of a study, with its first weights; the plan decides which part of it travels.

    Args:
        plan: The study.
        device: Where it is to live.

    Raises:
        ConfigError: The network cannot be built as the plan asks for it, or the strategy cannot combine it.
    """
    module = task(plan.task).build(plan.seed)
    local = norm_state(module) if plan.strategy.local_norm else frozenset[str]()
    if plan.strategy.steps and (statistics := running_statistics(module) - local):
        raise ConfigError(
            f'strategy.name: "{plan.strategy.name}" would step {min(statistics)} like a weight, and such a variance '
            "becomes negative",
            'set norm = "group" in task.network.arguments, or strategy.local_norm = true',
        )
    return FlatNetwork(module, device, local=local, control=plan.strategy.name == "scaffold")


__all__ = ["Case", "Task", "network", "register", "task"]
