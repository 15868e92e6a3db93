"""Coming from TensorFlow Federated: emnist, model_fn, initialize and next, and what stands in their place here.

TFF's first tutorial ("Federated Learning for Image Classification") loads EMNIST by writer, makes a process of
federated averaging, and calls `next` once a round with the clients' data. Line by line:

    TFF 0.87                                             here
    tff.simulation.datasets.emnist.load_data()           hospitals: folders of DICOM with a site.toml each
    emnist_train.create_tf_dataset_for_client(x)         the hospital reads its own; nobody else can
    preprocess(dataset): repeat, shuffle, batch, map     epochs, batch_size, size, percentiles, augment in study.toml
    model_fn() -> tff.learning.models.from_keras_model   [task] and [task.network]; both sides agree on its digest
    build_weighted_fed_avg(model_fn,                     [strategy], with weights = "images"
        client_optimizer_fn=build_sgdm(0.02),            [training] optimizer and learning_rate
        server_optimizer_fn=build_sgdm(1.0))             fedavg; with Adam at the server: fedadam, with eta, beta_1, ...
    state = training_process.initialize()                Study.load("study.toml")
    result = training_process.next(state, data)          run(study, grid), and on_round after each round
    tff.learning.algorithms.build_fed_eval(model_fn)     always done: each hospital measures on its held-out patients

Two things are not the same. The state here is a folder: stop the script when you like and run it again, and it goes on
with the round that it was in. And a hospital can say no: its policy holds a list of studies, how many patients there
must be, and which numbers it tells.

    python scripts/coming_from/tensorflow_federated.py
"""

import argparse
import logging
from pathlib import Path

from aggregator import LocalGrid, Study, run
from aggregator.history import History
from silos.phantom import write_hospital

PLAN = """
name = "first-tutorial"
purpose = "TFF's first tutorial, with hospitals."
rounds = 5
weights = "images"              # client_weighting=tff.learning.ClientWeighting.NUM_EXAMPLES
metrics = ["loss", "auc"]

[task]                          # preprocess(): what every image goes through
name = "classification"
classes = ["none", "lesion"]
modality = ["MR"]
size = [48, 48]
percentiles = [1.0, 99.0]

[task.network]                  # create_keras_model()
name = "cnn"
arguments = { channels = [8, 16, 32] }

[training]                      # NUM_EPOCHS, BATCH_SIZE, client_optimizer_fn
epochs = 2
batch_size = 8
optimizer = "adam"
learning_rate = 0.005

[strategy]                      # build_weighted_fed_avg(...), server_optimizer_fn
name = "fedavg"
"""


def main() -> None:
    """Three clients, five calls of `next`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("coming-from/tensorflow-federated"), help="where to write")
    work = parser.parse_args().work
    logging.getLogger("flwr").setLevel(logging.ERROR)
    work.mkdir(parents=True, exist_ok=True)
    (work / "study.toml").write_text(PLAN)

    # sample_clients = emnist_train.client_ids[0:NUM_CLIENTS]
    clients = [work / name / "site.toml" for name in ("north", "south", "west")]

    # make_federated_data(emnist_train, sample_clients): each client's images are its own, in its own folder.
    for site in clients:
        if not site.exists():
            name = site.parent.name
            write_hospital(site.parent, name=name, patients=24, images=4, size=48, studies=["first-tutorial"])

    def on_round(history: History) -> None:
        """Tells what print('round {:2d}, metrics={}'.format(round_num, train_metrics)) told."""
        item = history.rounds[-2]  # a model is measured by whoever trains it further
        print(f"round {item.number:2d}, loss {item.mean('loss'):.3f}, auc {item.mean('auc'):.3f}")

    # train_state = training_process.initialize()
    study = Study.load(work / "study.toml")

    # for round_num in range(1, NUM_ROUNDS): result = training_process.next(train_state, federated_train_data)
    with study, LocalGrid(clients) as grid:
        outcome = run(study, grid, on_round)

    # evaluation_process.next(evaluation_state, federated_test_data): by hospital, and never pooled.
    for hospital, metrics in outcome.history.rounds[-1].metrics.items():
        print(f"{hospital}: auc {metrics['auc']:.3f} on its held-out patients")

    # training_process.get_model_weights(train_state)
    print(f"model {outcome.model}")


if __name__ == "__main__":
    main()
