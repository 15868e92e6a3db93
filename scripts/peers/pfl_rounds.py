"""Rounds of federated averaging in apple/pfl, train only: every hospital in every round, in this process."""

import argparse

import numpy as np
import torch
from network import Net, load, stamp
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch import nn


class Trained(Net):
    """The network with the two methods that pfl asks for."""

    def loss(self, x: torch.Tensor, y: torch.Tensor, **_: object) -> torch.Tensor:
        """What is minimised."""
        self.train()
        return nn.functional.cross_entropy(self(x), y)

    def metrics(self, *_: object, **__: object) -> dict[str, float]:
        """Nothing: only the training is compared."""
        return {}


class Stamps(TrainingProcessCallback):
    """Writes down when a round was over."""

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        """A round is over."""
        stamp("round")
        return False, Metrics()


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--hospitals", type=int)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--learning_rate", type=float)
    options = parser.parse_args()
    torch.set_num_threads(1)
    np.random.seed(1)
    data = {}
    for number in range(1, options.hospitals + 1):
        arrays, order = load(number), torch.Generator().manual_seed(number)
        rows = torch.randperm(len(arrays["train_y"]), generator=order)  # pfl goes through them in the order given
        data[number] = PyTorchTensorDataset((arrays["train_x"][rows], arrays["train_y"][rows]))
    network = Trained()
    model = PyTorchModel(network, torch.optim.SGD, torch.optim.SGD(network.parameters(), 1.0))
    hospitals = FederatedDataset(data.__getitem__, get_user_sampler("minimize_reuse", list(data)))
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=options.rounds,
            evaluation_frequency=options.rounds + 1,
            train_cohort_size=options.hospitals,
            val_cohort_size=None,
        ),
        backend=SimulatedBackend(training_data=hospitals, val_data=hospitals),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=options.epochs,
            local_learning_rate=options.learning_rate,
            local_batch_size=options.batch_size,
        ),
        callbacks=[Stamps()],
    )


if __name__ == "__main__":
    main()
