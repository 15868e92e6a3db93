"""What the hospitals of a study have cosigned, read from its ledger: the testimony that goes with each order."""

from collections.abc import Mapping

from aggregator.audit.lines import is_receipt
from aggregator.study import Study
from models.errors import NotWitnessed
from models.exchange.witness import Testimony, needed
from models.ledger import Checkpoint, Event, Record, Verifier, add_cosignatures


def testimony(study: Study) -> Testimony:
    """Who takes part in this study, and the newest heads that enough of them cosigned."""
    enrolled = study.enrolled
    keys = {name: Verifier.parse(enrolled[name]) for name in members(study)}
    enough = needed(keys, study.plan.min_silos)
    heads: list[str] = []
    seen: set[str] = set()
    for size, cosignatures in _by_head(_cosigning(study)).items():
        if len(seen) >= enough:
            break
        head = Checkpoint(study.ledger.head.origin, size, study.ledger.tree.root(size))
        signed = [(keys[name], content) for name, content in sorted(cosignatures.items())]
        heads.append(add_cosignatures(head.sign(study.signer), signed))
        seen |= cosignatures.keys()
    return Testimony(tuple(sorted(key.vkey for key in keys.values())), tuple(heads))


def members(study: Study) -> set[str]:
    """Names of the hospitals that have followed an order; whoever only refused takes no part and vouches for nobody.

    One that lacks witnesses has followed one before, though its answer may have been lost with a coordinator that died.
    """
    answers = Event.UPDATE_RECEIVED, Event.REPORT_RECEIVED, Event.SURVEY_RECEIVED, Event.REFUSAL_RECEIVED
    return {
        record.body["statement"]["src"]
        for record in study.ledger.of(*answers)
        if record.event != Event.REFUSAL_RECEIVED or record.body["code"] == NotWitnessed.code
    }


def lacking(study: Study, shown: Mapping[str, int]) -> list[str]:
    """Hospitals that would refuse, since too few others are known to have seen what they were shown.

    Args:
        study: Open for work.
        shown: How many lines of the ledger each of them was shown.
    """
    seen = dict.fromkeys(members(study), 0)
    for record in _cosigning(study):
        silo = record.body["statement"]["src"]
        seen[silo] = max(seen[silo], record.body["seen"])
    vouching = {since: {name for name, size in seen.items() if size >= since} for since in set(shown.values())}
    least = study.plan.min_silos
    return [name for name, since in shown.items() if len(vouching[since] | {name}) < needed({name, *seen}, least)]


def _cosigning(study: Study) -> list[Record]:
    """The answers by which members cosigned what they saw; their refusals do too."""
    names = members(study)
    return [
        record
        for record in study.ledger.records
        if is_receipt(record) and "cosignature" in record.body and record.body["statement"]["src"] in names
    ]


def _by_head(answers: list[Record]) -> Mapping[int, dict[str, bytes]]:
    """Each head that was cosigned, by size, the newest first: who cosigned it, and how."""
    found: dict[int, dict[str, bytes]] = {}
    for record in answers:
        silo = record.body["statement"]["src"]
        found.setdefault(record.body["seen"], {})[silo] = bytes.fromhex(record.body["cosignature"])
    return dict(sorted(found.items(), reverse=True))
