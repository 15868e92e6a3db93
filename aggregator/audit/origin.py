"""Where a released model comes from, for a third person who has the release's folder and nothing else.

    found = check_model(Path("model"), [Verifier.parse(vkey)])     # standard library and `cryptography` alone

The folder holds `release.proof`: the few lines of the coordinator's ledger that the model rests on, the hashes
that tie them to the ledger's signed head, and that head. Together with the other files it shows:

- The coordinator's key signed a ledger in which this study was created, with exactly the plan of
  `agreement.json`; in which this round combined these updates into a model of this digest; in which the study
  was closed with that model; and in which exactly these files were released. No file was changed, lost or added,
  none is of another kind than a release has, and the configurations run nothing but the toolkit's own inference.
- The arrays of `models/model.safetensors` are that model, to the bit.
- Each hospital whose update went in signed that update, and gave it for this round of this study.
- Each hospital whose metrics are shown signed them, as those of this model on its own held-out patients.

It does not show that the sum was taken rightly and of every accepted update (`replay` does), that the hospitals'
keys are those of the hospitals (compare them, or give them with `--key`), that the numbers which they signed are
true, or that the model is good for anything.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aggregator.audit import lines
from aggregator.audit.checks import included, signed_head
from aggregator.audit.proofs import Proof, load
from aggregator.audit.reader import check_statement
from models.canonical import digest, parse
from models.errors import LedgerError, Malformed, ProtocolError
from models.exchange.model_file import file_digests
from models.ledger import Checkpoint, Event, Record, Verifier

PROOF, AGREEMENT, MODEL = "release.proof", "agreement.json", "models/model.safetensors"
INFERENCE, METADATA, CARD, LICENCE = "configs/inference.json", "configs/metadata.json", "docs/README.md", "LICENSE"
"""Files of a release, by their path in its folder; the first is listed in no line, since it holds the lines."""

PARTS = frozenset(
    {
        "silos.training.device_for",
        "silos.inference.network",
        "silos.inference.preprocessing",
        "silos.inference.Cases",
        "silos.inference.dicom_sources",
        "silos.inference.inferer",
        "silos.inference.postprocessing",
        "silos.inference.Evaluator",
        "silos.inference.written.write",
    }
)
"""What a release's configurations may call. MONAI calls each `_target_`, and evaluates what begins with `$`."""

_ONCE = (Event.STUDY_CREATED, Event.AGGREGATED, Event.STUDY_CLOSED, Event.MODEL_RELEASED)


@dataclass(frozen=True)
class Origin:
    """What a release's folder shows.

    Attributes:
        folder: Where it lies.
        party: Whose ledger the proof is from: the coordinator.
        vkey: Its key.
        study: The study's digest.
        trusted: Names of those whose key was given; the others' keys are only the file's own word.
        head: The signed head of the ledger; None if it is not one.
        name: The study's name.
        round: The round that made the model.
        model: The model's digest.
        released: When it was released, by the coordinator's clock.
        inputs: Hospitals whose signed updates went into that round's model, in the order of the sum.
        measured: Metrics of the model that hospitals signed, by hospital.
        keys: The hospitals' keys (vkey) by name, as the coordinator enrolled them.
        files: Files that are as they were released.
        problems: What is wrong; empty if nothing is.
    """

    folder: str
    party: str
    vkey: str
    study: str
    trusted: list[str] = field(default_factory=list)
    head: Checkpoint | None = None
    name: str = ""
    round: int = 0
    model: str = ""
    released: str = ""
    inputs: list[str] = field(default_factory=list)
    measured: dict[str, dict[str, float]] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    files: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        head = None if self.head is None else {"size": self.head.size, "root": self.head.root.hex()}
        return {**vars(self), "head": head, "ok": self.ok}


