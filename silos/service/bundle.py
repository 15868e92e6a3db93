"""The bundle that comes with every order: looked at, and never unpacked, installed or run.

Flower hands each hospital an archive with the study's code in it. Here the archive must hold no code at
all: a hospital runs what it installed. It is kept in memory, opened only as far as is needed to see that it
holds three harmless files, and whatever else comes is refused.
"""

import hashlib
import io
import tomllib
import zipfile

from models.errors import BundleRefused

COMPONENT = "silos.app:app"
"""The only app that a bundle may name: the one that is installed here."""

_FILES = ("pyproject.toml", "LICENSE", ".info/CONTENT")
_MAX_FILE = 64 * 1024  # bytes of each file once it is unpacked
_MAX_BUNDLE = 256 * 1024  # bytes of the archive


def check(content: bytes, digest: str) -> None:
    """See that a bundle holds no code, and that it is the one the order was given with.

    Args:
        content: The archive (a Flower FAB, which is a ZIP file).
        digest: Its SHA-256 (hex), as the run names it.

    Raises:
        BundleRefused: It is another, holds another file, is too large, names another app or cannot be read.
    """
    if len(content) > _MAX_BUNDLE:
        raise BundleRefused(f"the bundle has {len(content)} bytes; {_MAX_BUNDLE} are allowed", detail="size")
    if hashlib.sha256(content).hexdigest() != digest:
        raise BundleRefused("the bundle is not the one that the run names", detail="digest")
    try:
        component = _component(content)
    except BundleRefused:
        raise
    except Exception as error:  # a stranger's archive: a dozen kinds of errors, none of them worth a difference
        raise BundleRefused("the bundle cannot be read") from error
    if component != COMPONENT:
        raise BundleRefused(f"the bundle names another app than {COMPONENT}", detail="component")


def _component(content: bytes) -> object:
    """The app that the bundle's `pyproject.toml` names."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        files = archive.infolist()
        if sorted(file.filename for file in files) != sorted(_FILES):
            hint = f"the coordinator must send a bundle of exactly {', '.join(_FILES)}"
            raise BundleRefused(f"the bundle holds other files ({len(files)} in all)", hint, detail="code")
        if any(file.file_size > _MAX_FILE for file in files):
            raise BundleRefused(f"a file of the bundle is above {_MAX_FILE} bytes", detail="size")
        with archive.open("pyproject.toml") as file:  # never more than the size it declares
            text = file.read(_MAX_FILE).decode()
    return tomllib.loads(text)["tool"]["flwr"]["app"]["components"]["clientapp"]
