"""`intramural-silo`: the commands of hospital IT."""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from models.console import (
    FAILED,
    OK,
    above_zero,
    at_least,
    human_bytes,
    log_service,
    printable,
    progress,
    run_command,
    show_json,
    show_table,
    stop_signal,
)

if TYPE_CHECKING:
    from silos.approval.approve import Approval
    from silos.config import Site

# torch and MONAI take seconds to import, so a command imports what it needs when it runs.


def main(argv: Sequence[str] | None = None) -> int:
    """Run `intramural-silo`."""
    parser = argparse.ArgumentParser(prog="intramural-silo", description="A hospital's side of a federated study.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    phantom = commands.add_parser("phantom", help="write a make-believe hospital, to try everything without a patient")
    phantom.add_argument("folder", type=Path, help="a new or empty folder")
    phantom.add_argument("--name", help="the hospital's name (default: the folder's)")
    phantom.add_argument("--seed", type=int, default=0, help="the same seed writes the same hospital (default: 0)")
    phantom.add_argument("--patients", type=int, default=24, help="default: 24")
    phantom.add_argument("--images", type=int, help="images of each patient (default: 6, with --volumes 16)")
    phantom.add_argument("--volumes", action="store_true", help="make volumes, with lesions drawn on them")
    phantom.add_argument("--study", action="append", help="a study that the hospital's policy allows (default: demo)")
    phantom.add_argument("--coordinator", type=Path, metavar="FILE", help="the coordinator.json of a service to join")
    phantom.set_defaults(run=_phantom)

    key = commands.add_parser("key", help="make this hospital's key; its private half never leaves this machine")
    key.add_argument("site", type=Path, help="site.toml")
    key.set_defaults(run=_key)

    scan = commands.add_parser("scan", help="index the DICOM folder (headers only) and say what is in it")
    scan.add_argument("site", type=Path, help="site.toml")
    _json(scan)
    scan.set_defaults(run=_scan)

    check = commands.add_parser("check", help="see whether this hospital is ready, and what to do if not")
    check.add_argument("site", type=Path, help="site.toml")
    check.add_argument("--study", type=Path, help="study.toml, to check against its classes and task")
    check.add_argument("--only-files", action="store_true", help="see whether the two files can be read, and no more")
    _json(check)
    check.set_defaults(run=_check)

    describe = commands.add_parser("describe", help="write a page about the images, for the hospital's own eyes")
    describe.add_argument("site", type=Path, help="site.toml")
    describe.add_argument("--study", type=Path, help="study.toml, to look at its classes and what a survey would tell")
    describe.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: WORK/describe)")
    describe.add_argument("--images", type=at_least(1), metavar="N", help="decode at most N images (default: all)")
    _json(describe)
    describe.set_defaults(run=_describe)

    split = commands.add_parser("split", help="make hospitals of one hospital's patients, for research; copy nothing")
    split.add_argument("site", type=Path, help="site.toml of the hospital that has them all")
    split.add_argument("out", type=Path, help="a new or empty folder")
    split.add_argument("--into", type=at_least(1), metavar="N", help="how many hospitals")
    split.add_argument(
        "--by",
        default="iid",
        metavar="WHAT",
        help="what differs between them: iid (nothing), labels or sizes (drawn at random, see --alpha), year, or a"
        " DICOM keyword, of which each value makes a hospital (default: iid)",
    )
    split.add_argument("--alpha", type=above_zero, default=0.5, help="the smaller, the greater the difference (0.5)")
    split.add_argument("--seed", type=at_least(0), default=0, help="the same one makes the same hospitals (default: 0)")
    split.add_argument("--study", type=Path, help="study.toml, whose classes and modality count")
    _json(split)
    split.set_defaults(run=_split)

    preview = commands.add_parser(
        "preview", help="train one round and print the manifest that would leave; send nothing"
    )
    preview.add_argument("site", type=Path, help="site.toml")
    preview.add_argument("study", type=Path, help="study.toml")
    _json(preview)
    preview.set_defaults(run=_preview)

    predict = commands.add_parser("predict", help="run a released model on the hospital's images; nothing leaves")
    predict.add_argument("site", type=Path, help="site.toml")
    predict.add_argument("bundle", type=Path, help="the folder of a released model")
    predict.add_argument("out", type=Path, help="the folder to make: a table, and a DICOM SEG of each series")
    predict.add_argument("--dicom", type=Path, metavar="PATH", help="these images (default: the site's)")
    _json(predict)
    predict.set_defaults(run=_predict)

    released = commands.add_parser("released", help="list what has left this hospital, from its ledger")
    released.add_argument("site", type=Path, help="site.toml")
    _json(released)
    released.set_defaults(run=_released)

    join = commands.add_parser("join", help="make this hospital's keys and the public file that enrols it")
    join.add_argument("site", type=Path, help="site.toml")
    join.add_argument("--out", type=Path, help="write the public file here too, to be sent")
    _json(join)
    join.set_defaults(run=_join)

    approve = commands.add_parser("approve", help="say in words what a study asks, and record this hospital's yes")
    approve.add_argument("site", type=Path, help="site.toml")
    approve.add_argument("agreement", type=Path, help="the study's agreement.json, from its coordinator")
    approve.add_argument("--show", action="store_true", help="only say what is asked; record nothing")
    _json(approve)
    approve.set_defaults(run=_approve)

    revoke = commands.add_parser("revoke", help="take this hospital's yes to a study back")
    revoke.add_argument("site", type=Path, help="site.toml")
    revoke.add_argument("study", help="its name or digest")
    _json(revoke)
    revoke.set_defaults(run=_revoke)

    run = commands.add_parser("run", help="take part: keep the hospital's service running until stopped")
    run.add_argument("site", type=Path, help="site.toml")
    run.add_argument("--log-json", action="store_true", help="log as JSON lines")
    run.set_defaults(run=_run)

    initial = commands.add_parser("initial", help="write a study's first model, for a coordinator without torch")
    initial.add_argument("study", type=Path, help="study.toml")
    initial.add_argument("file", type=Path, help="the safetensors file to write")
    initial.set_defaults(run=_initial)
    return run_command(parser, argv)


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _site(path: Path) -> "Site":
    from silos.config import Site

    return Site.load(path)


