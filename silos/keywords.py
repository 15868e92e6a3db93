"""Which words are DICOM keywords, such as `AccessionNumber`.

The list is pydicom's. It is read without importing pydicom, which would take every command half a second.
"""

import importlib.util
from functools import cache
from pathlib import Path


@cache
def keywords() -> frozenset[str]:
    """Every keyword of the data dictionary (DICOM PS3.6), those for repeating groups not among them.

    Raises:
        ImportError: pydicom is not installed.
    """
    package = importlib.util.find_spec("pydicom")
    if package is None or package.origin is None:
        raise ImportError("pydicom is not installed", name="pydicom")
    table = importlib.util.spec_from_file_location("dicom_table", Path(package.origin).with_name("_dicom_dict.py"))
    assert table is not None
    assert table.loader is not None
    module = importlib.util.module_from_spec(table)
    table.loader.exec_module(module)
    return frozenset(entry[4] for entry in module.DicomDictionary.values())
