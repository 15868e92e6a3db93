"""What the cohort promises: every image accounted for, every patient on one side, nobody named."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.errors import ConfigError, DataError
from models.plan import Plan
from silos import cohort, visit
from silos.cohort import Cohort
from silos.config import Data, Site
from silos.dicom.geometry import Misfit
from silos.phantom import STYLES

SALT = "a salt of this hospital"
CLASSES = ["none", "lesion"]

Phantom = Callable[[int], Site]


def scanned(*images: dict[str, str]) -> pd.DataFrame:
    """What a scan would have found; every attribute text, paths that say nothing."""
    rows = [
        {
            "path": f"{n:06d}",
            "size": 100 + n,
            "mtime_ns": 1000 + n,
            "PatientID": f"P{n}",
            "StudyInstanceUID": f"1.{n}",
            "SeriesInstanceUID": f"2.{n}",
        }
        | image
        for n, image in enumerate(images)
    ]
    frame = pd.DataFrame(rows, columns=list(rows[0]) if rows else ["path", "size", "mtime_ns", "PatientID"])
    return frame.astype(object).astype({"size": "int64", "mtime_ns": "int64"})


@pytest.fixture
def data(tmp_path: Path) -> Callable[..., Data]:
    """Writes a table of labels, and the settings that read it."""

    def make(table: str, join: dict[str, str] | None = None, **changes: Any) -> Data:
        path = tmp_path / "labels.csv"
        path.write_text(table, encoding="utf-8")
        labels = {
            "file": path,
            "join": join or {"AccessionNumber": "acc"},
            "value": "finding",
            "words": {"yes": "lesion", "no": "none", "poor": ""},
        }
        more = {key: changes.pop(key) for key in ("delimiter", "value", "words") if key in changes}
        return Data.model_validate(
            {"root": tmp_path, "modality": ["MR"], "salt": SALT, "labels": labels | more} | changes
        )

    return make


MakeData = Callable[..., Data]


def by_accession(*accessions: str, **more: str) -> pd.DataFrame:
    return scanned(*({"AccessionNumber": accession, **more} for accession in accessions))


def match(
    instances: pd.DataFrame, data: Data, classes: list[str] = CLASSES, left_out: dict[str, int] | None = None
) -> Cohort:
    return cohort.match(instances, data, classes, left_out or {})


def targets(found: Cohort) -> dict[str, int]:
    return dict(zip(found.cases["path"], found.cases["target"], strict=True))


# --- joining ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", range(len(STYLES)))
def test_each_way_in_which_hospitals_write_labels_gives_every_image_its_own(
    phantom: Phantom, make_plan: Callable[..., Plan], style: int
) -> None:
    site = phantom(style)
    found = visit.load_cohort(site, make_plan())
    labels = site.data.labels
    table = pd.read_csv(labels.file, sep=labels.delimiter, dtype=str)
    images = visit.scan_site(site).instances.set_index("path").loc[found.cases["path"]]
    expected = images[list(labels.join)].merge(
        table, left_on=list(labels.join), right_on=list(labels.join.values()), how="left", validate="1:1"
    )
    classes = [CLASSES.index(labels.words[word]) for word in expected[labels.value]]
    assert found.cases["target"].tolist() == classes
    assert found.cases["target"].dtype == np.int64
    assert (len(found.cases), found.left_out) == (36, {})
    assert set(classes) == {0, 1}
    assert found.patients(held_out=True) + found.patients(held_out=False) == 12


def test_a_row_belongs_to_an_image_only_if_all_attributes_agree(data: MakeData) -> None:
    images = scanned(
        {"AccessionNumber": "A1", "InstanceNumber": "1"},
        {"AccessionNumber": "A1", "InstanceNumber": "2"},
        {"AccessionNumber": "A2", "InstanceNumber": "1"},
        {"AccessionNumber": "A2", "InstanceNumber": "2"},
    )
    table = "acc,slice,finding\nA1,1,yes\nA1,2,no\nA2,1,no\n"
    found = match(images, data(table, {"AccessionNumber": "acc", "InstanceNumber": "slice"}))
    assert targets(found) == {"000000": 1, "000001": 0, "000002": 0}
    assert found.left_out == {cohort.NO_LABEL: 1}


def test_two_attributes_that_run_together_the_same_are_not_the_same(data: MakeData) -> None:
    images = scanned({"AccessionNumber": "1", "StudyID": "23"}, {"AccessionNumber": "12", "StudyID": "3"})
    table = "acc,study,finding\n1,23,yes\n12,3,no\n"
    found = match(images, data(table, {"AccessionNumber": "acc", "StudyID": "study"}))
    assert targets(found) == {"000000": 1, "000001": 0}


def test_integer_attributes_are_compared_as_numbers_and_texts_as_texts(data: MakeData) -> None:
    images = scanned(
        {"AccessionNumber": "007", "InstanceNumber": "1"}, {"AccessionNumber": "7", "InstanceNumber": "+02"}
    )
    table = "acc,slice,finding\n007,001,yes\n7,2,no\n"
    found = match(images, data(table, {"AccessionNumber": "acc", "InstanceNumber": "slice"}))
    assert targets(found) == {"000000": 1, "000001": 0}


def test_numbers_too_long_for_a_machine_word_are_still_told_apart(data: MakeData) -> None:
    long = "9" * 30
    images = scanned({"InstanceNumber": long + "1"}, {"InstanceNumber": long + "2"})
    found = match(images, data(f"n,finding\n{long}1,yes\n{long}2,no\n", {"InstanceNumber": "n"}))
    assert targets(found) == {"000000": 1, "000001": 0}


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_any_delimiter_and_stray_blanks_are_read(data: MakeData, delimiter: str) -> None:
    table = "\n".join(delimiter.join(row) for row in (("acc ", " finding"), (" A1", "yes "), ("A2 ", " no")))
    found = match(by_accession("A1", " A2"), data(table + "\n", delimiter=delimiter))
    assert targets(found) == {"000000": 1, "000001": 0}


def test_a_table_that_a_spreadsheet_saved_is_read(data: MakeData) -> None:
    table = '\ufeffacc,finding,comment\r\nA1,yes,"says ""maybe"", twice"\r\nA2,no,\r\n'
    assert targets(match(by_accession("A1", "A2"), data(table))) == {"000000": 1, "000001": 0}


@pytest.mark.parametrize(
    "rows",
    ["A1,A2,yes,yes,\nA2,A1,no,no,\n", "A1,A2,yes,yes,\nA2,A1,no,no\n", "A1,A2,yes,yes\nA2,A1,no,no,\n"],
    ids=["every row", "the first", "the last"],
)
def test_rows_longer_than_the_header_are_refused_and_never_read_shifted(data: MakeData, rows: str) -> None:
    settings_ = data("acc,earlier,finding,second\n" + rows)
    with pytest.raises(ConfigError, match=re.escape(f"data.labels.file: {settings_.labels.file}")):
        match(by_accession("A1", "A2"), settings_)


def test_words_that_look_missing_or_numeric_to_a_spreadsheet_stay_words(data: MakeData) -> None:
    words = {"NA": "lesion", "1.0": "none", "True": "lesion"}
    found = match(by_accession("A1", "A2", "A3"), data("acc,finding\nA1,NA\nA2,1.0\nA3,True\n", words=words))
    assert targets(found) == {"000000": 1, "000001": 0, "000002": 1}


# --- words and what is left out -----------------------------------------------------------------------


def test_the_hospitals_words_become_the_studys_classes_in_the_studys_order(data: MakeData) -> None:
    words = {"IV": "four", "III": "three", "II": "two", "zwei": "two"}
    settings_ = data("acc,finding\nA1,IV\nA2,zwei\nA3,III\nA4,II\n", words=words)
    found = match(by_accession("A1", "A2", "A3", "A4"), settings_, ["two", "three", "four"])
    assert found.cases["target"].tolist() == [2, 0, 1, 0]
    assert found.classes == ("two", "three", "four")


def test_an_empty_class_and_an_empty_cell_leave_images_out_and_are_counted(data: MakeData) -> None:
    found = match(by_accession("A1", "A2", "A3"), data("acc,finding\nA1,poor\nA2,yes\nA3,\n"))
    assert targets(found) == {"000001": 1}
    assert found.left_out == {cohort.NO_CLASS: 2}


def test_a_hospital_whose_empty_cell_means_something_can_say_so(data: MakeData) -> None:
    found = match(by_accession("A1", "A2"), data("acc,finding\nA1,x\nA2,\n", words={"x": "lesion", "": "none"}))
    assert targets(found) == {"000000": 1, "000001": 0}


def test_an_unknown_word_names_file_column_word_and_rows(data: MakeData) -> None:
    settings_ = data("acc,finding\nA1,yes\nA2,perhaps\nA3,perhaps\n")
    with pytest.raises(ConfigError) as caught:
        match(by_accession("A1"), settings_)
    for part in (str(settings_.labels.file), "'finding'", "'perhaps'", "2 rows", "yes, no, poor"):
        assert part in str(caught.value)
    assert "data.labels.words" in str(caught.value)


def test_a_word_for_a_class_that_the_study_has_not_names_the_key_and_the_classes(data: MakeData) -> None:
    with pytest.raises(ConfigError, match=r"data\.labels\.words\.yes: 'tumour' .*none, lesion"):
        match(by_accession("A1"), data("acc,finding\nA1,yes\n", words={"yes": "tumour", "no": "none"}))


@pytest.mark.parametrize(
    ("join", "value", "key", "column"),
    [
        ({"AccessionNumber": "accession"}, "finding", "data.labels.join.AccessionNumber", "'accession'"),
        ({"AccessionNumber": "acc"}, "label", "data.labels.value", "'label'"),
    ],
)
def test_a_missing_column_names_the_key_the_column_and_the_columns_there_are(
    data: MakeData, join: dict[str, str], value: str, key: str, column: str
) -> None:
    settings_ = data("acc,slice,finding\nA1,1,yes\n", join, value=value)
    with pytest.raises(ConfigError) as caught:
        match(by_accession("A1"), settings_)
    for part in (key, column, str(settings_.labels.file), "acc, slice, finding"):
        assert part in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"acc,finding\nA1,\xff\xfe\n", b'acc,finding\n"A1,yes\n'])
def test_a_table_that_cannot_be_read_is_named(data: MakeData, content: bytes | None) -> None:
    settings_ = data("")
    if content is None:
        settings_.labels.file.unlink()
    else:
        settings_.labels.file.write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(f"data.labels.file: {settings_.labels.file}")):
        match(by_accession("A1"), settings_)


@pytest.mark.parametrize(
    ("content", "said", "fix"),
    [
        ("acc,finding\nA1,yes\nMüller,no\n".encode("latin-1"), "is not UTF-8 (line 3)", "save it as CSV UTF-8"),
        ("acc,finding\nA1,yes\n".encode("utf-16"), "is not UTF-8 (line 1)", "save it as CSV UTF-8"),
        (b'acc,finding\nA1,"yes\n"\nA2,no\nA3,no,a,b\n', "line 5 has 4 fields, the header 2", "quotes"),
        (b"acc,finding\nA1,yes,\nA2,no,\n", "line 2 has 3 fields, the header 2", "quotes"),
        (b"", "is empty", "a CSV file with a header line"),
        (b"\xef\xbb\xbf\n", "is empty", "a CSV file with a header line"),
        (b'acc,finding\n"A1,yes\n', "is no table that can be read", "a CSV file with a header line"),
    ],
    ids=["Latin-1", "UTF-16", "a long row", "a delimiter at each end", "empty", "a mark and no more", "an open quote"],
)
def test_what_is_wrong_with_a_table_is_told_with_its_line(data: MakeData, content: bytes, said: str, fix: str) -> None:
    settings_ = data("")
    settings_.labels.file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        match(by_accession("A1"), settings_)
    assert str(caught.value) == f"data.labels.file: {settings_.labels.file} {said}"
    assert fix in caught.value.hint


def test_a_table_that_this_user_may_not_read_says_so(data: MakeData, monkeypatch: pytest.MonkeyPatch) -> None:
    settings_ = data("acc,finding\nA1,yes\n")

    def deny(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pd, "read_csv", deny)
    with pytest.raises(ConfigError, match=r"labels\.csv: Permission denied") as caught:
        match(by_accession("A1"), settings_)
    assert caught.value.hint == "let this user read it"


def test_when_nothing_matches_the_shapes_of_the_keys_are_shown_and_never_the_keys(data: MakeData) -> None:
    images = scanned({"AccessionNumber": "KQ-73915", "InstanceNumber": "4"})
    table = "acc,slice,finding\nÄß_824/Zoë,17,yes\n"
    with pytest.raises(DataError) as caught:
        match(images, data(table, {"AccessionNumber": "acc", "InstanceNumber": "slice"}))
    said = f"{caught.value} {caught.value.hint}"
    assert "'AA-99999 + 9'" in said
    assert "'AA_999/AAA + 99'" in said
    assert "AccessionNumber = acc + InstanceNumber = slice" in said
    said = said.replace(str(data("").labels.file), "")
    for secret in ("KQ", "73915", "824", "Zoë", "Äß"):
        assert secret not in said


def test_a_table_without_rows_matches_nothing(data: MakeData) -> None:
    with pytest.raises(DataError, match="no rows"):
        match(by_accession("A1"), data("acc,finding\n"))


def test_a_hospital_without_usable_images_has_an_empty_cohort(data: MakeData) -> None:
    images = by_accession("A1").iloc[:0]
    found = match(images, data("acc,finding\nA1,yes\n"), left_out={"wrong modality": 3})
    assert (len(found.cases), found.patients(True), found.patients(False)) == (0, 0, 0)
    assert found.left_out == {"wrong modality": 3, cohort.NO_IMAGE: 1}


def test_an_image_that_two_rows_label_differently_is_left_out(data: MakeData) -> None:
    table = "acc,finding\nA1,yes\nA1,no\nA2,yes\nA2,yes\nA3,no\nA3,poor\nA4,no\n"
    found = match(by_accession("A1", "A2", "A3", "A4"), data(table))
    assert targets(found) == {"000001": 1, "000003": 0}
    assert found.left_out == {cohort.CONFLICT: 2}


def test_one_row_can_label_several_images(data: MakeData) -> None:
    found = match(by_accession("A1", "A1", "A1"), data("acc,finding\nA1,yes\n"))
    assert found.cases["target"].tolist() == [1, 1, 1]
    assert found.left_out == {}


def test_an_image_without_a_patient_is_left_out(data: MakeData) -> None:
    images = by_accession("A1", "A2", "A3")
    images["PatientID"] = ["", "  ", "P"]
    found = match(images, data("acc,finding\nA1,yes\nA2,yes\nA3,yes\n"))
    assert targets(found) == {"000002": 1}
    assert found.left_out == {cohort.NO_PATIENT: 2}


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID"])
def test_images_of_one_study_under_two_patient_ids_are_left_out(data: MakeData, keyword: str) -> None:
    """Exported before and after a correction: one person, who would be counted twice and stand on both sides."""
    images = by_accession("A1", "A2", "A3", "A4", "A5", "A6", "A7", "A8")
    images["PatientID"] = ["P", "Q", "R", " R ", "", "S", "T", "Q "]
    images[keyword] = ["1", "1", "2", "2", "2", "", "", "3"]
    found = match(images, data("acc,finding\n" + "".join(f"A{n},yes\n" for n in range(1, 9))))
    assert list(targets(found)) == ["000002", "000003", "000005", "000006"]
    assert found.left_out == {Misfit.SEVERAL_PATIENTS: 3, cohort.NO_PATIENT: 1}


def test_an_image_without_the_attribute_takes_no_label_from_a_row_without_a_key(data: MakeData) -> None:
    """Else one blank cell would label every image that lacks the attribute."""
    found = match(by_accession("A1", "", ""), data("acc,finding\nA1,no\n,yes\n"))
    assert targets(found) == {"000000": 0}
    assert found.left_out[cohort.NO_LABEL] == 2


reasons = st.sampled_from(["yes", "no", "poor", "", "both", "absent"])


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(reasons, st.booleans()), min_size=1, max_size=12), st.integers(0, 3))
def test_every_image_is_a_case_or_is_counted_once(data: MakeData, images: list[tuple[str, bool]], orphans: int) -> None:
    rows = ["first,yes"] + [f"orphan{n},no" for n in range(orphans)]
    for n, (word, _) in enumerate(images):
        words = ["yes", "no"] if word == "both" else [] if word == "absent" else [word]
        rows += [f"A{n},{word}" for word in words]
    instances = by_accession("first", *(f"A{n}" for n in range(len(images))))
    instances["PatientID"] = ["P"] + ["P" if patient else "" for _, patient in images]
    before = {"wrong modality": 2, "truncated": 1}
    found = match(instances, data("acc,finding\n" + "\n".join(rows) + "\n"), left_out=before)

    expected = before | ({cohort.NO_IMAGE: orphans} if orphans else {})
    for word, patient in images:
        reason = {"poor": cohort.NO_CLASS, "": cohort.NO_CLASS, "both": cohort.CONFLICT}.get(word, "")
        reason = cohort.NO_PATIENT if not patient else cohort.NO_LABEL if word == "absent" else reason
        if reason:
            expected[reason] = expected.get(reason, 0) + 1
    assert found.left_out == expected
    assert len(found.cases) + sum(found.left_out.values()) == len(instances) + 3 + orphans


def test_files_that_turn_out_unreadable_leave_the_cohort_with_their_reason(data: MakeData) -> None:
    found = match(by_accession("A1", "A2", "A3"), data("acc,finding\nA1,yes\nA2,no\nA3,no\n"))
    fewer = found.without({"000000": "pixels unreadable", "000002": "pixels unreadable"})
    assert targets(fewer) == {"000001": 0}
    assert fewer.left_out == {"pixels unreadable": 2}
    assert len(found.cases) == 3


# --- patients -----------------------------------------------------------------------------------------


def split(data: Data, patients: Iterable[str]) -> dict[str, bool]:
    """PatientID -> held out, of a hospital with one image of each."""
    ids = list(patients)
    images = by_accession(*(["A"] * len(ids)))
    images["PatientID"] = ids
    found = match(images, data)
    assert len(found.cases) == len(ids)
    return dict(zip(ids, found.cases["held_out"], strict=True))


identifiers = st.text(st.characters(blacklist_categories=("Cs", "Cc", "Z")), min_size=1, max_size=12)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.sets(identifiers, min_size=1, max_size=8), st.lists(identifiers, max_size=20), st.randoms())
def test_a_patient_stays_on_the_same_side_whoever_else_arrives(
    data: MakeData, patients: set[str], others: list[str], random: Any
) -> None:
    hospital = data("acc,finding\nA,yes\n", held_out=0.5)
    today = split(hospital, sorted(patients))
    later = [*patients, *others]
    random.shuffle(later)
    tomorrow = split(hospital, later)
    assert {patient: tomorrow[patient] for patient in today} == today


@pytest.mark.parametrize("style", range(len(STYLES)))
def test_no_patient_is_on_both_sides(phantom: Phantom, make_plan: Callable[..., Plan], style: int) -> None:
    site = phantom(style)
    found = visit.load_cohort(site, make_plan())
    train, held_out = set(found.side(False)["patient"]), set(found.side(True)["patient"])
    assert train
    assert held_out
    assert not train & held_out
    images = visit.scan_site(site).instances.set_index("path").loc[found.cases["path"]]
    sides = pd.Series(found.cases["held_out"].to_numpy()).groupby(images["PatientID"].to_numpy()).nunique()
    assert sides.tolist() == [1] * 12


def test_blanks_around_a_patient_id_do_not_make_another_patient(data: MakeData) -> None:
    images = by_accession("A", "A", "A")
    images["PatientID"] = ["P7", " P7 ", "P8"]
    found = match(images, data("acc,finding\nA,yes\n"))
    assert found.cases["patient"].nunique() == 2
    assert found.cases["patient"][0] == found.cases["patient"][1]


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.9])
def test_about_the_asked_for_share_of_many_patients_is_held_out(data: MakeData, fraction: float) -> None:
    sides = split(data("acc,finding\nA,yes\n", held_out=fraction), (f"MRN{n:05d}" for n in range(4000)))
    share = sum(sides.values()) / len(sides)
    assert abs(share - fraction) < 4 * np.sqrt(fraction * (1 - fraction) / 4000)


def test_holding_out_more_keeps_everybody_who_was_held_out(data: MakeData) -> None:
    patients = [f"MRN{n}" for n in range(500)]
    few, more = (split(data("acc,finding\nA,yes\n", held_out=share), patients) for share in (0.2, 0.4))
    assert {p for p in patients if few[p]} < {p for p in patients if more[p]}


def test_another_salt_is_another_split_and_other_hashes(data: MakeData) -> None:
    patients = [f"MRN{n}" for n in range(1000)]
    table = "acc,finding\nA,yes\n"
    first, second = (split(data(table, held_out=0.5, salt=s), patients) for s in (SALT, SALT + "!"))
    same = sum(first[p] == second[p] for p in patients)
    assert 400 < same < 600
    assert cohort.patient_hash(SALT, "P") != cohort.patient_hash(SALT + "!", "P")


def test_the_rarest_class_is_counted_in_held_out_patients_and_nobody_counts_too() -> None:
    held_out, patients = [True] * 4 + [False], list("aabcd")
    classes = [frozenset({0}), frozenset({0}), frozenset({0, 1}), frozenset({0}), frozenset({2})]
    cases = pd.DataFrame({"held_out": held_out, "patient": patients, "classes": classes})
    assert Cohort(cases, {}, ("none", "lesion")).rarest == 1  # b, who has both
    assert Cohort(cases, {}, ("none",)).rarest == 3
    assert Cohort(cases, {}, ("none", "lesion", "scar")).rarest == 0
    assert Cohort(cases, {}, ("none",)).whose(held_out=True).tolist() == list("aabc")


def test_no_patient_id_stands_in_the_cohort(data: MakeData) -> None:
    names = ["Hollowbrook-771", "Zoë-772", "773-Ángel"]
    images = by_accession("A1", "A2", "A3")
    images["PatientID"] = names
    found = match(images, data("acc,finding\nA1,yes\nA2,no\nA3,no\n"))
    text = repr(found.cases.to_dict("records")) + repr(found.left_out)
    for name in names:
        assert name not in text
    assert list(found.cases.columns) == ["path", "name", "stamp", "target", "classes", "patient", "held_out"]
    assert found.cases["patient"].str.fullmatch("[0-9a-f]{64}").all()
