"""`intramural-audit`: the commands of anyone who doubts. No torch, no private key; Flower for `replay` only."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from aggregator import writing_cli
from models.console import FAILED, OK, UNVERIFIED, printable, run_command, show_json, show_lines, show_table
from models.errors import ConfigError

if TYPE_CHECKING:
    from aggregator.audit import Checked, Origin
    from models.ledger import Verifier

# A command imports what it needs when it runs, so that `--help` needs nothing.


def main(argv: Sequence[str] | None = None) -> int:
    """Run `intramural-audit`."""
    parser = argparse.ArgumentParser(
        prog="intramural-audit", description="Check what was recorded. Exit code 3: a check failed."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    one = commands.add_parser("verify", help="check a ledger against its signed head, line by line")
    one.add_argument("ledger", type=Path, nargs="+", help="ledger folder, or the study or work folder it is in")
    one.add_argument("--key", help="the public key (vkey) it must be signed with; by default the one it names")
    one.add_argument(
        "--seen",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        help="files of `prove`, or a release's release.proof: one of the ledgers must continue the head of each",
    )
    _json(one)
    one.set_defaults(run=_verify)

    compare = commands.add_parser("reconcile", help="prove that the aggregator's and hospitals' ledgers agree")
    compare.add_argument("aggregator", type=Path, help="the study's ledger or folder, or its proof file")
    compare.add_argument("silo", type=Path, nargs="+", help="hospitals' ledgers or work folders, or their proof files")
    _json(compare)
    compare.set_defaults(run=_reconcile)

    show = commands.add_parser("show", help="print a ledger's lines, after checking them")
    show.add_argument("ledger", type=Path, help="ledger folder, or the study or work folder it is in")
    _json(show)
    show.set_defaults(run=_show)

    proof = commands.add_parser("prove", help="write a small file that proves an exchange to a third person")
    proof.add_argument("ledger", type=Path, help="ledger folder, or the study or work folder it is in")
    proof.add_argument("--study", help="NAME, DIGEST or NAME@DIGEST, if the ledger knows of several")
    proof.add_argument("--peer", help="the other party, if the study has several")
    proof.add_argument("--exchange", help="one statement, by its xid; by default the newest in both directions")
    proof.add_argument("--documents", action="store_true", help="add what was asked and what left, in full")
    proof.add_argument("--out", type=Path, required=True, help="the file; nothing is overwritten")
    proof.set_defaults(run=_prove)

    shown = commands.add_parser("check", help="check such a file, or the folder of a released model; needs no ledger")
    shown.add_argument("proof", type=Path, nargs="+", help="file that `prove` made, or folder that `release` made")
    shown.add_argument(
        "--key", nargs="+", action="extend", default=[], help="public keys (vkey) of the parties, from them"
    )
    _json(shown)
    shown.set_defaults(run=_check)

    again = commands.add_parser("replay", help="make every combined model anew from the updates that were kept")
    again.add_argument("study", type=Path, help="study folder, of a plan with keep_updates = true")
    _json(again)
    again.set_defaults(run=_replay)

    writing_cli.add(commands)

    schema = commands.add_parser("schema", help="print the JSON Schema of a ledger's lines")
    schema.set_defaults(run=_schema)
    return run_command(parser, argv)


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _verify(arguments: argparse.Namespace) -> int:
    from aggregator.audit import verify
    from aggregator.audit.ledgers import ledger_folder
    from aggregator.audit.proofs import load
    from models.ledger import Verifier

    verifier = Verifier.parse(arguments.key) if arguments.key else None
    seen = [load(path) for path in arguments.seen]
    verdicts = [verify(ledger_folder(path), verifier, seen) for path in arguments.ledger]
    lost = []
    for path, proof in zip(arguments.seen, seen, strict=True):
        if proof.verifier.vkey not in {verdict.vkey for verdict in verdicts}:
            raise ConfigError(f"--seen {path}: is from the ledger of {proof.verifier.name}", "give that ledger too")
        if not any(proof.head in verdict.continues for verdict in verdicts):
            lost.append(f"{path}: no ledger here continues the one of {proof.verifier.name} that it is from")
    if arguments.json:
        show_json([verdict.as_json() for verdict in verdicts])
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
                "ok" if v.ok else "not read" if v.unread else "FAILED",
                *(v.folder, v.name, v.size, v.statements, v.receipts, v.first, v.last, v.root[:16]),
                "\n".join(map(printable, v.problems)),
            )
            for v in verdicts
        ]
        show_table("ledgers", columns, rows)
        show_lines(*(f"FAILED: {problem}" for problem in lost))
    failed = [verdict for verdict in verdicts if not verdict.ok]
    if not failed and not lost:
        return OK
    alarm = lost or not all(verdict.unread for verdict in failed)  # a mistyped path is none
    return UNVERIFIED if alarm else FAILED


def _reconcile(arguments: argparse.Namespace) -> int:
    from aggregator.audit import reconcile_each
    from aggregator.audit.ledgers import ledger_folder

    found = reconcile_each(ledger_folder(arguments.aggregator), map(ledger_folder, arguments.silo))
    if arguments.json:
        show_json([item.as_json() for item in found])
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
                "\n".join(map(printable, item.problems)),
            )
            for item in found
        ]
        show_table(f"study {found[0].study[:16]}", columns, rows)
    return OK if all(item.ok for item in found) else UNVERIFIED


def _show(arguments: argparse.Namespace) -> int:
    from aggregator.audit.ledgers import ledger_folder
    from aggregator.audit.lines import require_readable
    from models.canonical import canonical, digest
    from models.ledger import read

    opened = read(ledger_folder(arguments.ledger))
    if arguments.json:
        show_json([record.values() for record in opened.records])
        return OK
    require_readable(opened)
    rows = []
    for record in opened.records:
        statement = record.body.get("statement", {})
        pair = f"{statement['src']} -> {statement['dst']}" if statement else record.body.get("silo", "")
        xid = digest(canonical(statement))[:16] if statement else str(record.body.get("xid", ""))[:16]
        code = record.body.get("code", "")
        what = (record.event.value, record.round, pair, xid, statement.get("nbytes"), code)
        rows.append((record.seq + 1, record.ts, *what))
    columns = ("line", "time (UTC)", "event", "round", "pair", "exchange", "bytes", "code")
    show_table(f"ledger of {opened.verifier.name}, signed at {opened.head.size} lines", columns, rows)
    return OK


def _prove(arguments: argparse.Namespace) -> int:
    from aggregator.audit import prove
    from aggregator.audit.ledgers import ledger_folder
    from models.ledger.disk import create

    folder = ledger_folder(arguments.ledger)
    proof = prove(folder, arguments.study, arguments.peer, arguments.exchange, arguments.documents)
    content = proof.encode()
    create(arguments.out, content)
    told = f"{len(proof.lines)} lines of the ledger of {proof.verifier.name}, {len(content)} bytes"
    show_lines(f"{arguments.out}: {told}")
    return OK


def _check(arguments: argparse.Namespace) -> int:
    from aggregator.audit import Origin
    from models.ledger import Verifier

    keys = [Verifier.parse(key) for key in arguments.key]
    found = [_checked(path, keys) for path in arguments.proof]
    forks = _forks(arguments.proof, found)
    ok = not forks and all(item.ok for item in found)
    if arguments.json:
        show_json([item.as_json() for item in found])
        return OK if ok else UNVERIFIED
    for path, item in zip(arguments.proof, found, strict=True):
        if isinstance(item, Origin):
            _show_origin(item)
            continue
        size = item.head.size if item.head else "?"
        rows = [
            (
                *(shown.statement.kind.value, shown.statement.round, f"{shown.statement.src} -> {shown.statement.dst}"),
                *(shown.statement.n, shown.statement.xid[:16], shown.statement.nbytes, shown.time),
                "yes, and not used: " + shown.code if shown.code else "yes" if shown.receipt else "not shown",
            )
            for shown in [*item.sent, *item.received]
        ]
        columns = ("kind", "round", "pair", "number", "exchange", "bytes", "written (UTC)", "receipt")
        show_table(f"{path}: from the ledger of {item.party}, {size} lines; study {item.study[:16]}", columns, rows)
        for name, key in item.keys.items():
            show_lines(f"  {name}: {key} ({'the key given' if name in item.trusted else 'as the file says'})")
        _show_problems(item)
    show_lines(*(f"FAILED: {problem}" for problem in forks))
    return OK if ok else UNVERIFIED


def _forks(paths: "Sequence[Path]", found: "Sequence[Checked | Origin]") -> list[str]:
    """Which of several files of one study show two heads of one ledger that cannot both be true."""
    from aggregator.audit import Origin

    heads: dict[tuple[str, str, int], tuple[Path, bytes]] = {}
    forks = []
    for path, item in zip(paths, found, strict=True):
        if item.head is None:
            continue
        key = item.vkey if isinstance(item, Origin) else item.keys[item.party]
        ledger = key, item.study, item.head.size  # a coordinator has a ledger for each study
        first, root = heads.setdefault(ledger, (path, item.head.root))
        if root != item.head.root:
            forks.append(f"{first} and {path}: {item.party} signed two different ledgers of {item.head.size} lines")
    return forks


def _checked(path: Path, keys: "Sequence[Verifier]") -> "Checked | Origin":
    """What a proof file shows; a folder, or the proof file in it, is a released model's."""
    from aggregator.audit import check, check_model
    from aggregator.audit.origin import PROOF
    from aggregator.audit.proofs import load

    if path.is_dir() or path.name == PROOF:
        return check_model(path if path.is_dir() else path.parent, keys)
    return check(load(path), keys)


