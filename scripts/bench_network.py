"""What the network costs: seconds per round, CPU per message, and memory, beside Flower's own executor.

    python scripts/bench_network.py [--only A B C D E] [--rounds 9] [--silos 4]

Real processes on loopback, with TLS, node keys and the front door, set up with the commands that people use:

    A  seconds per round of a study with next to nothing to compute
    B  the same study, each hospital's SuperNode with Flower's own executor (a new process for every message)
    C  CPU seconds per message of both executors, the app being empty
    D  seconds that an executor spends on an order beside training and evaluation
    E  a model of 100 million parameters: the most memory that each process ever had

Each number stands beside its bar. A bar that is missed is printed as missed, and the exit code is then 1. The
table is also written to scripts/results/bench_network.md, each part replacing what an earlier run found of it.
Memory is VmHWM, the 140 MB of an empty ServerApp included. All parts take about ten minutes; `--silos 4` five more.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from federation import PLAN, Federation, free_port, replace

from aggregator.history import read_study
from models.console import FAILED, OK, show_table
from models.exchange.enrolment import Invitation
from silos.config import Site
from silos.phantom import write_hospital

RESULTS = Path(__file__).parent / "results" / "bench_network.md"
HOSPITALS = ("north", "east", "south", "west")
STUDY = "bench"

ROUND, SHARE, MODELS = 3.0, 20, 3
"""The bars: seconds per round; how often our CPU seconds fit into Flower's; model sizes in the ServerApp."""

TINY = {
    "epochs = 2": "steps = 1",
    "# arguments = .*": "arguments = { channels = [4] }",
    r"size = .*": "size = [16, 16]",
}
LARGE = {
    **TINY,
    r'name = "cnn".*': 'name = "resnet18"',
    "batch_size = 16": "batch_size = 2",
    'optimizer = "adam" ': 'optimizer = "sgd" ',
    r'max_bytes = "200 MB"': 'max_bytes = "1 GB"',
}

APPS = '''\
"""An app that does nothing, and a server that sends it messages, one after the other."""

import json
import time

from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

client = ClientApp()
server = ServerApp()


@client.query()
def query(message, context):
    return Message(RecordDict(), reply_to=message)


@server.main()
def main(grid, context):
    while not (nodes := list(grid.get_node_ids())):
        time.sleep(0.2)
    sent = []
    for _ in range(int(context.run_config["count"]) + 1):
        sent.append(time.time())
        waiting = list(grid.push_messages([Message(RecordDict(), nodes[0], "query")]))
        while not (replies := list(grid.pull_messages(waiting))):
            time.sleep(0.05)
        if replies[0].has_error():
            raise SystemExit(replies[0].error.reason)
    sent.append(time.time())
    time.sleep(2)  # the process of the last message may still be ending
    with open(context.run_config["out"], "w") as file:
        json.dump(sent, file)
'''

BUNDLE = """\
[project]
name = "bench"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "bench"
fab-include = ["LICENSE"]

[tool.flwr.app.components]
serverapp = "bench_apps:server"
clientapp = "{client}"

[tool.flwr.app.config]
count = 1
out = ""
"""

FLOWER = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}


@dataclass(frozen=True)
class Finding:
    """One line of the table.

    Attributes:
        part: A to E.
        what: What was measured.
        value: What it came to.
        bar: What it must be; empty where there is no bar.
        met: Whether it is.
    """

    part: str
    what: str
    value: str
    bar: str = ""
    met: bool | None = None

    @property
    def cells(self) -> tuple[str, ...]:
        """As a row of the table."""
        verdict = {True: "met", False: "MISSED", None: ""}[self.met]
        return self.part, self.what, self.value, self.bar, verdict


