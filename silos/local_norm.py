"""What a hospital keeps of its own network between the rounds of a study with `local_norm`.

FedBN (Li et al., ICLR 2021, arXiv 2102.07623) lets every hospital keep its normalisation layers. They are
part of the model that the next round starts from, so they are kept like one: on disk, by round, written before
the round's update leaves.

    local_norm.recall(folder, network, order.round, train=True)    # before the visit
    ...                                                            # evaluate, train
    local_norm.remember(folder, network, order.round)              # after training, before the answer

The rule: round r trains from the newest state of a round *before* r, and is evaluated without training (the
last visit) with the newest state *up to* r. An order followed twice, because the process died or the answer was
lost, therefore starts twice from the same state and comes to the same update. A hospital that was absent goes
on with the state of its own last round; its first round starts from the network as it was built.

The files say something of this hospital's images. They never leave; only their owner can read them.
"""

from functools import partial
from pathlib import Path

from models.errors import DataError
from models.exchange.spec import load_vector, save_vector
from models.ledger.disk import sync_folder
from models.tasks.flat import FlatNetwork

_SUFFIX = ".safetensors"


def recall(folder: Path, network: FlatNetwork, round_: int, *, train: bool) -> None:
    """Put what the hospital kept back into a network.

    Args:
        folder: Of this study, in the site's work folder; need not exist.
        network: Its local part is set; untouched if it has none.
        round_: Of the order, from 1.
        train: Whether the order is to train; else the model is only evaluated.

    Raises:
        DataError: A state is no file of this network's layers.
    """
    if not network.local_spec.size:
        return
    last = newest(folder, round_ - 1 if train else round_)
    if last is None:
        network.load_local(None)
    else:
        put_back(last, network)


def put_back(path: Path, network: FlatNetwork) -> None:
    """Put one kept state into a network.

    Args:
        path: Its file.
        network: Its local part is set.

    Raises:
        DataError: It is no file of this network's layers.
    """
    spec, vector = load_vector(path)
    if spec != network.local_spec:
        raise DataError(f"{path}: holds other layers than the study's network", "restore the file")
    network.load_local(vector)


def newest(folder: Path, limit: int) -> Path | None:
    """The file of the newest state of a round up to `limit`, if there is one."""
    last = max((round_ for round_ in _rounds(folder) if round_ <= limit), default=None)
    return None if last is None else _path(folder, last)


def remember(folder: Path, network: FlatNetwork, round_: int) -> None:
    """Keep what a round's training made of the local part; durable when this returns.

    The newest state before it stays too, in case the round is asked for once more; older ones are deleted.

    Args:
        folder: Of this study, in the site's work folder; made if it is not there.
        network: Trained; nothing is written if it has no local part.
        round_: The round that it was trained in.

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
        before = newest(folder, round_ - 1)
        for kept in map(partial(_path, folder), _rounds(folder)):
            if before is not None and kept < before:
                kept.unlink()
    except OSError as error:
        raise DataError(
            f"run.work: {folder} cannot be written: {error}", "free space or correct its permissions"
        ) from error


def _path(folder: Path, round_: int) -> Path:
    return folder / f"{round_:05}{_SUFFIX}"


def _rounds(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in folder.glob(f"*{_SUFFIX}") if path.stem.isdecimal())
