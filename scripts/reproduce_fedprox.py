"""FedProx, reproduced: Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, arXiv 1812.06127.

    python scripts/reproduce_fedprox.py                                     all of it: many hours of one core
    python scripts/reproduce_fedprox.py --datasets synthetic-1-1 --stragglers 90 --seeds 5
    python scripts/reproduce_fedprox.py --only-table                        the table of what was run before

The paper's synthetic data (section 5.1 and appendix C.1): 30 devices, 60 features, 10 classes, sizes by a power law. A
device's labels come from a softmax model of its own, as far from the others' as alpha says; its features lie as far
from the others' as beta says. Multinomial logistic regression; in each of 200 rounds 10 devices are drawn, E = 20
epochs of SGD with batches of 10 and learning rate 0.01. Of those drawn, 0 %, 50 % or 90 % are stragglers, who manage 1
to 19 of the 20 epochs in time. FedAvg drops them; FedProx takes what they have done, with mu = 0 and with the paper's
mu = 1. Stragglers, drawn devices, first model and order of batches are the same for all three. Each seed draws other
data; 0 is the seed of the authors' generator.

Nothing is simulated beside the toolkit: a device is a hospital with key, policy, gate and ledger, which a simulation's
faults make slow; the task is one that this script registers, the data come from arrays. Every round's model is measured
on the held-out tenth of all devices together. From the curve a run's accuracy is read in three ways, all in the table:

    last      of the last model: one round of a curve that may swing by tens of points
    late      mean over the second half of the rounds: of a model taken in any of them
    stopped   where the paper reads it (section 5.2, footnote): in the round in which the training loss f has converged,
              |f_t - f_(t-1)| < 0.0001, or begun to diverge, f_t - f_(t-10) > 1, or else in the last

A finished run is kept in the work folder, and is not done again. Results: scripts/results/fedprox.md and .csv; with
fewer data sets, stragglers, methods, seeds or rounds they are only printed, unless `--results` names a folder.
"""

import argparse
import csv
import json
import logging
import shutil
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from aggregator import LocalGrid, Study, run
from aggregator.sampling import drawn
from models.console import OK, at_default, at_least, progress
from models.faults import Slow
from models.ledger import Signer
from models.plan import TaskSettings
from models.tasks import Case, register
from silos.cohort import Arrays, read_arrays, write_arrays

DEVICES, FEATURES, CLASSES = 30, 60, 10
PER_ROUND, EPOCHS = 10, 20
_ROWS = np.arange(10)
RESULTS = Path(__file__).parent / "results"

CONVERGED, DIVERGED, _BACK = 1e-4, 1.0, 10
"""Less change of the training loss from one round to the next, and more growth of it in ten rounds, end a training."""

CLAIMED = {
    0: "FedProx with mu > 0 is steadier where data differ, and no better where they do not (fig. 2)",
    50: "keeping partial work helps, a pull (mu > 0) more (fig. 1)",
    90: "+22 points of test accuracy on average over five data sets (fig. 1, 7; abstract)",
}
"""What the paper says of a share of stragglers, in percent."""

DATASETS: dict[str, tuple[float, float] | None] = {
    "synthetic-1-1": (1.0, 1.0),
    "synthetic-0.5-0.5": (0.5, 0.5),
    "synthetic-0-0": (0.0, 0.0),
    "synthetic-iid": None,
}
"""alpha and beta of each."""

METHODS = {"fedavg": ("drop", 0.0), "fedprox mu=0": ("partial", 0.0), "fedprox mu=1": ("partial", 1.0)}
"""What becomes of stragglers, and mu."""

PLAN = """
name = "{name}"
purpose = "To see again what FedProx does for data and hospitals that differ."
seed = {seed}
rounds = {rounds}
min_silos = 1
silos_per_round = {per_round}
stragglers = "{stragglers}"
weights = "images"
metrics = ["loss", "accuracy"]
max_norm = 1e6
encoding = "float32"

[task]
name = "vectors"
classes = {classes}
modality = ["none"]
network = {{ name = "logistic" }}

[training]
epochs = {epochs}
batch_size = 10
learning_rate = 0.01

[strategy]
name = "{strategy}"
mu = {mu}
"""

