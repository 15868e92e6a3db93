"""A network whose whole floating state is one vector.

What travels between hospital and coordinator is one float32 vector. Here a network is rearranged so
that its weights *are* that vector: every parameter and every saved floating buffer is a window on
it. To load a model, to measure how far training moved it, or to hash it is then one operation and no
copy; training itself is that of the plain network, to the bit.

    flat = FlatNetwork(task.build(seed))
    flat.load(base)
    optimizer = torch.optim.SGD(flat.module.parameters(), lr=0.1)
    flat.zero_grad()                            # not optimizer.zero_grad(): that would drop the windows
    task.loss(flat.module(images), targets).backward()
    optimizer.step()
    update = flat.weights - base

Integer buffers are no part of it. The only common one, BatchNorm's batch counter, would tell how
many images a hospital has.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from models.errors import SpecMismatch
from models.exchange.spec import Spec


class FlatNetwork:
    """A module and the vectors that its state and gradients are views of.

    The module is rearranged in place. Moving or converting it afterwards (`.to()`, `.half()`), or an
    optimizer's `zero_grad(set_to_none=True)`, would give it memory of its own again: don't.

    Args:
        module: The network; all its floating state float32, no two names sharing memory.
        device: Where it is to live; it is moved there first.

    Attributes:
        module: The same module.
        spec: Names and shapes of the vector's parts, sorted by name.
        weights: `(spec.size,)` float32; parameters and saved floating buffers.
        gradient: `(spec.size,)` float32 in the same layout; the gradients of the trainable
            parameters, and zero for all else.

    Raises:
        SpecMismatch: State that is not float32, or tied parameters.
    """

    module: nn.Module
    spec: Spec
    weights: torch.Tensor
    gradient: torch.Tensor

    def __init__(self, module: nn.Module, device: torch.device | str = "cpu") -> None:
        self.module = module.to(device)
        state = floating_state(module)
        self.spec = Spec.of({name: tensor.shape for name, tensor in state.items()})
        self.weights = torch.zeros(self.spec.size, device=device)
        self.gradient = torch.zeros_like(self.weights)
        start = 0
        for tensor in state.values():
            window = slice(start, start + tensor.numel())
            self.weights[window].copy_(tensor.detach().reshape(-1))
            tensor.data = self.weights[window].view(tensor.shape)
            if tensor.requires_grad:
                tensor.grad = self.gradient[window].view(tensor.shape)
            start = window.stop
        others = (tensor for name, tensor in module.state_dict().items() if name not in state)
        self._counters = [(tensor, tensor.clone()) for tensor in others]

    def load(self, vector: torch.Tensor | npt.NDArray[np.float32]) -> None:
        """Copy a model in, and set integer buffers back to what they were when the network was built.

        Args:
            vector: `(spec.size,)` float32; may be read-only or on another device.

        Raises:
            SpecMismatch: Another length, dimension or dtype.
        """
        if vector.dtype not in (torch.float32, np.dtype("=f4")) or tuple(vector.shape) != (self.spec.size,):
            raise SpecMismatch(
                f"a model of shape {tuple(vector.shape)} and {vector.dtype} is not the network's "
                f"({self.spec.size},) float32",
                "load a model of the same study and network",
            )
        if isinstance(vector, np.ndarray):
            vector = torch.from_numpy(np.require(vector, requirements=["C", "W"]))
        self.weights.copy_(vector)
        for counter, initial in self._counters:
            counter.copy_(initial)

    def zero_grad(self) -> None:
        """Set every gradient to zero, in one operation."""
        self.gradient.zero_()


def floating_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """The part of a network that is shared: parameters and saved floating buffers, sorted by name.

    Args:
        module: Any network.

    Returns:
        The tensors themselves (not copies) by their `state_dict` name, all float32.

    Raises:
        SpecMismatch: Floating or complex state of another dtype, or two names for the same memory.
    """
    state = {
        name: tensor
        for name, tensor in sorted(module.state_dict(keep_vars=True).items())
        if tensor.is_floating_point() or tensor.is_complex()
    }
    owners: dict[int, str] = {}
    for name, tensor in state.items():
        if tensor.dtype != torch.float32:
            raise SpecMismatch(
                f"{name}: is {tensor.dtype}, not torch.float32",
                "build the network as float32",
            )
        owner = owners.setdefault(tensor.data_ptr(), name)
        if owner != name and tensor.data_ptr():  # 0 where there is no memory to share
            raise SpecMismatch(
                f"{name}: shares its memory with {owner}",
                "untie them: an array that two names share cannot be told apart in an update",
            )
    return state
