"""A task of one's own, as CONTRIBUTING shows it: grades in order, where a far mistake is a worse one."""

from typing import Annotated, Literal

import torch
from pydantic import Field

from models.plan import Classification
from models.tasks import register
from models.tasks.classification import ClassificationTask


class Grading(Classification):
    """The keys of its `[task]`: those of classification, and one more."""

    name: Literal["grading"]
    far: Annotated[float, Field(ge=0, le=10)] = 1.0  # weight of the squared distance between grades


@register(Grading)
class GradingTask(ClassificationTask):
    """Classification with another loss."""

    settings: Grading

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Cross entropy, and the squared distance of the expected grade from the true one."""
        grades = torch.arange(outputs.shape[1], device=outputs.device, dtype=outputs.dtype)
        distance = outputs.softmax(1) @ grades - targets
        return super().loss(outputs, targets) + self.settings.far * (distance**2).mean()
