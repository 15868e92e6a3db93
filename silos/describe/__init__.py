"""What a hospital has, on one page, before anything is trained: for the hospital's own eyes.

    found = describe(Site.load("site.toml"))
    write(site, found, folder)          # description.html and description.json, readable by their owner only

`collect` counts, `pixels` looks at the images, `page` writes. The page holds pictures of patients, and
says in large letters that it must not leave.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from models.console import Report
from models.errors import ConfigError, DataError, PolicyError
from models.exchange.documents import Survey
from models.ledger import disk
from models.page import Picture, as_html
from models.plan import Plan
from silos import visit
from silos.cohort import Cohort
from silos.config import Site
from silos.describe import collect, pixels
from silos.describe.collect import Description
from silos.describe.page import WARNING, page
from silos.dicom.scan import Scan
from silos.dicom.series import measured

PER_CLASS, PER_SCANNER = 6, 3
"""Pictures of each, every one of another patient."""

__all__ = ["Description", "Found", "describe", "write"]


@dataclass(frozen=True)
class Found:
    """What a hospital has, with pictures; hospital data.

    Attributes:
        description: In numbers.
        pictures: Examples, under what they are examples of.
        survey: What a survey of the study would tell, if a study was given and the policy allows one.
    """

    description: Description
    pictures: dict[str, list[Picture]]
    survey: Survey | None

    def as_json(self) -> dict[str, Any]:
        """All but the pictures, as JSON values."""
        told = self.survey and self.survey.model_dump(mode="json")
        return {"warning": WARNING, **asdict(self.description), "survey": told}


def describe(site: Site, plan: Plan | None = None, images: int | None = None, progress: Report | None = None) -> Found:
    """Look at everything that a hospital could train on.

    Args:
        site: The hospital.
        plan: The study to look at it for; without one, the site's own label words stand for the classes.
        images: Look at the pixels of at most so many, evenly spread; of all by default.
        progress: Told how long work goes on.

    Raises:
        DataError: The data cannot be used.
    """
    scanned = visit.scan_site(site, progress, plan)
    instances, cohort, trouble = scanned.instances, None, ""
    try:
        cohort = visit.match_cohort(site, scanned, plan)
    except (ConfigError, DataError) as error:  # a page without labels is better than none
        trouble = str(error)
    paths = pixels.spread(list(instances["path"]), images)
    seen = pixels.look(site.data.folder, paths, visit.named(progress, "decoding"))
    known = _labels(cohort).merge(seen.images.merge(instances, on="path"), on="path", how="right")
    known["held_out"] = known["held_out"].astype(object).where(known["held_out"].notna(), None)
    known["place"] = pd.to_numeric(known["place"])
    risky, unmarked = collect.burned_in(instances)
    sized = measured(instances, site.data.folder)
    description = Description(
        site=site.name,
        totals=collect.totals(scanned.files, instances, len(scanned.annotations)),
        kinds=collect.kinds(instances),
        shapes=collect.shapes(sized),
        left_out=scanned.left_out if cohort is None else cohort.left_out,
        burned_in=risky,
        unmarked=unmarked,
        faces=collect.faces(sized),
        balance=[] if cohort is None else collect.balance(cohort),
        labels=trouble,
        looked=len(paths),
        levels=collect.levels(known),
        unreadable=seen.unreadable,
        blank=int(seen.images["blank"].sum()),
        duplicates=collect.duplicates(known),
        notes={} if cohort is None else collect.notes(cohort),
    )
    pictures = {what: _pictures(site.data.folder, part) for what, part in _examples(known)}
    return Found(description, pictures, None if plan is None or cohort is None else _survey(site, scanned, cohort))


def write(site: Site, found: Found, folder: Path | None = None) -> tuple[Path, Path]:
    """Write the page and its numbers, in place of those that were there.

    Args:
        site: The hospital.
        found: What it has.
        folder: Where; by default `describe` in the hospital's work folder.

    Returns:
        The HTML file and the JSON file, readable by their owner only.

    Raises:
        ConfigError: The folder lies among the images.
        OSError: It cannot be written.
    """
    folder = (folder or site.run.work / "describe").absolute()
    if folder.resolve().is_relative_to(site.data.folder.resolve()):
        raise ConfigError(f"--out: {folder} lies inside data.root", "keep what we write outside the images")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    numbers = json.dumps(found.as_json(), indent=2).encode()
    html = as_html(page(found.description, found.pictures, found.survey)).encode(errors="replace")
    written = folder / "description.html", folder / "description.json"
    for path, content in zip(written, (html, numbers), strict=True):
        path.unlink(missing_ok=True)
        disk.create(path, content, 0o600)
    return written


def _labels(cohort: Cohort | None) -> pd.DataFrame:
    """The classes and the side of each file of a case, and its place among them."""
    columns = ["path", "label", "held_out", "place"]
    if cohort is None:
        return pd.DataFrame(columns=columns, dtype=object)
    rows: list[tuple[str, str, bool, int]] = []
    case: Any  # pandas has no types for rows
    for case in cohort.cases.itertuples(index=False):
        label = ", ".join(word for index, word in enumerate(cohort.classes) if index in case.classes)
        slices = case.stack.slices if hasattr(case, "stack") else [case]
        rows += [(part.path, label, case.held_out, place) for place, part in enumerate(slices)]
    return pd.DataFrame(rows, columns=columns, dtype=object).drop_duplicates("path")


def _survey(site: Site, scanned: Scan, cohort: Cohort) -> Survey | None:
    try:
        return visit.survey_of(site, scanned, cohort)
    except PolicyError:
        return None


def _examples(known: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Images to show, under what they are examples of; each of another patient, from the middle of its images."""
    scanner = known["Manufacturer"] + " " + known["ManufacturerModelName"]
    for key, count, title in ((known["label"], PER_CLASS, "class {}"), (scanner, PER_SCANNER, "scanner {}")):
        for name, part in known[~known["blank"]].groupby(key, sort=True):
            yield title.format(str(name).strip() or "(not told)"), _middles(part).head(count)


def _middles(part: pd.DataFrame) -> pd.DataFrame:
    """The middle image of each patient; of volumes, as slices lie."""
    part = part.sort_values("place", kind="stable")
    place = part.groupby("PatientID").cumcount()
    size = part.groupby("PatientID")["path"].transform("size")
    return part[place == size // 2]


def _pictures(root: Path, part: pd.DataFrame) -> list[Picture]:
    words = part["Modality"] + " " + part["label"].fillna("no label")
    return [
        Picture(caption, pixels.thumbnail(pixels.read_picture(root / path)))
        for caption, path in zip(words, part["path"], strict=True)
    ]
