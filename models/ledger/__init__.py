"""The tamper-evident ledger: what left, what came, and a signature under all of it.

Each party keeps one. Writing needs the party's private key; checking needs nothing but the folder and the
party's public key, and no other part of this toolkit.

    with Ledger.open(folder, signer) as ledger:
        ledger.append(Entry(Event.UPDATE_OFFERED, {"digest": "9f2c..."}, round=3))   # durable when it returns

    opened = read(folder, Verifier.parse(vkey))      # raises if one byte of the past has changed

`canonical` gives a value one text, `merkle` gives many lines one root, `note` puts a name under it,
`events` says what a line can be, and `log` keeps the lines.
"""

from models.ledger.events import Entry, Event, Record
from models.ledger.log import Ledger, Opened, read
from models.ledger.merkle import Tree, leaf_hash, verify_consistency, verify_inclusion
from models.ledger.note import Checkpoint, Signer, Verifier, open_note, sign_note

__all__ = [
    "Checkpoint",
    "Entry",
    "Event",
    "Ledger",
    "Opened",
    "Record",
    "Signer",
    "Tree",
    "Verifier",
    "leaf_hash",
    "open_note",
    "read",
    "sign_note",
    "verify_consistency",
    "verify_inclusion",
]
