"""A released model at work: DICOM in, the study's own prediction out.

    from monai.bundle import ConfigWorkflow
    work = ConfigWorkflow("model/configs/inference.json", workflow_type="infer", logging_file=False,
                          bundle_root="model", dataset_dir="series", output="predictions")
    work.initialize(); work.run()

These are the parts that the MONAI bundle of `intramural-aggregator release` names. Each takes the bundle's
folder and finds in its `agreement.json` what the study is; the network, the preparation of images, the windows
and the prediction are the task's, the very code that trained and judged the model. Images are chosen as for
training: the study's modality, no screenshots, no burned-in names, slices that make a volume. Whose model it is,
and whether somebody changed it, `intramural-audit check` says; here it must only fit the study.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from models import tasks
from models.errors import ConfigError, DataError, Malformed, SpecMismatch
from models.exchange.documents import Agreement
from models.exchange.spec import Vector, load_vector, vector_digest
from models.plan import TaskSettings
from models.tasks import Case
from models.tasks.flat import FlatNetwork
from models.tasks.preparation import VolumeTooLarge, resize
from silos import local_norm
from silos.dataset import OUT_OF_RANGE
from silos.dicom.decode import read_image
from silos.dicom.geometry import Floats, Misfit
from silos.dicom.header import UnreadableFile
from silos.dicom.upright import as_acquired
from silos.inference.sources import Source, Sources, find
from silos.reading import read_stack

NOT_FINITE = "the network's output is not finite"

Infer = Callable[[nn.Module, Sequence[Case]], list[torch.Tensor]]


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


def network(bundle_root: str | Path, device: torch.device | str = "cpu", local: str | Path | None = None) -> nn.Module:
    """The study's network with the released model in it, ready to predict.

    Args:
        bundle_root: The bundle's folder.
        device: Where it is to live.
        local: In a study whose hospitals keep their normalisation layers (FedBN), the file in which one of them
            kept its own; its results are for that hospital's images.

    Raises:
        ConfigError: The study keeps layers in the hospitals and no file of them is given, or the other way round.
        DataError: A file is missing or damaged, or holds other layers.
        SpecMismatch: It is a model of another study's network.
    """
    found = agreement(bundle_root)
    flat, (_, vector) = tasks.network(found.plan, device), model(bundle_root)
    if flat.spec.digest != found.spec:
        raise SpecMismatch("the network that is installed here has other arrays than the study's", "install its MONAI")
    flat.load(vector)
    if found.plan.strategy.local_norm:
        _put_back(flat, local)
    elif local is not None:
        raise ConfigError(f"{local}: the study keeps no layers in its hospitals", "leave local out")
    return flat.module.eval()


def model(bundle_root: str | Path) -> tuple[str, Vector]:
    """The released model, `(spec.size,)` float32, and its digest.

    Raises:
        ConfigError: The folder is no bundle.
        DataError: The model's file is missing or damaged.
        SpecMismatch: It is a model of another study's network.
    """
    path = Path(bundle_root) / "models" / "model.safetensors"
    spec, vector = load_vector(path)
    if spec.digest != agreement(bundle_root).spec:
        raise SpecMismatch(f"{path}: has other arrays than the study's network", "ask for the release again")
    return vector_digest(spec.digest, vector), vector


def preprocessing(bundle_root: str | Path) -> "Callable[[Source], Item]":
    """A function from what was found to the network's input, as in training."""
    return partial(_read, agreement(bundle_root).plan.task)


def inferer(bundle_root: str | Path) -> Infer:
    """A function from a network and cases to its outputs, as evaluation during the study calls it."""
    return tasks.task(agreement(bundle_root).plan.task).infer


