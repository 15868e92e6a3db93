"""What a study survives: each process killed in turn, and each hospital's bad day, with real processes.

    python scripts/failures.py                            all of it, which takes half an hour
    python scripts/failures.py --only executor serverapp  some of it; the rows of the others are kept

Three make-believe hospitals train for five rounds, over TLS, with the commands that people use; two of them
are enough for a round. In the middle of round 2 something is struck. Then the study must end by itself, with
every round combined or void, no update counted twice, ledgers that agree, and somebody on the right side told
in plain words. Where nobody was excluded, the model must be that of the undisturbed study, bit for bit.

A scenario is a function: what stands before its `yield` happens before the services start, the rest in the
middle of round 2, or of the round that it names. Results: scripts/results/failures.md and .csv. Exit code 1 if a
promise was broken. Linux only; the full disk needs the right to mount, the wrong clock a C compiler.
"""

import argparse
import contextlib
import csv
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

from federation import PLAN, Federation, program, replace

from aggregator.audit import reconcile, verify
from aggregator.history import History, read_study
from aggregator.service import certificates
from aggregator.service.home import Home
from models.console import FAILED, OK, show_table
from models.errors import IntramuralError
from models.ledger import Event, disk, read
from silos.config import Site
from silos.phantom import write_hospital

NAMES = ("east", "north", "south")
STRUCK = "south"
"""The hospital that has the bad day."""

ROUNDS, ENOUGH, DEADLINE = 5, 2, 90
RESULTS = Path(__file__).parent / "results"
_LIMIT = 900.0  # seconds for a study to end
_WRONG_CLOCK = 600  # seconds
_PAUSE = 20.0  # seconds between two kills of the loop
_EXECUTOR = r"-m silos\.\S*executor"

_SHIFT = f"""\
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t which, struct timespec *t) {{
    int code = syscall(SYS_clock_gettime, which, t);
    if (which == CLOCK_REALTIME) t->tv_sec += {_WRONG_CLOCK};
    return code;
}}
time_t time(time_t *t) {{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (t) *t = now.tv_sec;
    return now.tv_sec;
}}
"""  # loaded before the C library, it makes the clock wrong for one hospital's processes


class Skip(Exception):  # noqa: N818 - says what to do
    """This machine cannot show it."""


@dataclass(frozen=True)
class Said:
    """A message that must appear.

    Attributes:
        side: On whose: "coordinator" or "hospital"; "script" of what was done.
        where: A log, or a command.
        pattern: What is looked for in it.
    """

    side: str
    where: str
    pattern: str


@dataclass
class Row:
    """What came of a scenario: a line of the table."""

    scenario: str
    struck: str
    rounds: str = ""
    excluded: str = ""
    seconds: str = ""
    undisturbed: str = ""
    ledgers: str = ""
    counted_twice: str = ""
    model: str = ""
    message: str = ""
    broken: str = ""


