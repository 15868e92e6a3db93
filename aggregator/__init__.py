"""The coordinator: defines a study, collects updates, makes the models, keeps the evidence.

from aggregator import LocalGrid, Study, run

study = Study.load("configs/study.toml")
with study, LocalGrid(["hospitals/north/site.toml", "hospitals/south/site.toml"]) as grid:
    outcome = run(study, grid)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aggregator.local import LocalGrid
    from aggregator.ray import RayGrid
    from aggregator.rounds import Outcome, run, survey
    from aggregator.simulation import Simulation, simulate
    from aggregator.study import Study

__all__ = ["LocalGrid", "Outcome", "RayGrid", "Simulation", "Study", "run", "simulate", "survey"]

# Loaded when asked for, so that the auditor's command needs no Flower.
_HOMES = {
    "LocalGrid": "aggregator.local",
    "Outcome": "aggregator.rounds",
    "RayGrid": "aggregator.ray",
    "Simulation": "aggregator.simulation",
    "Study": "aggregator.study",
    "run": "aggregator.rounds",
    "simulate": "aggregator.simulation",
    "survey": "aggregator.rounds",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
