"""The hospital's own table of labels, joined with images by what their headers say."""

import csv
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pandas as pd
from pydicom.datadict import dictionary_VR, tag_for_keyword

from models.errors import ConfigError, DataError
from silos.config import Data, Labels

NO_LABEL = "no label"
NO_CLASS = "label mapped to nothing"
CONFLICT = "conflicting labels"
NO_IMAGE = "label without an image"

_TABLE = "give a CSV file with a header line"


@dataclass(frozen=True, eq=False)
class Labelled:
    """The label of each image.

    Attributes:
        targets: Index of the class; meaningless where there is a reason.
        reasons: Why an image has none, "" if it has.
        unused: Rows of the table that fit no image.
    """

    targets: pd.Series
    reasons: pd.Series
    unused: int


def label(instances: pd.DataFrame, data: Data, classes: Sequence[str]) -> Labelled:
    """Find each image's row of the table.

    Args:
        instances: Images, attributes as text.
        data: The site's data settings.
        classes: The study's classes, in order.

    Raises:
        ConfigError: The site has no label table, or it cannot be read, lacks a column, or uses an unknown word.
        DataError: No label fits any image.
    """
    labels = data.labels
    if labels is None:
        raise ConfigError(
            "data.labels: is missing, and the study's task needs one label for each case",
            "say in site.toml where the hospital's labels are; configs/sites/north.toml shows how",
        )
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
    if len(instances) and not image_keys.isin(known.index).any():
        raise DataError(_nothing_matches(labels.file, labels, image_keys, label_keys))
    unused = int((~label_keys.isin(set(image_keys))).sum())
    return Labelled(pd.Series(found["target"].to_numpy(), index=instances.index), reasons, unused)


def read_labels(labels: Labels) -> pd.DataFrame:
    """The hospital's table, every cell as text.

    Raises:
        ConfigError: It is missing, is no table, or lacks a column that the site names; with the line, if there is one.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # of rows longer than the header
            table = pd.read_csv(labels.file, sep=labels.delimiter, dtype=str, keep_default_na=False, index_col=False)
    except PermissionError as error:
        raise ConfigError(f"data.labels.file: {labels.file}: {error.strerror}", "let this user read it") from error
    except OSError as error:
        raise ConfigError(f"data.labels.file: {labels.file}: {error.strerror}", _TABLE) from error
    except (ValueError, pd.errors.ParserWarning) as error:  # pandas' parser errors are ValueErrors
        what, fix = _flaw(labels)
        raise ConfigError(f"data.labels.file: {labels.file} {what}", fix) from error
    table.columns = table.columns.str.strip()
    wanted = {f"data.labels.join.{keyword}": column for keyword, column in labels.join.items()}
    for key, column in {**wanted, "data.labels.value": labels.value}.items():
        if column not in table.columns:
            raise ConfigError(
                f"{key}: {labels.file} has no column {column!r}; it has {', '.join(table.columns)}",
                "name one of these columns, or set data.labels.delimiter",
            )
    return table


def _flaw(labels: Labels) -> tuple[str, str]:
    """What is wrong with a table that pandas refused, and what to do about it."""
    content = labels.file.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return f"is not UTF-8 (line {line})", "save it as CSV UTF-8"
    if not text.strip():
        return "is empty", _TABLE
    rows = csv.reader(StringIO(text, newline=""), delimiter=labels.delimiter)
    header: list[str] = []
    try:
        for row in rows:
            header = header or row
            if len(row) > len(header):
                return (
                    f"line {rows.line_num} has {len(row)} fields, the header {len(header)}",
                    'correct the line; a field with a delimiter in it stands in quotes: "..."',
                )
    except csv.Error:  # what pandas refused, too
        pass
    return "is no table that can be read", _TABLE


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
