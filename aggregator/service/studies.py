"""Studies over the network, as a coordinator asks for them: start, follow, stop, and how they stand.

A study that was started is on the service's list until it is over or stopped; the service sees to the
rest. Everything told here is read from the study's own ledger.
"""

import contextlib
import logging
import time
from pathlib import Path
from typing import Any

from aggregator.history import read_study
from aggregator.service import runs
from aggregator.service.home import Home
from aggregator.service.runs import Entry
from aggregator.service.serve import require_service
from aggregator.service.superlink import Node, SuperLink
from models.console import Report
from models.errors import ConfigError, IntramuralError
from models.ledger import disk

log = logging.getLogger("intramural.service")

_LOOK = 0.5  # seconds between two looks


def start(home: Home, folder: Path, *, survey: bool = False, end: bool = False) -> None:
    """Put a study on the service's list.

    Args:
        home: The service folder.
        folder: The study's.
        survey: Only to survey its hospitals.
        end: Only to close it, with the model that it has.

    Raises:
        ConfigError: The service does not run, the study's orders are signed with another key than its, or the
            study is at work already on something else.
    """
    require_service(home)
    agreement, history = read_study(folder)
    if agreement.coordinator_key != home.signer.vkey:
        raise ConfigError(
            f"{folder}: its orders are signed with another key than the service's, which hospitals would refuse",
            f"create the study with --service {home.folder}",
        )
    if history.closed:
        log.warning("%s: the study is over; nothing was run but to take leave of hospitals that went without", folder)
    if not (history.closed and survey):
        runs.want(home, agreement.study, folder, survey=survey, end=end and not history.closed)


def follow(home: Home, folder: Path, report: Report) -> None:
    """Wait until a study is closed, telling of each round.

    Raises:
        ConfigError: It was stopped, or cannot go on.
    """
    while True:
        agreement, history = read_study(folder)
        report("rounds", len(history.rounds) - 1, agreement.plan.rounds)
        if history.closed and not _at_work(folder):
            return
        if not history.closed and agreement.study not in runs.wanted(home):
            entry = runs.studies(home).get(agreement.study)
            problem, hint = (entry and entry.problem) or ("it was stopped", "start it again with `run`")
            raise ConfigError(f"{folder}: the study does not run: {problem}", hint)
        time.sleep(_LOOK)


def follow_survey(home: Home, folder: Path) -> None:
    """Wait until a study's hospitals were surveyed.

    Raises:
        ConfigError: They cannot be.
    """
    study = read_study(folder)[0].study
    while study in runs.wanted(home):
        time.sleep(_LOOK)
    entry = runs.studies(home).get(study)
    if entry and entry.problem:
        problem, hint = entry.problem
        raise ConfigError(f"{folder}: the survey does not run: {problem}", hint)


def stop(home: Home, folder: Path) -> dict[str, Any]:
    """Take a study off the list, and end what works on it. What it has stays as it is.

    Returns:
        How it stands, as JSON values.

    Raises:
        ConfigError: It was never started here.
    """
    agreement, _ = read_study(folder)
    entry = runs.studies(home).get(agreement.study)
    if entry is None:
        raise ConfigError(f"{folder}: is no study of this service", f"see: intramural-aggregator status {home.folder}")
    runs.unwant(home, agreement.study)
    if entry.wanted and entry.run_id is not None:
        SuperLink(home).end(entry.run_id)
    return _study(runs.studies(home)[agreement.study])


def status(home: Home) -> dict[str, Any]:
    """Every admitted hospital and every study on the list, as JSON values."""
    serving = disk.is_locked(home.serving)
    live: dict[int, Node] = {}
    if serving:
        with contextlib.suppress(IntramuralError):  # it may be starting
            live = SuperLink(home).nodes()
    nodes = home.nodes()
    unknown = Node("unknown", "")
    hospitals = [
        {"name": name, "node": str(nodes.get(name, "")), **vars(live.get(nodes.get(name, 0), unknown))}
        for name in home.hospitals()
    ]
    return {
        "serving": serving,
        "hospitals": hospitals,
        "studies": [_study_or_problem(study, entry) for study, entry in runs.studies(home).items()],
    }


def _at_work(folder: Path) -> bool:
    """Whether a process works on a study; one that is closed still takes leave of its hospitals."""
    return disk.is_locked(folder / "ledger" / "lock")


def _study_or_problem(study: str, entry: Entry) -> dict[str, Any]:
    try:
        return _study(entry)
    except IntramuralError as error:  # a folder that was moved or damaged hides none of the others
        row = {"name": entry.folder.name, "study": study, "folder": str(entry.folder), "state": "unreadable"}
        return {**row, "round": 0, "rounds": 0, "accepted": [], "refused": {}, "bytes": 0, "problem": str(error)}


def _study(entry: Entry) -> dict[str, Any]:
    agreement, history = read_study(entry.folder)
    last = history.rounds[-1]
    if history.closed:
        state = "closed"
    elif not entry.wanted:
        state = "stopped"
    else:
        state = "running" if _at_work(entry.folder) else "starting"
    return {
        "name": agreement.plan.name,
        "study": agreement.study,
        "folder": str(entry.folder),
        "state": state,
        "round": last.number,
        "rounds": agreement.plan.rounds,
        "accepted": last.accepted,
        "refused": last.refused,
        "bytes": sum(item.nbytes for item in history.rounds),
        "problem": entry.problem[0] if entry.problem else "",
    }
