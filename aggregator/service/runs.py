"""The studies that a service is, or was, to run: one small file each, which commands write and the service reads."""

import json
from pathlib import Path

from pydantic import TypeAdapter

from aggregator.service.home import Home, documents, json_bytes
from aggregator.service.settings import Number
from models.errors import ConfigError
from models.exchange.documents import Digest
from models.ledger import disk
from models.settings import LocalPath, Settings

_DIGEST = TypeAdapter(Digest)


class Entry(Settings):
    """A study of a service.

    Attributes:
        folder: The study folder.
        run_id: The run that Flower made of it, if it has begun.
        wanted: Whether it is to run.
        problem: Why it cannot go on, and what to do about it, if that is known.
        survey: Whether only its hospitals are to be surveyed.
        end: Whether it is to be closed with the model that it has.
    """

    folder: LocalPath
    run_id: Number | None = None
    wanted: bool = True
    problem: tuple[str, str] | None = None
    survey: bool = False
    end: bool = False


def studies(home: Home) -> dict[str, Entry]:
    """Every study that the service was ever to run, by digest.

    Raises:
        ConfigError: A file of the list cannot be read.
    """
    found = {}
    for path, content in documents(home.runs):
        try:
            value = json.loads(content)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise ConfigError(f"{path}: is no JSON object", "remove it, and run the study again")
        found[path.stem] = Entry.parse(value, str(path))
    return found


def wanted(home: Home) -> dict[str, Entry]:
    """The studies that the service is to run now, by digest."""
    return {study: entry for study, entry in studies(home).items() if entry.wanted}


def want(home: Home, study: str, folder: Path, *, survey: bool = False, end: bool = False) -> None:
    """Have a study run; one that is wanted already goes on as it is.

    Args:
        home: The service folder.
        study: The study's digest.
        folder: Its study folder.
        survey: Only survey its hospitals.
        end: Only close it.

    Raises:
        ConfigError: The same study is wanted from another folder: two records of one study would part. Or it
            is at work already on something else.
    """
    folder = folder.resolve()
    with home.changing():
        known = wanted(home).get(study)
        if known is None:
            _save(home, study, Entry(folder=folder, survey=survey, end=end))
        elif known.folder != folder:
            raise ConfigError(
                f"{folder}: the study {study[:12]} is run from {known.folder} already",
                "go on with that folder, or stop the study there first",
            )
        elif (known.survey, known.end) != (survey, end):
            doing = "its hospitals are being surveyed" if known.survey else "it runs"
            raise ConfigError(f"{folder}: {doing} already", "wait for the end, or stop the study first")


def unwant(home: Home, study: str, problem: tuple[str, str] | None = None) -> None:
    """Have a study run no more; no complaint if it was not wanted.

    Args:
        home: The service folder.
        study: The study's digest.
        problem: Why it cannot go on, and what to do about it, if that is the reason.
    """
    with home.changing():
        known = wanted(home).get(study)
        if known is not None:
            _save(home, study, known.model_copy(update={"wanted": False, "problem": problem}))


def set_run(home: Home, study: str, run_id: int) -> None:
    """Note which run Flower made of a study; nothing is noted for one that is wanted no more."""
    with home.changing():
        known = wanted(home).get(study)
        if known is not None:
            _save(home, study, known.model_copy(update={"run_id": run_id}))


def _save(home: Home, study: str, entry: Entry) -> None:
    path = home.runs / f"{_DIGEST.validate_python(study)}.json"
    disk.publish(path, json_bytes(entry.model_dump(mode="json")))
