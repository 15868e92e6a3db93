"""The hospital's service: the SuperNode, the executor, and what keeps them at it until the service is stopped.

    run_service(Path("site.toml"), stop_signal())

What is killed is started again. A SuperNode that waits in vain is started anew. When the service is told to
stop, the order in work has a few seconds to end, and is in the journal otherwise; when the service itself is
killed, its processes end too. How it is, stands in `health.json` in the work folder, for whoever watches: no
more than numbers, times and words from a fixed list.
"""

import json
import logging
import os
import signal
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from models.console import FAILED, OK, UNVERIFIED
from models.errors import ConfigError
from models.ledger import disk
from models.processes import Process, Supervisor
from silos.config import Site
from silos.network import enrolment
from silos.network.connection import check_connection
from silos.service.journal import RESTART_NODE, STATUS, put_json
from silos.service.node import FORWARDER, SUPERNODE, Link, Node

log = logging.getLogger("intramural.service")

HEALTH = "health.json"
"""In the work folder: how the service is, written again every few seconds."""

EXECUTOR = "executor"

_TICK = 0.5  # seconds between two looks
_PULSE = 5.0  # seconds between two writings of the health file
_STUCK = 90.0  # seconds that a SuperNode may have an order which the executor was not given
_STUBBORN = 15.0  # seconds that the SuperNode has to end when it must be started anew
_EXPLAIN = 300.0  # seconds between two explanations of why there is no connection


def run_service(path: Path, stopping: threading.Event, json_lines: bool = False) -> int:
    """Run a hospital's service until told to stop.

    Args:
        path: The hospital's `site.toml`.
        stopping: Set by a signal or another thread.
        json_lines: Have the executor log as JSON lines too.

    Returns:
        The exit code: 0, or the executor's if the hospital cannot even be opened.

    Raises:
        ConfigError: The hospital has not joined, names no coordinator, or lacks a file.
        Locked: Its service runs already.
    """
    site = Site.load(path)
    invitation = enrolment.invitation(site)
    enrolment.load_node_key(site)
    if site.run.certificate is not None:
        enrolment.load_client_key(site)
        if not site.run.certificate.is_file():
            hint = "put the certificate from the coordinator there"
            raise ConfigError(f"run.certificate: {site.run.certificate}: is missing", hint)
    lock = disk.lock(site.run.work / "service.lock")
    try:
        log.info("%s follows %s at %s", site.name, invitation.name, invitation.address)
        return _Service(path, site, Node(site, invitation), stopping, json_lines).run()
    finally:
        disk.unlock(lock)


