"""What a simulation costs, beside Flower's Ray engine, NVIDIA FLARE's simulator and apple/pfl doing the same steps.

    python scripts/bench_peers.py [--only ray|nvflare|pfl] [--repeats 3]

Four make-believe hospitals, ten rounds, a small network with group normalisation, SGD, one thread a process. On every
side are the same images (decoded beforehand), network, batch size and number of steps. Where it is about what an engine
adds, there is little to train (one epoch over images of 32 x 32); beside pfl, where it is about the training, there is
more (two epochs over 64 x 64, in smaller batches).

    ray       this study by `--engine ray` (Flower's simulation, one processor a worker) and by the local grid
    nvflare   FLARE's FedAvgRecipe in its SimEnv, one process a client as it has it by default; evaluates as ours does
    pfl       pfl's FederatedAveraging in one process; no hospital holds anything out, so both train only

Our grid has one worker, as it has by default; the others are as wide as their defaults make them. Ours always
comes with its signatures, digests and ledgers; of the others, none writes any. The peers are run as their documentation
has it, in environments of their own that are made once in `--environments` (about 2 GB, with the torch that runs here).
Both sides run in turns. CPU is of the whole tree of processes (of pfl and ours beside it, of one
process and a round, the first left out) and the minimum of the turns; wall is their median; memory is the largest sum
of what the processes hold at one time, shared pages shared out (PSS), and the median of the turns. A bar that is
missed is printed as missed, and the exit code is then 1. The table also goes to scripts/results/bench_peers.md.
"""

import argparse
import contextlib
import ctypes
import os
import platform
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import nn

from models import tasks
from models.console import FAILED, OK, human_bytes, show_table
from models.plan import Plan
from silos.config import Site
from silos.derived import derive
from silos.phantom import write_hospital
from silos.visit import load_data

ROOT = Path(__file__).parent.parent
PEERS = Path(__file__).parent / "peers"
RESULTS = Path(__file__).parent / "results" / "bench_peers.md"
NVFLARE, PFL = "2.9.0", "0.6.0"
HOSPITALS, ROUNDS, RATE = 4, 10, 0.01
NOBODY = 1e-9  # the share of patients that are held out, where none shall be
_PR_SET_CHILD_SUBREAPER = 36  # of Linux: orphans of this process's children become its own, and are measured
TICK = 0.2  # seconds between two looks at the memory

PLAN = """
name = "bench"
purpose = "Benchmark."
rounds = {rounds}
min_silos = {hospitals}
weights = "images"
metrics = ["loss"]

[task]
name = "classification"
classes = ["none", "lesion"]
modality = ["MR"]
size = [{size}, {size}]
percentiles = [1.0, 99.0]
augment = false

[task.network]
name = "cnn"
arguments = {{ channels = [16, 32, 64, 128] }}

[training]
epochs = {epochs}
batch_size = {batch}
optimizer = "sgd"
learning_rate = {rate}

[strategy]
name = "fedavg"
"""


@dataclass(frozen=True)
class Load:
    """What a hospital trains in a round: epochs over images of so many rows and columns, in batches."""

    epochs: int
    size: int
    batch: int

    @property
    def options(self) -> list[str]:
        """As the peers' scripts take it."""
        return ["--epochs", str(self.epochs), "--batch_size", str(self.batch), "--learning_rate", str(RATE)]


LITTLE, MORE = Load(epochs=1, size=32, batch=32), Load(epochs=2, size=64, batch=16)


@dataclass(frozen=True)
class Spent:
    """What one run took: seconds, and bytes at most; and what it stamped, in seconds after its start and of its CPU."""

    wall: float
    cpu: float
    memory: int
    said: str
    stamps: list[tuple[str, float, float]] = field(repr=False)

    def at(self, what: str, number: int = 0) -> float:
        """Seconds after the start at which something was stamped for the nth time."""
        return sorted(wall for name, wall, _ in self.stamps if name == what)[number]

    @property
    def cpu_per_round(self) -> float:
        """CPU seconds of a round in the process that stamped them; the least, and not the first."""
        return float(np.diff([cpu for name, _, cpu in self.stamps if name == "round"][: ROUNDS + 1])[1:].min())


@dataclass(frozen=True)
class Finding:
    """A line of the table; theirs by ours must reach the bar."""

    peer: str
    what: str
    ours: float
    theirs: float
    bar: float
    show: Callable[[float], str]

    @property
    def met(self) -> bool:
        """Whether the bar is reached."""
        return self.theirs / self.ours >= self.bar

    @property
    def row(self) -> tuple[str, ...]:
        """As the table shows it."""
        ratio, verdict = f"{self.theirs / self.ours:.2f}x", "met" if self.met else "MISSED"
        return self.peer, self.what, self.show(self.ours), self.show(self.theirs), ratio, f"{self.bar:g}x", verdict


