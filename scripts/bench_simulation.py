"""What a simulation costs beside the training itself, and what its size costs in memory.

    python scripts/bench_simulation.py                      # the tables; half an hour on two idle cores
    python scripts/bench_simulation.py --only rounds --network cnn --hospitals 4 --turns 1
    python scripts/bench_simulation.py --only workers       # wall time: wants two idle cores

*rounds*: the whole of a simulated round, with gate, signatures, SHA-256, manifests and ledgers on, beside a plain
sequential torch loop that does the same gradient steps: one module, `load_state_dict` for each hospital,
`torch.optim.SGD` over its parameters, images in memory, an average of the state dicts. Both sides run in turns, each in
a process of its own with one thread, and must end with the same model to the bit. Figures are CPU seconds of a round,
the least of all, since other work on the machine disturbs it least; a run's first round, which reads the images, is
left out.

*memory*: peak resident memory of a process that simulates a few hospitals, and of one that simulates many.

*workers*: wall time of a round with two workers and with none but this process.

*batched*: many hospitals with a small network (14,434 parameters), few small images and one epoch. First the local
training alone, of all hospitals: that plain loop, one hospital after the other as a simulation does it, and all in one
computation (`LocalGrid(..., batched=True)`); then whole simulated rounds of the latter two, ledgers and all. What
batching comes to must lie within 1e-5 of the plain loop and of the usual simulation, as a part of the model's length.

In the other tables the hospitals have the same make-believe images, each with caches, key and ledger of its own, and
train on them in an order of their own. Nobody is held out anywhere, so that nothing is measured but training.
"""

import argparse
import importlib.metadata
import logging
import multiprocessing
import os
import platform
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from aggregator import LocalGrid, Study, run
from aggregator.history import History
from models import tasks
from models.console import show_table
from models.exchange.spec import Vector, load_vector
from models.ledger import Signer
from models.plan import Plan
from silos import gate, together, training
from silos.cohort import Arrays, write_arrays
from silos.config import Site
from silos.phantom import write_hospital
from silos.visit import load_data

T = TypeVar("T")

PATIENTS, SLICES, BATCH, RATE = 16, 10, 16, 0.01
IMAGES = PATIENTS * SLICES

PLAN = f"""
name = "bench"
purpose = "Measure what a simulation costs."
seed = 1
rounds = {{rounds}}
metrics = ["loss"]
encoding = "float32"
[task]
name = "classification"
classes = ["none", "lesion"]
modality = ["MR"]
size = [{{side}}, {{side}}]
percentiles = [1.0, 99.0]
augment = false
[task.network]
{{network}}
[training]
epochs = {{epochs}}
batch_size = {BATCH}
learning_rate = {RATE}
"""


@dataclass(frozen=True)
class Row:
    """One line of the first table: a network, how many hospitals train it, and the bar."""

    network: str
    hospitals: int
    bar: float


ROWS = (Row("cnn", 4, 1.0), Row("cnn", 32, 1.0), Row("cnn", 128, 1.05), Row("densenet121", 4, 1.02))
FEW, MANY, MEMORY_BAR = 4, 128, 1.1
WORKERS_BAR, WORKERS_EPOCHS = 1.7, 12  # a hospital trains for more than a second

BATCHED = ((8, 20, (48, 48), 0.45), (8, 100, (48, 48), 0.45), (8, 100, (33, 64), None), (28, 20, (48, 48), None))
"""Side of the images, hospitals, the fewest and most images of one, and the bar, for what it was set on."""

SMALL = 'name = "cnn"\narguments = { channels = [24, 64] }'
CLOSE = 1e-5

ARRAYS_SITE = """
name = "{name}"
key = "silo.key"
[data]
arrays = "cases.npz"
salt = "no split is drawn here"
[policy]
studies = ["bench"]
tasks = ["classification"]
metrics = ["loss"]
min_patients = 1
max_rounds = 10000
max_bytes = "1 MB"
clip = 1e6
[run]
work = "work"
device = "cpu"
"""


