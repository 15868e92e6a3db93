"""Who trains in a round of a study that asks only some of its hospitals.

    drawn(seed, round_, names, 10)      # ten of them; the same for the same words, on every machine

Each round draws anew and without weights, as in FedAvg (McMahan et al., AISTATS 2017, algorithm 1). Every name is
ranked by a hash of seed, round and itself, so that one that goes away is replaced by the next and nobody else moves.
"""

import hashlib
from collections.abc import Collection


def drawn(seed: int, round_: int, names: Collection[str], count: int | None) -> list[str]:
    """Draw names for a round.

    Args:
        seed: The study's.
        round_: Its round, from 1.
        names: Of those who could be asked.
        count: How many are; None for all.

    Returns:
        Them, sorted.
    """

    def rank(name: str) -> bytes:
        return hashlib.sha256(f"{seed}/{round_}/{name}".encode()).digest()

    return sorted(names) if count is None else sorted(sorted(names, key=rank)[:count])
