"""Segmentation: cases prepared, patches drawn, networks trained, masks judged."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models.errors import ConfigError, DataError, NotFinite
from models.plan import Segmentation, Training
from models.tasks import Case, Task, task
from models.tasks.flat import FlatNetwork
from models.tasks.networks import SEGMENTERS
from models.tasks.patches import DRAWS, crop
from models.tasks.segmentation import SegmentationTask
from silos import training

torch.set_num_threads(1)

SMALL: dict[str, dict[str, Any]] = {
    "unet": {"channels": [4, 8], "num_res_units": 1},
    "segresnet": {"blocks_down": [1, 1], "blocks_up": [1]},
    "swinunetr": {"feature_size": 12, "num_heads": [1, 1, 2, 2], "depths": [1, 1, 1, 1]},
}


def segmentation(dimensions: int = 2, classes: int = 1, network: str = "unet", **changes: Any) -> SegmentationTask:
    norm = changes.pop("norm", "group")
    content: dict[str, Any] = {
        "name": "segmentation",
        "classes": [f"class-{number}" for number in range(classes)],
        "modality": ["MR"],
        "dimensions": dimensions,
        "patch": [32] * dimensions,
        "window": (0.5, 1),
        "network": {"name": network, "arguments": SMALL[network] | {"norm": norm}},
    }
    return SegmentationTask(Segmentation.parse(content | changes, source="test"))


def disk(side: tuple[int, ...] = (48, 40), radius: float = 9, seed: int = 0, classes: int = 1) -> Case:
    """A noisy image of a disk (or ball), bright towards its middle where there are two classes; 1 mm."""
    chance = np.random.default_rng(seed)
    middle = [chance.uniform(radius + 1, n - radius - 1) for n in side[:2]] + [n / 2 for n in side[2:]]
    axes = np.meshgrid(*[np.arange(n) for n in side], indexing="ij")
    away = np.sqrt(sum((axis - at) ** 2 for axis, at in zip(axes, middle, strict=True)))
    mask = (away < radius).astype(np.uint8)
    if classes == 2:
        mask[away < radius / 2] = 2
    image = (0.3 + 0.3 * mask + chance.normal(0, 0.1, side)).astype(np.float32)
    return Case(image, (1.0,) * len(side), mask)


class Cases:
    """A set of prepared cases, as a hospital holds them."""

    def __init__(self, cases: list[Case]) -> None:
        self.cases = cases
        self.taken: list[int] = []

    def __len__(self) -> int:
        return len(self.cases)

    def take(self, rows: np.ndarray) -> list[Case]:
        self.taken.append(len(rows))
        return [self.cases[row] for row in rows]


# --- preparation --------------------------------------------------------------------------------------


def test_the_study_s_task_is_found_by_its_name() -> None:
    found: Task = task(segmentation().settings)
    assert isinstance(found, SegmentationTask)
    assert found.metrics == {"loss", "dice", "hausdorff95"}


def test_a_case_is_brought_to_the_study_s_spacing_with_its_mask() -> None:
    case = disk((48, 40, 10))
    case = Case(case.image, (0.5, 0.5, 3.0), case.mask)
    found = segmentation(3, spacing=[1, 1, 1.5]).prepare(case)
    assert found.image.shape == (1, 24, 20, 20)
    assert found.mask is not None
    assert (found.mask.shape, found.mask.dtype) == ((24, 20, 20), np.uint8)
    assert found.spacing == (1.0, 1.0, 1.5)
    assert found.mask.mean() == pytest.approx(case.mask.mean(), rel=0.1)
    assert found.image[0][found.mask > 0].mean() > found.image[0][found.mask == 0].mean() + 0.2


def test_a_study_without_spacing_leaves_the_grid_as_it_was_acquired() -> None:
    case = disk((40, 48, 9))
    found = segmentation(3).prepare(case)
    assert found.image.shape == (1, 40, 48, 9)
    assert found.mask is case.mask


def test_a_2d_study_keeps_the_slices_of_a_volume() -> None:
    case = disk((48, 40, 6))
    found = segmentation(2, spacing=[2, 2]).prepare(Case(case.image, (1.0, 1.0, 7.0), case.mask))
    assert found.image.shape == (1, 24, 20, 6)
    assert found.spacing == (2.0, 2.0, 7.0)


@pytest.mark.parametrize(
    "case",
    [
        Case(np.zeros((8, 8), np.float32), (1.0, 1.0), np.zeros((8, 9), np.uint8)),
        Case(np.zeros((8, 8), np.float32), (1.0, 1.0), np.full((8, 8), 2, np.uint8)),
        Case(np.zeros(8, np.float32), (1.0,), np.zeros(8, np.uint8)),
        Case(np.full((8, 8), np.nan, np.float32), (1.0, 1.0), np.zeros((8, 8), np.uint8)),
    ],
)
def test_a_case_that_does_not_fit_the_study_is_refused(case: Case) -> None:
    with pytest.raises(DataError):
        segmentation(2).prepare(case)


# --- patches ------------------------------------------------------------------------------------------


def draws(count: int) -> list[list[float]]:
    return torch.rand(count, DRAWS, generator=torch.Generator().manual_seed(3), dtype=torch.float64).tolist()


def test_patches_are_as_large_as_asked_and_lie_inside() -> None:
    case = segmentation(3).prepare(disk((40, 24, 12)))
    for draw in draws(50):
        image, mask = crop(case, (32, 16, 8), 0.5, draw)
        assert (image.shape, mask.shape) == ((1, 32, 16, 8), (32, 16, 8))
        assert image.any(axis=(0, 2, 3)).all()  # nothing was padded


def test_a_patch_larger_than_its_image_has_zeros_around_it() -> None:
    case = Case(np.ones((1, 5, 30), np.float32), None, np.ones((5, 30), np.uint8))
    image, mask = crop(case, (8, 16), 0.5, draws(1)[0])
    assert image.sum() == mask.sum() == 5 * 16
    assert (image[0, 1:6] == 1).all()


def test_a_2d_patch_of_a_volume_is_one_of_its_slices() -> None:
    image = np.zeros((1, 20, 20, 7), np.float32) + np.arange(7, dtype=np.float32)
    case = Case(image, None, np.zeros((20, 20, 7), np.uint8))
    seen = [crop(case, (8, 8), 0.5, draw)[0] for draw in draws(60)]
    assert {len(np.unique(patch)) for patch in seen} == {1}
    assert {float(patch.flat[0]) for patch in seen} == set(range(7))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_as_many_patches_are_centred_on_a_class_as_the_study_asks(share: float) -> None:
    mask = np.zeros((400, 400), np.uint8)
    mask[200, 200:202], mask[50:52, 300] = 1, 2
    case = Case(np.zeros((1, 400, 400), np.float32), None, mask)
    middles = [crop(case, (9, 9), share, draw)[1][4, 4] for draw in draws(400)]
    assert np.mean(np.array(middles) > 0) == pytest.approx(share, abs=0.07)
    if share:
        assert middles.count(1) / sum(value > 0 for value in middles) == pytest.approx(0.5, abs=0.1)


def test_of_a_large_class_a_fixed_drawing_of_voxels_is_remembered() -> None:
    mask = np.zeros((300, 300), np.uint8)
    mask[:200], mask[250, 7] = 1, 3
    where = Case(np.zeros((1, 300, 300), np.float32), None, mask).places
    assert [len(one) for one in where] == [10_000, 1]
    assert (mask.ravel()[where[0]] == 1).all()
    assert where[1].tolist() == [250 * 300 + 7]
    again = Case(np.zeros((1, 300, 300), np.float32), None, mask).places
    np.testing.assert_array_equal(where[0], again[0])
    assert Case(np.zeros((1, 4, 4), np.float32), None, np.zeros((4, 4), np.uint8)).places == ()


@pytest.mark.parametrize("augment", [[], [{"name": "RandFlip", "arguments": {"prob": 0.5}}]])
def test_sampling_repeats_with_its_generator_and_with_nothing_else(augment: list[dict[str, Any]]) -> None:
    learner = segmentation(2, augment=augment, patches=3)
    cases = [learner.prepare(disk(seed=seed)) for seed in range(4)]
    first = learner.sample(cases, torch.Generator().manual_seed(1))
    np.random.seed(1)
    torch.rand(5)
    again = learner.sample(cases, torch.Generator().manual_seed(1))
    other = learner.sample(cases, torch.Generator().manual_seed(2))
    assert first[0].shape == first[1].shape == (12, 1, 32, 32)
    assert (first[0].dtype, first[1].dtype) == (torch.float32, torch.int64)
    assert all(torch.equal(*both) for both in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


# --- networks and loss --------------------------------------------------------------------------------


@pytest.mark.parametrize("network", sorted(SEGMENTERS))
@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("norm", ["group", "instance", "batch"])
def test_every_network_labels_every_voxel_and_trains_with_every_norm(network: str, dimensions: int, norm: str) -> None:
    patch = [64 if network == "swinunetr" and dimensions == 2 else 32] * dimensions
    if (network, norm, dimensions) == ("swinunetr", "instance", 3):
        patch = [64, 32, 32]  # one voxel is left at the bottom of 32, which has no variance
    learner = segmentation(dimensions, 2, network, patch=patch, norm=norm)
    built = learner.build(1).train()
    count = 1 if network == "swinunetr" else 2
    images = torch.rand(2 if norm == "batch" else count, 1, *patch)
    outputs = built(images)
    assert outputs.shape == (len(images), 3, *patch)
    learner.loss(outputs, torch.randint(3, (len(images), 1, *patch))).backward()
    used = [p.grad for p in built.parameters() if p.grad is not None]
    assert len(used) > 0.9 * len(list(built.parameters()))
    assert all(grad.isfinite().all() for grad in used)
    kinds = {type(m).__name__ for m in built.modules() if "Norm" in type(m).__name__} - {"LayerNorm"}
    asked = {"group": "GroupNorm", "instance": f"InstanceNorm{dimensions}d", "batch": f"BatchNorm{dimensions}d"}
    assert kinds == {asked[norm]}


@pytest.mark.parametrize("network", sorted(SEGMENTERS))
def test_the_seed_alone_decides_the_weights(network: str) -> None:
    def weights(seed: int) -> torch.Tensor:
        return FlatNetwork(segmentation(2, network=network, patch=[64, 64]).build(seed)).weights

    torch.manual_seed(11)
    first = weights(7)
    torch.manual_seed(12)
    assert torch.equal(weights(7), first)
    assert not torch.equal(weights(8), first)


@pytest.mark.parametrize(
    ("network", "patch", "arguments", "says"),
    [
        ("swinunetr", [48, 64], {}, r"task\.patch: 48 x 64 pixels do not fit swinunetr .*divisible by 2\*\*5"),
        ("unet", [33, 32], {}, r"task\.patch: 33 x 32 pixels do not fit unet"),
        ("segresnet", [32, 33], {}, r"task\.patch: 32 x 33 pixels do not fit segresnet"),
        ("densenet121", [32, 32], {}, r"task\.network\.name: no network is called 'densenet121'"),
        ("unet", [32, 32], {"channels": [8]}, r"task\.network\.arguments: do not go together"),
        ("unet", [32, 32], {"strides": [2, 2, 2, 2]}, r"arguments: do not go together: 4 channels need 3 strides"),
        ("unet", [32, 32], {"act": "RELU"}, r"task\.network\.arguments\.act: is not an argument of unet"),
        ("segresnet", [32, 32], {"init_filters": 0}, r"task\.network\.arguments\.init_filters: "),
        ("swinunetr", [64, 64], {"feature_size": 13}, r"task\.network\.arguments\.feature_size: .*multiple of 12"),
        ("swinunetr", [64, 64], {"use_checkpoint": True}, r"arguments\.use_checkpoint: is not an argument"),
    ],
)
def test_a_network_that_cannot_be_built_is_answered_with_its_key(
    network: str, patch: list[int], arguments: dict[str, Any], says: str
) -> None:
    content = segmentation(patch=patch).settings.model_dump() | {"network": {"name": network, "arguments": arguments}}
    found = SegmentationTask(Segmentation.parse(content, source="test"))
    with pytest.raises(ConfigError, match=says):
        found.build(1)


def test_a_wrong_augmentation_is_refused_when_the_network_is_built() -> None:
    with pytest.raises(ConfigError, match=r"task\.augment\.0\.name"):
        segmentation(augment=[{"name": "RandDream"}]).build(1)


def test_the_loss_is_dice_of_the_classes_plus_cross_entropy() -> None:
    outputs = torch.tensor([[[0.0, 2.0], [1.0, -1.0]], [[1.0, 0.0], [0.0, 3.0]]])[None]  # (1, 2, 2, 2)
    target = torch.tensor([[[[1, 0], [0, 1]]]])
    chance = torch.softmax(outputs, 1)[0, 1]
    truth = target[0, 0].float()
    dice = 1 - (2 * (chance * truth).sum() + 1e-5) / (chance.sum() + truth.sum() + 1e-5)
    entropy = nn.functional.cross_entropy(outputs, target[:, 0])
    torch.testing.assert_close(segmentation().loss(outputs, target), dice + entropy)
    torch.testing.assert_close(segmentation()._without_class_numbers(outputs, target), dice + entropy)


def test_one_step_against_the_gradient_lowers_the_loss() -> None:
    learner = segmentation(3)
    network = learner.build(1)
    images, targets = learner.sample([learner.prepare(disk((36, 36, 36)))], torch.Generator().manual_seed(1))
    loss = learner.loss(network(images), targets)
    loss.backward()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter -= 0.01 * parameter.grad
        assert learner.loss(network(images), targets) < loss


def test_a_small_network_learns_disks_in_seconds() -> None:
    learner = segmentation(
        2, patches=2, foreground=0.5, augment=[{"name": "RandFlip", "arguments": {"prob": 0.5, "spatial_axis": 0}}]
    )
    network = FlatNetwork(learner.build(1))
    cases = Cases([learner.prepare(disk(seed=seed)) for seed in range(12)])
    unseen = Cases([learner.prepare(disk(seed=seed)) for seed in range(50, 54)])
    before = training.evaluate(network, learner, unseen)
    how = Training(steps=60, batch_size=4, optimizer="adam", learning_rate=0.02)
    training.fit(network, learner, cases, how, mu=0.0, seed=1)
    after = training.evaluate(network, learner, unseen)
    assert set(after) == {"loss", "dice", "hausdorff95"}
    assert before["dice"] < 0.5
    assert after["dice"] > 0.9
    assert after["loss"] < before["loss"]


@pytest.mark.parametrize("dimensions", [2, 3])
def test_training_on_patches_gives_the_same_update_each_time(dimensions: int) -> None:
    flips = [{"name": "RandFlip", "arguments": {"prob": 0.5}}, {"name": "RandGaussianNoise", "arguments": {"prob": 1}}]
    learner = segmentation(dimensions, patch=[16] * dimensions, augment=flips)
    how = Training(steps=3, batch_size=2, learning_rate=0.1)

    def update(seed: int) -> bytes:
        cases = Cases([learner.prepare(disk((24, 24, 8), radius=3, seed=seed)) for seed in range(3)])
        return training.fit(FlatNetwork(learner.build(1)), learner, cases, how, mu=0.1, seed=seed).tobytes()

    first = update(1)
    np.random.seed(3)
    torch.manual_seed(3)
    assert update(1) == first
    assert update(2) != first


# --- whole cases --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dimensions", "side"), [(2, (32, 32)), (3, (32, 32, 32)), (2, (32, 32, 5))])
def test_where_the_patch_is_the_image_the_window_slides_nowhere(dimensions: int, side: tuple[int, ...]) -> None:
    learner = segmentation(dimensions, classes=2)
    network, case = learner.build(1).eval(), learner.prepare(disk(side, radius=2))
    found = learner.infer(network, [case])[0]
    image = torch.from_numpy(case.image)
    with torch.no_grad():
        if image.ndim - 1 == dimensions:
            expected = network(image[None])[0]
        else:
            expected = torch.stack([network(image[None, ..., z])[0] for z in range(side[2])], -1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found.shape == (3, *side)
    assert learner.predict(network, case).shape == side


@pytest.mark.parametrize(("dimensions", "side"), [(2, (50, 33)), (2, (20, 70)), (3, (40, 20, 35)), (2, (40, 20, 3))])
def test_a_case_of_any_size_is_labelled_throughout_and_the_same_each_time(
    dimensions: int, side: tuple[int, ...]
) -> None:
    learner = segmentation(dimensions)
    network, case = learner.build(1).eval(), learner.prepare(disk(side, radius=2))
    found = learner.infer(network, [case])[0]
    assert found.shape == (2, *side)
    assert found.isfinite().all()
    assert torch.equal(learner.infer(network, [case])[0], found)


class Says(nn.Module):
    """A network that answers each image with the mask that was put into its voxels."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = nn.Parameter(torch.arange(classes).float())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        values = self.classes.view(1, -1, *[1] * (images.ndim - 2))
        return -20 * (images - values) ** 2


