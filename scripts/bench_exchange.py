"""What an update costs between training and the next model: on the wire, on the processor, in memory; and commands.

    python scripts/bench_exchange.py [--seeds 10] [--silos 4 16 64]

Beside Flower's own records, protobuf and aggregation, on a DenseNet121 of 28 MB. Measured are

    wire         bytes of an update in each `encoding` beside the float32 weights, how fast it is rounded and packed,
                 and what the rounding does to the AUC of make-believe studies, seed by seed
    path         what is done with a model and an update of one hospital beside training: load the weights, take the
                 difference, round, digest, hand over, add it up; with Flower: records, protobuf, SHA-256, its sum
    aggregation  the mean of K updates that lie in files, and the memory that it takes
    commands     `--help`, a check of a configuration, and `verify`, beside `flwr --version`

CPU seconds are minima of interleaved repeats, which other work on the machine disturbs least; one thread. Each number
stands beside its bar, and one that is missed is told as missed; the exit code is then 1. The table is written to
scripts/results/bench_exchange.md.
"""

import argparse
import functools
import gc
import hashlib
import json
import logging
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from aggregator import LocalGrid, Study, run
from aggregator.mean import weighted_mean
from models.console import FAILED, OK, show_table
from models.exchange import wire
from models.exchange.encoding import Encoding
from models.exchange.spec import Spec, Vector, load_part, save_vector, vector_digest
from models.ledger import disk
from models.plan import Encoding as EncodingName

if TYPE_CHECKING:
    from models.tasks.flat import FlatNetwork

# torch and MONAI are imported where they are used, because of the processes whose memory is measured.

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "bench_exchange.md"
ENCODINGS: tuple[EncodingName, ...] = ("float32", "bfloat16", "compact")
SMALL = {"bfloat16": 0.4, "compact": 1 / 6}
"""The bars: bytes on the wire, in bytes of the float32 weights."""

ENCODE = 0.8  # GB/s
AUC = 0.002
PATH, SUM, GROWTH = 5.0, 3.5, 1.05
COMMAND_CPU, COMMAND_MEMORY = 0.15, 0.3
REPEATS = 7

LAUNCHER = """import os, sys
quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
_, status, used = os.wait4(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet), 0)
print(used.ru_utime + used.ru_stime, used.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))"""
"""Runs a command and tells its CPU seconds and memory (kB): what a large process forks counts as large itself."""


@dataclass(frozen=True)
class Found:
    """One line of the table.

    Attributes:
        measure: What was measured.
        bar: What it must be; empty where there is no bar.
        text: What it is.
        met: Whether the bar is met; None where there is none.
    """

    measure: str
    bar: str
    text: str
    met: bool | None = None

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """As a row of a table."""
        return self.measure, self.bar, self.text, "" if self.met is None else "yes" if self.met else "MISSED"


def fastest(steps: dict[str, Callable[[], object]], repeats: int = REPEATS) -> dict[str, float]:
    """The least CPU seconds of each step, one after the other and again."""
    best = dict.fromkeys(steps, float("inf"))
    for _ in range(repeats):
        for name, step in steps.items():
            gc.collect()
            began = time.process_time()
            step()
            best[name] = min(best[name], time.process_time() - began)
    return best


@functools.cache
def trained(optimizer: str) -> "tuple[FlatNetwork, Vector, Vector]":
    """A DenseNet121, its first weights, and what twelve steps on striped noise change in them."""
    import torch
    from monai.networks.nets import DenseNet121

    from models.tasks.flat import FlatNetwork

    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = FlatNetwork(DenseNet121(spatial_dims=2, in_channels=1, out_channels=2))
    base = network.vector.numpy().copy()
    network.load(base)
    parameters = network.module.parameters()
    how = torch.optim.SGD(parameters, 0.01, momentum=0.9) if optimizer == "sgd" else torch.optim.Adam(parameters, 1e-3)
    stripes = torch.sin(torch.arange(64) / 3).expand(64, 64)
    network.module.train()
    for _ in range(12):
        labels = torch.randint(0, 2, (16,))
        images = torch.randn(16, 1, 64, 64) + labels.view(-1, 1, 1, 1) * stripes
        how.zero_grad()
        torch.nn.functional.cross_entropy(network.module(images), labels).backward()  # type: ignore[no-untyped-call]
        how.step()
    return network, base, network.vector.numpy() - base


