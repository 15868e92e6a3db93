"""On a GPU: the same study twice gives the same models, however its hospitals are trained, and its ledgers agree."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from aggregator import LocalGrid, Study, run
from aggregator.audit import reconcile
from aggregator.rounds import Outcome
from models.exchange.spec import load_vector
from silos import training
from silos.config import Site

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

NAMES = ("one", "two")


@pytest.fixture
def play(hospitals: list[Path], write_plan: Callable[..., Path], tmp_path: Path) -> Callable[..., Outcome]:
    """Runs a study in three hospitals, some of them on the GPU."""
    for site in hospitals:
        site.write_text(site.read_text().replace('"trial"', ", ".join(f'"{name}"' for name in NAMES)))

    def of(name: str, more: str = "", gpus: int = 3, batched: bool = False) -> Outcome:
        for site in hospitals[:gpus]:
            site.write_text(site.read_text().replace('device = "cpu"', 'device = "cuda"'))
        plan = write_plan(name, strategy='name = "fedprox"\nmu = 0.5', more=more)
        with Study.create(plan, tmp_path / name) as study, LocalGrid(hospitals, batched=batched) as grid:
            outcome = run(study, grid)
        for site in hospitals:
            assert reconcile(tmp_path / name / "ledger", Site.load(site).run.work / "ledger").ok
        return outcome

    return of


def test_a_study_repeats_to_the_bit(play: Callable[..., Outcome]) -> None:
    one, two = play("one"), play("two")
    assert [item.model for item in one.history.rounds] == [item.model for item in two.history.rounds]
    assert [len(item.accepted) for item in one.history.rounds[1:]] == [3, 3]


def test_hospitals_on_a_gpu_and_on_the_cpu_are_batched_by_their_device(play: Callable[..., Outcome]) -> None:
    alone, together = (
        load_vector(outcome.model, outcome.digest)[1]
        for outcome in (
            play("one", 'encoding = "float32"', gpus=2),
            play("two", 'encoding = "float32"', gpus=2, batched=True),
        )
    )
    assert np.linalg.norm(alone - together) <= 1e-5 * np.linalg.norm(alone)


def test_float32_is_not_cut_to_19_bits() -> None:
    network, images = torch.nn.Conv2d(64, 64, 3), torch.randn(4, 64, 16, 16)
    expected = network.double()(images.double()).float()
    network = network.float().cuda()
    with training.reproducible():
        torch.testing.assert_close(network(images.cuda()).cpu(), expected, rtol=1e-5, atol=1e-5)
