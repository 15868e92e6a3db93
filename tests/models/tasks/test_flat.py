"""The flat network: one vector that is the network's state."""

import copy
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from models.errors import SpecMismatch
from models.plan import Classification
from models.tasks import task
from models.tasks.flat import FlatNetwork

torch.set_num_threads(1)

SETTINGS = Classification(
    name="classification",
    classes=["none", "tumour"],
    modality=["MR"],
    size=(32, 32),
    window=(0, 1),
    network={"name": "cnn", "arguments": {"channels": [8, 12, 16]}},
)
SHALLOW = {"init_features": 8, "growth_rate": 4, "block_config": [2, 2]}
NETWORKS: list[dict[str, object]] = [
    {"name": "cnn", "arguments": {"channels": [8, 12, 16]}},
    {"name": "cnn", "arguments": {"channels": [8, 12, 16], "norm": "batch"}},
    {"name": "densenet121", "arguments": SHALLOW},
]


def network(choice: dict[str, object] = NETWORKS[1], seed: int = 3) -> nn.Module:
    settings = Classification.parse(SETTINGS.model_dump() | {"network": choice}, source="test")
    return task(settings).build(seed)


def batches(count: int = 6) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return [
        (torch.rand(4, 1, 32, 32, generator=generator), torch.randint(2, (4,), generator=generator))
        for _ in range(count)
    ]


def train(module: nn.Module, optimizer: torch.optim.Optimizer, zero_grad: Callable[[], None]) -> None:
    for images, targets in batches():
        zero_grad()
        cross_entropy(module(images), targets).backward()
        optimizer.step()


def bits(module: nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in module.state_dict().items()}


Optimizer = Callable[[Iterable[torch.Tensor]], torch.optim.Optimizer]


@pytest.mark.parametrize("choice", NETWORKS, ids=["group", "batch", "densenet"])
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01),
        lambda parameters: torch.optim.Adam(parameters, lr=0.01),
        lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1),
    ],
    ids=["sgd", "momentum", "adam", "adamw"],
)
def test_training_is_that_of_the_plain_network_to_the_bit(choice: dict[str, object], optimizer: Optimizer) -> None:
    plain = network(choice)
    flat = FlatNetwork(copy.deepcopy(plain))
    start = flat.weights.clone()
    plain_optimizer = optimizer(plain.parameters())
    train(plain, plain_optimizer, plain_optimizer.zero_grad)
    train(flat.module, optimizer(flat.trainable), flat.zero_grad)
    assert bits(flat.module) == bits(plain)
    assert not torch.equal(flat.weights, start)


def test_the_vector_is_the_floating_state_in_the_order_of_its_names() -> None:
    plain = network()
    flat = FlatNetwork(copy.deepcopy(plain))
    state = {k: v for k, v in plain.state_dict().items() if v.is_floating_point()}
    assert [tensor.name for tensor in flat.spec.tensors] == sorted(state)
    assert [tensor.shape for tensor in flat.spec.tensors] == [tuple(state[name].shape) for name in sorted(state)]
    assert flat.spec.size == flat.weights.numel() == sum(v.numel() for v in state.values())
    assert torch.equal(flat.weights, torch.cat([state[name].ravel() for name in sorted(state)]))
    assert any("running_mean" in tensor.name for tensor in flat.spec.tensors)
    assert all("num_batches_tracked" not in tensor.name for tensor in flat.spec.tensors)


def test_state_and_gradients_stay_views_of_the_vectors_while_training() -> None:
    flat = FlatNetwork(network())
    train(flat.module, torch.optim.SGD(flat.module.parameters(), lr=0.1), flat.zero_grad)
    named, slopes = flat.spec.named(flat.weights.numpy()), flat.spec.named(flat.gradient.numpy())
    for name, tensor in flat.module.state_dict().items():
        if tensor.is_floating_point():
            assert np.shares_memory(tensor.numpy(), named[name]), name
            np.testing.assert_array_equal(tensor.numpy(), named[name])
    for name, parameter in flat.module.named_parameters():
        assert parameter.grad is not None
        assert np.shares_memory(parameter.grad.numpy(), slopes[name]), name
    flat.weights.zero_()
    assert all(not p.any() for p in flat.module.parameters())


def test_an_optimizer_steps_on_runs_of_parameters_and_on_nothing_else() -> None:
    plain = network()
    plain.get_parameter("0.conv.weight").requires_grad_(False)
    buffers = [name for name, _ in plain.named_buffers() if "running" in name]
    flat = FlatNetwork(copy.deepcopy(plain), local=["1.adn.N.bias"])
    for vector in (flat.weights, flat.local):
        vector.fill_(1)
    for parameters in flat.trainable:
        parameters.fill_(0)
    moved = {name for name, tensor in flat.module.state_dict().items() if not tensor.any()}
    counters = {name for name in moved if name.endswith("num_batches_tracked")}
    assert moved - counters == {name for name, p in plain.named_parameters() if p.requires_grad}
    assert buffers
    assert all(flat.module.get_buffer(name).all() for name in buffers)
    assert len(flat.trainable) < len(moved - counters)


