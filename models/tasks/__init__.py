"""What a study trains, by name: how its network is built, its images prepared and its results scored.

    task = tasks.task(plan.task)
    network = task.build(plan.seed)

Both sides build the same task from the same settings. A further kind of task is one class that keeps
the promises of `Task`, and one line in the registry below.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from models.plan import Classification
from models.tasks.classification import ClassificationTask


class Task(Protocol):
    """What training and evaluation need to know of a task; h and w are the study's `size`."""

    @property
    def metrics(self) -> frozenset[str]:
        """Every name that `score` can give."""
        ...

    def build(self, seed: int) -> nn.Module:
        """The network on the CPU, its weights drawn from the seed alone."""
        ...

    def prepare(self, image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """One image `(H, W)` float32 in modality units as the network's input `(1, h, w)` float32."""
        ...

    def augment(self, batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Training images `(B, 1, h, w)` float32, varied by chance drawn from the generator alone."""
        ...

    def loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The scalar that training lowers; logits `(B, K)` float, targets `(B,)` int64."""
        ...

    def predict(self, logits: torch.Tensor) -> torch.Tensor:
        """What the network's outputs say to a user: for classification, probabilities `(B, K)` of `(B, K)` float."""
        ...

    def score(self, logits: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
        """Finite metrics by name, of logits `(N, K)` float and targets `(N,)` int64."""
        ...


_TASKS: Mapping[str, Callable[[Classification], Task]] = MappingProxyType({"classification": ClassificationTask})


def task(settings: Classification) -> Task:
    """The task that a study's settings name.

    Args:
        settings: The plan's `[task]`; its `name` has been checked when the plan was read.
    """
    return _TASKS[settings.name](settings)


__all__ = ["Task", "task"]
