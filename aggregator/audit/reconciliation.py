"""Whether two parties tell one history, as a result to be shown."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Reconciliation:
    """What two ledgers prove together about one study.

    Attributes:
        study: The study's digest.
        aggregator, silo: The two parties.
        orders, replies: Statements in each direction that both ledgers hold; from proof files, the number of
            the newest one that both hold, which stands for all before it.
        pending: xids that were offered and never acknowledged.
        newest: xid of the newest agreed statement of each direction.
        closed: Whether the silo's last word has arrived.
        problems: Contradictions; empty if the two agree.
    """

    study: str
    aggregator: str
    silo: str
    orders: int
    replies: int
    pending: list[str]
    newest: dict[str, str | None]
    closed: bool
    problems: list[str]

    @property
    def ok(self) -> bool:
        """Whether the two ledgers agree."""
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {**vars(self), "ok": self.ok}
