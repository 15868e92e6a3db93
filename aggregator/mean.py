"""The weighted mean of updates, as a running sum in the order given.

Floating-point addition depends on its order, so the order is the caller's (by silo name) and nothing
else's. Updates are read piece by piece: the sum is all that lies in memory, however many silos there are.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from models.exchange.spec import Vector

_PIECE = 1 << 16  # numbers; a piece of the sum, one of an update and their product stay in a core's cache

Part = Callable[[int, int], Vector]
"""Reads the numbers of an update from a first one up to, and without, a last one."""


def weighted_mean(weights: Sequence[float], parts: Sequence[Part], size: int, total: float | None = None) -> Vector:
    """FedAvg's mean (McMahan et al., AISTATS 2017, algorithm 1).

    Args:
        weights: Above 0, one for each update.
        parts: What reads each update, float32.
        size: Numbers of an update.
        total: What the sum is divided by; the weights' sum by default.

    Returns:
        The mean, `(size,)` float32. Of one update it is that update, to the bit.
    """
    if not parts:
        raise ValueError("the mean of no update is not defined")
    total = math.fsum(weights) if total is None else total
    factors = [np.float32(weight / total) for weight in weights]
    mean, product = np.empty(size, np.float32), np.empty(min(size, _PIECE), np.float32)
    for start in range(0, size, _PIECE):
        found = mean[start : start + _PIECE]
        for number, (factor, part) in enumerate(zip(factors, parts, strict=True)):
            into = product[: found.size] if number else found  # the first is not added to 0, which would lose -0
            np.multiply(part(start, start + found.size), factor, out=into)
            if number:
                found += into
    return mean
