"""What local training costs in bfloat16, beside a plain float32 loop doing as many steps on the same images.

    python scripts/bench_training.py [--rounds 16] [--steps 8]
    python scripts/bench_training.py --device cuda --size 256

Make-believe patients; DenseNet121 tells slices with a lesion from those without, U-Net outlines the lesions; batches
of 16, 64 x 64 pixels, SGD with momentum, one thread. The plain loop is PyTorch as its tutorials have it: float32, an
optimizer over the network's parameters, gradients dropped after each step. Ours is `silos.training.fit` with
`mixed_precision = true`. Both train in turns, a round of some steps each, from the same weights on the same batches.

Printed are CPU seconds per 100 images, on a GPU the seconds until it is done (the minimum over the steps, which other
work on the machine disturbs least), their ratio beside a bar, and what each has learnt: AUC or Dice on patients held
out, of one seed. A bar that is missed is printed as missed, and the exit code is then 1; the bars are those of a CPU.
Each network is measured with BatchNorm, as MONAI builds DenseNet121, and with GroupNorm, which a study has if it does
not say otherwise. A processor without bfloat16 has nothing to measure. The table is also written to
scripts/results/bench_training.md, that of a GPU to bench_training_cuda.md.
"""

import argparse
import platform
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from models import tasks
from models.console import FAILED, OK, show_table
from models.exchange.documents import Agreement
from models.plan import Plan, Training
from models.tasks.flat import FlatNetwork
from silos import training
from silos.config import Site
from silos.phantom import write_hospital
from silos.precision import has_bfloat16
from silos.training import device_for
from silos.visit import Bench, set_up

RESULTS = Path(__file__).parent / "results"
TOLERANCE = 0.03  # of AUC or Dice, either way
PLAN = """
name = "bench"
purpose = "Measure."
seed = 1
rounds = 1
metrics = ["loss", "{metric}"]
[task]
modality = ["MR"]
{task}
[task.network]
name = "{network}"
arguments = {{ norm = "{norm}" }}
[training]
steps = {steps}
batch_size = 16
learning_rate = 0.02
momentum = 0.9
mixed_precision = true
"""
TASKS = {
    "densenet121": 'name = "classification"\nclasses = ["none", "lesion"]\nsize = [{size}, {size}]\n'
    "percentiles = [1, 99]",
    "unet": 'name = "segmentation"\nclasses = ["lesion"]\ndimensions = 2\npatch = [{size}, {size}]\nforeground = 0.7\n'
    'zscore = "nonzero"',
}


@dataclass(frozen=True)
class Row:
    """One network, measured.

    Attributes:
        name: Of the network and its normalisation.
        bar: How many times as fast ours is to be.
        plain: Seconds per 100 images of the plain loop.
        ours: The same of ours.
        metric: Its name.
        learnt: Its value on patients held out: plain, ours.
    """

    name: str
    bar: float
    plain: float
    ours: float
    metric: str
    learnt: tuple[float, float]

    @property
    def met(self) -> bool:
        """Whether ours is fast enough and learnt as much."""
        return self.plain / self.ours >= self.bar and abs(self.learnt[0] - self.learnt[1]) <= TOLERANCE