class Trial(Federation):
    """A federation that was set up, in a folder of its own, and what is done to it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, sorted(folder.glob("hospitals/*/site.toml")))
        self.outputs: dict[str, str] = {}
        self.undo = contextlib.ExitStack()
        self.wait_for_all = True
        self.environment: dict[str, str] = {}  # of the struck hospital's processes

    def start(self, name: str) -> None:
        """Start a service."""
        with mock.patch.dict(os.environ, self.environment if name == STRUCK else {}):
            super().start(name)

    def wait_for_nodes(self, names: Sequence[str], seconds: float = _LIMIT) -> None:
        """Wait until these hospitals say that they are connected."""
        logs = {name: self.folder / "logs" / f"{name}.log" for name in names}
        if not self.wait(lambda: all("connected to the coord" in log.read_text() for log in logs.values()), seconds):
            raise SystemExit(f"not connected after {seconds:g} s; see {self.folder / 'logs'}")

    @property
    def work(self) -> Path:
        """The work folder of the hospital that is struck."""
        return Site.load(self.sites[STRUCK]).run.work

    def pids(self, pattern: str, folder: Path) -> list[int]:
        """The processes with such a command line that belong to a folder."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                known = f"{words} {(entry / 'environ').read_bytes().decode(errors='replace')}"
                mine = re.search(rf"{re.escape(str(folder))}(?![\w-])", known) and int(entry.name) != os.getpid()
                if mine and re.search(pattern, words):
                    found.append(int(entry.name))
        return found

    def hit(self, pattern: str, folder: Path, number: int = signal.SIGKILL) -> None:
        """Send a signal to processes; there must be some."""
        pids = self.pids(pattern, folder)
        assert pids, f"no process {pattern!r} of {folder}"
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def hit_all(self, name: str) -> None:
        """Kill all processes of a party, the one that would start the others again first."""
        self.services[name].kill()
        self.hit("", self.home if name == "aggregator" else self.sites[name].parent)
        self.services.pop(name).wait()

    def hear(self, party: str, *words: object) -> None:
        """Keep what a command says, whatever its exit code."""
        done = subprocess.run(program(party, *words), capture_output=True, text=True, timeout=300, check=False)
        text = re.sub(r"\s+", " ", re.sub("[─-╿]", " ", done.stdout + done.stderr))
        self.outputs[str(words[0])] = self.outputs.get(str(words[0]), "") + text + "\n"

    def history(self) -> History:
        """The study so far."""
        return read_study(self.study)[1]

    def wait(self, done: Callable[[], Any], seconds: float, pause: float = 0.1) -> bool:
        """Wait until something is so; whether it came to be."""
        end = time.monotonic() + seconds
        while not done():
            if time.monotonic() > end:
                return False
            time.sleep(pause)
        return True

    def in_round(self, number: int) -> bool:
        """Whether a round is at work: its orders are out, and not all answers are in."""
        ledger = read(self.study / "ledger")
        sent = [r.round for r in ledger.records if r.event == Event.ORDER_OFFERED]
        return number in sent and len(self.history().rounds) == number

    def working(self) -> bool:
        """Whether the struck hospital has an order and works on it."""
        try:
            return '"pulled"' in (self.work / "journal").read_text()
        except FileNotFoundError:
            return False

    def said(self, item: Said) -> str:
        """The place where a message stands, shortened; empty if it does not."""
        log = {"log": self.folder / "logs" / f"{STRUCK if item.side == 'hospital' else 'aggregator'}.log"}
        text = log[item.where].read_text() if item.where in log else self.outputs.get(item.where, "")
        found = [found[0] for found in re.finditer(item.pattern, text)]
        return re.sub(r"\S*/(?=\S)", "", found[-1]).strip() if found else ""


Strike = Callable[[Trial], Iterator[None]]


@dataclass(frozen=True)
class Scenario:
    """A way to strike.

    Attributes:
        name: For `--only`.
        title: For people.
        strike: What is done.
        said: What must be told, and on which side.
        spares: Whether no hospital may be excluded from any round.
        one: Whether it strikes one hospital, so that the others must be in every round.
        round: In the middle of which round it strikes first.
    """

    name: str
    title: str
    strike: Strike
    said: Sequence[Said]
    spares: bool = False
    one: bool = True
    round: int = 2


SCENARIOS: dict[str, Scenario] = {}


def scenario(
    title: str, *said: Said, spares: bool = False, one: bool = True, round_: int = 2
) -> Callable[[Strike], Strike]:
    """Put a function on the list."""

    def listed(strike: Strike) -> Strike:
        name = strike.__name__.replace("_", "-")
        SCENARIOS[name] = Scenario(name, title, strike, said, spares, one, round_)
        return strike

    return listed


def there(pattern: str, where: str = "log") -> Said:
    """Said at the struck hospital."""
    return Said("hospital", where, pattern)


