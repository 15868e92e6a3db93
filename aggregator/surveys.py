"""What hospitals told before a study started, read from the study's ledger.

agreement, answers = read_surveys(folder)
answers["north"]        # a Survey, or the code for which there is none
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args

from aggregator.history import read_study
from models.exchange.documents import Agreement, Band, Survey
from models.exchange.survey import CELLS, TableName, Total
from models.ledger import Event, Verifier, read

_NONE = {Event.REFUSAL_RECEIVED, Event.REPLY_REJECTED, Event.SILO_SILENT}


def read_surveys(folder: Path) -> tuple[Agreement, dict[str, Survey | str]]:
    """The newest answer of each hospital that was asked; another process may be at work on the study.

    Returns:
        The agreement; and by hospital, its survey, or the code for which there is none (`silent` if it did not
        answer).

    Raises:
        ConfigError: It is no study folder.
        LedgerError: Its ledger is not the one that was signed.
    """
    agreement, _ = read_study(folder)
    opened = read(folder / "ledger", Verifier.parse(agreement.coordinator_key))
    found: dict[str, Survey | str] = {}
    for record in opened.records:
        body = record.body
        if record.event == Event.SURVEY_RECEIVED:
            found[body["statement"]["src"]] = Survey.decode(opened.manifest(body["statement"]["body"]))
        elif record.event in _NONE and record.round == 0:  # only a survey is of round 0
            silo = body["silo"] if "silo" in body else body["statement"]["src"]
            if not isinstance(found.get(silo), Survey):
                found[silo] = body.get("code", "silent")
    return agreement, dict(sorted(found.items()))


def rows(agreement: Agreement, answers: Mapping[str, Survey | str]) -> Iterator[Sequence[str]]:
    """The answers side by side: what is counted, the cell, and each hospital's band, "hidden", or nothing."""
    surveys = [answer if isinstance(answer, Survey) else Survey(least=1) for answer in answers.values()]
    for total in get_args(Total):
        if any(total in survey.totals for survey in surveys):
            yield total, "", *(in_words(survey.totals.get(total)) for survey in surveys)
    for name in get_args(TableName):
        for cell in CELLS.get(name, agreement.plan.task.classes):
            told = [survey.tables.get(name, {}) for survey in surveys]
            if any(cells.get(cell) for cells in told):
                yield f"patients by {name.replace('_', ' ')}", cell, *(_cell(cells, cell) for cells in told)


def in_words(band: Band | None) -> str:
    """A band as people write it; nothing if there is none."""
    return f"{band.low}-{band.high}" if band else ""


def _cell(cells: Mapping[str, Band | None], cell: str) -> str:
    return in_words(cells[cell]) or "hidden" if cell in cells else ""