def postprocessing(bundle_root: str | Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function from the network's outputs `(B, K, ...)` to probabilities."""
    return tasks.task(agreement(bundle_root).plan.task).probabilities


def dicom_sources(bundle_root: str | Path, dataset_dir: str | Path) -> Sources:
    """What there is to predict; see `find`.

    Args:
        bundle_root: The bundle's folder.
        dataset_dir: A folder; or one image, where the study is of images.
    """
    return find(Path(dataset_dir), agreement(bundle_root).plan.task)


@dataclass(frozen=True, eq=False)
class Item:
    """One prepared case.

    Attributes:
        source: What it was made of.
        shape: Of what was decoded, upright.
        affine: (4, 4), from its indices to mm in RAS; None of an image.
        slices_last: Whether its last axis is that of the slices.
        case: Prepared.
    """

    source: Source
    shape: tuple[int, ...]
    affine: Floats | None
    slices_last: bool
    case: Case


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the model says of one case.

    Attributes:
        item: The case.
        probabilities: Float32: `(K,)` of classes; or `(K + 1, *spatial)`, background first, of each voxel as the
            network saw it.
    """

    item: Item
    probabilities: torch.Tensor

    def mask(self) -> npt.NDArray[np.uint8]:
        """The most probable class of each voxel of the series as it was acquired.

        The probabilities are brought back to its grid by themselves, linearly, before the greatest is taken. Where
        the study left the grid alone this is the task's own mask.

        Returns:
            (columns, rows, slices): 0 for background, k for the study's k-th class.
        """
        stack, affine = self.item.source.stack, self.item.affine
        if stack is None or affine is None or self.probabilities.ndim == 1:
            raise DataError("there is no mask of this task's predictions")
        found, highest = np.zeros(stack.shape, np.uint8), np.full(stack.shape, -1, np.float32)
        for index, values in enumerate(self.probabilities.numpy()):
            upright = values if values.shape == self.item.shape else resize(values, self.item.shape)
            if upright.ndim == 2:  # a slice without others
                upright = upright[..., None]
            here = as_acquired(upright, affine, stack, slices_last=self.item.slices_last)
            more = here > highest
            found[more], highest[more] = index, here[more]
        return found


class Cases:
    """Prepared cases, read when they are asked for.

    Args:
        data: What was found.
        transform: Makes a case of one.
    """

    def __init__(self, data: Sources, transform: Callable[[Source], Item]) -> None:
        self.data, self.transform = data, transform

    def __len__(self) -> int:
        return len(self.data.found)

    def __getitem__(self, number: int) -> Item:
        return self.transform(self.data.found[number])


class Evaluator:
    """Runs a network over cases: images a batch at a time, volumes one by one.

    Args:
        network: Ready to predict.
        dataset: Prepared cases.
        inferer: The task's way of calling a network.
        postprocessing: Makes probabilities of the outputs.
        batch_size: Images at a time.

    Attributes:
        left_out: What is not predicted, by reason: files of the folder, and after `run` cases that could not be read
            or of which the network says nothing finite.
    """

    def __init__(
        self,
        network: nn.Module,
        dataset: Cases,
        inferer: Infer,
        postprocessing: Callable[[torch.Tensor], torch.Tensor],
        batch_size: int = 16,
    ) -> None:
        self.network, self.dataset, self.inferer = network, dataset, inferer
        self.postprocessing, self.batch_size = postprocessing, batch_size
        self.left_out = Counter(dataset.data.left_out)

    def run(self) -> list[Prediction]:
        """Everything at once; `predictions` holds only one volume in memory."""
        return list(self.predictions())

    def predictions(self) -> Iterator[Prediction]:
        """Each readable case's prediction, in the order in which they were found; none that is not finite."""
        self.left_out = Counter(self.dataset.data.left_out)
        volumes = any(source.stack for source in self.dataset.data.found)
        size = 1 if volumes else self.batch_size
        for start in range(0, len(self.dataset), size):
            rows = range(start, min(start + size, len(self.dataset)))
            batch = [item for number in rows if (item := self._read(number)) is not None]
            if batch:
                outputs = self.inferer(self.network, [item.case for item in batch])
                for item, output in zip(batch, outputs, strict=True):
                    probabilities = self.postprocessing(output[None])[0]
                    if probabilities.isfinite().all():
                        yield Prediction(item, probabilities)
                    else:
                        self.left_out[NOT_FINITE] += 1

    def _read(self, number: int) -> Item | None:
        try:
            return self.dataset[number]
        except UnreadableFile as error:
            self.left_out[error.reason.value] += 1
        except VolumeTooLarge:
            self.left_out[Misfit.TOO_LARGE.value] += 1
        except DataError:
            self.left_out[OUT_OF_RANGE] += 1
        return None


def _read(settings: TaskSettings, source: Source) -> Item:
    task = tasks.task(settings)
    if source.stack is None:
        case, affine = Case(read_image(source.root / source.path)), None
    else:
        case, affine = read_stack(source.stack, source.root, settings.unit)
    return Item(source, case.image.shape, affine, settings.unit == "either", task.prepare(case))


def _put_back(flat: FlatNetwork, local: str | Path | None) -> None:
    """The layers that a hospital kept."""
    if local is None:
        raise ConfigError(
            "strategy.local_norm: each hospital keeps its own normalisation layers, which no release holds",
            "a hospital that took part gives its own as local: WORK/local/STUDY/ROUND.safetensors, the newest;"
            " intramural-silo predict finds it",
        )
    local_norm.put_back(Path(local), flat)