def check_model(folder: Path, keys: Sequence[Verifier] = ()) -> Origin:
    """Check a release's folder.

    Args:
        folder: The folder that `intramural-aggregator release` made.
        keys: Public keys that are known from elsewhere, of the coordinator and of hospitals. If any is given,
            the coordinator's must be among them.

    Raises:
        LedgerError: There is no release in this folder.
        Malformed: Its proof cannot be read.
    """
    if not (folder / PROOF).is_file():
        raise LedgerError(f"{folder}: is no release of a model (it has no {PROOF})", "give the release's folder")
    proof = load(folder / PROOF)
    given = {key.name: key for key in keys}
    problems: list[str] = []
    head = signed_head(proof, given, problems)
    start = Origin(str(folder), proof.verifier.name, proof.verifier.vkey, proof.study, problems=problems)
    if proof.of != "model":
        problems.append(f"{PROOF} shows an exchange, not where a model comes from")
    if head is None or problems:
        return start
    records = included(proof, head, problems)
    once = {event: [record for record in records if record.event == event] for event in _ONCE}
    problems.extend(
        f"it shows {len(found)} lines of {event}, not one" for event, found in once.items() if len(found) != 1
    )
    if problems:
        return start
    created, made, closed, released = (once[event][0] for event in _ONCE)
    if len({made.body["model"], closed.body["model"], released.body["model"]}) != 1 or made.round != released.round:
        problems.append("the model that was released is not the one that the round made and the study closed with")
    peers = _hospitals(records, given, problems)
    parties = {**peers, proof.verifier.name: proof.verifier}
    signed = {lines.statement(record).xid: record for record in _signed(records, proof.verifier, parties, problems)}
    inputs = list(_inputs(made, signed, problems))
    return Origin(
        folder=str(folder),
        party=proof.verifier.name,
        vkey=proof.verifier.vkey,
        study=proof.study,
        trusted=sorted(given.keys() & parties.keys()),
        head=head,
        name=created.body["name"],
        round=made.round or 0,
        model=made.body["model"],
        released=released.ts,
        inputs=inputs,
        measured=_measured(proof, made.body["model"], signed, problems),
        keys={name: key.vkey for name, key in peers.items()},
        files=_files(folder, created, released, proof.verifier, problems),
        problems=problems,
    )


def _hospitals(records: Sequence[Record], given: Mapping[str, Verifier], problems: list[str]) -> dict[str, Verifier]:
    """Keys of the hospitals, as the coordinator enrolled them and as they are known from elsewhere."""
    try:
        peers = {name: key for (_, name), key in lines.peers(records).items()}
    except Malformed as error:
        problems.append(str(error))
        return {}
    problems.extend(
        f"the ledger names another key of {name} than the one given"
        for name, key in peers.items()
        if given.get(name, key) != key
    )
    return peers


def _signed(
    records: Sequence[Record], own: Verifier, keys: Mapping[str, Verifier], problems: list[str]
) -> Iterator[Record]:
    """The lines that hold a hospital's statement, where hospital and coordinator both signed it."""
    for record in records:
        if not lines.is_receipt(record):
            continue
        try:
            check_statement(lines.statement(record), record, own, keys)
        except ProtocolError as error:
            problems.append(f"line {record.seq + 1}: {error}")
        else:
            yield record


def _inputs(made: Record, signed: Mapping[str, Record], problems: list[str]) -> Iterator[str]:
    """The hospitals whose updates went in; whoever's was accepted must have signed it, for this round and base."""
    used, silos = lines.taken(made), [item["silo"] for item in made.body["inputs"]]
    if silos != sorted(set(silos)):
        problems.append(f"line {made.seq + 1}: the round's inputs are not each hospital once, in order of name")
    for item in made.body["inputs"]:
        record, silo = signed.get(item["xid"]), item["silo"]
        if record is None or record.event != Event.UPDATE_RECEIVED:
            problems.append(f"it does not show the update of {silo} that the round accepted")
            continue
        statement = lines.statement(record)
        there = (statement.src, statement.payload, statement.round, record.body["base"], record.body["weight"])
        if there != (silo, item["digest"], made.round, made.body["base"], item["weight"]):
            problems.append(f"line {record.seq + 1}: is another update than the one of {silo} that was accepted")
            continue
        if item in used:
            yield silo