def test_gradients_equal_the_plain_network_s_and_are_zero_where_there_are_none() -> None:
    plain = network()
    frozen = "0.conv.weight"
    plain.get_parameter(frozen).requires_grad_(False)
    flat = FlatNetwork(copy.deepcopy(plain))
    images, targets = batches(1)[0]
    for module in (plain, flat.module):
        cross_entropy(module(images), targets).backward()
    trained = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    assert frozen not in trained
    for name, part in flat.spec.named(flat.gradient.numpy()).items():
        np.testing.assert_array_equal(part, trained[name].numpy() if name in trained else np.zeros_like(part))
    flat.zero_grad()
    assert not flat.gradient.any()


def test_a_loaded_vector_makes_another_network_the_same() -> None:
    source, target = FlatNetwork(network(seed=3)), FlatNetwork(network(seed=4))
    images, _ = batches(1)[0]
    assert not torch.equal(source.module.eval()(images), target.module.eval()(images))
    target.load(source.weights)
    assert torch.equal(source.module(images), target.module(images))
    target.weights.add_(1)
    assert not torch.equal(source.weights, target.weights)


def test_a_vector_from_read_only_bytes_can_be_loaded() -> None:
    flat = FlatNetwork(network())
    expected = np.arange(flat.spec.size, dtype=np.float32)
    flat.load(np.frombuffer(expected.tobytes(), np.float32))
    np.testing.assert_array_equal(flat.weights.numpy(), expected)
    flat.load(np.repeat(expected, 2)[::2])
    np.testing.assert_array_equal(flat.weights.numpy(), expected)


def test_loading_forgets_how_many_batches_were_seen() -> None:
    flat = FlatNetwork(network())
    counters = {k: v for k, v in flat.module.state_dict().items() if k.endswith("num_batches_tracked")}
    assert len(counters) == 3
    train(flat.module, torch.optim.SGD(flat.module.parameters(), lr=0.1), flat.zero_grad)
    assert {int(v) for v in counters.values()} == {6}
    flat.load(flat.weights.clone())
    assert {int(v) for v in counters.values()} == {0}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda vector: vector[:-1],
        lambda vector: np.append(vector, np.float32(0)),
        lambda vector: vector[None],
        lambda vector: vector.astype(np.float64),
        lambda vector: vector.astype(">f4"),
        lambda vector: torch.from_numpy(vector).half(),
    ],
    ids=["short", "long", "matrix", "double", "big-endian", "half"],
)
def test_a_vector_of_another_layout_is_refused_and_nothing_changes(
    spoil: Callable[[np.ndarray], np.ndarray | torch.Tensor],
) -> None:
    flat = FlatNetwork(network())
    before = flat.weights.clone()
    with pytest.raises(SpecMismatch, match=f"{flat.spec.size},"):
        flat.load(spoil(np.ones(flat.spec.size, np.float32)))
    assert torch.equal(flat.weights, before)


def test_tied_parameters_are_refused_by_both_names() -> None:
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    with pytest.raises(SpecMismatch, match=r"1\.weight: shares its memory with 0\.weight"):
        FlatNetwork(tied)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.complex64])
def test_state_of_another_dtype_is_refused_by_name(dtype: torch.dtype) -> None:
    module = nn.Linear(2, 2)
    module.register_buffer("scale", torch.ones(1, dtype=dtype))
    with pytest.raises(SpecMismatch, match=f"scale: is {dtype}"):
        FlatNetwork(module)


def test_a_buffer_that_is_not_saved_is_no_part_of_the_vector() -> None:
    module = nn.Linear(2, 2)
    module.register_buffer("scratch", torch.ones(7), persistent=False)
    assert FlatNetwork(module).spec.size == 6


def test_the_network_is_moved_before_it_is_flattened() -> None:
    flat = FlatNetwork(network(), device="meta")
    assert {tensor.device.type for tensor in flat.module.state_dict().values()} == {"meta"}
    assert flat.weights.device == flat.gradient.device == torch.device("meta")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_state_and_gradients_are_views_too() -> None:
    flat = FlatNetwork(network(), device="cuda")
    images, targets = batches(1)[0]
    cross_entropy(flat.module(images.cuda()), targets.cuda()).backward()
    flat.weights.zero_()
    assert flat.gradient.any()
    assert all(not p.any() for p in flat.module.parameters())
