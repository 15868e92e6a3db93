"""A description as a page for the hospital's own people."""

from collections.abc import Mapping, Sequence

from models.exchange.documents import Survey
from models.page import Cell, Gallery, Item, Page, Picture, Section, Table, Verdict
from silos.describe.collect import QUANTILES, Description, Levels

WARNING = "HOSPITAL DATA: images and counts of patients. This page must not leave the hospital."

_BAR = 30  # characters of the longest
_GROUPS = 50  # of duplicates that are listed
_UNITS = {
    "spacing": "pixel spacing (mm)",
    "thickness": "slice thickness (mm)",
    "matrix": "pixels along the longer side",
}


def page(found: Description, pictures: Mapping[str, Sequence[Picture]], survey: Survey | None) -> Page:
    """The page.

    Args:
        found: What the hospital has.
        pictures: Small pictures, under what they are examples of.
        survey: What a survey of the study would tell.
    """
    left_out: Item = _bars(("reason", "files", ""), found.left_out) if found.left_out else "Nothing."
    sections = [
        Section("In short", [Table(("what", "how many"), list(found.totals.items()))]),
        Section("Look at this first", _concerns(found)),
        *(Section(f"By {name}", [_counts(name, found)]) for name in found.kinds),
        Section("Labels", _labels(found)),
        Section("Left out, and why", [left_out]),
        *(
            Section(f"Series by {_UNITS[name]}", [_bars((_UNITS[name], "series", ""), _from_first_to_last(cells))])
            for name, cells in found.shapes.items()
        ),
        Section("Intensities", _levels(found)),
        Section("Duplicate images", _duplicates(found)),
        *(Section(f"Pictures: {what}", [Gallery(shown)]) for what, shown in pictures.items() if shown),
        *([_survey(survey, list(dict.fromkeys(item.label for item in found.balance)))] if survey else []),
    ]
    return Page(f"What {found.site} has", sections, WARNING)


def _concerns(found: Description) -> list[Item]:
    faces, across = found.faces, [group for group in found.duplicates if group.patients > 1]
    leaking = [group for group in found.duplicates if len(group.sides) > 1]
    concerns = [
        (found.burned_in, "Images of a modality that often has names burned into the picture, which do not deny it"),
        (faces.marked, "Images that say themselves that they show a recognisable face (RecognizableVisualFeatures)"),
        (
            faces.likely,
            "Series of CT or MR of a head with slices thin and many enough to draw the face from (guessed from"
            " BodyPartExamined, SliceThickness and the number of images; nobody looked at them)",
        ),
        (faces.unknown, "Further series of CT or MR as thin, which do not say which part of the body they show"),
        (len(found.duplicates), "Groups of images with the same pixels under different UIDs"),
        (len(across), "Such groups that claim to be of more than one patient"),
        (len(leaking), "Such groups on both sides of the split, where evaluation would measure what was trained on"),
        (found.blank, "Images of one single value"),
        (sum(found.unreadable.values()), f"Images with pixels that cannot be read ({', '.join(found.unreadable)})"),
    ]
    items: list[Item] = [Verdict(ok=False, text=f"{what}: {count}.") for count, what in concerns if count]
    if found.labels:
        items.insert(0, Verdict(ok=False, text=f"No labels: {found.labels}"))
    if found.unmarked:
        items.append(
            f"{found.unmarked} of {found.totals['images']} images do not say whether text is burned into the picture"
            " (BurnedInAnnotation); those that say so are left out."
        )
    items += [f"{count} volumes: {note}." for note, count in found.notes.items()]
    return items or [Verdict(ok=True, text="Nothing was found that needs a look.")]


def _counts(name: str, found: Description) -> Table:
    rows = [(count.what, count.patients, count.series, count.images) for count in found.kinds[name]]
    return Table((name, "patients", "series", "images"), rows)


def _labels(found: Description) -> list[Item]:
    if found.labels:
        return [found.labels]
    rows = [(item.label, item.side, item.patients, item.cases) for item in found.balance]
    return [Table(("class", "side", "patients", "cases"), rows)]


def _from_first_to_last(cells: Mapping[str, int]) -> Mapping[str, int]:
    """Without the empty cells at both ends."""
    filled = [place for place, count in enumerate(cells.values()) if count]
    return dict(list(cells.items())[filled[0] : filled[-1] + 1]) if filled else {}


def _bars(columns: tuple[str, str, str], counts: Mapping[str, int]) -> Table:
    most = max(counts.values(), default=0) or 1
    return Table(columns, [(what, count, "█" * -(-_BAR * count // most)) for what, count in counts.items()])


def _levels(found: Description) -> list[Item]:
    ends = ", ".join(f"{quantile:.0%}" for quantile in QUANTILES)
    said = f"Of {found.looked} images, in modality units: the {ends} quantiles over images of what each image shows."
    columns = ("modality, manufacturer", "images", "darkest (1st percentile)", "median", "brightest (99th percentile)")
    return [said, Table(columns, [_level(item) for item in found.levels])]


def _level(item: Levels) -> Sequence[Cell]:
    return (
        item.what,
        item.images,
        *("  ".join(f"{x:.4g}" for x in each) for each in (item.low, item.median, item.high)),
    )


def _duplicates(found: Description) -> list[Item]:
    looked = f"{found.looked} of {found.totals['images']} usable images were compared by their decoded pixels."
    if not found.duplicates:
        return [looked, "None."]
    rows = [
        (number, len(group.paths), group.patients, ", ".join(group.sides) or "no label", "  ".join(group.paths[:4]))
        for number, group in enumerate(found.duplicates[:_GROUPS], start=1)
    ]
    return [looked, Table(("group", "images", "patients", "sides", "files (the first four)"), rows)]


def _survey(survey: Survey, classes: Sequence[str]) -> Section:
    said = (
        "What the study's coordinator would be told, if it asked: these bands, and nothing else of this page. Every"
        f" other cell of these tables is hidden: it has fewer than {survey.least} patients, or hides one that has."
    )
    rows = [(*what, band) for what, band in survey.lines(classes).items() if band != "hidden"]
    return Section("What a survey would tell", [said, Table(("what", "", "band"), rows)])
