"""Every error that has a word of its own, as one tree; others are one of these under another name.

    IntramuralError
    ├── ConfigError          a file someone typed is wrong: names file, key and value
    ├── DataError            a hospital's data cannot be used as configured
    │   └── Unusable             training on it gave no usable numbers
    ├── PolicyError          the hospital's own policy forbids it
    ├── ProtocolError        a message is not what its sender signed, or not what was agreed
    │   ├── Malformed            cannot be read at all
    │   ├── BadSignature         not signed by the key that was enrolled
    │   ├── Replayed             a statement seen before, or out of its chain
    │   ├── StaleBase            made from another model than this round's
    │   ├── SpecMismatch         other names, shapes or dtypes than the study's
    │   ├── DigestMismatch       the bytes are not those of the declared digest
    │   ├── NotFinite            NaN or infinity
    │   ├── TooLarge             more bytes, or a longer step, than agreed
    │   ├── BadWeight            an impossible number of examples
    │   ├── NotWitnessed         too few hospitals are known to have seen the same past
    │   └── BundleRefused        the bundle that came with an order is not the one without code
    ├── Interrupted          the process at work on an order was killed more than once
    └── LedgerError          the record cannot be kept, so the work stops
        ├── NotAppended          a line could not be made durable
        ├── Rewritten            the past is not what was signed
        └── Locked               another process writes this ledger

Each error has three parts. The *message* and the *hint* are for the person at this machine and may
name files and values; they never cross the wire. The *code* is a fixed word from the class (or, for
a policy, from `Rule`) and is all that another party is ever told.
"""

from enum import StrEnum
from typing import ClassVar


class IntramuralError(Exception):
    """Base of the tree.

    Args:
        message: What is wrong: file, key, value. Local only.
        hint: What to do about it. Local only.
    """

    code: ClassVar[str] = "internal"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    @property
    def wire_code(self) -> str:
        """The only word of this error that may leave the machine."""
        return self.code


class ConfigError(IntramuralError):
    """A configuration file is wrong."""

    code = "config"


class DataError(IntramuralError):
    """The data cannot be used as configured."""

    code = "data"


class Unusable(DataError):  # noqa: N818 - says what happened, as the protocol's errors do
    """Training gave no usable numbers."""

    code = "unusable"


class Rule(StrEnum):
    """What a hospital's policy can forbid; the value crosses the wire as the refusal's code."""

    STUDY_NOT_APPROVED = "study-not-approved"
    STUDY_CHANGED = "study-changed"
    STUDY_REVOKED = "study-revoked"
    TASK = "task-not-allowed"
    METRIC = "metric-not-allowed"
    SURVEY = "survey-not-allowed"
    MIN_PATIENTS = "too-few-patients"
    MAX_ROUNDS = "round-limit"
    MAX_BYTES = "size-limit"
    EPSILON = "epsilon-spent"


class PolicyError(IntramuralError):
    """The hospital's own policy forbids it.

    Args:
        rule: The rule that forbids; its value is the wire code.
        message: Local explanation.
        hint: What hospital IT can change, if they want to.
    """

    code = "policy"

    def __init__(self, rule: Rule, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.rule = rule

    @property
    def wire_code(self) -> str:
        """The rule's word."""
        return self.rule.value


DETAILS = frozenset(
    {
        "address",
        "bytes",
        "broadcastable",
        "code",
        "component",
        "cosignature",
        "declared",
        "digest",
        "document",
        "dtype",
        "fields",
        "infinite",
        "kind",
        "manifest",
        "metric",
        "missing",
        "names",
        "nan",
        "norm",
        "note",
        "not-a-number",
        "not-positive",
        "payload",
        "pickled",
        "receipt",
        "records",
        "report",
        "round",
        "shape",
        "size",
        "spec",
        "study",
        "survey",
        "tensor",
        "tensors",
        "text",
        "too-many",
        "unit",
        "witnesses",
        "work",
    }
)
"""Which check of a message failed; the closed list of words that may stand behind a code."""


class ProtocolError(IntramuralError):
    """A message breaks what both sides agreed on.

    Args:
        message: What is wrong. Local only.
        hint: What to do about it. Local only.
        detail: One of `DETAILS`; crosses the wire behind the code.
    """

    code = "protocol"

    def __init__(self, message: str, hint: str = "", *, detail: str = "") -> None:
        super().__init__(message, hint)
        assert not detail or detail in DETAILS, detail
        self.detail = detail

    @property
    def wire_code(self) -> str:
        """The class's word and the check's."""
        return f"{self.code}.{self.detail}" if self.detail else self.code


class Malformed(ProtocolError):  # noqa: N818 - the names of this branch say what happened
    """A message that cannot be read."""

    code = "malformed"


class BadSignature(ProtocolError):  # noqa: N818
    """A signature that the enrolled key did not make."""

    code = "bad-signature"


class Replayed(ProtocolError):  # noqa: N818
    """A statement seen before, or one that does not continue its chain."""

    code = "replayed"


class StaleBase(ProtocolError):  # noqa: N818
    """An update of another model than this round's."""

    code = "stale-base"


class SpecMismatch(ProtocolError):  # noqa: N818
    """Arrays of other names, shapes or dtypes than the study's."""

    code = "spec-mismatch"


class DigestMismatch(ProtocolError):  # noqa: N818
    """Bytes that are not those of the declared digest."""

    code = "digest-mismatch"


class NotFinite(ProtocolError):  # noqa: N818
    """NaN or infinity where a number must be."""

    code = "not-finite"


class TooLarge(ProtocolError):  # noqa: N818
    """More bytes, or a longer step, than was agreed."""

    code = "too-large"


class BadWeight(ProtocolError):  # noqa: N818
    """An impossible number of examples."""

    code = "bad-weight"


class NotWitnessed(ProtocolError):  # noqa: N818
    """Too few hospitals are known to have seen the past that this one was shown."""

    code = "not-witnessed"


class BundleRefused(ProtocolError):  # noqa: N818
    """A Flower bundle that is not the one without code."""

    code = "bundle"


class Interrupted(IntramuralError):  # noqa: N818
    """Whoever was at work on an order was killed, again and again."""

    code = "interrupted"


class LedgerError(IntramuralError):
    """The record cannot be kept; nothing may be sent or used."""

    code = "ledger"


class NotAppended(LedgerError):  # noqa: N818
    """A line could not be made durable; the ledger must be reopened."""

    code = "ledger-not-appended"


class Rewritten(LedgerError):  # noqa: N818
    """The ledger is not the one that was signed."""

    code = "ledger-rewritten"


class Locked(LedgerError):  # noqa: N818
    """Another process is writing this ledger."""

    code = "ledger-locked"


def is_wire_code(text: str) -> bool:
    """Whether a word from another party is one that this toolkit can have said, and so safe to repeat."""
    code, dot, detail = text.partition(".")
    return code in _codes(IntramuralError) | set(Rule) and (detail in DETAILS if dot else True)


def _codes(error: type[IntramuralError]) -> set[str]:
    return {error.code}.union(*(_codes(kind) for kind in error.__subclasses__()))
