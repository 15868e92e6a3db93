"""Which updates the mean takes, and with what weight: the strategies that differ from FedAvg in nothing else.

    weighed = krum(contributions, malicious=1, select=1)
    weighted_mean(weighed.weights, [c.part for c in weighed.contributions], size, weighed.total)

Pure functions of contributions in order of silo name; a few numbers of each update are in memory at a time.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.errors import DataError
from models.exchange.spec import Vector, norm

_ELEMENTS = 1 << 20  # of all updates together that are in memory at a time
_ABOVE_0 = 1e-10  # Flower adds it to a loss, so that a loss of 0 has a power


@dataclass(frozen=True)
class Contribution:
    """One accepted update.

    Attributes:
        silo: Whose.
        weight: Above 0.
        load: Reads the update, `(n,)` float32.
        part: Reads the elements from a first one up to, and without, a last one.
        loss: The silo's loss of the round's model on its held-out images, at least 0, if it told it.
    """

    silo: str
    weight: float
    load: Callable[[], Vector]
    part: Callable[[int, int], Vector]
    loss: float | None = None


@dataclass(frozen=True)
class Weighed:
    """What the mean takes.

    Attributes:
        contributions: Those that are taken, in order of silo name.
        weights: Of each, above 0.
        total: What the weighted sum is divided by.
        selected: The silos that were chosen, where others were not.
    """

    contributions: Sequence[Contribution]
    weights: Sequence[float]
    total: float
    selected: tuple[str, ...] | None = None


def by_examples(contributions: Sequence[Contribution]) -> Weighed:
    """All of them, by their number of examples (McMahan et al., AISTATS 2017)."""
    weights = [contribution.weight for contribution in contributions]
    return Weighed(contributions, weights, math.fsum(weights))


def krum(contributions: Sequence[Contribution], *, malicious: int, select: int) -> Weighed:
    """The updates that lie closest to others (Blanchard et al., NeurIPS 2017; Multi-Krum if `select` is above 1).

    An update's score is the sum of its squared distances to its `K - malicious - 2` closest others. Of equal
    scores the first in order of name is better. Those that are taken are weighted by examples, as in Flower.

    Args:
        contributions: K of them; the plan sees to it that they are at least `2 * malicious + 3`.
        malicious: Silos that may lie.
        select: How many are taken.
    """
    apart = squared_distances(contributions)
    closest = max(1, len(contributions) - malicious - 2)
    scores = [math.fsum(sorted(np.delete(row, number).tolist())[:closest]) for number, row in enumerate(apart)]
    best = sorted(sorted(range(len(scores)), key=scores.__getitem__)[:select])
    chosen = [contributions[number] for number in best]
    weights = [contribution.weight for contribution in chosen]
    return Weighed(chosen, weights, math.fsum(weights), tuple(contribution.silo for contribution in chosen))


def fair(contributions: Sequence[Contribution], *, q: float, client_learning_rate: float) -> Weighed:
    """More weight to silos whose loss is high: q-FedAvg (Li et al., ICLR 2020, algorithm 2).

    With L = 1 / client_learning_rate, update d and loss F, a silo's weight is `L * F**q`, and the sum is divided by
    the sum of `q * F**(q - 1) * ||L * d||**2 + L * F**q`. Numbers of examples do not count; q = 0 is the plain mean.

    Raises:
        DataError: A contribution tells no loss; intake lets none such pass.
    """
    lipschitz = 1 / client_learning_rate
    weights, parts = [], []
    for contribution in contributions:
        if contribution.loss is None:
            raise DataError(
                f"{contribution.silo}: told no loss, by which qfedavg weighs", "let its policy allow `loss`"
            )
        loss = contribution.loss + _ABOVE_0
        weights.append(lipschitz * loss**q)
        parts.append(q * loss ** (q - 1) * (lipschitz * norm(contribution.load())) ** 2 + weights[-1])
    return Weighed(contributions, weights, math.fsum(parts))


def squared_distances(contributions: Sequence[Contribution]) -> npt.NDArray[np.float64]:
    """Squared L2 distance of every two updates, `(K, K)` float64, summed piece by piece."""
    count, size = len(contributions), contributions[0].load().size
    found = np.zeros((count, count))
    for start, stop in pieces(size, count):
        block = np.stack([contribution.part(start, stop) for contribution in contributions]).astype(np.float64)
        for number in range(count):
            found[number, number + 1 :] += np.square(block[number + 1 :] - block[number]).sum(axis=1)
    return found + found.T


def pieces(size: int, count: int) -> Iterator[tuple[int, int]]:
    """First and last of each piece of vectors, so that a piece of `count` of them is small."""
    step = max(_ELEMENTS // max(count, 1), 1)
    for start in range(0, size, step):
        yield start, min(start + step, size)