def here(pattern: str, where: str = "log") -> Said:
    """Said at the coordinator's."""
    return Said("coordinator", where, pattern)


def shown(code: str) -> Said:
    """Said of the struck hospital by `intramural-aggregator show`."""
    return here(f'"{STRUCK}": "{code}"', "show")


# Killed, with SIGKILL.


@scenario(
    "one silo's executor",
    there(r"executor ended \(signal 9\).*"),
    there("an order was left unfinished; it is taken up again"),
    spares=True,
)
def executor(trial: Trial) -> Iterator[None]:
    """The journal has the order; the next executor takes it up."""
    yield
    trial.hit(_EXECUTOR, trial.sites[STRUCK].parent)


@scenario("one SuperNode", there(r"supernode ended \(signal 9\).*"))
def supernode(trial: Trial) -> Iterator[None]:
    """The coordinator counts it as connected for a minute, and asks it again when it is back."""
    yield
    trial.hit("flower-supernode", trial.sites[STRUCK].parent)


@scenario("the SuperLink", here(r"superlink ended \(signal 9\).*"), one=False)
def superlink(trial: Trial) -> Iterator[None]:
    """Its database has what was on its way."""
    yield
    trial.hit("flower-superlink", trial.home)


@scenario("the ServerApp", here(r"study \w+: started again"), one=False)
def serverapp(trial: Trial) -> Iterator[None]:
    """The service sees that nobody works on the study."""
    yield
    trial.hit(r"flwr-serverapp --", trial.home)


@scenario("flower-superexec", here(r"superexec ended \(signal 9\).*"), one=False)
def superexec(trial: Trial) -> Iterator[None]:
    """What starts the ServerApp."""
    yield
    trial.hit("flower-superexec", trial.home)


@scenario("the front door", here(r"door ended \(signal 9\).*"), spares=True)
def door(trial: Trial) -> Iterator[None]:
    """Hospitals knock again."""
    yield
    trial.hit(r"models\.exchange\.door", trial.home)


@scenario("the whole aggregator, started again", here(r"study \w+: started again"), one=False)
def aggregator(trial: Trial) -> Iterator[None]:
    """Nobody types `run` again."""
    yield
    trial.hit_all("aggregator")
    trial.start("aggregator")


@scenario(
    "one whole hospital, started again after 10 s",
    there("an order was left unfinished, and the SuperNode that gave it is gone"),
)
def hospital(trial: Trial) -> Iterator[None]:
    """As in a power cut."""
    yield
    trial.hit_all(STRUCK)
    time.sleep(10)
    trial.start(STRUCK)


@scenario("a hospital's supervisor, started again at once", there(r"connected to the coordinator as node.*"))
def supervisor(trial: Trial) -> Iterator[None]:
    """None of its processes may be left behind to stand in the way of the new ones."""
    yield
    trial.services[STRUCK].kill()
    trial.services.pop(STRUCK).wait()
    trial.start(STRUCK)


@scenario(
    f"one process or a whole party every {_PAUSE:g} s, drawn from all, from round 1 on for up to {_LIMIT / 60:g} min",
    Said("script", "killed", "[1-9].*"),
    one=False,
    round_=1,
)
def kill_loop(trial: Trial) -> Iterator[None]:
    """The next comes before everything has recovered from the last; a whole party is started again at once."""
    folders = {name: site.parent for name, site in trial.sites.items()}
    targets = {
        **{f"{name}'s executor": (_EXECUTOR, folder) for name, folder in folders.items()},
        **{f"{name}'s SuperNode": ("flower-supernode", folder) for name, folder in folders.items()},
        "SuperLink": ("flower-superlink", trial.home),
        "ServerApp": ("flwr-serverapp --", trial.home),
        **{f"all of {name}": ("", folder) for name, folder in {**folders, "aggregator": trial.home}.items()},
    }
    draw, killed = random.Random(1), Counter[str]()  # noqa: S311 - the same draws each time
    deck: list[str] = []
    yield
    end = time.monotonic() + _LIMIT
    while time.monotonic() < end:
        there = [name for name in deck if trial.pids(*targets[name])]
        if not there:  # each once, before any comes twice
            deck = draw.sample(list(targets), len(targets))
            continue
        name = there[0]
        deck.remove(name)
        party = name.removeprefix("all of ")
        if party == name:
            trial.hit(*targets[name])
        else:
            trial.hit_all(party)
            trial.start(party)
        killed[name] += 1
        if trial.wait(lambda: trial.history().closed, _PAUSE, 1):
            break
    times = ", ".join(f"{name} {count}" for name, count in sorted(killed.items()))
    trial.outputs["killed"] = f"{killed.total()} kills: {times}"


