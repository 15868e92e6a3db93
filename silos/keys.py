"""The key that signs what leaves this hospital."""

from models.errors import ConfigError
from models.ledger import Signer
from silos.config import Site


def load_signer(site: Site) -> Signer:
    """The hospital's key.

    Raises:
        ConfigError: It is missing, others can read it, or it is another hospital's.
    """
    if not site.key.exists():
        raise ConfigError(f"key: {site.key} is missing", "restore it; or make it: intramural-silo key SITE.toml")
    signer = Signer.load(site.key)
    if signer.name != site.name:
        raise ConfigError(
            f"key: {site.key} is the key of {signer.name!r}, the site is {site.name!r}", "name the site's own key"
        )
    return signer
