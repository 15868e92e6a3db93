"""The rounds of a study: orders out, replies in, the next model; written down at every step.

`run` is one loop over any Flower Grid. It starts where the ledger says the study is, so a killed run
goes on with the round it was in, with the updates that had already been accepted. A silo that refuses,
fails or stays silent is recorded and the others go on; with fewer than `min_silos` accepted updates the
round is void and the old model stands. Where they are too few because hospitals have not approved the study,
or are away, the round is left open and the run ends with their names: more rounds would be void too.
"""

import functools
import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from aggregator import strategy, witnesses
from aggregator.audit.lines import is_receipt
from aggregator.grid import StudyGrid
from aggregator.history import History, read_history, write_metrics
from aggregator.sampling import drawn
from aggregator.strategy import Audited
from aggregator.study import Position, Study
from aggregator.visits import POLL, Visit, take_leave
from aggregator.weighing import Contribution
from models.errors import BadSignature, ConfigError, NotWitnessed, Rewritten, Rule
from models.exchange.channel import Channel
from models.exchange.documents import VisitKind
from models.exchange.spec import vector_digest
from models.exchange.statement import Statement
from models.ledger import Entry, Event, Record, read_partings

log = logging.getLogger("intramural.aggregator")

_UNAPPROVED = {Rule.STUDY_NOT_APPROVED, Rule.STUDY_CHANGED, Rule.STUDY_REVOKED}
_DISAGREE = {Rewritten.code, BadSignature.code}  # said of a ledger that is older than one seen before
_END = "or close it with the model that it has: run it with --end"
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


def run(
    study: Study, grid: StudyGrid, on_round: Callable[[History], None] | None = None, *, end: bool = False
) -> Outcome:
    """Run a study to its end, or go on with it.

    Args:
        study: Open for work.
        grid: Its hospitals.
        on_round: Called with the history so far when a round is over, and once more when the study is over: only then
            has the last model been measured.
        end: Train no more: the model that stands is the last one, as where hospitals have left for good.

    Returns:
        The final model and the history. Of a study that was over before, the same again: nothing is run, and leave is
        taken of hospitals that went without.

    Raises:
        ConfigError: Fewer silos than `min_silos`, one with another key than enrolled in a study that has not begun, a
            study that the grid cannot carry out, or a round for which too few hospitals are left because others are
            not connected, have not approved the study or lack witnesses; that round can be run again.
        LedgerError: The ledger cannot be written; nothing was sent after that.
    """
    plan, position = study.plan, study.position
    if not position.closed:
        least, rounds = (0, position.round) if end else (plan.min_silos, plan.rounds)
        _Run(study, grid, least).to_the_end(on_round, rounds)
        position = study.position
    else:
        log.warning("%s: the study is over; nothing was run", study.folder)
        study.drop_updates(before=plan.rounds + 1)  # a run that was killed may not have come to it
        _part(study, grid)
    history = read_history(study.ledger.records, plan)
    write_metrics(study.folder / "metrics.jsonl", history)
    if on_round:
        on_round(history)
    return Outcome(study.digest, study.model_path(position.model), position.digest, history)


def _part(study: Study, grid: StudyGrid) -> None:
    """Part from the hospitals of a study that was over before they could: it was killed then, or they were away."""
    parted = {parting.peer for parting in read_partings(study.ledger.folder) if parting.study == study.digest}
    left = {(name, vkey) for name, vkey in study.enrolled.items() if name not in parted}
    channels = {
        node: Channel(study.ledger, study.signer, silo, study.digest)
        for node, silo in grid.roster.items()
        if (silo.name, silo.vkey) in left
    }
    take_leave(grid, channels, [node for node in grid.get_node_ids() if node in channels])


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
    run = _Run(study, grid, study.plan.min_silos)
    there = run.wait_for(len(run.channels), _GATHER)
    run.visit(dict.fromkeys(run.unheard(Event.SURVEY_RECEIVED, there), "survey"), 0, study.position)


