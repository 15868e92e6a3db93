"""A network whose whole floating state is one vector.

What travels between hospital and coordinator is one float32 vector. Here a network is rearranged so
that its weights *are* that vector: every parameter and every saved floating buffer is a window on
it. To load a model, to measure how far training moved it, or to hash it is then one operation and no
copy; so is an optimizer's step on `trainable`. Training is that of the plain network, to the bit.

    flat = FlatNetwork(task.build(seed))
    flat.load(base)
    optimizer = torch.optim.SGD(flat.trainable, lr=0.1)
    flat.zero_grad()                            # not optimizer.zero_grad(): that would drop the windows
    task.loss(flat.module(images), targets).backward()
    optimizer.step()
    update = flat.weights - base

Integer buffers are no part of it. The only common one, BatchNorm's batch counter, would tell how
many images a hospital has.

A study may keep a part of the network in each hospital (FedBN: its normalisation layers). That part is a
vector of its own, `local`: it trains with the rest, and neither `weights` nor `spec` nor `load` knows of it.

    flat = FlatNetwork(module, local=norm_state(module))
    flat.load(base)                             # what travels
    flat.load_local(kept)                       # what stayed; None for the network as it was built

With SCAFFOLD (Karimireddy et al., ICML 2020) a second vector of the same layout travels before the weights, the
consortium's control variate, and the hospital's own stays with its `local` state:

    flat = FlatNetwork(module, control=True)
    flat.control - flat.own                     # what each gradient is corrected by
"""

import contextlib
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from models.errors import SpecMismatch
from models.exchange.spec import Spec

_CONTROL, _OWN = "#", "~"
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by dimensions of a convolution's weights