class Watch(threading.Thread):
    """Looks at the processes of a federation again and again: their CPU time, and the most memory they had.

    Args:
        federation: Whose.
    """

    ROLES: Mapping[str, str] = {
        "flwr-serverapp": "ServerApp",
        "flwr-clientapp": "executor",
        "flower-superlink": "SuperLink",
        "flower-superexec": "SuperExec",
        "models.exchange.door": "door",
        "flower-supernode": "SuperNode",
        "silos.service.executor": "executor",
        "bench_network.py executor": "executor",
    }

    def __init__(self, federation: Federation, pause: float = 0.1) -> None:
        super().__init__(daemon=True)
        self._federation, self._pause = federation, pause
        self._ending = threading.Event()
        self.cpu: dict[str, list[tuple[float, float]]] = defaultdict(list)  # (time, seconds) of each executor
        self.peak: dict[tuple[str, str], int] = defaultdict(int)  # bytes, by service and role
        self.executors: dict[str, set[int]] = defaultdict(set)  # process ids, by hospital
        self.last: dict[tuple[str, str], int] = {}

    def __enter__(self) -> "Watch":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self.join()

    def run(self) -> None:
        """Look until told to end."""
        while not self._ending.wait(self._pause):
            self.look()

    def look(self) -> None:
        """Look once."""
        roots = {service.pid: name for name, service in list(self._federation.services.items())}
        found = {pid: times for pid in _pids() if (times := _stat(pid))}
        spent: dict[str, float] = defaultdict(float)
        for pid, (_, seconds) in found.items():
            ancestor = pid
            while ancestor in found and ancestor not in roots:
                ancestor = found[ancestor][0]
            words = _read(pid, "cmdline").replace("\0", " ")
            role = next((role for word, role in self.ROLES.items() if word in words and "/bin/sh" not in words), None)
            if ancestor not in roots or role is None:
                continue
            name = roots[ancestor]
            if role == "SuperExec" and name != "aggregator":
                role = "executor"  # Flower's own is this one and what it starts
            if role == "executor":
                spent[name] += seconds
                self.executors[name].add(pid)
            if high := re.search(r"VmHWM:\s+(\d+) kB", _read(pid, "status")):
                self.peak[name, role] = max(self.peak[name, role], 1024 * int(high[1]))
        for name, seconds in spent.items():
            self.cpu[name].append((time.time(), seconds))

    def seconds(self, name: str, start: float, end: float) -> float:
        """CPU seconds of a hospital's executor between two times."""
        first, last = (max((s for t, s in self.cpu[name] if t <= at), default=0.0) for at in (start, end))
        return last - first


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except OSError:
        return ""  # it has ended