def measure_wire() -> Iterator[Found]:
    """Bytes of an update, and how fast it is encoded."""
    for optimizer in ("sgd", "adam"):
        network, _, delta = trained(optimizer)
        for name, most in SMALL.items():
            encoding = Encoding(name, network.spec)  # type: ignore[arg-type]
            rounded = encoding.rounded(delta)
            packed = encoding.pack(rounded)
            assert encoding.unpack(packed).tobytes() == rounded.tobytes()
            share = len(packed) / delta.nbytes
            yield Found(
                f"wire: bytes of an update, {name}, {optimizer}, in float32 weights",
                f"<= {most:.3g}",
                f"{share:.3f} ({len(packed) / 1e6:.1f} of {delta.nbytes / 1e6:.1f} MB)",
                share <= most,
            )
            if optimizer == "sgd":  # the numbers differ, the work does not
                took = fastest(
                    {
                        "round": functools.partial(encoding.rounded, delta),
                        "pack": functools.partial(encoding.pack, rounded),
                        "unpack": functools.partial(encoding.unpack, packed),
                    },
                    repeats=40,
                )
                speed = {step: delta.nbytes / 1e9 / seconds for step, seconds in took.items()}
                both = delta.nbytes / 1e9 / (took["round"] + took["pack"])
                yield Found(
                    f"wire: rounding and packing, {name}",
                    f">= {ENCODE} GB/s",
                    f"{both:.2f} GB/s (rounding {speed['round']:.1f}, packing {speed['pack']:.1f}; unpacking"
                    f" {speed['unpack']:.1f})",
                    both >= ENCODE,
                )


def measure_auc(work: Path, seeds: int) -> Iterator[Found]:
    """The final model's mean AUC in each encoding, of studies that differ in nothing else."""
    from silos.phantom import write_hospital

    names = ("north", "south", "west")
    text = (ROOT / "configs" / "study.toml").read_text()
    found: dict[str, list[float]] = {name: [] for name in ENCODINGS}
    for seed in range(1, seeds + 1):
        sites = [
            write_hospital(
                work / f"{seed}" / name, name=name, seed=100 * seed + number, patients=60, studies=list(ENCODINGS)
            )
            for number, name in enumerate(names)
        ]
        for site in sites:  # half of the patients judge, so that the AUC is one of many images
            site.write_text(re.sub(r"(?m)^held_out = .*", "held_out = 0.5", site.read_text()))
        for name in ENCODINGS:
            folder = work / f"{seed}-{name}"
            plan = folder.with_suffix(".toml")
            changed = re.sub(r"(?m)^encoding = .*", f'encoding = "{name}"', text)
            changed = re.sub(r"(?m)^name = .*", f'name = "{name}"', changed, count=1)  # one name is one study
            plan.write_text(re.sub(r"(?m)^seed = .*", f"seed = {seed}", changed))
            with Study.create(plan, folder) as study, LocalGrid(sites) as grid:
                outcome = run(study, grid)
            last = outcome.history.rounds[-1].mean("auc")
            assert last is not None
            found[name].append(last)
    for name in SMALL:
        apart = [other - exact for other, exact in zip(found[name], found["float32"], strict=True)]
        mean, error = float(np.mean(apart)), float(np.std(apart, ddof=1)) / seeds**0.5 if seeds > 1 else np.inf
        yield Found(
            f"wire: mean AUC, {name} less float32, {seeds} seeds of make-believe patients",
            f">= -{AUC}",
            f"{mean:+.4f} (standard error {error:.4f}; seed by seed {', '.join(f'{each:+.4f}' for each in apart)};"
            f" float32 {float(np.mean(found['float32'])):.3f})",
            mean >= -AUC,
        )


