"""What a study needs of its transport: Flower's Grid, and which hospital each node is."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Self

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from models.ledger import Verifier
from models.plan import Plan


class StudyGrid(Grid):
    """A Flower Grid that knows its hospitals."""

    @property
    @abstractmethod
    def roster(self) -> Mapping[int, Verifier]:
        """Each hospital that may take part, by node id; it can grow and shrink while a study runs."""

    def require(self, plan: Plan) -> None:
        """Refuse a study that cannot be carried out here, before anybody is asked for anything.

        Raises:
            ConfigError: It names what cannot be done.
        """

    def close(self) -> None:
        """Give back what the grid holds open; the end of a `with` does it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message to a node."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)
