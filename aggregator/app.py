"""The coordinator as a Flower ServerApp: runs one study of the service folder, over Flower's network.

Flower starts it in a process of its own. Which study, it is told by digest; where that study's folder
lies and who is admitted, it reads from the service folder, whose path stands in this process's environment
and is never sent.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from aggregator.network import NetworkGrid
from aggregator.rounds import run, survey
from aggregator.service import runs
from aggregator.service.home import Home
from aggregator.service.superlink import SERVICE
from aggregator.study import Study
from models.errors import ConfigError, IntramuralError, Locked
from models.ledger import Verifier

STUDY = "study"
"""The run config's key that holds the study's digest."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study, or go on with it; or survey its hospitals."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname).1s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # Flower writes what is logged into its database, line by line
    home = Home.open(Path(os.environ[SERVICE]))
    digest = str(context.run_config[STUDY])
    wanted = runs.wanted(home).get(digest)
    if wanted is None:
        raise ConfigError(f"study {digest} is not one that this service is to run", "run: intramural-aggregator run")
    try:
        with Study.open(wanted.folder) as study:
            hospitals = NetworkGrid(grid, lambda: roster(home))
            if wanted.survey:
                survey(study, hospitals)
            else:
                run(study, hospitals, end=wanted.end)
        runs.unwant(home, digest)  # only now: killed before its leave, it is started once more to take it
    except Locked:
        raise  # another process works on it, and shall go on
    except IntramuralError as error:
        runs.unwant(home, digest, (str(error), error.hint))  # to try again would come to the same
        raise


def roster(home: Home) -> Mapping[int, Verifier]:
    """The admitted hospitals that the SuperLink knows, by node id."""
    hospitals = home.hospitals()
    return {node: Verifier.parse(hospitals[name].key) for name, node in home.nodes().items() if name in hospitals}
