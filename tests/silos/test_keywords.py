"""DICOM keywords, without pydicom's import."""

from pydicom.datadict import keyword_dict

from silos.keywords import keywords


def test_the_keywords_are_pydicoms() -> None:
    assert keywords() == set(keyword_dict)
