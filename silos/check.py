"""Whether a hospital is ready: each thing that can be wrong, looked at in turn, with what to do about it."""

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models import tasks
from models.console import Report, human_bytes
from models.errors import ConfigError, DataError, IntramuralError
from models.exchange.documents import Agreement
from models.exchange.encoding import Encoding
from models.ledger import Event, read
from models.plan import Plan
from models.tasks import Case
from models.tasks.flat import FlatNetwork
from silos.approval import decisions
from silos.cohort import Cohort, match_arrays, read_arrays
from silos.config import Data, Site
from silos.finding import Finding, look
from silos.gate import Standing
from silos.keys import load_signer
from silos.network.connection import check_connection
from silos.precision import layout, trains_in_bfloat16
from silos.reading import read_case
from silos.training import device_for
from silos.visit import match_cohort, scan_site, unit_of

_SAMPLE = 8  # cases decoded, spread over the cohort
_EXAMPLE = "CHANGE-ME"  # how the salt of configs/sites/north.toml begins
_SPACE = 10**9  # bytes of the work folder's disk
_MEMORY = 2 * 10**9  # bytes: torch and its libraries take a quarter of it, a small network and its images the rest

_Reader = Callable[[Any], Case]
"""Reads the case of one row of a cohort."""


def check_site(path: Path, plan: Plan | None, progress: Report | None = None) -> list[Finding]:
    """Look at everything, in the order in which one thing needs another.

    Args:
        path: `site.toml`.
        plan: The study to be ready for; without it the site's own label words stand for the classes.
        progress: Told how long work goes on.
    """
    try:
        site = Site.load(path)
    except IntramuralError as error:
        return [Finding("configuration", False, str(error), error.hint)]
    findings = [Finding("configuration", True, f"{site.name}, {len(site.policy.studies)} studies allowed")]
    findings += [
        look("key", lambda: _key(site)),
        look("disk", lambda: _disk(site)),
        look("memory", _memory),
        look("device", lambda: _device(site)),
        look("ledger", lambda: _ledger(site)),
        *check_connection(site),
        look("policy", lambda: _policy(site)),
        look("salt", lambda: _salt(site)),
    ]
    if plan is not None:
        findings.append(look("policy for the study", lambda: _study(site, plan)))
    found, closed = list[tuple[Cohort, _Reader]](), list[str]()
    findings.append(look("images and labels", lambda: _cohort(site, plan, found, closed, progress)))
    if closed:
        told = f"{len(closed)} could not be opened; the first is {closed[0]}"
        findings.append(Finding("folders", False, told, "let this user open it, or move it out of data.root"))
    if found:
        (matched, reader), cases = found[0], list[Case]()
        findings += _split(site, matched)
        findings.append(_sample(matched, reader, cases))
        if plan is not None and cases:
            findings.append(look("a batch through the network", lambda: _batch(site, plan, cases)))
    return findings


def _key(site: Site) -> str:
    return load_signer(site).vkey


def _disk(site: Site) -> str:
    folder = next(parent for parent in [site.run.work, *site.run.work.parents] if parent.exists())
    if not folder.is_dir():
        raise ConfigError(f"run.work: {folder} is a file", "give a folder")
    free = shutil.disk_usage(folder).free
    if free < _SPACE:
        raise DataError(f"run.work: {folder} has {human_bytes(free)} free", f"free at least {human_bytes(_SPACE)}")
    return f"{human_bytes(free)} free"


def _memory() -> str:
    total, available = _linux_memory() or (os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),) * 2
    found = f"{human_bytes(available)} available of {human_bytes(total)}"
    if available < _MEMORY:
        raise DataError(found, f"end other programs, or add memory: {human_bytes(_MEMORY)} is the least")
    return found


