"""The runs of a sweep: each arm with each seed, as a real study with ledgers on both sides.

    OUT/runs/fedprox-mu=0.01/seed-2/
      plan.toml         the arm's study
      study/            its study folder
      hospitals/NAME/   each hospital's ledger and work of this run

A ledger has one writer, so every run has hospitals of its own; their images, index and image cache are those of the
hospitals that the sweep names, shared by all. A run that is over is not run again, and one that was killed goes on.
"""

import contextlib
import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from glob import escape
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory

from aggregator.history import History, read_study
from aggregator.hospitals import hospital_side
from aggregator.local import LocalGrid
from aggregator.simulation import Simulation, made_with, require_made_with, simulate
from aggregator.study import initial_model
from aggregator.sweep.arms import Arm
from models.console import Report
from models.errors import ConfigError, IntramuralError
from models.faults import AnyFault, require_known
from models.ledger.disk import publish
from models.plan import Plan

_LOOK = 0.5  # seconds between two looks at how far runs are


@dataclass(frozen=True, eq=False)
class Run:
    """One arm with one seed.

    Attributes:
        arm: What is run.
        seed: With which seed.
        folder: Where.
        sites: `site.toml` of each hospital.
        faults: What goes wrong in them.
        batched: Whether their training is one computation.
    """

    arm: Arm
    seed: int
    folder: Path
    sites: tuple[Path, ...]
    faults: tuple[AnyFault, ...] = ()
    batched: bool = False

    @property
    def study(self) -> Path:
        """Its study folder."""
        return self.folder / "study"

    @property
    def plan(self) -> Plan:
        """Its plan."""
        return Plan.parse({**self.arm.content, "seed": self.seed}, source=self.arm.label)

    def history(self) -> History | None:
        """What happened, once it is over.

        Raises:
            ConfigError: The folder holds a run of another plan, or with other sites or faults.
        """
        if not (self.study / "agreement.json").is_file():
            return None
        agreement, history = read_study(self.study)
        if agreement.plan != self.plan:
            raise ConfigError(
                f"{self.folder}: holds a run of another plan: the study or the sweep was changed since",
                "sweep into another folder, or delete that run",
            )
        require_made_with(self.folder, made_with(self.sites, self.faults, batched=self.batched))
        return history if history.closed else None

    @property
    def rounds_done(self) -> int:
        """How many rounds are over; cheap."""
        try:
            return max(0, (self.study / "metrics.jsonl").read_bytes().count(b"\n") - 1)
        except OSError:
            return 0


def require_possible(runs: Sequence[Run], source: Path) -> None:
    """See that runs can begin before the first does: their hospitals are opened once, and each network is built once.

    Args:
        runs: Of one sweep.
        source: Its file, for errors.

    Raises:
        ConfigError: A fault names no hospital; or an arm's network cannot be built, its training not be batched, or its
            `min_silos` not be reached.
        IntramuralError: A hospital cannot be opened.
    """
    if not runs:
        return
    derive, built = hospital_side("derive"), []
    with TemporaryDirectory() as place:
        sites = [derive(site, Path(place)) for site in runs[0].sites]
        with LocalGrid(sites, batched=runs[0].batched) as grid:
            silos = {silo.name for silo in grid.roster.values()}
            with _named(source):
                require_known(runs[0].faults, silos)
            for arm, plan in {run.arm: run.plan for run in runs}.items():
                where = f"{source}: arms: {arm.label}"
                if plan.min_silos > len(silos):
                    raise ConfigError(
                        f"{where}: min_silos: {plan.min_silos} are required, `sites` has {len(silos)}",
                        "name more sites, or lower it",
                    )
                network = plan.task, plan.strategy.steps, plan.strategy.local_norm
                if network not in built:
                    initial_model(plan, where)
                    built.append(network)
                with _named(where):
                    grid.require(plan)


@contextlib.contextmanager
def _named(where: Path | str) -> Iterator[None]:
    """Say of an error where it is."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}", error.hint) from error


def carry_out(run: Run) -> None:
    """Run one to its end, or go on with it.

    Raises:
        IntramuralError: Whatever stops a study.
    """
    plan = run.folder / "plan.toml"
    if not (run.study / "agreement.json").is_file():
        run.folder.mkdir(parents=True, exist_ok=True)
        publish(plan, run.arm.toml(run.seed))
    sites = [Path(escape(str(site))) for site in run.sites]
    faults, batched = list(run.faults), run.batched
    simulate(Simulation(study=plan, sites=sites, folder=run.folder, faults=faults, batched=batched))


def carry_out_all(
    runs: Sequence[Run], processes: int, ended: Callable[[Run, str], None], progress: Report | None = None
) -> None:
    """Carry runs out, so many at a time, each in a process with one thread; one that fails does not stop the others.

    Args:
        runs: Those that are not over.
        processes: How many at a time.
        ended: Called when a run is over, with what went wrong ("" if nothing did).
        progress: Told how many rounds of all are over.
    """
    if not runs:
        return
    whole, before = sum(run.plan.rounds for run in runs), 0

    def look() -> None:
        nonlocal before
        if progress and (over := sum(run.rounds_done for run in runs)) != before:
            progress("rounds", over, whole)
            before = over

    # A process that is killed takes its whole pool with it, and nobody says whose it was: then each goes on by itself.
    for run in _carry_out(runs, min(processes, len(runs)), ended, look):
        if _carry_out([run], 1, ended, look):
            ended(run, "its process was killed (short of memory?)")


def _carry_out(
    runs: Sequence[Run], processes: int, ended: Callable[[Run, str], None], look: Callable[[], None]
) -> list[Run]:
    """Carry runs out in one pool of processes; those that were not over when one of its processes was killed."""
    context, left = multiprocessing.get_context("spawn"), list(runs)
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_begin) as pool:
        try:
            waiting = {pool.submit(_guarded, run): run for run in runs}
            while waiting:
                done, _ = wait(waiting, timeout=_LOOK, return_when=FIRST_COMPLETED)
                for future in done:
                    run = waiting.pop(future)
                    with contextlib.suppress(BrokenProcessPool):
                        ended(run, future.result())
                        left.remove(run)
                look()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise
    return left


def _begin() -> None:
    """In a new process: one thread, no talk, and an end with the process that began it."""
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in ("flwr", "intramural"):
        logging.getLogger(name).setLevel(logging.ERROR)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _guarded(run: Run) -> str:
    """Carry a run out; what went wrong, as text, because not every exception can be handed to another process."""
    try:
        carry_out(run)
    except IntramuralError as error:
        return f"{error} ({error.hint})" if error.hint else str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""
