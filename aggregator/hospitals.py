"""The hospital's side on this machine, for simulations: found by its entry point, never imported by name."""

from importlib.metadata import entry_points
from typing import Any

from models.errors import ConfigError


def hospital_side(name: str = "open") -> Any:
    """A function of the hospital's side, as the installed distribution names it.

    Args:
        name: `open`, which opens a hospital in this process; `derive`, which makes one from another; or `together`,
            the module that trains many of them at once.

    Raises:
        ConfigError: It is not installed, or something that it needs is not.
    """
    for entry in entry_points(group="intramural.silo", name=name):
        try:
            return entry.load()
        except ImportError as error:
            raise ConfigError(
                f"simulation needs the hospital's side, which lacks {error.name}",
                "run: pip install 'intramural[silo]'",
            ) from error
    raise ConfigError("simulation needs the hospital's side, which is not installed", "install intramural[silo]")
