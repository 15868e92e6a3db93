"""A cell that is hidden cannot be worked out from the cells that are told, whoever subtracts them."""

from collections import defaultdict
from collections.abc import Iterator
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.exchange.survey import BANDS, band
from silos.suppression import suppress

COUNTS = st.one_of(st.integers(0, 15), st.integers(0, 400))
TABLES = st.dictionaries(st.sampled_from("abcdefgh"), COUNTS, min_size=1)
LEAST = st.sampled_from(BANDS[:5])  # as a policy may have it


def everything(cells: int, patients: int) -> Iterator[tuple[int, ...]]:
    """Every table of so many cells in which every patient is in one cell."""
    if cells == 1:
        yield (patients,)
        return
    for first in range(patients + 1):
        yield from ((first, *others) for others in everything(cells - 1, patients - first))


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("least", [6, 11])
@pytest.mark.parametrize(("cells", "most"), [(2, 99), (3, 49), (4, 34)])
def test_no_hidden_cell_is_known_to_have_somebody(cells: int, most: int, least: int, exact: bool) -> None:
    could_be: dict[object, list[set[int]]] = defaultdict(lambda: [set() for _ in range(cells)])
    tell = cache(lambda table, patients: tuple(suppress(dict(enumerate(table)), patients, least).values()))
    for count in range(least, most + 1):
        patients = (count, count) if exact else band(count)
        for table in everything(cells, count):
            told = tell(tuple(0 if each < least else band(each)[0] for each in table), patients)
            for values, each in zip(could_be[patients, told], table, strict=True):
                values.add(each)
    for (_, told), cell_values in could_be.items():
        for ends, values in zip(told, cell_values, strict=True):
            if ends is None and any(told) and min(values) < least:  # whoever knows the rules knows all tables like it
                assert min(values) == 0
                assert max(values) > 0


@given(TABLES, LEAST, st.booleans())
def test_a_hidden_cell_could_be_large_enough(cells: dict[str, int], least: int, exact: bool) -> None:
    count = sum(cells.values())
    if count < least:
        return  # nothing is told at all
    patients = (count, count) if exact else band(count)
    told = suppress(cells, patients, least)
    if None in told.values() and any(told.values()):
        assert patients[1] - sum(low for low, _ in filter(None, told.values())) >= least


@given(TABLES, LEAST)
def test_a_small_cell_is_never_told_and_what_is_told_is_true(cells: dict[str, int], least: int) -> None:
    told = suppress(cells, band(sum(cells.values())), least)
    assert list(told) == list(cells)
    for cell, ends in told.items():
        assert ends is None or (ends[0] <= cells[cell] <= ends[1] and cells[cell] >= least)


@given(TABLES, LEAST)
def test_the_limit_and_a_band_together_tell_no_more_than_the_band(cells: dict[str, int], least: int) -> None:
    told = suppress(cells, band(sum(cells.values())), least)
    assert all(ends[0] >= least for ends in filter(None, told.values()))


@given(TABLES, LEAST)
def test_what_is_told_depends_on_bands_alone(cells: dict[str, int], least: int) -> None:
    patients = band(sum(cells.values()))
    lowest = {cell: count if count < least else max(band(count)[0], least) for cell, count in cells.items()}
    assert suppress(cells, patients, least) == suppress(lowest, patients, least)


@given(TABLES, LEAST)
def test_with_no_small_cell_all_are_told(cells: dict[str, int], least: int) -> None:
    large = {cell: count + least for cell, count in cells.items()}
    assert suppress(large, band(sum(large.values())), least) == {cell: band(count) for cell, count in large.items()}


def test_one_small_cell_is_not_the_total_less_the_others() -> None:
    # 23 patients, 20 in one cell: 23 - 20 would tell the 3 of the other one.
    assert suppress({"a": 20, "b": 3}, (23, 23), 11) == {"a": None, "b": None}


def test_bands_that_are_wide_enough_hide_a_small_cell_by_themselves() -> None:
    assert suppress({"a": 40, "b": 3}, (43, 43), 11) == {"a": (20, 49), "b": None}


def test_the_smallest_of_the_others_is_hidden_first() -> None:
    told = suppress({"a": 20, "b": 3, "c": 100}, (123, 123), 11)
    assert told == {"a": None, "b": None, "c": (100, 199)}


def test_where_each_small_cell_must_have_somebody_nothing_of_the_table_is_told() -> None:
    # 20 patients or more, 10 at most in the one that could be told: the others would have 5 each.
    assert suppress({"a": 5, "b": 5, "c": 10}, (20, 49), 6) == {"a": None, "b": None, "c": None}


def test_an_empty_cell_looks_like_a_small_one() -> None:
    patients = band(60)
    assert suppress({"a": 60, "b": 0}, patients, 11) == suppress({"a": 55, "b": 5}, patients, 11)
