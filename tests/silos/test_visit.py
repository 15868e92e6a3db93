"""What a visit promises of too few: their update stays, and where nothing may be told nobody is looked at."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from models import tasks
from models.errors import PolicyError, Rule
from models.exchange.documents import Agreement, Manifest, Order
from models.exchange.spec import Vector, vector_digest
from models.plan import Plan
from models.tasks import Case
from silos import together
from silos.config import Site
from silos.keys import load_signer
from silos.pace import Pace
from silos.visit import Bench, Fit, set_up, visit

MakePlan = Callable[..., Plan]

LARGEST = np.float32(3e38)


class Hospital:
    """A phantom with some keys of its policy changed, and what is asked of it."""

    def __init__(self, site: Site, plan: Plan, **policy: Any) -> None:
        network = tasks.network(plan)
        changed = site.policy.model_copy(update={"min_patients": 6, "metrics": ["loss", "auc", "accuracy"], **policy})
        self.site, self.spec, self.model = site.model_copy(update={"policy": changed}), network.spec, network.vector
        self.signer = load_signer(site)
        agreement = {"coordinator_key": self.signer.vkey, "spec": network.spec.digest}
        first = vector_digest(network.spec.digest, network.vector.numpy())
        self.agreement = Agreement(plan=plan, initial=first, **agreement)
        self.bench = set_up(self.site, self.agreement)

    def asked(
        self, what: str, model: Vector | None = None, pace: Pace | None = None, fit: Fit | None = None
    ) -> Manifest:
        """What would leave."""
        order = Order.model_validate({"agreement": self.agreement, "round": 1, "visit": what, "base": "0" * 64})
        model = self.model.numpy().copy() if model is None else model
        return visit(self.site, self.signer, self.bench, order, model, {}, pace=pace, fit=fit).manifest

    def too_large(self) -> Vector:
        """A model of finite weights whose outputs are not."""
        model = self.model.numpy().copy()
        for name, part in self.spec.named(model).items():
            part[...] = LARGEST if name.startswith("5.") else part
        return model


@pytest.fixture
def hospital(phantom: Callable[[int], Site], make_plan: MakePlan) -> Callable[..., Hospital]:
    """Makes one; `plan` are keys of the plan, all others those of the policy."""
    return lambda plan=None, **policy: Hospital(phantom(0), make_plan(**plan or {}), **policy)


def only_first(done: int, total: int) -> bool:
    return False


def at_once(*given: Any, **more: Any) -> Vector:
    """Trains as a batched simulation does."""
    (found,) = together.fit_many([together.Job(given[0], given[0].weights.clone(), *given[1:], **more)])
    assert isinstance(found, np.ndarray)
    return found


@pytest.mark.parametrize("fit", [None, at_once])
def test_an_update_counts_the_patients_whom_the_steps_looked_at_and_not_who_else_is_there(
    hospital: Callable[..., Hospital], fit: Fit | None
) -> None:
    north = hospital({"stragglers": "partial", "training": {"batch_size": 2}})  # 9 patients, 3 images each
    assert north.asked("train", fit=fit).work == 1
    with pytest.raises(PolicyError, match=r"the steps that were done took images of [12] patients only") as caught:
        north.asked("train", pace=only_first, fit=fit)
    assert caught.value.rule is Rule.MIN_PATIENTS
    alone = hospital({"stragglers": "partial", "training": {"batch_size": 2}}, min_patients=1)
    assert alone.asked("train", pace=only_first, fit=fit).work == 0


def test_a_batch_of_many_images_of_few_patients_is_one_of_few(hospital: Callable[..., Hospital]) -> None:
    north = hospital({"seed": 1, "training": {"epochs": None, "steps": 1, "batch_size": 6}})
    train = north.bench.data.cohort.side(held_out=False)
    assert len(train) > train["patient"].nunique() >= 6
    with pytest.raises(PolicyError, match=r"took images of [2-5] patients only"):
        north.asked("train")


class Unseen:
    """Held-out cases that nobody may look at."""

    targets = np.zeros(9, np.int64)

    def __len__(self) -> int:
        return 9

    def take(self, rows: np.ndarray) -> list[Case]:
        raise AssertionError("a held-out image was looked at")


@pytest.mark.parametrize("policy", [{"min_evaluated": 6}, {"metrics": []}])
def test_where_no_metric_may_be_told_no_held_out_image_is_looked_at(
    hospital: Callable[..., Hospital], policy: dict[str, Any]
) -> None:
    north = hospital(**policy)
    assert north.bench.data.judged < 6
    north.bench = Bench("", north.bench.task, north.bench.network, replace(north.bench.data, held_out=Unseen()))  # type: ignore[arg-type]
    for what in ("evaluate", "train"):
        assert (north.asked(what).metrics, north.asked(what).withheld) == ({}, ["auc", "loss"])


def test_a_model_too_large_for_held_out_images_has_its_metrics_withheld_and_no_word_of_its_own(
    hospital: Callable[..., Hospital],
) -> None:
    north, few = hospital(), hospital(min_evaluated=6)
    assert set(north.asked("evaluate").metrics) == {"auc", "loss"}
    report = north.asked("evaluate", north.too_large())
    assert (report.metrics, report.withheld, report.evaluated) == ({}, ["auc", "loss"], None)
    assert report == few.asked("evaluate", north.too_large())


def test_auc_needs_enough_held_out_patients_of_every_class(hospital: Callable[..., Hospital]) -> None:
    north = hospital()
    assert north.bench.data.cohort.rarest > 0
    cohort = north.bench.data.cohort
    cases = cohort.cases.assign(classes=[frozenset({0})] * len(cohort.cases))
    north.bench = replace(north.bench, data=replace(north.bench.data, cohort=replace(cohort, cases=cases)))
    assert north.asked("evaluate").withheld == ["auc"]


def test_a_hospital_in_which_nobody_is_held_out_trains_and_tells_no_metric(
    phantom: Callable[[int], Site], make_plan: MakePlan
) -> None:
    written = phantom(0)
    site = written.model_copy(update={"data": written.data.model_copy(update={"held_out": 1e-9})})
    told = Hospital(site, make_plan()).asked("train")
    assert told.examples is not None
    assert (told.metrics, told.withheld) == ({}, ["auc", "loss"])
