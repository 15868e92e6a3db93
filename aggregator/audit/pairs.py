"""What two parties' ledgers prove together: one history, or where they contradict each other.

    reconcile(aggregator, silo)

Statement by statement, from the two ledgers; or from proof files of them (see `proofs`), which show less and
are handed out more easily.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from aggregator.audit import files
from aggregator.audit.lines import heads, offered, peers, received, require_readable
from aggregator.audit.reconciliation import Reconciliation
from models.errors import BadSignature, LedgerError
from models.exchange.statement import GENESIS, Kind, receipt_bytes, signing_bytes
from models.ledger import Checkpoint, Event, Opened, Record, Verifier, read, read_partings
from models.ledger.disk import read_bounded
from models.ledger.reading import CHECKPOINT, MAX_NOTES, Parting


def reconcile(aggregator: Path | str, silo: Path | str) -> Reconciliation:
    """Compare what the aggregator and one silo say of their exchange.

    The silo's key is the one that the aggregator enrolled, the aggregator's the one that stands in the
    agreement the silo approved, so neither side is believed about its own key.

    Args:
        aggregator: The study's ledger folder, or a proof file made from it.
        silo: The hospital's ledger folder, or a proof file made from it.

    Raises:
        LedgerError: One of the two is not what was signed, or a line says what no line can say.
        BadSignature: One of the two is signed with another key than the other side knows.
        Malformed: A file is no proof, or a key is none.
    """
    return reconcile_each(aggregator, [silo])[0]


def reconcile_each(aggregator: Path | str, silos: Iterable[Path | str]) -> list[Reconciliation]:
    """Compare what the aggregator and each of some silos say; see `reconcile`. The parties may be at work."""
    found, theirs = [], None
    for silo in silos:
        if Path(aggregator).is_file() or Path(silo).is_file():
            found.append(files.compare(Path(aggregator), Path(silo)))
            continue
        theirs = theirs or _readable(aggregator)
        their_last = read_partings(theirs.folder)  # each before the ledger of which it tells
        ours = _readable(silo)
        our_last = read_partings(ours.folder)
        later = _now(theirs)
        found.append(_compare(_study(theirs), theirs, ours, later, their_last, our_last))
        theirs = later
    return found


def _now(opened: Opened) -> Opened:
    """The ledger as it is by now; it is read again only if it has grown."""
    grown = read_bounded(opened.folder / CHECKPOINT, MAX_NOTES) != opened.note.encode()
    return _readable(opened.folder) if grown else opened


def _readable(folder: Path | str) -> Opened:
    opened = read(folder)
    require_readable(opened)
    return opened


def _study(opened: Opened) -> str:
    created = next((r for r in opened.records if r.event == Event.STUDY_CREATED), None)
    if created is None or created.study is None:
        raise LedgerError(f"{opened.folder}: is no ledger of a study", "give the ledger folder in the study's folder")
    return created.study


def _compare(
    study: str,
    theirs: Opened,
    ours: Opened,
    later: Opened,
    their_last: Sequence[Parting],
    our_last: Sequence[Parting],
) -> Reconciliation:
    """Compare two ledgers, and what each side kept of the other's last words; `later` is theirs, read after ours.

    What one side has received, the other one must have sent by the time that it is read, hence the second look.
    """
    hub, name = theirs.verifier, ours.verifier.name
    enrolled = peers(later.records).get((study, name))
    if enrolled not in (None, ours.verifier):
        raise BadSignature(f"{ours.folder}: is not signed with the key that was enrolled for {name}")
    if peers(ours.records).get((study, hub.name), hub) != hub:
        raise BadSignature(f"{theirs.folder}: is not signed with the key that {name} approved")
    sent, got = offered(theirs.records, study, name), received(ours.records, study)
    answered, taken = offered(ours.records, study, hub.name), received(theirs.records, study, name)
    problems: list[str] = []
    if enrolled is None:
        if not (got or answered):
            hint = "give the ledgers of one study"
            raise LedgerError(f"{ours.folder}: {name} took no part in the study of {theirs.folder}", hint)
        problems.append(f"{name} took part, but the aggregator's ledger never enrolled it")
    problems += _contradictions("order", offered(later.records, study, name), got, hub)
    problems += _contradictions("reply", answered, taken, ours.verifier)
    problems += _denied("order", theirs, sent, got, ours.verifier)
    problems += _denied("reply", ours, answered, received(later.records, study, name), hub)
    problems += _rewritten(later, [*heads(ours.records, study, hub.name), *_last_head(our_last, study, hub)])
    problems += _rewritten(ours, [*heads(theirs.records, study, name), *_last_head(their_last, study, ours.verifier)])
    agreed_orders, agreed_replies = [x for x in sent if x in got], [x for x in answered if x in taken]
    return Reconciliation(
        study=study,
        aggregator=hub.name,
        silo=name,
        orders=len(agreed_orders),
        replies=len(agreed_replies),
        pending=[x for x in sent if x not in got] + [x for x in answered if x not in taken],
        newest={
            "order": agreed_orders[-1] if agreed_orders else None,
            "reply": agreed_replies[-1] if agreed_replies else None,
        },
        closed=any(answered[x].body["statement"]["kind"] == Kind.CLOSING for x in agreed_replies),
        problems=problems,
    )


def _last_head(partings: Sequence[Parting], study: str, peer: Verifier) -> list[tuple[int, str]]:
    """The last head that the other side signed in a study that is over: size and root (hex)."""
    found = [p for p in partings if (p.study, p.peer) == (study, peer.name)]
    last = [Checkpoint.open(parting.theirs, peer) for parting in found]
    return [(head.size, head.root.hex()) for head in last]


def _contradictions(
    what: str, offered: Mapping[str, Record], received: Mapping[str, Record], sender: Verifier
) -> list[str]:
    problems = [
        f"{what} {xid[:16]} was received, but the sender's ledger does not have it"
        for xid in received
        if xid not in offered
    ]
    for xid, record in [*offered.items(), *received.items()]:
        try:
            sender.verify(signing_bytes(xid), bytes.fromhex(record.body["signature"]))
        except BadSignature as error:
            problems.append(f"{what} {xid[:16]}: {error}")
    numbers = [r.body["statement"]["n"] for r in offered.values()]
    if numbers != list(range(1, len(numbers) + 1)):
        problems.append(f"the sender's {what} statements are not numbered without a gap")
    previous = GENESIS
    for xid, record in offered.items():
        if record.body["statement"]["prev"] != previous:
            problems.append(f"{what} {xid[:16]} does not name the one before it")
        previous = xid
    return problems


def _denied(
    what: str, sender: Opened, offered: Mapping[str, Record], received: Mapping[str, Record], receiver: Verifier
) -> list[str]:
    """What the receiver signed to have, and has not."""
    problems = []
    for record in sender.records:
        if record.event != Event.EXCHANGE_RECEIPT:
            continue
        xid = record.body["xid"]
        if xid not in offered or xid in received:
            continue
        try:
            receiver.verify(receipt_bytes(xid), bytes.fromhex(record.body["receipt"]))
        except BadSignature as error:
            problems.append(f"the receipt for {what} {xid[:16]}: {error}")
        else:
            problems.append(f"{receiver.name} gave a receipt for {what} {xid[:16]}, but its ledger does not have it")
    return problems


def _rewritten(opened: Opened, heads: Sequence[tuple[int, str]]) -> list[str]:
    """Whether a ledger still has every head that the other side saw of it."""
    for size, root in heads:
        if size > opened.head.size:
            return [f"{opened.verifier.name}'s ledger ends at line {opened.head.size}, but had {size} lines before"]
        if opened.tree.root(size).hex() != root:
            return [f"{opened.verifier.name}'s ledger was rewritten in its first {size} lines"]
    return []
