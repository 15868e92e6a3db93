"""The rounds of a study: orders out, replies in, the next model; written down at every step.

`run` is one loop over any Flower Grid. It starts where the ledger says the study is, so a killed run
goes on with the round it was in, with the updates that had already been accepted. A silo that refuses,
fails or stays silent is recorded and the others go on; with fewer than `min_silos` accepted updates the
round is void and the old model stands.
"""

import functools
import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from aggregator import strategy
from aggregator.grid import StudyGrid
from aggregator.history import History, read_history, write_metrics
from aggregator.sampling import drawn
from aggregator.strategy import Audited
from aggregator.study import Position, Study
from aggregator.visits import POLL, Visit, part
from aggregator.weighing import Contribution
from models.errors import ConfigError, Rule
from models.exchange.channel import Channel
from models.exchange.documents import VisitKind
from models.exchange.spec import vector_digest
from models.exchange.statement import Statement
from models.ledger import Entry, Event

log = logging.getLogger("intramural.aggregator")

_UNAPPROVED = {Rule.STUDY_NOT_APPROVED, Rule.STUDY_CHANGED, Rule.STUDY_REVOKED}
_GATHER = 10.0  # seconds that a run's first round waits for hospitals that are still connecting


@dataclass(frozen=True)
class Outcome:
    """What a study came to.

    Attributes:
        study: The study's digest.
        model: File of the final model.
        digest: Its digest.
        history: Every round.
    """

    study: str
    model: Path
    digest: str
    history: History


def run(study: Study, grid: StudyGrid, on_round: Callable[[History], None] | None = None) -> Outcome:
    """Run a study to its end, or go on with it.

    Args:
        study: Open for work.
        grid: Its hospitals.
        on_round: Called with the history so far when a round is over, and once more when the study is over: only then
            has the last model been measured.

    Returns:
        The final model and the history; of a study that was over before, the same again, and nothing is run.

    Raises:
        ConfigError: Fewer silos than `min_silos`, one with another key than enrolled, a study that the grid cannot
            carry out, or one that every silo refuses in the first round because it is not approved there; that round
            can be run again.
        LedgerError: The ledger cannot be written; nothing was sent after that.
    """
    plan, position = study.plan, study.position
    if not position.closed:
        _Run(study, grid).to_the_end(on_round)
        position = study.position
    else:
        log.warning("%s: the study is over; nothing was run", study.folder)
    history = read_history(study.ledger.records, plan)
    write_metrics(study.folder / "metrics.jsonl", history)
    if on_round:
        on_round(history)
    return Outcome(study.digest, study.model_path(position.model), position.digest, history)


def survey(study: Study, grid: StudyGrid) -> None:
    """Ask every hospital that has not said it yet what it could train on; the answers are in the ledger.

    Args:
        study: Open for work, and not over.
        grid: Its hospitals.

    Raises:
        ConfigError: The study is over, there are fewer silos than `min_silos`, or one has another key.
        LedgerError: The ledger cannot be written; nothing was sent after that.
    """
    if study.position.closed:
        raise ConfigError(f"{study.folder}: the study is over", "survey the hospitals for a new study")
    run = _Run(study, grid)
    there = run.wait_for(len(run.channels), _GATHER)
    run.visit(dict.fromkeys(run.unheard(Event.SURVEY_RECEIVED, there), "survey"), 0, study.position)


