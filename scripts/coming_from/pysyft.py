"""Coming from PySyft: VirtualWorker and FederatedDataLoader, and what stands in their place here.

The tutorial most people started from ("Upgrade to Federated Learning in 10 Lines", PySyft 0.1 and 0.2; both names left
PySyft with 0.3) deals a data set out to two workers and sends the model after every batch. Line by line:

    PySyft 0.2                                           here
    bob = sy.VirtualWorker(hook, id="bob")               a hospital: a folder with site.toml, key, policy and ledger
    datasets.MNIST(...).federate((bob, alice))           split(site, folder, into=2): by patient, and nothing is copied
    sy.FederatedDataLoader(..., batch_size=64)           the hospital's own loader; the study says how large a batch is
    optim.SGD(model.parameters(), lr=0.01)               [training] in study.toml
    model.send(data.location); ...; model.get()          an order out, an update back: run(study, grid)
    for epoch in range(1, args.epochs + 1): train(...)   rounds = 5

Two things are not the same. PySyft's loop trained one model on one worker's batch after the other's; here every
hospital trains on its own for a while, and the mean of what they changed is the next model (federated averaging). And a
pointer could ask a worker for anything that `.get()` was called on; here the hospital's policy names what may leave,
and its ledger says what did.

    python scripts/coming_from/pysyft.py
"""

import argparse
import logging
from pathlib import Path

from aggregator import LocalGrid, Study, run
from silos.phantom import write_hospital
from silos.released import released
from silos.split import split

PLAN = """
name = "ten-lines"
purpose = "The ten lines, with hospitals."
rounds = 5
metrics = ["loss", "auc"]

[task]
name = "classification"
classes = ["none", "lesion"]
modality = ["MR"]
size = [48, 48]
percentiles = [1.0, 99.0]

[task.network]                  # class Net(nn.Module): ...
name = "cnn"
arguments = { channels = [8, 16, 32] }

[training]                      # args.batch_size, args.lr, optim.SGD
epochs = 2
batch_size = 8
optimizer = "adam"
learning_rate = 0.005

[strategy]
name = "fedavg"
"""


def main() -> None:
    """One data set, two hospitals, five rounds; then what left the first of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("coming-from/pysyft"), help="a new or empty folder")
    work = parser.parse_args().work
    logging.getLogger("flwr").setLevel(logging.ERROR)
    work.mkdir(parents=True, exist_ok=True)
    (work / "study.toml").write_text(PLAN)

    everybody, parts = work / "all", work / "parts"
    if not parts.exists():
        # datasets.MNIST("../data", download=True): here, make-believe patients; any folder of DICOM will do.
        site = write_hospital(everybody, name="all", patients=48, images=4, size=48, studies=["ten-lines"])
        # .federate((bob, alice)): the patients are dealt out, and each part has a key and a ledger of its own.
        split(site, parts, into=2)
    bob, alice = sorted(parts.glob("*/site.toml"))

    # for data, target in federated_train_loader: model.send(data.location); loss.backward(); ...; model.get()
    with Study.load(work / "study.toml") as study, LocalGrid([bob, alice]) as grid:
        outcome = run(study, grid)

    # print('Train Epoch: {} ...'): every hospital has measured every round's model on patients it had held out.
    for item in outcome.history.rounds:
        print(f"round {item.number}: loss {item.mean('loss'):.3f}, auc {item.mean('auc'):.3f}")
    print(f"model {outcome.model}")

    # There is no counterpart to this: everything that left the first hospital, from its own signed ledger.
    for sent in released(bob.parent / "work" / "ledger"):
        print(f"{sent.time} {sent.what} of round {sent.round}: {sent.nbytes} bytes, told {sent.metrics or 'nothing'}")


if __name__ == "__main__":
    main()
