"""The registry of networks: what a study may name, and what it then gets."""

import socket
import urllib.request
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm

from models.errors import ConfigError, SpecMismatch
from models.plan import Classification
from models.tasks import classification
from models.tasks.classification import ClassificationTask
from models.tasks.networks import CLASSIFIERS

torch.set_num_threads(1)
each_network = pytest.mark.parametrize("name", sorted(CLASSIFIERS))


def settings(name: str, size: int = 64, **arguments: Any) -> Classification:
    return Classification(
        name="classification",
        classes=["none", "tumour", "other"],
        modality=["MR"],
        size=(size, size),
        percentiles=(1, 99),
        network={"name": name, "arguments": arguments},
    )


def build_network(settings: Classification, seed: int) -> nn.Module:
    return ClassificationTask(settings).build(seed)


def state_bits(network: nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in network.state_dict().items()}


def kinds(network: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in network.modules())


@each_network
@pytest.mark.parametrize("norm", ["group", "instance", "batch"])
def test_every_network_trains_with_every_norm(name: str, norm: str) -> None:
    network = build_network(settings(name, norm=norm), seed=1).train()
    logits = network(torch.rand(2, 1, 64, 64))
    assert logits.shape == (2, 3)
    cross_entropy(logits, torch.tensor([0, 2])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert any(p.grad.abs().max() > 0 for p in network.parameters() if p.grad is not None)


@each_network
def test_a_network_has_group_norm_and_no_batch_norm_unless_the_study_asks(name: str) -> None:
    network = build_network(settings(name), seed=1)
    assert kinds(network, _BatchNorm) == 0
    norms = kinds(network, nn.GroupNorm)
    batch = build_network(settings(name, norm="batch"), seed=1)
    assert kinds(batch, _BatchNorm) == norms > 0
    assert kinds(batch, nn.GroupNorm) == 0
    instance = build_network(settings(name, norm="instance"), seed=1)
    assert kinds(instance, nn.InstanceNorm2d) == norms
    assert kinds(instance, _BatchNorm) == kinds(instance, nn.GroupNorm) == 0
    assert all("running" not in key and "num_batches" not in key for key in instance.state_dict())


def test_groups_divide_channels_that_are_no_multiple_of_eight() -> None:
    network = build_network(settings("cnn", channels=[3, 12, 20]), seed=1)
    groups = [(m.num_groups, m.num_channels) for m in network.modules() if isinstance(m, nn.GroupNorm)]
    assert groups == [(1, 3), (4, 12), (4, 20)]


@each_network
def test_the_seed_alone_decides_the_weights(name: str) -> None:
    torch.manual_seed(11)
    first = state_bits(build_network(settings(name), seed=7))
    torch.manual_seed(12)
    assert state_bits(build_network(settings(name), seed=7)) == first
    assert state_bits(build_network(settings(name), seed=8)) != first


@each_network
def test_building_leaves_the_global_generator_as_it_was(name: str) -> None:
    before = torch.get_rng_state()
    build_network(settings(name, size=32), seed=7)
    assert torch.equal(torch.get_rng_state(), before)


@each_network
def test_building_downloads_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("tried to download")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    build_network(settings(name, norm="batch"), seed=7)


def test_the_small_network_has_the_promised_size() -> None:
    weights = sum(p.numel() for p in build_network(settings("cnn"), seed=1).parameters())
    assert 100_000 < weights < 250_000


def test_the_study_s_arguments_reach_the_network() -> None:
    def count(name: str, **arguments: Any) -> int:
        return sum(p.numel() for p in build_network(settings(name, **arguments), seed=1).parameters())

    assert count("densenet121", growth_rate=8, init_features=16) < count("densenet121") / 8
    assert count("resnet18", widen_factor=0.25) < count("resnet18") / 8
    assert count("cnn", channels=[8, 8]) < 1000
    dropped = build_network(settings("cnn", dropout=0.5), seed=1)
    assert [m.p for m in dropped.modules() if isinstance(m, nn.Dropout)] == [0.5]


def test_an_unknown_network_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"task\.network\.name: .*'vgg'") as caught:
        build_network(settings("vgg"), seed=1)
    assert caught.value.hint.endswith("cnn, densenet121, efficientnet-b0, resnet18")


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [
        ("densenet121", "growth", 12),
        ("densenet121", "pretrained", True),
        ("densenet121", "out_channels", 5),
        ("densenet121", "growth_rate", "12"),
        ("densenet121", "growth_rate", 0),
        ("densenet121", "growth_rate", True),
        ("densenet121", "growth_rate", 10**9),
        ("densenet121", "dropout_prob", 1.5),
        ("densenet121", "block_config", 6),
        ("resnet18", "spatial_dims", 3),
        ("resnet18", "no_max_pool", 1),
        ("efficientnet-b0", "progress", False),
        ("cnn", "channels", []),
        ("cnn", "channels", [8, 0]),
        ("cnn", "norm", "layer"),
        ("cnn", "classes", 4),
    ],
)
def test_a_wrong_argument_is_named_with_those_that_would_do(name: str, argument: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        build_network(settings(name, **{argument: value}), seed=1)
    assert str(caught.value).startswith(f"task.network.arguments.{argument}: ")
    assert repr(value) in str(caught.value)
    assert caught.value.hint.startswith(f"arguments of {name}: ")
    assert "norm" in caught.value.hint
    assert "pretrained" not in caught.value.hint


@pytest.mark.parametrize(
    ("name", "size", "arguments"),
    [
        ("densenet121", 8, {}),
        ("densenet121", 64, {"block_config": [1] * 7}),
        ("cnn", 64, {"channels": [8] * 7, "norm": "instance"}),
    ],
)
def test_an_image_size_that_a_network_cannot_take_is_refused_when_it_is_built(
    name: str, size: int, arguments: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=rf"task\.size: {size} x {size} pixels do not fit {name}"):
        build_network(settings(name, size=size, **arguments), seed=1)


def test_the_smallest_size_is_enough_for_the_small_network() -> None:
    assert build_network(settings("cnn", size=8), seed=1).training


def test_a_network_of_another_precision_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    builders = {"double": lambda dimensions, classes: nn.Linear(1, classes).double()}
    monkeypatch.setattr(classification, "CLASSIFIERS", builders)
    with pytest.raises(SpecMismatch, match=r"bias: is torch\.float64"):
        build_network(settings("double"), seed=1)
