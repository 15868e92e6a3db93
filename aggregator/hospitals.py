"""The hospital's side on this machine, for simulations: found by its entry point, never imported by name."""

from importlib.metadata import entry_points
from typing import Any

from models.errors import ConfigError


def hospital_side() -> Any:
    """What opens a hospital in this process, as the installed distribution names it.

    Raises:
        ConfigError: It is not installed, or something that it needs is not.
    """
    for entry in entry_points(group="intramural.silo", name="open"):
        try:
            return entry.load()
        except ImportError as error:
            raise ConfigError(
                f"simulation needs the hospital's side, which lacks {error.name}",
                "run: pip install 'intramural[silo]'",
            ) from error
    raise ConfigError("simulation needs the hospital's side, which is not installed", "install intramural[silo]")
