"""The coordinator: defines a study, collects updates, makes the models, keeps the evidence.

from aggregator import LocalGrid, Study, run

study = Study.load("configs/study.toml")
with LocalGrid(["configs/sites/north.toml", "configs/sites/south.toml"]) as grid:
outcome = run(study, grid)
"""

from aggregator.local import LocalGrid
from aggregator.rounds import Outcome, run
from aggregator.study import Study

__all__ = ["LocalGrid", "Outcome", "Study", "run"]
