"""The coordinator's service: its processes, and the two lists that it keeps true.

The commands of a coordinator only write into the service folder: who is admitted, which studies are to
run. This keeps the SuperLink as the folder says, so that each of them may be given at any time, and all is
as before when the machine was switched off in between.
"""

import logging
import shlex
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from aggregator.history import read_study
from aggregator.service import runs
from aggregator.service.home import Home
from aggregator.service.superlink import SuperLink, Unreachable
from models.errors import ConfigError, IntramuralError
from models.exchange import door
from models.exchange.door import Door
from models.ledger import disk
from models.processes import Process, Supervisor

log = logging.getLogger("intramural.service")

_TICK = 0.5  # seconds between two looks
_STARTS = 10.0  # seconds that a command waits for a service which is not there
_STARTING = 45.0  # seconds that a study's ServerApp has to open its study
_PAUSES = (0, 5, 15, 60)  # seconds before a study whose ServerApp ended is started again
_RENEW = timedelta(days=14)  # before the end of the service's certificate, from when on it is told
_REMIND = 86_400.0  # seconds between two reminders, but for the end itself


def serve(home: Home, stopping: threading.Event) -> None:
    """Run the service until told to stop.

    Args:
        home: The service folder.
        stopping: Set by another thread or a signal.

    Raises:
        Locked: The service of this folder runs already.
    """
    lock = disk.lock(home.serving)
    settings = home.settings
    link = SuperLink(home)
    front = Door(
        listen=settings.listen,
        upstream=f"https://{link.address}",
        certificate=home.server_certificate,
        key=home.server_key,
        upstream_ca=home.ca_certificate,
        client_ca=home.ca_certificate if settings.require_certificates else None,
        hold=settings.hold,
    )
    log.info("serving %s as %s at %s", home.folder, settings.address, settings.listen)
    keeper = _Keeper(home, link)
    thread = threading.Thread(target=keeper.keep, args=(stopping,), name="keeper", daemon=True)
    with Supervisor([*link.processes(), Process("door", door.command(front))]) as supervisor:
        thread.start()
        while not stopping.wait(_TICK):
            supervisor.tend()
    thread.join(_TICK)
    disk.unlock(lock)


@dataclass
class _Keeper:
    """Makes the SuperLink agree with the folder."""

    home: Home
    link: SuperLink
    known: Mapping[str, str] | None = None  # node key of each hospital, as told to the SuperLink
    refused: dict[str, str] = field(default_factory=dict)  # node key of each hospital that the SuperLink does not take
    submitted: dict[str, float] = field(default_factory=dict)  # when, by study
    failures: dict[str, int] = field(default_factory=dict)
    reminded: tuple[bool, float] | None = None  # whether the certificate was over when it was last told, and when

    def keep(self, stopping: threading.Event) -> None:
        steps = (self.keep_certificate, self.keep_nodes, self.keep_studies)
        while not stopping.wait(_TICK):
            stopping.wait(max([self.attempt(step) for step in steps]))  # whatever one comes to, the others are done

    def attempt(self, step: Callable[[], None]) -> float:
        """Do one of the things that are kept; the seconds to wait after it."""
        try:
            step()
        except Unreachable:
            return 2 * _TICK  # it is starting
        except IntramuralError as error:
            log.warning("the folder cannot be followed: %s; %s", error, error.hint)
            return 10 * _TICK
        except Exception:
            log.exception("the service goes on")
            return 10 * _TICK
        return 0.0

    def keep_certificate(self) -> None:
        """Tell in time that the service's certificate ends: nobody gets in after that, its own programs included."""
        end, now = self.home.expires, time.monotonic()
        left = end - datetime.now(UTC)
        over = left <= timedelta(0)
        if left > _RENEW or (self.reminded and self.reminded[0] == over and now - self.reminded[1] < _REMIND):
            return
        self.reminded = over, now
        log.log(
            logging.ERROR if over else logging.WARNING,
            "%s: %s on %s UTC (run: intramural-aggregator init %s --renew, and start the service again)",
            self.home.server_certificate,
            "expired" if over else "expires",
            f"{end:%Y-%m-%d %H:%M}",
            shlex.quote(str(self.home.folder)),
        )

    def keep_nodes(self) -> None:
        """Register who was admitted, unregister who was dismissed."""
        hospitals = self.home.hospitals().items()
        wanted = {name: item.node_key for name, item in hospitals if self.refused.get(name) != item.node_key}
        if wanted == self.known and wanted.keys() == self.home.nodes().keys():  # who came back at once has no node
            return
        live, nodes = self.link.nodes(), self.home.nodes()
        before = wanted if self.known is None else self.known
        stays = {
            name: node for name, node in nodes.items() if node in live and wanted.get(name) == before.get(name, "")
        }
        for node in live.keys() - set(stays.values()):
            self.link.unregister(node)
            log.info("node %d is dismissed", node)
        self.home.save_nodes(stays)
        for name in sorted(wanted.keys() - stays):
            if name not in self.home.hospitals():  # it was dismissed meanwhile
                wanted.pop(name)
                continue
            try:
                stays[name] = self.link.register(name, wanted[name])
            except Unreachable:
                raise
            except ConfigError as error:  # the others go on; to ask again would come to the same
                log.warning("%s cannot take part: %s; %s", name, error, error.hint)
                self.refused[name] = wanted.pop(name)
                continue
            self.home.save_nodes(stays)
            log.info("%s is admitted as node %d", name, stays[name])
        self.known = wanted

    def keep_studies(self) -> None:
        """See that each study that is to run has a ServerApp that works on it."""
        for digest, entry in runs.wanted(self.home).items():
            if disk.is_locked(entry.folder / "ledger" / "lock"):
                continue  # it is being worked on
            try:
                read_study(entry.folder)
            except IntramuralError as error:  # the others go on; to read it again would come to the same
                runs.unwant(self.home, digest, (str(error), error.hint))
                log.warning("study %s cannot go on: %s; %s", digest[:8], error, error.hint)
                continue
            waited = time.monotonic() - self.submitted.get(digest, -1e9)
            found = self.link.runs()
            alive = entry.run_id in found and not found[entry.run_id].startswith("finished")
            failures = self.failures.get(digest, 0)
            if waited < (_STARTING if alive else _PAUSES[min(failures, len(_PAUSES) - 1)]):
                continue
            if alive and entry.run_id is not None:
                self.link.end(entry.run_id)
            if digest in self.submitted:
                self.failures[digest] = failures + 1
            runs.set_run(self.home, digest, self.link.submit(digest))
            self.submitted[digest] = time.monotonic()
            log.info("study %s: started%s", digest[:8], "" if entry.run_id is None else " again")


def require_service(home: Home) -> None:
    """See that the service runs; one that was started a moment ago has a moment.

    Raises:
        ConfigError: It does not.
    """
    until = time.monotonic() + _STARTS
    while not disk.is_locked(home.serving):
        if time.monotonic() > until:
            raise ConfigError(
                f"{home.folder}: its service does not run", f"run: intramural-aggregator serve {home.folder}"
            )
        time.sleep(_TICK)
