"""Coming from NVIDIA FLARE: hello-pt, its recipe and simulator, and what stands in their place here.

FLARE's first example ("hello-pt") is a training script that speaks to FLARE, and a job that runs it in a simulator.
Line by line:

    FLARE 2.9, client.py                                 here
    flare.init(); while flare.is_running(): ...          nothing to write: the hospital's side is the product
    input_model = flare.receive()                        an order, checked against the study that was approved
    SGD(model.parameters(), lr=0.01, momentum=0.9)       [training] in study.toml
    flare.send(flare.FLModel(params=..., metrics=...))   an update through one gate: the difference, clipped, signed
    meta={"NUM_STEPS_CURRENT_ROUND": steps}              weights = "images"; a count leaves as a band

    FLARE 2.9, job.py                                    here
    FedAvgRecipe(name=, min_clients=, num_rounds=,       study.toml: name, min_silos, rounds,
        model=SimpleNetwork(), train_script=)                [task.network], [task]; no code travels
    SimEnv(num_clients=2); recipe.execute(env)           LocalGrid(sites); run(study, grid)
    run.get_result()                                     outcome.model, outcome.history
    add_cross_site_evaluation(recipe)                    always done, on every hospital's held-out patients

    FLARE 2.9, in production                             here
    nvflare provision -p project.yml                     intramural-aggregator init, silo join, aggregator admit
    local/privacy.json, local/authorization.json         [policy] in site.toml; what it does not name is refused
    audit.txt                                            a ledger, signed and countersigned: intramural-audit

The simulator of FLARE writes no audit; here simulation is production, so both sides' ledgers are there at the end of
this script, and it compares them.

    python scripts/coming_from/nvflare.py
"""

import argparse
import logging
from pathlib import Path

from aggregator import LocalGrid, Study, run
from aggregator.audit import reconcile
from silos.phantom import write_hospital

JOB = """
name = "hello-pt"               # FedAvgRecipe(name="hello-pt",
purpose = "FLARE's first example, with hospitals."
min_silos = 2                   #     min_clients=2,
rounds = 5                      #     num_rounds=5,
weights = "images"
metrics = ["loss", "auc"]

[task]
name = "classification"
classes = ["none", "lesion"]
modality = ["MR"]
size = [48, 48]
percentiles = [1.0, 99.0]

[task.network]                  #     model=SimpleNetwork(),
name = "cnn"
arguments = { channels = [8, 16, 32] }

[training]                      #     train_script="client.py", train_args="--batch_size 8 --epochs 2")
epochs = 2
batch_size = 8
optimizer = "adam"
learning_rate = 0.005

[strategy]
name = "fedavg"
"""


def main() -> None:
    """A job for two sites in the simulator, and what the two sides wrote down of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("coming-from/nvflare"), help="where to write")
    work = parser.parse_args().work
    logging.getLogger("flwr").setLevel(logging.ERROR)
    work.mkdir(parents=True, exist_ok=True)
    (work / "study.toml").write_text(JOB)

    # env = SimEnv(num_clients=2): a client is a hospital with images, key, policy and ledger.
    sites = [work / name / "site.toml" for name in ("site-1", "site-2")]
    for site in sites:
        if not site.exists():
            write_hospital(site.parent, name=site.parent.name, patients=24, images=4, size=48, studies=["hello-pt"])

    # run = recipe.execute(env)
    with Study.load(work / "study.toml") as study, LocalGrid(sites) as grid:
        outcome = run(study, grid)

    # run.get_result(): the model, and each site's metrics of every round's model.
    print(f"model {outcome.model}")
    for item in outcome.history.rounds:
        print(f"round {item.number}: " + ", ".join(f"{site} auc {m['auc']:.3f}" for site, m in item.metrics.items()))

    # audit.txt: the coordinator's ledger against each site's, as anybody can do it later.
    for site in sites:
        found = reconcile(study.folder / "ledger", site.parent / "work" / "ledger")
        print(f"{found.silo}: {found.orders} orders, {found.replies} replies, {'agree' if found.ok else 'DISAGREE'}")


if __name__ == "__main__":
    main()
