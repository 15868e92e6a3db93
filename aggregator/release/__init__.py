"""The study's model, handed out with its papers.

    release(Path("studies/demo"), Path("demo-model"))

    demo-model/
      models/model.safetensors   the final model; no pickle anywhere
      configs/inference.json     a MONAI bundle: builds the network, loads the model, runs it on DICOM
      configs/metadata.json      what goes in and what comes out, in MONAI's words
      docs/README.md             the model's card, for people
      agreement.json             what the hospitals approved, word for word; its SHA-256 is the study
      LICENSE                    if the coordinator gives one
      release.proof              shows to anybody where all of this comes from

The release stands in the coordinator's ledger, with the digest of every file, before the folder gets its
name; so `intramural-audit check demo-model` shows to a third person that the model is the output of that
round of that study, and that no file was touched since. A folder is made whole or not at all, and made again
from the same study its files are the same, but for the proof, which is of the newer line.
"""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from aggregator.audit.origin import AGREEMENT, CARD, INFERENCE, LICENCE, METADATA, MODEL, PROOF
from aggregator.audit.proving import prove_model
from aggregator.release.bundle import CONFIGURATION, as_json, metadata
from aggregator.release.card import card
from aggregator.release.papers import Papers, papers
from aggregator.study import Study
from models.errors import ConfigError
from models.exchange.spec import save_vector
from models.ledger import Entry, Event, read
from models.ledger.disk import create, rename, sync_folder
from models.page import as_markdown

__all__ = ["Papers", "papers", "release"]


def release(study: Path, out: Path, *, licence: Path | None = None, exact_counts: bool = False) -> Papers:
    """Write the final model of a closed study as a MONAI bundle with its card and its proof.

    Args:
        study: The study's folder; no other process may be at work on it.
        out: The folder to make; it must not exist, or be empty.
        licence: The text under which the model is handed out, which is the coordinator's to choose.
        exact_counts: Whether a hospital's count that was told exactly may be handed on; ledger lines in the
            proof repeat it as the hospital's weight.

    Returns:
        What the card was made from.

    Raises:
        ConfigError: The study is not closed, no round made a model, `out` is taken, or a count is exact.
        DigestMismatch: The model on disk is not the one in the ledger.
        LedgerError: The ledger is in use, not what was signed, or cannot be written.
    """
    out = out.resolve()  # neither "." nor a link can be given to a draft
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: exists already", "choose another folder; nothing is overwritten")
    with Study.open(study) as opened:
        told = papers(read(opened.ledger.folder, opened.signer.verifier), opened.agreement)
        if told.exact and not exact_counts:
            raise ConfigError(
                f"{study}: the counts of {', '.join(told.exact)} were told exactly, and the proof would repeat them",
                "ask these hospitals; if they agree, run again with --exact-counts",
            )
        model = opened.load_model(told.round, told.model)
        files = {
            AGREEMENT: opened.agreement.encode(),
            INFERENCE: as_json(CONFIGURATION),
            METADATA: as_json(metadata(told)),
            CARD: as_markdown(card(told)).encode(),
            **({} if licence is None else {LICENCE: licence.read_bytes()}),
        }
        draft = out.with_name(f".{out.name}.part")
        shutil.rmtree(draft, ignore_errors=True)
        for name in (*files, MODEL):
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
        save_vector(draft / MODEL, opened.spec, model)
        for name, content in files.items():
            create(draft / name, content)
        listed = [_listed(draft, name) for name in sorted((*files, MODEL))]
        opened.ledger.append(
            Entry(Event.MODEL_RELEASED, {"model": told.model, "files": listed}, opened.digest, told.round)
        )
        create(draft / PROOF, prove_model(opened.ledger.folder, opened.digest).encode())
        for folder in _folders(draft):
            sync_folder(folder)
        if out.exists():
            out.rmdir()  # it was empty; if it no longer is, this fails
        rename(draft, out)
    return told


def _listed(draft: Path, name: str) -> dict[str, str | int]:
    """How the ledger lists a file, as it is on disk."""
    with (draft / name).open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        return {"name": name, "sha256": found, "bytes": file.tell()}


def _folders(draft: Path) -> Iterator[Path]:
    yield draft
    yield from (path for path in draft.rglob("*") if path.is_dir())
