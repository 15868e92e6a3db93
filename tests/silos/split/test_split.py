"""One data set, made into hospitals by patient."""

import hashlib
import stat
from pathlib import Path
from xml.etree import ElementTree

import pytest
from pydicom import dcmread

from models.drawing import as_file
from models.errors import ConfigError, DataError
from models.plan import Plan
from silos import visit
from silos.cli import main
from silos.cohort import OTHER_SITE
from silos.config import Site
from silos.keys import load_signer
from silos.phantom import write_hospital
from silos.split import Part, picture, split


@pytest.fixture(scope="module")
def everybody(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `site.toml` of a hospital of 40 patients with 3 images each."""
    folder = tmp_path_factory.mktemp("all") / "all"
    return write_hospital(folder, name="all", seed=5, patients=40, images=3, size=32, studies=["trial"])


def files(folder: Path) -> dict[Path, str]:
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def patients(parts: list[Part]) -> list[set[str]]:
    """The PatientIDs whose images each hospital sees."""
    return [set(visit.scan_site(Site.load(part.site)).instances["PatientID"]) for part in parts]


@pytest.mark.parametrize("by", ["iid", "labels", "sizes", "year", "InstitutionName"])
def test_every_patient_is_in_one_hospital_and_no_image_is_touched(everybody: Path, tmp_path: Path, by: str) -> None:
    images = everybody.parent / "dicom"
    before = files(images)
    parts = split(everybody, tmp_path / "parts", by=by, into=None if by in ("year", "InstitutionName") else 4)
    seen = patients(parts)
    everyone = set(visit.scan_site(Site.load(everybody)).instances["PatientID"])
    assert set.union(*seen) == everyone
    assert sum(map(len, seen)) == len(everyone) == 40
    assert [len(each) for each in seen] == [part.training + part.held_out for part in parts]
    assert sum(part.cases for part in parts) == sum(sum(part.classes.values()) for part in parts) == 120
    assert files(images) == before


def test_each_hospital_has_its_key_and_the_first_ones_policy_and_cache(everybody: Path, tmp_path: Path) -> None:
    source = Site.load(everybody)
    for part in split(everybody, tmp_path / "parts", into=3):
        site = Site.load(part.site)
        assert load_signer(site).name == part.name
        assert (site.policy, site.cache, site.data.root) == (source.policy, source.run.work, source.data.root)
        assert site.run.work == part.site.parent / "work"
        assert stat.S_IMODE((part.site.parent / "patients.txt").stat().st_mode) == 0o600


def test_headers_are_read_and_images_decoded_once_for_all_hospitals(everybody: Path, tmp_path: Path, make_plan) -> None:  # type: ignore[no-untyped-def]
    from models import tasks

    parts = split(everybody, tmp_path / "parts", into=3)
    scans = [visit.scan_site(Site.load(part.site)) for part in parts]
    assert [scan.opened for scan in scans] == [0, 0, 0]
    assert [scan.left_out[OTHER_SITE] for scan in scans] == [120 - part.cases for part in parts]
    plan = make_plan()
    for path in [everybody, *(part.site for part in parts)]:
        decoded: list[int] = []
        visit.load_data(
            Site.load(path),
            plan,
            tasks.task(plan.task),
            lambda what, done, _, d=decoded: d.append(done),  # type: ignore[misc]
        )
        assert bool(decoded) == (path == everybody)


def test_the_attribute_is_for_this_machine_and_the_name_says_nothing_of_it(everybody: Path, tmp_path: Path) -> None:
    (part,) = split(everybody, tmp_path / "parts", by="Manufacturer")
    assert part.values == (visit.scan_site(Site.load(everybody)).instances["Manufacturer"].iloc[0],)
    assert part.name == "hospital-1"
    assert part.values[0] not in part.site.read_text()


def test_images_that_may_be_used_though_unmarked_say_where_their_patient_belongs(tmp_path: Path) -> None:
    site = write_hospital(tmp_path / "us", name="us", seed=5, patients=12, images=1, size=32, studies=["trial"])
    words = site.read_text().replace('["MR"]', '["US"]').replace('burned_in = "refuse"', 'burned_in = "allow-unmarked"')
    site.write_text(words)
    for path in (path for path in (site.parent / "dicom").rglob("*") if path.is_file()):
        image = dcmread(path)
        image.Modality, image.InstitutionName = "US", "East" if int(image.PatientID[-1], 36) % 2 else "West"
        del image.BurnedInAnnotation
        image.save_as(path)
    parts = split(site, tmp_path / "parts", by="InstitutionName")
    assert [part.values for part in parts] == [("East",), ("West",)]


def test_a_split_hospital_is_split_again(everybody: Path, tmp_path: Path) -> None:
    halves = split(everybody, tmp_path / "halves", into=2)
    quarters = split(halves[0].site, tmp_path / "quarters", into=2)
    assert set.union(*patients(quarters)) == patients(halves)[0]


def test_the_picture_shows_every_hospital_and_class(everybody: Path, tmp_path: Path) -> None:
    parts = split(everybody, tmp_path / "parts", into=3)
    drawn = ElementTree.fromstring(as_file(picture(parts)))
    texts = {element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")}
    assert texts >= {"hospital-1", "hospital-2", "hospital-3", "lesion", "none"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"by": "Colour", "into": 2}, "--by: 'Colour' is no DICOM keyword of text or numbers"),
        ({"by": "PixelData", "into": 2}, "--by: 'PixelData' is no DICOM keyword of text or numbers"),
        ({"by": "PatientAge"}, "--by: no image has PatientAge"),
        ({"by": "labels"}, "--into: is missing"),
        ({"into": 30}, "--into: 30 hospitals need 30 patients"),
        ({"into": 2, "seed": -1}, r"--seed: must be at least 0 \(got -1\)"),
    ],
)
def test_a_wrong_wish_is_named(everybody: Path, tmp_path: Path, options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        split(everybody, tmp_path / "parts", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "parts").exists()


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--alpha", "-1", "--alpha: must be more than 0 (got -1)"),
        ("--alpha", "much", "--alpha: must be more than 0 (got much)"),
        ("--into", "0", "--into: must be a whole number of at least 1 (got 0)"),
        ("--seed", "-1", "--seed: must be a whole number of at least 0 (got -1)"),
    ],
)
def test_a_number_out_of_range_is_wrong_usage(
    everybody: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, said: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["split", str(everybody), str(tmp_path / "parts"), option, value])
    assert said in capsys.readouterr().err


def test_nothing_is_overwritten_and_nothing_written_among_the_images(everybody: Path, tmp_path: Path) -> None:
    split(everybody, tmp_path / "parts", into=2)
    with pytest.raises(ConfigError, match="not an empty folder"):
        split(everybody, tmp_path / "parts", into=2)
    with pytest.raises(ConfigError, match=r"inside data\.root"):
        split(everybody, everybody.parent / "dicom" / "parts", into=2)


def test_a_list_that_a_windows_editor_saved_names_its_first_patient_too(everybody: Path, tmp_path: Path) -> None:
    (part, _) = split(everybody, tmp_path / "parts", into=2)
    (before,) = patients([part])
    listed = part.site.parent / "patients.txt"
    listed.write_text(listed.read_text(), encoding="utf-8-sig")
    assert patients([part]) == [before]


def test_what_was_drawn_stays_with_its_images_whatever_patient_id_it_carries(tmp_path: Path) -> None:
    site = write_hospital(tmp_path / "all", name="all", seed=5, patients=12, images=4, size=32, volumes=True)
    plan = Plan.load(Path(__file__).parents[3] / "configs" / "segmentation.toml")
    everybody = visit.scan_site(Site.load(site), plan=plan)
    for path in everybody.annotations["path"][::2]:
        annotation = dcmread(site.parent / "dicom" / path)
        annotation.PatientID = "ANON"
        annotation.save_as(site.parent / "dicom" / path)
    parts = split(site, tmp_path / "parts", into=2, plan=plan)
    assert sum(part.cases for part in parts) == 12
    for part in parts:
        found = visit.scan_site(Site.load(part.site), plan=plan)
        assert len(visit.match_cohort(Site.load(part.site), found, plan).cases) == part.cases
        assert set(found.annotations["PatientID"]) <= {"ANON", *found.instances["PatientID"]}  # others are not opened


def test_a_list_of_nobody_or_of_strangers_is_an_error(everybody: Path, tmp_path: Path) -> None:
    (part, _) = split(everybody, tmp_path / "parts", into=2)
    listed = part.site.parent / "patients.txt"
    listed.write_text("\n")
    with pytest.raises(ConfigError, match=r"data\.patients: .*patients\.txt: names nobody"):
        visit.scan_site(Site.load(part.site))
    listed.write_text("STRANGER\n")
    with pytest.raises(DataError, match=r"data\.patients: none of the 1 patients"):
        visit.scan_site(Site.load(part.site))
    listed.unlink()
    with pytest.raises(ConfigError, match="No such file"):
        visit.scan_site(Site.load(part.site))


def test_the_command_prints_who_has_what_and_who_will_refuse(
    everybody: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "parts"
    assert (
        main(["split", str(everybody), str(out), "--into", "4", "--by", "sizes", "--alpha", "0.5", "--seed", "2"]) == 0
    )
    told = capsys.readouterr().out
    assert "hospitals: 4" in told
    assert "so will refuse: hospital-" in told
    assert (out / "split.svg").read_text().startswith("<svg xmlns=")
