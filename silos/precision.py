"""Training in bfloat16, where the study allows it and the processor was made for it.

    if trains_in_bfloat16(device, training):
        with layout(network), torch.autocast(device.type, torch.bfloat16): ...

Convolutions and matrix products are then done in 16 bits and summed in 32; the weights, what an optimizer remembers,
the loss and all metrics stay float32. Whether it is done follows from the plan and from what the processor is, never
from how long something took: the same machine would else come to other bits on a busy day.
"""

import contextlib

import torch
from torch import nn

from models.plan import Training
from models.tasks.flat import FlatNetwork

_FEW = 8  # channels in a group of GroupNorm


def trains_in_bfloat16(device: torch.device, training: Training) -> bool:
    """Whether a study's network is trained so on a device."""
    return training.mixed_precision and has_bfloat16(device)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware: CUDA since Ampere, x86 processors with AVX512-BF16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())


def layout(network: FlatNetwork) -> contextlib.AbstractContextManager[None]:
    """Inside, a network lies in memory as its bfloat16 kernels are fastest.

    Channels last, unless there is a GroupNorm of few channels a group: there its gradient takes up to thirty times as
    long as elsewhere (PyTorch 2.13, CPU), more than the convolutions gain.
    """
    groups = [layer for layer in network.module.modules() if isinstance(layer, nn.GroupNorm)]
    if any(layer.num_channels // layer.num_groups < _FEW for layer in groups):
        return contextlib.nullcontext()
    return network.channels_last()
