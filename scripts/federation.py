"""A federation for real, on this machine: every party a process of its own, TLS between them, and the same bits.

    python scripts/federation.py                 four hospitals with real brain MR where that data is present
                                                 (INTRAMURAL_LGG, or ../shared/data/lgg), else make-believe ones
    python scripts/federation.py --phantoms      four make-believe hospitals; of volumes with
                                                 --plan configs/segmentation.toml
    python scripts/federation.py --data DIR --plan STUDY.toml     every DIR/*/site.toml, on copies of them

One coordinator's service and one service per hospital are set up with the commands that people use, from
`init` to `run`. Then the same study is simulated in this process, and the models of both are compared round by
round. Exit code 1 if any digest differs, 3 if any two ledgers disagree.
"""

import argparse
import contextlib
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from aggregator import LocalGrid, Study, run
from aggregator.audit import reconcile
from aggregator.history import History, read_study
from models.console import FAILED, OK, UNVERIFIED, show_table
from models.ledger import Signer
from models.plan import Plan
from silos.config import Site

HOSPITALS = ("north", "east", "south", "west")
ROOT = Path(__file__).parent.parent
PLAN = ROOT / "configs" / "study.toml"
LGG = Path(os.environ.get("INTRAMURAL_LGG", ROOT.parent / "shared" / "data" / "lgg"))