def spend(command: list[str | Path], folder: Path, environment: dict[str, str]) -> Spent:
    """Run a command to the end of its last process, and measure all of them."""
    stamps, log = folder / "stamps", folder / "log"
    stamps.touch()
    environment = {
        **os.environ,
        **environment,
        "PEERS_STAMPS": str(stamps),
        "OMP_NUM_THREADS": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "PYTHONWARNINGS": "ignore",
    }
    ours = set(_descendants())
    before, peak, started = resource.getrusage(resource.RUSAGE_CHILDREN), 0, time.time()
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            peak = max(peak, sum(map(_held, set(_descendants()) - ours)))
            time.sleep(TICK)
    wall = time.time() - started
    while left := set(_descendants()) - ours:  # what it left running is a child of this process now
        for child in left:
            with contextlib.suppress(OSError):
                os.kill(child, signal.SIGTERM if time.time() - started < wall + 10 else signal.SIGKILL)
                os.waitpid(child, os.WNOHANG)
        time.sleep(TICK)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    said = log.read_text(errors="replace")
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{said[-3000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    lines = [line.split() for line in stamps.read_text().splitlines()]
    return Spent(wall, cpu, peak, said, [(what, float(at) - started, float(used)) for what, at, used in lines])


def _descendants() -> list[int]:
    """The processes that this one has started, and those that they have; orphans too, which `main` sees to."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents.setdefault(int(path.read_text().rpartition(")")[2].split()[1]), []).append(int(path.parent.name))
        except OSError:
            continue
    found: list[int] = []
    ahead = [os.getpid()]
    while ahead:
        children = parents.get(ahead.pop(), [])
        found += children
        ahead += children
    return found


def _held(process: int) -> int:
    """Bytes that a process holds, its share of what it shares included."""
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def environment(folder: Path, name: str, version: str) -> Path:
    """The Python of an environment with one peer and the torch that runs here; made if need be."""
    folder = (folder / name).resolve()
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        print(f"installing {name} {version} in {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        torch_here = f"torch=={metadata.version('torch').partition('+')[0]}"
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, f"{name}=={version}", torch_here], check=True)
        (folder / "ready").touch()
    return python


class Bench:
    """The hospitals that every run starts from, their images decoded already, and the same images for the peers."""

    def __init__(self, folder: Path, load: Load, held_out: float) -> None:
        self.folder, self.plan = folder, folder / "study.toml"
        folder.mkdir()
        self.plan.write_text(PLAN.format(rounds=ROUNDS, hospitals=HOSPITALS, rate=RATE, **asdict(load)))
        plan = Plan.load(self.plan)
        task = tasks.task(plan.task)
        (folder / "arrays").mkdir()
        for number in range(1, HOSPITALS + 1):
            name = f"hospital-{number}"
            site = write_hospital(folder / "hospitals" / name, name=name, seed=1, studies=["bench"])
            site.write_text(site.read_text().replace("held_out = 0.25", f"held_out = {held_out}"))
            data = load_data(Site.load(site), plan, task)
            arrays = {}
            for part, cases in (("train", data.train), ("held_out", data.held_out)):
                if len(cases):
                    x, y = task.sample(cases.take(np.arange(len(cases))), torch.Generator())
                    arrays |= {f"{part}_x": x.numpy(), f"{part}_y": y.numpy()}
            np.savez(folder / "arrays" / f"{number}.npz", **arrays)
        _same_network(tasks.network(plan).module)
        self.runs = 0

    def run(self, *command: str | Path) -> Spent:
        """A peer's run on these images."""
        folder = self._fresh()
        here = {"PEERS_DATA": str(self.folder / "arrays"), "PYTHONPATH": str(PEERS), "HOME": str(folder)}
        return spend([*command], folder, here)

    def ours(self, engine: str = "local") -> Spent:
        """A run of ours, the hospitals' ledgers new and their images decoded already."""
        folder = self._fresh()
        shutil.copy(self.plan, folder)
        sites = [derive(site, folder / "hospitals") for site in sorted(self.folder.glob("hospitals/*/site.toml"))]
        command = [sys.executable, PEERS / "ours.py", folder / "study.toml", *sites]
        return spend([*command, "--engine", engine], folder, {})

    def _fresh(self) -> Path:
        self.runs += 1
        folder = self.folder / f"run-{self.runs}"
        folder.mkdir()
        return folder


def _same_network(module: nn.Module) -> None:
    """The peers' network is this one, array by array."""
    sys.path.insert(0, str(PEERS))
    from network import Net

    shapes = [[array.shape for array in network.state_dict().values()] for network in (module, Net())]
    if shapes[0] != shapes[1]:
        raise SystemExit("the network in scripts/peers/network.py is not the study's")


def ray(work: Path, repeats: int, _: Path) -> list[Finding]:
    """The same study by Flower's Ray engine and by the local grid; both must make the same model."""
    bench = Bench(work, LITTLE, held_out=0.25)
    ours, theirs = turns(repeats, bench.ours, lambda: bench.ours("ray"))
    if len({spent.said.split()[-1] for spent in (*ours, *theirs)}) != 1:
        raise SystemExit("the engines made different models")
    peer = f"Flower {metadata.version('flwr')} on Ray {metadata.version('ray')}"
    first, last = (lambda s: s.at("round", 1)), (lambda s: s.at("round", ROUNDS))
    return [
        Finding(peer, "wall to the end of round 1", *medians(ours, theirs, first), 8, seconds),
        Finding(peer, f"wall to the end of round {ROUNDS}", *medians(ours, theirs, last), 4, seconds),
        Finding(peer, "memory", *medians(ours, theirs, lambda s: s.memory), 3, human_bytes),
    ]


def nvflare(work: Path, repeats: int, environments: Path) -> list[Finding]:
    """The same task in FLARE's simulator."""
    python = environment(environments, "nvflare", NVFLARE)
    bench = Bench(work, LITTLE, held_out=0.25)
    command = [python, PEERS / "flare_job.py", "--rounds", str(ROUNDS), "--hospitals", str(HOSPITALS)]
    command += ["--train_args", " ".join(LITTLE.options), "--work", bench.folder / "flare"]
    ours, theirs = turns(repeats, bench.ours, lambda: bench.run(*command))
    if any(len(s.stamps) != ROUNDS * HOSPITALS for s in theirs):
        raise SystemExit(f"FLARE did not train every hospital in every round:\n{theirs[0].said[-3000:]}")
    peer = f"NVIDIA FLARE {NVFLARE}"
    return [
        Finding(peer, "CPU", *least(ours, theirs, lambda s: s.cpu), 3, seconds),
        Finding(peer, "memory", *medians(ours, theirs, lambda s: s.memory), 5, human_bytes),
        Finding(peer, "wall to the first step", *medians(ours, theirs, lambda s: s.at("step")), 3, seconds),
    ]


def pfl(work: Path, repeats: int, environments: Path) -> list[Finding]:
    """The same steps in pfl, and nothing but the steps."""
    python = environment(environments, "pfl", PFL)
    bench = Bench(work, MORE, held_out=NOBODY)
    command = [python, PEERS / "pfl_rounds.py", "--rounds", str(ROUNDS), "--hospitals", str(HOSPITALS), *MORE.options]
    ours, theirs = turns(repeats, bench.ours, lambda: bench.run(*command))
    return [
        Finding(f"apple/pfl {PFL}", "CPU of a round", *least(ours, theirs, lambda s: s.cpu_per_round), 1.2, seconds),
    ]


def turns(repeats: int, ours: Callable[[], Spent], theirs: Callable[[], Spent]) -> tuple[list[Spent], list[Spent]]:
    """Both sides, in turns."""
    found: tuple[list[Spent], list[Spent]] = ([], [])
    for number in range(1, repeats + 1):
        for side, run in enumerate((ours, theirs)):
            spent = run()
            found[side].append(spent)
            name = ("ours", "theirs")[side]
            print(
                f"{number} of {repeats}, {name}: {spent.wall:.1f} s, CPU {spent.cpu:.1f} s", file=sys.stderr, flush=True
            )
    return found


def medians(ours: list[Spent], theirs: list[Spent], of: Callable[[Spent], float]) -> tuple[float, float]:
    """The median of either side."""
    return statistics.median(map(of, ours)), statistics.median(map(of, theirs))


def least(ours: list[Spent], theirs: list[Spent], of: Callable[[Spent], float]) -> tuple[float, float]:
    """The least of either side."""
    return min(map(of, ours)), min(map(of, theirs))


def seconds(value: float) -> str:
    """As the table shows a time."""
    return f"{value:.3g} s"


def write_results(findings: list[Finding], repeats: int) -> None:
    """Write the table where the README finds it."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("intramural", "torch", "monai", "flwr"))
    busy = " / ".join(f"{value:.1f}" for value in os.getloadavg())
    text = [
        "# What a simulation costs, beside its peers",
        "",
        f"{HOSPITALS} hospitals, {ROUNDS} rounds, the small network, one thread a process, on "
        f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, {versions}; {repeats} "
        f"turns of either side, system load at the end {busy}. What is compared, and how it is measured, says "
        "`scripts/bench_peers.py`, which wrote this.",
        "",
        "| peer | what | ours | theirs | theirs / ours | bar | |",
        "|---|---|---|---|---|---|---|",
        *("| " + " | ".join(finding.row) + " |" for finding in findings),
    ]
    RESULTS.write_text("\n".join(text) + "\n")


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=COMPARISONS, action="append", help="one peer only; may be given again")
    parser.add_argument("--repeats", type=int, default=3, help="turns of either side (default: 3)")
    parser.add_argument("--environments", type=Path, default=ROOT / ".peers", help="where the peers are installed")
    options = parser.parse_args()
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    findings: list[Finding] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only or COMPARISONS:
            print(f"{name}:", file=sys.stderr, flush=True)
            findings += COMPARISONS[name](Path(folder).resolve() / name, options.repeats, options.environments)
    columns = ("peer", "what", "ours", "theirs", "theirs / ours", "bar", "")
    show_table("what a simulation costs", columns, [finding.row for finding in findings])
    if not options.only:
        write_results(findings, options.repeats)
    return OK if all(finding.met for finding in findings) else FAILED


COMPARISONS = {"ray": ray, "nvflare": nvflare, "pfl": pfl}

if __name__ == "__main__":
    raise SystemExit(main())
