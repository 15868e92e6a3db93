"""What hospitals told before a study started, read from the study's ledger.

agreement, answers = read_surveys(folder)
answers["north"]        # a Survey, or the code for which there is none
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from aggregator.history import REFUSALS, read_study, silo_of
from models.exchange.documents import Agreement, Survey
from models.ledger import Event, Verifier, read


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
        elif record.event in REFUSALS and record.round == 0:  # only a survey is of round 0
            silo = silo_of(body)
            if not isinstance(found.get(silo), Survey):
                found[silo] = body.get("code", "silent")
    return agreement, dict(sorted(found.items()))


def rows(agreement: Agreement, answers: Mapping[str, Survey | str]) -> list[Sequence[str]]:
    """The answers side by side: what is counted, the cell, and each hospital's band, "hidden", or nothing.

    A cell that no hospital tells is left out.
    """
    lines = [
        answer.lines(agreement.plan.task.classes) if isinstance(answer, Survey) else {} for answer in answers.values()
    ]
    keys = dict.fromkeys(key for each in lines for key in each)
    table = [(*key, *(each.get(key, "") for each in lines)) for key in keys]
    return [row for row in table if set(row[2:]) - {"hidden", ""}]
