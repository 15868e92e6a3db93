"""Which images can be trained on: scanned images joined with the hospital's own labels, by patient.

The hospital's table is joined by any DICOM attributes the site names; its words become the study's
classes; patients are split so that one patient is always on one side, today and after any new
arrival. Patients are told apart by a keyed hash that exists in memory only. Whatever is left out is
counted with a reason.
"""

import hashlib
import hmac
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from pydicom.datadict import dictionary_VR, tag_for_keyword

from models.errors import ConfigError, DataError
from silos.config import Data, Labels

NO_PATIENT = "no PatientID"
NO_LABEL = "no label"
NO_CLASS = "label mapped to nothing"
CONFLICT = "conflicting labels"
NO_IMAGE = "label without an image"


@dataclass(frozen=True)
class Cohort:
    """The cases of one hospital for one study.

    Attributes:
        cases: One row per image: `path`, `size`, `mtime_ns`, `target` (int64, index of the class),
            `patient` (keyed hash), `held_out` (bool); in the scan's order.
        left_out: Images, or rows of the label table, that are not cases, by reason.
        classes: The study's classes.
    """

    cases: pd.DataFrame
    left_out: dict[str, int]
    classes: tuple[str, ...]

    def side(self, held_out: bool) -> pd.DataFrame:
        """The cases to train on, or those held out."""
        return self.cases[self.cases["held_out"] == held_out]

    def patients(self, held_out: bool) -> int:
        """Patients on that side."""
        return int(self.side(held_out)["patient"].nunique())

    def without(self, paths: dict[str, str]) -> "Cohort":
        """The cohort less some files, each with its reason."""
        kept = self.cases[~self.cases["path"].isin(list(paths))].reset_index(drop=True)
        left_out = Counter(self.left_out) + Counter(paths.values())
        return Cohort(kept, dict(sorted(left_out.items())), self.classes)


def match(instances: pd.DataFrame, data: Data, classes: Sequence[str], left_out: dict[str, int]) -> Cohort:
    """Join images and labels.

    Args:
        instances: The scan's usable images, attributes as text.
        data: The site's data settings.
        classes: The study's classes, in order.
        left_out: What the scan left out; what is left out here is added.

    Raises:
        ConfigError: The label table cannot be read, lacks a column, or uses an unknown word.
        DataError: No label fits any image.
    """
    labels, source = data.labels, data.labels.file
    table = read_labels(labels)
    targets, excluded = _targets(table[labels.value], labels, classes)
    keys = list(labels.join)
    image_keys = _keys(instances, keys, keys)
    label_keys = _keys(table, list(labels.join.values()), keys)
    known = pd.DataFrame({"key": label_keys, "target": targets, "excluded": excluded})
    # What an image lacks and a row leaves blank is no agreement.
    blank = table[list(labels.join.values())].apply(lambda column: column.str.strip() == "").any(axis=1)
    known = known[~blank]
    several = known.groupby("key")[["target", "excluded"]].nunique().max(axis=1)
    conflicting = set(several[several > 1].index)
    known = known.drop_duplicates("key").set_index("key")

    found = known.reindex(image_keys)
    reasons = pd.Series("", index=instances.index)
    reasons[found["target"].isna().to_numpy()] = NO_LABEL
    reasons[(found["excluded"] == True).to_numpy()] = NO_CLASS  # noqa: E712 - missing rows are neither
    reasons[image_keys.isin(conflicting).to_numpy()] = CONFLICT
    reasons[(instances["PatientID"].str.strip() == "").to_numpy()] = NO_PATIENT
    if len(instances) and not image_keys.isin(known.index).any():
        raise DataError(_nothing_matches(source, labels, image_keys, label_keys))

    used = (reasons == "").to_numpy()
    counts = Counter(left_out) + Counter(reasons[~used])
    unused = int((~label_keys.isin(set(image_keys))).sum())
    if unused:
        counts[NO_IMAGE] += unused
    cases = instances.loc[used, ["path", "size", "mtime_ns"]].copy()
    cases["target"] = found.loc[used, "target"].to_numpy().astype(np.int64)
    hashes = {p: patient_hash(data.salt, p) for p in instances.loc[used, "PatientID"].unique()}
    cases["patient"] = instances.loc[used, "PatientID"].map(hashes)
    cases["held_out"] = cases["patient"].map(lambda value: is_held_out(value, data.held_out)).astype(bool)
    return Cohort(cases.reset_index(drop=True), dict(sorted(counts.items())), tuple(classes))


