"""Which strategies survive one poisoned hospital of five.

    python scripts/poison.py                         every strategy under every attack; six CPU minutes a seed
    python scripts/poison.py --only fedavg krum      some of them

Five make-believe hospitals train through the real exchange: keys, gate, intake, ledgers. One of them is honest, or
has its labels swapped, or sends ten times the opposite of what it learnt, or numbers drawn at random. Its key is
valid and its updates are no longer than the plan's `max_norm`, so that intake has nothing to object to. What counts is
the AUC of the final model on the held-out patients of the four honest hospitals. A strategy
survives an attack if it loses less than 0.05 to its own honest run. Results: scripts/results/poison.md and .csv; of a
smaller run they are only printed, unless `--results` names a folder.
"""

import argparse
import csv
import logging
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from flwr.app import Message

from aggregator import LocalGrid, Study, run
from models.console import OK, at_default, at_least, progress
from models.exchange.spec import Vector, norm
from silos import training
from silos.phantom import write_hospital

NAMES = ("east", "north", "south", "west", "york")
LIAR = "west"
MAX_NORM = 20.0
LOSS_OF_AUC = 0.05
RESULTS = Path(__file__).parent / "results"

STRATEGIES = {
    "fedavg": "",
    "fedprox": "mu = 0.01",
    "fedavgm": "server_momentum = 0.5",
    "fedadagrad": "eta = 0.05",
    "fedadam": "eta = 0.03",
    "fedyogi": "eta = 0.03",
    "qfedavg": "q = 0.1\nclient_learning_rate = 1.0",
    "fedmedian": "",
    "fedtrimmedavg": "beta = 0.2",
    "krum": "malicious = 1",
    "multikrum": "malicious = 1\nselect = 3",
    "scaffold": "",
    "fedbn": "local_norm = true",
}
"""Parameters of each; by the names `multikrum` and `fedbn` go krum with several updates selected, and fedavg."""

NAMED = {"multikrum": "krum", "fedbn": "fedavg"}

ADAM = 'optimizer = "adam"\nlearning_rate = 0.006'
STEPS = {"scaffold": 'optimizer = "sgd"\nlearning_rate = 0.1'}  # it needs plain steps

PLAN = """
name = "{name}"
purpose = "To see what one poisoned hospital does to the model of five."
seed = {seed}
rounds = {rounds}
min_silos = 5
weights = "{weights}"
metrics = ["loss", "auc"]
max_norm = {max_norm}

[task]
name = "classification"
classes = ["none", "lesion"]
modality = ["MR"]
size = [32, 32]
percentiles = [1.0, 99.0]
augment = false

[task.network]
name = "cnn"
arguments = {{ channels = [8, 16, 32] }}

[training]
epochs = 3
batch_size = 16
{steps}

[strategy]
name = "{strategy}"
{parameters}
"""


def bounded(vector: Vector) -> Vector:
    """The vector, shortened so that intake takes it."""
    return (vector * np.float32(min(1.0, 0.99 * MAX_NORM / norm(vector)))).astype(np.float32)


def opposite(delta: Vector, seed: int) -> Vector:
    """Ten times the opposite of what was learnt."""
    return bounded(-10 * delta)


def noise(delta: Vector, seed: int) -> Vector:
    """Random numbers, as many and as large as intake takes."""
    drawn = np.random.default_rng(seed).standard_normal(delta.size).astype(np.float32)
    return bounded(drawn * np.float32(MAX_NORM))


ATTACKS: dict[str, Callable[[Vector, int], Vector] | None] = {
    "honest": None,
    "labels swapped": None,
    "opposite x 10": opposite,
    "random": noise,
}


class Poisoned(LocalGrid):
    """Hospitals in this process, one of which sends something else than it learnt.

    Args:
        sites: `site.toml` of each hospital.
        attack: Makes the liar's update of its honest one and the round's seed.
    """

    def __init__(self, sites: Sequence[Path], attack: Callable[[Vector, int], Vector] | None) -> None:
        super().__init__(sites)
        self._attack = attack

    def _answer(self, message: Message) -> Message:
        attack = self._attack
        if attack is None or self.roster[message.metadata.dst_node_id].name != LIAR:
            return super()._answer(message)
        honest = training.fit

        def lie(*given: Any, seed: int, **more: Any) -> Vector:
            return attack(honest(*given, seed=seed, **more), seed)

        with mock.patch.object(training, "fit", lie):
            return super()._answer(message)


