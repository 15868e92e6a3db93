"""How long a hospital works at one round: to the end, or until its time is over.

A study that takes partial work (`stragglers = "partial"`) would rather have the steps that a slow hospital managed than
nothing from it: the gamma-inexact solutions of FedProx (Li et al., MLSys 2020, section 3.2). Such a hospital stops
while there is time to hand in what it has.
"""

import time
from collections.abc import Callable

Pace = Callable[[int, int], bool]
"""Asked after each step, with the steps done and the steps in all: whether there is time for another one."""

SHARE = 0.8
"""Of a round's deadline, from the order's arrival to the last step; the rest is for the gate and for both ways."""


def within(deadline: float, since: float) -> Pace:
    """The pace of a hospital that must answer in time.

    Args:
        deadline: Seconds that the round waits for its silos.
        since: When the order came, by `time.monotonic`.
    """
    end = since + SHARE * deadline
    return lambda done, total: time.monotonic() < end
