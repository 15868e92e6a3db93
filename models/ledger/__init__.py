"""The tamper-evident ledger: what left, what came, and a signature under all of it.

Each party keeps one. Writing needs the party's private key; checking needs nothing but the folder and the
party's public key, and of this toolkit only `models.canonical` and `models.errors`.

    with Ledger.open(folder, signer) as ledger:
        ledger.append(Entry(Event.STUDY_CLOSED, {"model": "9f2c..."}, study, round=3))   # durable when it returns

    opened = read(folder, Verifier.parse(vkey))      # raises if one byte of the past has changed

`events` says what a line can be, as canonical JSON; `vocabulary` says, in `forms`, what each event's line holds;
`merkle` gives many lines one root, `keys` say who speaks and `note` puts the name under the root; `log` writes the
lines through `disk`, and `reading` checks them.
"""

from models.ledger.events import Entry, Event, Record
from models.ledger.keys import Signer, Verifier
from models.ledger.log import Ledger
from models.ledger.merkle import Tree, leaf_hash, verify_consistency, verify_inclusion
from models.ledger.note import Checkpoint, add_cosignatures, cosigners, open_note, sign_note
from models.ledger.reading import Opened, Parting, read, read_partings

__all__ = [
    "Checkpoint",
    "Entry",
    "Event",
    "Ledger",
    "Opened",
    "Parting",
    "Record",
    "Signer",
    "Tree",
    "Verifier",
    "add_cosignatures",
    "cosigners",
    "leaf_hash",
    "open_note",
    "read",
    "read_partings",
    "sign_note",
    "verify_consistency",
    "verify_inclusion",
]
