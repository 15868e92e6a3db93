"""One label per pixel or voxel: the cases' preparation, the patches, the loss and the scores.

    task = SegmentationTask(plan.task)
    case = task.prepare(Case(pixels, spacing, mask))     # comparable intensities, the study's spacing
    inputs, targets = task.sample([case], generator)     # patches
    task.predict(network, case)                          # a mask as large as the prepared image

Preparation is the same for the same pixels, everywhere. Chance enters training only through a generator
that the caller seeds. A whole case is predicted window by window, and judged at once, so that no more than
one case's outputs are ever in memory.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from models.errors import DataError, NotFinite
from models.plan import Segmentation
from models.tasks.case import Case
from models.tasks.masks import distances, overlaps
from models.tasks.networks import SEGMENTERS, build_network
from models.tasks.patches import DRAWS, crop
from models.tasks.preparation import grid, normalise, resize, resize_mask

if TYPE_CHECKING:
    from monai.losses.dice import DiceCELoss

    from models.tasks.augmentation import Augmenter

_WINDOWS = {2: 16, 3: 2}  # that a network is shown at a time, by dimensions


@dataclass(frozen=True)
class SegmentationTask:
    """Segmentation as a study sets it; a `Task`.

    Args:
        settings: The plan's `[task]`.
    """

    settings: Segmentation

    @property
    def metrics(self) -> frozenset[str]:
        """Every name that `score` can give."""
        return self.settings.gives

    def build(self, seed: int) -> nn.Module:
        """The study's network, with one output more than there are classes; see `build_network`.

        Raises:
            ConfigError: The network or an augmentation cannot be made as the study asks for it.
        """
        _ = self._augment
        settings = self.settings
        return build_network(
            settings.network, SEGMENTERS, settings.patch, len(settings.classes) + 1, seed, "task.patch"
        )

    def prepare(self, case: Case) -> Case:
        """Make intensities comparable and bring image and mask to the study's spacing.

        In a 2-D study a volume keeps its slices, and each is brought to the spacing.

        Args:
            case: As decoded: `(H, W)` or `(X, Y, Z)`; without a mask it can be predicted, not trained on.

        Raises:
            DataError: The image holds NaN or infinity, has other axes than the study, or no known spacing;
                or the mask is not the image's, or holds more classes than the study.
        """
        image, mask, settings = case.image, case.mask, self.settings
        if image.ndim != settings.dimensions and (image.ndim, settings.dimensions) != (3, 2):
            raise DataError(f"an image has {image.ndim} axes, the study {settings.dimensions}")
        if mask is not None and (mask.shape != image.shape or mask.max(initial=0) > len(settings.classes)):
            raise DataError("a mask is not of its image, or holds classes that the study has not")
        shape, spacing = grid(image.shape, case.spacing, settings.spacing)
        scaled = normalise(image, settings)
        if shape != image.shape:
            scaled = resize(scaled, shape)
            mask = None if mask is None else resize_mask(mask, shape)
        return replace(case, image=scaled[None], mask=mask, spacing=spacing)

    def sample(self, cases: Sequence[Case], generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw patches, and vary them if the study says so.

        Args:
            cases: Prepared.
            generator: The only source of chance.

        Returns:
            Images `(B, 1, *patch)` float32 and targets `(B, 1, *patch)` int64, with `patches` of each case.
        """
        settings = self.settings
        drawn = [case for case in cases for _ in range(settings.patches)]
        draws = torch.rand(len(drawn), DRAWS, generator=generator, device=generator.device, dtype=torch.float64)
        pairs = [crop(c, settings.patch, settings.foreground, d) for c, d in zip(drawn, draws.tolist(), strict=True)]
        images = torch.from_numpy(np.stack([image for image, _ in pairs]))
        masks = torch.from_numpy(np.stack([mask[None] for _, mask in pairs])).long()
        images, varied = self._augment(images, masks, generator)
        assert varied is not None
        return images, varied

    def probabilities(self, outputs: torch.Tensor) -> torch.Tensor:
        """The probability of background and of each class in each voxel, `(B, K + 1, ...)` from 0 to 1."""
        return outputs.softmax(1)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Dice loss and cross entropy, summed; a scalar.

        The Dice part (Milletari et al., 3DV 2016) leaves background out and takes the batch as one image, so
        that a patch without a class is no reason to predict nothing.

        Args:
            outputs: Logits `(B, K + 1, *spatial)` float, background first.
            targets: `(B, 1, *spatial)` int64.
        """
        if outputs.is_cuda:
            return self._without_class_numbers(outputs, targets)
        return cast(torch.Tensor, self._loss(outputs, targets))

    def infer(self, network: nn.Module, cases: Sequence[Case]) -> list[torch.Tensor]:
        """The network's outputs for whole cases, window by window, weighted towards each window's middle.

        Args:
            network: In evaluation mode, on any device.
            cases: Prepared.

        Returns:
            Of each case logits `(K + 1, *spatial)` float32 on the CPU, background first.
        """
        return [self._infer(network, case) for case in cases]

    @torch.no_grad()
    def _infer(self, network: nn.Module, case: Case) -> torch.Tensor:
        image = torch.from_numpy(np.ascontiguousarray(case.image))[None]
        volume = image.ndim - 2 > self.settings.dimensions
        if volume:  # its slices as a batch
            image = image[0].permute(3, 0, 1, 2)
        device = next(network.parameters()).device
        from monai.inferers.inferer import SlidingWindowInferer

        inferer = SlidingWindowInferer(
            self.settings.patch,
            sw_batch_size=_WINDOWS[self.settings.dimensions],
            overlap=self.settings.overlap,
            mode="gaussian",
            sw_device=device,
            device="cpu",
        )
        logits = cast(torch.Tensor, inferer(image, network)).float()
        return logits.permute(1, 2, 3, 0) if volume else logits[0]

    def predict(self, network: nn.Module, case: Case) -> npt.NDArray[np.uint8]:
        """The mask that the network gives a prepared case, `(*spatial)` uint8; see `infer`."""
        return cast("npt.NDArray[np.uint8]", self._infer(network, case).argmax(0).to(torch.uint8).numpy())

    def examine(self, network: nn.Module, cases: Sequence[Case], wanted: Collection[str]) -> dict[str, torch.Tensor]:
        """Judge each case by itself.

        Args:
            network: In evaluation mode.
            cases: Prepared.
            wanted: Metrics to work out; distances between surfaces take a while.

        Returns:
            By metric, one number for each case, float64 `(B,)`; NaN where the case has none of the classes.

        Raises:
            NotFinite: An output is NaN or infinite.
        """
        rows = [self._judge(self._infer(network, case), case, wanted) for case in cases]
        return {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}

    def score(self, findings: dict[str, torch.Tensor]) -> dict[str, float]:
        """Score a set of cases.

        Args:
            findings: Of all cases, as `examine` gives them.

        Returns:
            "loss"; "dice" (0..1) and "hausdorff95" (mm): the mean over cases of the mean over the classes that
            the case has. A metric that no case has is absent.
        """
        found = {name: values[~values.isnan()] for name, values in findings.items()}
        return {name: float(values.mean()) for name, values in found.items() if len(values)}

    def _judge(self, logits: torch.Tensor, case: Case, wanted: Collection[str]) -> dict[str, float]:
        if not logits.isfinite().all():
            raise NotFinite("the network's outputs are NaN or infinite", "lower training.learning_rate")
        assert case.mask is not None
        truth = torch.from_numpy(case.mask.astype(np.int64))
        found = {}
        if "loss" in wanted:
            found["loss"] = float(self.loss(logits[None], truth[None, None]))
        if "dice" in wanted:
            found["dice"] = float(overlaps(logits.argmax(0), truth, len(logits)).nanmean())
        if "hausdorff95" in wanted:
            found["hausdorff95"] = float(distances(logits.argmax(0), truth, len(logits), case.spacing).nanmean())
        return found

    def _without_class_numbers(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The same loss, from shares of classes: on a GPU, class numbers have no deterministic kernel."""
        from monai.networks.utils import one_hot

        shares = one_hot(targets, outputs.shape[1])
        return cast(torch.Tensor, self._loss.dice(outputs, targets) + self._loss.ce(outputs, shares))

    @cached_property
    def _loss(self) -> "DiceCELoss":
        from monai.losses.dice import DiceCELoss

        return DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)

    @cached_property
    def _augment(self) -> "Augmenter":
        from models.tasks.augmentation import Augmenter

        return Augmenter(self.settings.augment, self.settings.dimensions)
