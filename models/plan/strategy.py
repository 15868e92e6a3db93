"""How updates become the next model: the strategy's name, and the parameters that belong to it and to no other.

    [strategy]
    name = "fedadam"
    eta = 0.05            # the other parameters have their defaults, which the agreement then spells out

| name | what it does | reference |
|---|---|---|
| `fedavg` | the mean of the updates, weighted by examples | McMahan et al., AISTATS 2017, arXiv 1602.05629 |
| `fedprox` | the same; each silo's loss gets mu/2 * ||w - w0||^2 | Li et al., MLSys 2020, arXiv 1812.06127 |
| `fedavgm` | momentum over the rounds' means | Hsu et al., 2019, arXiv 1909.06335 |
| `fedadagrad`, `fedadam`, `fedyogi` | adaptive steps along them | Reddi et al., ICLR 2021, arXiv 2003.00295 |
| `fedmedian` | the median, number by number | Yin et al., ICML 2018, arXiv 1803.01498 |
| `fedtrimmedavg` | the mean without the `beta` largest and smallest | the same |
| `krum` | the mean of the `select` updates closest to others | Blanchard et al., NeurIPS 2017, arXiv 1703.02757 |
| `qfedavg` | more weight to silos whose loss is high | Li et al., ICLR 2020, arXiv 1905.10497 |
| `scaffold` | each silo's steps are corrected for its own drift | Karimireddy et al., ICML 2020, arXiv 1910.06378 |

The names are those of Flower's strategies, which has no SCAFFOLD, and so are the parameters but Krum's two; mu = 0 is
FedAvg to the bit. The adaptive three are as Flower has them: `fedadam` with Adam's bias correction, which Reddi et al.
leave out, counted from 2, where Kingma & Ba count from 1; all three start with a second moment of 0.
"""

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from models.settings import Settings

_PARAMETERS: Mapping[str, Mapping[str, float | None]] = {
    "fedavg": {},
    "fedprox": {},
    "fedavgm": {"server_learning_rate": 1.0, "server_momentum": 0.9},
    "fedadagrad": {"eta": 0.1, "tau": 1e-3},
    "fedadam": {"eta": 0.1, "tau": 1e-3, "beta_1": 0.9, "beta_2": 0.99},
    "fedyogi": {"eta": 0.1, "tau": 1e-3, "beta_1": 0.9, "beta_2": 0.99},
    "fedmedian": {},
    "fedtrimmedavg": {"beta": 0.2},
    "krum": {"malicious": 1, "select": 1},
    "qfedavg": {"q": 0.1, "client_learning_rate": None},
    "scaffold": {},
}
"""Each strategy's parameters with their defaults; None must be given."""


_OWN = Field(exclude_if=lambda value: value is None)  # left out of the agreement where it is another strategy's


class Strategy(Settings):
    """How updates become the next model.

    With `local_norm` each hospital keeps its normalisation layers, and only the rest of the network travels:
    FedBN, Li et al., ICLR 2021 (arXiv 2102.07623). It goes with every strategy.
    """

    name: Literal[
        "fedavg",
        "fedprox",
        "fedavgm",
        "fedadagrad",
        "fedadam",
        "fedyogi",
        "fedmedian",
        "fedtrimmedavg",
        "krum",
        "qfedavg",
        "scaffold",
    ] = "fedavg"
    mu: Annotated[float, Field(ge=0, le=100)] = 0.0
    # Left out where it is false: it came later than the first studies, whose digests stand.
    local_norm: Annotated[bool, Field(exclude_if=lambda value: not value)] = False
    server_learning_rate: Annotated[float | None, Field(gt=0, le=10), _OWN] = None  # of the step along the momentum
    server_momentum: Annotated[float | None, Field(ge=0, lt=1), _OWN] = None
    eta: Annotated[float | None, Field(gt=0, le=10), _OWN] = None  # learning rate of the adaptive step
    tau: Annotated[float | None, Field(gt=0, le=1), _OWN] = None  # the smaller, the more adaptive
    beta_1: Annotated[float | None, Field(ge=0, lt=1), _OWN] = None  # of the mean step
    beta_2: Annotated[float | None, Field(ge=0, lt=1), _OWN] = None  # of its square
    beta: Annotated[float | None, Field(gt=0, lt=0.5), _OWN] = None  # share that is cut off at each end
    malicious: Annotated[int | None, Field(ge=0, le=1000), _OWN] = None  # silos that may lie, of 2 * malicious + 3
    select: Annotated[int | None, Field(ge=1, le=1000), _OWN] = None  # updates that are taken; above 1 it is MultiKrum
    q: Annotated[float | None, Field(ge=0, le=10), _OWN] = None  # 0 weighs all alike, more favours the worst off
    client_learning_rate: Annotated[float | None, Field(ge=1e-6, le=10), _OWN] = None  # 1 / Lipschitz constant

    @model_validator(mode="before")
    @classmethod
    def _parameters_belong_to_it(cls, given: Any) -> Any:
        name = given.get("name", "fedavg") if isinstance(given, dict) else None
        if not isinstance(name, str) or name not in _PARAMETERS:
            return given  # that is the error
        own = _PARAMETERS[name]
        every = {key for parameters in _PARAMETERS.values() for key in parameters}
        for key in sorted(every & given.keys() - own.keys()):
            if given[key] is not None:
                owners = ", ".join(other for other, parameters in _PARAMETERS.items() if key in parameters)
                raise ValueError(f"{key} is of {owners} only; {name} has none")
        missing = [key for key, default in own.items() if default is None and given.get(key) is None]
        if missing:
            raise ValueError(f"{missing[0]} is required by {name}")
        return {**own, **{key: value for key, value in given.items() if value is not None}}

    @model_validator(mode="after")
    def _mu_belongs_to_fedprox(self) -> Self:
        if self.name != "fedprox" and self.mu != 0:
            raise ValueError(f'mu is of "fedprox" only; {self.name} has none')
        return self

    @property
    def parameters(self) -> dict[str, Any]:
        """Its own parameters, by name; not mu and `local_norm`, which are the silos' business."""
        return {key: getattr(self, key) for key in _PARAMETERS[self.name]}

    @property
    def steps(self) -> bool:
        """Whether the next model may lie beyond all updates: a step along their mean, whose length is the server's."""
        return self.eta is not None or self.server_momentum is not None

    @property
    def weighs_by_loss(self) -> bool:
        """Whether no update can be used without its silo's loss."""
        return self.q is not None

    def wants(self, min_silos: int, metrics: Collection[str]) -> str:
        """What a plan must have for this strategy to mean anything, if it has not; else nothing."""
        if self.malicious is not None and self.select is not None:
            least = 2 * self.malicious + 3
            if min_silos < least:
                return f"min_silos: krum with malicious = {self.malicious} needs at least {least} (got {min_silos})"
            if self.select > min_silos - self.malicious:
                return f"strategy.select: must be at most min_silos - malicious = {min_silos - self.malicious}"
        if self.beta is not None and int(self.beta * min_silos) < 1:
            return f"strategy.beta: {self.beta:g} of min_silos = {min_silos} cuts off no update; raise one of them"
        if self.weighs_by_loss and "loss" not in metrics:
            return "metrics: qfedavg needs the silos' loss"
        return ""

    def __str__(self) -> str:
        told = self.model_dump(exclude={"name"}, exclude_defaults=True)
        return f"{self.name} ({', '.join(f'{key} = {told[key]}' for key in sorted(told))})" if told else self.name
