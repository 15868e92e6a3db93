"""Whether a hospital is ready: each thing that can be wrong, looked at in turn, with what to do about it."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from models.console import Report, human_bytes
from models.errors import DataError, IntramuralError
from models.ledger import read
from models.plan import Plan
from silos import cohort
from silos.cohort import Cohort
from silos.config import Site
from silos.dicom.decode import read_image
from silos.visit import load_signer, scan_site

_SAMPLE = 8  # images decoded, spread over the cohort
_SPACE = 10**9  # bytes of the work folder's disk


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: What.
        ok: Whether it is as it must be.
        found: What was found.
        fix: What to do; empty if nothing.
    """

    what: str
    ok: bool
    found: str
    fix: str = ""


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
        _try("key", lambda: _key(site)),
        _try("disk", lambda: _disk(site)),
        _try("ledger", lambda: _ledger(site)),
    ]
    if plan is not None:
        findings.append(_study(site, plan))
    found: list[Cohort] = []
    findings.append(_try("images and labels", lambda: _cohort(site, plan, found, progress)))
    if found:
        findings += _split(site, found[0])
        findings.append(_sample(site, found[0]))
    return findings


def _try(what: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(what, True, look())
    except IntramuralError as error:
        return Finding(what, False, str(error), error.hint)


def _key(site: Site) -> str:
    return load_signer(site).vkey


def _disk(site: Site) -> str:
    folder = next(parent for parent in [site.run.work, *site.run.work.parents] if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < _SPACE:
        raise DataError(f"run.work: {folder} has {human_bytes(free)} free", f"free at least {human_bytes(_SPACE)}")
    return f"{human_bytes(free)} free"


def _ledger(site: Site) -> str:
    folder = site.run.work / "ledger"
    if not folder.exists():
        return "none yet; it is made at the first order"
    return f"{read(folder, load_signer(site).verifier).head.size} lines, intact"


def _study(site: Site, plan: Plan) -> Finding:
    names = {entry.partition("@")[0] for entry in site.policy.studies}
    problems = [
        (plan.name not in names, f"policy.studies does not name {plan.name!r}"),
        (plan.task.name not in site.policy.tasks, f"policy.tasks does not name {plan.task.name!r}"),
        (
            plan.rounds > site.policy.max_rounds,
            f"policy.max_rounds is below the {plan.rounds} rounds of the plan",
        ),
    ]
    found = [text for wrong, text in problems if wrong]
    withheld = sorted(set(plan.metrics) - set(site.policy.metrics))
    note = f"; {', '.join(withheld)} would be withheld" if withheld else ""
    if found:
        return Finding("policy for the study", False, "; ".join(found), "allow it in [policy] if the hospital agrees")
    return Finding("policy for the study", True, f"{plan.name} is allowed{note}")


def _cohort(site: Site, plan: Plan | None, found: list[Cohort], progress: Report | None) -> str:
    classes = plan.task.classes if plan else sorted({word for word in site.data.labels.words.values() if word})
    scanned = scan_site(site, progress)
    matched = cohort.match(scanned.instances, site.data, classes, scanned.left_out)
    found.append(matched)
    left_out = ", ".join(f"{count} {reason}" for reason, count in matched.left_out.items()) or "nothing"
    return f"{len(matched.cases)} labelled images of {scanned.files} files; left out: {left_out}"


def _split(site: Site, matched: Cohort) -> list[Finding]:
    findings = []
    least = site.policy.min_patients if site.policy.min_evaluated is None else site.policy.min_evaluated
    for held_out, what, needed, key in (
        (False, "patients to train on", site.policy.min_patients, "policy.min_patients"),
        (True, "patients held out", least, "policy.min_evaluated"),
    ):
        side, patients = matched.side(held_out), matched.patients(held_out)
        counts = side["target"].value_counts()
        missing = [name for index, name in enumerate(matched.classes) if counts.get(index, 0) == 0]
        told = ", ".join(f"{counts.get(index, 0)} {name}" for index, name in enumerate(matched.classes))
        fix = ""
        if patients < needed:
            fix = f"{key} asks for {needed}: wait for more patients"
        elif missing:
            fix = f"no image of class {missing[0]}: change data.salt before the first round, or data.held_out"
        findings.append(Finding(what, not fix, f"{patients}; images: {told}", fix))
    return findings


def _sample(site: Site, matched: Cohort) -> Finding:
    paths = list(matched.cases["path"])[:: max(1, len(matched.cases) // _SAMPLE)][:_SAMPLE]
    failed = []
    for path in paths:
        try:
            read_image(site.data.root / path)
        except DataError as error:
            failed.append(str(error))
    if failed:
        return Finding("pixels", False, f"{len(failed)} of {len(paths)} images: {failed[0]}", "see the file named here")
    return Finding("pixels", True, f"a sample of {len(paths)} images was decoded")
