"""The hospitals of one simulation, trained in one computation: for small networks, where torch is busy with itself.

    visits = [functools.partial(app, message, context) for ...]    # each trains with `fit` instead of `training.fit`
    for answer in begin(visits):
        answer()

Each hospital's visit runs by itself, up to its training. When all have come so far, `fit_many` trains them at once,
with `torch.func.vmap` over the hospitals; then each visit goes on where it had stopped. So nothing of a visit changes
but who computes: orders, gate, ledger, cases, their order and their variation are each hospital's own.

The steps are those of `training.fit`, summed in another order: weights agree with it to about seven digits, not to the
bit. How many hospitals train together changes the last digits too, hence this is for simulations that ask for it.
A hospital need not have as many cases as another: those whose next batch is of one shape take their step together.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from greenlet import getcurrent, greenlet
from torch.func import functional_call, vmap
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from models import tasks
from models.errors import ConfigError
from models.exchange.spec import Vector
from models.plan import Plan, Segmentation, Training
from models.tasks import Task
from models.tasks.flat import FlatNetwork
from silos.training import Cases, batches, reproducible, steps_in

LIMIT = 100_000
"""Parameters of a network, at most; for larger ones the arithmetic is the cost, and nothing is gained."""

_AT_ONCE = 128  # hospitals; more gain little, and need memory

_Batch = tuple[torch.Tensor, torch.Tensor]
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Job:
    """What one hospital would have trained; see `training.fit`.

    Attributes:
        network: The study's, which all hospitals share.
        start: `(spec.size,)` float32, the base model.
        task: Gives cases their variation, and the loss.
        data: Training cases; at least one.
        training: Length, batch size and optimizer.
        mu: FedProx's pull towards the base model.
        seed: Decides order and variation.
        on_step: Called with (steps done, steps in all); if it answers `False`, this hospital's training ends.
    """

    network: FlatNetwork
    start: torch.Tensor
    task: Task
    data: Cases
    training: Training
    mu: float
    seed: int
    on_step: Callable[[int, int], object] | None = None


def begin(visits: Sequence[Callable[[], _Answer]]) -> list[Callable[[], _Answer]]:
    """Begin visits: each up to its training, and then the training of all.

    Args:
        visits: Each calls `fit` at most once.

    Returns:
        For each, what goes on with it to its end and gives its answer; to be called once.

    Raises:
        ConfigError: The network or the loss cannot be batched.
    """
    begun = [greenlet(visit) for visit in visits]
    found: list[Any] = [visit.switch() for visit in begun]
    trained = iter(fit_many([item for item in found if isinstance(item, Job)]))
    return [
        functools.partial(visit.switch, next(trained)) if isinstance(item, Job) else functools.partial(_same, item)
        for visit, item in zip(begun, found, strict=True)
    ]


def _same(answer: _Answer) -> _Answer:
    return answer


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
    """In a visit that was begun by `begin`: `training.fit`, together with all others; the network is left as it was."""
    job = Job(network, network.weights.clone(), task, data, training, mu, seed, on_step)
    visit = getcurrent()
    assert visit.parent is not None
    trained: Vector | Exception = visit.parent.switch(job)
    if isinstance(trained, Exception):
        raise trained
    return trained


def require(plan: Plan) -> None:
    """Refuse a study whose training cannot be batched.

    Raises:
        ConfigError: It names the plan's key.
    """
    training, remedy = plan.training, "or leave `batched` out"
    if training.optimizer != "sgd":
        raise _unfit(f'training.optimizer: "{training.optimizer}"', f'take "sgd", {remedy}')
    if training.mixed_precision:
        raise _unfit("training.mixed_precision", f"train in float32, {remedy}")
    if plan.strategy.name == "scaffold" or plan.strategy.local_norm:
        key = 'name: "scaffold"' if plan.strategy.name == "scaffold" else "local_norm"
        raise _unfit(f"strategy.{key}, whose hospitals keep state of their own,", f"take another strategy, {remedy}")
    if isinstance(plan.task, Segmentation):
        raise _unfit("task.name: segmentation, whose loss torch.func.vmap does not know,", "leave `batched` out")
    network = tasks.network(plan)
    if network.weights.numel() > LIMIT:
        size = f"{network.weights.numel():,} numbers, more than {LIMIT:,},"
        raise _unfit(f"task.network: {plan.task.network.name} with {size}", f"take a smaller one, {remedy}")
    for name, layer in network.module.named_modules():
        if isinstance(layer, _NormBase) and layer.track_running_stats:
            raise _unfit(
                f'task.network.arguments: norm = "batch", whose statistics run along ({name}),',
                f'take norm = "group", {remedy}',
            )
        if isinstance(layer, _DropoutNd) and layer.p > 0:
            raise _unfit(
                f"task.network.arguments: dropout, which would draw other numbers ({name}),", f"set it to 0, {remedy}"
            )


def _unfit(what: str, hint: str) -> ConfigError:
    return ConfigError(f"{what} cannot be trained in a batch of hospitals", hint)


def fit_many(jobs: Sequence[Job]) -> list[Vector | Exception]:
    """Train many hospitals at once, from the same network with perhaps other weights.

    Args:
        jobs: All of one network, task, optimizer, learning rate and mu; those on one device train at once.

    Returns:
        For each, the difference to what it started from, `(spec.size,)` float32; or what was raised over it.

    Raises:
        ConfigError: The network or the loss cannot be batched.
    """
    longest = sorted(range(len(jobs)), key=lambda number: -steps_in(jobs[number].training, len(jobs[number].data)))
    devices: dict[torch.device, list[int]] = {}
    for number in longest:
        devices.setdefault(jobs[number].network.weights.device, []).append(number)
    found: dict[int, Vector | Exception] = {}
    with reproducible():
        for group in devices.values():
            for first in range(0, len(group), _AT_ONCE):  # of about as many steps, so that they end together
                numbers = group[first : first + _AT_ONCE]
                found |= zip(numbers, _Group([jobs[number] for number in numbers]).fit(), strict=True)
    return [found[number] for number in range(len(jobs))]


class _Group:
    """Hospitals that train at once: of each trainable parameter, the copies of all in one tensor `(K, *shape)`."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs, first = jobs, jobs[0]
        self.module, self.task, self.training, self.mu = first.network.module, first.task, first.training, first.mu
        self.module.train()
        self.start = torch.stack([job.start for job in jobs])
        self.device = self.start.device
        self.base = self.parts(self.start)
        self.weights = {name: part.clone() for name, part in self.base.items()}
        self.velocity = {name: torch.zeros_like(part) for name, part in self.base.items() if self.training.momentum}

    def parts(self, vectors: torch.Tensor) -> dict[str, torch.Tensor]:
        """The trainable parameters of vectors `(K, n)`, as views."""
        trainable = {name for name, parameter in self.module.named_parameters() if parameter.requires_grad}
        arrays = self.jobs[0].network.spec.tensors
        windows = zip(arrays, torch.split(vectors, [array.size for array in arrays], 1), strict=True)
        return {a.name: part.view(len(part), *a.shape) for a, part in windows if a.name in trainable}

    def fit(self) -> list[Vector | Exception]:
        """The difference that training makes to each, or what was raised over it."""
        streams = [_stream(job) for job in self.jobs]
        failed: dict[int, Exception] = {}
        ready: dict[int, _Batch] = {}

        def advance(number: int) -> None:
            try:
                ready[number] = next(streams[number])
            except StopIteration:
                ready.pop(number, None)
            except Exception as error:  # one hospital's failure is not the others'
                ready.pop(number, None)
                failed[number] = error

        for number in range(len(streams)):
            advance(number)
        while ready:
            alike = _most_alike(ready)
            self.step(alike, *(torch.stack(parts) for parts in zip(*(ready[number] for number in alike), strict=True)))
            for number in alike:
                advance(number)
        end = self.start.clone()
        for name, part in self.parts(end).items():
            part.copy_(self.weights[name])
        return [failed.get(number, delta) for number, delta in enumerate((end - self.start).cpu().numpy())]

    def step(self, numbers: Sequence[int], inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """One step of some hospitals.

        Args:
            numbers: Which, `k` of them.
            inputs: `(k, B, ...)`.
            targets: `(k, B, ...)`.
        """
        everybody = len(numbers) == len(self.jobs)
        rows = slice(None) if everybody else torch.tensor(numbers, device=self.device)
        weights = {name: part[rows].requires_grad_() for name, part in self.weights.items()}
        try:
            losses = vmap(self.loss)(weights, inputs.to(self.device), targets.to(self.device))
            gradients = torch.autograd.grad(losses.sum(), list(weights.values()), materialize_grads=True)
        except Exception as error:  # whatever a stranger's network does
            raise ConfigError(
                f"batched: the study's network or loss cannot be batched by torch.func.vmap: {error}",
                "leave `batched` out",
            ) from error
        how = self.training
        with torch.no_grad():
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                step = gradient
                if self.mu:
                    step = step.add(weight - self.base[name][rows], alpha=self.mu)
                if how.weight_decay:
                    step = step.add(weight, alpha=how.weight_decay)
                if how.momentum:
                    step = step.add(self.velocity[name][rows], alpha=how.momentum)
                    self.velocity[name][rows] = step
                weight.sub_(step, alpha=how.learning_rate)
                if not everybody:  # else it is a view of them
                    self.weights[name][rows] = weight

    def loss(self, weights: Mapping[str, torch.Tensor], inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """One hospital's loss; what is not trained is as the network holds it."""
        outputs = functional_call(self.module, dict(weights), (inputs,))
        return self.task.loss(outputs.float(), targets)


def _most_alike(ready: Mapping[int, _Batch]) -> list[int]:
    """Of the hospitals that wait for their next step, the most whose batches are of one shape."""
    shapes: dict[object, list[int]] = {}
    for number, (inputs, targets) in ready.items():
        shapes.setdefault((inputs.shape, targets.shape), []).append(number)
    return max(shapes.values(), key=len)


def _stream(job: Job) -> Iterator[_Batch]:
    """What one hospital's steps train on, as `training.fit` draws it; the next is asked for when a step is done."""
    chance = torch.Generator().manual_seed(job.seed)
    total = steps_in(job.training, len(job.data))
    for step, rows in enumerate(batches(len(job.data), job.training.batch_size, total, chance), start=1):
        yield job.task.sample(job.data.take(rows), chance)
        if job.on_step and job.on_step(step, total) is False:
            return