def test_scores_are_the_mean_over_cases_of_the_mean_over_the_classes_that_a_case_has() -> None:
    learner = segmentation(2, classes=2)
    truth = np.zeros((3, 32, 32), np.uint8)
    truth[0, 4:8, 4:8], truth[0, 20:24, 20:24] = 1, 2
    truth[1, 4:8, 4:8] = 1
    said = truth.copy()
    said[0, 4:8, 6:8] = 0  # half of class 1: Dice 2 * 8 / (8 + 16)
    said[1, 10, 10] = 2  # a class that is not there does not count
    said[2, 3, 3] = 1  # nor does a case without any
    cases = [Case(s[None].astype(np.float32), (1.0, 1.0), t) for s, t in zip(said, truth, strict=True)]
    network = FlatNetwork(Says(3))
    scores = training.evaluate(network, learner, Cases(cases), batch_size=2)
    assert scores["dice"] == pytest.approx(((2 * 8 / 24 + 1) / 2 + 1) / 2)
    assert scores["hausdorff95"] == pytest.approx(((2 + 0) / 2 + 0) / 2)
    assert all(type(value) is float for value in scores.values())
    assert set(training.evaluate(network, learner, Cases(cases), wanted=["dice", "auc"])) == {"dice"}
    assert set(training.evaluate(network, learner, Cases(cases[2:]))) == {"loss"}
    assert training.evaluate(network, learner, Cases([])) == {}


