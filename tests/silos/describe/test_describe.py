"""The page about a hospital's images counts what is there, shows it, and says that it must not leave."""

import json
import re
import shutil
import stat
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydicom import dcmread
from pydicom.uid import generate_uid

from models.errors import ConfigError
from models.page import Gallery, Page, Picture, Section, as_html, as_markdown
from models.plan import Plan
from silos import tally
from silos.cli import main
from silos.config import Site
from silos.describe import collect, describe, pixels, write
from silos.describe.page import WARNING, page
from silos.dicom.scan import ATTRIBUTES
from silos.dicom.series import read_volume
from silos.phantom import write_hospital
from silos.visit import match_cohort, scan_site

Phantom = Callable[[int], Site]


@pytest.fixture
def site(phantom: Phantom, tmp_path: Path) -> Site:
    """A hospital that a test may change: style 0, one folder a patient."""
    written = phantom(0)
    folder = tmp_path / "north"
    shutil.copytree(written.data.root.parent, folder)
    return Site.load(folder / "site.toml")


def files(site: Site) -> list[Path]:
    return sorted(path for path in site.data.root.rglob("*") if path.is_file())


def change(path: Path, to: Path | None = None, **attributes: object) -> None:
    """Change a file's header, its pixels staying as they are."""
    dataset = dcmread(path)
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(to or path)


def instances(count: int, **columns: object) -> pd.DataFrame:
    blank = {name: [""] * count for name in ATTRIBUTES}
    return pd.DataFrame(blank | {"path": [f"{number}" for number in range(count)]} | columns)


def test_a_hospital_is_counted(site: Site, make_plan: Callable[..., Plan]) -> None:
    found = describe(site, make_plan()).description
    assert found.totals == {"files": 36, "patients": 12, "studies": 12, "series": 12, "images": 36, "annotations": 0}
    assert [(kind.what, kind.patients, kind.images) for kind in found.kinds["modality"]] == [("MR", 12, 36)]
    assert {kind.what for kind in found.kinds["model"]} == {"Meridian 15"}
    assert sum(found.shapes["thickness"].values()) == 12
    assert found.shapes["thickness"]["5 to 7"] == 12
    assert sum(item.cases for item in found.balance) == 36
    assert {item.label for item in found.balance} == {"none", "lesion"}
    assert (found.looked, found.unreadable, found.duplicates, found.blank) == (36, {}, [], 0)
    assert found.levels[0].images == 36
    assert found.levels[0].low[2] < found.levels[0].median[2] < found.levels[0].high[2]


def test_the_files_are_their_owners_alone_and_hold_the_pictures(site: Site) -> None:
    html, numbers = write(site, describe(site))
    assert html.parent == site.run.work / "describe"
    for path in (html, numbers):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(numbers.read_text())["warning"] == WARNING
    text = html.read_text()
    assert f'<p class="warning">{WARNING}</p>' in text
    assert "must not leave" in WARNING
    assert text.count('<img src="data:image/png;base64,') == 6 + 6 + 3  # of each class, and of the scanner
    assert not re.search(r'(src|href)="(?!data:image/png)', text)
    assert "default-src 'none'" in text
    html.chmod(0o644)
    assert stat.S_IMODE(write(site, describe(site, images=1))[0].stat().st_mode) == 0o600  # again, in its place


def test_nothing_is_written_among_the_images(site: Site) -> None:
    with pytest.raises(ConfigError, match=r"inside data\.root"):
        write(site, describe(site, images=1), site.data.root / "page")


def test_the_same_picture_under_another_uid_is_found_and_whose_it_claims_to_be(site: Site) -> None:
    first = files(site)[0]
    change(first, first.with_name("copy.dcm"), SOPInstanceUID=generate_uid(), PatientID="SOMEBODY-ELSE")
    found = describe(site).description
    assert len(found.duplicates) == 1
    assert found.duplicates[0].patients == 2
    assert {Path(path).name for path in found.duplicates[0].paths} == {first.name, "copy.dcm"}


def test_a_picture_on_both_sides_of_the_split_is_told() -> None:
    seen = instances(
        3, digest=["x", "x", "y"], blank=[False] * 3, held_out=[True, False, None], PatientID=["p", "p", "q"]
    )
    assert collect.duplicates(seen) == [collect.Duplicate(["0", "1"], 1, ["held out", "train"])]
    assert collect.duplicates(seen.assign(blank=True)) == []


def test_blank_and_unreadable_images_are_counted(site: Site) -> None:
    first, second = files(site)[:2]
    dataset = dcmread(first)
    dataset.PixelData = bytes(len(dataset.PixelData))
    dataset.save_as(first)
    change(second, RescaleSlope=0)
    found = describe(site).description
    assert (found.blank, found.unreadable) == (1, {"pixels unreadable": 1})