def _measured(
    proof: Proof, model: str, signed: Mapping[str, Record], problems: list[str]
) -> dict[str, dict[str, float]]:
    """The metrics that hospitals signed for this model."""
    documents = {digest(content): content for content in proof.documents}
    found: dict[str, dict[str, float]] = {}
    named = set()
    for record in signed.values():
        if record.event != Event.REPORT_RECEIVED:
            continue
        statement = lines.statement(record)
        named.add(statement.body)
        try:
            said = parse(documents.get(statement.body, b""))
        except ValueError:
            said = None
        if not isinstance(said, dict) or said.get("base") != model or said.get("metrics") != record.body.get("metrics"):
            problems.append(f"line {record.seq + 1}: the report of {statement.src} is not one of this model's metrics")
            continue
        found[statement.src] = said["metrics"]
    problems.extend(f"no line names the document {name[:16]}" for name in documents.keys() - named)
    return found


def _files(folder: Path, created: Record, released: Record, own: Verifier, problems: list[str]) -> int:
    """Compare the files with their list, and the model with the round's; the number of those that are right."""
    listed = {item["name"]: item for item in released.body["files"]}
    kinds = {AGREEMENT, MODEL, INFERENCE, METADATA, CARD, LICENCE}
    problems.extend(f"{name}: is no file that a release has" for name in sorted(listed.keys() - kinds))
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}
    # A file more is no small thing: MONAI runs what it finds beside a configuration, such as a logging.conf.
    problems.extend(f"{name}: is no file of this release" for name in sorted(there - listed.keys() - {PROOF}))
    right = {name for name, item in listed.items() if _is_whole(folder, name, item)}
    problems.extend(f"{name}: is not the file that was released" for name in sorted(listed.keys() - right))
    for name in sorted({INFERENCE, METADATA} & right):
        try:
            problems.extend(f"{name}: {what}" for what in _runs(json.loads((folder / name).read_bytes())))
        except (ValueError, RecursionError):
            problems.append(f"{name}: is no JSON")
    if not {AGREEMENT, MODEL} <= right:
        problems.extend(f"{name}: was not released" for name in (AGREEMENT, MODEL) if name not in listed)
        return len(right)
    content = (folder / AGREEMENT).read_bytes()
    try:
        agreement = parse(content)
        expected = created.study, created.body["agreement"], own.vkey, created.body["model"]
        if (digest(content), digest(content), agreement["coordinator_key"], agreement["initial"]) != expected:
            raise Malformed(f"{AGREEMENT}: is not what the study was created with")
        if file_digests(folder / MODEL) != (agreement["spec"], released.body["model"]):
            raise Malformed(f"{MODEL}: is not the model that the round made")
    except (ValueError, TypeError, KeyError):
        problems.append(f"{AGREEMENT}: is no agreement")
    except Malformed as error:
        problems.append(str(error))
    return len(right)


def _runs(value: Any) -> Iterator[str]:
    """What a configuration would have MONAI run or read that no release needs."""
    if isinstance(value, str):
        if value.startswith(("$", "%")):  # an expression; a part of another file
            yield "holds something to be evaluated"
    elif isinstance(value, list):
        for item in value:
            yield from _runs(item)
    elif isinstance(value, dict):
        if value.get("_target_") not in (None, *PARTS):
            yield "calls something else than the toolkit's own inference"
        for item in value.values():
            yield from _runs(item)


def _is_whole(folder: Path, name: str, item: Mapping[str, Any]) -> bool:
    """Whether a file is there, itself and not by a link, with the bytes that were released."""
    path = folder / name
    if any(part.is_symlink() for part in (path, *path.parents) if part.is_relative_to(folder) and part != folder):
        return False
    if not path.is_file() or path.stat().st_size != item["bytes"]:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == str(item["sha256"])
