"""Hospital IT says yes or no to exactly one study; the hospital's own software enforces it.

    approve(site, read_agreement("agreement.json"))     # from now on this study may be followed, and no other
    revoke(site, "lgg-2026")                            # from now on it may not

Where a silo runs, it writes the word down before its next order; where none runs, it is written down here.
What a study asks for is told by `proposal.explain`.
"""

import os
import pwd
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from models.errors import ConfigError, Locked
from models.exchange.documents import Agreement
from models.ledger import disk
from silos.approval import decisions
from silos.approval.decisions import Decision
from silos.approval.proposal import objections
from silos.config import Site
from silos.keys import load_signer

_TIME = "%Y%m%dT%H%M%S.%fZ"

_Asked = tuple[str, str, Agreement | None]
"""A study's name, its digest, and for a yes its agreement."""


@dataclass(frozen=True)
class Approval:
    """What became of a yes or a no.

    Attributes:
        action: approve or revoke.
        name: The study's name.
        study: Its digest.
        recorded: Whether the ledger has it; if not, the silo that runs will write it down before its next order.
    """

    action: str
    name: str
    study: str
    recorded: bool


def approve(site: Site, agreement: Agreement) -> Approval:
    """Say yes to a study.

    Args:
        site: This hospital.
        agreement: The study, as it was shown to whoever says yes.

    Raises:
        ConfigError: It is not one of the coordinator that this hospital joined, or another user than the silo says yes.
        PolicyError: The policy could never follow it.
        LedgerError: The ledger cannot be written.
    """
    for objection in objections(site, agreement):
        raise objection
    return _decide(site, [(agreement.plan.name, agreement.study, agreement)])[0]


def revoke(site: Site, study: str) -> list[Approval]:
    """Take back every yes to a study: that of a person, and that of the policy.

    Args:
        site: This hospital.
        study: Its digest (64 hex digits), or its name, which stands for every study let in under it.

    Returns:
        What became of each; never empty.

    Raises:
        ConfigError: No such study was let in, or each was revoked already; or another user than the silo says no.
        LedgerError: The ledger is not the one that was signed, or cannot be written.
    """
    latest = decisions.latest(site, load_signer(site).verifier)
    standing = {known: name for known, (name, yes) in latest.items() if yes}
    found: list[_Asked] = [(name, known, None) for known, name in standing.items() if study in (known, name)]
    if not found:
        raise ConfigError(
            f"{study}: no study of this name or digest stands approved in the ledger",
            "give the name or the whole digest; to forbid what only policy.studies names, take it out there and start "
            "the silo anew",
        )
    return _decide(site, found)


def _decide(site: Site, studies: list[_Asked]) -> list[Approval]:
    _require_same_user(site)
    signer = load_signer(site)
    folder = decisions.folder_of(site)
    disk.make_folder(folder, 0o700)
    made = []
    for name, study, agreement in studies:
        time = _after_all(folder).strftime(_TIME)
        action: Literal["approve", "revoke"] = "revoke" if agreement is None else "approve"
        decision = Decision(action=action, name=name, study=study, time=time, agreement=agreement).sign(signer)
        path = folder / f"{time}-{study[:8]}-{action}.json"
        draft = path.with_suffix(".new")  # the silo must never find half of one
        try:
            disk.create(draft, decision.encode(), 0o600)
            disk.rename(draft, path)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise ConfigError(
                f"{path}: {error.strerror}: no word on {name} was recorded", "mend that, and say it again"
            ) from error
        made.append(decision)
    try:
        with decisions.open_ledger(site, signer) as ledger:
            decisions.absorb(site, signer, ledger)
        recorded = True
    except Locked:
        recorded = False
    return [Approval(item.action, item.name, item.study, recorded) for item in made]


def _after_all(folder: Path) -> datetime:
    """Now; but after every decision that waits, though the clock was set back since: the newest word counts."""
    now = datetime.now(UTC)
    for path in folder.glob("*.json"):
        with suppress(ValueError, OverflowError):  # no decision's name
            waits = datetime.strptime(path.name.partition("-")[0], _TIME).replace(tzinfo=UTC)
            now = max(now, waits + timedelta(microseconds=1))
    return now


def _require_same_user(site: Site) -> None:
    """Refuse to write what the silo could not read."""
    if site.ledger.exists() and (owner := site.ledger.stat().st_uid) != os.geteuid():
        raise ConfigError(
            f"run.work: {site.ledger} belongs to {_user(owner)}, and this command runs as {_user(os.geteuid())}",
            f"run it as {_user(owner)}, for instance with runuser -u {_user(owner)} -- intramural-silo ...",
        )


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)
