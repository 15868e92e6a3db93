"""The networks a study can name, built the same in every hospital.

    [task.network]
    name = "densenet121"
    arguments = { growth_rate = 16, norm = "group" }

A builder's signature is the list of arguments a study may give; MONAI's own documentation explains
them. What the task decides (dimensions, channels, classes) and what would download weights is not
among them. Every network takes `norm` as well.

Two promises: the same seed gives the same weights, whatever else drew random numbers before; and a
network holds the normalisation that was asked for and no other, because that is looked up in the
network that was built and not in the arguments it was built with.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_type_hints

import torch
from monai.networks.blocks.convolutions import Convolution
from monai.networks.nets.densenet import DenseNet121
from monai.networks.nets.efficientnet import EfficientNetBN
from monai.networks.nets.resnet import resnet18
from pydantic import Field, TypeAdapter, ValidationError
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.errors import ConfigError
from models.plan import Classification, Network
from models.tasks.flat import floating_state

Norm = Literal["group", "instance", "batch"]

Count = Annotated[int, Field(ge=1, le=4096)]
Counts = Annotated[Sequence[Count], Field(min_length=1, max_length=8)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Widening = Annotated[float, Field(ge=0.125, le=8)]

_GROUPS = 8  # divides every width that the registered networks have by default


def densenet121(
    classes: int,
    *,
    init_features: Count = 64,
    growth_rate: Count = 32,
    block_config: Counts = (6, 12, 24, 16),
    bn_size: Count = 4,
    dropout_prob: Rate = 0.0,
) -> nn.Module:
    """DenseNet-121 of MONAI (Huang et al., CVPR 2017)."""
    return DenseNet121(
        spatial_dims=2,
        in_channels=1,
        out_channels=classes,
        init_features=init_features,
        growth_rate=growth_rate,
        block_config=block_config,
        bn_size=bn_size,
        dropout_prob=dropout_prob,
    )


def residual18(
    classes: int,
    *,
    conv1_t_size: Count = 7,
    conv1_t_stride: Count = 1,
    no_max_pool: bool = False,
    widen_factor: Widening = 1.0,
) -> nn.Module:
    """ResNet-18 of MONAI (He et al., CVPR 2016)."""
    return resnet18(
        pretrained=False,
        progress=False,
        spatial_dims=2,
        n_input_channels=1,
        num_classes=classes,
        conv1_t_size=conv1_t_size,
        conv1_t_stride=conv1_t_stride,
        no_max_pool=no_max_pool,
        widen_factor=widen_factor,
    )


def efficientnet_b0(classes: int) -> nn.Module:
    """EfficientNet-B0 of MONAI (Tan and Le, ICML 2019)."""
    return EfficientNetBN("efficientnet-b0", pretrained=False, spatial_dims=2, in_channels=1, num_classes=classes)


def cnn(
    classes: int,
    *,
    channels: Counts = (24, 48, 96, 128),
    dropout: Rate = 0.0,
) -> nn.Module:
    """A small network that learns in seconds on a CPU: strided convolutions, global mean, linear."""
    widths = pairwise([1, *channels])
    blocks = [Convolution(2, before, after, strides=2, act="RELU", norm="BATCH") for before, after in widths]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(channels[-1], classes)]
    return nn.Sequential(*blocks, *head)


NETWORKS: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {"cnn": cnn, "densenet121": densenet121, "efficientnet-b0": efficientnet_b0, "resnet18": residual18}
)
"""Builders by the name a study gives; each takes the number of classes, then its arguments by keyword."""


def build_network(settings: Classification, seed: int) -> nn.Module:
    """Build a study's network, initialised from a seed. Nothing is downloaded.

    Args:
        settings: The task: network, classes and image size.
        seed: What the weights are drawn from, 0 to 2**64 - 1. Torch's global generator is left as it was.

    Returns:
        A module on the CPU from `(B, 1, h, w)` float32 to logits `(B, len(classes))`.

    Raises:
        ConfigError: The network or one of its arguments is unknown or wrong, or the image size is too
            small for it.
        SpecMismatch: Its floating state is not all float32.
    """
    arguments = _arguments(settings.network)
    norm: Norm = arguments.pop("norm", "group")
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would reseed every GPU too, which no fork puts back.
        torch.default_generator.manual_seed(seed)
        network = NETWORKS[settings.network.name](len(settings.classes), **arguments)
    if norm != "batch":
        _replace_batch_norm(network, norm)
    floating_state(network)
    _try(network, settings)
    return network


def _arguments(network: Network) -> dict[str, Any]:
    """The study's arguments, each checked against the builder's signature."""
    builder = NETWORKS.get(network.name)
    if builder is None:
        raise ConfigError(
            f"task.network.name: no network is called {network.name!r}",
            f"known networks: {', '.join(sorted(NETWORKS))}",
        )
    kinds = get_type_hints(builder, include_extras=True)
    parameters = inspect.signature(builder).parameters.values()
    accepted = {p.name: kinds[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY} | {"norm": Norm}
    hint = f"arguments of {network.name}: {', '.join(sorted(accepted))}"
    checked = {}
    for name, value in network.arguments.items():
        key = f"task.network.arguments.{name}"
        if name not in accepted:
            raise ConfigError(f"{key}: is not an argument of {network.name} (got {value!r})", hint)
        try:
            checked[name] = TypeAdapter(accepted[name]).validate_python(value, strict=True)
        except ValidationError as error:
            raise ConfigError(f"{key}: {error.errors()[0]['msg']} (got {value!r})", hint) from error
    return checked


def _replace_batch_norm(module: nn.Module, norm: Norm) -> None:
    """Exchange every BatchNorm below a module, in place.

    MONAI's ResNet does not hand `norm` on to its blocks (1.6.1), so asking for another norm when
    building is not enough. BatchNorm also carries each silo's image statistics in its buffers, and
    averages badly when hospitals' scanners differ (Hsieh et al., ICML 2020), hence the default.
    """
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            module.register_module(name, _other_norm(child, norm))
        else:
            _replace_batch_norm(child, norm)


def _other_norm(batch: _BatchNorm, norm: Norm) -> nn.Module:
    channels = batch.num_features
    if norm == "instance":
        return nn.InstanceNorm2d(channels, eps=batch.eps, affine=True)
    return nn.GroupNorm(math.gcd(_GROUPS, channels), channels, eps=batch.eps)


def _try(network: nn.Module, settings: Classification) -> None:
    """Run one empty image through, because strides and pooling can leave nothing of it."""
    mode = network.training
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, 1, *settings.size))
    except (RuntimeError, ValueError) as error:
        height, width = settings.size
        raise ConfigError(
            f"task.size: {height} x {width} pixels are too few for {settings.network.name} ({error})",
            "give a larger size, or arguments that make the network shallower",
        ) from error
    finally:
        network.train(mode)
