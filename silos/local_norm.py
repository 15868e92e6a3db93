"""What a hospital keeps of its own network between the rounds of a study with `local_norm` or SCAFFOLD.

FedBN (Li et al., ICLR 2021, arXiv 2102.07623) lets every hospital keep its normalisation layers. They are
part of the model that the next round starts from, so they are kept like one: on disk, by round, written before
the round's update leaves.

    local_norm.recall(folder, network, order.round, order.counted, train=True)  # before the visit
    ...                                                                         # evaluate, train
    local_norm.remember(folder, network, order.round, order.counted)            # after training, before the answer

The rule: round r trains from the newest state of a round *before* r, and is evaluated without training (the
last visit) with the newest state *up to* r. An order followed twice, because the process died or the answer was
lost, therefore starts twice from the same state and comes to the same update. A hospital that was absent goes
on with the state of its own last round; its first round starts from the network as it was built.

SCAFFOLD's control variate is another matter: the consortium's is the mean of the hospitals' own only if a
hospital's own moves with the updates that were combined, and whether one was is known to the coordinator alone. Its
order names the last round of which that is so, and the variate is that round's; at first it is zero.

The files say something of this hospital's images. They never leave; only their owner can read them.
"""

from pathlib import Path

import torch

from models.errors import DataError
from models.exchange.spec import Vector, load_vector, save_vector
from models.ledger.disk import sync_folder
from models.tasks.flat import FlatNetwork

_SUFFIX = ".safetensors"


def recall(folder: Path, network: FlatNetwork, round_: int, counted: int | None = None, *, train: bool) -> None:
    """Put what the hospital kept back into a network.

    Args:
        folder: Of this study, in the site's work folder; need not exist.
        network: Its local part is set; untouched if it has none.
        round_: Of the order, from 1.
        counted: The round whose control variate is the hospital's; None if there is none yet.
        train: Whether the order is to train; else the model is only evaluated.

    Raises:
        DataError: A state is no file of this network's layers, or that of the counted round is missing.
    """
    if not network.local_spec.size:
        return
    last = newest(folder, round_ - 1 if train else round_)
    if last is None:
        network.load_local(None)
    else:
        put_back(last, network)
    if network.own is not None:
        network.own.zero_()
        if counted is not None:
            own = _read(_path(folder, counted), network)[-network.own.numel() :]
            network.own.copy_(torch.from_numpy(own))


def put_back(path: Path, network: FlatNetwork) -> None:
    """Put one kept state into a network.

    Args:
        path: Its file.
        network: Its local part is set.

    Raises:
        DataError: It is no file of this network's layers.
    """
    network.load_local(_read(path, network))


def newest(folder: Path, limit: int) -> Path | None:
    """The file of the newest state of a round up to `limit`, if there is one."""
    last = max((round_ for round_ in _rounds(folder) if round_ <= limit), default=None)
    return None if last is None else _path(folder, last)


def remember(folder: Path, network: FlatNetwork, round_: int, counted: int | None = None) -> None:
    """Keep what a round's training made of the local part; durable when this returns.

    The newest state before it and that of the counted round stay too, in case the round is asked for once more, or does
    not count; other older ones are deleted.

    Args:
        folder: Of this study, in the site's work folder; made if it is not there.
        network: Trained; nothing is written if it has no local part.
        round_: The round that it was trained in.
        counted: The round whose control variate it was given.

    Raises:
        DataError: It cannot be written.
    """
    if not network.local_spec.size:
        return
    try:
        if not folder.exists():
            folder.mkdir(parents=True, mode=0o700)
            sync_folder(folder.parent)
            sync_folder(folder.parent.parent)
        save_vector(_path(folder, round_), network.local_spec, network.local.cpu().numpy())
        older = [kept for kept in _rounds(folder) if kept < round_]
        for kept in set(older[:-1]) - {counted}:
            _path(folder, kept).unlink()
    except OSError as error:
        raise DataError(
            f"run.work: {folder} cannot be written: {error}", "free space or correct its permissions"
        ) from error


def _read(path: Path, network: FlatNetwork) -> Vector:
    spec, vector = load_vector(path)
    if spec != network.local_spec:
        raise DataError(f"{path}: holds other layers than the study's network", "restore the file")
    return vector


def _path(folder: Path, round_: int) -> Path:
    return folder / f"{round_:05}{_SUFFIX}"


def _rounds(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in folder.glob(f"*{_SUFFIX}") if path.stem.isdecimal())
