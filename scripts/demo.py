"""The demonstration: hospitals train one model under FedAvg and FedProx, and five ledgers agree on it.

    python scripts/demo.py                    four make-believe hospitals, written below demo/
    python scripts/demo.py --data DIR         every DIR/*/site.toml, under every DIR/study*.toml

It prints a table per study (each round's model on each hospital's held-out patients, who shared, how much),
writes the learning curves to demo/curves.png, and ends by reconciling the aggregator's ledger with each
hospital's. Exit code 3 if any two disagree.
"""

import argparse
import logging
import shutil
import sys
import time
from pathlib import Path

import matplotlib as mpl

from aggregator import LocalGrid, Study, run
from aggregator.audit import reconcile, verify
from aggregator.cli import show_history
from aggregator.history import History
from models.console import FAILED, OK, UNVERIFIED, progress, show_table
from models.errors import IntramuralError
from silos.config import Site

HOSPITALS = ("north", "east", "south", "west")
CONFIGS = Path(__file__).parent.parent / "configs"


def write_phantoms(folder: Path) -> None:
    """Four make-believe hospitals and the two studies they are asked to join."""
    from silos.phantom import write_hospital

    for style, name in enumerate(HOSPITALS):
        write_hospital(folder / name, name=name, seed=1, style=style, studies=["demo-fedavg", "demo-fedprox"])
    for plan in sorted(CONFIGS.glob("study*.toml")):
        shutil.copy(plan, folder)


def train(plan: Path, sites: list[Path], folder: Path) -> tuple[History, bool]:
    """Run one study to its end; its history, and whether all ledgers agree."""
    study = Study.open(folder) if folder.exists() else Study.create(plan, folder)
    with study, LocalGrid(sites) as grid, progress() as report:
        outcome = run(study, grid, lambda h: report(f"{plan.stem}: rounds", len(h.rounds) - 1, h.plan.rounds))
    show_history(outcome.history)
    ledgers = [Site.load(site).run.work / "ledger" for site in sites]
    pairs = [reconcile(folder / "ledger", ledger) for ledger in ledgers]
    verdicts = [verify(ledger) for ledger in (folder / "ledger", *ledgers)]
    rows = [
        (f"{p.aggregator} - {p.silo}", p.orders, p.replies, len(p.pending), "yes" if p.closed else "no", v.size,
         "agree" if p.ok and v.ok else "DISAGREE: " + "; ".join(p.problems + v.problems))
        for p, v in zip(pairs, verdicts[1:], strict=True)
    ]  # fmt: skip
    columns = ("pair", "orders", "replies", "pending", "closed", "lines at the hospital", "the two ledgers")
    show_table(f"reconcile {outcome.history.plan.name}, aggregator's ledger: {verdicts[0].size} lines", columns, rows)
    return outcome.history, all(p.ok for p in pairs) and all(v.ok for v in verdicts)


def draw(histories: list[History], path: Path) -> None:
    """Learning curves: each hospital's AUC and the mean, one panel per study."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(histories), figsize=(5 * len(histories), 4), sharey=True, squeeze=False)
    for axis, history in zip(axes[0], histories, strict=True):
        for silo in history.silos:
            points = [(r.number, r.metrics[silo]["auc"]) for r in history.rounds if "auc" in r.metrics.get(silo, {})]
            axis.plot(*zip(*points, strict=True), marker=".", alpha=0.6, label=silo) if points else None
        means = [(r.number, r.mean("auc")) for r in history.rounds if r.mean("auc") is not None]
        axis.plot(*zip(*means, strict=True), color="black", linewidth=2, label="mean") if means else None
        axis.set(title=history.plan.name, xlabel="round", ylabel="AUC on held-out patients", ylim=(0.3, 1.02))
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> int:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with study*.toml and */site.toml (default: phantoms)")
    parser.add_argument("--work", type=Path, default=Path("demo"), help="what the demonstration writes (default: demo)")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("flwr").setLevel(logging.ERROR)
    started = time.monotonic()
    data = options.data or options.work / "hospitals"
    try:
        if options.data is None and not data.exists():
            write_phantoms(data)
        plans, sites = sorted(data.glob("study*.toml")), sorted(data.glob("*/site.toml"))
        if not plans or not sites:
            print(f"error: {data}: must hold study*.toml and */site.toml", file=sys.stderr)
            print("  do: write them as configs/study.toml and configs/sites/north.toml show", file=sys.stderr)
            return FAILED
        results = [train(plan, sites, options.work / "studies" / plan.stem) for plan in plans]
    except IntramuralError as error:
        print(f"error: {error}\n  do: {error.hint}", file=sys.stderr)
        return FAILED
    if any("auc" in history.plan.metrics for history, _ in results):
        draw([history for history, _ in results], options.work / "curves.png")
        print(f"learning curves: {options.work / 'curves.png'}")
    agree = all(agreed for _, agreed in results)
    print(f"all ledgers agree: {'yes' if agree else 'NO'}; {time.monotonic() - started:.0f} s")
    return OK if agree else UNVERIFIED


if __name__ == "__main__":
    raise SystemExit(main())
