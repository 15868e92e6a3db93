"""What people decided about studies, as the hospital's ledger says it; and the ledger itself.

A person's yes or no is first a signed file in `WORK/approvals`, because only the silo may write the ledger
while it runs. `absorb` turns each file into one line; one that this hospital's key did not sign changes
nothing. `standing` reads the lines back, and what they mean for an order stands in `gate.permit`.
"""

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from models.canonical import canonical, digest
from models.errors import BadSignature, LedgerError, Malformed
from models.exchange.documents import Agreement, Digest, Document
from models.ledger import Entry, Event, Ledger, Record, Signer, Verifier, disk, read
from models.plan import Name
from silos.config import Site
from silos.gate import Standing

log = logging.getLogger("intramural.silo")

_DECISION = b"intramural decision v1\n"
WORDS = (Event.STUDY_APPROVED, Event.STUDY_REVOKED)
"""What people, and the policy, say of a study."""


class Decision(Document):
    """A person's yes or no to one study, as the file says it until the ledger does."""

    action: Literal["approve", "revoke"]
    name: Name
    study: Digest
    time: Annotated[str, Field(pattern=r"^[0-9]{8}T[0-9]{6}\.[0-9]{6}Z$")]  # UTC, of this machine's clock
    agreement: Agreement | None = None  # of `study`, for a yes
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")] = "0" * 128  # by the hospital, over all the rest

    def sign(self, signer: Signer) -> Self:
        """The same, signed."""
        return self.model_copy(update={"signature": signer.sign(self._signed()).hex()})

    def verify(self, verifier: Verifier) -> None:
        """Check that the hospital said this.

        Raises:
            Malformed: It contradicts itself.
            BadSignature: Its key did not sign this.
        """
        verifier.verify(self._signed(), bytes.fromhex(self.signature))
        asked = self.agreement
        if (asked is not None) != (self.action == "approve"):
            raise Malformed("a yes comes with its agreement, a no without")
        if asked and (asked.study, asked.plan.name) != (self.study, self.name):
            raise Malformed("the agreement is of another study")

    def _signed(self) -> bytes:
        return _DECISION + canonical(self.model_dump(mode="json", exclude={"signature"}))


def folder_of(site: Site) -> Path:
    """Where decisions wait for the ledger."""
    return site.run.work / "approvals"


def waiting(site: Site, verifier: Verifier, *, set_aside: bool = False) -> Iterator[tuple[Path, Decision]]:
    """The decisions that wait for the ledger, oldest first; what this hospital did not sign is left out.

    Args:
        site: This hospital.
        verifier: Its public key.
        set_aside: Rename what is left out to `*.rejected`.

    Raises:
        LedgerError: The folder or a file in it cannot be read; it may hold a no, so nothing goes on.
    """
    for path in _files(folder_of(site)):
        try:
            if not path.is_file():
                continue
            decision = Decision.decode(path.read_bytes())
            decision.verify(verifier)
        except (Malformed, BadSignature, ValueError) as error:  # the last: what no canonical JSON can say
            log.warning("a file among the approvals is not this hospital's word, and changes nothing")
            log.debug("%s: %s", path, error)
            if set_aside:
                with _tidying():
                    path.rename(path.with_name(f"{path.name}.rejected"))
        except FileNotFoundError:
            continue  # the silo that runs has just written it down
        except OSError as error:
            raise _unreadable(path, error) from error
        else:
            yield path, decision


def _files(folder: Path) -> list[Path]:
    try:
        return [folder / name for name in sorted(os.listdir(folder)) if name.endswith(".json")]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _unreadable(folder, error) from error


def _unreadable(path: Path, error: OSError) -> LedgerError:
    return LedgerError(f"{path}: {error.strerror}", "give it to the user that the silo runs as; it may hold a no")


