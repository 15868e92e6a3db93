"""The weighted mean of updates, as a running sum in the order given.

Floating-point addition depends on its order, so the order is the caller's (by silo name) and nothing
else's. One sum and one update are in memory at a time, however many silos there are.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from models.exchange.spec import Vector

_CHUNK = 1 << 18  # elements; a chunk's product stays in a core's cache


def weighted_mean(weights: Sequence[float], vectors: Iterable[Vector], total: float | None = None) -> Vector:
    """FedAvg's mean (McMahan et al., AISTATS 2017, algorithm 1).

    Args:
        weights: Above 0, one for each vector.
        vectors: 1-D float32 of one length; consumed one at a time.
        total: What the sum is divided by; the weights' sum by default.

    Returns:
        The mean, float32. Of one vector it is that vector, to the bit.
    """
    total = math.fsum(weights) if total is None else total
    mean: Vector | None = None
    rest = iter(vectors)
    for weight in weights:  # not `zip`, which would keep a vector until the next one is there
        vector, factor = next(rest, None), np.float32(weight / total)
        if vector is None:
            raise ValueError("there are more weights than updates")
        if mean is None:
            mean = vector * factor
        else:
            for start in range(0, vector.size, _CHUNK):
                part = slice(start, start + _CHUNK)
                mean[part] += vector[part] * factor
        del vector
    if next(rest, None) is not None:
        raise ValueError("there are more updates than weights")
    if mean is None:
        raise ValueError("the mean of no update is not defined")
    return mean
