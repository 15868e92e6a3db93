"""JSON lines: each line of the ledger as it was signed, with the ledger's name and its leaf hash.

The text behind `"record":` is, byte for byte, the line that the leaf hash covers, salt included, so that a
copy in another system can still be proven to stand in the ledger. The whole is canonical JSON (RFC 8785).
"""

import json

from aggregator.exports.fact import Fact


def jsonl(fact: Fact) -> bytes:
    """One object, UTF-8, without a newline: `leaf` (hex), `ledger`, `line` (from 1), `record`."""
    ledger = json.dumps(fact.ledger, ensure_ascii=False).encode()
    return b'{"leaf":"%s","ledger":%s,"line":%d,"record":%s}' % (
        fact.leaf.encode(),
        ledger,
        fact.line,
        fact.record.line,
    )
