"""Which cells of a table of patients may be told, so that no small one can be worked out from the others.

A cell with fewer patients than the policy's limit is hidden, an empty one included. What is left could still
give it away: whoever knows how many patients there are subtracts the cells that are told. So further cells are
hidden, smallest first, until the hidden ones could hold the limit; and where the cells below the limit cannot each be
empty, however many the others hold, nothing of the table is told (interval protection by complementary suppression;
Hundepool et al., Statistical Disclosure Control, 2012, chapter 4). Which cells are hidden follows from bands alone: one
that could be empty could be so in a table of which the same is told, whoever knows these rules.

A patient may be in several cells; that makes subtracting less certain, never more.
"""

from collections.abc import Mapping

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
    most = sum(band(cells[cell])[1] for cell in shown) + (len(hidden) - 1) * (least - 1)
    if hidden and patients[0] > most:  # the others cannot hold everybody, so that no small one is empty
        return dict.fromkeys(cells)
    while hidden and shown and patients[1] - sum(band(cells[cell])[0] for cell in shown) < least:
        hidden.add(shown.pop(0))
    return {cell: None if cell in hidden else band(count) for cell, count in cells.items()}
