"""The straight line from a DICOM folder to what may leave: index, cohort, images, training, gate.

`set_up` makes a study's network and data ready, once; `visit` evaluates the model that came, trains it and
hands the difference to the gate; `preview` does both for a study that nobody has sent yet; `survey` tells what
could be trained on. Nothing here sends, and nothing is written but the index and the image cache.
"""

import importlib.metadata
import platform
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch

from models import tasks
from models.console import Report
from models.errors import ConfigError, NotFinite, SpecMismatch
from models.exchange.documents import Agreement, Manifest, Order, Survey
from models.exchange.spec import Vector, vector_digest
from models.ledger import Signer, disk
from models.plan import Plan, Unit
from models.tasks import Task
from models.tasks.flat import FlatNetwork
from silos import cohort, dataset, gate, tally, training
from silos.cohort import Cohort
from silos.config import Site
from silos.dataset import Dataset
from silos.dicom.scan import Scan, scan
from silos.dicom.series import measured
from silos.keys import load_signer
from silos.memory import keep_freed
from silos.pace import Pace
from silos.precision import trains_in_bfloat16

Fit = Callable[..., Vector]
"""Trains: `training.fit`, or what takes and gives the same; whose cases it takes, it has trained on."""

_networks: dict[tuple[str, torch.device], FlatNetwork] = {}  # one


@dataclass(frozen=True)
class Bench:
    """One study's network and data, warm between rounds.

    Hospitals in one process have the same network: each visit loads the model that came and what stayed in that
    hospital, and nothing else of a network outlasts a visit.
    """

    study: str
    task: Task
    network: FlatNetwork
    data: Dataset


def set_up(site: Site, agreement: Agreement, progress: Report | None = None) -> Bench:
    """Make the network and the data of a study ready.

    Raises:
        ConfigError: The label table is wrong, or the network cannot be built.
        DataError: The data cannot be used.
    """
    keep_freed()
    torch.set_num_threads(site.run.threads)
    plan, key = agreement.plan, (agreement.study, training.device_for(site.run.device))
    if key not in _networks:
        _networks.clear()  # before the next one is made: two would not fit a small machine
        _networks[key] = tasks.network(plan, key[1])
    task = tasks.task(plan.task)
    return Bench(agreement.study, task, _networks[key], load_data(site, plan, task, progress))


def visit(
    site: Site,
    signer: Signer,
    bench: Bench,
    order: Order,
    model: Vector | None,
    released: Mapping[str, float],
    progress: Report | None = None,
    pace: Pace | None = None,
    fit: Fit | None = None,
) -> gate.Release:
    """The straight line from a model to what may leave. Sends and records nothing.

    Args:
        site: The hospital.
        signer: Its key, from which the noise's is derived.
        bench: The study's network and data.
        order: `train` or `evaluate`.
        model: The base model, `(spec.size,)` float32.
        released: By digest, the noise of each update of this study that was released before.
        progress: Told how long work goes on.
        pace: When training ends early, in a study that takes partial work.
        fit: In a simulation, what trains this hospital together with others (`silos.together`).

    Raises:
        PolicyError: The policy forbids it.
        ProtocolError: The model is not one of this study.
        Unusable: Training gave no usable numbers.
    """
    agreement, plan, network = order.agreement, order.agreement.plan, bench.network
    if network.spec.digest != agreement.spec or model is None or model.shape != (network.spec.size,):
        raise SpecMismatch("the model is not of the network that the plan names")
    if not np.isfinite(model).all():
        raise NotFinite("the model holds NaN or infinity")
    data, matched = bench.data, bench.data.cohort
    gate.require_patients(site.policy, matched.patients(held_out=False))

    torch.set_num_threads(site.run.threads)
    network.load(model)
    metrics = _evaluated(site, bench, plan)
    trained = training.Watched(data.train, matched.whose(held_out=False))
    delta = work = None
    if order.visit == "train":
        delta, work = _trained(site, bench, order, trained, progress, pace, fit or training.fit)
    update = gate.Update(
        base=order.base,
        delta=delta,
        patients=matched.patients(held_out=False),
        seen=len(trained.seen),
        images=len(data.train),
        work=work if plan.stragglers == "partial" else None,
        precision="bfloat16" if trains_in_bfloat16(network.weights.device, plan.training) else None,
        batched=fit is not None,
        evaluated_patients=data.judged,
        rarest=matched.rarest,
        evaluated_images=len(data.held_out),
        metrics=metrics,
    )
    release = gate.release(
        site.policy,
        agreement,
        update,
        network.spec,
        released=released,
        secret=signer.derive(b"intramural noise v1"),
        software=software(),
    )
    if release.vector is not None and network.own is not None:
        # As it was told, filters included, so that the consortium's variate stays the mean of the hospitals'.
        network.own.add_(torch.from_numpy(release.vector[: network.own.numel()]).to(network.own.device))
    return release


def _evaluated(site: Site, bench: Bench, plan: Plan) -> Mapping[str, float]:
    """What the loaded model is worth on the patients that are held out, as far as it may be told."""
    asked = gate.tellable(site.policy, plan.metrics, bench.data.judged, bench.data.cohort.rarest)
    try:
        return training.evaluate(bench.network, bench.task, bench.data.held_out, wanted=asked)
    except NotFinite:  # not refused: a coordinator that chooses the model could read a held-out image in the answers
        return {}


