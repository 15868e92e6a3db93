"""A released model at work: DICOM in, the study's own prediction out.

    from monai.bundle import ConfigWorkflow
    work = ConfigWorkflow("model/configs/inference.json", workflow_type="infer", logging_file=False,
                          bundle_root="model", dataset_dir="series", output="predictions.json")
    work.initialize(); work.run()

These are the parts that the MONAI bundle of `intramural-aggregator release` names. Each takes the bundle's
folder and finds in its `agreement.json` what the study is; the network, the preparation of images and the
prediction are the task's, the very code that trained the model. Images are chosen as for training: the
study's modality, no screenshots, no burned-in names. Whose model it is, and whether somebody changed it,
`intramural-audit check` says; here it must only fit the study.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models import tasks
from models.errors import ConfigError, DataError, Malformed, SpecMismatch
from models.exchange.documents import Agreement
from models.exchange.spec import load_vector
from models.ledger.disk import create
from models.tasks import Case
from silos.dicom.decode import read_image
from silos.dicom.header import UnreadableFile
from silos.dicom.scan import scan


def agreement(bundle_root: str | Path) -> Agreement:
    """What the hospitals of a bundle's study approved.

    Raises:
        ConfigError: The folder is no bundle of a released model.
    """
    path = Path(bundle_root) / "agreement.json"
    try:
        return Agreement.decode(path.read_bytes())
    except (OSError, Malformed) as error:
        raise ConfigError(f"{path}: cannot be read: {error}", "give the folder of a released model") from error


def network(bundle_root: str | Path, device: torch.device | str = "cpu") -> nn.Module:
    """The study's network with the released model in it, ready to predict.

    Args:
        bundle_root: The bundle's folder.
        device: Where it is to live.

    Raises:
        ConfigError: The study keeps its normalisation layers in the hospitals, so that nobody else has the whole of it.
        DataError: The model's file is missing or damaged.
        SpecMismatch: It is a model of another study's network.
    """
    found = agreement(bundle_root)
    flat = tasks.network(found.plan, device)
    if found.plan.strategy.local_norm:
        raise ConfigError(
            "strategy.local_norm: each hospital keeps a part of this network, which no release holds",
            "run the model in a hospital that trained it",
        )
    path = Path(bundle_root) / "models" / "model.safetensors"
    spec, vector = load_vector(path)
    if {flat.spec.digest, spec.digest} != {found.spec}:
        raise SpecMismatch(f"{path}: has other arrays than the study's network", "ask for the release again")
    flat.load(vector)
    return flat.module.eval()


def preprocessing(bundle_root: str | Path) -> Callable[[Path], torch.Tensor]:
    """A function from a DICOM file to the network's input, `(1, h, w)` float32, as in training."""
    task = tasks.task(agreement(bundle_root).plan.task)
    return lambda path: torch.from_numpy(task.prepare(Case(read_image(path))).image)


def postprocessing(bundle_root: str | Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function from the network's outputs to the task's prediction."""
    return tasks.task(agreement(bundle_root).plan.task).probabilities


def images(bundle_root: str | Path, dataset_dir: str | Path) -> list[Path]:
    """The DICOM files to predict.

    Args:
        bundle_root: The bundle's folder.
        dataset_dir: One file, which is taken as it is; or a folder, of which the usable images are taken,
            sorted by series and instance number.

    Raises:
        DataError: The folder is missing, or holds no image that the study could use.
    """
    path = Path(dataset_dir)
    if path.is_file():
        return [path]
    modality = agreement(bundle_root).plan.task.modality
    with tempfile.TemporaryDirectory() as work:
        found = scan(path, Path(work) / "index.sqlite", modality=modality)
    if found.instances.empty:
        raise DataError(
            f"{path}: holds no usable image of modality {', '.join(modality)} ({dict(found.left_out)} left out)",
            "give a folder with DICOM images as the study has them",
        )
    return [path / name for name in found.instances["path"]]


class Images:
    """Prepared images, read when they are asked for.

    Args:
        data: The files.
        transform: Makes a tensor of one.
    """

    def __init__(self, data: Sequence[Path], transform: Callable[[Path], torch.Tensor]) -> None:
        self.data, self.transform = list(data), transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, number: int) -> torch.Tensor:
        return self.transform(self.data[number])


class Evaluator:
    """Runs a network over images, a batch at a time.

    Args:
        network: Ready to predict.
        dataset: Prepared images.
        inferer: MONAI's way of calling a network.
        postprocessing: Makes a prediction of the outputs.
        device: Where the network lives.
        batch_size: Images at a time.

    Attributes:
        left_out: After `run`: reason -> number of images that could not be read.
    """

    def __init__(
        self,
        network: nn.Module,
        dataset: Images,
        inferer: Callable[[torch.Tensor, nn.Module], torch.Tensor],
        postprocessing: Callable[[torch.Tensor], torch.Tensor],
        device: torch.device | str = "cpu",
        batch_size: int = 16,
    ) -> None:
        self.network, self.dataset, self.inferer = network, dataset, inferer
        self.postprocessing, self.device, self.batch_size = postprocessing, device, batch_size
        self.left_out: Counter[str] = Counter()

    @torch.no_grad()
    def run(self) -> list[tuple[Path, torch.Tensor]]:
        """Each readable image's prediction, on the CPU; for classification `(K,)` float32, adding up to 1."""
        self.left_out = Counter()
        found: list[tuple[Path, torch.Tensor]] = []
        for start in range(0, len(self.dataset), self.batch_size):
            batch = [(self.dataset.data[n], item) for n in self._rows(start) if (item := self._read(n)) is not None]
            if batch:
                inputs = torch.stack([item for _, item in batch]).to(self.device)
                outputs = self.postprocessing(self.inferer(inputs, self.network).float()).cpu()
                found += zip((path for path, _ in batch), outputs, strict=True)
        return found

    def _rows(self, start: int) -> range:
        return range(start, min(start + self.batch_size, len(self.dataset)))

    def _read(self, number: int) -> torch.Tensor | None:
        try:
            return self.dataset[number]
        except UnreadableFile as error:
            self.left_out[error.reason.value] += 1
        except DataError:
            self.left_out["pixel values out of range"] += 1
        return None


def write(bundle_root: str | Path, evaluator: Evaluator, output: str | Path) -> Path:
    """Predict, and write one number for each class of each image, as JSON that only its owner can read.

    Args:
        bundle_root: The bundle's folder.
        evaluator: What predicts.
        output: The file; nothing is overwritten.

    Returns:
        The file.

    Raises:
        ConfigError: The file exists, or the task predicts something else than classes.
    """
    found, path = agreement(bundle_root), Path(output)
    classes = found.plan.task.classes
    if path.exists():
        raise ConfigError(f"{path}: exists already", "choose another file; nothing is overwritten")
    listed = []
    for image, prediction in evaluator.run():
        if prediction.shape != (len(classes),):
            raise ConfigError(f"task {found.plan.task.name}: does not predict classes", "call the evaluator's run()")
        listed.append({"image": str(image), "prediction": dict(zip(classes, prediction.tolist(), strict=True))})
    content: dict[str, Any] = {"study": found.study, "images": listed, "left_out": dict(evaluator.left_out)}
    create(path, (json.dumps(content, indent=2) + "\n").encode(), 0o600)
    return path
