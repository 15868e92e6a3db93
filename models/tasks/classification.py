"""One label per image: the images' preparation, the loss and the scores.

    task = ClassificationTask(plan.task)
    case = task.prepare(Case(pixels))            # comparable intensities, the study's size
    inputs, targets = task.sample([case], generator)
    logits = network(inputs)                     # (B, K)
    task.score({"logits": logits, "targets": targets})   # {"loss": 0.41, "accuracy": 0.83, "auc": 0.90}

Preparation is the same for the same pixels, everywhere. Chance enters training only through a
generator that the caller seeds.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample, one_hot

from models.errors import DataError, NotFinite
from models.plan import Classification
from models.tasks.case import Case
from models.tasks.networks import CLASSIFIERS, build_network
from models.tasks.preparation import about_the_middle, grid, normalise, resize

if TYPE_CHECKING:
    from models.tasks.augmentation import Augmenter

_DEGREES = 10.0  # rotation of training images, either way
_ZOOM = 0.1  # their enlargement or reduction, at most


@dataclass(frozen=True)
class ClassificationTask:
    """Classification as a study sets it; a `Task`.

    Args:
        settings: The plan's `[task]`.
    """

    settings: Classification

    @property
    def metrics(self) -> frozenset[str]:
        """Every name that `score` can give."""
        return self.settings.gives

    def build(self, seed: int) -> nn.Module:
        """The study's network; see `build_network`.

        Raises:
            ConfigError: The network or an augmentation cannot be made as the study asks for it.
        """
        settings = self.settings
        if isinstance(settings.augment, list):
            _ = self._listed
        return build_network(settings.network, CLASSIFIERS, settings.size, len(settings.classes), seed, "task.size")

    def prepare(self, case: Case) -> Case:
        """Make intensities comparable and bring an image to the study's size.

        Of a 2-D image, height and width are stretched independently: averaged over areas where both shrink,
        else bilinear. A volume is brought to the study's spacing; then the voxels about its middle are taken,
        with zeros where it ends.

        Args:
            case: As decoded: `(H, W)`, or `(X, Y, Z)` with its spacing.

        Raises:
            DataError: The image holds NaN or infinity, has other axes than the study, or no known spacing.
        """
        image, settings = case.image, self.settings
        if image.ndim != settings.dimensions:
            raise DataError(f"an image has {image.ndim} axes, the study {settings.dimensions}")
        shape, spacing = (
            grid(image.shape, case.spacing, settings.spacing) if settings.spacing else (settings.size, None)
        )
        scaled = resize(normalise(image, settings), shape)
        if settings.percentiles or settings.window:
            scaled = scaled.clip(0, 1)  # interpolation may round past 1
        if settings.dimensions == 3:
            scaled = about_the_middle(scaled, settings.size)
        return replace(case, image=scaled[None], spacing=spacing)

    def sample(self, cases: Sequence[Case], generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """The images and labels of some cases, varied if the study says so.

        Args:
            cases: Prepared, with their labels.
            generator: The only source of chance.

        Returns:
            Images `(B, 1, *size)` float32 and labels `(B,)` int64.
        """
        return self.augment(_images(cases), generator), _labels(cases)

    def augment(self, batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Vary training images as the study says: by its list of transforms, or by the usual ones of 2-D images.

        The usual ones: left and right change places in half of the images; each is turned by up to 10 degrees either
        way and scaled by up to 10 % either way, about its centre. Edges are repeated outwards.

        Args:
            batch: `(B, 1, *size)` float32.
            generator: The only source of chance; the usual ones advance it by three numbers an image.

        Returns:
            As `batch`; the same tensor if the study does not augment.
        """
        if not self.settings.augment:
            return batch
        if self.settings.augment is not True:
            return self._listed(batch, None, generator)[0]
        # MONAI's random transforms go image by image and draw from numpy; torch's resampler with
        # matrices from the caller's generator does the batch at once and can be repeated.
        draws = torch.rand(len(batch), 3, generator=generator, device=generator.device).to(batch.device)
        flip = 1 - 2 * (draws[:, 0] < 0.5).float()
        angle = torch.deg2rad((2 * draws[:, 1] - 1) * _DEGREES)
        zoom = 1 + (2 * draws[:, 2] - 1) * _ZOOM
        cos, sin, zero = torch.cos(angle) / zoom, torch.sin(angle) / zoom, torch.zeros_like(zoom)
        height, width = batch.shape[-2:]
        # In coordinates from -1 to 1 a turn of an oblong image must carry its proportions.
        rows = [cos * flip, -sin * height / width, zero, sin * flip * width / height, cos, zero]
        matrices = torch.stack(rows, dim=1).view(-1, 2, 3)
        where = affine_grid(matrices, list(batch.shape), align_corners=False)
        return grid_sample(batch.contiguous(), where, padding_mode="border", align_corners=False)

    def loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean cross entropy in nats, a scalar; logits `(B, K)` float, targets `(B,)` int64."""
        return cross_entropy(logits, targets)

    def probabilities(self, outputs: torch.Tensor) -> torch.Tensor:
        """The probability of each class, `(B, K)` from 0 to 1 and adding up to 1; logits `(B, K)` float."""
        return outputs.softmax(1)

    @torch.no_grad()
    def infer(self, network: nn.Module, cases: Sequence[Case]) -> list[torch.Tensor]:
        """The network's logits, `(K,)` float32 on the CPU for each case.

        Args:
            network: In evaluation mode.
            cases: Prepared.
        """
        device = next(network.parameters()).device
        return list(network(_images(cases).to(device)).float().cpu())

    def examine(self, network: nn.Module, cases: Sequence[Case], wanted: Collection[str]) -> dict[str, torch.Tensor]:
        """What the network says of some cases, and what they are.

        Args:
            network: In evaluation mode.
            cases: Prepared, with their labels.
            wanted: Taken as all; they cost nothing.

        Returns:
            "logits" `(B, K)` float32 and "targets" `(B,)` int64.
        """
        return {"logits": torch.stack(self.infer(network, cases)), "targets": _labels(cases)}

    def score(self, findings: dict[str, torch.Tensor]) -> dict[str, float]:
        """Score a set of images.

        Args:
            findings: "logits" `(N, K)` float and "targets" `(N,)` int64 from 0 to K - 1.

        Returns:
            "loss" (mean cross entropy, nats), "accuracy" (0..1) and "auc" (area under the ROC curve: of
            class 1 if there are two, else the mean over each class against the rest). "auc" is absent
            where a class does not occur; nothing is given for no images.

        Raises:
            NotFinite: A logit is NaN or infinite.
        """
        logits, targets = findings["logits"], findings["targets"]
        if len(targets) == 0:
            return {}
        if not logits.isfinite().all():
            raise NotFinite("the network's outputs are NaN or infinite", "lower training.learning_rate")
        logits, targets = logits.detach().cpu().double(), targets.cpu()
        scores = {
            "loss": float(cross_entropy(logits, targets)),
            "accuracy": float((logits.argmax(1) == targets).double().mean()),
        }
        truth = one_hot(targets, logits.shape[1])
        if truth.any(0).all():
            odds, truth = _against_the_rest(logits, truth.bool())
            scores["auc"] = float(np.mean([_auc(*pair) for pair in zip(odds.T, truth.T, strict=True)]))
        return scores

    @cached_property
    def _listed(self) -> "Augmenter":
        """The study's list of transforms; they are MONAI's, which takes longer to load than torch."""
        from models.tasks.augmentation import Augmenter

        assert not isinstance(self.settings.augment, bool)
        return Augmenter(self.settings.augment, self.settings.dimensions)


def _images(cases: Sequence[Case]) -> torch.Tensor:
    return torch.from_numpy(np.stack([case.image for case in cases]))


def _labels(cases: Sequence[Case]) -> torch.Tensor:
    return torch.tensor([case.label for case in cases], dtype=torch.int64)


def _against_the_rest(logits: torch.Tensor, truth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log odds of each class against all others, and the truth; of two classes, of the second one only.

    Log odds rank images as probabilities do, without the ties that rounding to 0 and 1 would make. Whole-number logits
    that make the same odds make them to the last bit, whichever class has which, and whatever is added to all.
    """
    classes = logits.shape[1]
    # Differences of whole numbers are exact; in their order, the same ones are rounded to the same sum.
    ordered, places = logits.sort(1)
    others = torch.arange(classes).expand(classes, classes)[~torch.eye(classes, dtype=torch.bool)].view(classes, -1)
    odds = -(ordered[:, others] - ordered[:, :, None]).logsumexp(2)
    odds = torch.empty_like(odds).scatter_(1, places, odds)
    return (odds[:, 1:], truth[:, 1:]) if logits.shape[1] == 2 else (odds, truth)


def _auc(odds: torch.Tensor, truth: torch.Tensor) -> float:
    """The area under the ROC curve: of all pairs, how often the true one has the higher odds; a tie is half a pair.

    Mann and Whitney, Ann Math Stat 1947; Hanley and McNeil, Radiology 1982. Exact for these odds, but for one division.
    """
    true, others = odds[truth], odds[~truth].sort().values
    below = torch.searchsorted(others, true) + torch.searchsorted(others, true, right=True)
    return int(below.sum()) / 2 / (len(true) * len(others))