def patient_hash(salt: str, patient_id: str) -> str:
    """HMAC-SHA256 (hex) of a PatientID under the site's salt; for this process's memory only."""
    return hmac.new(salt.encode(), patient_id.strip().encode(), hashlib.sha256).hexdigest()


def is_held_out(patient: str, fraction: float) -> bool:
    """Whether a patient is held out; depends on that patient alone, so it never changes."""
    return int(patient[:16], 16) < fraction * 2**64


def read_labels(labels: Labels) -> pd.DataFrame:
    """The hospital's table, every cell as text.

    Raises:
        ConfigError: It is missing, is no table, or lacks a column that the site names.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # of rows longer than the header
            table = pd.read_csv(labels.file, sep=labels.delimiter, dtype=str, keep_default_na=False, index_col=False)
    except (OSError, ValueError, pd.errors.ParserWarning) as error:  # pandas' parser errors are ValueErrors
        what = error.strerror if isinstance(error, OSError) else "is no table that can be read"
        raise ConfigError(f"data.labels.file: {labels.file}: {what}", "give a CSV file with a header line") from error
    table.columns = table.columns.str.strip()
    wanted = {f"data.labels.join.{keyword}": column for keyword, column in labels.join.items()}
    for key, column in {**wanted, "data.labels.value": labels.value}.items():
        if column not in table.columns:
            raise ConfigError(
                f"{key}: {labels.file} has no column {column!r}; it has {', '.join(table.columns)}",
                "name one of these columns, or set data.labels.delimiter",
            )
    return table


def _targets(values: pd.Series, labels: Labels, classes: Sequence[str]) -> tuple[pd.Series, pd.Series]:
    """Each row's class as an index, and whether its word stands for no class ("")."""
    for word, name in labels.words.items():
        if name and name not in classes:
            raise ConfigError(
                f"data.labels.words.{word}: {name!r} is no class of the study; its classes are {', '.join(classes)}",
                'use one of the study\'s classes, or "" to leave these images out',
            )
    words = values.str.strip()
    unknown = sorted(set(words) - set(labels.words) - {""})
    if unknown:
        rows = int((words == unknown[0]).sum())
        raise ConfigError(
            f"data.labels.words: {labels.file} says {unknown[0]!r} in column {labels.value!r} ({rows} rows); "
            f"known words are {', '.join(labels.words)}",
            f'add {unknown[0]!r} to data.labels.words; "" leaves such images out',
        )
    mapped = words.map({"": -1} | {word: classes.index(name) if name else -1 for word, name in labels.words.items()})
    return mapped, mapped == -1


def _keys(table: pd.DataFrame, columns: list[str], keywords: list[str]) -> pd.Series:
    """One text key per row; numbers of DICOM integer attributes are compared as numbers."""
    parts = [
        table[column].str.strip().map(_number) if _is_integer(keyword) else table[column].str.strip()
        for column, keyword in zip(columns, keywords, strict=True)
    ]
    joined = parts[0].astype(str)
    for part in parts[1:]:
        joined = joined + "\x1f" + part.astype(str)
    return joined


def _is_integer(keyword: str) -> bool:
    tag = tag_for_keyword(keyword)
    return tag is not None and dictionary_VR(tag) in {"IS", "US", "UL", "SS", "SL"}


def _number(text: str) -> str:
    number = re.fullmatch(r"([+-]?\d{1,18})(\.0*)?", text)  # spreadsheets write 7.0 for 7
    return str(int(number[1])) if number else text


def _nothing_matches(source: Path, labels: Labels, images: pd.Series, rows: pd.Series) -> str:
    join = " + ".join(f"{keyword} = {column}" for keyword, column in labels.join.items())
    return (
        f"data.labels: none of {len(images)} images fits any of {len(rows)} rows of {source} by {join}; "
        f"the first image's key looks like {_shape(images.iloc[0])}, "
        f"the first row's like {_shape(rows.iloc[0]) if len(rows) else '(no rows)'} (9 a digit, A a letter)"
    )


def _shape(key: str) -> str:
    """What a key looks like without what it says."""
    letters = re.sub(r"[^\W\d_]", "A", re.sub(r"\d", "9", key))
    return repr(letters.replace("\x1f", " + "))
