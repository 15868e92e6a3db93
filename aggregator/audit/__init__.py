"""What was recorded, checked by anyone who doubts. Reads only; needs no private key.

    verify(folder)                 one ledger: against its signed head, and every signature in it
    reconcile(aggregator, silo)    two ledgers, or proof files of them, against each other (`reconcile_each`: several)
    prove(folder, ...)             a few kB of one ledger, for a third person who is not to see the rest
    check(proof)                   what such a file proves
    check_model(folder)            where a released model comes from
    replay.replay(study)           every combined model anew from the updates that were kept

`lines` reads what a ledger's lines say and `reader` checks it; `ledgers`, `pairs` (and `files`), `proving` and `checks`
hold the functions above, `proofs` the file, `origin` the check of a released model. All of these but `replay` need the
standard library and `cryptography`, and nothing else.
"""

from aggregator.audit.checks import Checked, Shown, check
from aggregator.audit.ledgers import Verdict, verify
from aggregator.audit.origin import Origin, check_model
from aggregator.audit.pairs import reconcile, reconcile_each
from aggregator.audit.proofs import Line, Proof
from aggregator.audit.proving import prove
from aggregator.audit.reconciliation import Reconciliation

__all__ = [
    "Checked",
    "Line",
    "Origin",
    "Proof",
    "Reconciliation",
    "Shown",
    "Verdict",
    "check",
    "check_model",
    "prove",
    "reconcile",
    "reconcile_each",
    "verify",
]
