"""What a study's ledger tells of its final model: the facts that card and bundle are written from.

Read from signed lines and from the manifests that they name, and from nothing else. How many patients or
images a hospital has is told as the band that the hospital told; a count that came exactly is left out.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from aggregator.audit.lines import taken, versions
from aggregator.exports.fact import Fact, band, facts, filters
from models.errors import ConfigError
from models.exchange.documents import Agreement, Examples, Manifest
from models.ledger import Event, Opened
from models.plan import Plan

EXACT = "told to the coordinator"


@dataclass
class Hospital:
    """One hospital that had a part in the final model.

    Attributes:
        name: As the coordinator enrolled it.
        rounds: Rounds that its updates went into.
        examples: How many patients or images its update of the last round was trained on, as a band.
        filters: What its gate did to the newest update of it that went into any round.
        epsilon: Differential privacy spent by it up to that update, in words.
        evaluated: How many held-out images it measured the final model on, as a band.
        metrics: What it measured.
        withheld: Metrics that its policy kept back.
        software: Names and versions of what computed it.
    """

    name: str
    rounds: int = 0
    examples: str = ""
    filters: list[str] = field(default_factory=list)
    epsilon: str = ""
    evaluated: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    withheld: list[str] = field(default_factory=list)
    software: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Papers:
    """All that is told of a final model.

    Attributes:
        agreement: What was approved.
        round: The round that made the model.
        model: Its digest.
        void: Rounds without a model.
        hospitals: Those that had a part in it, by name.
        exact: Names of those that told a count exactly.
    """

    agreement: Agreement
    round: int
    model: str
    void: int
    hospitals: dict[str, Hospital]
    exact: list[str]

    @property
    def plan(self) -> Plan:
        """The study's plan."""
        return self.agreement.plan


def papers(opened: Opened, agreement: Agreement) -> Papers:
    """Read what a closed study's ledger tells of its final model.

    Args:
        opened: The coordinator's ledger, read and verified.
        agreement: The study's.

    Raises:
        ConfigError: The study is not closed, or no round of it made a model.
    """
    found = [fact for fact in facts(opened) if fact.record.study == agreement.study]
    sums = [fact for fact in found if fact.record.event == Event.AGGREGATED]
    if not any(fact.record.event == Event.STUDY_CLOSED for fact in found):
        raise ConfigError(
            f"{opened.folder.parent}: the study is not closed", "run it to its end: intramural-aggregator run"
        )
    if not sums:
        raise ConfigError(f"{opened.folder.parent}: no round of the study made a model", "there is nothing to release")
    last = sums[-1].record
    hospitals: dict[str, Hospital] = {}
    used: set[str] = set()  # updates that went into any round
    for fact in sums:
        for item in taken(fact.record):
            hospitals.setdefault(item["silo"], Hospital(item["silo"])).rounds += 1
            used.add(item["xid"])
    shown = {item["xid"] for item in last.body["inputs"]}  # the proof repeats their weights, taken or not
    newest = {item["xid"] for item in taken(last)}
    exact: set[str] = set()
    for fact, manifest in _manifests(found):
        measured = fact.record.event == Event.REPORT_RECEIVED and manifest.base == last.body["model"]
        if (fact.xid in shown or measured) and (_is_exact(manifest.examples) or _is_exact(manifest.evaluated)):
            exact.add(fact.source)
        if fact.xid not in used and not measured:
            continue
        hospital = hospitals.setdefault(fact.source, Hospital(fact.source))
        hospital.software = versions(manifest.software)
        if measured:
            hospital.evaluated = _band(manifest.evaluated)
            hospital.metrics = dict[str, float](manifest.metrics.items())
            hospital.withheld = [*manifest.withheld]
        else:
            hospital.examples = _band(manifest.examples) if fact.xid in newest else ""
            hospital.filters = filters(manifest)
            hospital.epsilon = f"{manifest.privacy.epsilon:g}" if manifest.privacy else "no noise: not bounded"
    void = sum(fact.record.event == Event.ROUND_VOID for fact in found)
    return Papers(agreement, last.round or 0, last.body["model"], void, dict(sorted(hospitals.items())), sorted(exact))


def _manifests(found: Iterable[Fact]) -> Iterable[tuple[Fact, Manifest]]:
    """Accepted updates and reports with what their hospitals listed."""
    received = (Event.UPDATE_RECEIVED, Event.REPORT_RECEIVED)
    return ((fact, fact.manifest) for fact in found if fact.record.event in received and fact.manifest is not None)


def _is_exact(count: Examples | None) -> bool:
    return count is not None and count.unit != "silos" and count.low == count.high


def _band(count: Examples | None) -> str:
    """A band as it was told; a hospital's weight of one among equals is no count."""
    if count is None or count.unit == "silos":
        return ""
    return EXACT if _is_exact(count) else band(count)
