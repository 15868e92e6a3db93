"""Who goes to which hospital: whole patients, dealt out by chance or by what their images say.

| by | what differs between hospitals | after |
|---|---|---|
| `iid` | nothing but chance; they are of one size | |
| `labels` | the mix of classes: each has shares drawn from Dirichlet(alpha) | Li et al., ICDE 2022, arXiv 2102.02079 |
| `sizes` | the number of patients: one draw of shares from Dirichlet(alpha) | the same |

The smaller alpha, the greater the difference. Those to train on and those held out are dealt out by the same shares, so
that a hospital is evaluated on patients like those that it trains on. A hospital that would have nobody on a side gets
one patient of the hospital that has most. The same patients and seed give the same hospitals.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from models.errors import ConfigError

Dealt = Literal["iid", "labels", "sizes"]

Homes = npt.NDArray[np.int64]
"""The hospital of each patient, from 0; `(patients,)`."""


def draw(
    labels: Sequence[int], held_out: Sequence[bool], into: int, by: Dealt, *, alpha: float = 0.5, seed: int = 0
) -> Homes:
    """Deal patients out by chance.

    Args:
        labels: Each patient's class, as an index.
        held_out: Whether each is held out.
        into: How many hospitals.
        by: What differs between them.
        alpha: Concentration of the Dirichlet distribution, above 0.
        seed: Of the draw.

    Raises:
        ConfigError: There are not as many patients as hospitals on each side.
    """
    sides = np.asarray(held_out, bool)
    if min(there := (int((~sides).sum()), int(sides.sum()))) < into:
        raise ConfigError(
            f"--into: {into} hospitals need {into} patients to train on and {into} held out; there are"
            f" {there[0]} and {there[1]}",
            "choose fewer hospitals, or change data.held_out of the site",
        )
    rng = np.random.default_rng(seed)
    groups = np.asarray(labels) if by == "labels" else np.zeros(len(sides), np.int64)
    homes = np.zeros(len(sides), np.int64)
    for group in np.unique(groups):
        shares = np.full(into, 1 / into) if by == "iid" else rng.dirichlet(np.full(into, alpha))
        for side in (False, True):
            shuffled = rng.permutation(np.flatnonzero((groups == group) & (sides == side)))
            cuts = np.rint(np.cumsum(shares)[:-1] * len(shuffled)).astype(int)
            for home, part in enumerate(np.split(shuffled, cuts)):
                homes[part] = home
    for side in (False, True):
        _give_each_one(homes, np.flatnonzero(sides == side), into, rng)
    return homes


def _give_each_one(homes: Homes, patients: Homes, into: int, rng: np.random.Generator) -> None:
    """Let no hospital be without any of some patients; there are as many of these as hospitals."""
    counts = np.bincount(homes[patients], minlength=into)
    for poor in np.flatnonzero(counts == 0):
        rich = counts.argmax()
        homes[rng.choice(patients[homes[patients] == rich])] = poor
        counts[rich] -= 1


def sort_out(values: Sequence[str] | Sequence[float], into: int | None = None) -> Homes:
    """Give each value a hospital of its own, or neighbours in the order of values one together.

    Args:
        values: Of each patient; NaN is a value too, after all others.
        into: How many hospitals of about the same size, if not one for each value.

    Raises:
        ConfigError: There are too few values for so many hospitals.
    """
    found, places, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    if into is None:
        return places.astype(np.int64)
    middles = (np.cumsum(counts) - counts / 2) / counts.sum()
    homes = np.minimum((middles * into).astype(np.int64), into - 1)
    if len(np.unique(homes)) < into:
        raise ConfigError(
            f"--into: {len(found)} values, some of many patients, cannot make {into} hospitals of about one size",
            "choose fewer hospitals, or leave --into out: each value is then one",
        )
    return np.asarray(homes[places], np.int64)
