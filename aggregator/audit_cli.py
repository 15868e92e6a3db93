"""`intramural-audit`: the commands of anyone who doubts. Needs neither torch nor Flower nor a private key."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from aggregator.audit import as_json, reconcile, verify
from models.console import OK, UNVERIFIED, run_command, show_json, show_table
from models.ledger import Verifier, read


def main(argv: Sequence[str] | None = None) -> int:
    """Run `intramural-audit`."""
    parser = argparse.ArgumentParser(
        prog="intramural-audit", description="Check what was recorded. Exit code 3: a check failed."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    check = commands.add_parser("verify", help="check a ledger against its signed head, line by line")
    check.add_argument("ledger", type=Path, nargs="+", help="ledger folder, or the study or work folder it is in")
    check.add_argument("--key", help="the public key (vkey) it must be signed with; by default the one it names")
    _json(check)
    check.set_defaults(run=_verify)

    compare = commands.add_parser("reconcile", help="prove that the aggregator's and hospitals' ledgers agree")
    compare.add_argument("aggregator", type=Path, help="the study's ledger, or the study folder")
    compare.add_argument("silo", type=Path, nargs="+", help="hospitals' ledgers, or their work folders")
    _json(compare)
    compare.set_defaults(run=_reconcile)

    show = commands.add_parser("show", help="print a ledger's lines, after checking them")
    show.add_argument("ledger", type=Path, help="ledger folder, or the study or work folder it is in")
    _json(show)
    show.set_defaults(run=_show)
    return run_command(parser, argv)


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def ledger_folder(path: Path) -> Path:
    """The ledger itself, given it or the folder it lies in."""
    inner = path / "ledger"
    return inner if inner.is_dir() else path


def _verify(arguments: argparse.Namespace) -> int:
    verifier = Verifier.parse(arguments.key) if arguments.key else None
    verdicts = [verify(ledger_folder(path), verifier) for path in arguments.ledger]
    if arguments.json:
        show_json([as_json(verdict) for verdict in verdicts])
    else:
        columns = (
            "",
            "ledger",
            "of",
            "lines",
            "statements",
            "receipts",
            "from (UTC)",
            "to (UTC)",
            "root",
            "problems",
        )
        rows = [
            (
                "ok" if v.ok else "FAILED",
                *(v.folder, v.name, v.size, v.statements, v.receipts, v.first, v.last, v.root[:16]),
                "\n".join(v.problems),
            )
            for v in verdicts
        ]
        show_table("ledgers", columns, rows)
    return OK if all(verdict.ok for verdict in verdicts) else UNVERIFIED


def _reconcile(arguments: argparse.Namespace) -> int:
    aggregator = ledger_folder(arguments.aggregator)
    found = [reconcile(aggregator, ledger_folder(path)) for path in arguments.silo]
    if arguments.json:
        show_json([as_json(item) for item in found])
    else:
        columns = ("", "pair", "orders", "replies", "pending", "closed", "newest reply in both", "problems")
        rows = [
            (
                "agree" if item.ok else "DISAGREE",
                f"{item.aggregator} - {item.silo}",
                item.orders,
                item.replies,
                len(item.pending),
                "yes" if item.closed else "no",
                (item.newest["reply"] or "-")[:16],
                "\n".join(item.problems),
            )
            for item in found
        ]
        show_table(f"study {found[0].study[:16]}", columns, rows)
    return OK if all(item.ok for item in found) else UNVERIFIED


def _show(arguments: argparse.Namespace) -> int:
    opened = read(ledger_folder(arguments.ledger))
    if arguments.json:
        show_json([record.values() for record in opened.records])
        return OK
    rows = []
    for record in opened.records:
        statement = record.body.get("statement", {})
        pair = f"{statement['src']} -> {statement['dst']}" if statement else record.body.get("silo", "")
        code = record.body.get("code", "")
        rows.append((record.seq + 1, record.ts, record.event.value, record.round, pair, statement.get("nbytes"), code))
    columns = ("line", "time (UTC)", "event", "round", "pair", "bytes", "code")
    show_table(f"ledger of {opened.verifier.name}, signed at {opened.head.size} lines", columns, rows)
    return OK


if __name__ == "__main__":
    raise SystemExit(main())
