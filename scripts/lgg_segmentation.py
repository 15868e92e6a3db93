"""Outlining tumours in real brain MR of five hospitals: alone, federated, and pooled, in slices and in volumes.

    python scripts/lgg_segmentation.py --data ../shared/data/lgg --work lgg-segmentation

The hospitals of `lgg.py`, here with the tumours that were drawn on their FLAIR images (DICOM SEG). Compared are,
with 2-D slices and with 3-D volumes,

- each hospital alone, on its own patients, with the gradient steps that it does in the federation,
- FedAvg, FedProx, FedBN (each hospital keeps its normalisation layers) and FedBN with FedProx's term, over the four
  that may train, through the real exchange, gate and ledgers,
- pooled training, as if the images could be brought together, with as many gradient steps,

all with the same settings and from the same first model. Every final model outlines every held-out patient of every
hospital, and is judged by the task's own Dice: 2 |A and B| / (|A| + |B|) over a whole patient's volume at the study's
spacing (5 mm, coarse enough for a laptop's processor), then the mean over a hospital's held-out patients. FedBN is
judged in each hospital with that hospital's own layers. A seed decides the first model, the order of images, and which
third of each hospital's patients is held out.

Finished arms are kept, so the script can be stopped and run again; `--only-write` trains nothing and writes what is
finished. It writes `lgg_segmentation.csv` (one row per arm, seed and hospital) and `lgg_segmentation.md` (the
tables) to scripts/results, which with other dimensions, seeds, rounds or epochs are only printed, unless `--out` names
a folder; and pictures (image, tumour drawn by hand, tumour predicted) to `--work`/pictures, because the images' licence
keeps them out of the project.
"""

import argparse
import csv
import itertools
import json
import logging
import multiprocessing
import shutil
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lgg import RESULTS, TINY, TRAINING, federate, train

from models import tasks
from models.canonical import digest
from models.console import at_default, at_least
from models.ledger import Signer
from models.plan import Plan
from models.tasks import Case
from models.tasks.flat import FlatNetwork
from silos import local_norm, training
from silos.config import Site
from silos.dataset import Dataset, Prepared
from silos.visit import load_data

FEDERATED = {
    "fedavg": 'name = "fedavg"',
    "fedprox": 'name = "fedprox"\nmu = {mu}',
    "fedbn": 'name = "fedavg"\nlocal_norm = true',
    "fedbn-prox": 'name = "fedprox"\nmu = 0.001\nlocal_norm = true',
}
ARMS = (*FEDERATED, "pooled", *TRAINING)  # the longest first
WITHIN = 0.03  # of pooled

SITE = """name = "{name}"
key = "{name}.key"

[data]
root = "{data}/{name}/dicom"
modality = ["MR"]
salt = "lgg-{name}-split-{seed}"
held_out = 0.33

[data.annotations]
words = {{ "*" = "tumour" }}

[policy]
studies = [{studies}]
tasks = ["segmentation"]
metrics = []  # the last model is judged here; judging each round's would take longer than its training
min_patients = 6
max_rounds = 100
max_bytes = "100 MB"
clip = 20.0

[run]
work = "work"
device = "cpu"
"""

PLAN = """name = "{name}"
purpose = "Outline tumours in FLAIR brain MR."
seed = {seed}
rounds = {rounds}
min_silos = {silos}
weights = "images"
metrics = ["dice"]
encoding = "float32"

[task]
name = "segmentation"
classes = ["tumour"]
modality = ["MR"]
zscore = "nonzero"
{task}

[[task.augment]]
name = "RandFlip"
arguments = {{ prob = 0.5, spatial_axis = 0 }}

[task.network]
name = "unet"
arguments = {{ {network} }}

[training]
epochs = {epochs}
batch_size = 4
optimizer = "adam"
learning_rate = 0.01
decay = {decay}

[strategy]
{strategy}
"""

TASKS = {
    2: {
        "task": "dimensions = 2\nspacing = [5.0, 5.0]\npatch = [48, 48]\npatches = 4\noverlap = 0.0",
        "network": 'channels = [8, 16, 32, 64], num_res_units = 1, norm = "batch"',
        "decay": 0.978,
        "rounds": 90,
        "mu": 0.001,
    },
    3: {
        "task": "dimensions = 3\nspacing = [5.0, 5.0, 5.0]\npatch = [48, 48, 8]",
        "network": 'channels = [8, 16, 32, 64], num_res_units = 1, norm = "instance"',
        "decay": 0.965,
        "rounds": 60,
        "mu": 0.0001,
    },
}