def _trained(
    site: Site,
    bench: Bench,
    order: Order,
    cases: training.Watched,
    progress: Report | None,
    pace: Pace | None,
    fit: Fit,
) -> tuple[Vector, float | None]:
    """Train the loaded model; the difference to it, and which share of the planned work was done."""
    plan, work = order.agreement.plan, None

    def stepped(done: int, total: int) -> bool:
        nonlocal work
        work = done / total
        if progress:
            progress("training", done, total)
        return pace is None or pace(done, total)

    delta = fit(
        bench.network,
        bench.task,
        cases,
        plan.training.in_round(order.round),
        mu=plan.strategy.mu,
        seed=training.seed_for(plan.seed, site.name, order.round),
        on_step=stepped,
    )
    return delta, work


def preview(site: Site, plan: Plan, progress: Report | None = None) -> Manifest:
    """The manifest that a first round of a study would send. Sends nothing and writes no ledger line.

    Raises:
        PolicyError: The policy would refuse.
        DataError: The data cannot be used.
    """
    signer = load_signer(site)
    network = tasks.network(plan)
    model = network.vector.numpy().copy()
    initial = vector_digest(network.spec.digest, model)
    agreement = Agreement(plan=plan, coordinator_key=signer.vkey, initial=initial, spec=network.spec.digest)
    gate.require_allowed(site.policy, plan, ())
    order = Order(agreement=agreement, round=1, visit="train", base=initial)
    return visit(site, signer, set_up(site, agreement, progress), order, model, {}, progress).manifest


def survey(site: Site, plan: Plan, said: Survey | None = None) -> Survey:
    """What may be told of this hospital's images before a study starts; from headers and labels alone.

    Args:
        site: The hospital.
        plan: The study.
        said: What was told of this study before; it is told again as it was.

    Raises:
        PolicyError: The policy forbids it.
        ConfigError: The label table is wrong.
        DataError: The data cannot be used.
    """
    gate.require_survey(site.policy, said)
    if said is not None:
        return said
    found = scan_site(site, plan=plan)
    return survey_of(site, found, match_cohort(site, found, plan))


def survey_of(site: Site, found: Scan, matched: Cohort) -> Survey:
    """What may be told of a cohort, as `survey` tells it the first time."""
    images = measured(tally.labelled(found.instances, matched), site.data.folder)
    return gate.survey(site.policy, tally.totals(images), tally.tables(images, matched.classes))


def scan_site(site: Site, progress: Report | None = None, plan: Plan | None = None) -> Scan:
    """Index the hospital's folder.

    Args:
        site: The hospital.
        progress: Told how long it goes on.
        plan: The study; where its cases are volumes, images of several frames are let in.

    Raises:
        ConfigError: The folder of the index cannot be made, or the list of patients cannot be read.
        DataError: The images, or the index, cannot be read.
    """
    data, key = site.data, "run.cache" if site.run.cache else "run.work"
    try:
        disk.make_folder(site.cache, 0o700)
    except FileExistsError as error:
        raise ConfigError(f"{key}: {error.filename} is a file", "give a folder") from error
    except OSError as error:
        what = f"{site.cache}: {error.strerror}"
        raise ConfigError(f"{key}: {what}", "give a folder that this user can write") from error
    found = scan(
        data.folder,
        site.cache / "index.sqlite",
        modality=data.modality,
        attributes=list(data.labels.join) if data.labels else [],
        burned_in=data.burned_in,
        several_frames=unit_of(site, plan) != "image",
        progress=named(progress, "reading headers"),
    )
    return cohort.of_site(found, data)


def load_cohort(site: Site, plan: Plan, progress: Report | None = None) -> Cohort:
    """The cases of one study in this hospital, from headers and labels; no pixel is read."""
    if site.data.arrays is not None:
        return _match_arrays(site, cohort.read_arrays(site.data.arrays), plan)
    return match_cohort(site, scan_site(site, progress, plan), plan)


def match_cohort(site: Site, found: Scan, plan: Plan | None) -> Cohort:
    """The cases among scanned images.

    Args:
        site: The hospital.
        found: Its scan, for the same plan.
        plan: The study; without one, the site's own words stand for the classes.
    """
    data, unit, classes = site.data, unit_of(site, plan), plan.task.classes if plan else site.data.classes
    if plan is not None:
        of_study = found.instances["Modality"].isin(plan.task.modality)
        other = Counter({"modality not of this study": int((~of_study).sum())})
        left_out = dict(Counter(found.left_out) + other)
        found = replace(found, instances=found.instances[of_study], left_out=left_out)
    drawn = plan.task.drawn if plan else data.labels is None
    if unit == "image" and not drawn:
        return cohort.match(found.instances, data, classes, found.left_out)
    return cohort.match_volumes(found, data, classes, unit=unit, drawn=drawn)


def unit_of(site: Site, plan: Plan | None) -> Unit:
    """What a case is made of in a study; without one, as the hospital's labels or annotations suggest."""
    if plan is not None:
        return plan.task.unit
    return "image" if site.data.labels else "either"


def load_data(site: Site, plan: Plan, task: Task, progress: Report | None = None) -> Dataset:
    """The cases of one study in this hospital, decoded once."""
    if site.data.arrays is not None:
        arrays = cohort.read_arrays(site.data.arrays)
        return dataset.hold(arrays, _match_arrays(site, arrays, plan), task)
    return dataset.prepare(
        load_cohort(site, plan, progress),
        site.data,
        site.cache / "cache",
        plan.task,
        task,
        named(progress, "decoding"),
    )


def _match_arrays(site: Site, arrays: cohort.Arrays, plan: Plan) -> Cohort:
    return cohort.match_arrays(arrays, site.data, plan.task.classes, drawn=plan.task.drawn)


@cache
def software() -> dict[str, str]:
    """Names and versions of what computes an update."""
    names = ("intramural", "torch", "monai", "pydicom", "flwr")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def named(progress: Report | None, what: str) -> Callable[[int, int], None] | None:
    """Tells how far one piece of work is, under its name."""
    return None if progress is None else lambda done, total: progress(what, done, total)
