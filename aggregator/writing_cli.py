"""`intramural-audit export` and `report`: what a ledger says, for other systems and for people to read."""

import argparse
from pathlib import Path

from models.console import OK, UNVERIFIED, log_service, stop_signal
from models.errors import ConfigError

# Named here, so that checking a ledger loads nothing of the exports; tests compare them.
_FORMATS = ("cef", "dicom", "fhir", "jsonl", "parquet")
_DIALECTS = ("dicom", "ihe", "plain")
_VIEWS = ("gdpr", "hipaa")


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `export` and `report` to the auditor's commands."""
    send = commands.add_parser("export", help="give a ledger to other systems: FHIR, DICOM, CEF, JSON lines, Parquet")
    send.add_argument("ledger", type=Path, help="ledger folder, or the study or work folder it is in")
    send.add_argument("--key", help="the public key (vkey) it must be signed with; by default the one it names")
    send.add_argument("--format", choices=_FORMATS, help="by default dicom to a log server; a file needs one")
    where = send.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, help="a file; with --cursor only new lines are added to it")
    where.add_argument("--to", metavar="ADDRESS", help="a log server: syslog+tls://HOST:PORT")
    send.add_argument("--cursor", type=Path, help="file that remembers what was taken; a log server needs one")
    send.add_argument("--follow", action="store_true", help="go on with every new line until stopped")
    send.add_argument(
        "--patience", type=float, default=60.0, help="seconds of attempts before giving up, without --follow"
    )
    send.add_argument("--ca", type=Path, help="certificate (PEM) that signs the log server's; by default the system's")
    send.add_argument("--certificate", type=Path, nargs=2, metavar=("CRT", "KEY"), help="own certificate, if demanded")
    send.add_argument("--dialect", choices=_DIALECTS, help="by default ihe for dicom, plain for the others")
    send.add_argument("--log-json", action="store_true", help="talk in JSON lines")
    send.set_defaults(run=_export)

    tell = commands.add_parser("report", help="a ledger for people: one HTML page that prints, or Markdown")
    tell.add_argument("ledger", type=Path, help="ledger folder, or the study or work folder it is in")
    tell.add_argument("--aggregator", type=Path, help="the aggregator's ledger or study folder, to compare with")
    tell.add_argument("--key", help="the public key (vkey) it must be signed with; by default the one it names")
    tell.add_argument("--view", choices=_VIEWS, help="add the fields of HIPAA 164.528 or of GDPR article 30")
    tell.add_argument("--out", type=Path, help="the HTML file; Markdown, if its name ends in .md")
    tell.add_argument("--markdown", type=Path, help="the Markdown file")
    tell.set_defaults(run=_report)


def _export(arguments: argparse.Namespace) -> int:
    from aggregator.audit.ledgers import ledger_folder
    from aggregator.exports import DIALECTS, RENDERS, File, Syslog, export, forward
    from models.ledger import Verifier

    folder = ledger_folder(arguments.ledger)
    _require_files(folder, "--out", arguments.out)
    _require_files(folder, "--cursor", arguments.cursor)
    if arguments.out and arguments.cursor and arguments.out.resolve() == arguments.cursor.resolve():
        raise ConfigError(f"--cursor {arguments.cursor}: is the file that is written", "give the cursor another name")
    verifier = Verifier.parse(arguments.key) if arguments.key else None
    name = arguments.format or ("dicom" if arguments.to else None)
    if name is None:
        raise ConfigError("--format is missing", f"give one of {', '.join(_FORMATS)}")
    if arguments.out and not arguments.cursor:
        if arguments.follow:
            raise ConfigError("--follow needs --cursor", "give a file that remembers what was written")
        print(f"{export(folder, name, arguments.out, verifier)} lines")
        return OK
    if not arguments.cursor:
        raise ConfigError("--to needs --cursor", "give a file that remembers what the log server took")
    if name not in RENDERS:
        raise ConfigError(f"--format {name}: is written as a whole", "leave out --cursor, and give --out")
    log_service(json_lines=arguments.log_json)
    sink: File | Syslog = (
        File(arguments.out, RENDERS[name])
        if arguments.out
        else Syslog.to(
            arguments.to,
            RENDERS[name],
            ca=arguments.ca,
            certificate=arguments.certificate and tuple(arguments.certificate),
            dialect=DIALECTS[arguments.dialect or ("ihe" if name == "dicom" else "plain")],
        )
    )
    stop = stop_signal() if arguments.follow else None
    count = forward(
        folder,
        sink,
        arguments.cursor,
        verifier=verifier,
        follow=arguments.follow,
        stop=stop,
        patience=arguments.patience,
    )
    print(f"{count} lines")
    return OK


def _report(arguments: argparse.Namespace) -> int:
    from aggregator.audit.ledgers import ledger_folder
    from aggregator.report import as_html, as_markdown, report
    from models.ledger import Verifier
    from models.ledger.disk import publish

    if not (arguments.out or arguments.markdown):
        raise ConfigError("--out and --markdown are missing", "give at least one file to write")
    folder = ledger_folder(arguments.ledger)
    _require_files(folder, "--out", arguments.out)
    _require_files(folder, "--markdown", arguments.markdown)
    page = report(
        folder,
        aggregator=arguments.aggregator and ledger_folder(arguments.aggregator),
        view=arguments.view,
        verifier=Verifier.parse(arguments.key) if arguments.key else None,
    )
    for path in (arguments.out, arguments.markdown):
        if path:
            write = as_markdown if path is arguments.markdown or path.suffix == ".md" else as_html
            publish(path, write(page).encode())
            print(path)
    return OK if page.ok else UNVERIFIED


def _require_files(ledger: Path, option: str, path: Path | None) -> None:
    """Refuse to write where a folder is, or over a part of the ledger."""
    if path is None:
        return
    if path.is_dir():
        raise ConfigError(f"{option} {path}: is a folder", "name a file in it")
    if path.resolve().is_relative_to(ledger.resolve()):
        raise ConfigError(f"{option} {path}: lies within the ledger, which nothing else may write", "name another file")
