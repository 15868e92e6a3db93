"""A simulation, as `simulation.toml` says it: a study, hospitals on this machine, and what goes wrong in them.

    study = "study.toml"
    sites = ["hospitals/*/site.toml"]
    folder = "simulations/one"

    [[faults]]
    what = "absent"
    silos = ["north"]
    rounds = [2, 4]

    outcome = simulate("simulation.toml")

The folder holds the study (`study/`) and, for each hospital, a ledger and a work folder of its own (`hospitals/NAME/`):
images, labels, key, policy and caches are the hospital's, its own records are not touched. The same file makes the same
models in any other folder; run again in the same one, it goes on where it was. Beside them stands with which sites and
faults the folder was begun (`made-with.json`); a file with others is refused there.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from glob import glob
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from aggregator.grid import StudyGrid
from aggregator.history import History
from aggregator.hospitals import hospital_side
from aggregator.local import LocalGrid
from aggregator.loggers import loggers
from aggregator.rounds import Outcome, run
from aggregator.study import Study
from models.errors import ConfigError
from models.faults import AnyFault
from models.ledger.disk import publish
from models.plan import Plan
from models.settings import LocalPath, Settings

MADE_WITH = "made-with.json"
"""Where a folder says what its content was made with; see `require_made_with`."""


class Consortium(Settings):
    """A study, hospitals on this machine, and what goes wrong in them."""

    study: LocalPath
    sites: Annotated[list[LocalPath], Field(min_length=1)]  # `*` stands for any name
    faults: list[AnyFault] = []
    batched: bool = False  # whether the local training of all is one computation

    def found_sites(self) -> list[Path]:
        """Every hospital's `site.toml`, in the order of the patterns and then of names.

        Raises:
            ConfigError: A pattern fits nothing.
        """
        found: dict[Path, None] = {}
        for pattern in self.sites:
            paths = sorted(glob(str(pattern)))
            if not paths:
                raise ConfigError(f"sites: {pattern}: there is no such file", "correct the path")
            found |= dict.fromkeys(map(Path, paths))
        return list(found)


class Simulation(Consortium):
    """What is simulated."""

    folder: LocalPath
    workers: Annotated[int, Field(ge=1, le=1024)] = 1
    engine: Literal["local", "ray"] = "local"

    @model_validator(mode="after")
    def _faults_need_our_own_engine(self) -> Self:
        if self.engine == "ray" and (self.faults or self.workers > 1):
            raise ValueError('engine: "ray" takes no faults, and its cluster says how many workers there are')
        if self.batched and (self.engine == "ray" or self.workers > 1):
            raise ValueError('batched: takes engine = "local" and workers = 1, since all train in one process')
        return self


def simulate(
    what: Simulation | Path | str, on_round: Callable[[History], None] | None = None, logs: Sequence[str] = ()
) -> Outcome:
    """Simulate a study to its end, or go on with it.

    Args:
        what: The simulation, or its file.
        on_round: Called with the history so far when a round is over.
        logs: Where its numbers are shown too: `tensorboard:FOLDER` or `mlflow:URI`.

    Raises:
        ConfigError: The file, the study or a site is wrong, the folder holds another study or was made with other
            sites or faults, or a fault names no silo.
        LedgerError: A ledger cannot be written.
    """
    simulation = what if isinstance(what, Simulation) else Simulation.load(what)
    folder, plan, found = simulation.folder / "study", Plan.load(simulation.study), simulation.found_sites()
    made = made_with(found, simulation.faults, batched=simulation.batched)
    derive = hospital_side("derive")
    study = Study.open(folder) if folder.is_dir() else Study.create(simulation.study, folder)
    with study:
        if study.plan != plan:
            raise ConfigError(f"{folder}: holds another study than {simulation.study}", "simulate into another folder")
        if begun := bool(study.enrolled):
            require_made_with(simulation.folder, made)
        with _grid(simulation, [derive(site, simulation.folder / "hospitals") for site in found]) as grid:
            if not begun:  # only now: a wrong site or fault may still be corrected
                publish(simulation.folder / MADE_WITH, json.dumps(made, indent=2).encode())
            return run(study, grid, loggers(study, logs, on_round))


def made_with(sites: Iterable[Path], faults: Iterable[AnyFault], *, batched: bool) -> dict[str, Any]:
    """What a simulation's models depend on beside the study and its hospitals' data, as JSON values."""
    return {
        "sites": sorted(str(site.resolve()) for site in sites),
        "faults": [fault.model_dump(mode="json") for fault in faults],
        "batched": batched,
    }


def require_made_with(folder: Path, made: dict[str, Any]) -> None:
    """See that a folder was begun with the same; one that does not say it is older than that file.

    Raises:
        ConfigError: It was not.
    """
    path = folder / MADE_WITH
    if not path.is_file():
        return
    try:
        before = json.loads(path.read_bytes())
        other = [key for key, value in made.items() if before[key] != value]
    except (ValueError, TypeError, KeyError):
        other = list(made)
    if other:
        raise ConfigError(
            f"{folder}: was made with other {' and '.join(f'`{key}`' for key in other)}; {path.name} there says which",
            "choose another folder, or delete that one",
        )


def _grid(simulation: Simulation, sites: list[Path]) -> StudyGrid:
    if simulation.engine == "local":
        return LocalGrid(sites, simulation.workers, faults=simulation.faults, batched=simulation.batched)
    from aggregator.ray import RayGrid  # twice as long to load as Flower without its simulation

    return RayGrid(sites)