# A hospital's bad day.


@scenario("a hospital's executor stands still longer than the deadline", shown("executor-stopped"))
def slow(trial: Trial) -> Iterator[None]:
    """SIGSTOP and SIGCONT; its SuperNode says so after a minute, and its answer comes too late."""
    yield
    folder, pattern = trial.sites[STRUCK].parent, r"-m silos\.\S*executor"
    trial.hit(pattern, folder, signal.SIGSTOP)
    time.sleep(DEADLINE + 15)
    trial.hit(pattern, folder, signal.SIGCONT)


@scenario("a hospital goes away for good", shown("silent"))
def gone(trial: Trial) -> Iterator[None]:
    """The others wait for it once."""
    yield
    trial.hit_all(STRUCK)


@scenario(
    "a hospital's disk is full",
    there(r"[^\n]*No space left on device[^\n]*"),
    shown("ledger-not-appended"),
)
def disk_full(trial: Trial) -> Iterator[None]:
    """What cannot be written down does not leave."""
    work, draft = trial.work, trial.work.with_name("kept")
    work.rename(draft)
    work.mkdir()
    mount = ["/usr/bin/env", "mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", work]
    mounted = subprocess.run(mount, capture_output=True, check=False)
    if mounted.returncode:
        raise Skip("mount: not allowed here")
    trial.undo.callback(subprocess.run, ["/usr/bin/env", "umount", "-l", work], check=True)
    shutil.copytree(draft, work, dirs_exist_ok=True)
    yield
    with contextlib.suppress(OSError), (work / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))


_AHEAD = rf"{_WRONG_CLOCK // 10}\d s ahead of the coordinator's"


@scenario(
    f"a hospital's clock is {_WRONG_CLOCK // 60} minutes ahead",
    there(rf"not connected: clock: {_AHEAD}[^|\n]*"),
    there(rf"PROBLEM clock {_AHEAD}", "check"),
)
def clock(trial: Trial) -> Iterator[None]:
    """Its signatures are of the future."""
    folder = trial.folder / "clock"
    folder.mkdir()
    (folder / "clock.c").write_text(_SHIFT)
    compiler = shutil.which("cc")
    if compiler is None:
        raise Skip("cc, a C compiler, is needed")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "clock.so", folder / "clock.c"], check=True)
    trial.environment = {"LD_PRELOAD": str(folder / "clock.so")}
    trial.wait_for_all = False
    yield
    with mock.patch.dict(os.environ, trial.environment):
        trial.hear("silo", "check", trial.sites[STRUCK])


@scenario(
    "a hospital has another node key than it was admitted with",
    there(r"not connected: admission: not admitted[^\n]*"),
    there("PROBLEM admission not admitted", "check"),
)
def wrong_key(trial: Trial) -> Iterator[None]:
    """It made a new one and told nobody."""
    for path in [*(trial.work / "node").glob("node.*"), *trial.work.glob("*.enrolment.json")]:
        path.unlink()
    trial.ask("silo", "join", trial.sites[STRUCK])
    trial.wait_for_all = False
    yield
    trial.hear("silo", "check", trial.sites[STRUCK])


