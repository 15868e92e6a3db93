"""Networks that give an image one label.

MONAI is loaded by the network that is MONAI's, and not before: to load it takes more time and memory than torch.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Annotated

from pydantic import Field
from torch import nn

Count = Annotated[int, Field(ge=1, le=4096)]
Counts = Annotated[Sequence[Count], Field(min_length=1, max_length=8)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Widening = Annotated[float, Field(ge=0.125, le=8)]


def densenet121(
    dimensions: int,
    classes: int,
    *,
    init_features: Count = 64,
    growth_rate: Count = 32,
    block_config: Counts = (6, 12, 24, 16),
    bn_size: Count = 4,
    dropout_prob: Rate = 0.0,
) -> nn.Module:
    """DenseNet-121 of MONAI (Huang et al., CVPR 2017)."""
    from monai.networks.nets.densenet import DenseNet121

    return DenseNet121(
        spatial_dims=dimensions,
        in_channels=1,
        out_channels=classes,
        init_features=init_features,
        growth_rate=growth_rate,
        block_config=block_config,
        bn_size=bn_size,
        dropout_prob=dropout_prob,
    )


def residual18(
    dimensions: int,
    classes: int,
    *,
    conv1_t_size: Count = 7,
    conv1_t_stride: Count = 1,
    no_max_pool: bool = False,
    widen_factor: Widening = 1.0,
) -> nn.Module:
    """ResNet-18 of MONAI (He et al., CVPR 2016)."""
    from monai.networks.nets.resnet import resnet18

    return resnet18(
        pretrained=False,
        progress=False,
        spatial_dims=dimensions,
        n_input_channels=1,
        num_classes=classes,
        conv1_t_size=conv1_t_size,
        conv1_t_stride=conv1_t_stride,
        no_max_pool=no_max_pool,
        widen_factor=widen_factor,
    )


def efficientnet_b0(dimensions: int, classes: int) -> nn.Module:
    """EfficientNet-B0 of MONAI (Tan and Le, ICML 2019)."""
    from monai.networks.nets.efficientnet import EfficientNetBN

    return EfficientNetBN(
        "efficientnet-b0", pretrained=False, spatial_dims=dimensions, in_channels=1, num_classes=classes
    )


def cnn(
    dimensions: int,
    classes: int,
    *,
    channels: Counts = (24, 48, 96, 128),
    dropout: Rate = 0.0,
) -> nn.Module:
    """A small network that learns in seconds on a CPU: strided convolutions, global mean, linear."""
    blocks = [_halve(dimensions, before, after) for before, after in pairwise([1, *channels])]
    mean = nn.AdaptiveAvgPool2d(1) if dimensions == 2 else nn.AdaptiveAvgPool3d(1)
    head = [mean, nn.Flatten(), nn.Dropout(dropout), nn.Linear(channels[-1], classes)]
    return nn.Sequential(*blocks, *head)


def _halve(dimensions: int, before: int, after: int) -> nn.Module:
    """A strided convolution, normalised; its parts have the names that MONAI's `Convolution` gives them."""
    convolution, norm = (nn.Conv2d, nn.BatchNorm2d) if dimensions == 2 else (nn.Conv3d, nn.BatchNorm3d)
    behind = nn.Sequential(OrderedDict(N=norm(after), A=nn.ReLU()))
    return nn.Sequential(OrderedDict(conv=convolution(before, after, 3, stride=2, padding=1), adn=behind))


CLASSIFIERS: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {"cnn": cnn, "densenet121": densenet121, "efficientnet-b0": efficientnet_b0, "resnet18": residual18}
)
"""Builders by the name a study gives."""
