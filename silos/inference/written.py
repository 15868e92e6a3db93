"""Predictions as files: a table of all of them, and a DICOM SEG of each series where the study outlines.

    predictions/
      predictions.csv     one row for each image or series, with its path and UID; millilitres where the study outlines,
                          none of a single slice that does not say how thick it is
      00001.dcm ...       of a study that outlines: the masks, on the images' own grid, ready for the archive
      about.json          study, model, versions, and how many were left out, or are a row without a file, by reason

They are of patients and stay in the hospital; only their owner can read them. Nobody has checked them.
"""

import csv
import importlib.metadata
import io
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from models.errors import ConfigError
from models.exchange.documents import Agreement
from models.ledger.disk import create, rename, sync_folder
from models.plan import Segmentation, TaskSettings
from silos.dicom.annotation.writing import Drawn, Unwritable, write_mask
from silos.dicom.series import Stack
from silos.inference import Evaluator, Prediction, agreement, model
from silos.tally import millimetres

TABLE, ABOUT = "predictions.csv", "about.json"


def write(
    bundle_root: str | Path,
    evaluator: Evaluator,
    output: str | Path,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Predict, and write what was found.

    Args:
        bundle_root: The bundle's folder.
        evaluator: What predicts.
        output: The folder to make; nothing is overwritten. It gets its name when it is whole.
        progress: Called with (cases done, cases in all).

    Returns:
        The folder.

    Raises:
        ConfigError: The folder exists.
    """
    out = Path(output).absolute()
    if out.exists():
        raise ConfigError(f"{out}: exists already", "choose another folder; nothing is overwritten")
    found, (digest, _) = agreement(bundle_root), model(bundle_root)
    draft = out.with_name(f".{out.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True, mode=0o700)
    task, rows, without_file = found.plan.task, [], Counter[str]()
    for number, prediction in enumerate(evaluator.predictions(), start=1):
        rows.append(_row(draft, number, prediction, found, digest, without_file))
        if progress:
            progress(number, len(evaluator.dataset))
    about = {
        "study": found.study,
        "model": digest,
        "software": {name: importlib.metadata.version(name) for name in ("intramural", "monai", "torch", "highdicom")},
        "predicted": len(rows),
        "left_out": evaluator.left_out,
        "without_file": without_file,
    }
    create(draft / TABLE, _table(_columns(task), rows), 0o600)
    create(draft / ABOUT, (json.dumps(about, indent=2) + "\n").encode(), 0o600)
    sync_folder(draft)
    rename(draft, out)
    return out


def _columns(task: TaskSettings) -> list[str]:
    where = ["path", "SeriesInstanceUID"]
    if task.drawn:
        return [*where, "images", "file", *(f"{name} (ml)" for name in task.classes)]
    return [*where, "SOPInstanceUID" if task.unit == "image" else "images", *task.classes]


def _row(
    draft: Path, number: int, prediction: Prediction, found: Agreement, digest: str, without_file: Counter[str]
) -> list[Any]:
    source, task = prediction.item.source, found.plan.task
    where = [str(source.root / source.path), source.series]
    if not task.drawn:
        images = source.instance if source.stack is None else len(source.stack.slices)
        return [*where, images, *(f"{value:.6f}" for value in prediction.probabilities.tolist())]
    assert source.stack is not None
    mask, file = prediction.mask(), f"{number:05}.dcm"
    made_by = {"study": found.study, "model": digest}
    title = f"{found.plan.name}: {', '.join(task.classes)}, predicted"
    try:
        write_mask(draft / file, mask, source.stack, source.root, drawn(task), made_by, title)
    except Unwritable as error:  # the volumes are measured all the same
        without_file[error.reason] += 1
        file = ""
    millilitres = _millilitres(source.stack)
    counts = np.bincount(mask.ravel(), minlength=len(task.classes) + 1)[1:]
    volumes = ("" if millilitres is None else f"{count * millilitres:.3f}" for count in counts)
    return [*where, len(source.stack.slices), file, *volumes]


def _millilitres(stack: Stack) -> float | None:
    """Of one voxel; None where a slice without others does not say how thick it is."""
    column, row, step = stack.spacing
    depth = step if len(stack.slices) > 1 else millimetres(stack.thickness)
    return None if depth is None else column * row * depth / 1000


def drawn(task: TaskSettings) -> list[Drawn]:
    """What a study's classes are called in a segmentation."""
    known = task.codes if isinstance(task, Segmentation) else {}
    return [
        Drawn(name, known[name].category, known[name].type) if name in known else Drawn(name) for name in task.classes
    ]


def _table(columns: list[str], rows: list[list[Any]]) -> bytes:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    table.writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")
