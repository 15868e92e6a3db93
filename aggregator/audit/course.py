"""The course of a study, as its coordinator's lines tell it: which model follows from which updates, and stands when.

No arrays are needed, so it is checked of every study. It is created once and first, and closed last; each round comes
once, in order. Each model is made from the one before it and from accepted updates with the weights that their
hospitals signed, each once, as many as the plan asks for and none passed over in silence, nor is one in a void round.
Every order offers the newest model, with which void rounds and the study end too. That the arithmetic is right,
`replay` shows.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from aggregator.audit import lines
from models.canonical import canonical, digest, parse
from models.errors import IntramuralError, Malformed
from models.ledger import Event, Opened, Record

_STANDS = (Event.ROUND_VOID, Event.STUDY_CLOSED, Event.MODEL_RELEASED)
_AFTER = (Event.MODEL_RELEASED, Event.EXCHANGE_RECEIPT)
_ROUNDS = (Event.AGGREGATED, Event.ROUND_VOID)
_STEPS = (Event.SILO_ENROLLED, Event.ORDER_OFFERED, *_ROUNDS, Event.STUDY_CLOSED, Event.MODEL_RELEASED)
"""What nobody writes of a study but who has created it."""


def check_course(opened: Opened) -> Iterator[str]:
    """How the lines of a coordinator contradict each other, by line; a hospital's have no course.

    Args:
        opened: Its ledger, of which every line says what its event can say.
    """
    courses: dict[str | None, _Course | None] = {}
    for record in opened.records:
        where, course = f"line {record.seq + 1}", courses.get(record.study)
        try:
            if record.event == Event.STUDY_CREATED and record.study in courses:
                yield f"{where}: the study was created before"
            elif record.event == Event.STUDY_CREATED:
                courses[record.study] = None
                courses[record.study] = _Course(opened, record)
            elif course:
                yield from (f"{where}: {what}" for what in course.follow(record))
            elif record.event in _STEPS and record.study not in courses:
                yield f"{where}: the study was not created before"
        except IntramuralError:
            continue  # a document is not what the line says, as whoever reads the line by itself says


class _Course:
    """One study, followed line by line.

    Args:
        opened: The coordinator's ledger.
        created: The line that began the study.

    Raises:
        LedgerError: The agreement is not there.
        Malformed: It is none.
    """

    def __init__(self, opened: Opened, created: Record) -> None:
        self._opened = opened
        plan = read_document(opened, created.body["agreement"]).get("plan")
        if not isinstance(plan, dict):
            raise Malformed("the agreement is none")
        self._strategy, self._least = plan.get("strategy"), plan.get("min_silos")
        self._over, self._closed = 0, False  # the newest round that is
        self._newest: str = created.body["model"]
        self._accepted: dict[str, Record] = {}  # updates, by xid
        self._counted: dict[str, int | None] = {}  # SCAFFOLD's: the round whose model took a hospital's update last
        self._orders: dict[str, dict[str, Any]] = {}  # by digest; hospitals may be sent the same one

    def follow(self, record: Record) -> Iterator[str]:
        """How a line contradicts those before it; nothing if it does not.

        Raises:
            LedgerError: A document that it names is not there.
            Malformed: It is not of its kind.
        """
        if self._closed and record.event not in _AFTER:
            yield "the study was closed before"
        if record.event in _ROUNDS:
            if (record.round or 0) <= self._over:
                yield f"comes after round {self._over}"
            self._over = record.round or 0
        if record.event == Event.ORDER_OFFERED:
            yield from self._order(record)
        elif record.event == Event.UPDATE_RECEIVED:
            self._accepted[lines.statement(record).xid] = record
            if record.body["base"] != self._newest:
                yield "the update was made from another model than the newest one"
        elif record.event == Event.AGGREGATED:
            yield from self._sum(record)
            self._newest = record.body["model"]
            if record.body["strategy"]["name"] == "scaffold":
                self._counted |= {item["silo"]: record.round for item in record.body["inputs"]}
        elif record.event in _STANDS and record.body["model"] != self._newest:
            yield f"{record.event} names another model than the newest one"
        if record.event == Event.ROUND_VOID:
            yield from self._void(record)
        self._closed = self._closed or record.event == Event.STUDY_CLOSED

    def _order(self, record: Record) -> Iterator[str]:
        """What is wrong with an order: it offers the newest model, and names the round that counted an update last."""
        statement = lines.statement(record)
        if statement.body not in self._orders:
            self._orders[statement.body] = read_document(self._opened, statement.body)
        order, to = self._orders[statement.body], statement.dst
        visit = order.get("visit")
        last = self._counted.get(to) if visit == "train" else None
        if (digest(canonical(order.get("agreement"))), order.get("round")) != (record.study, record.round):
            yield f"the order to {to} is of another study or round"
        elif order.get("base") != self._newest or statement.payload != (
            self._newest if visit in ("train", "evaluate") else None
        ):
            yield f"the order to {to} offers another model than the newest one"
        elif order.get("counted") != last:
            yield f"the order to {to} does not name round {last} as the last that counted its update"

    def _sum(self, record: Record) -> Iterator[str]:
        """What a combined model is said to be made of."""
        body = record.body
        silos = [item["silo"] for item in body["inputs"]]
        if body["base"] != self._newest:
            yield "it does not start from the model before it"
        if body["strategy"] != self._strategy:
            yield "it names another strategy than the agreement"
        if silos != sorted(set(silos)):
            yield "its inputs are not each hospital once, in order of name"
        if not self._enough(silos):
            yield f"it is made of {len(silos)} updates, of {self._least} that the plan asks for"
        yield from self._passed_over(record, body["base"], {*silos, *body["excluded"]})
        for item in body["inputs"]:
            yield from self._input(item, record)

    def _void(self, record: Record) -> Iterator[str]:
        """What is wrong with a round that is said to have too few updates."""
        body = record.body
        if body["required"] != self._least or self._enough(body["accepted"]):
            yield f"it is void with {len(body['accepted'])} updates, of {self._least} that the plan asks for"
        yield from self._passed_over(record, body["model"], {*body["accepted"], *body["excluded"]})

    def _enough(self, silos: Collection[str]) -> bool:
        return isinstance(self._least, int) and len(silos) >= max(self._least, 1)

    def _passed_over(self, record: Record, base: str, told: Collection[str]) -> Iterator[str]:
        """Hospitals whose accepted update a round says nothing of."""
        accepted = {
            lines.statement(update).src
            for update in self._accepted.values()
            if (update.round, update.body["base"]) == (record.round, base)
        }
        for silo in sorted(accepted - set(told)):
            yield f"it says nothing of the update of {silo}, which was accepted"

    def _input(self, item: Mapping[str, Any], record: Record) -> Iterator[str]:
        """What keeps an input from being an accepted update that its hospital signed."""
        silo, update = item["silo"], self._accepted.get(item["xid"])
        if update is None:
            yield f"the input of {silo} is no accepted update"
            return
        if lines.statement(update).src != silo:
            yield f"the input of {silo} was not signed by {silo}"
        if item["digest"] != update.body["digest"]:
            yield f"the input of {silo} has other arrays than those it signed"
        if (update.round, update.body["base"]) != (record.round, record.body["base"]):
            yield f"the input of {silo} is of another round or another model"
        if item["weight"] != update.body["weight"]:
            yield f"the input of {silo} has another weight than the one it signed"


def read_document(opened: Opened, name: str) -> dict[str, Any]:
    """A document of a ledger as JSON values; of its form nothing is known.

    Raises:
        LedgerError: It is not there.
        Malformed: It is no JSON object.
    """
    try:
        found = parse(opened.manifest(name))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Malformed("the document that the line names is not of its kind")
    return found