@dataclass(frozen=True)
class Trial:
    """One comparison: every arm on slices (2) or volumes (3), with one seed."""

    dimensions: int
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        """What its folder and pictures are called."""
        return f"{self.dimensions}d-seed{self.seed}"

    def study(self, arm: str) -> str:
        """A study's name."""
        return f"lgg-{self.dimensions}d-{arm}-{self.seed}"

    def result(self, arm: str) -> Path:
        """Where an arm's scores are kept; its pictures' masks lie beside them."""
        return self.folder / "results" / f"{arm}.json"


def write_site(data: Path, folder: Path, name: str, trial: Trial) -> Path:
    """A hospital's `site.toml`; the trial's seed decides which of its patients are held out."""
    path = folder / "site.toml"
    studies = ", ".join(f'"{trial.study(arm)}"' for arm in FEDERATED)
    path.write_text(SITE.format(name=name, data=data.resolve(), studies=studies, seed=trial.seed))
    return path


def write_hospitals(options: argparse.Namespace) -> None:
    """The hospitals, each with a key; their images are read once, for all seeds."""
    for trial in {trial.dimensions: trial for trial in trials(options)}.values():
        plan = Plan.load(write_plan(options, trial, "fedavg"))
        for name in (*TRAINING, TINY):
            folder = options.work / "hospitals" / name
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / f"{name}.key").exists():
                Signer.create(folder / f"{name}.key", name)
            load_data(Site.load(write_site(options.data, folder, name, trial)), plan, tasks.task(plan.task))


def hospitals(options: argparse.Namespace, trial: Trial) -> dict[str, Path]:
    """The hospitals of one trial: a ledger has one writer, and trials run at the same time."""
    sites = {}
    for name in (*TRAINING, TINY):
        folder = trial.folder / "hospitals" / name
        if not folder.exists():
            shutil.copytree(options.work / "hospitals" / name, folder)
        sites[name] = write_site(options.data, folder, name, trial)
    return sites


def write_plan(options: argparse.Namespace, trial: Trial, arm: str) -> Path:
    """The study of a federated arm, and the settings of the others."""
    path = trial.folder / "plans" / f"{arm}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    keys: dict[str, Any] = {**TASKS[trial.dimensions], "epochs": options.epochs, "silos": len(TRAINING)}
    if options.rounds:
        keys["rounds"] = options.rounds
    strategy = FEDERATED.get(arm, FEDERATED["fedavg"]).format(**keys)
    path.write_text(PLAN.format(name=trial.study(arm), seed=trial.seed, strategy=strategy, **keys))
    return path


def work_on(job: tuple[Trial, argparse.Namespace]) -> None:
    """Every arm of one trial that is not finished."""
    trial, options = job
    for name in ("flwr", "intramural"):  # tiny refuses in every round
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    sites = hospitals(options, trial)
    plan = Plan.load(write_plan(options, trial, "pooled"))
    data = {name: load_data(Site.load(sites[name]), plan, tasks.task(plan.task)) for name in TRAINING}
    for arm in ARMS:
        if not trial.result(arm).exists():
            work_on_arm(options, trial, arm, sites, data)


