"""Volumes with one label each, or with what was drawn on them."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

import pandas as pd

from models.errors import ConfigError
from models.plan import Unit
from silos.cohort.cases import NO_PATIENT, Cohort, split
from silos.cohort.labels import CONFLICT, NO_IMAGE, NO_LABEL, label
from silos.config import Data
from silos.dicom.annotation import Annotation
from silos.dicom.annotation.mask import classes_of
from silos.dicom.annotation.reference import match
from silos.dicom.geometry import Misfit
from silos.dicom.scan import ANNOTATIONS, Scan
from silos.dicom.series import Stack, find_stacks, of_several_patients

NO_ANNOTATION = "nothing drawn on it"
NOT_OF_STUDY = "nothing of the study drawn on it"
OTHER_KIND = "annotation of a kind that is not used"


def match_volumes(found: Scan, data: Data, classes: Sequence[str], *, unit: Unit, drawn: bool) -> Cohort:
    """Sort images into volumes, and join these with labels or annotations.

    With labels: those of a volume's images must agree, else it is left out; images that the table does not know have
    no say. With annotations: a volume on which nothing was drawn is left out, because nobody knows whether nothing
    is there; one with an annotation that names a class, and marks nothing of it, stays, with an empty mask.

    Args:
        found: A scan that lets images of several frames in.
        data: The site's data settings.
        classes: The study's classes, in order.
        unit: "volume", or "either" to take single slices as well.
        drawn: Whether a case has a mask; else it has a label.

    Raises:
        ConfigError: The site says nothing of labels, or of annotations; or there is something wrong with them.
        DataError: No label fits any image.
    """
    several = of_several_patients(found.instances)
    stacks = find_stacks(found.instances[~several], data.folder, single=unit == "either")
    counts = Counter({Misfit.SEVERAL_PATIENTS.value: int(several.sum())})
    counts += Counter(found.left_out) + Counter(stacks.left_out)
    by = _by_annotation if drawn else _by_label
    rows, more = by(found, stacks.stacks, data, classes)
    instances = found.instances.set_index("path")
    rows["patients"] = instances.loc[rows["path"], "PatientID"].to_numpy()
    reasons = rows["reason"].mask(rows["patients"].str.strip() == "", NO_PATIENT)
    used = rows[reasons == ""]
    cases = used.drop(columns=["reason", "patients"])
    stamps = _stamps(found)
    cases["stamp"] = [
        _stamp(stamps, stack, several) for stack, several in zip(cases["stack"], cases["annotations"], strict=True)
    ]
    return split(cases, used["patients"], counts + more + Counter(reasons[reasons != ""]), data, classes)


def _by_label(
    found: Scan, stacks: Sequence[Stack], data: Data, classes: Sequence[str]
) -> tuple[pd.DataFrame, Counter[str]]:
    labelled = label(found.instances, data, classes)
    fates = pd.DataFrame({"target": labelled.targets, "reason": labelled.reasons}).set_axis(found.instances["path"])
    rows = []
    for stack in stacks:
        slices = fates.loc[list({each.path for each in stack.slices})]
        said = slices[slices["reason"] != NO_LABEL]
        # A word that stands for no class is a word too, of which the reason tells.
        words = {(reason, -1 if reason else int(target)) for target, reason in said.to_numpy()}
        reason, target = words.pop() if len(words) == 1 else (CONFLICT if words else NO_LABEL, -1)
        rows.append(_row(stack, target, {target}, (), reason))
    return _table(rows), Counter({NO_IMAGE: labelled.unused})


def _by_annotation(
    found: Scan, stacks: Sequence[Stack], data: Data, classes: Sequence[str]
) -> tuple[pd.DataFrame, Counter[str]]:
    if data.annotations is None:
        raise ConfigError(
            "data.annotations: is missing, and the study's task needs what was drawn on the images",
            "say in site.toml what the hospital's segments are called; configs/sites/north.toml shows how",
        )
    kinds = found.annotations["SOPClassUID"].map(ANNOTATIONS)
    wanted = kinds.isin(data.annotations.kinds)
    matches = match(found.annotations[wanted], stacks, data.folder)
    named = partial(classes_of, words=data.annotations.words, classes=["background", *classes])
    rows = []
    for stack in stacks:
        several = matches.by_stack.get(stack, ())
        present = {index - 1 for each in several for index in named(each.segments).values() if index}
        reason = "" if present else NOT_OF_STUDY if several else NO_ANNOTATION
        rows.append(_row(stack, -1, present, several, reason))
    return _table(rows), Counter(matches.left_out) + Counter({OTHER_KIND: int((~wanted).sum())})


def _row(
    stack: Stack, target: int, present: set[int], annotations: tuple[Annotation, ...], reason: str
) -> tuple[str, str, int, frozenset[int], Stack, tuple[Annotation, ...], str]:
    first = stack.slices[0]
    name = first.path if first.frame == 1 else f"{first.path}#{first.frame}"
    return name, first.path, target, frozenset(present), stack, annotations, reason


def _table(rows: Sequence[tuple[object, ...]]) -> pd.DataFrame:
    names = ["name", "path", "target", "classes", "stack", "annotations", "reason"]
    columns = zip(*rows, strict=True) if rows else [()] * len(names)
    table = {name: pd.Series(list(column), dtype=object) for name, column in zip(names, columns, strict=True)}
    return pd.DataFrame(table).astype({"target": "int64"})


def _stamps(found: Scan) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file that a case can be made of."""
    columns = pd.concat([table[["path", "size", "mtime_ns"]] for table in (found.instances, found.annotations)])
    return {path: (int(size), int(age)) for path, size, age in columns.itertuples(index=False, name=None)}


def _stamp(stamps: Mapping[str, tuple[int, int]], stack: Stack, annotations: Sequence[Annotation]) -> str:
    files = [*dict.fromkeys(each.path for each in stack.slices), *(each.path for each in annotations)]
    # Whether an annotation fits depends on the other stacks of the series too, which may arrive later.
    about = [(path, stamps[path]) for path in files], sorted(stack.others)
    return hashlib.sha256(ascii(about).encode()).hexdigest()
