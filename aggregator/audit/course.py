"""The course of a study, as its coordinator's lines tell it: which model follows from which updates, and stands when.

No arrays are needed, so it is checked of every study: each model is made from the one before it and from accepted
updates with the weights that their hospitals signed, each once, none passed over in silence; and every order offers the
newest model, with which void rounds and the study end too. That the arithmetic is right, `replay` shows.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from aggregator.audit import lines
from models.canonical import canonical, digest, parse
from models.errors import Malformed
from models.ledger import Event, Opened, Record

_STANDS = (Event.ROUND_VOID, Event.STUDY_CLOSED, Event.MODEL_RELEASED)


class Course:
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
        self._strategy = plan.get("strategy") if isinstance(plan, dict) else None
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
        accepted = {
            lines.statement(update).src
            for update in self._accepted.values()
            if (update.round, update.body["base"]) == (record.round, body["base"])
        }
        for silo in sorted(accepted - {*silos, *body["excluded"]}):
            yield f"it says nothing of the update of {silo}, which was accepted"
        for item in body["inputs"]:
            yield from self._input(item, record)

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