class _Run:
    """One run over one grid: the channels to its hospitals."""

    def __init__(self, study: Study, grid: StudyGrid) -> None:
        self.study, self.grid, self.plan = study, grid, study.plan
        self.strategy: Audited = strategy.build(study.plan)
        grid.require(study.plan)
        if len(grid.roster) < study.plan.min_silos:
            raise ConfigError(
                f"min_silos: {study.plan.min_silos} are required, {len(grid.roster)} silos take part",
                "let more silos take part, or lower min_silos in a new study",
            )
        self.channels: dict[int, Channel] = {}
        self.turned_away: set[int] = set()
        self.enrol(strict=True)

    def enrol(self, *, strict: bool = False) -> None:
        """Open a channel to every hospital that was admitted since.

        One that may not take part, as under another key than enrolled, starts nothing; later it is left out, and the
        others go on.
        """
        study = self.study
        for node, silo in sorted(self.grid.roster.items(), key=lambda item: item[1].name):
            if node in self.channels or node in self.turned_away:
                continue
            try:
                study.enrol(silo)
            except ConfigError as error:
                if strict:
                    raise
                log.warning("%s takes no part: %s; %s", silo.name, error, error.hint)
                self.turned_away.add(node)
            else:
                self.channels[node] = Channel(study.ledger, study.signer, silo, study.digest)

    def to_the_end(self, on_round: Callable[[History], None] | None) -> None:
        study, plan = self.study, self.plan
        self.wait_for(len(self.channels), _GATHER)
        while (position := study.position).round < plan.rounds:
            self.train(position)
            history = read_history(study.ledger.records, plan)
            write_metrics(study.folder / "metrics.jsonl", history)
            if on_round:
                on_round(history)
        self.visit(dict.fromkeys(self.unreported(self.wait_for(0, 0)), "evaluate"), plan.rounds, position)
        closing = self.unheard(Event.CLOSING_RECEIVED, self.wait_for(0, 0))
        self.visit(dict.fromkeys(closing, "close"), plan.rounds, position)
        study.ledger.append(Entry(Event.STUDY_CLOSED, {"model": position.digest}, study.digest, plan.rounds))
        part(self.grid, self.channels, self.wait_for(0, 0))

    def wait_for(self, count: int, seconds: float, done: Collection[str] = ()) -> list[int]:
        """The hospitals that are connected, once they and those that are done are so many or the time is over."""
        deadline = time.monotonic() + seconds
        while True:
            self.enrol()
            there = [node for node in self.grid.get_node_ids() if node in self.channels]
            if len({*done, *map(self.name, there)}) >= count or time.monotonic() >= deadline:
                return there
            time.sleep(POLL)

    def train(self, position: Position) -> None:
        """One round: updates that are still missing are asked for, then all are combined."""
        study, ledger, round_, digest = self.study, self.study.ledger, position.round + 1, position.digest
        accepted = self.accepted(round_, digest)
        there = self.wait_for(self.plan.min_silos, self.plan.deadline, accepted)
        chosen = {self.name(node): node for node in self.strategy.choose(round_, self.grid) if node in there}
        names = drawn(self.plan.seed, round_, {*chosen, *accepted}, self.plan.silos_per_round)
        trains = [node for name, node in chosen.items() if name in names and name not in accepted]
        others = [node for name, node in chosen.items() if name not in names]
        kinds: dict[int, VisitKind] = dict.fromkeys(trains, "train")
        before = len(ledger.records)
        self.visit(kinds | dict.fromkeys(self.unreported(others), "evaluate"), round_, position)
        accepted = self.accepted(round_, digest)
        everybody = {self.name(node) for node in self.channels}
        if round_ == 1:
            self.require_approved(everybody, before)
        asked = {} if self.plan.silos_per_round is None else {"asked": names}
        excluded = sorted((set(names) if asked else everybody) - set(accepted))
        if len(accepted) < self.plan.min_silos:
            body = {
                "accepted": sorted(accepted),
                "excluded": excluded,
                "required": self.plan.min_silos,
                "model": digest,
                **asked,
            }
            ledger.append(Entry(Event.ROUND_VOID, body, study.digest, round_))
            log.warning("round %d is void: %d of %d required updates", round_, len(accepted), self.plan.min_silos)
            study.drop_updates(round_)
            return
        base = functools.partial(study.load_model, position.model, digest)
        contributions = [item.contribution for item in accepted.values()]
        state, silos = study.load_state(position), len(study.enrolled)
        combined = self.strategy.combine(round_, base, contributions, state, silos)
        output = vector_digest(study.spec.digest, combined.model)
        study.save_model(round_, combined.model, output)
        remembered = study.save_state(round_, combined.state)
        body = {
            "inputs": [
                {"silo": name, "xid": item.xid, "digest": item.digest, "weight": item.contribution.weight}
                for name, item in sorted(accepted.items())
            ],
            "excluded": excluded,
            "strategy": self.plan.strategy.model_dump(mode="json"),
            "base": digest,
            "model": output,
            **({"state": remembered} if remembered else {}),
            **({} if combined.selected is None else {"selected": list(combined.selected)}),
            **asked,
        }
        ledger.append(Entry(Event.AGGREGATED, body, study.digest, round_))
        study.drop_updates(round_)
        study.drop_states(before=round_)

    def require_approved(self, everybody: Collection[str], before: int) -> None:
        """See that not every hospital refused the study itself: more rounds would change nothing, and close it.

        The round is left open, so that it can be run again once the hospitals have approved the study.

        Args:
            everybody: Names of the hospitals.
            before: How many lines the ledger had before they were asked.

        Raises:
            ConfigError: Every one refused.
        """
        study = self.study
        said = {
            str(record.body["statement"]["src"]): str(record.body["code"])
            for record in study.ledger.records[before:]
            if record.event == Event.REFUSAL_RECEIVED
        }
        if said.keys() == set(everybody) and _UNAPPROVED.issuperset(said.values()):
            told = ", ".join(f"{name}: {code}" for name, code in sorted(said.items()))
            raise ConfigError(
                f"{study.folder}: every hospital refuses: {told}",
                f"approve it there: intramural-silo approve SITE.toml {study.folder / 'agreement.json'}; or give the "
                "study another name",
            )

    def accepted(self, round_: int, base: str) -> "dict[str, _Accepted]":
        """The updates of a round that the ledger says were accepted and that are still on disk."""
        found: dict[str, _Accepted] = {}
        for record in self.study.ledger.of(Event.UPDATE_RECEIVED):
            if record.round != round_ or record.body["base"] != base:
                continue
            statement, digest = record.body["statement"], record.body["digest"]
            name = statement["src"]
            if self.study.has_update(round_, name, digest):
                load = functools.partial(self.study.load_update, round_, name, digest)
                part = functools.partial(self.study.load_update_part, round_, name)
                loss = record.body.get("metrics", {}).get("loss")
                contribution = Contribution(name, record.body["weight"], load, part, loss)
                found[name] = _Accepted(Statement.parse(statement).xid, digest, contribution)
        return found

    def unheard(self, answer: Event, nodes: list[int]) -> list[int]:
        """Those of some hospitals whose answer of a kind that is given once in a study has not come yet."""
        heard = {record.body["statement"]["src"] for record in self.study.ledger.of(answer)}
        return [node for node in nodes if self.name(node) not in heard]

    def unreported(self, nodes: list[int]) -> list[int]:
        """Those of some hospitals that have not reported yet on the model that stands."""
        heard = set()
        for record in reversed(self.study.ledger.records):
            if record.event in (Event.AGGREGATED, Event.ROUND_VOID):
                break
            if record.event == Event.REPORT_RECEIVED:
                heard.add(record.body["statement"]["src"])
        return [node for node in nodes if self.name(node) not in heard]

    def visit(self, kinds: Mapping[int, VisitKind], round_: int, position: Position) -> None:
        """Send each node the order for it, and take in what comes back."""
        Visit(self.study, self.grid, self.channels, kinds, round_, position).make()

    def name(self, node: int) -> str:
        """The hospital of a node."""
        return self.channels[node].peer.name


@dataclass(frozen=True)
class _Accepted:
    xid: str
    digest: str
    contribution: Contribution