def measure_path(silos: int) -> Iterator[Found]:
    """What is done with one hospital's model and update beside training, all of it in one process."""
    import torch

    network, base, delta = trained("sgd")
    spec, after = network.spec, base + delta
    network.load(base)
    module, encoding = network.module, Encoding("bfloat16", network.spec)
    digest = vector_digest(spec.digest, base)

    def ours() -> Vector:
        mean = np.zeros_like(base)
        for _ in range(silos):
            array = wire.pack_vector(base)
            network.load(wire.unpack_vector(array, spec.size))  # the model comes
            network.vector.copy_(torch.from_numpy(after))  # for the training
            update = encoding.rounded(network.vector.numpy() - base)
            vector_digest(spec.digest, update)
            came = wire.unpack_vector(wire.pack_vector(update, encoding), spec.size, encoding)
            mean += weighted_mean([1.0], [lambda start, stop, came=came: came[start:stop]], came.size, silos)  # type: ignore[misc]
        return mean

    sent = {key: value for key, value in module.state_dict().items() if value.is_floating_point()}

    def flowers() -> ArrayRecord:
        replies = []
        order = recorddict_to_proto(RecordDict({"arrays": ArrayRecord(sent)})).SerializeToString()
        for _ in range(silos):
            came = recorddict_from_proto(RecordDictProto.FromString(order))["arrays"]
            module.load_state_dict(came.to_torch_state_dict(), strict=False)
            state = {key: value for key, value in module.state_dict().items() if value.is_floating_point()}
            records = RecordDict({"arrays": ArrayRecord(state), "metrics": MetricRecord({"num-examples": 1.0})})
            content = recorddict_to_proto(records).SerializeToString()
            hashlib.sha256(content).hexdigest()
            replies.append(recorddict_from_proto(RecordDictProto.FromString(content)))
        return aggregate_arrayrecords(replies, "num-examples")

    def training() -> None:  # what stands for it in ours, and has no counterpart in Flower's
        network.vector.copy_(torch.from_numpy(after))

    took = fastest({"ours": ours, "flowers": flowers, "training": training}, repeats=5)
    mine, theirs = (took["ours"] / silos - took["training"]), took["flowers"] / silos
    assert digest == vector_digest(spec.digest, base)
    yield Found(
        f"path: per hospital of {silos}, Flower's records and protobuf over ours",
        f">= {PATH:g}x",
        f"{theirs / mine:.1f}x ({1000 * theirs:.0f} ms over {1000 * mine:.0f} ms)",
        theirs / mine >= PATH,
    )
    rounded = encoding.rounded(delta)
    extra = fastest({"packed": lambda: encoding.unpack(encoding.pack(rounded))}, repeats=5)["packed"]
    yield Found(
        "path: over the network, packing and unpacking come on top",
        "",
        f"{theirs / (mine + extra):.1f}x ({1000 * extra:.0f} ms more; Flower's without transport)",
    )


def combine(folder: Path, count: int, which: str) -> None:
    """Combine K updates in this process, and print CPU seconds and the growth of peak memory."""
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # from here on, the peak is that of what follows
    paths = [folder / f"{number % 4}.safetensors" for number in range(count)]
    spec = Spec.of(json.loads((folder / "shapes.json").read_text()))

    def ours() -> object:
        return weighted_mean([1.0] * count, [functools.partial(load_part, path) for path in paths], spec.size)

    def flowers() -> object:
        replies = []
        for path in paths:
            vector = load_part(path, 0, spec.size)
            arrays = ArrayRecord({name: Array(part) for name, part in spec.named(vector).items()})
            replies.append(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1.0})}))
        began = time.process_time()
        aggregate_arrayrecords(replies, "num-examples")
        took.append(time.process_time() - began)
        return None

    took: list[float] = []
    for _ in range(3 if count > 16 else 5):
        began = time.process_time()
        if which == "ours":
            ours()
            took.append(time.process_time() - began)
        else:
            flowers()
    print(min(took), memory("VmHWM") - before)


