"""Where a study's folder holds what; and what its hospitals approve, read from there.

agreement.json                    what they approve
models/003.safetensors            the model of round 3; 000 is the first
updates/003/north.safetensors     north's update of round 3, while the round is open or if all are kept
"""

from pathlib import Path

from models.errors import ConfigError, Malformed
from models.exchange.documents import Agreement


def read_agreement(folder: Path) -> Agreement:
    """Read the agreement of a study folder; another process may be at work on it.

    Raises:
        ConfigError: It is no study folder.
        Malformed: The agreement cannot be read.
    """
    path = folder / "agreement.json"
    if not path.is_file():
        raise ConfigError(f"{folder}: is no study folder (it has no agreement.json)", "create the study first")
    try:
        return Agreement.decode(path.read_bytes())
    except Malformed as error:
        raise Malformed(f"{path}: {error}", "restore it from ledger/manifests") from error


def model_path(folder: Path, number: int) -> Path:
    """Where the model of a round lies."""
    return folder / "models" / f"{number:03}.safetensors"


def update_path(folder: Path, round_: int, silo: str) -> Path:
    """Where a silo's update of a round lies, while it is kept."""
    return folder / "updates" / f"{round_:03}" / f"{silo}.safetensors"
