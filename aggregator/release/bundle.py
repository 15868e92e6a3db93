"""The MONAI bundle around a released model: which installed code runs it, and what goes in and comes out.

A MONAI configuration is code: every `$` in it is evaluated, and every `_target_` is called. So nothing that
anybody typed stands in `inference.json`. It is the same for every study, names parts of `silos.inference`,
and those read what the study is from `agreement.json`; `metadata.json` holds words of the plan, but
none of the characters that MONAI would follow.

Formats: MONAI Bundle Specification; metadata schema of 2024-07-25.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from aggregator.exports.fact import text
from aggregator.release.papers import Papers
from models.errors import ConfigError
from models.plan import Classification, Imaging, Segmentation, TaskSettings

_SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
_VERSION = "1.0.0"  # a study closes with one model
_FOLDER = "@bundle_root"

STAYS = (
    "This is not the whole network: each hospital keeps its own normalisation layers (FedBN), which no release holds."
    " Only a hospital that took part can run it, with what it kept."
)

CONFIGURATION: Mapping[str, Any] = MappingProxyType(
    {
        "bundle_root": ".",
        "dataset_dir": "dicom",
        "output": "../predictions",  # not beside the files that were signed
        "batch_size": 16,
        "local": None,  # what a hospital kept of a network whose normalisation layers stay at home
        "device": {"_target_": "silos.training.device_for", "name": "auto"},
        "network_def": {
            "_target_": "silos.inference.network",
            "bundle_root": _FOLDER,
            "device": "@device",
            "local": "@local",
        },
        "preprocessing": {"_target_": "silos.inference.preprocessing", "bundle_root": _FOLDER},
        "dataset": {
            "_target_": "silos.inference.Cases",
            "data": {
                "_target_": "silos.inference.dicom_sources",
                "bundle_root": _FOLDER,
                "dataset_dir": "@dataset_dir",
            },
            "transform": "@preprocessing",
        },
        "inferer": {"_target_": "silos.inference.inferer", "bundle_root": _FOLDER},
        "postprocessing": {"_target_": "silos.inference.postprocessing", "bundle_root": _FOLDER},
        "evaluator": {
            "_target_": "silos.inference.Evaluator",
            "network": "@network_def",
            "dataset": "@dataset",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "batch_size": "@batch_size",
        },
        "run": {
            "_target_": "silos.inference.written.write",
            "bundle_root": _FOLDER,
            "evaluator": "@evaluator",
            "output": "@output",
        },
    }
)
"""`configs/inference.json`, of every study; what it calls, `audit.origin` lists for whoever checks it."""


def as_json(content: Mapping[str, Any]) -> bytes:
    """A configuration as its file: JSON that people read too."""
    return (json.dumps(dict(content), indent=4, ensure_ascii=False) + "\n").encode()


def metadata(told: Papers) -> dict[str, Any]:
    """`configs/metadata.json` of a model.

    Raises:
        ConfigError: It is not known here what goes in and comes out of a task of this kind.
    """
    plan, task = told.plan, told.plan.task
    classes, modality = _inert(", ".join(task.classes)), _inert(", ".join(task.modality))
    whole = "" if not plan.strategy.local_norm else f" {STAYS}"
    return {
        "schema": _SCHEMA,
        "version": _VERSION,
        "changelog": {_VERSION: f"Model of round {told.round} of {plan.rounds}, sha256 {told.model}"},
        "monai_version": _newest(told, "monai"),
        "pytorch_version": _newest(told, "torch"),
        "numpy_version": np.__version__,
        "required_packages_version": {"intramural": _newest(told, "intramural")},
        "name": plan.name,
        "task": f"{task.name} of {modality} images: {classes}",
        "description": f"Trained federated by {len(told.hospitals)} hospitals. Purpose: {_inert(plan.purpose)}{whole}",
        "authors": f"The hospitals and the coordinator of the study {plan.name}",
        "copyright": "See LICENSE and docs/README.md",
        "data_source": "Stays in the hospitals; docs/README.md says what is told of it",
        "data_type": "dicom",
        "image_classes": f"{modality}, {_intensities(task)}",
        "pred_classes": classes,
        "eval_metrics": {name: dict(hospital.metrics) for name, hospital in told.hospitals.items()},
        "intended_use": "Research. This is no medical device.",
        "study": told.agreement.study,
        "model_digest": told.model,
        "local_norm": plan.strategy.local_norm,
        "network_data_format": data_format(task),
    }


def data_format(task: TaskSettings) -> dict[str, Any]:
    """What goes into a task's network and what comes out, in the words of MONAI's specification.

    Raises:
        ConfigError: It is not known here.
    """
    if task.name not in FORMATS:
        raise ConfigError(
            f"task.name: no bundle can be made of {task.name!r}, a task of your own", "hand out the model file itself"
        )
    return FORMATS[task.name](task)


def _classification(task: Classification) -> dict[str, Any]:
    """One image or volume in, one number for each class out."""
    scores = {
        "format": "classes",
        "num_channels": len(task.classes),
        "spatial_shape": [],
        "dtype": "float32",
        "is_patch_data": False,
        "channel_def": _channels(task.classes),
    }
    return {
        "inputs": {"image": _image(task, task.size, patch=False)},
        "outputs": {"pred": {"type": "logits", **scores, "value_range": []}},
        "post_processed_outputs": {"pred": {"type": "probabilities", **scores, "value_range": [0, 1]}},
    }


def _segmentation(task: Segmentation) -> dict[str, Any]:
    """A block of an image in, one number for background and each class in each voxel out; in the end, a mask."""
    channels = _channels(["background", *task.classes])
    common = {"type": "image", "channel_def": channels}
    logits = {
        **common,
        "format": "labels",
        "num_channels": len(channels),
        "spatial_shape": list(task.patch),
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": True,
    }
    mask = {
        **common,
        "format": "segmentation",
        "num_channels": 1,
        "spatial_shape": ["*", "*", "*"],  # of the series as it was acquired
        "dtype": "uint8",
        "value_range": [0, len(task.classes)],
        "is_patch_data": False,
    }
    return {
        "inputs": {"image": _image(task, task.patch, patch=True)},
        "outputs": {"pred": logits},
        "post_processed_outputs": {"pred": mask},
    }


def _image(task: Imaging, shape: Sequence[int], *, patch: bool) -> dict[str, Any]:
    return {
        "type": "image",
        "format": "magnitude",
        "modality": _inert(", ".join(task.modality)),
        "num_channels": 1,
        "spatial_shape": list(shape),
        "dtype": "float32",
        "value_range": [0, 1] if task.percentiles or task.window else [],
        "is_patch_data": patch,
        "channel_def": {"0": "image"},
    }


def _channels(names: Sequence[str]) -> dict[str, str]:
    return {str(number): name for number, name in enumerate(names)}


def _intensities(task: TaskSettings) -> str:
    """How the images' values were made comparable, in words."""
    if not isinstance(task, Imaging) or task.percentiles or task.window:
        return "from 0 to 1"
    return "mean 0 and deviation 1" if task.zscore else "on the scale of the study's landmarks"


FORMATS: Mapping[str, Callable[[Any], dict[str, Any]]] = MappingProxyType(
    {"classification": _classification, "segmentation": _segmentation}
)
"""By name of the task; a further kind of task is one function and one line here."""


def _newest(told: Papers, name: str) -> str:
    """The newest version of a package that computed this model, without what was built into it."""
    found = {hospital.software.get(name, "").partition("+")[0] for hospital in told.hospitals.values()} - {""}
    return max(found, key=_parts, default="unknown")


def _parts(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


def _inert(words: str) -> str:
    """Words of the plan, of which MONAI's parser would follow none: neither expression nor reference nor macro."""
    return re.sub(r"[$@%#]", " ", text(words)).strip()