def test_a_diverged_network_is_refused_rather_than_scored() -> None:
    learner = segmentation(2)
    network = FlatNetwork(Says(2))
    network.weights.fill_(torch.nan)
    with pytest.raises(NotFinite):
        training.evaluate(network, learner, Cases([learner.prepare(disk())]))


# --- classification of volumes ------------------------------------------------------------------------


def test_volumes_are_classified_by_the_same_networks() -> None:
    from models.plan import Classification

    for network, arguments in (
        ("cnn", {"channels": [4, 8]}),
        ("densenet121", {"init_features": 8, "growth_rate": 4, "block_config": [2, 2]}),
        ("resnet18", {"widen_factor": 0.25}),
    ):
        settings = Classification.parse(
            {
                "name": "classification",
                "classes": ["none", "tumour"],
                "modality": ["MR"],
                "dimensions": 3,
                "size": [40, 32, 16],
                "spacing": [1.0, 1.0, 3.0],
                "zscore": "nonzero",
                "augment": [{"name": "RandFlip", "arguments": {"prob": 0.5}}],
                "network": {"name": network, "arguments": arguments},
            },
            source="test",
        )
        learner = task(settings)
        volume = np.random.default_rng(1).random((50, 60, 30), dtype=np.float32)
        cases = [learner.prepare(Case(volume * k, (0.5, 0.5, 3.0), label=k % 2)) for k in (1, 2, 3)]
        assert cases[0].image.shape == (1, 40, 32, 16)
        assert not cases[0].image[0, :7].any()  # 25 mm of volume in the middle of 40
        assert cases[0].image[0, 8:32, 1:31].all()
        network_ = FlatNetwork(learner.build(1))
        how = Training(steps=2, batch_size=2, learning_rate=0.1)
        first = training.fit(network_, learner, Cases(cases), how, mu=0.0, seed=1)
        assert np.isfinite(first).all()
        assert first.any()
        assert set(training.evaluate(network_, learner, Cases(cases))) == {"loss", "accuracy", "auc"}
