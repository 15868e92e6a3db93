"""What a study survives. The whole table is written by scripts/failures.py; what needs no process of its own is tried
here."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from flwr.app import Error, Message

from aggregator import LocalGrid, Study, run, visits
from models.ledger import Event


class Restless(LocalGrid):
    """A grid whose last hospital goes away with its first order of round 2, for a while."""

    away = 3
    """Looks that it is away for."""

    def __init__(self, sites: Iterable[Path]) -> None:
        super().__init__(list(sites))
        self.node = max(self.roster)
        self.left = 0  # looks until it is back; below 0 when it has been away

    def get_node_ids(self) -> list[int]:
        if self.left > 0:
            self.left = self.left - 1 or -1
        return [node for node in super().get_node_ids() if node != self.node or self.left <= 0]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        for message_id in message_ids:
            metadata = self._pending[message_id].metadata
            if self.left == 0 and metadata.group_id == "2" and metadata.dst_node_id == self.node:
                self.left = self.away
                yield Message(Error(5, "gone"), reply_to=self._pending.pop(message_id))
            else:
                yield from super().pull_messages([message_id])


def test_a_hospital_that_went_away_with_its_order_is_asked_again_when_it_is_back(
    hospitals: list[Path], write_plan: Callable[..., Path], tmp_path: Path
) -> None:
    with Study.create(write_plan(rounds=3), tmp_path / "study") as study, Restless(hospitals) as grid:
        outcome = run(study, grid)
        assert grid.left == -1
        assert [len(item.accepted) for item in outcome.history.rounds[1:]] == [3, 3, 3]
        orders = [r for r in study.ledger.records if r.event == Event.ORDER_OFFERED and r.round == 2]
        assert len(orders) == 4
        used = [r for r in study.ledger.records if r.event == Event.UPDATE_RECEIVED and r.round == 2]
        assert len(used) == 3


def test_a_hospital_that_stays_away_is_not_waited_for_until_the_deadline(
    hospitals: list[Path], write_plan: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visits, "_RETURN", 0.5)
    monkeypatch.setattr(Restless, "away", 10**9)
    with (
        Study.create(write_plan(rounds=3, more="deadline = 100_000"), tmp_path / "study") as study,
        Restless(hospitals) as grid,
    ):
        outcome = run(study, grid)
        assert [len(item.accepted) for item in outcome.history.rounds[1:]] == [3, 2, 2]
        assert list(outcome.history.rounds[2].refused.values()) == ["silent"]
