"""What the audit costs: lines per second, checks per second, bytes of a proof, and its share of a round.

    python scripts/bench_audit.py [--rounds 80] [--lines 100000]

A study with four make-believe hospitals is run in this process, with next to nothing to train, so that there is a
ledger like those that people have; then once more with MONAI's DenseNet121 (7 million parameters) and with its ResNet18
(11 million). Measured are

    append   lines that a ledger takes per second, beside a bare write and sync of the same bytes, in turns
    verify   lines per second that a reader checks: against the signed head, and every signature in them
    prove    bytes of the file that proves one exchange, and how long it takes to check
    round    what everything that is there for the audit costs in a round: ledgers with their syncs, statements,
             receipts, checkpoints, proofs, the gate with digest and norm of every array, and the digest of the new
             model; not the gate's clipping, noise and rounding, which would be there without an audit, and not the
             spool of updates, by which a killed study goes on

CPU seconds are minima, which other work on the machine disturbs least, seconds are medians; those of a round leave out
the time in which other processes kept the thread from a core, as Linux counts it. Each number stands beside its bar;
the exit code is 1 if one is missed. The table is written to scripts/results/bench_audit.md. It takes 5 min.
"""

import argparse
import contextlib
import functools
import importlib
import inspect
import logging
import math
import os
import platform
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch

from aggregator import LocalGrid, Study, rounds, run
from aggregator.audit import Proof, check, prove, verify
from models.console import FAILED, OK, show_table
from models.exchange.statement import Statement
from models.ledger import Entry, Event, Ledger, Signer, Verifier, disk, keys, read
from silos import privacy
from silos.phantom import write_hospital
from silos.silo import Silo

CONFIG = Path(__file__).parent.parent / "configs" / "study.toml"
RESULTS = Path(__file__).parent / "results" / "bench_audit.md"
HOSPITALS = ("north", "east", "south", "west")
NAME = "demo-fedavg"

ROUND = 10.0
"""Seconds of the round whose share is told."""

SHARE, VERIFIED, PROOF = 0.02, 20_000, 10_000
"""The bars: of a round; lines per second; bytes."""

AUDIT = ("models.exchange.channel", "models.exchange.witness", "models.ledger.log", "silos.gate")
"""The modules that are there for the audit, and do all of it."""

PRIVACY = ("clip", "add_noise", "tell")
"""What the gate does to an update, of `silos.privacy`."""

TINY = {"epochs = 2": "steps = 1", "# arguments = .*": "arguments = { channels = [4] }", "size = .*": "size = [16, 16]"}
LARGE = {
    "DenseNet121, 7 million parameters (28 MB each way)": 'name = "densenet121"',
    "ResNet18, 11 million parameters (45 MB each way)": 'name = "resnet18"',
}


@dataclass(frozen=True)
class Found:
    """One line of the table.

    Attributes:
        measure: What was measured.
        bar: What it must be; empty where there is no bar.
        value: What it came to.
        met: Whether it is.
    """

    measure: str
    value: str
    bar: str = ""
    met: bool | None = None

    @property
    def cells(self) -> tuple[str, ...]:
        """As a row of the table."""
        return self.measure, self.bar, self.value, {True: "yes", False: "MISSED", None: ""}[self.met]


