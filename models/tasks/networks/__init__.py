"""The networks a study can name, built the same in every hospital.

    [task.network]
    name = "densenet121"
    arguments = { growth_rate = 16, norm = "group" }

A builder's signature is the list of arguments a study may give; MONAI's own documentation explains
them. What the task decides (dimensions, channels, classes) and what would download weights is not
among them. Every network takes `norm` as well.

Two promises: the same seed gives the same weights, whatever else drew random numbers before; and a
network holds the normalisation that was asked for and no other, because that is looked up in the
network that was built and not in the arguments it was built with. (LayerNorm is another matter: it is part
of what a transformer is, and stays.)
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn
from torch.func import functional_call

from models.errors import ConfigError
from models.plan import Network
from models.tasks.arguments import checked, find
from models.tasks.flat import floating_state
from models.tasks.networks.classifiers import CLASSIFIERS
from models.tasks.networks.norms import Norm, norm_state, replace_batch_norm, running_statistics
from models.tasks.networks.segmenters import SEGMENTERS

Builder = Callable[..., nn.Module]
"""Takes the number of dimensions (2 or 3) and of outputs, then a study's arguments by keyword."""

_SMALL = 2**14  # pixels or voxels


def build_network(
    network: Network, builders: Mapping[str, Builder], shape: Sequence[int], outputs: int, seed: int, key: str
) -> nn.Module:
    """Build a study's network, initialised from a seed. Nothing is downloaded.

    Args:
        network: What the study asks for.
        builders: What it may ask for, by name.
        shape: Pixels or voxels that the network is shown at a time, two or three numbers.
        outputs: Classes.
        seed: What the weights are drawn from, 0 to 2**64 - 1. Torch's global generator is left as it was.
        key: What the shape is called in the plan, for the error.

    Returns:
        A module on the CPU from `(B, 1, *shape)` float32 to logits `(B, outputs)` or `(B, outputs, *shape)`.

    Raises:
        ConfigError: The network or one of its arguments is unknown or wrong, or the shape does not fit it.
        SpecMismatch: Its floating state is not all float32.
    """
    builder = find(builders, network, "task.network", "network")
    arguments = checked(builder, network, "task.network", {"norm": Norm})
    norm: Norm = arguments.pop("norm", "group")
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would reseed every GPU too, which no fork puts back.
        torch.default_generator.manual_seed(seed)
        try:
            built: nn.Module = builder(len(shape), outputs, **arguments)
        except (AssertionError, ValueError) as error:
            raise ConfigError(f"task.network.arguments: do not go together: {error}", "see MONAI's manual") from error
    replace_batch_norm(built, norm)
    floating_state(built)
    _try(built, network.name, shape, key)
    return built


def _try(built: nn.Module, name: str, shape: Sequence[int], key: str) -> None:
    """Show it one empty image, because strides and pooling can leave nothing of it.

    Of a large one the shapes alone are worked out. For a small one that would take longer: torch loads its compiler.
    """
    device = "cpu" if math.prod(shape) <= _SMALL else "meta"
    state = {name: tensor.to(device) for name, tensor in built.state_dict().items()}
    mode = built.training
    try:
        with torch.no_grad():
            functional_call(built.eval(), state, torch.zeros(1, 1, *shape, device=device))
    except (RuntimeError, ValueError) as error:
        sides = " x ".join(str(side) for side in shape)
        raise ConfigError(
            f"{key}: {sides} {'pixels' if len(shape) == 2 else 'voxels'} do not fit {name} ({error})",
            "give a larger size or one that halves evenly, or arguments that make the network shallower",
        ) from error
    finally:
        built.train(mode)


__all__ = ["CLASSIFIERS", "SEGMENTERS", "Builder", "build_network", "norm_state", "running_statistics"]