def _linux_memory() -> tuple[int, int] | None:
    """Total and available bytes, of the container where it has less than the machine; None on other systems."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        sizes = {key: int(value.split()[0]) * 1024 for key, value in (line.split(":", 1) for line in lines)}
        total, available = sizes["MemTotal"], sizes["MemAvailable"]
    except (OSError, KeyError, ValueError, IndexError):
        return None
    try:
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())  # "max" where there is none
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return total, available
    return min(total, limit), min(available, max(0, limit - used))


def _device(site: Site) -> str:
    if site.run.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            'run.device: is "cuda", but torch sees no CUDA device',
            'install the driver and a torch with CUDA, or write device = "auto"',
        )
    device = device_for(site.run.device)
    if device.type == "cuda":
        return f"GPU: {torch.cuda.get_device_name(device)}"
    return f"CPU, {site.run.threads} of {os.cpu_count()} threads"


def _ledger(site: Site) -> str:
    if not site.ledger.exists():
        return "none yet; it is made at the first order"
    return f"{read(site.ledger, load_signer(site).verifier).head.size} lines, intact"


def _policy(site: Site) -> str:
    policy, approved = site.policy, _approved(site)
    empty = [f"policy.{key}" for key in ("tasks", "metrics") if not getattr(policy, key)]
    if empty:
        raise ConfigError(f"{' and '.join(empty)}: nothing is allowed", "name in [policy] what the hospital allows")
    if not policy.studies and not approved:
        raise ConfigError(
            "no study is allowed: none is approved, and policy.studies names none",
            "approve one (intramural-silo approve), or name it in policy.studies",
        )
    studies = ", ".join(sorted({entry.partition("@")[0] for entry in policy.studies} | approved))
    return f"{studies}: {', '.join(policy.tasks)}; {', '.join(policy.metrics)}; from {policy.min_patients} patients on"


def _salt(site: Site) -> str:
    if site.data.salt.startswith(_EXAMPLE):
        raise ConfigError(
            "data.salt: is still the example's, which everybody knows",
            "draw one before the first round: openssl rand -hex 16",
        )
    return "drawn"


def _approved(site: Site) -> set[str]:
    """Names of the studies that people approved and did not revoke since; none while there is no key or folder."""
    if not site.key.exists() or not site.run.work.is_dir():
        return set()
    return {name for name, yes in decisions.latest(site, load_signer(site).verifier).values() if yes}


def _study(site: Site, plan: Plan) -> str:
    policy = site.policy
    said, plans = _said(site, plan.name)
    named = [pinned for name, _, pinned in (entry.partition("@") for entry in policy.studies) if name == plan.name]
    problems = [
        (not named and not said.approved, f"{plan.name!r} is not approved, and policy.studies does not name it"),
        (plan.task.name not in policy.tasks, f"policy.tasks does not name {plan.task.name!r}"),
        (
            plan.strategy.weighs_by_loss and "loss" not in policy.metrics,
            f"policy.metrics does not name `loss`, by which {plan.strategy.name} weighs",
        ),
        (plan.rounds > policy.max_rounds, f"policy.max_rounds is below the {plan.rounds} rounds of the plan"),
        (
            plan.training.cases < policy.min_patients,
            f"policy.min_patients is above the {plan.training.cases:g} images that a round's steps take at most",
        ),
    ]
    found = [text for wrong, text in problems if wrong]
    if found:
        raise ConfigError("; ".join(found), "approve the study, and allow the rest in [policy], if the hospital agrees")
    withheld = sorted(set(plan.metrics) - set(policy.metrics))
    note = f"; {', '.join(withheld)} would be withheld" if withheld else ""
    return f"{plan.name} is allowed{_pinned(plan, named, said, plans)}{note}"


def _pinned(plan: Plan, named: list[str], said: Standing, plans: dict[str, Plan]) -> str:
    """To which study a plan's name is pinned, if to any: the gate lets no other study of this name in.

    Args:
        plan: The study to be ready for.
        named: Of each entry of `policy.studies` with this name, the digest or "".
        said: What was said of the studies of this name.
        plans: The plans of those that were let in, by digest.

    Raises:
        ConfigError: To one that was revoked, or that has another plan.
    """
    pins = {pinned for pinned in named if pinned}
    if named and not pins and said.first:
        pins = {said.first}
    let_in = sorted(said.approved | pins)
    if not let_in:
        return ""
    standing = [study for study in let_in if study not in said.revoked]
    # Only its agreement says whether a study that never came is of this plan.
    fitting = [study for study in standing if plans.get(study, plan) == plan]
    if not fitting:
        why = "whose plan is another" if standing else "which was revoked"
        raise ConfigError(
            f"{plan.name!r} is allowed by name, but pinned to {(standing or let_in)[0]}, {why}",
            "approve the study that is to come: intramural-silo approve SITE.toml AGREEMENT.json",
        )
    return f", pinned to {fitting[0]}: another study of this name needs intramural-silo approve"


def _said(site: Site, name: str) -> tuple[Standing, dict[str, Plan]]:
    """What was said here of the studies of one name, and the plans of those that were let in, by digest."""
    said, agreements = Standing(), list[Agreement]()
    if not site.key.exists() or not site.run.work.is_dir():
        return said, {}
    verifier = load_signer(site).verifier
    waiting = [item for _, item in decisions.waiting(site, verifier) if item.name == name]  # first, as in `latest`
    if site.ledger.exists():
        opened = read(site.ledger, verifier)
        said = decisions.standing(opened.records, name)
        lines = [line for line in decisions.words(opened.records) if line.body["name"] == name]
        kept = {line.body["agreement"] for line in lines if line.event == Event.STUDY_APPROVED}
        agreements += [Agreement.decode(opened.manifest(digest)) for digest in kept]
    for item in waiting:
        approved, revoked = said.approved - {item.study}, said.revoked - {item.study}
        if item.agreement:
            agreements.append(item.agreement)
            said = replace(said, first=said.first or item.study, approved=approved | {item.study}, revoked=revoked)
        else:
            said = replace(said, approved=approved, revoked=revoked | {item.study})
    return said, {agreement.study: agreement.plan for agreement in agreements}


def _cohort(
    site: Site,
    plan: Plan | None,
    found: list[tuple[Cohort, _Reader]],
    closed: list[str],
    progress: Report | None,
) -> str:
    if site.data.arrays is not None:
        return _arrays(site.data, site.data.arrays, plan, found)
    scanned = scan_site(site, progress, plan)
    closed += scanned.closed
    matched = match_cohort(site, scanned, plan)
    found.append((matched, lambda row: read_case(row, site.data, matched.classes, unit_of(site, plan))))
    left_out = ", ".join(f"{count} {reason}" for reason, count in matched.left_out.items()) or "nothing"
    return f"{len(matched.cases)} {_cases(matched)} of {scanned.files} files; left out: {left_out}"


def _arrays(data: Data, path: Path, plan: Plan | None, found: list[tuple[Cohort, _Reader]]) -> str:
    """Without a study, the numbers themselves stand for the classes."""
    arrays = read_arrays(path)
    words = plan.task.classes if plan else [str(number) for number in range(arrays.labels.max(initial=0) + 1)]
    matched = match_arrays(arrays, data, words, drawn=plan is not None and plan.task.drawn)
    found.append((matched, lambda row: Case(arrays.images[int(row.name)], label=int(row.target))))
    shape = " x ".join(map(str, arrays.images.shape[1:]))
    return f"{len(matched.cases)} {_cases(matched)} of {shape} in {path.name}"


def _cases(matched: Cohort) -> str:
    """What the cases are, for people."""
    if "stack" not in matched.cases:
        return "labelled images"
    return "labelled volumes" if (matched.cases["target"] >= 0).any() else "annotated volumes"


def _split(site: Site, matched: Cohort) -> list[Finding]:
    findings = []
    policy = site.policy
    least_held_out = "policy.min_patients" if policy.min_evaluated is None else "policy.min_evaluated"
    for held_out, what, needed, key in (
        (False, "patients to train on", policy.min_patients, "policy.min_patients"),
        (True, "patients held out", policy.least_evaluated, least_held_out),
    ):
        patients = matched.patients(held_out)
        counts = {name: len(matched.of_class(index, held_out)) for index, name in enumerate(matched.classes)}
        missing = [name for name, count in counts.items() if count == 0]
        told = ", ".join(f"{count} {name}" for name, count in counts.items())
        labelled = _cases(matched) != "annotated volumes"
        if held_out and labelled and "auc" in policy.metrics and patients >= needed > matched.rarest:
            told += "; too few patients of a class to tell auc"
        fix = ""
        if patients < needed:
            fix = f"{key} asks for {needed}: wait for more patients"
        elif missing:
            fix = f"no case of class {missing[0]}: change data.salt before the first round, or data.held_out"
        findings.append(Finding(what, not fix, f"{patients}; {_cases(matched).split()[1]}: {told}", fix))
    return findings


def _sample(matched: Cohort, reader: _Reader, cases: list[Case]) -> Finding:
    rows = matched.cases.iloc[:: max(1, len(matched.cases) // _SAMPLE)][:_SAMPLE]
    drawn, failed = Counter[str](), []
    what, masked = ("image", False) if "stack" not in rows else ("volume", bool((rows["target"] < 0).all()))
    for row in rows.itertuples(index=False):
        try:
            cases.append(reader(row))
        except DataError as error:
            failed.append(str(error))
            continue
        if (mask := cases[-1].mask) is not None:
            drawn.update({name: int((mask == index).sum()) for index, name in enumerate(matched.classes, start=1)})
    if failed:
        return Finding("pixels", False, f"{len(failed)} of {len(rows)} {what}s: {failed[0]}", "see the file named here")
    voxels = "; voxels drawn: " + ", ".join(f"{drawn[name]} {name}" for name in matched.classes) if masked else ""
    return Finding("pixels", not masked or drawn.total() > 0, f"a sample of {len(rows)} {what}s was read{voxels}")


def _batch(site: Site, plan: Plan, cases: list[Case]) -> str:
    """One step of training but for the step: a full batch of the sample, there and back."""
    task = tasks.task(plan.task)
    count = plan.training.batch_size
    cases = [task.prepare(case) for case in cases]
    inputs, targets = task.sample([cases[row % len(cases)] for row in range(count)], torch.Generator())
    torch.set_num_threads(site.run.threads)
    try:
        network = tasks.network(plan, device_for(site.run.device))
        inputs, targets = inputs.to(network.weights.device), targets.to(network.weights.device)
        network.module.train()

        def step(half: bool) -> tuple[float, float]:
            """The gradient's length, which waits for a GPU to finish; and seconds."""
            began = time.perf_counter()
            network.zero_grad()
            with torch.autocast(inputs.device.type, torch.bfloat16, enabled=half):
                outputs = network.module(inputs)
            task.loss(outputs.float(), targets).backward()  # type: ignore[no-untyped-call]
            return float(network.gradient.norm()), time.perf_counter() - began

        gradient, seconds = step(half=False)
        half = _half(network, plan, step) if plan.training.mixed_precision else ""
    except RuntimeError as error:  # torch's word for too little memory, too
        raise DataError(
            f"{plan.task.network.name}: a batch of {count} fails: {error}",
            "free memory, or ask the coordinator for a smaller batch_size",
        ) from error
    if not np.isfinite(gradient):
        raise DataError(f"{plan.task.network.name}: the gradient is not finite", "look at the images' values")
    size = Encoding(plan.encoding, network.spec).nbytes
    limit = min(site.policy.max_bytes, plan.max_bytes)
    if size > limit:
        raise ConfigError(
            f"an update has {human_bytes(size)}, the limit is {human_bytes(limit)}",
            "raise policy.max_bytes if the hospital agrees, or ask the coordinator about the plan's max_bytes",
        )
    parameters = sum(part.numel() for part in network.module.parameters())
    return f"{count} cases in {seconds:.2f} s; {parameters:,} parameters, {human_bytes(size)} per update{half}"


def _half(network: FlatNetwork, plan: Plan, step: Callable[[bool], tuple[float, float]]) -> str:
    """What the study's mixed precision means on this machine; measured once, and of no consequence."""
    if not trains_in_bfloat16(network.weights.device, plan.training):
        return "; trained in float32, as there is no bfloat16 here"
    full = min(step(False)[1] for _ in range(3))
    with layout(network):
        gain = full / min(step(True)[1] for _ in range(4))
    return f"; trained in bfloat16, {gain:.1f} times as fast as in float32 just now"