def _stat(pid: int) -> tuple[int, float] | None:
    """Parent, and CPU seconds of a process and of its children that have ended."""
    fields = _read(pid, "stat").rpartition(")")[2].split()
    return (int(fields[1]), sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")) if fields else None


class Bench(Federation):
    """A federation whose hospitals may run another executor than the toolkit's service.

    Args:
        folder: New.
        changes: To the lines of `configs/study.toml`, by pattern.
        rounds: Of the study.
        silos: How many hospitals.
        images: Of each patient.
    """

    def __init__(self, folder: Path, changes: Mapping[str, str], rounds: int, silos: int = 2, images: int = 1) -> None:
        sites = [
            write_hospital(folder / "hospitals" / name, name=name, seed=1, images=images, size=32, studies=[STUDY])
            for name in HOSPITALS[:silos]
        ]
        super().__init__(folder, sites)
        plan = folder / "study.toml"
        shutil.copy(PLAN, plan)
        shared = {
            "^name = .*": f'name = "{STUDY}"',
            "rounds = .*": f"rounds = {rounds}",
            "min_silos = .*": "min_silos = 1",
        }
        for pattern, text in {**shared, **changes}.items():
            replace(plan, f"(?m){pattern}", text)
        for site in sites:
            replace(site, "max_bytes = .*", 'max_bytes = "1 GB"')
            replace(site, "min_patients = .*", "min_patients = 1")  # they are nobody, and a step has few
        self.set_up(plan)

    def serve(self, start: Callable[[str], None] | None = None) -> None:
        """Start all services, and wait until the hospitals are connected."""
        self.start("aggregator")
        while any(hospital["status"] == "unknown" for hospital in self.status()["hospitals"]):
            time.sleep(1)  # who dials before it is let in is refused, and tries again later
        for name in self.sites:
            (start or self.start)(name)
        self.wait_for_nodes(list(self.sites))

    def start_flowers(self, name: str) -> None:
        """A hospital's SuperNode with Flower's own executor, which the toolkit itself never uses."""
        self._spawn(name, [*self._supernode(name, free_port()), "--isolation", "subprocess"])

    def start_timed(self, name: str, app: str) -> None:
        """A hospital's SuperNode and the toolkit's executor, which writes down how long it takes."""
        port, secret = free_port(), self.folder / f"{name}.secret"
        secret.write_bytes(os.urandom(32))
        node = [*self._supernode(name, port), "--isolation", "process", "--superexec-auth-secret-file", str(secret)]
        executor = [sys.executable, __file__, "executor", str(self.sites[name]), f"127.0.0.1:{port}", str(secret), app]
        executor.append(str(self.folder / f"{name}.jsonl"))
        # A shell, so that one process stands for the hospital; it ends both.
        script = f"trap 'kill %1 %2; wait; exit' TERM; {shlex.join(node)} & sleep 3; {shlex.join(executor)} & wait"
        self._spawn(name, ["/bin/bash", "-mc", script])

    def _supernode(self, name: str, port: int) -> list[str]:
        site = Site.load(self.sites[name])
        invitation = Invitation.model_validate_json((self.sites[name].parent / "coordinator.json").read_text())
        roots = self.folder / f"{name}.pem"
        roots.write_text(invitation.certificates)
        return [
            *(str(Path(sys.executable).with_name("flower-supernode")), "--superlink", invitation.address),
            *("--root-certificates", str(roots), "--host", "127.0.0.1", "--port", str(port)),
            *("--auth-supernode-private-key", str(site.run.work / "node" / "node.key")),
            *("--node-config", f'site="{self.sites[name].resolve()}"'),
        ]

    def _spawn(self, name: str, command: Sequence[str]) -> None:
        environment = os.environ | FLOWER | {"FLWR_HOME": str(self.folder / f"{name}.flower")}
        with open(self.folder / "logs" / f"{name}.log", "ab") as log:
            self.services[name] = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, env=environment
            )

    def round_seconds(self) -> list[float]:
        """Seconds between the ends of two rounds: when each model's file was written."""
        models = sorted((self.study / "models").glob("*.safetensors"))[1:]
        stamps = [model.stat().st_mtime_ns / 1e9 for model in models]
        return [after - before for before, after in pairwise(stamps)]

    def span(self) -> tuple[float, float]:
        """When the first and the last round ended."""
        models = sorted((self.study / "models").glob("*.safetensors"))[1:]
        return models[0].stat().st_mtime, models[-1].stat().st_mtime

    def accepted(self) -> int:
        """Updates that were accepted."""
        return sum(len(item.accepted) for item in read_study(self.study)[1].rounds)


@contextlib.contextmanager
def bench(work: Path, name: str, changes: Mapping[str, str], rounds: int, **more: int) -> Iterator[tuple[Bench, Watch]]:
    """A federation and the watch on it; its folder is removed unless something went wrong."""
    print(f"{name} ...", flush=True)
    with Bench(work / name, changes, rounds, **more) as federation, Watch(federation) as watch:
        yield federation, watch
    shutil.rmtree(work / name)


def spread(values: Sequence[float], unit: str = "s") -> str:
    """Median, smallest, largest and number of values."""
    return f"{statistics.median(values):.2f} {unit} ({min(values):.2f} to {max(values):.2f}, n = {len(values)})"