class Workshop:
    """A folder with make-believe images, and hospitals that have them.

    Args:
        folder: Empty.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        wide = {"patients": PATIENTS, "images": SLICES, "studies": ["bench"]}
        self._first = write_hospital(folder / "images", name="images", seed=1, **wide)  # type: ignore[arg-type]
        self._made = 0

    def plan(self, network: str, rounds: int, epochs: int = 1) -> Path:
        """A `study.toml`."""
        self._made += 1
        path = self.folder / f"study-{self._made}.toml"
        path.write_text(PLAN.format(network=f'name = "{network}"', side=64, rounds=rounds, epochs=epochs))
        return path

    def sites(self, count: int) -> list[Path]:
        """New hospitals; the images are decoded already."""
        self._made += 1
        folder = self.folder / f"hospitals-{self._made}"
        return [self._site(folder / f"h{number:04}") for number in range(count)]

    def _site(self, folder: Path) -> Path:
        home, text = self._first.parent, self._first.read_text()
        shutil.copytree(self._cache, folder / "work")
        Signer.create(folder / "silo.key", folder.name)
        new = {
            "name": folder.name,
            "key": "silo.key",
            "root": str(home / "dicom"),
            "file": str(home / "labels.csv"),
            "held_out": 1e-9,
        }
        for key, value in new.items():
            text = re.sub(
                rf"^{key} = .*$",
                f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}",
                text,
                flags=re.M,
            )
        path = folder / "site.toml"
        path.write_text(text)
        return path

    def small(self, side: int, rounds: int, count: int, images: tuple[int, int]) -> tuple[Path, list[Path]]:
        """A `study.toml` with a small network, and new hospitals with few images, which are arrays."""
        self._made += 1
        folder = self.folder / f"small-{self._made}"
        folder.mkdir()
        (fewest, most), plan, sites = images, folder / "study.toml", []
        plan.write_text(PLAN.format(network=SMALL, side=side, rounds=rounds, epochs=1))
        for number in range(count):
            rng, home = np.random.default_rng(number), folder / f"h{number:04}"
            home.mkdir()
            labels = np.arange(fewest + number * 13 % (most - fewest + 1)) % 2
            pixels = rng.normal(labels[:, None, None] / 2, 1, (len(labels), side, side)).astype(np.float32)
            nobody = np.zeros(len(labels), bool)
            write_arrays(home / "cases.npz", Arrays(pixels, labels, np.arange(len(labels)).astype(str), nobody))
            Signer.create(home / "silo.key", home.name)
            sites.append(home / "site.toml")
            sites[-1].write_text(ARRAYS_SITE.format(name=home.name))
        return plan, sites

    @property
    def _cache(self) -> Path:
        site = Site.load(self._first)
        if not site.cache.exists():
            images_of(self._first, Plan.load(self.plan("cnn", 1)))
        return site.cache


def images_of(site: Path, plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
    """A hospital's training images `(n, 1, 64, 64)` float32 and their labels `(n,)`."""
    train = load_data(Site.load(site), plan, tasks.task(plan.task)).train
    cases = train.take(np.arange(len(train)))
    return torch.from_numpy(np.stack([case.image for case in cases])), torch.tensor([case.label for case in cases])


def simulated(
    plan: Path, sites: Sequence[Path], folder: Path, workers: int = 1, *, batched: bool = False
) -> tuple[list[float], list[float], Vector]:
    """CPU and wall seconds of each round but the first, and the final model."""
    cpu, wall = list[float](), list[float]()

    def stamp(history: History) -> None:
        if history.closed:
            return
        cpu.append(time.process_time())
        wall.append(time.perf_counter())

    with Study.create(plan, folder) as study, LocalGrid(sites, workers, batched=batched) as grid:
        outcome = run(study, grid, stamp)
    if any(len(item.accepted) != len(sites) for item in outcome.history.rounds[1:]):
        raise SystemExit("error: a hospital did not take part in each round")
    return list(np.diff(cpu)), list(np.diff(wall)), load_vector(outcome.model, outcome.digest)[1]


def plain(plan: Plan, sites: Sequence[Path]) -> tuple[list[float], Vector]:
    """The same rounds by a loop of torch alone: CPU seconds of each but the first, and the final model."""
    names = sorted(Site.load(site).name for site in sites)
    images, labels = images_of(sites[0], plan)
    weight = sum(gate.band(len(images))) / 2
    factor = float(np.float32(weight / (weight * len(names))))
    module = tasks.task(plan.task).build(plan.seed)
    module.train()
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    stamps = []
    for round_ in range(1, plan.rounds + 1):
        mean: dict[str, torch.Tensor] = {}
        for name in names:
            module.load_state_dict(state)
            fit(module, images, labels, plan, training.seed_for(plan.seed, name, round_))
            for key, tensor in module.state_dict().items():
                if tensor.is_floating_point():
                    change = (tensor - state[key]) * factor
                    mean[key] = mean[key].add_(change) if key in mean else change
        state |= {key: change + state[key] for key, change in mean.items()}
        stamps.append(time.process_time())
    floats = [state[key].reshape(-1) for key in sorted(state) if state[key].is_floating_point()]
    return list(np.diff(stamps)), torch.cat(floats).numpy()