def work_on_arm(
    options: argparse.Namespace, trial: Trial, arm: str, sites: dict[str, Path], data: dict[str, Dataset]
) -> None:
    """One arm, from nothing to its scores, and its pictures' masks, on disk."""
    plan_path = write_plan(options, trial, arm)
    plan = Plan.load(plan_path)
    task, network = tasks.task(plan.task), tasks.network(plan)
    batches = {name: -(-len(d.train) // plan.training.batch_size) for name, d in data.items()}
    steps = options.epochs * batches.get(arm, sum(batches.values()))  # in a round
    folder, study = trial.folder / "studies" / arm, ""
    if arm in FEDERATED:
        network.load(federate(folder, plan_path, list(sites.values())))
        study = digest((folder / "agreement.json").read_bytes())
    else:
        parts = [data[name].train for name in (TRAINING if arm == "pooled" else (arm,))]
        network.load(train(plan, arm, parts, steps))
    scores, shown = {}, {}
    for name, d in data.items():
        local_norm.recall(sites[name].parent / "work" / "local" / study, network, plan.rounds, train=False)
        dice = training.evaluate(network, task, d.held_out, wanted=["dice"])["dice"]
        scores[name] = {"patients": len(d.held_out), "dice": dice}
        shown |= {f"{name} {what}": picture for what, picture in _pictures(network, task, d.held_out).items()}
    result = trial.result(arm)
    result.parent.mkdir(exist_ok=True)
    np.savez_compressed(result.with_suffix(".npz"), **shown)
    about = {"dimensions": trial.dimensions, "arm": arm, "seed": trial.seed, "steps": steps * plan.rounds}
    result.write_text(json.dumps({**about, "scores": scores}))
    mean = statistics.mean(score["dice"] for score in scores.values())
    print(f"{trial.name} {arm}: mean Dice {mean:.3f}", flush=True)


def _pictures(network: FlatNetwork, task: tasks.Task, held_out: Prepared) -> dict[str, np.ndarray]:
    """Of the patient whose tumour is the median one, the slice with most of it: image, mask by hand, mask predicted."""
    cases = held_out.take(np.arange(len(held_out)))
    case = sorted(cases, key=_drawn)[len(cases) // 2]
    assert case.mask is not None
    slice_ = int((case.mask > 0).sum((0, 1)).argmax())
    found = {"image": np.asarray(case.image)[0], "by hand": case.mask, "predicted": task.predict(network.module, case)}
    # Prepared cases lie in RAS; radiologists want the front up and the patient's right at the left.
    return {what: volume[::-1, ::-1, slice_].T for what, volume in found.items()}


def _drawn(case: Case) -> int:
    assert case.mask is not None
    return int((case.mask > 0).sum())


def trials(options: argparse.Namespace) -> list[Trial]:
    """Every trial: slices before volumes, one seed after the other."""
    pairs = itertools.product(options.dimensions, options.seeds)
    return [Trial(dimensions, seed, options.work / f"{dimensions}d-seed{seed}") for dimensions, seed in pairs]


def write_pictures(trial: Trial, path: Path) -> None:
    """A row for each hospital: the image, the tumour as drawn (green), as each arm on all data outlines it (red)."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    paths = {arm: trial.result(arm).with_suffix(".npz") for arm in (*FEDERATED, "pooled")}
    masks = {arm: np.load(path) for arm, path in paths.items() if path.exists()}
    if not masks:
        return
    titles = ["image", "by hand", *masks]
    shape = (len(TRAINING), len(titles))
    figure, axes = plt.subplots(*shape, figsize=(2 * shape[1], 2.2 * shape[0]), squeeze=False)
    for row, hospital in zip(axes, TRAINING, strict=True):
        drawn = next(iter(masks.values()))
        outlines = {"by hand": drawn[f"{hospital} by hand"]}
        outlines |= {arm: found[f"{hospital} predicted"] for arm, found in masks.items()}
        for axis, title in zip(row, titles, strict=True):
            axis.imshow(drawn[f"{hospital} image"], cmap="gray")
            if title in outlines and outlines[title].any():
                axis.contour(outlines[title] > 0, [0.5], colors="lime" if title == "by hand" else "red", linewidths=1)
            axis.set(title=title, xticks=[], yticks=[])
        row[0].set_ylabel(hospital)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write_results(results: list[Path], out: Path | None) -> bool:
    """Write the CSV and the tables, if there is a folder for them.

    Returns:
        Whether every federation beats each alone and comes within 0.03 of pooled.
    """
    found = [json.loads(path.read_text()) for path in results]
    text = [
        "# Real brain MR of five hospitals: Dice of the outlined tumour, on each hospital's held-out patients",
        "",
        "Dice over a whole patient, in voxels of about 5 mm; mean over a hospital's held-out patients, then over the "
        f"four hospitals. `{TINY}` (one patient) refused by its own policy in every federated round. Written by "
        "`scripts/lgg_segmentation.py`.",
    ]
    met = []
    for dimensions in sorted({item["dimensions"] for item in found}):
        lines, good = _table([item for item in found if item["dimensions"] == dimensions])
        text += ["", f"## {'Slices (2-D)' if dimensions == 2 else 'Volumes (3-D)'}", "", *lines]
        met += good
    if out:
        out.mkdir(parents=True, exist_ok=True)
        with open(out / "lgg_segmentation.csv", "w", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["dimensions", "arm", "seed", "gradient_steps", "hospital", "held_out_patients", "dice"])
            for item in found:
                about = [item[key] for key in ("dimensions", "arm", "seed", "steps")]
                for hospital, score in item["scores"].items():
                    rows.writerow([*about, hospital, score["patients"], f"{score['dice']:.4f}"])
        (out / "lgg_segmentation.md").write_text("\n".join(text) + "\n")
    print("\n".join(text))
    return all(met)


def _table(found: list[dict[str, Any]]) -> tuple[list[str], list[bool]]:
    """The table of one dimension with what it says of each federation, and whether each meets both bars."""
    seeds = sorted(seed for seed in {item["seed"] for item in found} if _complete(found, seed))
    if not seeds:
        return ["No seed has all its arms yet."], [False]
    patients = [sum(s["patients"] for s in _of(found, "pooled", seed)["scores"].values()) for seed in seeds]
    split = f"Seeds {', '.join(map(str, seeds))}, each with another split of the patients"
    if len(seeds) == 1:
        split = f"Seed {seeds[0]} only, one split of the patients"
    lines = [
        f"{split} ({', '.join(map(str, patients))} held out).",
        "",
        f"| trained on | gradient steps | {' | '.join(TRAINING)} | mean | sd over seeds |",
        "|---|---|" + "---|" * (len(TRAINING) + 2),
    ]
    means: dict[str, float] = {}
    for name in (*TRAINING, *FEDERATED, "pooled"):
        mine = [_of(found, name, seed) for seed in seeds]
        each = [statistics.mean(item["scores"][h]["dice"] for item in mine) for h in TRAINING]
        per_seed = [statistics.mean(item["scores"][h]["dice"] for h in TRAINING) for item in mine]
        means[name] = statistics.mean(per_seed)
        spread = f"{statistics.stdev(per_seed):.3f}" if len(per_seed) > 1 else "-"
        steps = statistics.mean(item["steps"] for item in mine)
        cells = " | ".join(f"{dice:.3f}" for dice in each)
        label = f"{name} alone" if name in TRAINING else name
        lines.append(f"| {label} | {steps:.0f} | {cells} | {means[name]:.3f} | {spread} |")
    best = max(means[name] for name in TRAINING)
    met, told = [], []
    for name in FEDERATED:
        above, within = means[name] > best, means["pooled"] - means[name] <= WITHIN
        told.append(
            f"- {name}: {means[name] - best:+.3f} to the best hospital alone ({'met' if above else 'missed'}), "
            f"{means[name] - means['pooled']:+.3f} to pooled (bar {-WITHIN}: {'met' if within else 'missed'})"
        )
        met.append(above and within)
    return [*lines, "", *told], met


def _of(found: list[dict[str, Any]], arm: str, seed: int) -> dict[str, Any]:
    return next(item for item in found if (item["arm"], item["seed"]) == (arm, seed))


def _complete(found: list[dict[str, Any]], seed: int) -> bool:
    return {item["arm"] for item in found if item["seed"] == seed} == set(ARMS)


def main() -> int:
    """Run every arm that is not done yet, and write results and pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the five hospitals' folders; only read")
    parser.add_argument(
        "--work", type=Path, default=Path("lgg-segmentation"), help="sites, studies, pictures (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="folder of the tables (default: scripts/results of a whole run)")
    parser.add_argument("--dimensions", type=int, nargs="+", default=[2, 3], choices=[2, 3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--rounds", type=at_least(1), help="default: 90 of slices, 60 of volumes")
    parser.add_argument("--epochs", type=at_least(1), default=1, help="local epochs in a round (default: 1)")
    parser.add_argument("--workers", type=at_least(1), default=2, help="trials at the same time (default: 2)")
    parser.add_argument("--only-write", action="store_true", help="train nothing; write what is finished")
    options = parser.parse_args()
    whole = at_default(parser, options, "dimensions", "seeds", "rounds", "epochs")
    if not (options.data / "north" / "dicom" / "SEG").is_dir():
        print(
            f"error: {options.data}: does not hold the five hospitals (north/dicom/SEG is missing)",
            file=sys.stderr,
        )
        return 1
    if not options.only_write:
        write_hospitals(options)
        jobs = [(trial, options) for trial in trials(options)]
        with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
            pool.map(work_on, jobs, chunksize=1)
    for trial in trials(options):
        write_pictures(trial, options.work / "pictures" / f"{trial.name}.png")
    results = [path for trial in trials(options) for arm in ARMS if (path := trial.result(arm)).exists()]
    return 0 if write_results(results, options.out or (RESULTS if whole else None)) else 1


if __name__ == "__main__":
    raise SystemExit(main())
