"""One label per 2-D image: the images' preparation, the loss and the scores.

    task = ClassificationTask(plan.task)
    input = task.prepare(pixels)                # (H, W) in modality units -> (1, h, w) from 0 to 1
    logits = network(batch)                     # (B, K)
    task.score(logits, targets)                 # {"loss": 0.41, "accuracy": 0.83, "auc": 0.90}

Preparation is the same for the same pixels, everywhere. Chance enters training only through a
generator that the caller seeds.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from monai.metrics.rocauc import compute_roc_auc
from monai.networks.layers.spatial_transforms import AffineTransform
from monai.transforms.intensity.array import ScaleIntensityRange
from monai.transforms.spatial.array import Resize
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from models.errors import DataError, NotFinite
from models.plan import Classification
from models.tasks.networks import build_network

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
        return frozenset({"loss", "accuracy", "auc"})

    def build(self, seed: int) -> nn.Module:
        """The study's network; see `build_network`."""
        return build_network(self.settings, seed)

    def prepare(self, image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Map an image to 0..1 and to the study's size.

        Values beyond the percentiles or the window are clipped. If both percentiles are the same value
        (a small structure on an empty ground), the image's extremes take their place; an image without
        any contrast becomes zeros. Height and width are stretched independently: averaged over areas
        where both shrink, else bilinear.

        Args:
            image: `(H, W)` float32 in modality units.

        Returns:
            `(1, h, w)` float32 from 0 to 1.

        Raises:
            DataError: The image holds NaN or infinity.
        """
        if not np.isfinite(image).all():
            raise DataError("an image holds NaN or infinity", "look at its rescale slope and intercept")
        low, high = self._range(image)
        if low == high:
            return np.zeros((1, *self.settings.size), np.float32)
        scale = ScaleIntensityRange(low, high, 0.0, 1.0, clip=True)
        shrinks = all(new <= old for new, old in zip(self.settings.size, image.shape, strict=True))
        resized = self._resize(torch.as_tensor(scale(image[None])), mode="area" if shrinks else "bilinear")
        # Interpolation may round past 1.
        return cast("npt.NDArray[np.float32]", resized.numpy().clip(0, 1))

    def augment(self, batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Mirror, turn and zoom each training image, if the study says so.

        Left and right change places in half of the images; each is turned by up to 10 degrees either
        way and scaled by up to 10 % either way, about its centre. Edges are repeated outwards.

        Args:
            batch: `(B, 1, h, w)` float32.
            generator: The only source of chance; it advances by three numbers an image.

        Returns:
            As `batch`; the same tensor if the study does not augment.
        """
        if not self.settings.augment:
            return batch
        # MONAI's random transforms go image by image and draw from numpy; its batched resampler with
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
        return cast(torch.Tensor, self._resample(batch, matrices))

    def loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean cross entropy in nats, a scalar; logits `(B, K)` float, targets `(B,)` int64."""
        return cross_entropy(logits, targets)

    def predict(self, logits: torch.Tensor) -> torch.Tensor:
        """The probability of each class, `(B, K)` from 0 to 1 and adding up to 1; logits `(B, K)` float."""
        return logits.softmax(1)

    def score(self, logits: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
        """Score a set of images.

        Args:
            logits: `(N, K)` float.
            targets: `(N,)` int64 from 0 to K - 1.

        Returns:
            "loss" (mean cross entropy, nats), "accuracy" (0..1) and "auc" (area under the ROC curve: of
            class 1 if there are two, else the mean over each class against the rest). "auc" is absent
            where a class does not occur; nothing is given for no images.

        Raises:
            NotFinite: A logit is NaN or infinite.
        """
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
            scores["auc"] = float(cast(float, compute_roc_auc(*_against_the_rest(logits, truth))))
        return scores

    def _range(self, image: npt.NDArray[np.float32]) -> tuple[float, float]:
        """The values that become 0 and 1."""
        if self.settings.window:
            centre, width = self.settings.window
            return centre - width / 2, centre + width / 2
        # numpy partitions where MONAI's ScaleIntensityRangePercentiles sorts: 20 times as fast, same values.
        low, high = np.percentile(image, self.settings.percentiles or (0, 100))
        if low == high:
            low, high = image.min(), image.max()
        return float(low), float(high)

    @cached_property
    def _resize(self) -> Resize:
        return Resize(self.settings.size)

    @cached_property
    def _resample(self) -> AffineTransform:
        return AffineTransform(normalized=True, reverse_indexing=False, align_corners=False, padding_mode="border")


def _against_the_rest(logits: torch.Tensor, truth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log odds of each class against all others, and the truth, as `compute_roc_auc` wants them.

    Log odds rank images as probabilities do, without the ties that rounding to 0 and 1 would make.
    """
    others = torch.eye(logits.shape[1], dtype=torch.bool)
    odds = logits - logits[:, None, :].masked_fill(others, -torch.inf).logsumexp(2)
    return (odds[:, 1], truth[:, 1]) if logits.shape[1] == 2 else (odds, truth)