def fit(module: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, plan: Plan, seed: int) -> None:
    """What anybody would write."""
    chance = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(module.parameters(), lr=plan.training.learning_rate)
    for _ in range(plan.training.epochs or 0):
        order = torch.randperm(len(images), generator=chance)
        for start in range(0, len(images), plan.training.batch_size):
            rows = order[start : start + plan.training.batch_size].sort().values
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(module(images[rows]), labels[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def apart(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function in a process of its own: neither side then finds memory or settings that the other left."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        return pool.submit(function, *arguments).result()


def bench_rounds(work: Workshop, rows: Sequence[Row], rounds: int, turns: int) -> str:
    """The table of rounds."""
    lines = []
    for row in rows:
        ours, theirs = list[float](), list[float]()
        for turn in range(turns):
            plan, sites = work.plan(row.network, rounds + 1), work.sites(row.hospitals)
            looped, expected = apart(plain, Plan.load(plan), sites)
            folder = work.folder / f"{row.network}-{row.hospitals}-{turn}"
            exchanged, _, model = apart(simulated, plan, sites, folder)
            if not np.array_equal(model, expected):
                raise SystemExit("error: the two sides ended with different models")
            theirs += looped
            ours += exchanged
        ratio = min(ours) / min(theirs)
        each = (min(ours) - min(theirs)) / row.hospitals * 1000
        measured = (f"{min(theirs):.3f}", f"{min(ours):.3f}", f"{each:+.1f}", f"{ratio:.3f}")
        lines.append((row.network, f"{row.hospitals}", *measured, f"<= {row.bar}", verdict(ratio <= row.bar)))
    title = (
        f"a round of 1 epoch over {IMAGES} images of 64x64 in batches of {BATCH}, same model to the bit (CPU seconds)"
    )
    columns = ("network", "hospitals", "plain loop", "simulated", "ms a hospital", "ratio", "bar", "")
    return table(title, columns, lines)


def bench_memory(rounds: int) -> str:
    """The table of memory."""
    peaks = {count: _peak(count, rounds) for count in (FEW, MANY)}
    ratio = peaks[MANY] / peaks[FEW]
    lines = [(f"{count}", f"{peak:.0f}", f"{peak / peaks[FEW]:.3f}") for count, peak in peaks.items()]
    lines.append(("bar", "", f"<= {MEMORY_BAR}: {verdict(ratio <= MEMORY_BAR)}"))
    return table("peak resident memory of a simulation in one process (MB)", ("hospitals", "peak", "ratio"), lines)


def _peak(count: int, rounds: int) -> float:
    command = [sys.executable, __file__, "--peak", f"{count}", "--rounds", f"{rounds}"]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak(work: Workshop, count: int, rounds: int) -> None:
    """In a process of its own: simulate, and say how much memory it took."""
    simulated(work.plan("cnn", rounds), work.sites(count), work.folder / "study")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def bench_workers(work: Workshop, rounds: int, turns: int) -> str:
    """The table of workers."""
    times: dict[int, list[float]] = {1: [], 2: []}
    models = []
    for turn in range(turns):
        for workers in times:
            plan, sites = work.plan("cnn", rounds + 1, WORKERS_EPOCHS), work.sites(FEW)
            _, wall, model = simulated(plan, sites, work.folder / f"workers-{workers}-{turn}", workers)
            times[workers] += wall
            models.append(model)
    if not all(np.array_equal(model, models[0]) for model in models):
        raise SystemExit("error: another number of workers gave another model")
    one, two = (statistics.median(times[workers]) for workers in (1, 2))
    lines = [("1", f"{one:.2f}", ""), ("2", f"{two:.2f}", f"{one / two:.2f}")]
    lines.append(("bar", "", f">= {WORKERS_BAR}: {verdict(one / two >= WORKERS_BAR)}"))
    title = (
        f"wall seconds of a round of {FEW} hospitals, {one / FEW:.1f} s each, cnn, {WORKERS_EPOCHS} epochs; same model"
    )
    return table(title, ("workers", "median", "times faster"), lines)


def bench_batched(work: Workshop, rounds: int, turns: int) -> str:
    """The tables of hospitals that train in one computation."""
    alone, whole = [], []
    for side, count, images, bar in BATCHED:
        plan, sites = work.small(side, rounds + 1, count, images)
        turned = [train_only(Plan.load(plan), sites) for _ in range(turns * rounds + 1)][1:]  # the first loads torch
        times = [min(each) for each in zip(*turned, strict=True)]
        ratio = times[2] / times[0]
        met = ("", "") if bar is None else (f"<= {bar}", verdict(ratio <= bar))
        what = (
            f"{side} x {side}",
            f"{count}",
            f"{images[0]}" if images[0] == images[1] else f"{images[0]} to {images[1]}",
        )
        alone.append((*what, *(f"{each:.3f}" for each in (*times, ratio)), *met))
        usual, together_ = list[float](), list[float]()
        for turn in range(turns):
            _, sites = work.small(side, rounds + 1, count, images)
            cpu, _, expected = simulated(plan, sites, work.folder / f"usual-{len(whole)}-{turn}")
            usual += cpu
            _, sites = work.small(side, rounds + 1, count, images)
            cpu, _, model = simulated(plan, sites, work.folder / f"batched-{len(whole)}-{turn}", batched=True)
            together_ += cpu
            require_close(model, expected)
        figures = (times[0], min(usual), min(together_), min(together_) / min(usual))
        whole.append((*what, *(f"{each:.3f}" for each in figures)))
    first = ("size", "hospitals", "images of each", "plain loop")
    return "\n".join(
        (
            table(
                f"local training of all hospitals, batches of {BATCH}, cnn of 14,434 parameters, same weights within "
                f"{CLOSE:g} (CPU seconds)",
                (*first, "one by one", "batched", "batched / plain loop", "bar", ""),
                alone,
            ),
            table(
                f"whole simulated rounds of the same, with gate and ledgers, same model within {CLOSE:g} (CPU seconds)",
                (*first, "one by one", "batched", "batched / one by one"),
                whole,
            ),
        )
    )


def train_only(plan: Plan, sites: Sequence[Path]) -> tuple[float, float, float]:
    """CPU seconds that the local training of all hospitals takes: by a plain loop, one by one, and batched."""
    network, task = tasks.network(plan), tasks.task(plan.task)
    module = task.build(plan.seed)
    module.train()
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    start = network.weights.clone()
    data = [load_data(Site.load(site), plan, task).train for site in sites]
    images = [images_of(site, plan) for site in sites]
    seeds = [training.seed_for(plan.seed, site.parent.name, 1) for site in sites]
    stamps, plainly, alone = [time.process_time()], [], []
    for (inputs, labels), seed in zip(images, seeds, strict=True):
        module.load_state_dict(state)
        fit(module, inputs, labels, plan, seed)
        plainly.append({name: tensor.clone() for name, tensor in module.state_dict().items()})
    stamps.append(time.process_time())
    for cases, seed in zip(data, seeds, strict=True):
        network.load(start)
        alone.append(training.fit(network, task, cases, plan.training, mu=0.0, seed=seed))
    stamps.append(time.process_time())
    jobs = [
        together.Job(network, start, task, cases, plan.training, 0.0, seed)
        for cases, seed in zip(data, seeds, strict=True)
    ]
    batched = together.fit_many(jobs)
    stamps.append(time.process_time())
    for trained, one, delta in zip(plainly, alone, batched, strict=True):
        assert isinstance(delta, np.ndarray)
        expected = torch.cat([trained[key].reshape(-1) for key in sorted(trained)]).numpy()
        require_close(start.numpy() + delta, expected)
        require_close(start.numpy() + delta, start.numpy() + one)
    first, second, third = np.diff(stamps)
    return first, second, third


def require_close(model: Vector, expected: Vector) -> None:
    """Whether two models are the same within the tolerance."""
    distance = np.linalg.norm(model - expected) / np.linalg.norm(expected)
    if not distance <= CLOSE:
        raise SystemExit(f"error: the two sides ended with models that differ by {distance:g} of their length")


def verdict(met: bool) -> str:
    """A bar that is missed is printed as missed."""
    return "met" if met else "missed"


def table(title: str, columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Show a table, and give it as Markdown."""
    show_table(title, columns, lines)
    rows = [columns, ["---"] * len(columns), *lines]
    return f"{title[0].upper()}{title[1:]}:\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("rounds", "memory", "workers", "batched"), help="one table (default: all)")
    parser.add_argument("--hospitals", type=int, nargs="+", help="of the first table, only the rows of so many")
    parser.add_argument("--network", help="of the first table, only the rows of this one")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds of each side in a turn (default: 3)")
    parser.add_argument("--turns", type=int, default=2, help="default: 2")
    parser.add_argument("--out", type=Path, help="write the tables as Markdown too")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        work = Workshop(Path(folder))
        if options.peak:
            print_peak(work, options.peak, options.rounds)
            return 0
        tables = []
        if options.only in (None, "rounds"):
            rows = [
                row
                for row in ROWS
                if options.network in (None, row.network)
                and (options.hospitals is None or row.hospitals in options.hospitals)
            ]
            tables.append(bench_rounds(work, rows, options.rounds, options.turns))
        if options.only in (None, "memory"):
            tables.append(bench_memory(options.rounds))
        if options.only in (None, "workers"):
            tables.append(bench_workers(work, options.rounds, options.turns))
        if options.only in (None, "batched"):
            tables.append(bench_batched(work, options.rounds, options.turns))
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "monai", "flwr", "numpy"))
    turns = f"{options.turns} turns of either side; {os.cpu_count()} cores"
    print(where := f"{turns}; Python {platform.python_version()}, {versions}")
    if options.out:
        options.out.write_text(
            f"# What a simulation costs\n\n`scripts/bench_simulation.py`; {where}.\n\n" + "\n".join(tables)
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