def kept_waiting() -> float:
    """Seconds that this thread was ready to run, and others had the cores."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9


class Meter:
    """Who spends how much in the modules of the audit, while a study runs in this process.

    Whatever such a module calls is its cost too, privacy excepted; what calls it is not.
    """

    def __init__(self) -> None:
        self.party = "coordinator"
        self.rounds: list[dict[str, tuple[float, float]]] = []  # CPU and wall seconds of each party
        self._now: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._depth = 0

    def next_round(self) -> None:
        """What was spent since the last one belongs to one round."""
        self.rounds.append({party: (cpu, wall) for party, (cpu, wall) in self._now.items()})
        self._now.clear()

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Count, for a while."""
        with contextlib.ExitStack() as stack:
            for name in AUDIT:
                with contextlib.suppress(ModuleNotFoundError):
                    self._install(importlib.import_module(name), stack)
            for name in PRIVACY:
                stack.enter_context(mock.patch.object(privacy, name, self._left_out(getattr(privacy, name))))
            digest = self._counted(rounds.vector_digest)
            stack.enter_context(mock.patch.object(rounds, "vector_digest", digest))
            stack.enter_context(mock.patch.object(Silo, "answer", self._as_hospital(Silo.answer)))
            yield

    def _install(self, module: ModuleType, stack: contextlib.ExitStack) -> None:
        own = [thing for thing in vars(module).values() if getattr(thing, "__module__", "") == module.__name__]
        for thing in own:
            if inspect.isfunction(thing):
                counted = self._counted(thing)
                for other in list(sys.modules.values()):  # others have it under its name
                    if vars(other).get(thing.__name__) is thing:
                        stack.enter_context(mock.patch.object(other, thing.__name__, counted))
            elif inspect.isclass(thing):
                for name, method in list(vars(thing).items()):
                    if inspect.isfunction(method) and not name.startswith("__"):
                        stack.enter_context(mock.patch.object(thing, name, self._counted(method)))

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **more: Any) -> Any:
            if self._depth:
                return function(*arguments, **more)
            self._depth = 1
            try:
                return self._timed(1, function, *arguments, **more)
            finally:
                self._depth = 0

        return call

    def _left_out(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return functools.partial(self._timed, -1, function)

    def _timed(self, sign: int, function: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
        """Call something, and add what it took to what its party spent, or take it off."""
        cpu, wall = time.thread_time(), time.perf_counter() - kept_waiting()
        try:
            return function(*arguments, **more)
        finally:
            spent = self._now[self.party]
            spent[0] += sign * (time.thread_time() - cpu)
            spent[1] += sign * (time.perf_counter() - kept_waiting() - wall)

    def _as_hospital(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(silo: Silo, *arguments: Any, **more: Any) -> Any:
            self.party = silo.site.name
            try:
                return function(silo, *arguments, **more)
            finally:
                self.party = "coordinator"

        return call


def run_study(folder: Path, changes: dict[str, str], rounds: int, images: int) -> tuple[Path, Meter]:
    """Run a study in this process; its ledger, and what the audit cost."""
    text = CONFIG.read_text()
    for pattern, line in {"rounds = .*": f"rounds = {rounds}", **changes}.items():
        text, count = re.subn(f"(?m){pattern}", lambda _, line=line: line, text, count=1)
        assert count == 1, pattern
    plan = folder / "study.toml"
    plan.parent.mkdir(parents=True)
    plan.write_text(text)
    sites = [
        write_hospital(folder / name, name=name, seed=1, images=images, size=32, studies=[NAME]) for name in HOSPITALS
    ]
    for site in sites:
        text = re.sub("max_rounds = .*", f"max_rounds = {rounds}", site.read_text())
        site.write_text(re.sub("min_patients = .*", "min_patients = 1", text))  # they are nobody, and a step has few
    meter = Meter()
    with Study.create(plan, folder / "study") as study, LocalGrid(sites) as grid, meter.installed():
        outcome = run(study, grid, lambda _: meter.next_round())
    assert all(len(item.accepted) == len(HOSPITALS) for item in outcome.history.rounds[1:])
    return folder / "study" / "ledger", meter


def least(work: Callable[[], object], times: int = 5) -> float:
    """CPU seconds that it takes, at least."""
    spent = []
    for _ in range(times):
        started = time.process_time()
        work()
        spent.append(time.process_time() - started)
    return min(spent)


def copies(ledger: Path, count: int) -> Iterator[Entry]:
    """Lines such as those of a ledger, as if they were of another study."""
    study = "ab" * 32
    lines = [record for record in read(ledger).records if record.round is not None]
    for number in range(count):
        record = lines[number % len(lines)]
        statement = record.body.get("statement")
        more = {"statement": {**statement, "study": study}} if statement else {}
        yield Entry(record.event, {**record.body, **more}, study, record.round)


def measure_append(ledger: Path, folder: Path, count: int = 150) -> Iterator[Found]:
    """Lines per second, in turns with a bare write and sync."""
    signer = Signer.from_seed("north", bytes(32))
    entries = list(copies(ledger, count))
    seconds: dict[str, list[float]] = defaultdict(list)
    cpu: list[float] = []
    bare = os.open(folder / "bare", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def timed(what: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = work()
        seconds[what].append(time.perf_counter() - started)
        return result

    with Ledger.create(folder / "ledger", signer) as whole, Ledger.create(folder / "lines", signer) as only_lines:
        for entry in entries:
            started = time.process_time()
            line = timed("append", lambda entry=entry: whole.append(entry))[0].line + b"\n"
            cpu.append(time.process_time() - started)
            with mock.patch.object(disk, "publish", return_value=None):
                timed("append, without its checkpoint", lambda entry=entry: only_lines.append(entry))
            timed("bare", lambda line=line: (disk.write_all(bare, line), os.fdatasync(bare)))
        for start in range(0, count, 10):
            timed("ten", lambda start=start: whole.append(*entries[start : start + 10]))
    os.close(bare)
    median = {what: statistics.median(values) for what, values in seconds.items()}
    per_second = {what: f"{1 / value:.0f} per second" for what, value in median.items()}
    yield Found("append one line: written, synced, in a new signed checkpoint", per_second["append"])
    yield Found("append ten lines at once", f"{10 / median['ten']:.0f} lines per second")
    yield Found("append one line without the checkpoint", per_second["append, without its checkpoint"])
    yield Found("bare write and sync of the same bytes", per_second["bare"])
    for what, name in (("append", "append"), ("append, without its checkpoint", "append without the checkpoint")):
        yield Found(f"{name}, in bare writes and syncs", f"{median[what] / median['bare']:.1f} times")
    yield Found("append one line: CPU", f"{1e6 * min(cpu):.0f} µs")


def verify_anew(ledger: Path) -> None:
    """Verify as a new process does, which has seen no signature yet."""
    keys.require_signed.cache_clear()
    verify(ledger)


def measure_verify(ledger: Path, long: Path) -> Iterator[Found]:
    """Lines per second."""
    count = {folder: len(read(folder).records) for folder in (ledger, long)}
    seconds = dict.fromkeys(count, math.inf)
    for _ in range(6):  # in turns: a busy neighbour stays for longer than one of them takes
        for folder, times in ((ledger, 20), (long, 1)):
            seconds[folder] = min(seconds[folder], least(lambda folder=folder: read(folder), times))
    for folder, lines in count.items():
        rate = lines / seconds[folder]
        text = f"{rate:,.0f} lines per second"
        bar = f">= {VERIFIED:,}"
        yield Found(f"check {lines:,} lines against the signed head: form, order, hashes", text, bar, rate >= VERIFIED)
    verdict = verify(ledger)
    assert verdict.ok, verdict.problems
    whole = least(lambda: verify_anew(ledger))
    with mock.patch.object(Verifier, "verify", autospec=True) as checked:
        verify(ledger)
        beside = least(lambda: verify(ledger))
    signatures = checked.call_count // 6
    text = f"{verdict.size / whole:,.0f} lines per second"
    yield Found("`intramural-audit verify`: those checks, every document and every Ed25519 signature", text)
    yield Found(
        f"the same, less the {signatures / verdict.size:.1f} Ed25519 checks per line",
        f"{verdict.size / beside:,.0f} lines per second ({1e6 * (whole - beside) / signatures:.0f} µs per signature)",
    )


def measure_proofs(ledgers: Sequence[Path]) -> Iterator[Found]:
    """Bytes, and seconds to check."""
    for ledger in ledgers:
        opened = read(ledger)
        study = opened.records[1].study
        sent = [r for r in opened.records if r.event == Event.UPDATE_RECEIVED and r.study == study]
        newest = prove(ledger, study=study, peer=HOSPITALS[0])
        xid = Statement.parse(sent[len(sent) // 2].body["statement"]).xid
        one = prove(ledger, study=study, exchange=xid)
        for proof, what in ((one, "one update"), (newest, "the newest of both directions")):
            content = proof.encode()
            keys = [opened.verifier]
            assert not check(Proof.decode(content), keys).problems, check(Proof.decode(content), keys).problems
            milliseconds = 1000 * least(lambda content=content, keys=keys: check(Proof.decode(content), keys), 50)
            text = f"{len(content):,} bytes, checked in {milliseconds:.1f} ms"
            bar = f"<= {PROOF:,} bytes"
            yield Found(f"proof of {what}, from {len(opened.records):,} lines", text, bar, len(content) <= PROOF)


def measure_round(meter: Meter, what: str) -> Iterator[Found]:
    """The share of a round."""
    rounds = meter.rounds[2:-1]  # of the first, everything is new; before it, the study began, and the last is its end

    def spent(which: int, pick: Callable[[list[float]], float]) -> tuple[float, float]:
        coordinator = pick([item["coordinator"][which] for item in rounds])
        hospitals = [pick([item[name][which] for item in rounds]) for name in HOSPITALS]
        return coordinator, max(hospitals)

    for kind, (coordinator, hospital) in (("CPU", spent(0, min)), ("wall", spent(1, statistics.median))):
        share = (coordinator + hospital) / ROUND
        text = (
            f"{100 * share:.2f} % (coordinator {1000 * coordinator:.0f} ms, slowest hospital {1000 * hospital:.0f} ms)"
        )
        yield Found(
            f"audit in a round of {ROUND:g} s, {kind}: {what}",
            text,
            f"< {100 * SHARE:g} %",
            share < SHARE,
        )


def write_results(found: Sequence[Found], busy: str) -> None:
    """The table as Markdown."""
    processor = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    versions = ", ".join(f"{name} {version(name)}" for name in ("intramural", "cryptography", "flwr", "numpy"))
    text = [
        "# What the audit costs",
        "",
        f"{processor[1] if processor else platform.machine()}, {os.cpu_count()} cores; Python "
        f"{platform.python_version()}, {versions}. Four hospitals and their coordinator in one process, "
        f"on one disk; {busy}. Written by `scripts/bench_audit.py`, which says what is measured.",
        "",
        "| measure | bar | found | met |",
        "|---|---|---|---|",
        *(f"| {' | '.join(item.cells)} |" for item in found),
    ]
    disk.publish(RESULTS, ("\n".join(text) + "\n").encode())


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=80, help="of the study with little to train (default: 80)")
    parser.add_argument("--lines", type=int, default=100_000, help="of the long ledger (default: 100,000)")
    options = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    busy = f"{os.getloadavg()[0]:.1f} other processes at work when it began"
    found: list[Found] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        ledger, meter = run_study(work / "small", TINY, options.rounds, images=1)
        large = {}
        for number, (what, network) in enumerate(LARGE.items()):
            changes = {"epochs = 2": "steps = 1", 'name = "cnn".*': network, "batch_size = 16": "batch_size = 2"}
            _, large[what] = run_study(work / f"large-{number}", changes, 8, images=1)
        long = lengthen(ledger, work / "long", options.lines)
        (work / "append").mkdir()
        found += measure_append(ledger, work / "append")
        found += measure_verify(ledger, long)
        found += measure_proofs([ledger, long])
        found += measure_round(meter, "a small network")
        for what, spent in large.items():
            found += measure_round(spent, what)
    show_table(f"what the audit costs; {busy}", ("measure", "bar", "found", "met"), [item.cells for item in found])
    write_results(found, busy)
    return FAILED if any(item.met is False for item in found) else OK


def lengthen(ledger: Path, folder: Path, lines: int) -> Path:
    """A copy of a study's ledger with that many lines, most of them of another study."""
    shutil.copytree(ledger, folder)
    signer = Signer.load(ledger.parent / "aggregator.key")
    with Ledger.open(folder, signer) as long:
        entries = list(copies(ledger, lines - len(long.records)))
        for start in range(0, len(entries), 1000):
            long.append(*entries[start : start + 1000])
    return folder


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main())