def test_what_is_left_out_is_told_with_its_reason(site: Site, make_plan: Callable[..., Plan]) -> None:
    first, second = files(site)[:2]
    change(first, BurnedInAnnotation="YES")
    second.write_bytes(second.read_bytes()[:-10])
    (site.data.root / "notes.txt").write_text("a note")
    found = describe(site, make_plan()).description
    assert {"burned-in annotation": 1, "truncated": 1, "not DICOM": 1}.items() <= found.left_out.items()


def test_a_hospital_without_a_usable_table_of_labels_still_gets_its_page(site: Site) -> None:
    site.data.labels.file.unlink()
    found = describe(site)
    assert found.description.balance == []
    assert "labels.csv" in found.description.labels
    assert "No labels" in as_html(page(found.description, found.pictures, None))


def test_a_hospital_without_a_usable_image_still_gets_its_page(site: Site) -> None:
    nothing = site.model_copy(update={"data": site.data.model_copy(update={"modality": ["CT"]})})
    found = describe(nothing).description
    assert (found.totals["images"], found.left_out["wrong modality"]) == (0, 36)
    assert {(item.patients, item.cases) for item in found.balance} == {(0, 0)}


def test_images_that_do_not_deny_burned_in_text_are_counted() -> None:
    table = instances(4, Modality=["US", "US", "MR", "MR"], BurnedInAnnotation=["", "NO", "", "no"])
    assert collect.burned_in(table) == (1, 2)


@pytest.mark.parametrize(
    ("changes", "faces"),
    [
        ({}, (0, 1, 0)),
        ({"BodyPartExamined": "HEADNECK"}, (0, 1, 0)),
        ({"BodyPartExamined": ""}, (0, 0, 1)),
        ({"BodyPartExamined": "CHEST"}, (0, 0, 0)),
        ({"SliceThickness": "5"}, (0, 0, 0)),
        ({"Modality": "CR"}, (0, 0, 0)),
        ({"RecognizableVisualFeatures": "YES", "SliceThickness": "5"}, (60, 0, 0)),
    ],
)
def test_a_series_from_which_a_face_can_be_drawn_is_told(changes: dict[str, str], faces: tuple[int, int, int]) -> None:
    usual = {"Modality": "MR", "BodyPartExamined": "BRAIN", "SliceThickness": "1.0", "SeriesInstanceUID": "1.2"}
    table = instances(60).assign(**usual | changes)
    assert collect.faces(table) == collect.Faces(*faces)
    assert collect.faces(table.head(39)).likely == 0


VOLUMES = Path(__file__).parents[3] / "configs" / "volumes.toml"


@pytest.mark.parametrize(("style", "images"), [(0, 5), (3, 1)])
def test_of_a_volume_the_middle_is_shown_and_every_slice_is_on_its_side(
    style: int, images: int, tmp_path: Path
) -> None:
    """A file for each slice, in no order; and one file of five frames."""
    path = write_hospital(tmp_path / "north", name="north", patients=6, images=5, size=32, volumes=True, style=style)
    site, plan = Site.load(path), Plan.load(VOLUMES)
    found = describe(site, plan)
    told = found.description
    assert (told.totals["images"], told.totals["annotations"], told.unreadable) == (6 * images, 6, {})
    assert sum(item.cases for item in told.balance) == 6
    scanned = scan_site(site, plan=plan)
    stacks = match_cohort(site, scanned, plan).cases["stack"]
    middles = {pixels.thumbnail(read_volume(stack, site.data.folder).pixels[:, :, 2].T) for stack in stacks}
    shown = [picture for pictures in found.pictures.values() for picture in pictures]
    assert len(shown) == 6 + 3  # every patient in its class; and of the scanner
    assert {picture.png for picture in shown} == middles
    assert {picture.caption for picture in shown} == {"MR lesion", "MR none"}
    first = files(site)[0]
    if style == 0:
        change(first, first.with_name("copy.dcm"), SOPInstanceUID=generate_uid(), SeriesInstanceUID=generate_uid())
        (group,) = describe(site, plan).description.duplicates
        assert len(group.sides) == 1


def test_spacing_and_thickness_of_images_of_several_frames_are_told(tmp_path: Path) -> None:
    path = write_hospital(tmp_path / "north", name="north", patients=6, images=5, size=32, volumes=True, style=3)
    site, plan = Site.load(path), Plan.load(VOLUMES)
    policy = site.policy.model_copy(update={"min_patients": 1, "survey": ["spacing", "thickness"]})
    found = describe(site.model_copy(update={"policy": policy}), plan, images=1)
    measures = next(dcmread(path) for path in files(site) if dcmread(path).Modality == "MR")
    (measures,) = measures.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    spacing, thickness = tally.spacing(str(measures.PixelSpacing[0])), tally.thickness(str(measures.SliceThickness))
    assert "unknown" not in (spacing, thickness)
    assert found.survey is not None
    for name, cell in (("spacing", spacing), ("thickness", thickness)):
        assert {what: count for what, count in found.description.shapes[name].items() if count} == {cell: 6}
        assert {what: str(told) for what, told in found.survey.tables[name].items() if told} == {cell: "6-10"}
    change(files(site)[0], SharedFunctionalGroupsSequence=[])
    shapes = describe(site, plan, images=1).description.shapes
    assert (shapes["spacing"]["unknown"], shapes["spacing"][spacing]) == (1, 5)