class _Run:
    """One run over one grid: the channels to its hospitals, of which there must be at least so many."""

    def __init__(self, study: Study, grid: StudyGrid, least: int) -> None:
        self.study, self.grid, self.plan = study, grid, study.plan
        self.strategy: Audited = strategy.build(study.plan)
        grid.require(study.plan)
        self.least = least
        self.require_enough(len(grid.roster))  # before the first line is written
        self.channels: dict[int, Channel] = {}
        self.turned_away: set[int] = set()
        self.enrol(strict=not any(record.round for record in study.ledger.of(Event.ORDER_OFFERED)))  # 0 is a survey
        self.require_enough(len(self.channels))

    def require_enough(self, count: int) -> None:
        """See that a round of so many hospitals can be more than void."""
        if count < self.least:
            raise ConfigError(
                f"min_silos: {self.plan.min_silos} are required, {count} silos take part",
                "let more silos take part, or lower min_silos in a new study",
            )

    def enrol(self, *, strict: bool = False) -> None:
        """Open a channel to every hospital that was admitted since.

        With one that may not take part, as under another key than enrolled, no study begins (`strict`); later it is
        left out, and the others go on.
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

    def to_the_end(self, on_round: Callable[[History], None] | None, rounds: int) -> None:
        study, plan = self.study, self.plan
        self.wait_for(len(self.channels), _GATHER)
        while (position := study.position).round < rounds:
            self.train(position)
            history = read_history(study.ledger.records, plan)
            write_metrics(study.folder / "metrics.jsonl", history)
            if on_round:
                on_round(history)
        self.visit(dict.fromkeys(self.unreported(self.wait_for(0, 0)), "evaluate"), plan.rounds, position)
        closing = self.unheard(Event.CLOSING_RECEIVED, self.wait_for(0, 0))
        self.visit(dict.fromkeys(closing, "close"), plan.rounds, position)
        study.ledger.append(Entry(Event.STUDY_CLOSED, {"model": position.digest}, study.digest, plan.rounds))
        study.drop_updates(before=plan.rounds + 1)  # of a round that was left open too
        take_leave(self.grid, self.channels, self.wait_for(0, 0))

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
        study.drop_updates(before=round_)  # a run that was killed may not have come to it
        there = self.wait_for(self.plan.min_silos, self.plan.deadline, accepted)
        self.require_there(round_, {*accepted, *map(self.name, there)})
        chosen = {self.name(node): node for node in self.strategy.choose(round_, self.grid) if node in there}
        names = self.drawn(round_, chosen, accepted)
        trains = [node for name, node in chosen.items() if name in names and name not in accepted]
        others = [node for name, node in chosen.items() if name not in names]
        kinds: dict[int, VisitKind] = dict.fromkeys(trains, "train")
        kinds |= dict.fromkeys(self.unreported(others), "evaluate")
        self.share_head(kinds, list(chosen.values()), round_, position)
        before = len(ledger.records)
        self.visit(kinds, round_, position)
        accepted = self.accepted(round_, digest)
        everybody = {self.name(node) for node in self.channels}
        asked = {} if self.plan.silos_per_round is None else {"asked": names}
        excluded = sorted({*(names if asked else everybody), *self.updates(round_, digest)} - set(accepted))
        if len(accepted) < self.plan.min_silos:
            self.require_willing(round_, {*chosen, *accepted}, before)
            body = {
                "accepted": sorted(accepted),
                "excluded": excluded,
                "required": self.plan.min_silos,
                "model": digest,
                **asked,
            }
            ledger.append(Entry(Event.ROUND_VOID, body, study.digest, round_))
            log.warning("round %d is void: %d of %d required updates", round_, len(accepted), self.plan.min_silos)
            return
        base = functools.partial(study.load_model, position.model, digest)
        contributions = [item.contribution for item in accepted.values()]
        state, silos = study.load_state(position), (position.silos, len(study.enrolled))
        combined = self.strategy.combine(position.combined + 1, base, contributions, state, silos)
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
        study.drop_states(before=round_)

    def drawn(self, round_: int, there: Collection[str], accepted: Collection[str]) -> list[str]:
        """Names of those who train in a round. Whose update is here was drawn before the run was killed, and stays."""
        count = self.plan.silos_per_round
        left = None if count is None else max(0, count - len(accepted))
        return sorted({*accepted, *drawn(self.plan.seed, round_, set(there) - set(accepted), left)})

    def share_head(self, asked: Collection[int], there: list[int], round_: int, position: Position) -> None:
        """Show one head to everybody who is there, if one of those who are to be asked was shown one alone.

        A hospital that was asked once more, after the others, saw what they did not, and refuses until they have. Were
        it shown to them with the round's own orders, that hospital could begin only when they are done: too late where
        training is long, and alone again in every later round.
        """
        shown = {self.name(node): sizes[-1] for node in asked if (sizes := self.channels[node].sizes)}
        if witnesses.lacking(self.study, shown):
            self.visit(dict.fromkeys(there, "evaluate"), round_, position, again=False)

    def require_there(self, round_: int, there: Collection[str]) -> None:
        """See that a round has enough hospitals before anybody is asked: what they are asked counts for them.

        Args:
            round_: The round.
            there: Names of the hospitals that are connected, or whose update is here.

        Raises:
            ConfigError: It has not; it is left open, so that it can be run when they are back.
        """
        least = self.plan.min_silos
        if len(there) < least:
            away = ", ".join(sorted({self.name(node) for node in self.channels} - set(there)))
            raise ConfigError(
                f"{self.study.folder}: round {round_} cannot have min_silos = {least} updates; not connected: {away}",
                f"wait until they are, then run it again; {_END}",
            )

    def require_willing(self, round_: int, there: Collection[str], before: int) -> None:
        """See that a round is not void for what time or people can mend: more rounds would be void as well.

        The round is left open, so that it can be run again once the hospitals have approved the study, are back, or
        have the ledger again that was seen here.

        Args:
            round_: The round; it has too few updates.
            there: Names of the hospitals that can take part in it.
            before: How many lines the ledger had before they were asked.

        Raises:
            ConfigError: Without those that have not approved the study, whose ledger and this one disagree, or that
                lack witnesses who are away, it cannot have enough.
        """
        study = self.study
        last = {_sender(record): record for record in study.ledger.records[before:]}
        codes = {name: record.body.get("code", "") for name, record in last.items() if name}
        apart = {
            name
            for name, code in codes.items()
            if last[name].event == Event.REPLY_REJECTED and code.partition(".")[0] in _DISAGREE
        }
        away = sorted(witnesses.members(study) - set(there) | apart)
        mendable = {*_UNAPPROVED, *([NotWitnessed.code] if away else [])}
        said = {
            name: code
            for name, code in codes.items()
            if name in apart or (last[name].event == Event.REFUSAL_RECEIVED and code in mendable)
        }
        if not said or len(set(there) - said.keys()) >= self.plan.min_silos:
            return
        if apart:
            names = ", ".join(sorted(apart))
            hint = (
                f"the ledger of {names}, or this one, is older than it was: restore the newest, then run it again; or "
                "dismiss who has none"
            )
        elif _UNAPPROVED.isdisjoint(said.values()):
            hint = f"wait for {', '.join(away)} to be connected, then run it again"
        else:
            path = study.folder / "agreement.json"
            hint = f"approve it there: intramural-silo approve SITE.toml {path}, then run it again"
        hint += f"; {_END}"
        told = ", ".join(f"{name}: {code}" for name, code in sorted(said.items()))
        least = self.plan.min_silos
        raise ConfigError(
            f"{study.folder}: round {round_} cannot have min_silos = {least} updates; refused: {told}", hint
        )

    def updates(self, round_: int, base: str) -> dict[str, Record]:
        """The lines of a round's accepted updates, by hospital."""
        return {
            record.body["statement"]["src"]: record
            for record in self.study.ledger.of(Event.UPDATE_RECEIVED)
            if (record.round, record.body["base"]) == (round_, base)
        }

    def accepted(self, round_: int, base: str) -> "dict[str, _Accepted]":
        """The updates of a round that the ledger says were accepted and that are still on disk."""
        found: dict[str, _Accepted] = {}
        for name, record in self.updates(round_, base).items():
            statement, digest = record.body["statement"], record.body["digest"]
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

    def visit(self, kinds: Mapping[int, VisitKind], round_: int, position: Position, *, again: bool = True) -> None:
        """Send each node the order for it, and take in what comes back; see `Visit.make`."""
        Visit(self.study, self.grid, self.channels, kinds, round_, position).make(again=again)

    def name(self, node: int) -> str:
        """The hospital of a node."""
        return self.channels[node].peer.name


def _sender(record: Record) -> str:
    """Whose answer a line is of, used or not; empty if it is of none."""
    if record.event == Event.REPLY_REJECTED and "silo" in record.body:
        return str(record.body["silo"])
    return str(record.body["statement"]["src"]) if is_receipt(record) else ""


@dataclass(frozen=True)
class _Accepted:
    xid: str
    digest: str
    contribution: Contribution
