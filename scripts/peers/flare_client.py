"""A hospital for NVIDIA FLARE, as its own example hello-pt has it: receive, evaluate, train, send."""

import argparse

import nvflare.client as flare
import torch
from network import Net, load, stamp
from torch import nn


def main() -> None:
    """Answer the server until it is done."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--learning_rate", type=float)
    options = parser.parse_args()
    torch.set_num_threads(1)
    flare.init()
    data = load(int(flare.system_info()["site_name"].removeprefix("site-")))
    model, loss = Net(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=options.learning_rate)
    count = len(data["train_y"])
    while flare.is_running():
        received = flare.receive()
        model.load_state_dict(received.params)
        model.eval()
        with torch.no_grad():
            held_out = loss(model(data["held_out_x"]), data["held_out_y"]).item()
        model.train()
        stamp("step")
        steps = 0
        for _ in range(options.epochs):
            for rows in torch.randperm(count).split(options.batch_size):
                optimizer.zero_grad()
                loss(model(data["train_x"][rows]), data["train_y"][rows]).backward()
                optimizer.step()
                steps += 1
        flare.send(
            flare.FLModel(
                params=model.state_dict(), metrics={"loss": held_out}, meta={"NUM_STEPS_CURRENT_ROUND": steps}
            )
        )


if __name__ == "__main__":
    main()
