"""Networks that label every pixel or voxel; see `classifiers` for why MONAI is loaded so late."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated

from pydantic import Field
from torch import nn

from models.tasks.networks.classifiers import Count, Counts, Rate

Stride = Annotated[int, Field(ge=1, le=4)]
Strides = Annotated[Sequence[Stride], Field(min_length=1, max_length=7)]
Kernel = Annotated[int, Field(ge=1, le=7)]
Units = Annotated[int, Field(ge=0, le=8)]
FourCounts = Annotated[Sequence[Annotated[int, Field(ge=1, le=64)]], Field(min_length=4, max_length=4)]


def unet(
    dimensions: int,
    classes: int,
    *,
    channels: Counts = (16, 32, 64, 128),
    strides: Strides | None = None,
    kernel_size: Kernel = 3,
    num_res_units: Units = 2,
    dropout: Rate = 0.0,
) -> nn.Module:
    """U-Net of MONAI with residual units (Ronneberger et al., MICCAI 2015; Kerfoot et al., STACOM 2018).

    Each level halves the image unless `strides`, one number fewer than `channels`, says otherwise.
    """
    from monai.networks.nets.unet import UNet

    strides = strides or [2] * (len(channels) - 1)
    if len(strides) != len(channels) - 1:
        raise ValueError(f"{len(channels)} channels need {len(channels) - 1} strides")
    return UNet(
        spatial_dims=dimensions,
        in_channels=1,
        out_channels=classes,
        channels=channels,
        strides=strides,
        kernel_size=kernel_size,
        up_kernel_size=kernel_size,
        num_res_units=num_res_units,
        norm="BATCH",
        dropout=dropout,
    )


def segresnet(
    dimensions: int,
    classes: int,
    *,
    init_filters: Count = 8,
    blocks_down: Counts = (1, 2, 2, 4),
    blocks_up: Counts = (1, 1, 1),
    dropout_prob: Rate = 0.0,
) -> nn.Module:
    """SegResNet of MONAI (Myronenko, BrainLes 2018, without its autoencoder)."""
    from monai.networks.nets.segresnet import SegResNet

    return SegResNet(
        spatial_dims=dimensions,
        in_channels=1,
        out_channels=classes,
        init_filters=init_filters,
        blocks_down=tuple(blocks_down),
        blocks_up=tuple(blocks_up),
        dropout_prob=dropout_prob or None,
        norm="BATCH",
    )


def swin_unetr(
    dimensions: int,
    classes: int,
    *,
    feature_size: Annotated[int, Field(ge=12, le=96, multiple_of=12)] = 24,
    depths: FourCounts = (2, 2, 2, 2),
    num_heads: FourCounts = (3, 6, 12, 24),
    window_size: Annotated[int, Field(ge=2, le=16)] = 7,
    drop_rate: Rate = 0.0,
    attn_drop_rate: Rate = 0.0,
    use_v2: bool = False,
) -> nn.Module:
    """SwinUNETR of MONAI (Hatamizadeh et al., BrainLes 2021); every side of a patch must divide by 32."""
    from monai.networks.nets.swin_unetr import SwinUNETR

    return SwinUNETR(
        spatial_dims=dimensions,
        in_channels=1,
        out_channels=classes,
        feature_size=feature_size,
        depths=depths,
        num_heads=num_heads,
        window_size=window_size,
        drop_rate=drop_rate,
        attn_drop_rate=attn_drop_rate,
        use_v2=use_v2,
        norm_name="batch",
    )


SEGMENTERS: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {"segresnet": segresnet, "swinunetr": swin_unetr, "unet": unet}
)
"""Builders by the name a study gives."""
