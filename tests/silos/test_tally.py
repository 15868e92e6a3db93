"""What a header says becomes a cell of a closed list, whatever it says."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import uid

from models.exchange.survey import CELLS
from silos import tally
from silos.cohort import Cohort
from silos.dicom.decode import PLUGINS
from silos.dicom.scan import ATTRIBUTES


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("GE MEDICAL SYSTEMS", "ge"),
        ("GEMS", "ge"),
        ("General Electric", "ge"),
        ("SIEMENS", "siemens"),
        ("Siemens Healthineers", "siemens"),
        ("Philips Medical Systems", "philips"),
        ("TOSHIBA_MEC", "canon"),
        ("FUJI PHOTO FILM Co., ltd.", "fujifilm"),
        ("FUJIFILM Corporation", "fujifilm"),
        ("HOLOGIC, Inc.", "hologic"),
        ("UIH", "united-imaging"),
        ("Aurelia Imaging", "other"),
        ("Gerald Siemensson", "other"),  # only whole words count
        ("Hollowbrook^Perpetua", "other"),
        ("", "unknown"),
        ("  ", "unknown"),
        ("東芝", "unknown"),
    ],
)
def test_a_makers_name_becomes_a_known_maker(text: str, cell: str) -> None:
    assert tally.manufacturer(text) == cell


@given(st.text())
def test_any_text_becomes_a_cell(text: str) -> None:
    assert tally.manufacturer(text) in CELLS["manufacturer"]
    assert tally.modality(text) in CELLS["modality"]
    assert tally.transfer_syntax(text) in CELLS["transfer_syntax"]
    assert tally.year(text) in CELLS["year"]
    assert tally.spacing(text) in CELLS["spacing"]
    assert tally.thickness(text) in CELLS["thickness"]
    assert tally.matrix(text, text) in CELLS["matrix"]


@pytest.mark.parametrize(
    ("text", "cell"),
    [("20190102", "2015 to 2019"), ("2020", "2020 to 2024"), ("1999.12.31", "below 2000"), ("01021999", "unknown")],
)
def test_a_date_becomes_five_years(text: str, cell: str) -> None:
    assert tally.year(text) == cell


def test_lengths_become_steps() -> None:
    assert tally.spacing("0.4\\0.9") == "0.4 to 0.6"
    assert tally.spacing("9.375e-01\\1") == "0.8 to 1"
    assert tally.thickness("1.0") == "1 to 2"
    assert [tally.thickness(text) for text in ("0", "-1", "nan", "inf", "1e999", "")] == [
        *("unknown",) * 4,
        "from 10",
        "unknown",
    ]
    assert tally.matrix("512", "256") == "512 to 1023"


def test_every_syntax_that_can_be_read_has_a_cell() -> None:
    assert all(tally.transfer_syntax(syntax) != "other" for syntax in PLUGINS)
    assert tally.transfer_syntax(uid.MPEG2MPML) == "other"


def test_patients_are_counted_once_in_each_cell() -> None:
    instances = pd.DataFrame({name: [""] * 4 for name in ATTRIBUTES} | {"path": list("abcd")})
    instances["Manufacturer"] = ["SIEMENS", "SIEMENS", "GE", "Nobody"]
    cases = pd.DataFrame(
        {
            "path": list("abcd"),
            "classes": [frozenset({0}), frozenset({1}), frozenset({1}), frozenset({1})],
            "patient": ["p", "p", "q", "q"],
            "held_out": [False, False, True, True],
        }
    )
    images = tally.labelled(instances, Cohort(cases, {}, ("none", "lesion")))
    tables = tally.tables(images, ("none", "lesion"))
    assert tables["classes"] == {"none": 1, "lesion": 2}
    assert tables["sides"] == {"train": 1, "held out": 1}
    assert {cell: n for cell, n in tables["manufacturer"].items() if n} == {"ge": 1, "siemens": 1, "other": 1}
    assert tables["matrix"]["unknown"] == 2
    assert all(tuple(tables[name]) == cells for name, cells in CELLS.items())
    assert tally.totals(images)["images"] == 4
