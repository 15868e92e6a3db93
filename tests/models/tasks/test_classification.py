"""Classification: images prepared and varied, results scored."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from models.errors import DataError, NotFinite
from models.plan import Classification
from models.tasks import Case, Task, task
from models.tasks.classification import ClassificationTask

torch.set_num_threads(1)


def classification(classes: int = 2, **changes: Any) -> ClassificationTask:
    content: dict[str, Any] = {
        "name": "classification",
        "classes": [f"class-{number}" for number in range(classes)],
        "modality": ["MR"],
        "size": (24, 32),
        "percentiles": (1, 99),
        "network": {"name": "cnn"},
    }
    return ClassificationTask(Classification.parse(content | changes, source="test"))


def prepared(image: np.ndarray, **changes: Any) -> np.ndarray:
    return classification(**changes).prepare(Case(image)).image


def scored(logits: torch.Tensor, targets: torch.Tensor, classes: int = 2) -> dict[str, float]:
    return classification(classes).score({"logits": logits, "targets": targets})


def area_by_pairs(scores: np.ndarray, positive: np.ndarray) -> float:
    """P(a positive ranks above a negative) + P(tie) / 2, pair by pair (Hanley and McNeil, 1982)."""
    differences = scores[positive][:, None] - scores[~positive][None, :]
    return float(np.mean((differences > 0) + 0.5 * (differences == 0)))


def test_the_study_s_task_is_found_by_its_name() -> None:
    found: Task = task(classification().settings)
    assert isinstance(found, ClassificationTask)
    assert found.metrics == {"loss", "accuracy", "auc"}
    assert found.build(3)(torch.zeros(2, 1, 24, 32)).shape == (2, 2)


# Preparation

IMAGE = np.random.default_rng(1).normal(300, 200, (64, 48)).astype(np.float32)


@pytest.mark.parametrize("normalisation", [{"percentiles": (1, 99)}, {"percentiles": None, "window": (300, 200)}])
@pytest.mark.parametrize("size", [(24, 32), (128, 128), (64, 48), (96, 24)])
def test_an_image_becomes_the_study_s_size_from_0_to_1(normalisation: dict[str, Any], size: tuple[int, int]) -> None:
    before = IMAGE.copy()
    found = prepared(IMAGE, size=size, **normalisation)
    assert found.shape == (1, *size)
    assert found.dtype == np.float32
    assert type(found) is np.ndarray
    assert 0 <= found.min() < 0.4 < 0.6 < found.max() <= 1
    np.testing.assert_array_equal(prepared(IMAGE, size=size, **normalisation), found)
    np.testing.assert_array_equal(IMAGE, before)


def test_a_window_is_a_fixed_scale_in_modality_units() -> None:
    how = {"size": (8, 8), "percentiles": None, "window": (40, 400)}
    for value, expected in [(-1000, 0), (-160, 0), (40, 0.5), (140, 0.75), (240, 1), (3000, 1)]:
        np.testing.assert_allclose(prepared(np.full((8, 8), value, np.float32), **how), expected, atol=1e-6)


def test_enlarging_does_not_round_past_the_range() -> None:
    bright = np.full((5, 6), 3000, np.float32)
    assert prepared(bright, size=(13, 13), percentiles=None, window=(40, 400)).max() == 1


def test_percentiles_forget_scale_and_offset() -> None:
    np.testing.assert_allclose(prepared(IMAGE * 4 + 1000), prepared(IMAGE), atol=1e-4)


def test_percentiles_are_those_of_the_definition() -> None:
    image = np.arange(64, dtype=np.float32).reshape(8, 8)
    low, high = np.percentile(image, [10, 90])
    expected = np.clip((image - low) / (high - low), 0, 1)
    found = prepared(image, size=(8, 8), percentiles=(10, 90))
    np.testing.assert_allclose(found[0], expected, atol=1e-6)


def test_shrinking_averages_so_that_no_pixel_is_lost() -> None:
    image = np.zeros((64, 64), np.float32)
    image[::8, ::8] = 1
    found = prepared(image, size=(8, 8), percentiles=None, window=(0.5, 1))
    np.testing.assert_allclose(found, 1 / 64, atol=1e-6)


@pytest.mark.parametrize("value", [0, -1024, 3.5e37])
@pytest.mark.parametrize("normalisation", [{}, {"percentiles": None, "window": (40, 400)}])
def test_a_constant_image_stays_finite(value: float, normalisation: dict[str, Any]) -> None:
    found = prepared(np.full((16, 16), value, np.float32), **normalisation)
    assert np.isfinite(found).all()
    assert np.ptp(found) < 1e-6


def test_a_small_structure_on_an_empty_ground_keeps_its_contrast() -> None:
    image = np.zeros((64, 64), np.float32)
    image[30, 30:33] = [100, 200, 400]
    found = prepared(image, size=(64, 64))
    np.testing.assert_allclose(found[0, 30, 29:34], [0, 0.25, 0.5, 1, 0], atol=1e-6)


@example(np.eye(9, 7, dtype=np.float32) * np.float32(1e-45))  # the smallest there is
@given(arrays(np.float32, (9, 7), elements=st.floats(-2000, 4000, width=32)))
def test_whatever_the_pixels_the_input_is_from_0_to_1(image: np.ndarray) -> None:
    found = prepared(image, size=(12, 8))
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_image_with_a_pixel_that_is_no_number_is_refused(bad: float) -> None:
    image = IMAGE.copy()
    image[3, 4] = bad
    with pytest.raises(DataError, match="NaN or infinity"):
        prepared(image)


# Augmentation


def images(count: int = 16) -> torch.Tensor:
    return torch.rand(count, 1, 24, 32, generator=torch.Generator().manual_seed(2))


def test_a_study_without_augmentation_changes_nothing_and_draws_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    before = generator.get_state()
    assert torch.equal(classification().augment(images(), generator), images())
    assert torch.equal(generator.get_state(), before)


def test_augmentation_repeats_with_its_generator_and_with_nothing_else() -> None:
    augment = classification(augment=True).augment
    batch, global_state = images(), torch.get_rng_state()
    np.random.seed(1)
    first = augment(batch, torch.Generator().manual_seed(9))
    np.random.seed(2)
    assert torch.equal(augment(batch, torch.Generator().manual_seed(9)), first)
    assert not torch.equal(augment(batch, torch.Generator().manual_seed(10)), first)
    assert torch.equal(torch.get_rng_state(), global_state)
    assert torch.equal(batch, images())


def test_augmentation_keeps_shape_and_range_and_varies_every_image() -> None:
    varied = classification(augment=True).augment(images(), torch.Generator().manual_seed(9))
    assert varied.shape == (16, 1, 24, 32)
    assert varied.dtype == torch.float32
    assert varied.min() >= 0
    assert varied.max() <= 1 + 1e-6
    same = images()[:1].repeat(16, 1, 1, 1)
    varied = classification(augment=True).augment(same, torch.Generator().manual_seed(9))
    assert len({row.numpy().tobytes() for row in varied}) == 16


def test_augmentation_mirrors_left_and_right_but_never_up_and_down() -> None:
    batch = torch.zeros(64, 1, 24, 32)
    batch[:, :, :, :8] = 0.25
    batch[:, :, :5] += 0.5
    varied = classification(augment=True).augment(batch, torch.Generator().manual_seed(9))
    mirrored = varied[..., -6:].mean((1, 2, 3)) > varied[..., :6].mean((1, 2, 3))
    assert 16 < int(mirrored.sum()) < 48
    assert (varied[:, :, :3].mean((1, 2, 3)) > varied[:, :, -3:].mean((1, 2, 3)) + 0.2).all()


def test_an_oblong_image_is_turned_and_zoomed_about_its_centre_without_shear() -> None:
    ys, xs = torch.meshgrid(torch.arange(64) - 31.5, torch.arange(128) - 63.5, indexing="ij")
    augment = classification(augment=True).augment

    def moved(x: float, y: float) -> torch.Tensor:
        """Where a blob at x, y (pixels from the centre) goes in 32 images, `(32, 2)`."""
        blob = torch.exp(-((xs - x) ** 2 + (ys - y) ** 2) / 8).expand(32, 1, -1, -1)
        varied = augment(blob, torch.Generator().manual_seed(4))
        return torch.stack([(varied * axis).sum((1, 2, 3)) / varied.sum((1, 2, 3)) for axis in (xs, ys)], 1)

    right, down = moved(30, 0) / 30, moved(0, 18) / 18
    zoom = down.norm(dim=1)
    torch.testing.assert_close(right.norm(dim=1), zoom, rtol=0, atol=0.01)
    torch.testing.assert_close((right * down).sum(1), torch.zeros(32), rtol=0, atol=0.01)
    degrees = torch.rad2deg(torch.atan2(down[:, 0], down[:, 1]))
    assert 0.89 < zoom.min() < 0.95 < 1.05 < zoom.max() < 1.11
    assert -10.1 < degrees.min() < -5 < 5 < degrees.max() < 10.1


# Loss and scores


def test_the_loss_is_the_mean_cross_entropy() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    loss = classification().loss(logits, torch.tensor([0, 1]))
    np.testing.assert_allclose(loss, (np.log1p(np.exp(-2)) + np.log(2)) / 2, rtol=1e-6)


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3), st.booleans()), min_size=2, max_size=40))
def test_the_area_of_two_classes_is_that_of_all_pairs_ties_included(
    rows: list[tuple[int, int, bool]],
) -> None:
    table = np.array(rows)
    positive = table[:, 2].astype(bool)
    scores = scored(torch.tensor(table[:, :2]).float(), torch.tensor(positive).long())
    if positive.all() or not positive.any():
        assert set(scores) == {"loss", "accuracy"}
    else:
        assert scores["auc"] == pytest.approx(area_by_pairs(table[:, 1] - table[:, 0], positive), abs=1e-12)


@given(st.integers(3, 5), st.integers(0, 10**6))
def test_the_area_of_more_classes_is_the_mean_of_one_against_the_rest(classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (30, classes)).astype(np.float32)
    targets = np.concatenate([np.arange(classes), rng.integers(0, classes, 30 - classes)])
    chances = np.exp(logits.astype(float))
    chances /= chances.sum(1, keepdims=True)
    expected = np.mean([area_by_pairs(chances[:, k], targets == k) for k in range(classes)])
    scores = scored(torch.from_numpy(logits), torch.from_numpy(targets), classes)
    assert scores["auc"] == pytest.approx(expected, abs=1e-9)


@given(st.integers(3, 5), st.integers(0, 10**6))
def test_the_same_odds_of_more_classes_are_a_tie(classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.integers(-2, 3, (30, classes))
    targets = np.concatenate([np.arange(classes), rng.integers(0, classes, 30 - classes)])
    against = [[math.fsum(math.exp(x - row[k]) for x in np.delete(row, k)) for row in logits] for k in range(classes)]
    expected = np.mean([area_by_pairs(-np.array(sums), targets == k) for k, sums in enumerate(against)])
    moved = torch.from_numpy(logits + rng.integers(-9, 10, (30, 1))).float()
    assert scored(moved, torch.from_numpy(targets), classes)["auc"] == pytest.approx(expected, abs=1e-12)


def test_confident_outputs_are_still_ranked() -> None:
    logits = torch.tensor([[0.0, 500.0], [0.0, 600.0], [0.0, 700.0]])
    scores = scored(logits, torch.tensor([0, 1, 1]))
    assert scores["auc"] == 1
    assert scores["loss"] == pytest.approx(500 / 3)


def test_scores_of_known_results() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 3.0]], dtype=torch.bfloat16)
    scores = scored(logits.requires_grad_(), torch.tensor([0, 1, 1, 1]))
    expected = np.mean([np.log1p(np.exp(-2)), np.log1p(np.exp(-1)), np.log1p(np.exp(1)), np.log1p(np.exp(-3))])
    assert scores == {"loss": pytest.approx(expected), "accuracy": 0.75, "auc": 1.0}
    assert all(type(value) is float for value in scores.values())


@pytest.mark.parametrize(("classes", "targets"), [(2, [0, 0]), (2, [1, 1]), (3, [0, 1])])
def test_there_is_no_area_when_a_class_does_not_occur(classes: int, targets: list[int]) -> None:
    scores = scored(torch.zeros(2, classes), torch.tensor(targets), classes)
    assert set(scores) == {"loss", "accuracy"}


def test_no_images_have_no_scores() -> None:
    assert scored(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64)) == {}


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_diverged_network_is_refused_rather_than_scored(bad: float) -> None:
    with pytest.raises(NotFinite):
        scored(torch.tensor([[0.0, bad], [0.0, 0.0]]), torch.tensor([0, 1]))


def test_the_small_network_learns_a_bright_spot_in_seconds() -> None:
    learner = classification(size=(64, 64), augment=True)
    generator = torch.Generator().manual_seed(0)
    batch = 0.5 * torch.rand(96, 1, 64, 64, generator=generator)
    targets = torch.arange(96) % 2
    for index in range(1, 96, 2):
        y, x = torch.randint(16, 40, (2,), generator=generator).tolist()
        batch[index, 0, y : y + 8, x : x + 8] += 0.5
    network = learner.build(1)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    fit: Callable[[torch.Tensor], torch.Tensor] = lambda rows: learner.loss(  # noqa: E731
        network(learner.augment(batch[rows], generator)), targets[rows]
    )
    for _ in range(12):
        for rows in torch.randperm(64, generator=generator).split(16):
            optimizer.zero_grad()
            fit(rows).backward()
            optimizer.step()
    with torch.no_grad():
        scores = learner.score({"logits": network(batch[64:]), "targets": targets[64:]})
    assert scores["auc"] > 0.95
