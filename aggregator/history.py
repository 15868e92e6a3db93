"""What happened in a study, round by round, read from its ledger alone.

Models are numbered by the round that made them; model 0 is the initial one. A silo measures the model
that it receives, so the numbers of model k come with round k + 1, and those of the last model with the
final visit.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aggregator.folder import read_agreement
from models.exchange.documents import Agreement
from models.ledger import Event, Record, Verifier, read
from models.ledger.disk import publish
from models.plan import Plan


@dataclass
class Round:
    """One model of a study, the round that made it, and what the silos measured of it.

    Attributes:
        number: The round; 0 stands for the initial model.
        model: Digest of the model that stood after the round.
        void: Whether the round combined nothing.
        accepted: Silos whose update was accepted; the strategy may have chosen among them.
        refused: Silos that gave none, each with its code.
        nbytes: Bytes of documents and arrays that silos shared in the round; a survey counts for 0, the final visit for
            the last one.
        metrics: Each silo's metrics of this round's model.
        examples: Middle of each silo's band of evaluated images.
        work: Share of its planned work that each silo did, in a study that takes partial work.
    """

    number: int
    model: str
    void: bool = False
    accepted: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    nbytes: int = 0
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    examples: dict[str, float] = field(default_factory=dict)
    work: dict[str, float] = field(default_factory=dict)

    def mean(self, metric: str) -> float | None:
        """Mean of a metric over the silos, weighted by evaluated images; None if no silo gave it."""
        silos = [silo for silo, values in self.metrics.items() if metric in values]
        total = math.fsum(self.examples[silo] for silo in silos)
        if not silos or total <= 0:
            return None
        return math.fsum(self.metrics[silo][metric] * self.examples[silo] for silo in silos) / total

    def as_json(self) -> dict[str, Any]:
        """The round as JSON values."""
        names = sorted({name for values in self.metrics.values() for name in values})
        return {
            "round": self.number,
            "model": self.model,
            "void": self.void,
            "accepted": self.accepted,
            "refused": self.refused,
            "bytes": self.nbytes,
            **({"work": self.work} if self.work else {}),
            "metrics": self.metrics,
            "mean": {name: self.mean(name) for name in names},
        }


@dataclass(frozen=True)
class History:
    """Every round of a study, the initial model first.

    Attributes:
        plan: What was planned.
        rounds: What happened.
        closed: Whether the study is over.
    """

    plan: Plan
    rounds: list[Round]
    closed: bool = False

    @property
    def silos(self) -> list[str]:
        """Every silo that ever answered or failed to."""
        names = {name for r in self.rounds for name in [*r.accepted, *r.refused, *r.metrics]}
        return sorted(names)


def read_history(records: Sequence[Record], plan: Plan) -> History:
    """Read a study's rounds from the lines of its ledger."""
    current = Round(0, "")
    rounds = [current]
    coming = Round(1, "")
    for record in records:
        body = record.body
        if record.event == Event.STUDY_CREATED:
            current.model = body["model"]
        elif record.event in (Event.UPDATE_RECEIVED, Event.REPORT_RECEIVED):
            if "metrics" in body:
                silo = body["statement"]["src"]
                current.metrics[silo], current.examples[silo] = body["metrics"], body["evaluated"]
        elif record.event in (Event.AGGREGATED, Event.ROUND_VOID):
            coming.model, coming.void = body["model"], record.event == Event.ROUND_VOID
            coming.accepted = [] if coming.void else [item["silo"] for item in body["inputs"]]
            for silo in coming.accepted:
                coming.refused.pop(silo, None)
            current, coming = coming, Round(coming.number + 1, "")
            rounds.append(current)
        if record.event in _REPLIES:
            (current if record.round == current.number else coming).nbytes += body.get("statement", {}).get("nbytes", 0)
        if record.round is None or record.round != coming.number:
            continue
        if "work" in body:
            coming.work[body["statement"]["src"]] = body["work"]
        if record.event in REFUSALS:
            coming.refused[silo_of(body)] = "silent" if record.event == Event.SILO_SILENT else body["code"]
    return History(plan, rounds, closed=any(record.event == Event.STUDY_CLOSED for record in records))


def read_study(folder: Path) -> tuple[Agreement, History]:
    """Read a study folder without opening it for work; another process may be at work on it.

    Raises:
        ConfigError: It is no study folder.
        Malformed: The agreement cannot be read.
        LedgerError: Its ledger is not the one that was signed.
    """
    agreement = read_agreement(folder)
    records = read(folder / "ledger", Verifier.parse(agreement.coordinator_key)).records
    return agreement, read_history(records, agreement.plan)


def write_metrics(path: Path, history: History) -> None:
    """Write the history as JSON lines, one per round."""
    lines = [json.dumps(item.as_json(), sort_keys=True) for item in history.rounds]
    publish(path, ("\n".join(lines) + "\n").encode())


REFUSALS = {Event.REFUSAL_RECEIVED, Event.REPLY_REJECTED, Event.SILO_SILENT}
"""The lines that say that a silo gave nothing."""

_REPLIES = {
    *(Event.SURVEY_RECEIVED, Event.UPDATE_RECEIVED, Event.REPORT_RECEIVED, Event.CLOSING_RECEIVED),
    *(Event.REFUSAL_RECEIVED, Event.REPLY_REJECTED),
}


def silo_of(body: Mapping[str, Any]) -> str:
    """The silo that such a line is about."""
    return str(body["silo"] if "silo" in body else body["statement"]["src"])