def now(device: torch.device) -> float:
    """CPU seconds; on a GPU, which works beside the CPU, the clock's, when it has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def plain(network: torch.nn.Module, bench: Bench, how: Training, seed: int, seconds: list[float]) -> None:
    """A round of float32 training as PyTorch's tutorials have it; adds what each step took."""
    optimizer = torch.optim.SGD(network.parameters(), lr=how.learning_rate, momentum=how.momentum)
    chance = torch.Generator().manual_seed(seed)
    assert how.steps
    device = bench.network.weights.device
    network.train()
    stamp = now(device)
    for rows in training.batches(len(bench.data.train), how.batch_size, how.steps, chance):
        inputs, targets = bench.task.sample(bench.data.train.take(rows), chance)
        optimizer.zero_grad()
        bench.task.loss(network(inputs.to(device)), targets.to(device)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        seconds.append(now(device) - stamp)
        stamp = now(device)


def ours(bench: Bench, how: Training, seed: int, seconds: list[float]) -> None:
    """The same round as a hospital does it."""
    device = bench.network.weights.device
    stamps = [now(device)]
    training.fit(
        bench.network,
        bench.task,
        bench.data.train,
        how,
        mu=0,
        seed=seed,
        on_step=lambda *_: stamps.append(now(device)),
    )
    seconds += [after - before for before, after in pairwise(stamps)]


def measure(folder: Path, name: str, norm: str, bar: float, options: argparse.Namespace) -> Row:
    """Train one network both ways, a round each in turn."""
    device, size = torch.device(options.device), options.size
    volumes = name == "unet"
    metric = "dice" if volumes else "auc"
    task = TASKS[name].format(size=size)
    text = PLAN.format(metric=metric, task=task, network=name, norm=norm, steps=options.steps)
    (folder / "plan.toml").write_text(text)
    plan = Plan.load(folder / "plan.toml")
    site = folder / name / "site.toml"
    if not site.exists():
        write_hospital(site.parent, name="north", seed=1, patients=60, size=size, volumes=volumes, studies=["bench"])
        site.write_text(site.read_text().replace('device = "auto"', f'device = "{options.device}"'))
    flat = tasks.network(plan)
    agreement = Agreement(plan=plan, coordinator_key="", initial="0" * 64, spec=flat.spec.digest)
    bench = set_up(Site.load(site), agreement)
    network = bench.task.build(plan.seed).to(device)
    seconds: tuple[list[float], list[float]] = ([], [])
    for round_ in range(options.rounds):
        plain(network, bench, plan.training, round_, seconds[0])
        ours(bench, plan.training, round_, seconds[1])
    learnt = [
        training.evaluate(side, bench.task, bench.data.held_out, wanted=[metric])[metric]
        for side in (FlatNetwork(network, device), bench.network)
    ]
    least = [100 * min(each) / plan.training.batch_size for each in seconds]
    return Row(f"{name}, {norm} norm", bar, least[0], least[1], metric, (learnt[0], learnt[1]))


def main() -> int:
    """Measure, print, write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=16, help="of --steps steps each; default: 16")
    parser.add_argument("--steps", type=int, default=8, help="default: 8")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument("--size", type=int, default=64, help="pixels along an edge; default: 64")
    options = parser.parse_args()
    device = device_for(options.device)
    if not has_bfloat16(device):
        print("this processor has no bfloat16: training is done in float32, as if mixed_precision were false")
        return OK
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = [
            measure(Path(folder), name, norm, bar, options)
            for name, bar in (("densenet121", 1.7), ("unet", 1.3))
            for norm in ("batch", "group")
        ]
    unit = "CPU seconds" if options.device == "cpu" else "seconds"
    title = f"local training in bfloat16, {options.rounds} rounds of {options.steps} steps, {unit} per 100 images"
    header = ("network", "float32", "bfloat16", "times as fast", "bar", "met", "learnt, float32", "bfloat16")
    rows = [
        (
            row.name,
            f"{row.plain:.2f}",
            f"{row.ours:.2f}",
            f"{row.plain / row.ours:.2f}",
            f">= {row.bar:.1f}",
            "yes" if row.met else "MISSED",
            f"{row.metric} {row.learnt[0]:.3f}",
            f"{row.metric} {row.learnt[1]:.3f}",
        )
        for row in found
    ]
    show_table(title, header, rows)
    lines = [
        "# Local training in bfloat16",
        "",
        f"By `scripts/bench_training.py`, {options.rounds} rounds of {options.steps} steps each, {options.size} x "
        f"{options.size} pixels: {unit} per 100 images, the minimum over the steps, both in turns. Within "
        f"{TOLERANCE} of AUC or Dice is learnt alike.",
        f"Python {platform.python_version()}, torch {torch.__version__}, {processor(device)}.",
        "",
        "| " + " | ".join(header) + " |",
        "|" + "---|" * len(header),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
    name = "bench_training.md" if options.device == "cpu" else "bench_training_cuda.md"
    (RESULTS / name).write_text("\n".join(lines) + "\n")
    return OK if all(row.met for row in found) else FAILED


def processor(device: torch.device) -> str:
    """What of the processor matters here."""
    if device.type == "cuda":
        return f"one {torch.cuda.get_device_name(device)}"
    has = [name for name in ("avx512_bf16", "amx_bf16") if torch.cpu.get_capabilities().get(name)]
    return f"one thread of a {platform.machine()} processor with {' and '.join(has)}"


if __name__ == "__main__":
    raise SystemExit(main())
