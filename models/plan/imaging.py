"""The two kinds of task that the toolkit brings: one label per image, and one label per voxel.

    [task]                                      [task]
    name = "classification"                     name = "segmentation"
    classes = ["none", "tumour"]                classes = ["tumour"]        # background is implied
    modality = ["MR"]                           modality = ["MR"]
    size = [224, 224]                           dimensions = 3
    percentiles = [1, 99]                       spacing = [1.0, 1.0, 1.0]
                                                patch = [96, 96, 96]
                                                zscore = "nonzero"

Between scanners it matters how intensities are made comparable. Four ways, of which a study takes one:
`percentiles` of each image or a fixed `window`, mapped to 0..1; `zscore`, mean 0 and deviation 1 of each
image; and `landmarks` of the histogram (Nyul and Udupa, Magn Reson Med 1999; Nyul, Udupa and Zhang, IEEE
Trans Med Imaging 2000).
"""

import math
from itertools import pairwise
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from models.plan.task import Named, TaskSettings, Unit, Word, register
from models.settings import Settings

_LARGEST = 2**24  # pixels or voxels that a network may be shown at a time

Side = Annotated[int, Field(ge=8, le=1024)]
Extent = Annotated[tuple[Side, ...], Field(min_length=2, max_length=3)]
Spacing = Annotated[
    tuple[Annotated[float, Field(ge=0.05, le=50)], ...], Field(min_length=2, max_length=3)
]  # mm from voxel to voxel

# A key that came later than the first studies is left out where it says nothing, so that their digests stand.
Later = Field(exclude_if=lambda value: value is None)


class Augmentation(Named):
    """A random transform of training images, by its name in MONAI."""


Code = Annotated[str, Field(pattern=r"^[A-Z0-9_]{1,16}:[!-~]{1,16}$")]
"""A coding scheme and a value in it, such as `SCT:52988006`."""


class Codes(Settings):
    """What a class is called where predictions are written as DICOM SEG (PS3.16, CID 7150 and 7151 onwards)."""

    category: Code  # such as SCT:49755003, a morphologically abnormal structure
    type: Code  # such as SCT:52988006, a lesion


class Landmarks(Settings):
    """Where the percentiles of an image's foreground lie on the study's scale."""

    percentiles: Annotated[list[Annotated[float, Field(ge=0, le=100)]], Field(min_length=2, max_length=101)]
    values: list[float]

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if len(self.values) != len(self.percentiles):
            raise ValueError("give as many values as percentiles")
        if any(low >= high for row in (self.percentiles, self.values) for low, high in pairwise(row)):
            raise ValueError("percentiles and values must rise")
        return self


class Imaging(TaskSettings):
    """What tasks on images share."""

    percentiles: tuple[float, float] | None = None  # of each image, mapped to 0..1
    window: tuple[float, float] | None = None  # centre and width in modality units, mapped to 0..1
    zscore: Annotated[Literal["nonzero", "all"] | None, Later] = None  # of voxels that are not 0, or of all
    landmarks: Annotated[Landmarks | None, Later] = None

    @model_validator(mode="after")
    def _one_normalisation(self) -> Self:
        given = [self.percentiles, self.window, self.zscore, self.landmarks]
        if sum(choice is not None for choice in given) != 1:
            raise ValueError("give either percentiles or window or zscore or landmarks")
        if self.percentiles and not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError("percentiles must be two rising numbers from 0 to 100")
        if self.window and not self.window[1] > 0:
            raise ValueError("window must be a centre and a width above 0")
        return self


@register
class Classification(Imaging):
    """One label per image: a 2-D image, or a volume."""

    gives: ClassVar[frozenset[str]] = frozenset({"loss", "accuracy", "auc"})
    unprepared: ClassVar[frozenset[str]] = TaskSettings.unprepared | {"augment"}

    name: Literal["classification"]
    classes: Annotated[list[Word], Field(min_length=2)]
    dimensions: Annotated[Literal[2, 3], Field(exclude_if=lambda value: value == 2)] = 2
    size: Extent  # rows and columns that an image is resized to; of a volume, the voxels about its middle
    spacing: Annotated[Spacing | None, Later] = None  # of volumes; 2-D images are resized to `size`
    # True: random flips, small rotations and zooms of 2-D images; or a list of MONAI's transforms
    augment: bool | list[Augmentation] = False

    @property
    def unit(self) -> Unit:
        """What a case is made of."""
        return "volume" if self.dimensions == 3 else "image"

    @property
    def extent(self) -> str:
        """What the network sees at a time, in words for people."""
        return _words(self.size, self.spacing)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _require_axes(self.dimensions, size=self.size, spacing=self.spacing)
        if (self.dimensions == 3) != (self.spacing is not None):
            raise ValueError("spacing is of volumes, which need it (dimensions = 3); 2-D images have none")
        if self.dimensions == 3 and self.augment is True:
            raise ValueError("augment = true is of 2-D images; for volumes, list the transforms")
        return self


@register
class Segmentation(Imaging):
    """One label per pixel or voxel.

    With `dimensions = 2` the network sees single slices, of 2-D images or of volumes (along their last axis);
    with 3 it sees blocks of a volume.
    """

    gives: ClassVar[frozenset[str]] = frozenset({"loss", "dice", "hausdorff95"})
    drawn: ClassVar[bool] = True
    unprepared: ClassVar[frozenset[str]] = TaskSettings.unprepared | {
        "patch",
        "patches",
        "foreground",
        "overlap",
        "augment",
        "codes",
    }

    name: Literal["segmentation"]
    dimensions: Literal[2, 3]
    spacing: Spacing | None = None  # that images are brought to; as they were acquired if absent
    patch: Extent  # what the network sees at a time
    patches: Annotated[int, Field(ge=1, le=64)] = 1  # drawn from each case of a batch
    foreground: Annotated[float, Field(ge=0, le=1)] = 0.5  # chance that a patch is centred on a class
    overlap: Annotated[float, Field(ge=0, le=0.9)] = 0.25  # of neighbouring windows when a whole case is predicted
    augment: list[Augmentation] = []
    # By class; written into predictions, of no weight in training.
    codes: Annotated[dict[Word, Codes], Field(exclude_if=lambda value: not value)] = {}

    @property
    def unit(self) -> Unit:
        """What a case is made of."""
        return "volume" if self.dimensions == 3 else "either"

    @property
    def extent(self) -> str:
        """What the network sees at a time, in words for people."""
        return _words(self.patch, self.spacing)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _require_axes(self.dimensions, patch=self.patch, spacing=self.spacing)
        if "background" in self.classes:
            raise ValueError("background is implied; name the others")
        if len(self.classes) > 254:
            raise ValueError("a mask holds at most 254 classes")
        if unknown := sorted(set(self.codes) - set(self.classes)):
            raise ValueError(f"codes: {', '.join(unknown)} is none of the classes")
        return self


def _require_axes(dimensions: int, **given: tuple[float, ...] | None) -> None:
    for key, value in given.items():
        if value is not None and len(value) != dimensions:
            raise ValueError(f"{key} must have {dimensions} numbers (dimensions = {dimensions})")
        if key != "spacing" and value is not None and math.prod(value) > _LARGEST:
            raise ValueError(f"{key} must not have more than {_LARGEST:,} pixels or voxels")


def _words(shape: tuple[int, ...], spacing: tuple[float, ...] | None) -> str:
    unit = "pixels" if len(shape) == 2 else "voxels"
    of = f" of {' x '.join(f'{side:g}' for side in spacing)} mm" if spacing else ""
    return f"{' x '.join(str(side) for side in shape)} {unit}{of}"
