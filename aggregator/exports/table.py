"""A table for pandas, R or a database: one row per line of the ledger, as Apache Parquet.

    pandas.read_parquet("ledger.parquet").groupby("source").nbytes.sum()

Needs `pyarrow`, which the base install does not have.
"""

import importlib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

from aggregator.exports.fact import Fact, filters
from models.errors import ConfigError
from models.exchange.documents import Examples
from models.ledger.disk import publish
from models.plan import MetricName

COLUMNS = {
    "ledger": "string",
    "line": "int64",
    "leaf": "string",
    "time": "timestamp[s, tz=UTC]",
    "event": "string",
    "words": "string",
    "outcome": "string",
    "party": "string",
    "source": "string",
    "destination": "string",
    "study": "string",
    "round": "int64",
    "code": "string",
    "xid": "string",
    "payload": "string",
    "nbytes": "int64",
    "tensors": "int64",
    "norm": "double",
    "filters": "string",
    "examples_unit": "string",
    "examples_low": "double",
    "examples_high": "double",
    "evaluated_unit": "string",
    "evaluated_low": "double",
    "evaluated_high": "double",
    "epsilon": "double",
    "delta": "double",
    **{f"metric_{name}": "double" for name in get_args(MetricName)},
    "record": "string",
}
"""Each column and its Arrow type; `record` is the line as it was signed."""


def row(fact: Fact) -> dict[str, Any]:
    """One row, with None where a line says nothing."""
    record, manifest = fact.record, fact.manifest
    found: dict[str, Any] = {
        "ledger": fact.ledger,
        "line": fact.line,
        "leaf": fact.leaf,
        "time": datetime.fromisoformat(record.ts),
        "event": record.event.value,
        "words": fact.sense.words,
        "outcome": fact.sense.outcome.value,
        "party": fact.party,
        "source": fact.source,
        "destination": fact.destination,
        "study": record.study,
        "round": record.round,
        "code": fact.code,
        "xid": fact.xid,
        "payload": fact.payload,
        "nbytes": fact.nbytes,
        "record": record.line.decode(),
    }
    if manifest is not None:
        found |= {"tensors": len(manifest.tensors), "norm": manifest.norm, "filters": ", ".join(filters(manifest))}
        found |= _count("examples", manifest.examples) | _count("evaluated", manifest.evaluated)
        found |= {f"metric_{name}": value for name, value in manifest.metrics.items()}
        if manifest.privacy is not None:
            found |= {"epsilon": manifest.privacy.epsilon, "delta": manifest.privacy.delta}
    return {name: None if found.get(name) == "" else found.get(name) for name in COLUMNS}


def write_table(path: Path, facts: Sequence[Fact]) -> None:
    """Write a Parquet file, whole or not at all.

    Raises:
        ConfigError: `pyarrow` is not installed.
    """
    try:
        arrow = importlib.import_module("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ConfigError(
            f"a Parquet file needs {error.name}, which is not installed here",
            "run: pip install 'intramural[parquet]'; or export JSON lines, which need nothing",
        ) from error
    types = {"string": arrow.string(), "int64": arrow.int64(), "double": arrow.float64()}
    types["timestamp[s, tz=UTC]"] = arrow.timestamp("s", tz="UTC")
    schema = arrow.schema([(name, types[kind]) for name, kind in COLUMNS.items()])
    sink = arrow.BufferOutputStream()
    parquet.write_table(arrow.Table.from_pylist([row(fact) for fact in facts], schema=schema), sink)
    publish(path, sink.getvalue().to_pybytes())


def _count(name: str, count: Examples | None) -> dict[str, Any]:
    if count is None:
        return {}
    return {f"{name}_unit": count.unit, f"{name}_low": count.low, f"{name}_high": count.high}
