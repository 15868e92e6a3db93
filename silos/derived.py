"""A hospital made from another, for simulations: its `site.toml` in another folder, over the same images.

    derive("north/site.toml", Path("run-1"))                          # run-1/north: the same, with a ledger of its own
    derive("all/site.toml", Path("parts"), name="a", patients=[...])  # parts/a: some of the patients, with its own key

Images and labels stay where they are, and index and image cache are shared with the first hospital; nothing is copied.
What the policy allows stays as it is; whatever is needed to take part over the network is left out.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli_w

from models.ledger import Signer
from models.ledger.disk import create, make_folder, publish
from silos.config import Site

_NETWORK = ("coordinator", "certificate", "proxy", "runtime_port")

_HEADING = """\
# {name}: made for a simulation from {source}, whose images, policy and caches it uses. Nothing was copied.
# Whoever can change this file decides what may leave.

"""


def derive(
    source: Path | str, out: Path | str, *, name: str | None = None, patients: Sequence[str] | None = None
) -> Path:
    """Write the `site.toml` of a hospital that is made from another.

    Args:
        source: The `site.toml` of the other.
        out: Where this one's folder lies, which has its name and holds a work folder of its own.
        name: Its name, with a key of its own; without one it is the other, with the other's key.
        patients: The PatientIDs that are its; all of the other's by default.

    Raises:
        ConfigError: The source is wrong, or the key is there already.
    """
    site = Site.load(source)
    folder = Path(out).absolute() / (name or site.name)
    content: dict[str, Any] = site.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    make_folder(folder, 0o700)
    if name is not None:
        content |= {"name": name, "key": f"{name}.key"}
        Signer.create(folder / f"{name}.key", name)
    if patients is not None:
        create(folder / "patients.txt", "".join(f"{patient}\n" for patient in patients).encode(), 0o600)
        content["data"]["patients"] = "patients.txt"
    run = {key: value for key, value in content["run"].items() if key not in _NETWORK}
    content["run"] = run | {"work": "work", "cache": str(site.cache)}
    heading = _HEADING.format(name=content["name"], source=Path(source).absolute())
    path = folder / "site.toml"
    publish(path, (heading + tomli_w.dumps(content)).encode())
    return path