def memory(what: str) -> float:
    """MB of this process, as the kernel counts them."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


def measure_sum(work: Path, counts: Sequence[int]) -> Iterator[Found]:
    """The mean of K updates, each in a fresh process."""
    network, _, delta = trained("sgd")
    work.mkdir()
    (work / "shapes.json").write_text(json.dumps({tensor.name: tensor.shape for tensor in network.spec.tensors}))
    for number in range(4):
        save_vector(work / f"{number}.safetensors", network.spec, np.roll(delta, number))
    peaks: dict[int, float] = {}
    for count in counts:
        best: dict[str, list[float]] = {}
        for which in ("ours", "flower") * 2:
            command = [sys.executable, __file__, "--combine", str(work), str(count), which]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            seconds, grown = map(float, done.stdout.split())
            known = best.setdefault(which, [seconds, grown])
            known[:] = min(known[0], seconds), min(known[1], grown)
        (mine, grown), (theirs, other) = best["ours"], best["flower"]
        peaks[count] = grown
        yield Found(
            f"aggregation of {count} x DenseNet121, Flower's `aggregate_arrayrecords` over ours",
            f">= {SUM:g}x",
            f"{theirs / mine:.1f}x ({1000 * theirs:.0f} ms from memory over {1000 * mine:.0f} ms from files; memory"
            f" {other:.0f} over {grown:.0f} MB)",
            theirs / mine >= SUM,
        )
    low, high = min(counts), max(counts)
    yield Found(
        f"aggregation: peak memory above the start, K = {high} over K = {low}",
        f"<= {GROWTH:g}x",
        f"{peaks[high] / peaks[low]:.3f}x",
        peaks[high] / peaks[low] <= GROWTH,
    )


def measure_commands(work: Path) -> Iterator[Found]:
    """What starting a command costs beside `flwr --version`."""
    from silos.phantom import write_hospital

    site = write_hospital(work / "north", name="north", seed=0, patients=12, images=2, studies=["demo-fedavg"])
    south = write_hospital(work / "south", name="south", seed=1, patients=12, images=2, studies=["demo-fedavg"])
    plan = work / "study.toml"
    text = (ROOT / "configs" / "study.toml").read_text()
    plan.write_text(re.sub(r"(?m)^rounds = .*", "rounds = 1", text))
    with Study.create(plan, work / "study") as study, LocalGrid([site, south]) as grid:
        run(study, grid)
    ours = {
        "intramural-silo --help": ["silos.cli", "--help"],
        "intramural-aggregator --help": ["aggregator.cli", "--help"],
        "intramural-audit --help": ["aggregator.audit_cli", "--help"],
        "intramural-audit verify": ["aggregator.audit_cli", "verify", str(work / "study")],
        "intramural-aggregator check": ["aggregator.cli", "check", str(plan)],
        "intramural-silo check --only-files": ["silos.cli", "check", str(site), "--only-files"],
    }
    start = "import sys; from {0} import main; sys.exit(main(sys.argv[1:]))"
    flower = "import sys; from flwr.cli.app import app; sys.argv[0] = 'flwr'; app()"
    commands = {"flwr --version": [sys.executable, "-c", flower, "--version"]}
    commands |= {
        name: [sys.executable, "-c", start.format(module), *arguments] for name, (module, *arguments) in ours.items()
    }
    cost = {name: (float("inf"), 0.0) for name in commands}
    # As installed by pip: with compiled modules.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    for _ in range(REPEATS):
        for name, command in commands.items():
            apart = [sys.executable, "-S", "-c", LAUNCHER, *command]
            done = subprocess.run(apart, capture_output=True, text=True, check=True, env=environment)
            used, peak = map(float, done.stdout.split())
            cost[name] = min(cost[name][0], used), max(cost[name][1], peak)
    seconds, most = cost["flwr --version"]
    for name in ours:
        cpu, peak = cost[name][0] / seconds, cost[name][1] / most
        yield Found(
            f"command: `{name}` over `flwr --version`",
            f"CPU <= {COMMAND_CPU}, memory <= {COMMAND_MEMORY}",
            f"CPU {cpu:.3f} ({1000 * cost[name][0]:.0f} ms), memory {peak:.3f} ({cost[name][1] / 1024:.0f} MB)",
            cpu <= COMMAND_CPU and peak <= COMMAND_MEMORY,
        )


def write_results(found: Sequence[Found], busy: str) -> None:
    """The table as Markdown."""
    processor = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    packages = ("intramural", "flwr", "torch", "monai", "numpy", "zstandard", "pydantic")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    text = [
        "# What an update costs between training and the next model",
        "",
        f"{processor[1] if processor else platform.machine()}, {os.cpu_count()} cores, one thread; Python "
        f"{platform.python_version()}, {versions}; {busy}. Written by `scripts/bench_exchange.py`, which says what is "
        "measured.",
        "",
        "| measure | bar | found | met |",
        "|---|---|---|---|",
        *(f"| {' | '.join(item.cells)} |" for item in found),
    ]
    disk.publish(RESULTS, ("\n".join(text) + "\n").encode())


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="of the studies whose AUC is compared (default: 10)")
    parser.add_argument("--silos", type=int, nargs="+", default=[4, 16, 64], help="updates that are combined")
    parser.add_argument("--combine", nargs=3, help=argparse.SUPPRESS)  # one process of `aggregation`
    options = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    if options.combine:
        folder, count, which = options.combine
        combine(Path(folder), int(count), which)
        return OK
    busy = f"{os.getloadavg()[0]:.1f} other processes at work when it began"
    parts: list[tuple[Callable[..., Iterator[Found]], tuple[Any, ...]]]
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        (work / "commands").mkdir()
        parts = [
            (measure_wire, ()),
            (measure_path, (4,)),
            (measure_sum, (work / "sum", options.silos)),
            (measure_commands, (work / "commands",)),
            (measure_auc, (work / "auc", options.seeds)),
        ]
        (work / "auc").mkdir()
        found: list[Found] = []
        for measure, arguments in parts:
            for item in measure(*arguments):
                print(": ".join(filter(None, item.cells)), file=sys.stderr)
                found.append(item)
            write_results(found, busy)  # what was measured stands there, also if the rest is cut off
    show_table(f"what an update costs; {busy}", ("measure", "bar", "found", "met"), [item.cells for item in found])
    return FAILED if any(item.met is False for item in found) else OK


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main())