def _phantom(arguments: argparse.Namespace) -> int:
    from silos.phantom import write_hospital

    site = write_hospital(
        arguments.folder,
        name=arguments.name or arguments.folder.resolve().name,
        seed=arguments.seed,
        patients=arguments.patients,
        images=arguments.images,
        volumes=arguments.volumes,
        studies=arguments.study or ["demo"],
        coordinator=arguments.coordinator,
    )
    print(site)
    return OK


def _key(arguments: argparse.Namespace) -> int:
    from models.ledger import Signer

    site = _site(arguments.site)
    site.key.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    print(Signer.create(site.key, site.name).vkey)
    return OK


def _scan(arguments: argparse.Namespace) -> int:
    from silos.visit import scan_site

    site = _site(arguments.site)
    with progress() as report:
        found = scan_site(site, report)
    counts = {
        "files": found.files,
        "opened": found.opened,
        "images": len(found.instances),
        "series": int(found.instances["SeriesInstanceUID"].nunique()),
        "patients": int(found.instances["PatientID"].nunique()),
        "annotations": len(found.annotations),
    }
    kinds = zip(found.instances["Modality"], found.instances["TransferSyntaxUID"], strict=True)
    usable = [(*kind, count) for kind, count in sorted(Counter(kinds).items())]
    if arguments.json:
        columns = ("modality", "transfer_syntax", "images")
        used = [dict(zip(columns, row, strict=True)) for row in usable]
        told = {"left_out": found.left_out, "examples": found.examples, "closed": found.closed, "usable": used}
        show_json({**counts, **told})
        return OK
    show_table(f"{site.name}: {site.data.folder}", ("what", "how many"), counts.items())
    show_table("usable", ("modality", "transfer syntax", "images"), usable)
    left_out = [(reason, count, found.examples.get(reason, "")) for reason, count in found.left_out.items()]
    show_table("left out", ("reason", "files", "the first of them"), left_out)
    if found.closed:
        print(printable(f"folders that could not be opened: {len(found.closed)}; the first is {found.closed[0]}"))
    return OK