class _Service:
    """One run of the service."""

    def __init__(self, path: Path, site: Site, node: Node, stopping: threading.Event, json_lines: bool) -> None:
        self._site, self._node, self._stopping = site, node, stopping
        self._status = site.run.work / STATUS
        self._opened = False  # whether the executor was ever ready
        self._last_order: float | None = None
        command = [sys.executable, "-m", "silos.service.executor", str(path), "--address", node.address]
        command += ["--secret", str(node.secret), *(["--log-json"] if json_lines else [])]
        command += ["--verbose"] if log.isEnabledFor(logging.DEBUG) else []
        executor = Process(EXECUTOR, command, on_exit=self._executor_ended)
        self._supervisor = Supervisor([*node.processes(), executor])
        self._code = OK
        self._link: Link | None = None
        self._explained = self._pulse = float("-inf")
        self._ending: tuple[int, float] | None = None  # the SuperNode that must end, and until when

    def run(self) -> int:
        self._status.unlink(missing_ok=True)
        try:
            with self._supervisor:
                while not self._stopping.wait(_TICK):
                    self._look()
                    self._supervisor.tend()
                log.info("stopping")
                self._write_health("stopping")
        finally:
            self._write_health("stopped")
        return self._code

    def _look(self) -> None:
        self._node.listen()
        if self._node.link is not self._link:
            self._link = self._node.link
            if self._link is Link.CONNECTED:
                log.info("connected to the coordinator as node %d", self._node.node_id)
                self._explained = float("-inf")
        now = time.monotonic()
        if self._link in (Link.REFUSED, Link.UNREACHABLE) and now - self._explained > _EXPLAIN:
            self._explained = now
            threading.Thread(target=_explain, args=(self._site,), name="explain", daemon=True).start()
        self._watch(now)
        if now - self._pulse > _PULSE:
            self._pulse = now
            self._write_health(self._state())

    def _watch(self, now: float) -> None:
        """See that no SuperNode waits for ever."""
        running = self._supervisor.running()
        status = self._executor_status()
        waited = time.time() - status.get("since", time.time()) if status.get("state") == "waiting" else 0.0
        busy = now - (self._node.busy_since or now)
        if self._ending is None and EXECUTOR in running and min(busy, waited) > _STUCK:
            log.error("the SuperNode has an order that nobody was given; it is started anew")
            self._end_node()
        if self._ending is None and self._node.dropped and status.get("state") == "receiving":
            log.warning("the run of an order is over, of which the rest will not come; the SuperNode is started anew")
            self._end_node()
        if self._ending is None and now - (self._node.refused_since or now) > _STUBBORN:
            # Refused in the middle, as by a certificate that has expired, it stops its work but not its process.
            log.warning("the SuperNode has given up; it is started anew")
            self._end_node()
        if self._ending:
            pid, until = self._ending
            if running.get(SUPERNODE) != pid:
                self._ending = None
            elif now > until:
                self._supervisor.restart(SUPERNODE)

    def _end_node(self) -> None:
        """End the SuperNode, which tells the coordinator; killed, it would be refused for a minute."""
        pid = self._supervisor.running().get(SUPERNODE)
        if pid is not None:
            os.kill(pid, signal.SIGTERM)
            self._ending = (pid, time.monotonic() + _STUBBORN)

    def _executor_ended(self, code: int) -> None:
        self._executor_status()
        self._status.unlink(missing_ok=True)
        if code == RESTART_NODE:
            self._end_node()
        elif code in (FAILED, UNVERIFIED) and not self._opened:
            log.error("this hospital cannot be opened; see the error above")
            self._code = code
            self._stopping.set()

    def _executor_status(self) -> dict[str, Any]:
        """What the executor says of itself; nothing until it is ready."""
        try:
            found: dict[str, Any] = json.loads(self._status.read_bytes())
        except FileNotFoundError:
            return {}
        self._opened, self._last_order = True, found["last_order"] or self._last_order
        return found

    def _state(self) -> str:
        """One word: how it stands with the coordinator, and if well, what is being done."""
        if self._link is not Link.CONNECTED:
            return str(self._node.link)
        return str(self._executor_status().get("state", "starting"))

    def _write_health(self, state: str) -> None:
        running, last = self._supervisor.running(), self._last_order
        health = {
            "time": _utc(time.time()),
            "state": state,
            SUPERNODE: running.get(SUPERNODE),
            EXECUTOR: running.get(EXECUTOR),
            "node_id": self._node.node_id,
            "last_order": None if last is None else _utc(last),
        }
        if self._site.run.certificate is not None:
            health[FORWARDER] = running.get(FORWARDER)
        try:
            put_json(self._site.run.work / HEALTH, health)
        except OSError as error:  # a full disk must not end the service: it goes on when there is space again
            log.error("%s: cannot be written: %s", self._site.run.work / HEALTH, error.strerror)


def _explain(site: Site) -> None:
    """Find out why there is no connection, and say what to do."""
    try:
        problems = [finding for finding in check_connection(site) if not finding.ok]
    except Exception as error:
        log.debug("the way to the coordinator could not be looked at", exc_info=error)
        return
    for problem in problems:
        log.warning("not connected: %s: %s%s", problem.what, problem.found, f" ({problem.fix})" if problem.fix else "")
    if not problems:
        log.warning("the coordinator still counts the old connection; trying again")


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
