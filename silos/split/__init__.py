"""One data set made into hospitals, for research on methods: always by patient, and nothing is copied.

    parts = split(Path("all/site.toml"), Path("parts"), by="labels", into=8, alpha=0.3, seed=1)
    parts[0].site       # parts/hospital-1/site.toml, ready for a simulation

Each hospital is a `site.toml` with a key of its own that restricts the first one's folder to some patients; policy and
labels are the first one's, and so are index and image cache, which all share. Patients who are held out stay held out.
A patient's class, where the split is by labels, is the one that most of their cases have (of as many, the rarer one).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import numpy as np
import pandas as pd
from pydicom.datadict import dictionary_VR

from models.console import Report
from models.drawing import stacks
from models.errors import ConfigError
from models.plan import Plan
from silos import visit
from silos.config import Site
from silos.derived import derive
from silos.dicom.scan import Scan, is_text, scan
from silos.split.draw import Dealt, draw, sort_out

DEALT: tuple[str, ...] = get_args(Dealt)
_NUMBERS = frozenset({"DS", "FD", "FL", "IS", "SL", "SS", "SV", "UL", "US", "UV"})  # value representations, PS3.5 6.2

__all__ = ["DEALT", "Part", "picture", "split"]


@dataclass(frozen=True)
class Part:
    """A hospital that was made of some of the patients.

    Attributes:
        name: Its name. It says nothing of the patients, because it stands in everything that the hospital sends.
        site: Its `site.toml`.
        values: What its patients have of the attribute by which they were told apart; for this machine only.
        training: Patients to train on.
        held_out: Patients held out.
        cases: Images or volumes.
        classes: How many cases have each class.
        refuses: Whether its policy asks for more patients than it may train on.
    """

    name: str
    site: Path
    values: tuple[str, ...]
    training: int
    held_out: int
    cases: int
    classes: Mapping[str, int]
    refuses: bool


def split(
    source: Path,
    out: Path,
    *,
    by: str = "iid",
    into: int | None = None,
    alpha: float = 0.5,
    seed: int = 0,
    plan: Plan | None = None,
    progress: Report | None = None,
) -> list[Part]:
    """Make hospitals of one hospital's patients, of those who have a case that can be trained on.

    Args:
        source: The `site.toml` of the hospital with all of them.
        out: A new or empty folder, outside the images.
        by: What differs between them: `iid`, `labels` or `sizes` (see `silos.split.draw`), `year` (of the study), or a
            DICOM keyword, such as `Manufacturer`; a patient of several values goes by the most frequent one.
        into: How many hospitals; may be left out with year or keyword, where each value is then a hospital.
        alpha: For `labels` and `sizes`: the smaller, the greater the difference.
        seed: Of the draw, at least 0.
        plan: The study whose classes and modality count; without one, the site's own words.
        progress: Told how long work goes on.

    Raises:
        ConfigError: The folder is taken, an argument is impossible, no image has the attribute, or there are too few
            patients.
        DataError: The data cannot be used.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: exists and is not an empty folder", "nothing is overwritten; name another folder")
    site = Site.load(source)
    if out.resolve().is_relative_to(site.data.folder.resolve()):
        raise ConfigError(f"{out}: lies inside data.root", "keep what we write outside the images")
    keyword = {"year": "StudyDate"}.get(by, by)
    if by not in DEALT and not is_text(keyword):
        raise ConfigError(
            f"--by: {by!r} is no DICOM keyword of text or numbers", f"give one, or year, or one of {', '.join(DEALT)}"
        )
    if by in DEALT and into is None:
        raise ConfigError("--into: is missing", "say how many hospitals")
    if seed < 0:
        raise ConfigError(f"--seed: must be at least 0 (got {seed})", "give a whole number from 0 on")
    found = visit.scan_site(site, progress, plan)
    people = _people(found, visit.match_cohort(site, found, plan).cases)
    if by in DEALT:
        homes = draw(people["label"], people["held_out"], into or 1, by, alpha=alpha, seed=seed)  # type: ignore[arg-type]
    else:
        values = _values(site, found, keyword, people.index)
        if not values.any():
            raise ConfigError(f"--by: no image has {keyword}", "name an attribute that tells the patients apart")
        people["value"] = values.str[:4] if by == "year" else values
        ordered = _numbers(people["value"]) if dictionary_VR(keyword) in _NUMBERS else people["value"]
        homes = sort_out(list(ordered), into)
    classes = plan.task.classes if plan else site.data.classes
    width = len(str(homes.max() + 1))
    return [
        _part(site, source, out, f"hospital-{home + 1:0{width}}", people[homes == home], classes)
        for home in range(homes.max() + 1)
    ]


def picture(parts: Sequence[Part]) -> str:
    """Who has what, as SVG: each hospital's cases, by class."""
    classes = {name: [part.classes[name] for part in parts] for name in parts[0].classes}
    return stacks("Cases of each hospital, by class", "cases", [part.name for part in parts], classes)


def _people(found: Scan, cases: pd.DataFrame) -> pd.DataFrame:
    """One row per patient with a case, by PatientID: side, class, and how many cases have each class (`counts`)."""
    names = found.instances.drop_duplicates("path").set_index("path")["PatientID"].str.strip()
    known = cases[["held_out", "classes"]].assign(patient=cases["path"].map(names))
    said = known.explode("classes")
    overall = said["classes"].value_counts()
    rows = {
        patient: (bool(part["held_out"].iloc[0]), len(part), part["classes"].explode().value_counts().to_dict())
        for patient, part in known.groupby("patient", sort=True)
    }
    people = pd.DataFrame.from_dict(rows, orient="index", columns=["held_out", "cases", "counts"])
    people["label"] = [
        max(counts, key=lambda name: (counts[name], -overall[name], -name)) for counts in people["counts"]
    ]
    return people


def _values(site: Site, found: Scan, keyword: str, patients: "pd.Index[Any]") -> "pd.Series[str]":
    """The most frequent value of an attribute among each patient's images."""
    instances = found.instances
    if keyword not in instances:
        with TemporaryDirectory(dir=site.cache) as folder:
            data, index = site.data, Path(folder) / "index.sqlite"
            again = scan(
                data.folder,
                index,
                modality=data.modality,
                attributes=[keyword],
                burned_in=data.burned_in,
                several_frames=True,
            )
        instances = again.instances
    return instances.groupby(instances["PatientID"].str.strip())[keyword].agg(_most_frequent).reindex(patients)


def _numbers(values: "pd.Series[str]") -> "pd.Series[float]":
    """As numbers, so that 9 comes before 55 and 1.50 is 1.5; NaN where there is none."""
    return pd.to_numeric(values.str.split("\\").str[0], errors="coerce")


def _most_frequent(values: "pd.Series[str]") -> str:
    counts = values.value_counts()
    return str(min(counts[counts == counts.max()].index))


def _part(site: Site, source: Path, out: Path, name: str, people: pd.DataFrame, classes: Sequence[str]) -> Part:
    training, held_out = int((~people["held_out"]).sum()), int(people["held_out"].sum())
    return Part(
        name=name,
        site=derive(source, out, name=name, patients=list(people.index)),
        values=tuple(np.unique(people["value"])) if "value" in people else (),
        training=training,
        held_out=held_out,
        cases=int(people["cases"].sum()),
        classes={word: sum(counts.get(n, 0) for counts in people["counts"]) for n, word in enumerate(classes)},
        refuses=training < site.policy.min_patients,
    )
