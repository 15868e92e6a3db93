"""Local training and evaluation: plain PyTorch on one network, the same on every machine of a type.

`fit` is the local solver of FedAvg (McMahan et al., AISTATS 2017) and, with mu above 0, of FedProx
(Li et al., MLSys 2020): each step's gradient gets mu * (w - w0) added, the gradient of
mu/2 * ||w - w0||^2. With mu = 0 nothing is added, so FedProx is then FedAvg to the bit. With SCAFFOLD (Karimireddy
et al., ICML 2020) it gets c - c_i added, the consortium's control variate less the hospital's own.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from models.exchange.spec import Vector
from models.plan import Training
from models.tasks import Case, Task
from models.tasks.flat import FlatNetwork
from silos.precision import layout, trains_in_bfloat16


class Cases(Protocol):
    """Prepared cases."""

    def __len__(self) -> int:
        """How many."""
        ...

    def take(self, rows: npt.NDArray[np.int64]) -> Sequence[Case]:
        """Some of them."""
        ...


@dataclass(frozen=True)
class Watched:
    """Cases that remember whose were taken.

    Attributes:
        cases: Those to train on.
        whose: The patient of each, `(n,)`.
        seen: The patients of those that were taken.
    """

    cases: Cases
    whose: npt.NDArray[np.object_]
    seen: set[object] = field(default_factory=set)

    def __len__(self) -> int:
        """How many."""
        return len(self.cases)

    def take(self, rows: npt.NDArray[np.int64]) -> Sequence[Case]:
        """Some of them."""
        self.seen.update(self.whose[rows])
        return self.cases.take(rows)


@runtime_checkable
class Differentiated(Protocol):
    """A task that knows its loss's gradient in closed form, where a network is so small that autograd is the cost."""

    def differentiated(self, network: nn.Module) -> Callable[[Sequence[Case], torch.Generator], None]:
        """What writes the gradient of the loss of some cases into the `grad` of every parameter of a network."""
        ...


def device_for(name: str) -> torch.device:
    """The device of that name; "auto" takes CUDA when there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":  # without it cuBLAS sums in another order from run to run; read when CUDA is first used
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return torch.device(name)


def seed_for(*parts: object) -> int:
    """A seed that is the same wherever the same words are given; 63 bits."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def fit(
    network: FlatNetwork,
    task: Task,
    data: Cases,
    training: Training,
    *,
    mu: float,
    seed: int,
    on_step: Callable[[int, int], object] | None = None,
) -> Vector:
    """Train from the network's present weights.

    Args:
        network: Holds the base model; holds the trained one afterwards.
        task: Gives patches, augmentation and loss.
        data: Training cases; at least one.
        training: Length, batch size and optimizer.
        mu: FedProx's pull towards the base model; 0 for none.
        seed: Decides order, augmentation and dropout.
        on_step: Called with (steps done, steps in all); if it answers `False`, training ends here.

    Returns:
        The difference to what came, `(spec.size,)` float32 on the CPU; the network's control variates are not changed.
    """
    device = network.weights.device
    start = network.weights.clone()
    chance = torch.Generator().manual_seed(seed)
    optimizer = _optimizer(network, training)
    total = steps_in(training, len(data))
    by_hand = task.differentiated(network.module) if isinstance(task, Differentiated) else None
    cuda = [device.index or 0] if device.type == "cuda" else []
    network.module.train()
    half = trains_in_bfloat16(device, training)
    with (
        torch.random.fork_rng(devices=cuda),
        reproducible(),
        layout(network) if half else contextlib.nullcontext(),
    ):
        base = network.weights.clone() if half and mu else start  # in the order in which the weights lie meanwhile
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.manual_seed(seed)
        for step, rows in enumerate(batches(len(data), training.batch_size, total, chance), start=1):
            cases = data.take(rows)
            if by_hand is not None:
                by_hand(cases, chance)
            else:
                inputs, targets = task.sample(cases, chance)
                network.zero_grad()
                with torch.autocast(device.type, torch.bfloat16, enabled=half):
                    outputs = network.module(inputs.to(device))
                loss = task.loss(outputs.float(), targets.to(device))
                loss.backward()  # type: ignore[no-untyped-call]
            add_pull(network, base, mu)
            add_correction(network)
            optimizer.step()
            if on_step and on_step(step, total) is False:
                break
    delta = network.weights - start
    if network.control is not None:
        delta = torch.cat([control_change(network, delta, step * training.learning_rate), delta])
    return delta.cpu().numpy()


def add_pull(network: FlatNetwork, base: torch.Tensor, mu: float) -> None:
    """Add FedProx's gradient, mu * (w - w0), to the gradients of one step.

    Args:
        network: Holds w and its gradients.
        base: w0, `(spec.size,)` float32.
        mu: At 0 the gradients are left untouched.
    """
    if mu:
        network.gradient.add_(network.weights - base, alpha=mu)