@scenario(
    "a hospital is dismissed in the middle of the study",
    here(r"node \d+ is dismissed"),
    there(r"not connected: admission: not admitted[^\n]*"),
)
def dismissed(trial: Trial) -> Iterator[None]:
    """It is let in no more."""
    yield
    trial.ask("aggregator", "dismiss", trial.home, STRUCK)


@scenario(
    "the server's certificate expires, and is renewed",
    here(r"[^\n]*server\.crt: expire[^\n]*"),
    there(r"not connected: TLS: [^\n]*expired[^\n]*"),
    there("PROBLEM TLS .{0,40}certificate has expired", "check"),
    here(r"error: .*server\.crt: expired on [\d-]+ +do: run: intramural-aggregator init [^\n]* --renew", "serve"),
    one=False,
)
def certificate(trial: Trial) -> Iterator[None]:
    """Nobody gets in until the coordinator renews it; then all goes on."""
    yield
    with mock.patch.object(certificates, "LIFETIME", timedelta(seconds=20)):
        Home.renew(trial.home)
    trial.stop("aggregator")
    trial.start("aggregator")
    time.sleep(30)
    trial.wait(lambda: trial.said(SCENARIOS["certificate"].said[1]), 120, 1)
    trial.hear("silo", "check", trial.sites[STRUCK])
    trial.stop("aggregator")
    trial.hear("aggregator", "serve", trial.home)
    trial.ask("aggregator", "init", trial.home, "--renew")
    trial.start("aggregator")


@scenario("a hospital did not approve the study", there(".*refused: study-not-approved"), shown("study-not-approved"))
def unapproved(trial: Trial) -> Iterator[None]:
    """It says no by itself."""
    for name in ("ledger", "approvals"):
        shutil.rmtree(trial.work / name, ignore_errors=True)
    yield


@scenario("a hospital revokes the study in the middle", there(".*refused: study-revoked"), shown("study-revoked"))
def revoked(trial: Trial) -> Iterator[None]:
    """Its yes is taken back with one command."""
    yield
    trial.ask("silo", "revoke", trial.sites[STRUCK], "failures")


def set_up(folder: Path, patients: int = 20, images: int = 6, epochs: int = 5) -> None:
    """The federation that every scenario starts from, before its first process is started.

    Args:
        folder: New.
        patients: Of each hospital.
        images: Of each patient.
        epochs: Of each round.
    """
    plan = folder / "plan.toml"
    plan.parent.mkdir(parents=True)
    shutil.copy(PLAN, plan)
    for key, value in (
        ("name", '"failures"'),
        ("rounds", ROUNDS),
        ("min_silos", ENOUGH),
        ("deadline", DEADLINE),
        ("epochs", epochs),
    ):
        replace(plan, rf"(?m)^{key} = \S+", f"{key} = {value}")
    sites = [
        write_hospital(
            folder / "hospitals" / name, name=name, seed=1, style=style, patients=patients, images=images, studies=[]
        )
        for style, name in enumerate(NAMES)
    ]
    with Federation(folder, sites) as federation:
        federation.set_up(plan)


