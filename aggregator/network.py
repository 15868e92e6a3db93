"""Hospitals on the network: Flower's Grid of a running ServerApp, and which hospital each node is.

Nodes that nobody admitted do not exist here, and replies are fetched one at a time, so that the
coordinator holds one model however many hospitals answer at once. While a reply is put together it is in
memory twice; Flower's own way has it there three times. Written against Flower 1.41.
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping

import httpx
from flwr.app import Array, Error, Message, MessageType, RecordDict
from flwr.app.message.arraychunk import ArrayChunk
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_object_body,
    get_object_children_ids_from_object_content,
)
from flwr.supercore.inflatable.inflatable_utils import inflatable_class_registry
from flwr.supercore.run import Run

from aggregator.grid import StudyGrid
from models.errors import Malformed
from models.ledger import Verifier

log = logging.getLogger("intramural.aggregator")

_UNKNOWN = 0  # Flower's code for an error that it has no word for; ours stands behind it
_SUPERLINK = 1  # Flower's node id of the server


class NetworkGrid(StudyGrid):
    """A Flower Grid whose nodes are the admitted hospitals that are connected now.

    Args:
        grid: Flower's own.
        roster: Reads who is admitted, by node id; asked again and again, for hospitals come and go.
    """

    def __init__(self, grid: Grid, roster: Callable[[], Mapping[int, Verifier]]) -> None:
        self._grid, self._roster = grid, roster
        inflatable_class_registry[Array.__qualname__] = _LeanArray

    @property
    def roster(self) -> Mapping[int, Verifier]:
        """Each admitted hospital, by node id."""
        return self._roster()

    def get_node_ids(self) -> Iterable[int]:
        """Admitted hospitals that are connected."""
        return sorted(set(self.roster) & set(self._grid.get_node_ids()))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages; an empty id stands for one that could not be sent."""
        return [message_id or "" for message_id in self._grid.push_messages(messages)]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Fetch the replies that are there, one at a time; what cannot be put together is an error of its sender."""
        for message_id in message_ids:
            try:
                yield from self._grid.pull_messages([message_id])
            except httpx.HTTPError:
                raise  # the SuperLink's trouble, and not a hospital's
            except Exception as error:  # whatever a stranger sends
                log.debug("a reply cannot be put together", exc_info=error)
                asked = Message(RecordDict(), _SUPERLINK, MessageType.TRAIN)
                asked.metadata.__dict__["_message_id"] = message_id
                yield Message(Error(_UNKNOWN, Malformed.code), reply_to=asked)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and wait for their replies."""
        return self._grid.send_and_receive(messages, timeout=timeout)

    @property
    def run(self) -> Run:
        """Flower's description of the run."""
        return self._grid.run

    def set_run(self, run: Run) -> None:
        """Replace Flower's description of the run."""
        self._grid.set_run(run)


class _LeanArray(InflatableObject):
    """Reads what Flower wrote of an array, as `Array.inflate` does, but joins the pieces in one step."""

    @classmethod
    def inflate(cls, object_content: bytes, children: dict[str, InflatableObject] | None = None) -> Array:
        """Put an array together from its pieces.

        Raises:
            ValueError: A piece is not one.
        """
        names = get_object_children_ids_from_object_content(object_content)
        fields = json.loads(get_object_body(object_content, Array))
        pieces = [(children or {})[names[number]] for number in fields["arraychunk_ids"]]
        if not all(isinstance(piece, ArrayChunk) for piece in pieces):
            raise ValueError("an array consists of pieces of arrays")
        data = b"".join(piece.data for piece in pieces if isinstance(piece, ArrayChunk))
        return Array(fields["dtype"], tuple(fields["shape"]), fields["stype"], data)