def add_correction(network: FlatNetwork) -> None:
    """Add SCAFFOLD's c - c_i to the gradients of one step; nothing without control variates."""
    if network.control is not None and network.own is not None:
        network.gradient.add_(network.control).sub_(network.own)


def control_change(network: FlatNetwork, delta: torch.Tensor, length: float) -> torch.Tensor:
    """What a round changes of a hospital's own control variate (SCAFFOLD, algorithm 1, option II).

    Args:
        network: Holds c.
        delta: `(n,)` float32, how far the round moved the weights.
        length: Steps times learning rate.

    Returns:
        `-c - delta / length`, `(n,)` float32; zero where nothing is trained.
    """
    assert network.control is not None
    assert network.mask is not None
    return (delta / -length).sub_(network.control).mul_(network.mask)


@torch.no_grad()
def evaluate(
    network: FlatNetwork, task: Task, data: Cases, batch_size: int = 64, wanted: Collection[str] | None = None
) -> dict[str, float]:
    """Metrics of the network's present weights.

    Args:
        network: Holds the model; not changed.
        task: Gives the metrics; it judges cases as they come, and only what it keeps of them is held.
        data: Held-out cases; none gives no metrics.
        batch_size: Cases at a time; does not change the result's meaning, but may its last bits.
        wanted: Metrics to work out; all that the task has if None. For none of them no case is looked at.

    Returns:
        Metrics by name; empty when there are no cases.
    """
    count = len(data)
    wanted = task.metrics if wanted is None else task.metrics.intersection(wanted)
    if count == 0 or not wanted:
        return {}
    network.module.eval()
    with reproducible():
        found = [
            task.examine(network.module, data.take(rows), wanted)
            for rows in np.split(np.arange(count), range(batch_size, count, batch_size))
        ]
    scores = task.score({name: torch.cat([part[name] for part in found]) for name in found[0]})
    return {name: value for name, value in scores.items() if name in wanted}


def steps_in(training: Training, count: int) -> int:
    """How many steps a round has for so many cases."""
    if training.steps is not None:
        return training.steps
    assert training.epochs is not None
    return training.epochs * -(-count // training.batch_size)


def batches(count: int, batch_size: int, total: int, chance: torch.Generator) -> Iterator[npt.NDArray[np.int64]]:
    """Rows of `total` batches, epoch after epoch in a new order; the last batch of an epoch may be short."""
    done = 0
    while done < total:
        order = torch.randperm(count, generator=chance).numpy()
        for start in range(0, count, batch_size):
            if done == total:
                return
            yield np.sort(order[start : start + batch_size])
            done += 1


class _Stepper(Protocol):
    def step(self) -> object: ...


@dataclass(frozen=True)
class _Descent:
    """Plain gradient descent: what `torch.optim.SGD` does, without its bookkeeping, which small networks would feel."""

    parameters: Sequence[torch.Tensor]
    rate: float

    @torch.no_grad()
    def step(self) -> None:
        for parameters in self.parameters:
            assert parameters.grad is not None
            parameters.add_(parameters.grad, alpha=-self.rate)


def _optimizer(network: FlatNetwork, training: Training) -> _Stepper:
    rate, decay = training.learning_rate, training.weight_decay
    if training.optimizer == "sgd" and training.momentum == 0 and decay == 0:
        return _Descent(network.trainable, rate)
    if training.optimizer == "sgd":
        return torch.optim.SGD(network.trainable, lr=rate, momentum=training.momentum, weight_decay=decay)
    kind = torch.optim.Adam if training.optimizer == "adam" else torch.optim.AdamW
    return kind(network.trainable, lr=rate, weight_decay=decay)


@contextlib.contextmanager
def reproducible() -> Iterator[None]:
    """Inside: deterministic kernels, and float32 convolutions in float32, whatever the rest of the process prefers."""
    before = torch.get_deterministic_debug_mode()
    memory: Any = torch.utils.deterministic  # mypy does not know its switch
    cudnn: Any = torch.backends.cudnn
    benchmark, tf32, fill = cudnn.benchmark, cudnn.allow_tf32, memory.fill_uninitialized_memory
    # The same as use_deterministic_algorithms(True, warn_only=True), which however loads torch's compiler.
    torch.set_deterministic_debug_mode("warn")
    memory.fill_uninitialized_memory = False  # nobody reads it, and it is a tenth of a step
    cudnn.benchmark = cudnn.allow_tf32 = False  # TF32 keeps 10 of 23 bits; `mixed_precision` is the way to ask for that
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)
        memory.fill_uninitialized_memory = fill
        cudnn.benchmark, cudnn.allow_tf32 = benchmark, tf32
