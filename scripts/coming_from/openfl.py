"""Coming from OpenFL: a flow of aggregator and collaborator tasks, or a plan.yaml, and what stands here instead.

OpenFL is no longer developed. Its last releases had two ways to begin. The workflow interface ("Workflow Interface 101:
MNIST") writes each step of a round as a task; the task runner writes them in a plan. Task by task:

    OpenFL 1.9, workflow interface                       here
    class FederatedFlow(FLSpec)                          aggregator/rounds.py: read it, there is nothing to write
    @aggregator start: self.next(..., foreach=...)       the order of a round to every hospital, signed
    @collaborator aggregated_model_validation            the hospital evaluates the model that came,
    @collaborator train                                      trains it,
    @collaborator local_model_validation                     and does not tell how its own model does at home
    @aggregator join(self, inputs): FedAvg(...)          intake, then the mean of what was accepted
    self.next(..., exclude=["private"])                  the other way round: what the policy does not name stays
    Collaborator(name=, private_attributes_callable=)    a hospital's folder; Aggregator() is the study's folder
    LocalRuntime(aggregator=, collaborators=)            LocalGrid(sites); backend="ray": RayGrid(sites)
    flflow.run()                                         run(study, grid)

    OpenFL 1.9, task runner                              here
    plan/plan.yaml, fx plan initialize                   study.toml, intramural-aggregator create
    fx collaborator generate-cert-request; fx ... certify    intramural-silo join, intramural-aggregator admit
    fx collaborator calchash; plan hash                  the study's digest, which a hospital approves: approve
    straggler_cutoff_time, minimum_reporting             deadline, min_silos, stragglers

    python scripts/coming_from/openfl.py
"""

import argparse
import logging
from pathlib import Path

from aggregator import LocalGrid, Study, run
from silos.phantom import write_hospital

PLAN = """
name = "workflow-101"
purpose = "OpenFL's first flow, with hospitals."
rounds = 3                      # FederatedFlow(rounds=3)
min_silos = 3
deadline = 600
metrics = ["loss", "auc"]

[task]
name = "classification"
classes = ["none", "lesion"]
modality = ["MR"]
size = [48, 48]
percentiles = [1.0, 99.0]

[task.network]                  # class Net(nn.Module)
name = "cnn"
arguments = { channels = [8, 16, 32] }

[training]                      # optim.SGD(self.model.parameters(), lr=learning_rate, momentum=momentum)
epochs = 2
batch_size = 8
optimizer = "adam"
learning_rate = 0.005

[strategy]
name = "fedavg"
"""


def main() -> None:
    """Four collaborators, one of whom does not agree to take part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("coming-from/openfl"), help="where to write")
    work = parser.parse_args().work
    logging.getLogger("flwr").setLevel(logging.ERROR)
    work.mkdir(parents=True, exist_ok=True)
    (work / "plan.toml").write_text(PLAN)

    # collaborator_names = ["Portland", "Seattle", "Chandler", "Bangalore"]
    collaborators = [work / name / "site.toml" for name in ("portland", "seattle", "chandler", "bangalore")]

    # private_attributes: the images of each, and its own word on which studies it takes part in. Bangalore's is no.
    for site in collaborators:
        if not site.exists():
            name = site.parent.name
            studies = [] if name == "bangalore" else ["workflow-101"]
            write_hospital(site.parent, name=name, patients=24, images=4, size=48, studies=studies)

    # flflow = FederatedFlow(model, optimizer); flflow.runtime = LocalRuntime(aggregator=..., collaborators=...)
    study = Study.load(work / "plan.toml")

    # flflow.run(): one that refuses does not hold up the others, as long as there are min_silos of them.
    with study, LocalGrid(collaborators) as grid:
        outcome = run(study, grid)

    # join(self, inputs) printed the average of inputs; here every input stands by itself, the refusals too.
    for item in outcome.history.rounds:
        told = [f"{name} auc {metrics['auc']:.3f}" for name, metrics in item.metrics.items()]
        print(f"round {item.number}: " + ", ".join(told + [f"{n} refuses: {code}" for n, code in item.refused.items()]))

    # flflow.model
    print(f"model {outcome.model}")


if __name__ == "__main__":
    main()