def perform(template: Path, folder: Path, planned: Scenario | None, row: Row) -> str:
    """One study, struck or not, and what came of it; returns the digest of its last model."""
    shutil.copytree(template, folder, symlinks=True)
    with Trial(folder) as trial, trial.undo:
        strike = planned.strike(trial) if planned else iter([None])
        next(strike)
        trial.start("aggregator")
        trial.wait(lambda: len(Home.open(trial.home).nodes()) == len(NAMES), _LIMIT)
        for name in NAMES:
            trial.start(name)
        trial.wait_for_nodes([name for name in NAMES if trial.wait_for_all or name != STRUCK])
        started = time.monotonic()
        trial.ask("aggregator", "run", trial.study, "--service", trial.home, "--detach")
        first = planned.round if planned else 2
        if not trial.wait(lambda: trial.in_round(first) and (trial.working() or not trial.wait_for_all), _LIMIT, 0.02):
            row.broken = f"round {first} never began"
        next(strike, None)
        if not trial.wait(lambda: trial.history().closed, _LIMIT):
            row.broken = f"not over after {_LIMIT:g} s"
        row.seconds = f"{time.monotonic() - started:.0f}"
        if planned:
            trial.hear("aggregator", "show", trial.study, "--json")
            trial.wait(lambda: all(map(trial.said, planned.said)), 90, 1)
            quoted = [(item, trial.said(item)) for item in planned.said]
            row.message = " / ".join(f"{item.side}: {text[:300]}" for item, text in quoted if text)
            missing = [f"{item.side} does not say {item.pattern!r}" for item, text in quoted if not text]
            row.broken = "; ".join(filter(None, [row.broken, *missing]))
        for name in list(trial.services)[::-1]:
            trial.stop(name)
        judge(trial, row)
    return trial.history().rounds[-1].model


def judge(trial: Trial, row: Row) -> None:
    """What the ledgers say, all services being stopped."""
    records = read(trial.study / "ledger").records
    ends = [r for r in records if r.event in (Event.AGGREGATED, Event.ROUND_VOID)]
    problems = [row.broken] if row.broken else []
    if [r.round for r in ends] != list(range(1, ROUNDS + 1)):
        problems.append(f"the rounds that ended are {[r.round for r in ends]}")
    void = sum(r.event == Event.ROUND_VOID for r in ends)
    row.rounds = f"{len(ends) - void} combined, {void} void"
    absent: dict[str, list[str]] = {}
    for record in ends:
        for name in record.body["excluded"]:
            absent.setdefault(name, []).append(str(record.round))
    row.excluded = ", ".join(f"{name} in {' '.join(numbers)}" for name, numbers in absent.items()) or "nobody"
    twice = counted_twice(records)
    row.counted_twice = ", ".join(twice) or "no"
    waiting: dict[str, int] = {}
    disputes = list(disagreements(trial, waiting))
    open_ = ", ".join(f"{count} with {name}" for name, count in waiting.items() if count)
    row.ledgers = "; ".join(disputes) or (f"agree; pending: {open_}" if open_ else "agree")
    row.broken = "; ".join([*problems, *twice, *disputes])


def counted_twice(records: Iterable[Any]) -> list[str]:
    """The rounds in which a hospital or an update stands more than once, and updates of two rounds."""
    found, seen = [], set()
    for record in records:
        if record.event != Event.AGGREGATED:
            continue
        silos = [item["silo"] for item in record.body["inputs"]]
        xids = [item["xid"] for item in record.body["inputs"]]
        if len(set(silos)) < len(silos) or len(set(xids)) < len(xids) or seen & set(xids):
            found.append(f"round {record.round} counts an update twice")
        seen |= set(xids)
    return found


def disagreements(trial: Trial, waiting: dict[str, int]) -> Iterator[str]:
    """What is wrong in any ledger, or between the coordinator's and a hospital's.

    Args:
        trial: All its services are stopped.
        waiting: Is told how many exchanges with each hospital both sides mark as pending.
    """
    ours = trial.study / "ledger"
    ledgers = [ours, *(Site.load(site).run.work / "ledger" for site in trial.sites.values())]
    for ledger in ledgers:
        if ledger.exists():
            yield from verify(ledger).problems
    for ledger in ledgers[1:]:
        if ledger.exists():
            try:
                pair = reconcile(ours, ledger)
                waiting[pair.silo] = len(pair.pending)
                yield from pair.problems
                lines = [*read(ours).records, *read(ledger).records]
                receipts = {record.body["xid"] for record in lines if record.event == Event.EXCHANGE_RECEIPT}
                yield from (f"{x[:16]} is pending, but there is a receipt" for x in pair.pending if x in receipts)
            except IntramuralError as error:
                yield str(error)


