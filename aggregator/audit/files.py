"""Whether two parties tell one history, from a proof file of each instead of the ledgers.

A statement names the one before it, so the newest statement that both sides show stands for all before it;
and the head that came with it must be one that the sender's ledger, as the file's head has it, continues.
It does not stand for the receiver having kept all before it: an older statement that the receiver was given and
denies is in neither file. Two ledgers show it, by its receipt.
"""

from pathlib import Path

from aggregator.audit.checks import Checked, Shown, check
from aggregator.audit.proofs import Proof, load
from aggregator.audit.proving import prove
from aggregator.audit.reconciliation import Reconciliation
from models.errors import LedgerError, ProtocolError
from models.exchange.statement import GENESIS, Kind
from models.ledger import Checkpoint, Event, Verifier, verify_consistency


def compare(aggregator: Path, silo: Path) -> Reconciliation:
    """Compare the proof files of an aggregator and a silo; of the two, one may be a ledger.

    Raises:
        LedgerError: A ledger is not what was signed, or the two cannot be compared.
        Malformed: A file is no proof.
    """
    hub = load(aggregator) if aggregator.is_file() else _of(aggregator, load(silo))
    site = load(silo) if silo.is_file() else _of(silo, hub)
    if (hub.study, hub.peer, hub.verifier.name) != (site.study, site.verifier.name, site.peer):
        raise LedgerError(f"{aggregator} and {silo}: are not of one pair and one study", "give the files of one pair")
    if "exchange" in (hub.of, site.of):
        hint = "make both without --exchange"
        raise LedgerError(f"{aggregator} and {silo}: one shows one exchange, not the newest ones", hint)
    keys: list[Verifier] = [hub.verifier, site.verifier]
    theirs, ours = check(hub, keys), check(site, keys)
    problems = [f"{file.party}: {problem}" for file in (theirs, ours) for problem in file.problems]
    if any(s.statement.kind != Kind.ORDER for s in theirs.sent) or any(
        s.statement.kind == Kind.ORDER for s in ours.sent
    ):
        raise LedgerError(f"{aggregator}: is not of an aggregator", "give the aggregator's file first")
    if not any(line.record.event == Event.SILO_ENROLLED for line in hub.lines):
        problems.append(f"{ours.party} took part, but the aggregator's file does not show that it was enrolled")
    orders, waiting = _direction("order", hub, theirs, ours, problems)
    replies, unread = _direction("reply", site, ours, theirs, problems)
    problems += [*_last_head(hub, theirs, site.farewell), *_last_head(site, ours, hub.farewell)]
    return Reconciliation(
        study=hub.study,
        aggregator=theirs.party,
        silo=ours.party,
        orders=orders.statement.n if orders else 0,
        replies=replies.statement.n if replies else 0,
        pending=[item.statement.xid for item in [*waiting, *unread]],
        newest={
            "order": orders.statement.xid if orders else None,
            "reply": replies.statement.xid if replies else None,
        },
        closed=replies is not None and replies.statement.kind == Kind.CLOSING,
        problems=problems,
    )


def _of(folder: Path, other: Proof) -> Proof:
    """What the party with a ledger would show to the party with a file."""
    return prove(folder, other.study, other.verifier.name)


def _direction(
    what: str, proof: Proof, sender: Checked, receiver: Checked, problems: list[str]
) -> tuple[Shown | None, list[Shown]]:
    """The newest statement that both have, and what was sent after it."""
    newest = receiver.received[-1] if receiver.received else None
    xids = [item.statement.xid for item in sender.sent]
    if newest is None:
        agreed = 0
        if sender.sent and sender.sent[0].statement.prev != GENESIS:
            problems.append(f"{receiver.party} shows no {what}, but gave a receipt for one")
    elif newest.statement.xid in xids:
        agreed = xids.index(newest.statement.xid) + 1
        problems += _continued(proof, sender, newest.head)
    else:
        problems.append(f"{what} {newest.statement.xid[:16]} was received, but the sender does not show it")
        return None, []
    waiting = sender.sent[agreed:]
    problems += [
        f"{receiver.party} gave a receipt for {what} {item.statement.xid[:16]}, but does not show it"
        for item in waiting
        if item.receipt
    ]
    return newest, waiting


def _last_head(proof: Proof, sender: Checked, farewell: str | None) -> list[str]:
    """Whether a ledger still has the head that the other side was shown at the end of the study."""
    if farewell is None:
        return []
    try:
        head = Checkpoint.open(farewell, proof.verifier)
    except ProtocolError as error:
        return [f"the farewell of {sender.party}: {error}"]
    return _continued(proof, sender, (head.size, head.root.hex()))


def _continued(proof: Proof, sender: Checked, head: tuple[int, str] | None) -> list[str]:
    """Whether a ledger still begins as it did when the other side was shown a head of it."""
    if sender.head is None or head is None:
        return []  # told already
    size, root = head
    if size > sender.head.size:
        return [f"{sender.party}'s ledger ends at line {sender.head.size}, but had {size} lines before"]
    path = proof.earlier.get(size, () if size == sender.head.size else None)
    if path is None:
        return [f"{sender.party}'s file does not prove the {size} lines that {sender.peer} was shown; make it anew"]
    if not verify_consistency(size, sender.head.size, bytes.fromhex(root), sender.head.root, path):
        return [f"{sender.party}'s ledger was rewritten in its first {size} lines"]
    return []