def _check(arguments: argparse.Namespace) -> int:
    from models.plan import Plan

    plan = Plan.load(arguments.study) if arguments.study else None
    if arguments.only_files:
        site = _site(arguments.site)
        show_json({"site": site.name, "study": plan and plan.name}) if arguments.json else print(f"{site.name}: ok")
        return OK
    from silos.check import check_site

    with progress() as report:
        findings = check_site(arguments.site, plan, report)
    ready = all(finding.ok for finding in findings)
    if arguments.json:
        show_json({"ready": ready, "findings": [vars(finding) for finding in findings]})
    else:
        rows = [("ok" if f.ok else "PROBLEM", f.what, f.found, f.fix) for f in findings]
        show_table(
            f"{arguments.site}: {'ready' if ready else 'not ready'}",
            ("", "what", "found", "how to fix"),
            rows,
        )
    return OK if ready else FAILED


def _describe(arguments: argparse.Namespace) -> int:
    from models.plan import Plan
    from silos.describe import describe, write

    site, plan = _site(arguments.site), Plan.load(arguments.study) if arguments.study else None
    with progress() as report:
        found = describe(site, plan, arguments.images, report)
    written = write(site, found, arguments.out)
    if arguments.json:
        show_json(found.as_json())
        return OK
    show_table(f"{site.name}: hospital data, not to leave", ("what", "how many"), found.description.totals.items())
    print("\n".join(map(str, written)))
    return OK


def _split(arguments: argparse.Namespace) -> int:
    from models.drawing import as_file
    from models.plan import Plan
    from silos.split import picture, split

    plan = Plan.load(arguments.study) if arguments.study else None
    options = {key: getattr(arguments, key) for key in ("by", "into", "alpha", "seed")}
    with progress() as report:
        parts = split(arguments.site, arguments.out, plan=plan, progress=report, **options)
    drawing = arguments.out / "split.svg"
    drawing.write_bytes(as_file(picture(parts)))
    if arguments.json:
        show_json([vars(part) for part in parts])
        return OK
    found = [arguments.by] if any(part.values for part in parts) else []
    columns = ("hospital", *found, "patients", "to train on", "held out", "cases", *parts[0].classes)
    rows = [
        (
            part.name,
            *([", ".join(part.values)] if found else []),
            part.training + part.held_out,
            part.training,
            part.held_out,
            part.cases,
            *part.classes.values(),
        )
        for part in parts
    ]
    show_table(f"hospitals: {len(parts)}", columns, rows)
    print(drawing)
    if few := [part.name for part in parts if part.refuses]:
        print(f"too few patients for policy.min_patients, so will refuse: {', '.join(few)}")
    return OK


def _preview(arguments: argparse.Namespace) -> int:
    from models.plan import Plan
    from silos.visit import preview

    site, plan = _site(arguments.site), Plan.load(arguments.study)
    with progress() as report:
        manifest = preview(site, plan, report)
    if arguments.json:
        show_json(manifest.model_dump(mode="json"))
        return OK
    summary = manifest.model_dump(mode="json", exclude={"tensors", "v"})
    arrays = sum(tensor.bytes for tensor in manifest.tensors)
    summary["arrays"] = f"{len(manifest.tensors)} tensors, {human_bytes(arrays)}"
    show_table("what would leave in one round (nothing was sent)", ("what", "value"), summary.items())
    columns = ("tensor", "shape", "bytes", "L2", "SHA-256")
    rows = [(t.name, t.shape, t.bytes, f"{t.l2:.4g}", t.sha256[:16]) for t in manifest.tensors]
    show_table("arrays", columns, rows)
    return OK