class FlatNetwork:
    """A module and the vectors that its state and gradients are views of.

    The module is rearranged in place. Moving or converting it afterwards (`.to()`, `.half()`), or an
    optimizer's `zero_grad(set_to_none=True)`, would give it memory of its own again: don't.

    Args:
        module: The network; all its floating state float32, no two names sharing memory.
        device: Where it is to live; it is moved there first.
        local: Names of the state that stays in the hospital.
        control: Whether there are control variates.

    Attributes:
        module: The same module.
        spec: Names and shapes of `vector`'s parts, sorted by name.
        vector: `(spec.size,)` float32; what travels: `control` if there is one, then `weights`.
        weights: `(n,)` float32; parameters and saved floating buffers.
        gradient: `(n,)` float32 in the same layout; the gradients of the trainable parameters, and zero for all else.
        trainable: What an optimizer steps on: the trainable parameters, each run of neighbours as one
            tensor with its gradient. Buffers and frozen parameters are in none of them, so that neither
            decay nor momentum moves them.
        control: `(n,)` float32, or None; zero but for the trainable parameters.
        own: `(n,)` float32, or None; a part of `local`: this hospital's own control variate, at first zero.
        local_spec: Names and shapes of `local`'s parts.
        local: `(local_spec.size,)` float32; what stays.
        mask: `(n,)` float32, or None without control variates: 1 for the trainable parameters, 0 for the rest.

    Raises:
        SpecMismatch: State that is not float32, or tied parameters.
    """

    module: nn.Module
    spec: Spec
    vector: torch.Tensor
    weights: torch.Tensor
    gradient: torch.Tensor
    trainable: tuple[torch.Tensor, ...]
    control: torch.Tensor | None
    own: torch.Tensor | None
    local_spec: Spec
    local: torch.Tensor
    mask: torch.Tensor | None

    def __init__(
        self,
        module: nn.Module,
        device: torch.device | str = "cpu",
        local: Collection[str] = frozenset(),
        *,
        control: bool = False,
    ) -> None:
        self.module = module.to(device)
        state = floating_state(module)
        shared = {name: tensor.shape for name, tensor in state.items() if name not in local}
        kept = {name: tensor.shape for name, tensor in state.items() if name in local}
        variates = shared if control else {}
        self.spec = Spec.of(shared | {f"{_CONTROL}{name}": shape for name, shape in variates.items()})
        self.local_spec = Spec.of(kept | {f"{_OWN}{name}": shape for name, shape in variates.items()})
        size, beside, travels = Spec.of(shared).size, Spec.of(variates).size, self.spec.size
        # The prefixes sort before and after every name: control, then the network's weights and local, then own.
        everything = torch.zeros(travels + self.local_spec.size, device=device)
        trained = everything[beside : everything.numel() - beside]
        self.vector, self.local = everything[:travels], everything[travels:]
        self.weights = trained[:size]
        self.control, self.own = (everything[:beside], everything[-beside:]) if control else (None, None)
        self._trained, self._gradients = trained, torch.zeros_like(trained)
        self.gradient = self._gradients[:size]
        start, runs = 0, list[slice]()
        self._convolutions = list[tuple[torch.Tensor, slice]]()
        for part in (*Spec.of(shared).tensors, *Spec.of(kept).tensors):
            tensor, window = state[part.name], slice(start, start + part.size)
            trained[window].copy_(tensor.detach().reshape(-1))
            tensor.data = trained[window].view(tensor.shape)
            if tensor.dim() in _CHANNELS_LAST:
                self._convolutions.append((tensor, window))
            if tensor.requires_grad:
                tensor.grad = self._gradients[window].view(tensor.shape)
                before = runs.pop().start if runs and runs[-1].stop == start else start
                runs.append(slice(before, window.stop))
            start = window.stop
        self.trainable = tuple(trained[run] for run in runs)
        for parameters, run in zip(self.trainable, runs, strict=True):
            parameters.grad = self._gradients[run]
        self.mask = _ones(runs, size, device) if control else None
        others = (tensor for name, tensor in module.state_dict().items() if name not in state)
        self._counters = [(tensor, tensor.clone()) for tensor in others]
        self._initial_local = self.local.clone()

    def load(self, vector: torch.Tensor | npt.NDArray[np.float32]) -> None:
        """Copy a model in, and set integer buffers back to what they were when the network was built.

        Args:
            vector: `(spec.size,)` float32; may be read-only or on another device.

        Raises:
            SpecMismatch: Another length, dimension or dtype.
        """
        _copy(vector, self.vector)
        for counter, initial in self._counters:
            counter.copy_(initial)

    def load_local(self, vector: torch.Tensor | npt.NDArray[np.float32] | None) -> None:
        """Copy in what stayed in the hospital.

        Args:
            vector: `(local_spec.size,)` float32; None for the network as it was built.

        Raises:
            SpecMismatch: Another length, dimension or dtype.
        """
        _copy(self._initial_local if vector is None else vector, self.local)

    def zero_grad(self) -> None:
        """Set every gradient to zero, in one operation."""
        self._gradients.zero_()

    @contextlib.contextmanager
    def channels_last(self) -> Iterator[None]:
        """Inside, the weights of convolutions lie in memory with their channels last, which some kernels want.

        Each stays in its own window of the vectors, so that whatever treats every number by itself (a step, a
        difference, a pull) goes on as before, if all that it combines was made inside, or all of it outside.
        What is to be saved or sent is to be taken outside.
        """
        self._arrange(last=True)
        try:
            yield
        finally:
            self._arrange(last=False)

    def _arrange(self, *, last: bool) -> None:
        for tensor, window in self._convolutions:
            form = _CHANNELS_LAST[tensor.dim()] if last else torch.contiguous_format
            new = torch.empty(tensor.shape, device="meta", memory_format=form)
            for variate in (self.control, self.own):
                if variate is not None and window.stop <= len(variate):
                    _rearranged(variate[window], tensor, new)
            if tensor.grad is not None:
                tensor.grad = _rearranged(self._gradients[window], tensor, new)
            tensor.data = _rearranged(self._trained[window], tensor, new)


def _rearranged(window: torch.Tensor, old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """The numbers of a window in another order; both orders are those of a tensor of the same shape."""
    before = window.as_strided(old.shape, old.stride()).clone()
    return window.as_strided(new.shape, new.stride()).copy_(before)


def _ones(runs: Sequence[slice], size: int, device: torch.device | str) -> torch.Tensor:
    """1 in the runs, 0 elsewhere; what of the runs lies beyond the size counts nowhere."""
    mask = torch.zeros(size, device=device)
    for run in runs:
        mask[run] = 1
    return mask


def _copy(vector: torch.Tensor | npt.NDArray[np.float32], place: torch.Tensor) -> None:
    if vector.dtype not in (torch.float32, np.dtype("=f4")) or tuple(vector.shape) != (len(place),):
        raise SpecMismatch(
            f"a model of shape {tuple(vector.shape)} and {vector.dtype} is not the network's ({len(place)},) float32",
            "load a model of the same study and network",
        )
    if isinstance(vector, torch.Tensor):
        place.copy_(vector)
    elif place.device.type == "cpu":
        np.copyto(place.numpy(), vector)  # torch wants memory that can be written to, and would copy twice
    else:
        place.copy_(torch.from_numpy(np.require(vector, requirements=["C", "W"])))


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