def compare(row: Row, planned: Scenario, model: str, expected: str) -> None:
    """Whether the model is the one that the design promises."""
    complete = row.excluded == "nobody" and " 0 void" in row.rounds
    row.model = "same" if model == expected else "another"
    others = [name for name in NAMES if name != STRUCK and re.search(rf"\b{name}\b", row.excluded)]
    if complete and model != expected:
        row.broken += "; nobody was excluded, and the model is another"
    if planned.spares and not complete:
        row.broken += "; somebody was excluded"
    if others and planned.one:
        row.broken += "; another hospital was excluded"
    row.broken = row.broken.strip("; ")


def publish(new: dict[str, Row], results: Path) -> None:
    """Write the table, as Markdown and as CSV; rows of earlier runs stay."""
    rows = known_rows(results) | new
    order = ["undisturbed", *SCENARIOS]
    ordered = sorted(rows.values(), key=lambda row: order.index(row.scenario))
    columns = [field.name for field in fields(Row)]
    results.mkdir(exist_ok=True)
    with (results / "failures.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(map(asdict, ordered))
    heads = ("struck", "rounds", "excluded", "seconds (undisturbed)", "ledgers", "counted twice", "model")
    heads += ("what is said", "broken")
    lines = [
        "# What a study survives",
        "",
        "Written by `python scripts/failures.py`, which says what is measured: three hospitals, five rounds, real "
        f"processes, TLS; a round waits at most {DEADLINE} s and needs {ENOUGH} hospitals. Struck in the middle of "
        "round 2.",
        "",
        f"| {' | '.join(heads)} |",
        f"|{'---|' * len(heads)}",
    ]
    for row in ordered:
        cells = (row.struck, row.rounds, row.excluded, f"{row.seconds} ({row.undisturbed})", row.ledgers)
        cells += (row.counted_twice, row.model, row.message, row.broken or "-")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    disk.publish(results / "failures.md", ("\n".join(lines) + "\n").encode())


def known_rows(results: Path) -> dict[str, Row]:
    """The rows of earlier runs."""
    path = results / "failures.csv"
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = [Row(**line) for line in csv.DictReader(file)]
    return {row.scenario: row for row in rows if row.scenario in SCENARIOS}


def main(argv: Sequence[str] | None = None) -> int:
    """Strike, and write down what happened."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SCENARIOS), default=list(SCENARIOS), metavar="NAME")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the table")
    parser.add_argument("--work", type=Path, help="a new folder, which is kept; by default a temporary one")
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.ExitStack() as stack:
        work = options.work.resolve() if options.work else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if options.work and work.exists():
            print(f"error: {work}: exists already; remove it, or choose another --work", file=sys.stderr)
            return FAILED
        template = work / "template"
        set_up(template)
        calm = Row("undisturbed", "nothing", model="same")
        expected = perform(template, work / "undisturbed", None, calm)
        calm.undisturbed = calm.seconds
        print(calm, flush=True)
        rows = {"undisturbed": calm}
        broken = bool(calm.broken)
        for name in options.only:
            planned = SCENARIOS[name]
            row = rows[name] = Row(name, planned.title, undisturbed=calm.seconds)
            try:
                compare(row, planned, perform(template, work / name, planned, row), expected)
            except Skip as reason:
                row.message = f"not shown: {reason}"
            except (SystemExit, Exception) as error:
                row.broken = f"the scenario ended early: {type(error).__name__}: {str(error)[:300]}"
            print(row, flush=True)
            publish(rows, options.results)
            broken |= bool(row.broken)
    columns = ("struck", "rounds", "excluded", "seconds", "ledgers", "model", "broken")
    cells = [(r.struck, r.rounds, r.excluded, r.seconds, r.ledgers, r.model, r.broken) for r in rows.values()]
    show_table(f"undisturbed: {calm.seconds} s", columns, cells)
    return FAILED if broken else OK


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main())
