"""`intramural-aggregator`: the commands of the research coordinator."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from models.console import (
    FAILED,
    OK,
    Report,
    human_bytes,
    log_service,
    progress,
    run_command,
    show_json,
    show_table,
    stop_signal,
)

if TYPE_CHECKING:
    from aggregator import LocalGrid, RayGrid
    from aggregator.history import History
    from aggregator.service.home import Home
    from models.exchange.documents import Agreement

# Flower takes a second to import, so a command imports what it needs when it runs.


def main(argv: Sequence[str] | None = None) -> int:
    """Run `intramural-aggregator`."""
    parser = argparse.ArgumentParser(
        prog="intramural-aggregator", description="The coordinator's side of a federated study."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    check = commands.add_parser("check", help="see whether study.toml is a plan, and what it says with all defaults")
    check.add_argument("plan", type=Path, help="study.toml")
    _json(check)
    check.set_defaults(run=_check)

    create = commands.add_parser("create", help="make a study folder from study.toml; never overwrites")
    create.add_argument("plan", type=Path, help="study.toml")
    create.add_argument("folder", type=Path, help="a new or empty folder")
    create.add_argument("--initial", type=Path, help="the first model (safetensors), where torch is not installed")
    create.add_argument("--service", type=Path, metavar="HOME", help="sign its orders with this service's key")
    create.set_defaults(run=_create)

    run = commands.add_parser("run", help="run a study to its end, or go on with it after the last combined round")
    run.add_argument("study", type=Path, help="study folder")
    where = run.add_mutually_exclusive_group(required=True)
    where.add_argument("--local", type=Path, nargs="+", metavar="SITE.toml", help="with hospitals on this machine")
    where.add_argument("--service", type=Path, metavar="HOME", help="over the network, by the service of this folder")
    run.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="of --local: this process, or a Ray cluster"
    )
    run.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="with --local and --engine local: share the hospitals out to N processes of one thread each, with the "
        "same result; pays on N idle cores when a hospital trains for seconds, not milliseconds (default: 1, no other "
        "process)",
    )
    run.add_argument(
        "--batched",
        action="store_true",
        help="with --local: train all hospitals in one computation, for networks under 100,000 parameters; the updates "
        "then differ in their last digits from the usual ones",
    )
    _log(run, "with --local: show")
    run.add_argument(
        "--end", action="store_true", help="train no more: close the study with the model that it has, to be released"
    )
    run.add_argument("--detach", action="store_true", help="over the network: do not wait for the end")
    _json(run)
    run.set_defaults(run=_run)

    simulate = commands.add_parser("simulate", help="simulate a study as simulation.toml says, faults included")
    simulate.add_argument("simulation", type=Path, help="simulation.toml")
    _log(simulate, "show")
    _json(simulate)
    simulate.set_defaults(run=_simulate)

    survey = commands.add_parser("survey", help="ask, before a study starts, what each hospital could train on")
    survey.add_argument("study", type=Path, help="study folder")
    whom = survey.add_mutually_exclusive_group()
    whom.add_argument("--local", type=Path, nargs="+", metavar="SITE.toml", help="hospitals on this machine")
    whom.add_argument("--service", type=Path, metavar="HOME", help="those connected to the service of this folder")
    _json(survey)
    survey.set_defaults(run=_survey)

    sweep = commands.add_parser("sweep", help="run a study with several strategies, parameters and seeds, and compare")
    sweep.add_argument("sweep", type=Path, help="sweep.toml")
    sweep.add_argument("out", type=Path, help="folder of the runs and results; what is in it is not run again")
    _json(sweep)
    sweep.set_defaults(run=_sweep)

    stop = commands.add_parser("stop", help="stop a study that runs over the network; `run` goes on with it")
    stop.add_argument("study", type=Path, help="study folder")
    stop.add_argument("--service", type=Path, metavar="HOME", required=True, help="service folder")
    _json(stop)
    stop.set_defaults(run=_stop)

    show = commands.add_parser("show", help="show what was planned and what happened, round by round")
    show.add_argument("study", type=Path, help="study folder")
    _json(show)
    show.set_defaults(run=_show)

    release = commands.add_parser(
        "release", help="write a closed study's model with its card and proof, as MONAI bundle"
    )
    release.add_argument("study", type=Path, help="study folder")
    release.add_argument("out", type=Path, help="a new or empty folder")
    release.add_argument("--license", type=Path, help="text under which the model is handed out")
    release.add_argument("--exact-counts", action="store_true", help="hand on counts that hospitals told exactly")
    _json(release)
    release.set_defaults(run=_release)

    init = commands.add_parser("init", help="make a service folder: certificates, keys, and the file for the hospitals")
    init.add_argument("home", type=Path, help="a new or empty folder")
    init.add_argument("--address", metavar="HOST:PORT", help="what hospitals dial; needed for a new folder")
    init.add_argument("--listen", metavar="HOST:PORT", help="where to listen (default: every interface, that port)")
    init.add_argument("--also", nargs="+", default=[], metavar="NAME", help="more names and addresses of this machine")
    init.add_argument("--name", default="aggregator", help="signs the orders; `coordinator` of study.toml")
    init.add_argument("--require-certificates", action="store_true", help="hospitals must show a client certificate")
    init.add_argument("--renew", action="store_true", help="only make the service's certificate anew")
    init.set_defaults(run=_init)

    invitation = commands.add_parser("invitation", help="show the file for the hospitals, and its fingerprint")
    invitation.add_argument("home", type=Path, help="service folder")
    invitation.set_defaults(run=_invitation)

    serve = commands.add_parser("serve", help="serve the hospitals until stopped")
    serve.add_argument("home", type=Path, help="service folder")
    serve.add_argument("--log-json", action="store_true", help="log as JSON lines")
    serve.set_defaults(run=_serve)

    admit = commands.add_parser("admit", help="let hospitals in, from their enrolment files")
    admit.add_argument("home", type=Path, help="service folder")
    admit.add_argument("enrolment", type=Path, nargs="+", help="a hospital's NAME.enrolment.json")
    admit.add_argument("--fingerprint", nargs="+", help="as each hospital read it out; another one is refused")
    admit.set_defaults(run=_admit)

    dismiss = commands.add_parser("dismiss", help="let a hospital in no more")
    dismiss.add_argument("home", type=Path, help="service folder")
    dismiss.add_argument("name", help="the hospital")
    dismiss.set_defaults(run=_dismiss)

    status = commands.add_parser("status", help="who is connected, and how far the studies are")
    status.add_argument("home", type=Path, help="service folder")
    _json(status)
    status.set_defaults(run=_status)
    return run_command(parser, argv)


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _log(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--log",
        action="append",
        default=[],
        metavar="KIND:WHERE",
        help=f"{what} the numbers in tensorboard:FOLDER or mlflow:URI too; may be repeated",
    )


def _check(arguments: argparse.Namespace) -> int:
    from models.plan import Plan
    from models.settings import every_key, flat

    plan = every_key(Plan.load(arguments.plan))
    print("networks, their arguments and augmentations are looked at by `create`", file=sys.stderr)  # it loads torch
    if arguments.json:
        show_json(plan)
        return OK
    show_table(f"{arguments.plan}: is a plan", ("key", "value"), flat(plan))
    return OK


def _create(arguments: argparse.Namespace) -> int:
    from aggregator.service.home import Home
    from aggregator.study import Study

    key = Home.open(arguments.service).key_path if arguments.service else None
    with Study.create(arguments.plan, arguments.folder, arguments.initial, key) as study:
        # What a hospital names in policy.studies to approve exactly this study.
        print(f"{study.plan.name}@{study.digest}")
    return OK


def _run(arguments: argparse.Namespace) -> int:
    run = _run_here if arguments.local else _run_there
    run(arguments)
    return OK if arguments.detach else _show_end(arguments.study, arguments.json)


def _show_end(folder: Path, json: bool) -> int:
    from aggregator.history import read_study

    agreement, history = read_study(folder)
    if json:
        show_json(_as_json(agreement, history))
    else:
        show_history(history)
        last = next(item.number for item in reversed(history.rounds) if not item.void)
        print(f"model {folder / 'models' / f'{last:03}.safetensors'}\nsha256 {history.rounds[-1].model}")
    return OK if any(not item.void for item in history.rounds[1:]) else FAILED


def _simulate(arguments: argparse.Namespace) -> int:
    from aggregator import Simulation, simulate

    simulation = Simulation.load(arguments.simulation)
    with progress() as report:
        simulate(simulation, _rounds(report), arguments.log)
    return _show_end(simulation.folder / "study", arguments.json)


def _run_here(arguments: argparse.Namespace) -> None:
    import aggregator
    from aggregator import Study, run
    from aggregator.loggers import loggers
    from models.errors import ConfigError

    sites, workers = arguments.local, arguments.workers
    if arguments.detach:
        raise ConfigError("--detach: goes with --service only", "leave it out; a local run ends with this command")
    if arguments.engine == "ray":
        if arguments.batched:
            raise ConfigError("--batched: all train in this process", "take --engine local, or leave it out")
        if workers != 1:
            raise ConfigError(
                "--workers: goes with --engine local only", "leave it out; the cluster says how many workers there are"
            )
        engine: LocalGrid | RayGrid = aggregator.RayGrid(sites)
    else:
        engine = aggregator.LocalGrid(sites, workers, batched=arguments.batched)
    with Study.open(arguments.study) as study, engine as grid, progress() as report:
        others = sorted(silo.name for silo in grid.roster.values() if study.enrolled.get(silo.name) != silo.vkey)
        if others and study.position.closed:
            raise ConfigError(
                f"{arguments.study}: the study is over, and {', '.join(others)} took no part in it",
                "name the hospitals that did, or create a new study",
            )
        run(study, grid, loggers(study, arguments.log, _rounds(report)), end=arguments.end)


def _rounds(report: Report) -> "Callable[[History], None]":
    """Shows how many rounds are over, while there are more."""

    def on_round(history: "History") -> None:
        if not history.closed:
            report("rounds", len(history.rounds) - 1, history.plan.rounds)

    return on_round


def _run_there(arguments: argparse.Namespace) -> None:
    from aggregator.service.home import Home
    from aggregator.service.studies import follow, start
    from models.errors import ConfigError

    for option, given, why in (
        ("--log", arguments.log, "the numbers stand in the study's metrics.jsonl"),
        ("--batched", arguments.batched, "hospitals train each for itself"),
        ("--workers", arguments.workers != 1, "hospitals train each on its own machine"),
        ("--engine", arguments.engine != "local", "hospitals train each on its own machine"),
    ):
        if given:
            raise ConfigError(f"{option}: goes with --local only", f"leave it out; {why}")
    home = Home.open(arguments.service)
    start(home, arguments.study, end=arguments.end)
    if not arguments.detach:
        with progress() as report:
            follow(home, arguments.study, report)


def _survey(arguments: argparse.Namespace) -> int:
    from aggregator.surveys import read_surveys, rows
    from models.exchange.documents import Survey

    if arguments.local:
        from aggregator import LocalGrid, Study, survey

        with Study.open(arguments.study) as study, LocalGrid(arguments.local) as grid:
            survey(study, grid)
    elif arguments.service:
        from aggregator.service.home import Home
        from aggregator.service.studies import follow_survey, start

        home = Home.open(arguments.service)
        start(home, arguments.study, survey=True)
        follow_survey(home, arguments.study)
    agreement, answers = read_surveys(arguments.study)
    if arguments.json:
        told = {name: a.model_dump(mode="json") if isinstance(a, Survey) else a for name, a in answers.items()}
        show_json({"study": agreement.study, "hospitals": told})
    else:
        title = f"{agreement.plan.name}: what each hospital could train on, in bands (rows not listed: hidden or empty)"
        show_table(title, ("what", "", *answers), rows(agreement, answers))
        for name, answer in answers.items():
            if not isinstance(answer, Survey):
                print(f"{name} tells nothing: {answer}")
    return OK if any(isinstance(answer, Survey) for answer in answers.values()) else FAILED


def _sweep(arguments: argparse.Namespace) -> int:
    from aggregator.sweep import Run, sweep
    from aggregator.sweep.comparison import as_json, table

    def told(run: Run, problem: str) -> None:
        print(f"{run.arm.label}, seed {run.seed}: {problem or 'done'}", file=sys.stderr)

    with progress() as report:
        outcome = sweep(arguments.sweep, arguments.out, told, report)
    if arguments.json:
        counts = {"incomplete": len(outcome.incomplete), "failed": len(outcome.failed)}
        show_json({"arms": as_json(outcome.comparison), **counts, "files": outcome.files})
    else:
        if outcome.comparison:
            show_table(str(arguments.sweep), *table(outcome.comparison))
        for run, what in outcome.incomplete.items():
            print(f"{run.arm.label}, seed {run.seed}: {what}", file=sys.stderr)
        print("\n".join(map(str, outcome.files)))
    return FAILED if outcome.failed or not outcome.comparison else OK


def _stop(arguments: argparse.Namespace) -> int:
    from aggregator.service.home import Home
    from aggregator.service.studies import stop

    study = stop(Home.open(arguments.service), arguments.study)
    if arguments.json:
        show_json(study)
    else:
        print(f"{study['name']} is stopped after round {study['round']} of {study['rounds']}")
    return OK


def _show(arguments: argparse.Namespace) -> int:
    from aggregator.history import read_study

    agreement, history = read_study(arguments.study)
    if arguments.json:
        show_json(_as_json(agreement, history))
        return OK
    plan = agreement.plan
    print(f"{plan.name}@{agreement.study}\n{plan.purpose}")
    print(f"{plan.task.name} with {plan.task.network.name}, {plan.strategy}, {plan.rounds} rounds")
    done = len(history.rounds) - 1
    print("the study is over" if history.closed else f"{done} of {plan.rounds} rounds are over")
    show_history(history)
    return OK


def _release(arguments: argparse.Namespace) -> int:
    from aggregator.release import release

    told = release(arguments.study, arguments.out, licence=arguments.license, exact_counts=arguments.exact_counts)
    if arguments.json:
        show_json({"study": told.agreement.study, "round": told.round, "model": told.model, "out": arguments.out})
    else:
        print(f"{arguments.out}: the model of round {told.round} of {told.plan.name}\nsha256 {told.model}")
        print(f"Anybody can check it: intramural-audit check {arguments.out} --key {told.agreement.coordinator_key}")
    return OK


def _as_json(agreement: "Agreement", history: "History") -> dict[str, object]:
    return {
        "study": agreement.study,
        "plan": agreement.plan.model_dump(mode="json"),
        "closed": history.closed,
        "model": history.rounds[-1].model,
        "rounds": [item.as_json() for item in history.rounds],
    }


def _init(arguments: argparse.Namespace) -> int:
    from aggregator.service.home import Home
    from models.errors import ConfigError

    if arguments.renew:
        home = Home.renew(arguments.home, arguments.also)
        print(f"certified until {home.expires:%Y-%m-%d}")
    elif arguments.address is None:
        raise ConfigError("--address: is missing", "say what hospitals dial: --address HOST:PORT")
    else:
        home = Home.create(
            arguments.home,
            address=arguments.address,
            listen=arguments.listen,
            names=arguments.also,
            name=arguments.name,
            require_certificates=arguments.require_certificates,
        )
    return _show_invitation(home)


def _invitation(arguments: argparse.Namespace) -> int:
    from aggregator.service.home import Home

    return _show_invitation(Home.open(arguments.home))


def _show_invitation(home: "Home") -> int:
    print(f"{home.invitation_path}\nfingerprint {home.invitation.fingerprint}")
    print("Give this file to each hospital; both read the fingerprint out over the telephone.")
    return OK


def _serve(arguments: argparse.Namespace) -> int:
    from aggregator.service.home import Home
    from aggregator.service.serve import serve

    log_service(json_lines=arguments.log_json)
    serve(Home.open(arguments.home), stop_signal())
    return OK


def _admit(arguments: argparse.Namespace) -> int:
    from aggregator.service.admission import admit
    from aggregator.service.home import Home
    from models.errors import ConfigError

    home, read_out = Home.open(arguments.home), arguments.fingerprint
    if read_out and len(read_out) != len(arguments.enrolment):
        raise ConfigError(
            f"--fingerprint: {len(read_out)} for {len(arguments.enrolment)} files", "give one for each, in their order"
        )
    for path, fingerprint in zip(arguments.enrolment, read_out or [None] * len(arguments.enrolment), strict=True):
        enrolment = admit(home, path, fingerprint)
        print(f"{enrolment.name} is admitted\nfingerprint {enrolment.fingerprint}")
    if not read_out:
        print(f"Have each read its fingerprint out; if one differs: intramural-aggregator dismiss {home.folder} NAME")
    print(f"{home.admitted}/NAME.crt is the client certificate of each, to be sent where one is required.")
    return OK


def _dismiss(arguments: argparse.Namespace) -> int:
    from aggregator.service.admission import dismiss
    from aggregator.service.home import Home

    dismiss(Home.open(arguments.home), arguments.name)
    print(f"{arguments.name} is dismissed")
    return OK


def _status(arguments: argparse.Namespace) -> int:
    from aggregator.service.home import Home
    from aggregator.service.studies import status

    found = status(Home.open(arguments.home))
    if arguments.json:
        show_json(found)
        return OK
    running = "runs" if found["serving"] else "does not run"
    show_table(
        f"{arguments.home}: the service {running}",
        ("hospital", "node", "status", "since (UTC)"),
        [(h["name"], h["node"], h["status"], h["since"]) for h in found["hospitals"]],
    )
    rows = [
        (
            s["name"],
            s["state"],
            f"{s['round']} of {s['rounds']}",
            s["accepted"],
            s["refused"],
            human_bytes(s["bytes"]),
            s["problem"],
        )
        for s in found["studies"]
    ]
    show_table("studies", ("study", "state", "round", "accepted", "refused", "shared", "problem"), rows)
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
        shared = human_bytes(item.nbytes) if item.number or item.nbytes else ""
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
