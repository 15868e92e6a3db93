"""How a coordinator's service runs: `service.toml`, as `init` writes it and as it is read."""

from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from models.exchange.enrolment import Address
from models.plan import Name
from models.settings import Settings

_TEMPLATE = """\
# The coordinator's service, read when it starts. Whoever can write in this folder decides which hospitals take
# part, and speaks as the coordinator.

# Signs every order; stands as `coordinator` in each study.toml. Fixed when this folder was made.
name = "{name}"

# Where hospitals dial. After a change: `init FOLDER --renew`, and the new coordinator.json to every hospital.
address = "{address}"

# Where the front door listens on this machine.
listen = "{listen}"

# true: who shows no certificate of this coordinator (hospitals/NAME.crt, to be sent to NAME) is not even heard.
require_certificates = {require_certificates}

# Seconds that a hospital's question for work is held open while there is none.
hold = {hold:g}

# Flower's SuperLink, on loopback only: whoever reaches this port can start and stop studies.
superlink_port = {superlink_port}
"""


def split_address(address: str) -> tuple[str, int]:
    """Host (IPv6 without its brackets) and port of `study.example.org:8443`."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _possible(address: str) -> str:
    if not 1 <= split_address(address)[1] <= 65535:
        raise ValueError("must have a port from 1 to 65535")
    return address


Endpoint = Annotated[Address, AfterValidator(_possible)]
"""Host and port, the port a possible one."""

Number = Annotated[int, Field(ge=0, lt=2**64)]
"""Flower's number of a node or a run: 64 bits, more than JSON's doubles can tell apart."""


class ServiceSettings(Settings):
    """How the service runs: `service.toml`."""

    name: Name = "aggregator"
    address: Endpoint  # where hospitals dial
    listen: Endpoint = "0.0.0.0:8443"
    require_certificates: bool = False
    hold: Annotated[float, Field(ge=0, le=25)] = 20.0  # seconds; a hospital hangs up after 30
    superlink_port: Annotated[int, Field(ge=1024, le=65535)] = 39093

    @model_validator(mode="after")
    def _two_ports(self) -> Self:
        if split_address(self.listen)[1] == self.superlink_port:
            raise ValueError("superlink_port: must differ from the port of listen")
        return self

    @property
    def host(self) -> str:
        """The name or IP address that hospitals dial."""
        return split_address(self.address)[0]

    def text(self) -> str:
        """The settings as a commented `service.toml`."""
        values = self.model_dump() | {"require_certificates": str(self.require_certificates).lower()}
        return _TEMPLATE.format(**values)