SITE = """
name = "{name}"
key = "site.key"

[data]
arrays = "{arrays}"
salt = "no split is drawn here"

[policy]
studies = ["{study}"]
tasks = ["vectors"]
metrics = ["loss", "accuracy"]
min_patients = 1
counts = "exact"
decimals = 6
max_rounds = 10000
max_bytes = "1 MB"
clip = 1e6

[run]
work = "work"
device = "cpu"
"""


class Vectors(TaskSettings):
    """The keys of the task's `[task]`: none of its own."""

    name: Literal["vectors"]
    gives = frozenset({"loss", "accuracy"})


@register(Vectors)
class VectorTask:
    """Multinomial logistic regression on vectors; a `models.tasks.Task`."""

    metrics = Vectors.gives

    def __init__(self, settings: Vectors) -> None:
        self.settings = settings

    def build(self, seed: int) -> nn.Module:
        """A linear layer; Glorot's uniform weights and no bias, as in the paper's code."""
        network = nn.Linear(FEATURES, len(self.settings.classes))
        nn.init.xavier_uniform_(network.weight, generator=torch.Generator().manual_seed(seed))
        nn.init.zeros_(network.bias)
        return network

    def prepare(self, case: Case) -> Case:
        """A vector is ready as it is."""
        return case

    def sample(self, cases: Sequence[Case], generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors `(B, 60)` and labels `(B,)`."""
        return torch.from_numpy(np.array([case.image for case in cases])), torch.tensor([case.label for case in cases])

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean cross entropy in nats."""
        return cross_entropy(outputs, targets)

    def differentiated(self, network: nn.Module) -> Callable[[Sequence[Case], torch.Generator], None]:
        """The gradient of that loss, by hand: autograd would cost several times the arithmetic."""
        weight, bias = (parameter.detach().numpy() for parameter in network.parameters())
        to_weight, to_bias = (
            parameter.grad.numpy() for parameter in network.parameters() if parameter.grad is not None
        )
        transposed = weight.T

        def differentiate(cases: Sequence[Case], generator: torch.Generator) -> None:
            count = len(cases)
            inputs = np.array([case.image for case in cases])
            error = inputs @ transposed
            error += bias
            error -= error.max(1, keepdims=True)
            np.exp(error, out=error)
            error /= error.sum(1, keepdims=True) * np.float32(count)
            error[_ROWS[:count], [case.label for case in cases]] -= np.float32(1 / count)
            np.matmul(error.T, inputs, out=to_weight)
            error.sum(0, out=to_bias)

        return differentiate

    def probabilities(self, outputs: torch.Tensor) -> torch.Tensor:
        """Of each class."""
        return outputs.softmax(1)

    def examine(self, network: nn.Module, cases: Sequence[Case], wanted: Collection[str]) -> dict[str, torch.Tensor]:
        """What the network says of some vectors, and what they are."""
        inputs, targets = self.sample(cases, torch.Generator())
        return {"logits": network(inputs), "targets": targets}

    def score(self, findings: dict[str, torch.Tensor]) -> dict[str, float]:
        """Loss and accuracy."""
        logits, targets = findings["logits"], findings["targets"]
        right = (logits.argmax(1) == targets).double().mean()
        return {"loss": float(cross_entropy(logits, targets)), "accuracy": float(right)}


@dataclass(frozen=True)
class Run:
    """One study: what it was, and what came of it.

    Attributes:
        dataset: Of `DATASETS`.
        stragglers: Share of the drawn devices, in percent.
        method: Of `METHODS`.
        seed: Of data, first model, draws and batches.
        rounds: Of the study.
        last: Accuracy of the last model, on the held-out vectors of all devices.
        late: Mean of that of the models of the second half of the rounds.
        stopped: That of the model of round `stop`.
        stop: The round in which the training had converged or begun to diverge, or the last; see `stop`.
        deviation: Standard deviation of the change of accuracy from one round to the next, in the second half.
        loss: Of the last model on the training vectors of all devices, nats.
    """

    dataset: str
    stragglers: int
    method: str
    seed: int
    rounds: int
    last: float
    late: float
    stopped: float
    stop: int
    deviation: float
    loss: float

    @classmethod
    def of(cls, curve: Sequence[Sequence[float]], **what: Any) -> Self:
        """What came of a run.

        Args:
            curve: Accuracy and training loss of the model after each round, the first one before any.
            what: The study: its data set, stragglers, method and seed.
        """
        accuracies, losses = [accuracy for accuracy, _ in curve], [loss for _, loss in curve]
        late, then = accuracies[(len(curve) - 1) // 2 :], stop(losses)
        return cls(
            **what,
            rounds=len(curve) - 1,
            last=round(accuracies[-1], 5),
            late=round(statistics.fmean(late[1:]), 5),
            stopped=round(accuracies[then], 5),
            stop=then,
            deviation=round(statistics.pstdev(np.diff(late).tolist()), 6),
            loss=round(losses[-1], 5),
        )


def stop(losses: Sequence[float]) -> int:
    """The first round in which a training has converged or begun to diverge, as the paper has it; else the last.

    Args:
        losses: Of the model after each round, the first one before any, nats.
    """
    for number in range(1, len(losses)):
        if abs(losses[number] - losses[number - 1]) < CONVERGED:
            return number
        if number >= _BACK and losses[number] - losses[number - _BACK] > DIVERGED:
            return number
    return len(losses) - 1


def synthetic(dataset: str, seed: int) -> list[Arrays]:
    """The devices of a data set, by the paper's recipe, drawn in the order of its authors' generator.

    A tenth of each device is held out, after a shuffle.
    """
    rng = np.random.RandomState(seed)  # the generator of then, so that a seed gives the numbers it gave
    sizes = rng.lognormal(4, 2, DEVICES).astype(int) + 50
    spread = np.diag(np.arange(1, FEATURES + 1) ** -1.2)
    differ = DATASETS[dataset]
    if differ is None:
        weights, bias = rng.normal(0, 1, (FEATURES, CLASSES)), rng.normal(0, 1, CLASSES)
        centres = np.zeros((DEVICES, FEATURES))
    else:
        models, places = rng.normal(0, differ[0], DEVICES), rng.normal(0, differ[1], DEVICES)
        centres = np.stack([rng.normal(place, 1, FEATURES) for place in places])
    devices = []
    for device, size in enumerate(sizes):
        if differ is not None:
            weights = rng.normal(models[device], 1, (FEATURES, CLASSES))
            bias = rng.normal(models[device], 1, CLASSES)
        vectors = rng.multivariate_normal(centres[device], spread, size)
        labels = (vectors @ weights + bias).argmax(1)
        order = np.random.default_rng([seed, device]).permutation(size)
        held_out = np.arange(size) >= int(0.9 * size)
        devices.append(Arrays(vectors[order].astype(np.float32), labels[order], np.arange(size).astype(str), held_out))
    return devices


def names() -> list[str]:
    """Of the devices."""
    return [f"device-{number:02}" for number in range(DEVICES)]


def stragglers(percent: int, seed: int, rounds: int) -> list[Slow]:
    """Who is slow in which round: so many of those who are drawn, each managing 1 to 19 epochs of 20."""
    faults = []
    for round_ in range(1, rounds + 1):
        chosen, rng = drawn(seed, round_, names(), PER_ROUND), np.random.default_rng([seed, round_])
        for name in rng.permutation(chosen)[: round(PER_ROUND * percent / 100)]:
            factor = EPOCHS / int(rng.integers(1, EPOCHS))
            faults.append(Slow(what="slow", silos=[str(name)], rounds=(round_, round_), factor=factor))
    return faults


def reproduce(dataset: str, percent: int, method: str, seed: int, rounds: int, work: Path, report: Any = None) -> Run:
    """One study, or what was kept of it."""
    what = {"dataset": dataset, "stragglers": percent, "method": method, "seed": seed}
    name = f"{dataset}-{percent}-{method}-{seed}-{rounds}".replace(" ", "-").replace("=", "").replace(".", "")
    kept = work / f"{name}.json"
    if kept.exists():
        return load(kept)
    folder = work / name
    shutil.rmtree(folder, ignore_errors=True)  # half a run: its devices' ledgers would have to be taken up too
    sites, devices = write_devices(folder, name, synthetic(dataset, seed))
    late, mu = METHODS[method]
    plan = folder / "study.toml"
    plan.write_text(
        PLAN.format(
            name=name,
            seed=seed,
            rounds=rounds,
            per_round=PER_ROUND,
            stragglers=late,
            classes=json.dumps([f"class-{number}" for number in range(CLASSES)]),
            epochs=EPOCHS,
            strategy="fedavg" if method == "fedavg" else "fedprox",
            mu=mu,
        )
    )
    faults, began = stragglers(percent, seed, rounds), time.process_time()
    with Study.create(plan, folder / "study") as study, LocalGrid(sites, faults=faults) as grid:
        outcome = run(study, grid, report and (lambda history: report(name, len(history.rounds) - 1, rounds)))
        assert all(item.accepted and not set(item.refused.values()) - {"silent"} for item in outcome.history.rounds[1:])
        last = 0
        curve = []
        for item in outcome.history.rounds:
            last = last if item.void else item.number
            curve.append(measured(study, last, devices))
    kept.with_suffix(".part").write_text(
        json.dumps({**what, "curve": curve, "cpu_seconds": time.process_time() - began})
    )
    kept.with_suffix(".part").rename(kept)
    shutil.rmtree(folder)
    return load(kept)


def load(kept: Path) -> Run:
    """A finished run."""
    content = json.loads(kept.read_text())
    return Run.of(content["curve"], **{key: content[key] for key in ("dataset", "stragglers", "method", "seed")})


def write_devices(folder: Path, study: str, devices: list[Arrays]) -> tuple[list[Path], list[Arrays]]:
    """The devices as hospitals: arrays, key, `site.toml`."""
    sites = []
    for name, arrays in zip(names(), devices, strict=True):
        place = folder / name
        place.mkdir(parents=True)
        write_arrays(place / "cases.npz", arrays)
        Signer.create(place / "site.key", name)
        (place / "site.toml").write_text(SITE.format(name=name, study=study, arrays="cases.npz"))
        sites.append(place / "site.toml")
    return sites, [read_arrays(site.parent / "cases.npz") for site in sites]


def measured(study: Study, number: int, devices: list[Arrays]) -> tuple[float, float]:
    """Accuracy of a model on all held-out vectors, and its loss on all others."""
    digest = next(
        (r.body["model"] for r in study.ledger.records if r.event == "aggregated" and r.round == number),
        study.agreement.initial,
    )
    parts = {
        tensor.name: part.reshape(tensor.shape) for tensor, part in study.spec.split(study.load_model(number, digest))
    }
    vectors = np.concatenate([device.images for device in devices])
    labels = np.concatenate([device.labels for device in devices])
    held_out = np.concatenate([device.held_out for device in devices if device.held_out is not None])
    logits = vectors @ parts["weight"].T + parts["bias"]
    right: npt.NDArray[np.bool_] = logits.argmax(1) == labels
    trained = torch.from_numpy(logits[~held_out])
    return float(right[held_out].mean()), float(cross_entropy(trained, torch.from_numpy(labels[~held_out])))


READINGS = ("last", "late", "stopped")
"""The ways to read a run's accuracy; see the top of this file."""


def table(runs: Sequence[Run]) -> Iterator[str]:
    """The runs as Markdown; behind each accuracy the points gained over FedAvg with the same seeds."""
    yield f"| data | stragglers | method | seeds | {' | '.join(READINGS)} | deviation from round to round |"
    yield "|---|---|---|---|---|---|---|---|"
    for dataset in DATASETS:
        for percent in CLAIMED:
            for method in METHODS:
                pairs = list(paired(runs, dataset, percent, method))
                if not pairs:
                    continue
                seeds = " ".join(str(item.seed) for item, _ in pairs)
                read = " | ".join(told(pairs, reading) for reading in READINGS)
                deviation = f"{statistics.fmean(item.deviation for item, _ in pairs):.4f}"
                if method != "fedavg" and (less := steadier(pairs)):
                    deviation += f" ({less:.1f} times less)"
                yield f"| {dataset} | {percent} % | {method} | {seeds} | {read} | {deviation} |"


def paired(runs: Sequence[Run], dataset: str, percent: int, method: str) -> Iterator[tuple[Run, Run | None]]:
    """The runs of a method, by seed, each with FedAvg's of the same seed if there is one."""
    of = {(item.method, item.seed): item for item in runs if (item.dataset, item.stragglers) == (dataset, percent)}
    for (name, seed), item in sorted(of.items()):
        if name == method:
            yield item, of.get(("fedavg", seed))


def told(pairs: Sequence[tuple[Run, Run | None]], reading: str) -> str:
    """Mean accuracy, its standard deviation over the seeds, and the mean gain."""
    values = [getattr(item, reading) for item, _ in pairs]
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    points = gain(pairs, reading) if pairs[0][0].method != "fedavg" else None
    return f"{statistics.fmean(values):.3f}{spread}" + (f" ({points:+.1f})" if points is not None else "")


def gain(pairs: Sequence[tuple[Run, Run | None]], reading: str) -> float | None:
    """Mean gain over FedAvg in percentage points, of the seeds that were run with both."""
    gains = [getattr(item, reading) - getattr(other, reading) for item, other in pairs if other]
    return 100 * statistics.fmean(gains) if gains else None


def steadier(pairs: Sequence[tuple[Run, Run | None]]) -> float | None:
    """How many times less the accuracy deviates than FedAvg's, of the seeds that were run with both."""
    both = [(item.deviation, other.deviation) for item, other in pairs if other]
    return sum(other for _, other in both) / sum(own for own, _ in both) if both else None


def verdict(runs: Sequence[Run]) -> str:
    """Whether the reproduction came to what was expected of it, however it is read."""
    pairs = [pair for pair in paired(runs, "synthetic-1-1", 90, "fedprox mu=1") if pair[1]]
    bar = "Expected of synthetic-1-1 with 90 %, mu=1: 10 points and 5 times, as means of five seeds"
    if len(pairs) < 5:
        return f"{bar}. Too few seeds were run to say: {len(pairs)}."
    points = {reading: gain(pairs, reading) or 0 for reading in READINGS}
    less = steadier(pairs) or 0
    read = ", ".join(f"{name} {value:+.1f} ({'met' if value >= 10 else 'missed'})" for name, value in points.items())
    return f"{bar}; found: {read}; {less:.1f} times ({'met' if less >= 5 else 'missed'})."


def write(folder: Path | None, runs: Sequence[Run]) -> str:
    """Write fedprox.csv and fedprox.md, if there is a folder for them; the text of the latter."""
    rounds = ", ".join(str(number) for number in sorted({item.rounds for item in runs}))
    claims = "\n".join(f"- {percent} % stragglers: {claim}." for percent, claim in CLAIMED.items())
    text = (
        "# FedProx, reproduced\n\nWritten by `python scripts/reproduce_fedprox.py`, which says what is measured; "
        f"{len(runs)} runs of {rounds} rounds. Accuracy on the held-out vectors of all devices: of the last model, "
        "mean of those of the second half (late), and of the one with which the paper would have stopped; mean and "
        "standard deviation over the seeds, each with data of its own; in brackets the percentage points above FedAvg. "
        "Deviation: standard deviation of the change of accuracy from one round to the next, in the second half of the "
        "rounds, mean over the seeds. Not in the table is what was not run.\n\n"
        f"{chr(10).join(table(runs))}\n\n{verdict(runs)}\n\nWhat the paper claims:\n\n{claims}\n"
    )
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "fedprox.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(Run.__dataclass_fields__), lineterminator="\n")
            writer.writeheader()
            writer.writerows(asdict(item) for item in runs)
        (folder / "fedprox.md").write_text(text)
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, write down what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS), help="default: all")
    parser.add_argument(
        "--stragglers", nargs="+", type=int, choices=list(CLAIMED), default=list(CLAIMED), help="percent"
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="default: all")
    parser.add_argument(
        "--seeds", type=at_least(1), default=5, help="how many, from 0 (default: 5); 0 is the authors' own"
    )
    parser.add_argument("--rounds", type=at_least(1), default=200, help="default: 200")
    parser.add_argument("--work", type=Path, default=Path("fedprox"), help="where finished runs are kept")
    parser.add_argument("--results", type=Path, help="folder of the tables (default: scripts/results of a whole run)")
    parser.add_argument("--only-table", action="store_true", help="run nothing")
    options = parser.parse_args(argv)
    whole = at_default(parser, options, "datasets", "stragglers", "methods", "seeds", "rounds")
    logging.getLogger("flwr").setLevel(logging.ERROR)
    logging.getLogger("intramural").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    with progress() as report:
        for dataset in options.datasets:
            for percent in options.stragglers:
                for seed in range(options.seeds):
                    for method in options.methods:
                        if options.only_table or (percent == 0 and method == "fedprox mu=0"):  # that is FedAvg
                            continue
                        reproduce(dataset, percent, method, seed, options.rounds, options.work, report)
    runs = [load(path) for path in sorted(options.work.glob("*.json"))]
    wanted = [item for item in runs if item.rounds == options.rounds and item.seed < options.seeds]
    print(write(options.results or (RESULTS if whole else None), wanted), end="")
    return OK


if __name__ == "__main__":
    raise SystemExit(main())
