"""Which strategy, when hospitals differ? One data set made into hospitals, four strategies, several seeds, one page.

    python scripts/compare.py                                     make-believe patients, three to four CPU minutes
    python scripts/compare.py --site all/site.toml --study s.toml your own, where the policy allows the study by name

It makes hospitals whose mix of labels differs (`intramural-silo split --by labels`), runs FedAvg, FedProx, SCAFFOLD and
FedBN with every seed through the real exchange, and prints final metric, differences and intervals. Page, drawings and
the table for pandas are written below `--work`. Stopped and started again, it goes on where it was; a changed site, or
another one of the same name, wants another folder. The results of make-believe patients say that the toolkit works, and
nothing about medicine: scripts/results/compare.md.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aggregator.simulation import MADE_WITH, require_made_with
from aggregator.sweep import sweep
from aggregator.sweep.comparison import table
from models.canonical import digest
from models.console import FAILED, OK, above_zero, at_least, progress, run_command, show_table
from models.errors import ConfigError
from models.ledger.disk import publish
from models.plan import Plan
from silos.config import Site
from silos.phantom import write_hospital
from silos.split import split

STUDY = """
name = "compare"
purpose = "Find slices with a lesion in make-believe brain MR."
rounds = 6
min_silos = 2
metrics = ["loss", "auc"]

[task]
name = "classification"
classes = ["none", "lesion"]
modality = ["MR"]
size = [32, 32]
percentiles = [1.0, 99.0]
augment = false

[task.network]
name = "cnn"
arguments = { channels = [8, 16, 32] }

[training]
epochs = 3
batch_size = 8
optimizer = "sgd"
learning_rate = 0.05
"""

SWEEP = """
study = {study}
sites = [{sites}]
seeds = {seeds}
processes = {processes}

[[arms]]
strategy.name = "fedavg"

[[arms]]
strategy.name = "fedprox"
strategy.mu = 0.1

[[arms]]
label = "scaffold"
strategy.name = "scaffold"
weights = "equal"

[[arms]]
label = "fedavg, local norm (FedBN)"
strategy.name = "fedavg"
strategy.local_norm = true
"""


def write_patients(folder: Path) -> tuple[Path, Path]:
    """A make-believe data set, and a study on it."""
    site, study = folder / "all" / "site.toml", folder / "study.toml"
    if not site.exists():
        write_hospital(folder / "all", name="all", seed=1, patients=150, images=4, size=32, studies=["compare"])
        # Whoever simulates may look at groups that a real hospital would not tell of.
        site.write_text(site.read_text().replace("min_patients = 11", "min_patients = 6"))
    study.write_text(STUDY)
    return site, study


def origin(site: Path, alpha: float) -> dict[str, Any]:
    """What the hospitals are made from, as JSON values; a folder's name cannot tell it all."""
    labels = Site.load(site).data.labels
    return {
        "site": str(site.resolve()),
        "site.toml": digest(site.read_bytes()),
        "labels": labels and digest(labels.file.read_bytes()),
        "alpha": alpha,
    }


def run(options: argparse.Namespace) -> int:
    """Split, sweep, show."""
    if (options.site is None) != (options.study is None):
        raise ConfigError("--site, --study: one goes with the other", "give both, or neither")
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    site, study = (options.site, options.study.absolute()) if options.site else write_patients(work)
    name = f"{Site.load(site).name}-{options.into}-{options.alpha:g}"  # other hospitals are another comparison
    draft, parts, out = work / "draft", work / name / "hospitals", work / name
    made_with = origin(site, options.alpha)
    require_made_with(out, made_with)
    with progress() as report:
        if not parts.exists():
            shutil.rmtree(draft, ignore_errors=True)  # of a run that was killed
            made = split(
                site, draft, by="labels", into=options.into, alpha=options.alpha, seed=1,
                plan=Plan.load(study), progress=report,
            )  # fmt: skip
            out.mkdir(exist_ok=True)
            publish(out / MADE_WITH, json.dumps(made_with, indent=2).encode())
            draft.rename(parts)
            cells = [(part.name, part.training, part.held_out, *part.classes.values()) for part in made]
            show_table("hospitals", ("hospital", "to train on", "held out", *made[0].classes), cells)
        text = SWEEP.format(
            study=json.dumps(str(study)),
            sites=json.dumps(str(parts / "*" / "site.toml")),
            seeds=list(range(1, options.seeds + 1)),
            processes=options.processes,
        )
        (out / "sweep.toml").write_text(text)
        outcome = sweep(out / "sweep.toml", out, progress=report)
    if outcome.comparison is not None:
        columns, rows = table(outcome.comparison)
        show_table(f"{len(outcome.histories)} runs, {options.seeds} seeds", columns, rows)
    for failed, problem in {**outcome.incomplete, **outcome.failed}.items():
        print(f"{failed.arm.label}, seed {failed.seed}: {problem}", file=sys.stderr)
    print(out / "sweep.html")
    return FAILED if outcome.failed else OK


def main(argv: Sequence[str] | None = None) -> int:
    """Parse what is asked for, and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--site", type=Path, help="site.toml of a hospital that has all patients (default: a phantom)")
    parser.add_argument("--study", type=Path, help="study.toml, needed with --site")
    parser.add_argument("--into", type=at_least(1), default=5, help="hospitals (default: 5)")
    parser.add_argument(
        "--alpha", type=above_zero, default=0.5, help="the smaller, the more labels differ (default: 0.5)"
    )
    parser.add_argument("--seeds", type=at_least(1), default=5, help="default: 5")
    parser.add_argument("--processes", type=at_least(1), default=2, help="runs at the same time (default: 2)")
    parser.add_argument("--work", type=Path, default=Path("compare"), help="what is written (default: compare)")
    parser.set_defaults(run=run)
    return run_command(parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
