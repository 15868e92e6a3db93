"""Many hospitals in this process: Flower's Grid without a network, the same apps on both sides.

    with LocalGrid(["configs/sites/north.toml", "configs/sites/south.toml"]) as grid:
        run(study, grid)

Each message goes to the hospital's own ClientApp with a context of its own, as a SuperNode would hand
it over. A hospital whose app raises is answered for with an error; the others go on.
"""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from flwr.app import Context, Error, Message, RecordDict
from flwr.supercore.run import Run
from flwr.supercore.task_identity import (
    TaskIdentity,  # not public; Message() needs it outside a Flower process
)

from aggregator.grid import StudyGrid
from aggregator.hospitals import hospital_side
from models.errors import ConfigError
from models.ledger import Verifier

_RUN = 1
_AGGREGATOR = 1  # Flower's node id of the server
_FAILED = 2  # Flower's error code for "the ClientApp raised"


class LocalGrid(StudyGrid):
    """A Flower Grid whose nodes are hospitals in this process.

    Args:
        sites: `site.toml` of each hospital.

    Raises:
        ConfigError: The hospital's side is not installed, or two sites have the same name.
    """

    def __init__(self, sites: Sequence[Path | str]) -> None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, _RUN, _AGGREGATOR
        self._run = Run.create_empty(_RUN)
        self._nodes: dict[int, Any] = {}
        self._contexts: dict[int, Context] = {}
        self._pending: dict[str, Message] = {}
        self._roster: dict[int, Verifier] = {}
        open_local = hospital_side()
        try:
            for node_id, site in enumerate(sites, start=_AGGREGATOR + 1):
                silo = open_local(site)
                self._nodes[node_id] = silo
                if silo.verifier.name in {known.name for known in self._roster.values()}:
                    raise ConfigError(f"{site}: another site is named {silo.verifier.name!r} too", "rename one of them")
                self._roster[node_id] = silo.verifier
                self._contexts[node_id] = Context(_RUN, node_id, dict(silo.node_config), RecordDict(), {})
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close every hospital, so that another process may open it."""
        for silo in self._nodes.values():
            silo.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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

    def get_node_ids(self) -> Iterable[int]:
        """The hospitals' node ids."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages; each is worked on when its reply is pulled."""
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(uuid.uuid4())
            self._pending[message.metadata.message_id] = message
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Let the hospitals answer, one at a time, each when its reply is asked for."""
        for message_id in message_ids:
            message = self._pending.pop(message_id, None)
            if message is not None:
                yield self._answer(message)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push messages and pull their replies."""
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message: Message) -> Message:
        node_id = message.metadata.dst_node_id
        try:
            reply: Message = self._nodes[node_id].app(message, self._contexts[node_id])
        except Exception:  # one hospital's failure is not the others'
            return Message(Error(_FAILED), reply_to=message)
        return reply