def part_a(work: Path, options: argparse.Namespace) -> Iterator[Finding]:
    """Rounds of an empty study."""
    with bench(work, "A", TINY, options.rounds + 1) as (federation, watch):
        federation.serve()
        federation.run()
        seconds, silos = federation.round_seconds(), federation.sites
        median = statistics.median(seconds)
        yield Finding(
            "A", "seconds per round, 2 hospitals, 1 training step", spread(seconds), "median < 3 s", median < ROUND
        )
        cpu = [watch.seconds(name, *federation.span()) / len(seconds) for name in silos]
        yield Finding("A", "CPU of an executor per round, training included", spread(cpu))
        once = all(len(watch.executors[name]) == 1 for name in silos)
        count = ", ".join(f"{name} {len(watch.executors[name])}" for name in silos)
        yield Finding("A", "executor processes over the study (torch imported once in each)", count, "1 each", once)
        asked = (options.rounds + 1) * len(silos)
        yield Finding(
            "A", "updates accepted", f"{federation.accepted()} of {asked}", "all", federation.accepted() == asked
        )


def part_b(work: Path, options: argparse.Namespace) -> Iterator[Finding]:
    """The same with Flower's own executor."""
    rounds = max(options.rounds // 2, 4)
    with bench(work, "B", TINY, rounds + 1) as (federation, watch):
        federation.serve(federation.start_flowers)
        federation.run()
        seconds = federation.round_seconds()
        yield Finding("B", "the same with Flower's own executor: seconds per round", spread(seconds))
        cpu = [watch.seconds(name, *federation.span()) / len(seconds) for name in federation.sites]
        yield Finding("B", "CPU of Flower's executor per round, training included", spread(cpu))
        processes = ", ".join(f"{name} {len(watch.executors[name]) - 1}" for name in federation.sites)
        yield Finding("B", "app processes over the study (torch imported in each)", processes)
        asked = (rounds + 1) * len(federation.sites)
        yield Finding("B", "updates accepted", f"{federation.accepted()} of {asked}")


def part_c(work: Path, options: argparse.Namespace) -> Iterator[Finding]:
    """CPU per message with an app that does nothing."""
    per_message: dict[str, float] = {}
    apps = work / "apps"
    apps.mkdir()
    (apps / "bench_apps.py").write_text(APPS)
    os.environ["PYTHONPATH"] = str(apps)
    try:
        for whose, count in (("our", 4 * options.rounds), ("Flower's", options.rounds)):
            with bench(work, f"C-{count}", TINY, 1, silos=1) as (federation, watch):
                timed = lambda name: federation.start_timed(name, "empty")  # noqa: E731 - used at once
                federation.serve(timed if whose == "our" else federation.start_flowers)
                component = "silos.app:app" if whose == "our" else "bench_apps:client"
                sent = ask_empty(federation, component, count)
                watch.look()
                name = next(iter(federation.sites))
                per_message[whose] = watch.seconds(name, sent[1], sent[-1] + 1.5) / count
                walls = [after - before for before, after in pairwise(sent[1:])]
                value = f"{per_message[whose]:.3f} s"
                yield Finding("C", f"CPU per message, empty app, {whose} executor ({count} messages)", value)
                yield Finding("C", f"seconds per message, empty app, {whose} executor", spread(walls))
    finally:
        del os.environ["PYTHONPATH"]
    ratio = per_message["Flower's"] / max(per_message["our"], 1e-9)
    yield Finding("C", "Flower's CPU per message in ours", f"{ratio:.0f} times", f">= {SHARE} times", ratio >= SHARE)


def ask_empty(federation: Bench, component: str, count: int) -> list[float]:
    """Send messages to the only hospital; when each was sent, and when the last one was answered."""
    bundle, out = federation.folder / "bundle", federation.folder / "sent.json"
    bundle.mkdir()
    (bundle / "pyproject.toml").write_text(BUNDLE.format(client=component))
    (bundle / "LICENSE").write_text("Apache-2.0\n")
    environment = os.environ | FLOWER | {"FLWR_HOME": str(federation.home / "flower")}
    config = f'count={count} out="{out}"'
    command = [str(Path(sys.executable).with_name("flwr")), "run", str(bundle), "intramural", "--run-config", config]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    end = time.monotonic() + 600
    while not out.exists() or not out.stat().st_size:
        if done.returncode or time.monotonic() > end:
            raise SystemExit(
                f"the empty app gave no answer; see {federation.folder / 'logs'}\n{done.stdout}{done.stderr}"
            )
        time.sleep(0.5)
    sent: list[float] = json.loads(out.read_text())
    return sent


def part_d(work: Path, options: argparse.Namespace) -> Iterator[Finding]:
    """What an order costs in a warm executor beside training and evaluation."""
    with bench(work, "D", {}, options.rounds + 1, images=6) as (federation, _):
        federation.serve(lambda name: federation.start_timed(name, "silo"))
        federation.run()
        orders = {
            name: [json.loads(line) for line in (federation.folder / f"{name}.jsonl").read_text().splitlines()]
            for name in federation.sites
        }
        warm = [order for lines in orders.values() for order in lines if order["round"] > 1 and order["work"]]
        beside = [order["seconds"] - order["work"] for order in warm]
        rounds = federation.round_seconds()
        slowest = [
            max(o["work"] for lines in orders.values() for o in lines if o["round"] == number and o["visit"] == "train")
            for number in range(2, options.rounds + 2)
        ]
        over = [whole - work for whole, work in zip(rounds, slowest, strict=True)]
    yield Finding("D", "training and evaluation of an order", spread([order["work"] for order in warm]))
    yield Finding("D", "order arriving to answer pushed, less that", spread(beside))
    text = "seconds per round, less the slowest hospital's training and evaluation"
    yield Finding("D", text, spread(over), "median < 3 s", statistics.median(over) < ROUND)


def part_e(work: Path, options: argparse.Namespace) -> Iterator[Finding]:
    """A large model: the most memory of each process; and whether it grows with the number of hospitals."""
    found: list[Finding] = []
    peak = large(work, found, silos=2, widen=3.0)
    found[1] = dataclasses.replace(found[1], bar="< 3 models", met=peak < MODELS)
    if options.silos > 2:  # with a smaller model: each hospital's executor holds it several times on this machine
        few = large(work, found, silos=2, widen=2.0)
        many = large(work, found, silos=options.silos, widen=2.0)
        found[-2] = dataclasses.replace(found[-2], bar="< 1.1 times that with 2", met=many < 1.1 * few)
    yield from found


def large(work: Path, found: list[Finding], silos: int, widen: float) -> float:
    """Two rounds with a large model; the most memory that the ServerApp had, in model sizes."""
    changes = LARGE | {"# arguments = .*": f"arguments = {{ widen_factor = {widen} }}"}
    with bench(work, f"E-{silos}-{widen:g}", changes, 2, silos=silos) as (federation, watch):
        size = (federation.study / "models" / "000.safetensors").stat().st_size
        federation.serve()
        started = time.monotonic()
        federation.run()
        seconds = time.monotonic() - started
        watch.look()
        peaks: dict[str, int] = defaultdict(int)
        for (_, role), peak in watch.peak.items():
            peaks[role] = max(peaks[role], peak)
        accepted = federation.accepted()
    of = f"{silos} hospitals, {size / 4e6:.0f} million parameters ({size / 1e6:.0f} MB)"
    whole = f"{accepted} of {2 * silos} in {seconds:.0f} s"
    own = f"{peaks['ServerApp'] / size:.2f} models ({peaks['ServerApp'] / 1e6:.0f} MB)"
    others = ", ".join(f"{role} {peaks[role] / 1e6:.0f} MB" for role in ("SuperLink", "door", "SuperNode", "executor"))
    found += [
        Finding("E", f"{of}: updates accepted", whole, "all", accepted == 2 * silos),
        Finding("E", f"{of}: ServerApp's peak", own),
        Finding("E", f"{of}: peaks of the others", others),
    ]
    return peaks["ServerApp"] / size


PARTS = {"A": part_a, "B": part_b, "C": part_c, "D": part_d, "E": part_e}


def executor(words: Sequence[str]) -> int:
    """Run the toolkit's executor with an app that does nothing, or with a note of how long each order takes."""
    from flwr.app import Message

    from models.exchange import wire
    from models.exchange.documents import Order
    from silos import training
    from silos.app import app as silo_app
    from silos.service.executor import Executor

    site, address, secret, kind, out = words
    spent = {"start": 0.0, "work": 0.0}
    asked: dict[str, Any] = {}

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **more: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments, **more)
            finally:
                spent["work"] += time.perf_counter() - started

        return run

    class Timed(Executor):
        def _begin(self, token: str) -> None:
            started, spent["work"] = time.perf_counter(), 0.0
            super()._begin(token)
            asked.update(seconds=time.perf_counter() - started, work=spent["work"])
            with open(out, "a") as file:
                file.write(json.dumps(asked) + "\n")

    class Noting:
        def __call__(self, message: Message, context: Any) -> Message:
            order = Order.decode(wire.unpack(message.content).body)
            asked.update(round=order.round, visit=order.visit)
            return silo_app(message, context)

    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    if kind == "empty":
        from bench_apps import client

        Executor(Path(site), address, Path(secret).read_bytes(), app=client).work(stopping)
        return OK
    training.fit, training.evaluate = timed(training.fit), timed(training.evaluate)
    Timed(Path(site), address, Path(secret).read_bytes(), app=Noting()).work(stopping)
    return OK


