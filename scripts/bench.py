"""What the exchange costs: rounds with signatures, gate and ledgers beside a plain loop of the same training.

    python scripts/bench.py [--rounds 5]

Both sides do the same gradient steps on the same make-believe hospitals, in turns, in one process with one
thread; the plain loop evaluates, trains and averages and does nothing else. Printed are CPU seconds per
round (the minimum over rounds, which other work on the machine disturbs least) and their ratio, after
checking that both ended with the same model to the bit.
"""

import argparse
import logging
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from aggregator import LocalGrid, Study, run
from aggregator.mean import weighted_mean
from models import tasks
from models.console import show_table
from models.exchange.documents import Agreement
from models.exchange.encoding import Encoding
from models.exchange.spec import Vector, load_vector
from models.plan import Plan
from silos import gate, privacy, training
from silos.config import Site
from silos.phantom import write_hospital
from silos.visit import set_up

CONFIG = Path(__file__).parent.parent / "configs" / "study.toml"


def audited(plan: Path, sites: list[Path], folder: Path) -> tuple[list[float], Vector]:
    """CPU seconds of each round through the exchange, and the final model."""
    stamps = []
    with Study.create(plan, folder) as study, LocalGrid(sites) as grid:
        outcome = run(study, grid, lambda _: stamps.append(time.process_time()))
    return list(np.diff(stamps)), load_vector(outcome.model, outcome.digest)[1]


def plain(plan: Plan, sites: list[Path]) -> tuple[list[float], Vector]:
    """CPU seconds of each round of a plain loop, and the final model."""
    task = tasks.task(plan.task)
    network = tasks.network(plan)
    agreement = Agreement(plan=plan, coordinator_key="", initial="0" * 64, spec=network.spec.digest)
    hospitals = sorted((Site.load(site) for site in sites), key=lambda site: site.name)
    data = {site.name: set_up(site, agreement).data for site in hospitals}
    model, stamps = network.weights.numpy().copy(), []
    for round_ in range(1, plan.rounds + 1):
        deltas, weights = [], []
        for site in hospitals:
            network.load(model)
            training.evaluate(network, task, data[site.name].held_out)
            seed = training.seed_for(plan.seed, site.name, round_)
            delta = training.fit(network, task, data[site.name].train, plan.training, mu=plan.strategy.mu, seed=seed)
            bound = site.policy.clip
            deltas.append(privacy.tell(privacy.clip(delta, bound), Encoding(plan.encoding, network.spec), bound)[0])
            weights.append(sum(gate.band(len(data[site.name].train.targets))) / 2)
        model = model + weighted_mean(weights, deltas)
        stamps.append(time.process_time())
    return list(np.diff(stamps)), model


def main() -> int:
    """Measure, check, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each side in a turn (default: 5)")
    parser.add_argument("--turns", type=int, default=3, help="default: 3")
    options = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        plan = work / "study.toml"
        plan.write_text(CONFIG.read_text().replace("rounds = 5", f"rounds = {options.rounds}"))
        times: dict[str, list[float]] = {"plain loop": [], "with the exchange": []}
        for turn in range(options.turns):
            sites = [
                write_hospital(work / f"{turn}" / name, name=name, seed=1, studies=["demo-fedavg"])
                for name in ("north", "east", "south", "west")
            ]
            looped, expected = plain(Plan.load(plan), sites)
            exchanged, model = audited(plan, sites, work / f"study-{turn}")
            if not np.array_equal(model, expected):
                raise SystemExit("error: the two sides ended with different models")
            times["plain loop"] += looped
            times["with the exchange"] += exchanged
    least = min(times["plain loop"])
    rows = [
        (name, f"{min(values):.3f}", f"{statistics.median(values):.3f}", f"{min(values) / least:.3f}")
        for name, values in times.items()
    ]
    title = (
        f"CPU seconds per round, 4 hospitals, {options.turns} turns of {options.rounds} rounds; same model to the bit"
    )
    show_table(title, ("", "minimum", "median", "ratio of minima"), rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
