"""Many hospitals on this machine: Flower's Grid without a network, the same apps on both sides.

    with LocalGrid(["hospitals/north/site.toml", "hospitals/south/site.toml"], workers=2) as grid:
        run(study, grid)

Each message goes to the hospital's own ClientApp with a context of its own, as a SuperNode would hand
it over. A hospital whose app raises is answered for with an error; the others go on.

With one worker everything happens in this process. With more, each hospital lives in one of as many processes;
how many there are changes no digest. A worker that dies loses the answer it was at work on, and the one that takes
its place opens its hospitals again.

With `batched` the local training of all hospitals is one computation, for small networks; the updates are then those of
the same steps but for the last digits, and their manifests say so. The hospital's side does it (`silos.together`).
"""

import functools
import resource
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message, MessageType, RecordDict
from flwr.supercore.run import Run
from flwr.supercore.task_identity import (
    TaskIdentity,  # not public; Message() needs it outside a Flower process
)

from aggregator.grid import StudyGrid
from aggregator.hospitals import hospital_side
from aggregator.workers import LOST, Workers
from models.errors import ConfigError
from models.faults import Fault, require_known
from models.ledger import Verifier
from models.plan import Plan

_RUN = 1
_AGGREGATOR = 1  # Flower's node id of the server
_FILES = 8  # that an open hospital may keep open
_FAILED = 2  # Flower's error code for "the ClientApp raised"