def write_sites(folder: Path, seed: int) -> tuple[list[Path], list[Path]]:
    """The five hospitals; and the same five, of which the liar's labels are swapped."""
    studies = [study(strategy, attack) for strategy in STRATEGIES for attack in ATTACKS]
    sites = []
    for name in NAMES:
        wide = {"patients": 24, "images": 6, "size": 32, "style": 0, "studies": studies}
        sites.append(write_hospital(folder / name, name=name, seed=seed, **wide))  # type: ignore[arg-type]
    swapped = write_hospital(folder / "swapped", name=LIAR, seed=seed, **wide)  # type: ignore[arg-type]
    words = '{ "lesion" = "lesion", "none" = "none" }'
    text = swapped.read_text()
    assert words in text
    swapped.write_text(text.replace(words, '{ "lesion" = "none", "none" = "lesion" }'))
    for site in (sites[NAMES.index(LIAR)], swapped):  # a liar's own gate is no hindrance to it
        site.write_text(site.read_text().replace("clip = 10.0", f"clip = {MAX_NORM}"))
    return sites, [swapped if site.parent.name == LIAR else site for site in sites]


def study(strategy: str, attack: str) -> str:
    """Name of a study."""
    return f"{strategy}-{attack.replace(' ', '')}"


def auc(strategy: str, attack: str, seed: int, rounds: int, folder: Path, sites: Sequence[Path]) -> float:
    """Mean AUC of the final model on the held-out patients of the honest hospitals."""
    name, plan = study(strategy, attack), folder / f"{strategy}.toml"
    plan.write_text(
        PLAN.format(
            name=name,
            seed=seed,
            rounds=rounds,
            max_norm=MAX_NORM,
            strategy=NAMED.get(strategy, strategy),
            parameters=STRATEGIES[strategy],
            steps=STEPS.get(strategy, ADAM),
            weights="equal" if strategy == "scaffold" else "images",
        )
    )
    with Study.create(plan, folder / name) as opened, Poisoned(sites, ATTACKS[attack]) as grid:
        history = run(opened, grid).history
    assert all(len(item.accepted) == len(NAMES) for item in history.rounds[1:]), "the liar was found out by intake"
    measured = history.rounds[-1].metrics
    return statistics.fmean(values["auc"] for silo, values in measured.items() if silo != LIAR)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = ["| strategy | " + " | ".join(ATTACKS) + " | survives |", "|---" * (len(ATTACKS) + 2) + "|"]
    for strategy in STRATEGIES:
        found = {
            attack: [row["auc"] for row in rows if (row["strategy"], row["attack"]) == (strategy, attack)]
            for attack in ATTACKS
        }
        if not all(found.values()):
            continue
        means = {attack: statistics.fmean(values) for attack, values in found.items()}
        lost = [attack for attack in means if means["honest"] - means[attack] >= LOSS_OF_AUC]
        verdict = "all" if not lost else ", ".join(a for a in ATTACKS if a not in [*lost, "honest"]) or "none"
        told = STRATEGIES[strategy].replace("\n", ", ")
        shown = f"{strategy} ({told})" if told else strategy
        lines.append(f"| {shown} | " + " | ".join(f"{means[a]:.3f}" for a in ATTACKS) + f" | {verdict} |")
    return "\n".join(lines) + "\n"


def write(folder: Path, rows: Sequence[dict[str, Any]], rounds: int, seeds: int) -> None:
    """Write poison.csv and poison.md."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "poison.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    heading = (
        "# One poisoned hospital of five\n\n"
        "Written by `python scripts/poison.py`, which says what is measured: AUC of the final model at the four honest"
        f" hospitals, make-believe patients, {rounds} rounds, {seeds} seed{'' if seeds == 1 else 's'}, max_norm"
        f" {MAX_NORM:g}; survived is what costs less than {LOSS_OF_AUC:g}. Of one seed, differences of about 0.03 say"
        " nothing.\n\n"
    )
    (folder / "poison.md").write_text(heading + table(rows))


def main(argv: Sequence[str] | None = None) -> int:
    """Poison, measure, write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=STRATEGIES, default=list(STRATEGIES), help="default: all")
    parser.add_argument("--seeds", type=at_least(1), default=3, help="other patients and first weights (default: 3)")
    parser.add_argument("--rounds", type=at_least(1), default=8, help="default: 8")
    parser.add_argument("--results", type=Path, help="folder of the tables (default: scripts/results of a whole run)")
    options = parser.parse_args(argv)
    whole = at_default(parser, options, "only", "seeds", "rounds")
    results = options.results or (RESULTS if whole else None)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    logging.getLogger("intramural").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    count = options.seeds * len(options.only) * len(ATTACKS)
    with progress() as report:
        for seed in range(1, options.seeds + 1):
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place)
                sites, swapped = write_sites(folder, seed)
                for strategy in options.only:
                    for attack in ATTACKS:
                        at = swapped if attack == "labels swapped" else sites
                        found = auc(strategy, attack, seed, options.rounds, folder, at)
                        rows.append({"strategy": strategy, "attack": attack, "seed": seed, "auc": round(found, 4)})
                        report("studies", len(rows), count)
    if results:
        write(results, rows, options.rounds, options.seeds)
    print(table(rows), end="")
    return OK


if __name__ == "__main__":
    raise SystemExit(main())
