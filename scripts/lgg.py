"""Is it worth it? Real brain MR of five hospitals: alone, federated, and pooled, over several seeds.

    python scripts/lgg.py --data ../shared/data/lgg --work lgg

Five hospitals hold FLAIR slices labelled "tumour" or "none" (see `--data`/README.md for source and licence).
Each trains under a `site.toml` of its own, written below `--work`; nothing is written to `--data`. The
smallest, `tiny`, has one patient: its own policy refuses, and the study goes on without it. Compared are

- each hospital alone, on its own patients, with the gradient steps that it does in the federation,
- with `--long`, each hospital alone, with as many gradient steps as the whole federation does,
- FedAvg and FedProx over the four that may train, through the real exchange, gate and ledgers,
- pooled training, as if the images could be brought together, with as many gradient steps,

all from the same first model and with the same settings. Every final model is
evaluated on every hospital's held-out patients. A seed decides the first model, the order of images, and
which third of each hospital's patients is held out, because with eleven patients one split says little.
Finished arms are kept, so the script can be stopped and run again. It writes `lgg.csv` (one row per arm, seed
and hospital) and `lgg.md` (the table) to scripts/results; with other seeds, rounds or epochs the table is only printed,
unless `--out` names a folder.
"""

import argparse
import csv
import json
import logging
import multiprocessing
import shutil
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from aggregator import LocalGrid, Study, run
from models import tasks
from models.console import at_default, at_least
from models.exchange.documents import Agreement
from models.exchange.spec import Vector, load_vector
from models.ledger import Signer
from models.plan import Plan
from models.tasks import Case
from silos import training
from silos.config import Site
from silos.dataset import Prepared
from silos.visit import set_up

RESULTS = Path(__file__).parent / "results"

TRAINING = ("north", "east", "south", "west")
TINY = "tiny"
LONG = "-long"  # alone, with the gradient steps of all

LABELS = {
    "north": 'join = { SOPInstanceUID = "SOPInstanceUID" }\nvalue = "tumour"\nwords = { 1 = "tumour", 0 = "none" }',
    "east": 'join = { AccessionNumber = "AccessionNumber", InstanceNumber = "InstanceNumber" }\n'
    'value = "TumorPresent"\nwords = { yes = "tumour", no = "none" }',
    "south": 'delimiter = ";"\njoin = { PatientID = "patient", InstanceNumber = "slice" }\n'
    'value = "label"\nwords = { 1 = "tumour", 0 = "none" }',
    "west": 'join = { SOPInstanceUID = "SOPInstanceUID" }\nvalue = "diagnosis"\n'
    'words = { glioma = "tumour", none = "none" }',
    "tiny": 'join = { SOPInstanceUID = "SOPInstanceUID" }\nvalue = "tumour"\nwords = { 1 = "tumour", 0 = "none" }',
}

SITE = """name = "{name}"
key = "{name}.key"

[data]
root = "{data}/{name}/dicom"
modality = ["MR"]
salt = "lgg-{name}-split-{seed}"
held_out = 0.33

[data.labels]
file = "{data}/{name}/labels.csv"
{labels}

[policy]
studies = [{studies}]
tasks = ["classification"]
metrics = ["loss", "auc", "accuracy"]
min_patients = 6
min_evaluated = 1  # these images are public; a hospital would leave this line out
max_rounds = 100
max_bytes = "100 MB"
clip = 20.0

[run]
work = "work"
device = "cpu"
"""

PLAN = """name = "{name}"
purpose = "Find slices with tumour in FLAIR brain MR."
seed = {seed}
rounds = {rounds}
min_silos = 4
weights = "images"
metrics = ["loss", "auc"]

[task]
name = "classification"
classes = ["none", "tumour"]
modality = ["MR"]
size = [64, 64]
percentiles = [1.0, 99.0]
augment = true

[task.network]
name = "cnn"

[training]
epochs = {epochs}
batch_size = 32
optimizer = "adam"
learning_rate = 0.008
decay = 0.93

[strategy]
name = "{strategy}"
{mu}
"""


@dataclass(frozen=True)
class Arm:
    """One way to train, with one seed."""

    name: str
    seed: int

    @property
    def study(self) -> str:
        """The study's name, for the federated arms."""
        return f"lgg-{self.name}-{self.seed}"


def write_site(options: argparse.Namespace, folder: Path, name: str, seed: int) -> Path:
    """A hospital's `site.toml`; the seed decides which of its patients are held out."""
    folder.mkdir(parents=True, exist_ok=True)
    studies = ", ".join(f'"{arm.study}"' for arm in [Arm("fedavg", 0), Arm("fedprox", 0), *arms(options.seeds)])
    text = SITE.format(name=name, data=options.data.resolve(), labels=LABELS[name], studies=studies, seed=seed)
    (folder / "site.toml").write_text(text)
    return folder / "site.toml"