def latest(site: Site, verifier: Verifier) -> dict[str, tuple[str, bool]]:
    """What the ledger and the decisions that wait for it say of each study. Takes no lock.

    Args:
        site: This hospital.
        verifier: Its public key.

    Returns:
        By the study's digest: its name, and whether the newest word, of a person or of the policy, is a yes.

    Raises:
        LedgerError: The ledger is not the one that was signed.
    """
    pending = [decision for _, decision in waiting(site, verifier)]  # first: the silo may write one down just now
    lines = words(read(site.ledger, verifier).records) if site.ledger.exists() else []
    found = {str(line.study): (line.body["name"], line.event == Event.STUDY_APPROVED) for line in lines}
    return found | {item.study: (item.name, item.action == "approve") for item in pending}


def absorb(site: Site, signer: Signer, ledger: Ledger) -> None:
    """Write down what people decided since the last time; each decision once, however often its file comes.

    Raises:
        LedgerError: The ledger cannot be written; the files stay.
    """
    for path, decision in waiting(site, signer.verifier, set_aside=True):
        mark = {"by": "person", "decision": ledger.store(decision.encode())}
        if not any(r.body.get("decision") == mark["decision"] for r in ledger.of(*WORDS)):
            if decision.agreement is None:
                entry = Entry(Event.STUDY_REVOKED, {"name": decision.name, **mark}, study=decision.study)
            else:
                entry = approved(site, ledger, decision.agreement, **mark)
            ledger.append(entry)
        with _tidying():
            path.unlink(missing_ok=True)  # if it stays, it says nothing new the next time


def approved(site: Site, ledger: Ledger, agreement: Agreement, **mark: str) -> Entry:
    """The line that lets a study in; its agreement is then kept beside the ledger.

    Args:
        site: This hospital.
        ledger: Its ledger.
        agreement: The study.
        mark: `by`: `person` or `policy`; and the digest of a person's decision, which is kept there too.
    """
    body: dict[str, Any] = {
        "agreement": ledger.store(agreement.encode()),
        "name": agreement.plan.name,
        "purpose": agreement.plan.purpose,
        "recipient": agreement.plan.coordinator,
        "recipient_key": agreement.coordinator_key,
        "policy": digest(canonical(site.policy.model_dump(mode="json"))),
    }
    return Entry(Event.STUDY_APPROVED, {**body, **mark}, study=agreement.study)


def standing(records: Iterable[Record], name: str) -> Standing:
    """What a ledger says of the studies of one name."""
    found = [record for record in words(records) if record.body["name"] == name]
    newest = {record.study: record for record in found if record.study}
    yes = {study for study, r in newest.items() if r.event == Event.STUDY_APPROVED and r.body.get("by") == "person"}
    no = {study for study, r in newest.items() if r.event == Event.STUDY_REVOKED}
    first = next((record.study for record in found if record.event == Event.STUDY_APPROVED), None)
    return Standing(first, frozenset(yes), frozenset(no))


def open_ledger(site: Site, signer: Signer) -> Ledger:
    """The hospital's ledger, made at its first use; says so when the policy changed since.

    Raises:
        LedgerError: It is locked, is not the one that was signed, or cannot be written.
    """
    policy = site.policy.model_dump(mode="json")
    if not site.ledger.exists():
        disk.make_folder(site.run.work, 0o700)
        return Ledger.create(site.ledger, signer, {"policy": policy})
    ledger = Ledger.open(site.ledger, signer)
    known = [record.body["policy"] for record in ledger.of(Event.LOG_OPENED, Event.POLICY_CHANGED)]
    if known[-1] != policy:
        ledger.append(Entry(Event.POLICY_CHANGED, {"policy": policy}))
    return ledger


def words(records: Iterable[Record]) -> list[Record]:
    """Every line that lets a study in or shuts it out."""
    return [record for record in records if record.event in WORDS]


@contextmanager
def _tidying() -> Iterator[None]:
    """A file that cannot be put away must not stop a silo."""
    try:
        yield
    except OSError as error:
        log.warning("a file among the approvals cannot be put away: %s", error.strerror)
