"""Make-believe hospitals and one study, for the tests of what a hospital does."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from models.plan import Plan
from silos.config import Site
from silos.phantom import write_hospital

PLAN: dict[str, Any] = {
    "name": "demo",
    "purpose": "find lesions",
    "rounds": 5,
    "metrics": ["loss", "auc"],
    "task": {
        "name": "classification",
        "classes": ["none", "lesion"],
        "modality": ["MR"],
        "size": [16, 16],
        "percentiles": [1, 99],
        "network": {"name": "cnn", "arguments": {"channels": [8, 16]}},
    },
    "training": {"epochs": 1, "batch_size": 8, "learning_rate": 0.1},
}


def make_plan(**changes: Any) -> Plan:
    """The study, some of its keys changed; a dict is merged into a table."""
    merged = {
        key: PLAN[key] | value if isinstance(value, dict) and key in PLAN else value for key, value in changes.items()
    }
    return Plan.model_validate(PLAN | merged)


@pytest.fixture(name="make_plan", scope="session")
def make_plan_fixture() -> Callable[..., Plan]:
    return make_plan


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Site]:
    """Style -> a hospital of 12 patients with 3 images each."""

    @cache
    def write(style: int) -> Site:
        folder = tmp_path_factory.mktemp("phantom") / "north"
        return Site.load(write_hospital(folder, name="north", seed=7, patients=12, images=3, size=32, style=style))

    return write