def write_hospitals(options: argparse.Namespace) -> None:
    """The hospitals, each with a key; their images are read once, for all arms."""
    folder = options.work / "hospitals"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("fedavg", "fedprox"):
        shutil.copy(write_plan(options, Arm(name, 0)), folder / f"study-{name}.toml")
    plan = Plan.load(folder / "study-fedavg.toml")
    for name in (*TRAINING, TINY):
        site = write_site(options, folder / name, name, 0)
        if not (folder / name / f"{name}.key").exists():
            Signer.create(folder / name / f"{name}.key", name)
        set_up(Site.load(site), _agreement(plan))


def hospitals(options: argparse.Namespace, arm: Arm) -> dict[str, Path]:
    """The hospitals of one arm: a ledger has one writer, and arms run at the same time."""
    sites = {}
    for name in (*TRAINING, TINY):
        folder = options.work / "arms" / arm.study / name
        if not folder.exists():
            shutil.copytree(options.work / "hospitals" / name, folder)
        sites[name] = write_site(options, folder, name, arm.seed)
    return sites


def write_plan(options: argparse.Namespace, arm: Arm) -> Path:
    """The study of a federated arm, and the settings of the others."""
    path = options.work / "plans" / f"{arm.study}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    prox = arm.name == "fedprox"
    path.write_text(
        PLAN.format(
            name=arm.study,
            seed=arm.seed,
            rounds=options.rounds,
            epochs=options.epochs,
            strategy="fedprox" if prox else "fedavg",
            mu="mu = 0.001" if prox else "",
        )
    )
    return path


@dataclass(frozen=True)
class Together:
    """The images of several hospitals as one set."""

    parts: list[Prepared]

    @property
    def targets(self) -> np.ndarray:
        """The class of each image."""
        return np.concatenate([part.targets for part in self.parts])

    def __len__(self) -> int:
        """How many images."""
        return len(self.targets)

    def take(self, rows: np.ndarray) -> list[Case]:
        """Some images."""
        ends = np.cumsum([len(part.targets) for part in self.parts])
        part = np.searchsorted(ends, rows, side="right")
        starts = ends - [len(p.targets) for p in self.parts]
        return [self.parts[p].take(np.array([row - starts[p]]))[0] for p, row in zip(part, rows, strict=True)]


def federate(folder: Path, plan: Path, sites: list[Path]) -> Vector:
    """Train by the real exchange; `tiny` takes part and refuses."""
    study = Study.open(folder) if folder.exists() else Study.create(plan, folder)
    with study, LocalGrid(sites) as grid:
        outcome = run(study, grid)
    refused = {silo: code for item in outcome.history.rounds for silo, code in item.refused.items()}
    assert refused == {TINY: "too-few-patients"}, refused
    return load_vector(outcome.model, outcome.digest)[1]


def train(plan: Plan, name: str, parts: list[Prepared], steps: int) -> Vector:
    """Train in one place, from the same first model, with the same schedule and as many steps in each round."""
    task = tasks.task(plan.task)
    network = tasks.network(plan)
    data = parts[0] if len(parts) == 1 else Together(parts)
    for round_ in range(1, plan.rounds + 1):
        length = plan.training.in_round(round_).model_copy(update={"epochs": None, "steps": steps})
        training.fit(network, task, data, length, mu=0.0, seed=training.seed_for(plan.seed, name, round_))
    return network.vector.numpy().copy()


