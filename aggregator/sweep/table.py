"""The results of a sweep as one table that pandas, R or a spreadsheet reads: a row per run, round, hospital and metric.

    pandas.read_csv("results.csv").query("metric == 'auc'").groupby(["arm", "round"]).value.mean()

Everything is read from the coordinator's ledgers. Round k stands for the model that round k made, 0 for the first
model; `evaluated` is the middle of the band of images that a hospital told.
"""

import csv
import importlib.util
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aggregator.history import History
from aggregator.sweep.running import Run
from models.ledger.disk import publish

Row = dict[str, Any]


def rows(histories: Mapping[Run, History]) -> list[Row]:
    """Every measurement of some runs."""
    keys = list(dict.fromkeys(key for run in histories for key in run.arm.changes))
    columns = {key: _column([run.arm.changes.get(key) for run in histories]) for key in keys}
    return [
        {
            "arm": run.arm.label,
            "seed": run.seed,
            **{key: column[place] for key, column in columns.items()},
            "round": round_.number,
            "void": round_.void,
            "hospital": hospital,
            "accepted": hospital in round_.accepted,
            "metric": metric,
            "value": value,
            "evaluated": round_.examples[hospital],
        }
        for place, (run, history) in enumerate(histories.items())
        for round_ in history.rounds
        for hospital, values in sorted(round_.metrics.items())
        for metric, value in sorted(values.items())
    ]


def write(folder: Path, found: Sequence[Row]) -> list[Path]:
    """Write `results.csv`, and `results.parquet` where pyarrow is installed; the files."""
    written = [folder / "results.csv"]
    text = io.StringIO()
    table = csv.DictWriter(text, list(found[0]) if found else [], lineterminator="\n")
    table.writeheader()
    table.writerows(found)
    publish(written[0], text.getvalue().encode())
    if found and importlib.util.find_spec("pyarrow"):
        arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
        sink = arrow.BufferOutputStream()
        parquet.write_table(arrow.Table.from_pylist(list(found)), sink)
        written.append(folder / "results.parquet")
        publish(written[1], sink.getvalue().to_pybytes())
    return written


def _column(values: Sequence[Any]) -> list[Any]:
    """Values as the cells of a column can hold them, all of one kind."""
    kinds = {type(value) for value in values if value is not None}
    if (len(kinds) <= 1 and kinds <= {str, bool}) or kinds <= {int, float}:
        return list(values)
    return [None if value is None else str(value) for value in values]
