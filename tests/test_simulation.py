"""A simulation in several processes: the same study, whoever does the work."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from flwr.app import Context, Message, RecordDict

from aggregator import LocalGrid, Study, run
from aggregator.audit import reconcile
from models.errors import ConfigError, Locked
from models.ledger import Event, Ledger, Signer, read
from silos import visit
from silos.app import open_local, silo_of
from silos.config import Site

Write = Callable[..., Path]


def play(plan: Path, folder: Path, hospitals: list[Path], workers: int) -> list[str]:
    """A study from its beginning to its end; the digest of each model."""
    with Study.create(plan, folder) as study, LocalGrid(hospitals, workers) as grid:
        outcome = run(study, grid)
    assert [item.accepted for item in outcome.history.rounds[1:]] == [["east", "north", "south"]] * 2
    for site in hospitals:
        assert reconcile(folder / "ledger", Site.load(site).run.work / "ledger").ok
    return [item.model for item in outcome.history.rounds]


@pytest.mark.parametrize("strategy", ['name = "fedavg"', 'name = "fedavg"\nlocal_norm = true'])
def test_however_many_workers_there_are_the_models_are_the_same_to_the_bit(
    strategy: str, hospitals: list[Path], write_plan: Write, tmp_path: Path
) -> None:
    names = [f"by-{workers}" for workers in (1, 2, 3)]
    for site in hospitals:
        site.write_text(site.read_text().replace('"trial"', ", ".join(f'"{name}"' for name in names)))
    models = [
        play(write_plan(name, strategy=strategy), tmp_path / name, hospitals, workers)
        for workers, name in enumerate(names, start=1)
    ]
    assert models[0] == models[1] == models[2]
    assert len(set(models[0])) == 3


class Mortal(LocalGrid):
    """A grid in which a worker dies over south's first order to train."""

    def _answer(self, message: Message) -> Message:
        about = message.metadata
        if (about.message_type, about.group_id, self._nodes[about.dst_node_id].verifier.name) == (
            "train",
            "1",
            "south",
        ):
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._answer(message)


def test_a_worker_that_dies_loses_one_answer_and_its_hospitals_go_on_in_the_next_one(
    hospitals: list[Path], write_plan: Write, tmp_path: Path
) -> None:
    folder = tmp_path / "study"
    with Study.create(write_plan(), folder) as study, Mortal(hospitals, workers=2) as grid:
        outcome = run(study, grid)  # east and south live in one worker
    assert [item.accepted for item in outcome.history.rounds[1:]] == [["east", "north"], ["east", "north", "south"]]
    assert outcome.history.rounds[1].refused == {"south": "app-failed"}
    for site in hospitals:
        pair = reconcile(folder / "ledger", Site.load(site).run.work / "ledger")
        assert (pair.problems, pair.closed) == ([], True)
        assert bool(pair.pending) == (site == hospitals[2])


def test_a_hospital_in_a_worker_is_locked_until_the_grid_is_closed(hospitals: list[Path]) -> None:
    site = Site.load(hospitals[1])
    with LocalGrid(hospitals, workers=3) as grid:
        assert sorted(silo.name for silo in grid.roster.values()) == ["east", "north", "south"]
        with pytest.raises(Locked):
            Ledger.open(site.run.work / "ledger", Signer.load(site.key))
    Ledger.open(site.run.work / "ledger", Signer.load(site.key)).close()


def test_a_site_that_cannot_be_opened_in_a_worker_is_named(hospitals: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="elsewhere"):
        LocalGrid([*hospitals, tmp_path / "elsewhere.toml"], workers=2)
    LocalGrid(hospitals).close()  # nothing is left locked
    with pytest.raises(ConfigError, match="workers: must be at least 1") as caught:
        LocalGrid(hospitals, workers=0)
    assert caught.value.hint == "give a number from 1 on"


def test_a_worker_whose_gpu_the_process_it_was_forked_from_has_used_is_refused(
    hospitals: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    LocalGrid(hospitals, workers=2).close()  # all on the CPU
    hospitals[1].write_text(hospitals[1].read_text().replace('device = "cpu"', 'device = "auto"'))
    with pytest.raises(ConfigError, match=r'north/site\.toml: run\.device: "auto" cannot be had in a worker'):
        LocalGrid(hospitals, workers=2)


def test_a_worker_works_with_one_thread_whatever_its_hospital_has(hospitals: list[Path]) -> None:
    change = hospitals[0].read_text().replace("threads = 1", "threads = 2")
    hospitals[0].write_text(change)
    assert Site.load(hospitals[0]).run.threads == 2
    silo = open_local(hospitals[0], threads=1)
    assert silo.node_config == {"site": str(hospitals[0]), "simulated": True, "threads": 1}
    context = Context(1, 2, dict(silo.node_config), RecordDict(), {})
    assert silo_of(context).site.run.threads == 1
    silo.close()
    assert silo_of(context).site.run.threads == 1  # also when it was opened again
    silo.close()


def test_hospitals_in_one_process_share_one_network(
    hospitals: list[Path], write_plan: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    build = visit.tasks.network
    monkeypatch.setattr(visit.tasks, "network", lambda *given: made.append(build(*given)) or made[-1])
    play(write_plan(), tmp_path / "study", hospitals, workers=1)
    assert len(made) == 2  # the coordinator's first model, and the hospitals'
    opened = read(tmp_path / "study" / "ledger")
    assert sum(record.event == Event.UPDATE_RECEIVED for record in opened.records) == 6
