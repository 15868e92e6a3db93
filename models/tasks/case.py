"""One case: an image, with what is known of it.

A case is first what was decoded (the image in modality units, on its own grid), and after the task's
`prepare` what the network learns from. A task for which each image has one label looks at `label`; a task
that labels every voxel looks at `mask`.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

_PLACES = 10_000  # voxels of a class that are remembered


@dataclass(frozen=True)
class Case:
    """An image, with what is known of it.

    Attributes:
        image: Float32. Decoded: `(rows, columns)`, or `(x, y, z)` of a volume in RAS. Prepared: the same with a
            channel in front, `(1, ...)`. May be a view of a file, which is read where it is indexed; `np.asarray` reads
            the whole.
        spacing: mm from voxel to voxel along each axis of the image; None if nobody knows.
        mask: Unsigned 8 bit, of the image's axes without channel: 0 for background, k for the study's k-th class.
        label: Index of the study's class, from 0.
    """

    image: npt.NDArray[np.float32]
    spacing: tuple[float, ...] | None = None
    mask: npt.NDArray[np.uint8] | None = None
    label: int | None = None

    @cached_property
    def places(self) -> tuple[npt.NDArray[np.int64], ...]:
        """For each class that the mask holds, where (flat indices).

        Of a class with very many voxels ten thousand are remembered, the same ones each time. Looking through
        a volume costs more than a step of training on a patch of it, so keep the case and it is done once.
        """
        if self.mask is None:
            return ()
        marked = np.flatnonzero(self.mask)
        values = self.mask.ravel()[marked]
        found = []
        for value in np.unique(values):
            where = marked[values == value]
            if len(where) > _PLACES:
                where = np.sort(np.random.default_rng(0).choice(where, _PLACES, replace=False))
            found.append(where)
        return tuple(found)