def _predict(arguments: argparse.Namespace) -> int:
    from silos.predict import predict

    site = _site(arguments.site)
    with progress() as report:
        out, found = predict(site, arguments.bundle, arguments.out, arguments.dicom, report)
    if arguments.json:
        show_json({"folder": str(out), "cases": len(found.dataset), "left_out": found.left_out})
        return OK
    if found.left_out:
        show_table(f"{site.name}: not predicted", ("reason", "files"), found.left_out.items())
    print(f"{out}: predictions of {len(found.dataset)} cases, which nobody has checked; patient data")
    return OK


def _released(arguments: argparse.Namespace) -> int:
    from silos.released import released

    site = _site(arguments.site)
    found = released(site.ledger) if site.ledger.exists() else []  # it is made at the first order
    if arguments.json:
        show_json([vars(item) for item in found])
        return OK
    columns = (
        "time (UTC)",
        "to",
        "study",
        "round",
        "what",
        "size",
        "digest",
        "filters",
        "metrics",
        "receipt",
    )
    rows = [
        (
            r.time,
            r.to,
            r.study[:8],
            r.round,
            r.what,
            human_bytes(r.nbytes),
            (r.digest or "")[:16],
            r.filters,
            r.metrics,
            "yes" if r.receipt else "no",
        )
        for r in found
    ]
    show_table(f"{site.name}: {len(found)} messages left", columns, rows)
    return OK


def _join(arguments: argparse.Namespace) -> int:
    from silos.network.enrolment import invitation, join, node_files

    site = _site(arguments.site)
    enrolment, path = join(site), node_files(site).enrolment
    if arguments.out:
        arguments.out.write_bytes(path.read_bytes())
        path = arguments.out
    coordinator = invitation(site) if site.run.coordinator else None
    if arguments.json:
        known = coordinator and {"name": coordinator.name, "fingerprint": coordinator.fingerprint}
        show_json({"enrolment": str(path), "fingerprint": enrolment.fingerprint, "coordinator": known})
        return OK
    print(path)
    print(f"read out to the coordinator:   {enrolment.fingerprint}")
    if coordinator:
        print(f"{coordinator.name} must read out to you: {coordinator.fingerprint}")
    return OK


def _approve(arguments: argparse.Namespace) -> int:
    from silos.approval.approve import approve
    from silos.approval.proposal import explain, read_agreement

    site = _site(arguments.site)
    agreement = read_agreement(arguments.agreement)
    rows = explain(site, agreement)
    if not arguments.json:
        show_table(f"{site.name}: what the study asks", ("what", "value"), rows)
    decided = [] if arguments.show else [approve(site, agreement)]
    if arguments.json:
        show_json({"asked": [list(row) for row in rows], "decided": [vars(item) for item in decided]})
    else:
        _tell(decided)
    return OK


def _revoke(arguments: argparse.Namespace) -> int:
    from silos.approval.approve import revoke

    decided = revoke(_site(arguments.site), arguments.study)
    if arguments.json:
        show_json([vars(item) for item in decided])
    else:
        _tell(decided)
    return OK


def _tell(decided: "list[Approval]") -> None:
    for item in decided:
        done = "approved" if item.action == "approve" else "revoked"
        print(f"{done} {item.name}@{item.study}")
        if not item.recorded:
            print("The silo that runs writes it into its ledger before its next order.")


def _run(arguments: argparse.Namespace) -> int:
    from silos.service.run import run_service

    log_service(json_lines=arguments.log_json)
    return run_service(arguments.site, stop_signal(), arguments.log_json)


def _initial(arguments: argparse.Namespace) -> int:
    from models import tasks
    from models.exchange.spec import save_vector, vector_digest
    from models.plan import Plan

    network = tasks.network(Plan.load(arguments.study))
    vector = network.vector.numpy()
    save_vector(arguments.file, network.spec, vector)
    print(vector_digest(network.spec.digest, vector))
    return OK


if __name__ == "__main__":
    raise SystemExit(main())
