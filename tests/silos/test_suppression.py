"""A cell that is hidden cannot be worked out from the cells that are told, whoever subtracts them."""

from hypothesis import given
from hypothesis import strategies as st

from models.exchange.survey import BANDS, band
from silos.suppression import Band, suppress

COUNTS = st.one_of(st.integers(0, 15), st.integers(0, 400))
TABLES = st.dictionaries(st.sampled_from("abcdefgh"), COUNTS, min_size=1)
LEAST = st.sampled_from(BANDS[:5])  # as a policy may have it


def bounds(told: dict[str, Band | None], patients: Band, least: int) -> tuple[int, int]:
    """All that can be worked out of a hidden cell of a table in which every patient is in one cell.

    Who knows the limit knows that no cell below it is told.
    """
    shown = [(max(low, least), high) for low, high in filter(None, told.values())]
    alone = list(told.values()).count(None) == 1
    lowest = patients[0] - sum(high for _, high in shown) if alone else 0
    return max(lowest, 0), patients[1] - sum(low for low, _ in shown)


@given(TABLES, LEAST, st.booleans())
def test_a_hidden_cell_could_be_empty_and_could_be_large_enough(cells: dict[str, int], least: int, exact: bool) -> None:
    count = sum(cells.values())
    if count < least:
        return  # nothing is told at all
    patients = (count, count) if exact else band(count)
    told = suppress(cells, patients, least)
    if None in told.values() and any(told.values()):
        lowest, highest = bounds(told, patients, least)
        assert lowest == 0
        assert highest >= least


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


def test_an_empty_cell_looks_like_a_small_one() -> None:
    patients = band(60)
    assert suppress({"a": 60, "b": 0}, patients, 11) == suppress({"a": 55, "b": 5}, patients, 11)