def work_on(job: tuple[Arm, argparse.Namespace]) -> Path:
    """One arm, from nothing to its row of results on disk."""
    arm, options = job
    result = options.work / "results" / f"{arm.study}.json"
    if result.exists():
        return result
    logging.getLogger("flwr").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    sites = hospitals(options, arm)
    plan_path = write_plan(options, arm)
    plan = Plan.load(plan_path)
    task = tasks.task(plan.task)
    network = tasks.network(plan)
    data = {name: set_up(Site.load(sites[name]), _agreement(plan)).data for name in TRAINING}
    batches = {name: -(-len(d.train.targets) // plan.training.batch_size) for name, d in data.items()}
    steps = options.epochs * batches.get(arm.name, sum(batches.values()))  # in a round
    if arm.name in ("fedavg", "fedprox"):
        model = federate(options.work / "studies" / arm.study, plan_path, list(sites.values()))
    else:
        names = TRAINING if arm.name == "pooled" else (arm.name.removesuffix(LONG),)
        model = train(plan, arm.name, [data[name].train for name in names], steps)
    network.load(model)
    scores = {name: training.evaluate(network, task, d.held_out) for name, d in data.items()}
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps({"arm": arm.name, "seed": arm.seed, "steps": steps * plan.rounds, "scores": scores}))
    print(
        f"{arm.name} seed {arm.seed}: mean AUC {statistics.mean(s['auc'] for s in scores.values()):.3f}",
        flush=True,
    )
    return result


def _agreement(plan: Plan) -> Agreement:
    """What `set_up` needs of a study that is not run by the exchange."""
    return Agreement(plan=plan, coordinator_key="", initial="0" * 64, spec="0" * 64)


def arms(seeds: list[int], long: bool = True) -> Iterator[Arm]:
    """Every arm, the longest first."""
    for seed in seeds:
        for name in ("fedavg", "fedprox", "pooled", *(name + LONG for name in TRAINING if long), *TRAINING):
            yield Arm(name, seed)


def write_results(results: list[Path], out: Path | None) -> bool:
    """Write the CSV and the table, if there is a folder for them.

    Returns:
        Whether the federation beats each alone and comes within 0.02 of pooled.
    """
    found = [json.loads(path.read_text()) for path in results]
    means: dict[str, float] = {}
    lines = [
        f"| trained on | gradient steps | {' | '.join(TRAINING)} | mean | sd over seeds |",
        "|---|---|" + "---|" * (len(TRAINING) + 2),
    ]
    done = {item["arm"] for item in found}
    long = [name + LONG for name in TRAINING if name + LONG in done]
    for name in (*TRAINING, *long, "fedavg", "fedprox", "pooled"):
        mine = [item["scores"] for item in found if item["arm"] == name]
        steps = statistics.mean(item["steps"] for item in found if item["arm"] == name)
        each = [statistics.mean(scores[h]["auc"] for scores in mine) for h in TRAINING]
        per_seed = [statistics.mean(scores[h]["auc"] for h in TRAINING) for scores in mine]
        means[name] = statistics.mean(per_seed)
        spread = statistics.stdev(per_seed) if len(per_seed) > 1 else float("nan")
        label = f"{name.removesuffix(LONG)} alone" if name.removesuffix(LONG) in TRAINING else name
        cells = " | ".join(f"{auc:.3f}" for auc in each)
        lines.append(f"| {label} | {steps:.0f} | {cells} | {means[name]:.3f} | {spread:.3f} |")
    best = max(means[name] for name in TRAINING)
    best_long = max((means[name] for name in long), default=None)
    seeds = sorted({item["seed"] for item in found})
    text = [
        "# Real brain MR of five hospitals: AUC of tumour in slice, on each hospital's held-out patients",
        "",
        f"Mean over seeds {', '.join(map(str, seeds))}, each with another split of the patients; batches of 32 images. "
        "`tiny` (one patient) refused by its own policy in every federated round. Written by `scripts/lgg.py`.",
        "",
        *lines,
        "",
        *(
            f"- {name}: {means[name] - best:+.3f} to the best hospital alone with its own steps, "
            + (f"{means[name] - best_long:+.3f} to the best alone with the steps of all, " if best_long else "")
            + f"{means[name] - means['pooled']:+.3f} to pooled"
            for name in ("fedavg", "fedprox")
        ),
    ]
    if out:
        out.mkdir(parents=True, exist_ok=True)
        with open(out / "lgg.csv", "w", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["arm", "seed", "gradient_steps", "hospital", "auc", "accuracy", "loss"])
            for item in found:
                for hospital, score in item["scores"].items():
                    values = [f"{score[name]:.4f}" for name in ("auc", "accuracy", "loss")]
                    rows.writerow([item["arm"], item["seed"], item["steps"], hospital, *values])
        (out / "lgg.md").write_text("\n".join(text) + "\n")
    print("\n".join(text))
    return all(means[name] > best and means["pooled"] - means[name] <= 0.02 for name in ("fedavg", "fedprox"))


def main() -> int:
    """Run every arm that is not done yet, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the five hospitals' folders; only read")
    parser.add_argument("--work", type=Path, default=Path("lgg"), help="sites, studies, caches (default: lgg)")
    parser.add_argument("--out", type=Path, help="folder of the tables (default: scripts/results of a whole run)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rounds", type=at_least(1), default=40)
    parser.add_argument("--epochs", type=at_least(1), default=2, help="local epochs in a round (default: 2)")
    parser.add_argument("--workers", type=at_least(1), default=2, help="arms trained at the same time (default: 2)")
    parser.add_argument("--long", action="store_true", help="also each hospital alone with the steps of all")
    parser.add_argument("--only-write", action="store_true", help="write the hospitals and two studies, and stop")
    options = parser.parse_args()
    whole = at_default(parser, options, "seeds", "rounds", "epochs")
    if not (options.data / "north" / "labels.csv").is_file():
        print(
            f"error: {options.data}: does not hold the five hospitals (north/labels.csv is missing)",
            file=sys.stderr,
        )
        return 1
    write_hospitals(options)
    if options.only_write:
        print(f"hospitals and studies are in {options.work}; try: make demo DATA={options.work / 'hospitals'}")
        return 0
    jobs = [(arm, options) for arm in arms(options.seeds, options.long)]
    with multiprocessing.get_context("spawn").Pool(options.workers, maxtasksperchild=1) as pool:
        results = list(pool.imap(work_on, jobs, chunksize=1))
    return 0 if write_results(results, options.out or (RESULTS if whole else None)) else 1


if __name__ == "__main__":
    raise SystemExit(main())