def write_results(findings: Sequence[Finding]) -> None:
    """Put what was found into the table of results, in place of what was found before of the same parts."""
    rows = ["| " + " | ".join(finding.cells) + " |" for finding in findings]
    parts = {finding.part for finding in findings}
    if RESULTS.exists():
        old = [line for line in RESULTS.read_text().splitlines() if re.match(r"\| [A-E] \|", line)]
        rows = sorted(rows + [line for line in old if line[2] not in parts], key=lambda line: line[2])
    processor = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    versions = ", ".join(f"{name} {version(name)}" for name in ("intramural", "flwr", "torch", "monai", "numpy"))
    text = [
        "# What the network costs",
        "",
        f"{processor[1] if processor else platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GB; Python "
        f"{platform.python_version()}, {versions}. Everything on one machine, over loopback, with TLS, node keys and "
        "the front door. Written by `scripts/bench_network.py`.",
        "",
        "| | what | value | bar | |",
        "|---|---|---|---|---|",
        *rows,
    ]
    RESULTS.write_text("\n".join(text) + "\n")


def main() -> int:
    """Measure, print, write."""
    if sys.argv[1:2] == ["executor"]:
        return executor(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="which parts (default: all)"
    )
    parser.add_argument("--rounds", type=int, default=9, help="rounds that are timed (default: 9)")
    parser.add_argument("--silos", type=int, default=2, help="E again with up to 4 hospitals")
    parser.add_argument("--work", type=Path, help="a folder for the federations (default: a temporary one)")
    options = parser.parse_args()
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # Flower's own starts by name
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no process is left behind
    findings: list[Finding] = []
    with contextlib.ExitStack() as stack:
        work = (options.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))).resolve()
        work.mkdir(parents=True, exist_ok=True)
        for part in sorted(set(options.only)):
            busy = f"{os.getloadavg()[0]:.1f} processes on {os.cpu_count()} cores"
            found = list(PARTS[part](work, options))
            found.append(Finding(part, "other work on the machine when this part began", busy))
            show_table(f"part {part}", ("", "what", "value", "bar", ""), [finding.cells for finding in found])
            findings += found
            write_results(findings)
    return FAILED if any(finding.met is False for finding in findings) else OK


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main())