class Federation:
    """The processes of a coordinator and its hospitals, below one folder.

    Args:
        folder: New; holds `service/`, `hospitals/`, `logs/` and `study/`.
        sites: `site.toml` of each hospital, below `hospitals/`.
    """

    def __init__(self, folder: Path, sites: Sequence[Path]) -> None:
        self.folder, self.home, self.study = folder, folder / "service", folder / "study"
        self.sites = {Site.load(site).name: site for site in sites}
        self.services: dict[str, subprocess.Popen[bytes]] = {}
        (folder / "logs").mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "Federation":
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self.services)[::-1]:
            self.stop(name)

    def set_up(self, plan: Path, *init: str) -> None:
        """All that people do before the first round: keys, enrolment, admission, the study, its approval."""
        port, inner = free_port(), free_port()
        self.ask(
            "aggregator", "init", self.home, "--address", f"localhost:{port}", "--listen", f"127.0.0.1:{port}", *init
        )
        replace(self.home / "service.toml", "superlink_port = .*", f"superlink_port = {inner}")
        for name, site in self.sites.items():
            shutil.copy(self.home / "coordinator.json", site.parent)
            replace(site, r"\[run\]", '[run]\ncoordinator = "coordinator.json"')
            self.ask("silo", "join", site)
            self.ask("aggregator", "admit", self.home, Site.load(site).run.work / f"{name}.enrolment.json")
        self.ask("aggregator", "create", plan, self.study, "--service", self.home)
        for site in self.sites.values():
            self.ask("silo", "approve", site, self.study / "agreement.json")

    def start(self, name: str) -> None:
        """Start a service: "aggregator", or a hospital's by its name."""
        command = ["aggregator", "serve", self.home] if name == "aggregator" else ["silo", "run", self.sites[name]]
        log = open(self.folder / "logs" / f"{name}.log", "ab")  # noqa: SIM115 - the process keeps it
        with log:
            self.services[name] = subprocess.Popen(program(*command), stdout=log, stderr=log, start_new_session=True)

    def stop(self, name: str, number: int = signal.SIGTERM) -> None:
        """End a service, and wait until it has."""
        service = self.services.pop(name)
        if service.poll() is None:
            service.send_signal(number)
        service.wait(60)

    def ask(self, party: str, *words: object, code: int = OK) -> str:
        """A command that must come to an end; what it prints."""
        done = subprocess.run(program(party, *words), capture_output=True, text=True, timeout=1800, check=False)
        if done.returncode != code:
            raise SystemExit(f"intramural-{party} {words[0]}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def status(self) -> dict[str, Any]:
        """What `intramural-aggregator status` says."""
        found: dict[str, Any] = json.loads(self.ask("aggregator", "status", self.home, "--json"))
        return found

    def wait_for_nodes(self, names: Sequence[str], seconds: float = 180) -> None:
        """Wait until these hospitals are connected."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            online = {item["name"] for item in self.status()["hospitals"] if item["status"] == "online"}
            if online >= set(names):
                return
            time.sleep(1)
        raise SystemExit(
            f"not connected after {seconds:g} s: {sorted(set(names) - online)}; see {self.folder / 'logs'}"
        )

    def run(self) -> History:
        """Run the study over the network to its end."""
        self.ask("aggregator", "run", self.study, "--service", self.home)
        return read_study(self.study)[1]


def program(party: str, *words: object) -> list[str]:
    """A command of the toolkit, of the environment that this script runs in."""
    return [str(Path(sys.executable).with_name(f"intramural-{party}")), *map(str, words)]


def free_port() -> int:
    """A port on loopback that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def replace(path: Path, pattern: str, text: str) -> None:
    """Change one line of a configuration file."""
    changed, count = re.subn(pattern, lambda _: text, path.read_text(), count=1)
    assert count == 1, (path, pattern)
    path.write_text(changed)


def write_phantoms(folder: Path, plan: Plan) -> None:
    """Four make-believe hospitals, with images or volumes as the study's task needs them."""
    from silos.phantom import write_hospital

    for style, name in enumerate(HOSPITALS):
        volumes = plan.task.unit != "image"
        write_hospital(folder / name, name=name, seed=1, style=style, volumes=volumes, studies=[plan.name])


def write_brains(work: Path, data: Path) -> Path:
    """The four hospitals with real brain MR, configured as `scripts/lgg.py` does it; the plan of a short study."""
    import lgg

    options = argparse.Namespace(data=data, work=work, seeds=[1], rounds=5, epochs=1)
    for name in HOSPITALS:
        lgg.write_site(options, work / "hospitals" / name, name, seed=1)
        Signer.create(work / "hospitals" / name / f"{name}.key", name)
    return lgg.write_plan(options, lgg.Arm("fedavg", 1))


@contextlib.contextmanager
def simulated(folder: Path, plan: Path, sites: Sequence[Path]) -> Iterator[History]:
    """The same study in this process, by copies of the hospitals that have no coordinator on the network."""
    copies = []
    for site in sites:
        copy = folder / "hospitals" / site.parent.name
        shutil.copytree(site.parent, copy, ignore=shutil.ignore_patterns("work"))
        copies.append(copy / "site.toml")
    with Study.create(plan, folder / "study") as study, LocalGrid(copies) as grid:
        yield run(study, grid).history


def main() -> int:
    """Run the study both ways and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phantoms", action="store_true", help="make-believe hospitals, whatever data is there")
    parser.add_argument(
        "--data", type=Path, help="folder of real hospitals (DIR/*/site.toml), allowed in their policies"
    )
    parser.add_argument("--plan", type=Path, default=PLAN, help="study.toml (default: configs/study.toml)")
    parser.add_argument("--work", type=Path, default=Path("federation"), help="a new folder (default: federation)")
    parser.add_argument("--require-certificates", action="store_true", help="hospitals show client certificates (mTLS)")
    options = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    work = options.work.resolve()
    if work.exists():
        print(f"error: {work}: exists already; remove it, or choose another --work", file=sys.stderr)
        return FAILED
    hospitals, plan = work / "hospitals", options.plan
    if options.data:
        shutil.copytree(options.data, hospitals, ignore=shutil.ignore_patterns("work"))
    elif LGG.is_dir() and not options.phantoms:
        plan = write_brains(work, LGG)
    else:
        write_phantoms(hospitals, Plan.load(plan))
    sites = sorted(hospitals.glob("*/site.toml"))
    with simulated(work / "simulation", plan, sites) as history:
        expected = [item.model for item in history.rounds]
    with Federation(work, sites) as federation:
        federation.set_up(plan, *(["--require-certificates"] if options.require_certificates else []))
        if options.require_certificates:
            for hospital, site in federation.sites.items():
                shutil.copy(federation.home / "hospitals" / f"{hospital}.crt", site.parent)
                replace(site, r"\[run\]", f'[run]\ncertificate = "{hospital}.crt"')
        federation.start("aggregator")
        for hospital in federation.sites:
            federation.start(hospital)
        federation.wait_for_nodes(list(federation.sites))
        started = time.monotonic()
        history = federation.run()
        seconds = time.monotonic() - started
    rows = [
        (item.number, model[:16], item.model[:16], "same" if item.model == model else "DIFFERENT", len(item.accepted))
        for item, model in zip(history.rounds, expected, strict=True)
    ]
    show_table(
        f"{history.plan.name} over the network: {seconds:.0f} s",
        ("round", "simulated", "network", "", "accepted"),
        rows,
    )
    pairs = [reconcile(work / "study" / "ledger", Site.load(site).run.work / "ledger") for site in sites]
    columns = ("pair", "orders", "replies", "pending", "the two ledgers")
    verdicts = [
        (f"{p.aggregator} - {p.silo}", p.orders, p.replies, len(p.pending), "agree" if p.ok else "; ".join(p.problems))
        for p in pairs
    ]
    show_table("reconcile", columns, verdicts)
    if not all(pair.ok for pair in pairs):
        return UNVERIFIED
    return OK if [item.model for item in history.rounds] == expected else FAILED


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main())
