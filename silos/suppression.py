"""Which cells of a table of patients may be told, so that no small one can be worked out from the others.

A cell with fewer patients than the policy's limit is hidden, an empty one included. What is left could still
give it away: whoever knows how many patients there are subtracts the cells that are told. So further cells are
hidden, smallest first, until the hidden ones could hold anything from nobody to the limit (interval
protection by complementary suppression; Hundepool et al., Statistical Disclosure Control, 2012, chapter 4).

A patient may be in several cells; that makes subtracting less certain, never more.
"""

from collections.abc import Mapping, Sequence

from models.exchange.survey import band

Band = tuple[int, int]
"""The lowest and the highest that a count may be."""


def suppress(cells: Mapping[str, int], patients: Band, least: int) -> dict[str, Band | None]:
    """Tell a table in bands.

    Args:
        cells: Patients in each cell.
        patients: What others know of the number of patients in the whole table, each of whom is in at least one
            cell; an exact number has two equal ends.
        least: Patients that a cell must have to be told: the lower end of a band, or its band would tell of more.

    Returns:
        Each cell's band, or None for one that is hidden, in the order given.
    """
    hidden = {cell for cell, count in cells.items() if count < least}
    shown = sorted(cells.keys() - hidden, key=lambda cell: (band(cells[cell]), cell))  # by what is told, not by more
    while hidden and shown and not _protected([band(cells[cell]) for cell in shown], len(hidden), patients, least):
        hidden.add(shown.pop(0))
    return {cell: None if cell in hidden else band(count) for cell, count in cells.items()}


def _protected(shown: Sequence[Band], hidden: int, patients: Band, least: int) -> bool:
    """Whether a hidden cell can hold nobody as well as `least`, as far as the bands tell."""
    fewest, most = sum(low for low, _ in shown), sum(high for _, high in shown)
    could_be_empty = hidden > 1 or patients[0] <= most  # with several hidden cells, another one can hold the rest
    return could_be_empty and patients[1] - fewest >= least
