"""Which cells of a table of patients may be told, so that no small one can be worked out from the others.

A cell with fewer patients than the policy's limit is hidden, an empty one included. What is left could still
give it away: whoever knows how many patients there are subtracts the cells that are told. So further cells are
hidden, smallest first, until the hidden ones could hold anything from nobody to the limit (interval
protection by complementary suppression; Hundepool et al., Statistical Disclosure Control, 2012, chapter 4).

The table is protected against somebody who knows the number of patients exactly, although only its band is
told. A patient may be in several cells; that makes subtracting less certain, never more.
"""

from collections.abc import Collection, Mapping

from models.exchange.survey import band


def suppress(cells: Mapping[str, int], patients: int, least: int) -> dict[str, tuple[int, int] | None]:
    """Tell a table in bands.

    Args:
        cells: Patients in each cell.
        patients: Patients in the whole table; each is in at least one cell.
        least: Patients that a cell must have to be told, at least 1.

    Returns:
        Each cell's band, or None for one that is hidden, in the order given.
    """
    hidden = {cell for cell, count in cells.items() if count < least}
    shown = sorted((cell for cell in cells if cell not in hidden), key=lambda cell: (band(cells[cell]), cell))
    while hidden and shown and not _protected([band(cells[cell]) for cell in shown], len(hidden), patients, least):
        hidden.add(shown.pop(0))
    return {cell: None if cell in hidden else band(count) for cell, count in cells.items()}


def _protected(shown: Collection[tuple[int, int]], hidden: int, patients: int, least: int) -> bool:
    """Whether a hidden cell can hold nobody as well as `least`, as far as the bands tell."""
    fewest, most = sum(low for low, _ in shown), sum(high for _, high in shown)
    could_be_empty = hidden > 1 or patients <= most  # with several hidden cells, another one can hold the rest
    return could_be_empty and patients - fewest >= least
