"""Normalisation layers: exchanged for those that a study asks for, and told apart from the rest.

A network is built with BatchNorm and then looked through: what is in the network that was built counts, not
the argument that it was built with. MONAI's ResNet, for one, does not hand `norm` on to its blocks (1.6.1).
"""

import math
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import BatchNorm2d, BatchNorm3d, _BatchNorm, _NormBase

Norm = Literal["group", "instance", "batch"]

_GROUPS = 8  # divides every width that the registered networks have by default


def replace_batch_norm(module: nn.Module, norm: Norm) -> None:
    """Exchange every BatchNorm below a module, in place.

    BatchNorm carries each silo's image statistics in its buffers, and averages badly when hospitals' scanners
    differ (Hsieh et al., ICML 2020), hence the default.
    """
    if norm == "batch":
        return
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            module.register_module(name, _other(child, norm))
        else:
            replace_batch_norm(child, norm)


def _other(batch: _BatchNorm, norm: Norm) -> nn.Module:
    channels = batch.num_features
    if norm == "instance":
        kind = {BatchNorm2d: nn.InstanceNorm2d, BatchNorm3d: nn.InstanceNorm3d}[type(batch)]
        return kind(channels, eps=batch.eps, affine=True)
    return nn.GroupNorm(math.gcd(_GROUPS, channels), channels, eps=batch.eps)


def norm_state(module: nn.Module) -> frozenset[str]:
    """Names in `state_dict` of all that normalisation layers hold: weights, biases and running statistics.

    Batch, instance, group and layer normalisation: what FedBN keeps in the hospital.
    """
    kinds = (_NormBase, nn.GroupNorm, nn.LayerNorm)
    return frozenset(
        f"{name}.{part}" if name else part
        for name, layer in module.named_modules()
        if isinstance(layer, kinds)
        for part in layer.state_dict()
    )


def running_statistics(module: nn.Module) -> frozenset[str]:
    """Those of them that are no weights, but means and variances of the images seen so far."""
    return frozenset(name for name in norm_state(module) if name.endswith(("running_mean", "running_var")))
