"""What the hospitals of a study approve, read from the study's folder."""

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
