"""The peers' side of the benchmark: the study's `cnn` in plain torch, and the images that were decoded for them.

Used by `flare_client.py` and `pfl_rounds.py`, in environments that have torch and the peer but nothing of Intramural.
`scripts/bench_peers.py` checks that the network has the parameters of the study's, array by array.
"""

import os
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn

CHANNELS = (16, 32, 64, 128)


class Net(nn.Sequential):
    """Strided convolutions with group normalisation, global mean, linear: (B, 1, 64, 64) to (B, 2)."""

    def __init__(self) -> None:
        blocks = [
            nn.Sequential(nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.ReLU())
            for before, after in pairwise((1, *CHANNELS))
        ]
        super().__init__(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.0), nn.Linear(CHANNELS[-1], 2))


def load(number: int) -> dict[str, torch.Tensor]:
    """A hospital's images and labels: `train_x` (N, 1, 64, 64) float32, `train_y` (N,) int64, and the same held out."""
    with np.load(Path(os.environ["PEERS_DATA"]) / f"{number}.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def stamp(what: str) -> None:
    """Write down when, for the benchmark."""
    with Path(os.environ["PEERS_STAMPS"]).open("a") as file:
        file.write(f"{what} {time.time()} {time.process_time()}\n")
