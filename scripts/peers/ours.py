"""The same study with Intramural, by either engine; ledgers, signatures and digests included."""

import argparse
import logging
import os
import time
from pathlib import Path

import torch

import aggregator
from aggregator import Study, run
from silos import training, visit


def stamp(what: str) -> None:
    """Write down when, for the benchmark."""
    with Path(os.environ["PEERS_STAMPS"]).open("a") as file:
        file.write(f"{what} {time.time()} {time.process_time()}\n")


def main() -> None:
    """Run the study to its end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("plan", type=Path)
    parser.add_argument("sites", type=Path, nargs="+")
    parser.add_argument("--engine", choices=("local", "ray"), default="local")
    options = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    fit = training.fit

    def stamped(*arguments: object, **keywords: object) -> object:
        stamp("step")
        return fit(*arguments, **keywords)

    if options.engine == "local":
        visit.training.fit = stamped
    study = Study.load(options.plan)
    # Looked up here, because each loads what it needs when it is asked for.
    grid = aggregator.RayGrid(options.sites) if options.engine == "ray" else aggregator.LocalGrid(options.sites)
    with study, grid:
        stamp("round")
        outcome = run(study, grid, lambda _: stamp("round"))
    print(outcome.digest)


if __name__ == "__main__":
    main()