def test_what_one_should_know_about_volumes_is_told(tmp_path: Path) -> None:
    path = write_hospital(tmp_path / "north", name="north", patients=6, images=5, size=32, volumes=True, style=0)
    site, plan = Site.load(path), Plan.load(VOLUMES)
    assert describe(site, plan, images=1).description.notes == {}
    stack = match_cohort(site, scan_site(site, plan=plan), plan).cases["stack"].iloc[0]
    for number, each in enumerate(stack.slices):
        image = dcmread(site.data.folder / each.path)
        across = np.array(image.ImageOrientationPatient[:3], float)
        change(
            site.data.folder / each.path,
            ImagePositionPatient=[round(x, 4) for x in np.array(image.ImagePositionPatient) + 2 * number * across],
        )
    found = describe(site, plan, images=1)
    assert found.description.notes == {"gantry tilt": 1}
    assert "1 volumes: gantry tilt." in as_html(page(found.description, found.pictures, None))


def test_what_was_drawn_is_the_class_of_a_volume(tmp_path: Path) -> None:
    path = write_hospital(tmp_path / "north", name="north", patients=6, images=5, size=32, volumes=True, style=0)
    found = describe(Site.load(path), Plan.load(VOLUMES.with_name("segmentation.toml")))
    assert {item.label: item.cases for item in found.description.balance if item.side == "train"}.keys() == {"lesion"}
    assert {picture.caption for pictures in found.pictures.values() for picture in pictures} == {"MR lesion"}


def test_a_scanners_name_cannot_become_markup(site: Site) -> None:
    for path in files(site):
        change(path, Manufacturer="<script>alert(1)</script>", ManufacturerModelName='"><img src=x>')
    text = write(site, describe(site, images=4))[0].read_text()
    assert "<script" not in text
    assert "<img src=x" not in text


def test_the_middle_frame_of_a_volume_is_shown_with_its_padding_filled(tmp_path: Path) -> None:
    write_hospital(tmp_path / "north", name="north", patients=1, images=5, size=32, volumes=True, style=3)
    path = next(path for path in files(Site.load(tmp_path / "north" / "site.toml")) if dcmread(path).Modality == "MR")
    image = dcmread(path)
    image.add_new("PixelPaddingValue", "US", 0)
    image.add_new("PixelPaddingRangeLimit", "US", int(np.median(image.pixel_array)))
    image.save_as(path)
    picture = pixels.read_picture(path)
    assert np.isfinite(picture).all()
    assert picture.min() == 0


def test_fewer_images_are_spread_over_all() -> None:
    paths = [f"{number}" for number in range(100)]
    assert pixels.spread(paths, 3) == ["0", "50", "99"]
    assert pixels.spread(paths, None) == pixels.spread(paths, 100) == paths


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (64, 64), (300, 200), (113, 112)])
def test_a_thumbnail_is_small_and_a_png(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    content = pixels.thumbnail(image)
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">2I", content[16:24])
    assert max(width, height) <= 112
    start = content.index(b"IDAT")
    length = struct.unpack(">I", content[start - 4 : start])[0]
    assert len(zlib.decompress(content[start + 4 : start + 4 + length])) == height * (width + 1)


def test_the_same_pixels_in_another_shape_are_another_picture() -> None:
    image = np.zeros((4, 2), np.float32)
    assert pixels.fingerprint(image) != pixels.fingerprint(image.reshape(2, 4))
    assert pixels.fingerprint(image) == pixels.fingerprint(image.copy())


def test_a_page_with_pictures_may_load_nothing_but_its_own() -> None:
    shown = Page("t", [Section("s", [Gallery([Picture("<b>", b"png")])])], "Careful")
    assert "img-src data:" in as_html(shown)
    assert 'alt="&lt;b&gt;"' in as_html(shown)
    assert "img-src" not in as_html(Page("t", []))
    assert as_markdown(shown).startswith("**Careful**")


def test_the_command_says_where_the_page_is(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml = str(site.data.root.parent / "site.toml")
    assert main(["describe", toml, "--out", str(tmp_path / "page"), "--images", "3"]) == 0
    assert "description.html" in capsys.readouterr().out
    assert main(["describe", toml, "--out", str(tmp_path / "page"), "--json", "--images", "3"]) == 0
    assert json.loads(capsys.readouterr().out)["totals"]["images"] == 36
    with pytest.raises(SystemExit):
        main(["describe", toml, "--images", "0"])
