"""`intramural-aggregator`: the commands of the research coordinator."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from models.console import FAILED, OK, human_bytes, progress, run_command, show_json, show_table

if TYPE_CHECKING:
    from aggregator.history import History

# Flower takes a second to import, so a command imports what it needs when it runs.


def main(argv: Sequence[str] | None = None) -> int:
    """Run `intramural-aggregator`."""
    parser = argparse.ArgumentParser(
        prog="intramural-aggregator", description="The coordinator's side of a federated study."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    create = commands.add_parser("create", help="make a study folder from study.toml; never overwrites")
    create.add_argument("plan", type=Path, help="study.toml")
    create.add_argument("folder", type=Path, help="a new or empty folder")
    create.add_argument("--initial", type=Path, help="the first model (safetensors), where torch is not installed")
    create.set_defaults(run=_create)

    run = commands.add_parser("run", help="run a study to its end, or go on with it after the last combined round")
    run.add_argument("study", type=Path, help="study folder")
    run.add_argument(
        "--local", type=Path, nargs="+", required=True, metavar="SITE.toml", help="hospitals on this machine"
    )
    _json(run)
    run.set_defaults(run=_run)

    show = commands.add_parser("show", help="show what was planned and what happened, round by round")
    show.add_argument("study", type=Path, help="study folder")
    _json(show)
    show.set_defaults(run=_show)
    return run_command(parser, argv)


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _create(arguments: argparse.Namespace) -> int:
    from aggregator.study import Study

    with Study.create(arguments.plan, arguments.folder, arguments.initial) as study:
        # What a hospital names in policy.studies to approve exactly this study.
        print(f"{study.plan.name}@{study.digest}")
    return OK


def _run(arguments: argparse.Namespace) -> int:
    from aggregator import LocalGrid, Study, run

    with Study.open(arguments.study) as study, LocalGrid(arguments.local) as grid, progress() as report:
        rounds = study.plan.rounds
        outcome = run(study, grid, lambda history: report("rounds", len(history.rounds) - 1, rounds))
    if arguments.json:
        show_json(
            {
                "study": outcome.study,
                "model": outcome.digest,
                "rounds": [r.as_json() for r in outcome.history.rounds],
            }
        )
    else:
        show_history(outcome.history)
        print(f"model {outcome.model}\nsha256 {outcome.digest}")
    return OK if any(not item.void for item in outcome.history.rounds[1:]) else FAILED


def _show(arguments: argparse.Namespace) -> int:
    from aggregator.history import read_history
    from models.errors import ConfigError
    from models.exchange.documents import Agreement
    from models.ledger import Verifier, read

    path = arguments.study / "agreement.json"
    if not path.is_file():
        raise ConfigError(f"{arguments.study}: is no study folder (it has no agreement.json)", "create the study first")
    agreement = Agreement.decode(path.read_bytes())
    opened = read(arguments.study / "ledger", Verifier.parse(agreement.coordinator_key))
    history = read_history(opened.records, agreement.plan)
    if arguments.json:
        show_json(
            {
                "study": agreement.study,
                "plan": agreement.plan.model_dump(mode="json"),
                "rounds": [item.as_json() for item in history.rounds],
            }
        )
        return OK
    plan = agreement.plan
    print(f"{plan.name}@{agreement.study}\n{plan.purpose}")
    print(f"{plan.task.name} with {plan.task.network.name}, {plan.strategy.name}, {plan.rounds} rounds")
    show_history(history)
    return OK


def show_history(history: "History") -> None:
    """Print a study's rounds: each silo's AUC of each model, the means, who shared and how much."""
    metric = "auc" if "auc" in history.plan.metrics else history.plan.metrics[0]
    silos = history.silos
    columns = ("round", "loss", f"{metric} mean", *silos, "accepted", "refused", "shared", "model")
    rows = []
    for item in history.rounds:
        each = [_number(item.metrics.get(silo, {}).get(metric)) for silo in silos]
        refused = ", ".join(f"{silo}: {code}" for silo, code in sorted(item.refused.items()))
        accepted = "void" if item.void else len(item.accepted) if item.number else ""
        shared = human_bytes(item.nbytes) if item.number else ""
        means = _number(item.mean("loss")), _number(item.mean(metric))
        rows.append((item.number, *means, *each, accepted, refused, shared, item.model[:12]))
    show_table(
        f"{history.plan.name}: {metric} of each round's model on each hospital's held-out patients",
        columns,
        rows,
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    raise SystemExit(main())
