"""What the hospitals of a study have cosigned, read from its ledger: the testimony that goes with each order."""

from collections.abc import Mapping

from aggregator.audit.lines import is_receipt
from aggregator.study import Study
from models.exchange.witness import Testimony, needed
from models.ledger import Checkpoint, Record, Verifier, add_cosignatures


def testimony(study: Study) -> Testimony:
    """Who has answered in this study, and the newest heads that enough of them cosigned."""
    answers = [record for record in study.ledger.records if is_receipt(record)]
    enrolled = study.enrolled
    roster = {record.body["statement"]["src"]: None for record in answers}
    keys = {name: Verifier.parse(enrolled[name]) for name in roster}
    enough = needed(list(roster), study.plan.min_silos)
    heads: list[str] = []
    seen: set[str] = set()
    for size, cosignatures in _by_head(answers).items():
        if len(seen) >= enough:
            break
        head = Checkpoint(study.ledger.head.origin, size, study.ledger.tree.root(size))
        signed = [(keys[name], content) for name, content in sorted(cosignatures.items())]
        heads.append(add_cosignatures(head.sign(study.signer), signed))
        seen |= cosignatures.keys()
    return Testimony(tuple(sorted(keys[name].vkey for name in roster)), tuple(heads))


def suffice(study: Study, silo: str, since: int) -> bool:
    """Whether enough hospitals, this one among them, are known to have seen the first `since` lines."""
    answers = [record for record in study.ledger.records if is_receipt(record)]
    seen = {r.body["statement"]["src"] for r in answers if "cosignature" in r.body and r.body["seen"] >= since}
    roster = {silo, *(record.body["statement"]["src"] for record in answers)}
    return len(seen | {silo}) >= needed(roster, study.plan.min_silos)


def _by_head(answers: list[Record]) -> Mapping[int, dict[str, bytes]]:
    """Each head that was cosigned, by size, the newest first: who cosigned it, and how."""
    found: dict[int, dict[str, bytes]] = {}
    for record in answers:
        if "cosignature" in record.body:
            silo = record.body["statement"]["src"]
            found.setdefault(record.body["seen"], {})[silo] = bytes.fromhex(record.body["cosignature"])
    return dict(sorted(found.items(), reverse=True))