class LocalGrid(StudyGrid):
    """A Flower Grid whose nodes are hospitals on this machine.

    Args:
        sites: `site.toml` of each hospital.
        workers: Processes among which the hospitals are shared out, each with one thread. With 1, no other process
            than this one, and as many threads as a hospital's `run.threads`.
        faults: What goes wrong in them.
        batched: Whether all train in one computation, in this process; refused where that is not the same training.

    Raises:
        ConfigError: The hospital's side is not installed, two sites have the same name, a fault names none of them, or
            they are to be batched in several processes.
        IntramuralError: A site cannot be opened.
    """

    def __init__(
        self, sites: Sequence[Path | str], workers: int = 1, *, faults: Sequence[Fault] = (), batched: bool = False
    ) -> None:
        self._faults = tuple(faults)
        if workers < 1:
            raise ConfigError(f"workers: must be at least 1 (got {workers})", "give a number from 1 on")
        if batched and workers > 1:
            raise ConfigError(
                f"workers: hospitals are batched in one process (got {workers})",
                "leave `workers` at 1, or `batched` out",
            )
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, _RUN, _AGGREGATOR
        self._run = Run.create_empty(_RUN)
        self._sites = dict(enumerate(sites, start=_AGGREGATOR + 1))
        self._nodes: dict[int, Any] = {}  # those that are open in this process
        self._contexts: dict[int, Context] = {}
        self._pending: dict[str, Message] = {}
        self._tickets: dict[str, int] = {}  # of those that a worker was given
        self._roster: dict[int, Verifier] = {}
        self._open_local = hospital_side()
        self._together = hospital_side("together") if batched else None
        self._begun: dict[str, Callable[[], Message]] = {}  # answers that wait only for being asked for
        _allow_files(_FILES * len(self._sites))
        workers = min(workers, len(self._sites))
        self._threads = 1 if workers > 1 else None  # of each hospital, if not its own
        self._workers = Workers(workers, self._work) if workers > 1 else None
        try:
            for node_id, verifier in self._open_all():
                if verifier.name in {known.name for known in self._roster.values()}:
                    path = self._sites[node_id]
                    raise ConfigError(f"{path}: another site is named {verifier.name!r} too", "rename one of them")
                self._roster[node_id] = verifier
            require_known(faults, {silo.name for silo in self._roster.values()})
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close every hospital, so that another process may open it."""
        if self._workers is not None:
            self._workers.close()
        for silo in self._nodes.values():
            silo.close()

    @property
    def roster(self) -> Mapping[int, Verifier]:
        """Each node's hospital, by node id."""
        return self._roster

    @property
    def run(self) -> Run:
        """Flower's description of the run."""
        return self._run

    def set_run(self, run: Run) -> None:
        """Replace Flower's description of the run."""
        self._run = run

    def require(self, plan: Plan) -> None:
        """Refuse a study whose training cannot be batched, where it is to be.

        Raises:
            ConfigError: It names the plan's key.
        """
        if self._together is not None:
            self._together.require(plan)

    def get_node_ids(self) -> Iterable[int]:
        """The hospitals' node ids."""
        return list(self._roster)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages. Workers begin at once; without them, each is worked on when its reply is pulled."""
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = message_id = str(uuid.uuid4())
            self._pending[message_id] = message
            if self._workers is not None:
                self._tickets[message_id] = self._ask(self._workers, message.metadata.dst_node_id, message)
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Wait for the hospitals' answers, and give them in the order asked for.

        There is no limit of time: what a simulation comes to must not depend on the speed of the machine.
        """
        for message_id in message_ids:
            if message_id in self._pending:
                yield self._reply(message_id)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push messages and pull their replies."""
        return self.pull_messages(self.push_messages(messages))

    def _reply(self, message_id: str) -> Message:
        if self._together is not None and message_id not in self._begun:
            self._begin(self._together)
        message = self._pending.pop(message_id)
        if message_id in self._begun:
            return self._begun.pop(message_id)()
        if self._workers is None:
            return self._answer(message)
        answer = self._workers.answer(self._tickets.pop(message_id))
        return Message(Error(_FAILED), reply_to=message) if answer is LOST else answer

    def _begin(self, together: Any) -> None:
        """Have all hospitals that wait with an order to train come as far as being trained, at once."""
        new = [id_ for id_, message in self._pending.items() if message.metadata.message_type == MessageType.TRAIN]
        new = [id_ for id_ in new if id_ not in self._begun]
        visits = [functools.partial(self._answer, self._pending[id_]) for id_ in new]
        self._begun |= zip(new, together.begin(visits), strict=True)

    def _answer(self, message: Message) -> Message:
        node_id = message.metadata.dst_node_id
        try:
            reply: Message = self._nodes[node_id].app(message, self._contexts[node_id])
        except Exception:  # one hospital's failure is not the others'
            return Message(Error(_FAILED), reply_to=message)
        return reply

    def _open_all(self) -> Iterator[tuple[int, Verifier]]:
        if self._workers is None:
            for node_id in self._sites:
                yield node_id, self._open(node_id)
            return
        tickets = {node_id: self._ask(self._workers, node_id, node_id) for node_id in self._sites}
        for node_id, ticket in tickets.items():
            found = self._workers.answer(ticket)
            if found is LOST:
                raise ConfigError(f"{self._sites[node_id]}: a worker died when it opened this site", "try workers=1")
            if isinstance(found, Exception):
                raise found
            yield node_id, found

    def _open(self, node_id: int) -> Verifier:
        """Open a hospital in this process, if it is not."""
        if node_id not in self._nodes:
            fit = self._together.fit if self._together else None
            silo = self._open_local(self._sites[node_id], threads=self._threads, faults=self._faults, fit=fit)
            self._nodes[node_id] = silo
            self._contexts[node_id] = Context(_RUN, node_id, dict(silo.node_config), RecordDict(), {})
        verifier: Verifier = self._nodes[node_id].verifier
        return verifier

    def _ask(self, workers: Workers, node_id: int, question: int | Message) -> int:
        """Ask the worker in which a hospital lives."""
        return workers.ask(node_id % len(workers), question)

    def _work(self, question: int | Message) -> Verifier | Message | Exception:
        """In a worker: open a hospital, or have it answer. A worker that took a dead one's place has none open."""
        node_id = question if isinstance(question, int) else question.metadata.dst_node_id
        try:
            verifier = self._open(node_id)
        except Exception as error:
            return error if isinstance(question, int) else Message(Error(_FAILED), reply_to=question)
        return verifier if isinstance(question, int) else self._answer(question)


def _allow_files(count: int) -> None:
    """Let this process have so many more files open; a thousand hospitals need more than systems grant at first."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        count = min(count, hard - soft)
    if soft != resource.RLIM_INFINITY and count > 0:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft + count, hard))
