"""The job for NVIDIA FLARE's simulator, by its own recipe: federated averaging, every client in a process."""

import argparse
import os
from pathlib import Path

from network import Net
from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe import SimEnv


def main() -> None:
    """Run the simulator to its end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--hospitals", type=int)
    parser.add_argument("--train_args")
    options = parser.parse_args()
    recipe = FedAvgRecipe(
        name="bench",
        min_clients=options.hospitals,
        num_rounds=options.rounds,
        model=Net(),
        train_script="flare_client.py",
        train_args=options.train_args,
        key_metric="loss",
        key_metric_mode="min",
    )
    os.chdir(Path(__file__).parent)
    run = recipe.execute(SimEnv(num_clients=options.hospitals, workspace_root=str(options.work)))
    print(run.get_status(), run.get_result())


if __name__ == "__main__":
    main()