def _show_origin(item: "Origin") -> None:
    metrics = sorted({name for told in item.measured.values() for name in told})
    rows = [
        (
            silo,
            "yes" if silo in item.inputs else "-",
            *(item.measured.get(silo, {}).get(name) for name in metrics),
            item.keys[silo],
            "the key given" if silo in item.trusted else "as the file says",
        )
        for silo in sorted(item.keys)
    ]
    show_table(
        f"{item.folder}: model {item.model}, made by round {item.round} of {item.name}, study {item.study}",
        ("hospital", "its update went in", *(f"{name}, signed" for name in metrics), "key", "which is"),
        rows,
    )
    own = "the key given" if item.party in item.trusted else "as the file says"
    show_lines(f"  {item.party}: {item.vkey} ({own})")
    show_lines(f"  released {item.released or '?'}; {item.files} files are as they were released")
    _show_problems(item)


def _show_problems(item: "Checked | Origin") -> None:
    show_lines(*(["  ok"] if item.ok else [f"  FAILED: {problem}" for problem in item.problems]))


def _replay(arguments: argparse.Namespace) -> int:
    from aggregator.audit.replay import replay  # here: it needs NumPy and Flower

    found = replay(arguments.study)
    if arguments.json:
        show_json(found.as_json())
    else:
        rows = [
            ("same" if m.found == m.recorded else "DIFFERS", m.round, ", ".join(m.inputs), m.recorded, m.found[:16])
            for m in found.models
        ]
        columns = ("", "round", "inputs, in order", "model in the ledger", "made here")
        show_table(f"study {found.study[:16]}: {found.orders} orders offer these models", columns, rows)
        show_lines(*[f"FAILED: {problem}" for problem in found.problems] or ["every model is what its updates give"])
    return OK if found.ok else UNVERIFIED


def _schema(_: argparse.Namespace) -> int:
    from models.ledger.vocabulary import json_schema

    show_json(json_schema())
    return OK


if __name__ == "__main__":
    raise SystemExit(main())
