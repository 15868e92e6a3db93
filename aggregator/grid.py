"""What a study needs of its transport: Flower's Grid, and which hospital each node is."""

from collections.abc import Mapping

from flwr.serverapp import Grid

from models.ledger import Verifier


class StudyGrid(Grid):
    """A Flower Grid that knows its hospitals.

    Attributes:
        roster: Each node's hospital, by node id.
    """

    roster: Mapping[int, Verifier]
