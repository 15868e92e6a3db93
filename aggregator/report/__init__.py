"""The report: what a ledger proves, for people, on paper.

    page = report(Path("work/ledger"), aggregator=Path("study/ledger"), view="gdpr")
    as_html(page); as_markdown(page)

Who shared what, when, how much, under whose approval, after which filters; what was refused; what privacy
it cost; and whether the signatures hold. Every number comes from a signed line or from the manifest that
the line names by its digest; times are those of the machine that wrote the line, in UTC.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from aggregator import audit
from aggregator.exports.fact import Fact, band, filters, in_short, listed, text
from aggregator.report.account import Account, Study, account
from aggregator.report.views import gdpr, hipaa
from models.drawing import bars, lines
from models.errors import IntramuralError, LedgerError
from models.ledger import Verifier, read
from models.ledger.reading import LINES
from models.page import Blank, Cell, Figure, Item, Page, Section, Table, Verdict, as_html, as_markdown

VIEWS: Mapping[str, Callable[[Account], list[Section]]] = {"hipaa": hipaa, "gdpr": gdpr}
"""Views for a law, by the name that a command takes."""

_SIGNATURE = [("Read by", Blank("name and function")), ("Date", Blank("date and signature"))]

__all__ = ["VIEWS", "Page", "as_html", "as_markdown", "report"]


def report(
    ledger: Path,
    *,
    aggregator: Path | None = None,
    view: str | None = None,
    verifier: Verifier | None = None,
) -> Page:
    """Make the report of one ledger.

    Args:
        ledger: A hospital's ledger or a study's.
        aggregator: The aggregator's ledger of a study, to compare a hospital's with.
        view: One of `VIEWS`, to be added.
        verifier: The key that the ledger must be signed with; by default the one that it names.

    Returns:
        The page; `ok` says whether every check in it held.

    Raises:
        LedgerError: The ledger is not the one that was signed, or there is none.
        BadSignature: It is not signed by that key.
    """
    opened = read(ledger, verifier)
    verdict = audit.verify(ledger, opened.verifier)
    found = account(opened, verdict.acknowledged)
    sections = [
        _summary(found),
        _checks(ledger, aggregator, verdict, given=verifier is not None),
        *(section for study in found.studies for section in _study(found, study)),
        *_elsewhere(found),
        *(VIEWS[view](found) if view else []),
        Section("Signature", [Table(("what", "by hand"), _SIGNATURE)]),
    ]
    return Page(f"What was shared: the ledger of {found.party}", sections)


def _summary(found: Account) -> Section:
    head, updates = found.opened.head, [f for s in found.studies for f in s.disclosed if f.payload]
    shared = [fact for study in found.studies for fact in study.shared]
    rows: list[Sequence[Cell]] = [
        ("Ledger of", found.party),
        ("Public key", text(found.opened.verifier.vkey)),
        ("Ledger's name", text(head.origin)),
        ("Signed lines", head.size),
        ("Root of their tree", head.root.hex()),
        ("From (UTC)", found.opened.records[0].ts),
        ("To (UTC)", found.opened.records[-1].ts),
        ("Studies", len(found.studies)),
        ("Messages of hospitals", len(shared)),
        ("of these, model updates", len(updates)),
        ("Bytes of hospitals", sum(fact.nbytes or 0 for fact in shared)),
        ("Messages without the receiver's signature", sum(not found.acknowledged(fact) for fact in shared)),
        ("Report made (UTC)", datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")),
    ]
    return Section("In short", [Table(("what", "value"), rows)])


def _checks(ledger: Path, aggregator: Path | None, verdict: audit.Verdict, *, given: bool) -> Section:
    said = f"{verdict.size} lines, {verdict.statements} signed statements and {verdict.receipts} receipts were checked"
    items: list[Item] = [Verdict(verdict.ok, f"This ledger: {said}; {_problems(verdict.problems)}.")]
    if not given:
        items.append(
            "The ledger was checked with the key that it names itself. To know whose it is, compare that key with the"
            " one that this party gave you."
        )
    if verdict.unsigned:
        items.append(f"{verdict.unsigned} lines at its end are not signed yet, and not in this report.")
    if aggregator is None:
        items.append("No second ledger was given, so nothing is said about whether the other side tells the same.")
        return Section("Do the signatures hold?", items)
    if not (aggregator.is_file() or (aggregator / LINES).is_file()):  # a mistyped path is no alarm
        raise LedgerError(f"{aggregator}: there is no ledger here", "give the study's folder, or a proof file")
    try:
        both = audit.reconcile(aggregator, ledger)
    except IntramuralError as error:
        items.append(Verdict(ok=False, text=f"The two ledgers could not be compared: {text(str(error))}"))
    else:
        items.append(
            Verdict(
                both.ok,
                f"{both.aggregator} and {both.silo}, study {both.study[:16]}: both ledgers hold the same {both.orders}"
                f" orders and {both.replies} replies; {len(both.pending)} unacknowledged; the study is"
                f" {'closed' if both.closed else 'not closed'} on both sides; {_problems(both.problems)}.",
            )
        )
    return Section("Do the signatures hold, and do both sides tell the same?", items)


def _study(found: Account, study: Study) -> list[Section]:
    name = f"Study {study.name or study.digest[:16]}"
    return [
        Section(name, [_plan(study)]),
        Section(f"{name}: who said yes", _decisions(found, study)),
        Section(f"{name}: what was shared", _shared(found, study)),
        Section(f"{name}: what was refused, rejected or missing", _trouble(study.trouble)),
        Section(f"{name}: privacy spent", _privacy(study)),
    ]


def _plan(study: Study) -> Table:
    unknown = "not kept beside this ledger"
    rows: list[Sequence[Cell]] = [("Identity (SHA-256)", study.digest), ("Purpose", study.purpose or unknown)]
    name, key = study.recipient
    rows.append(("Recipient", text(f"{name} (key {key})") if name else "not recorded"))
    if study.agreement:
        plan = study.agreement.plan
        rows += [
            ("Rounds planned", plan.rounds),
            ("Network and task", f"{plan.task.network.name}, {plan.task.name} of {text(', '.join(plan.task.classes))}"),
            ("Images", f"modality {text(', '.join(plan.task.modality))}"),
            ("Combined by", f"{plan.strategy}, weighted by {plan.weights}, at least {plan.min_silos} hospitals"),
            ("Metrics asked for", ", ".join(plan.metrics)),
        ]
    orders = f"{len(study.orders)} orders, {sum(fact.nbytes or 0 for fact in study.orders):,} bytes"
    rows.append(("What came to hospitals", orders))
    return Table(("what", "as agreed or recorded"), rows)


def _decisions(found: Account, study: Study) -> list[Item]:
    if not found.is_hospital:
        return ["The hospitals' decisions stand in their own ledgers."]
    if not study.decisions:
        return ["No approval is recorded."]
    by = {"person": "a person at this hospital", "policy": "this hospital's policy, which names the study"}
    rows = [
        (
            item.fact.line,
            item.fact.record.ts,
            "approved" if item.yes else "revoked",
            by.get(item.by, "not recorded"),
            text(item.fact.record.body.get("recipient")) or "-",
            text(item.fact.record.body.get("decision")) or "-",
        )
        for item in study.decisions
    ]
    note = "Who the person was is not in the ledger; the hospital's own records say so."
    return [Table(("line", "time (UTC)", "word", "said by", "recipient", "signed decision (SHA-256)"), rows), note]


def _shared(found: Account, study: Study) -> list[Item]:
    if not study.shared:
        return ["Nothing was shared."]
    columns = ("line", "time (UTC)", "round", "from", "to", "what", "bytes", "norm (L2)", "filters", "examples")
    rows = [(*_what(fact), _told(fact), "yes" if found.acknowledged(fact) else "no") for fact in study.shared]
    items: list[Item] = [Table((*columns, "told besides", "receipt"), rows)]
    items.append(
        "A receipt is the receiver's signature. Without one, take it that the message may have been received."
        " Digests of each array stand in the manifest that the line names."
    )
    if sums := study.bytes_per_round():
        title = "Bytes of hospitals per round"
        items.append(Figure("Documents and arrays of all hospitals together.", bars(title, "bytes", sums)))
    if norms := study.norms():
        title = "Length of the updates (L2 norm) per round"
        items.append(Figure("One line per hospital; after filters, as it left.", lines(title, "", norms)))
    if study.combined:
        items.append(_combined(study))
    if study.released:
        items.append(_released(study))
    return items


def _what(fact: Fact) -> tuple[Cell, ...]:
    record, manifest = fact.record, fact.manifest
    norm = "-" if manifest is None or manifest.norm is None else f"{manifest.norm:.4g}"
    return (
        fact.line,
        record.ts,
        "-" if record.round is None else record.round,
        fact.source,
        fact.destination,
        fact.statement.get("kind", ""),
        fact.nbytes or 0,
        norm,
        (", ".join(filters(manifest)) if manifest else "") or "-",
        (band(manifest.examples) if manifest else "") or "-",
    )


def _told(fact: Fact) -> str:
    """Metrics, on how many images; a survey's fields; or the code of a refusal; and whether the receiver used it."""
    short = in_short(fact.manifest) if fact.manifest else {}
    said = [f"{short['metrics']} on {short.get('evaluated', 'an untold number')}"] if "metrics" in short else []
    if "work" in short:
        said.append(f"{short['work']:.0%} of the planned work")
    if "withheld" in short:
        said.append(f"withheld: {short['withheld']}")
    if fact.survey:
        said.append(f"in bands: {', '.join(fact.survey.fields)}")
    if fact.code:
        said.append(f"{'refused' if fact.statement.get('kind') == 'refusal' else 'not used'}: {fact.code}")
    return "; ".join(said) or "-"


def _combined(study: Study) -> Table:
    rows: list[Sequence[Cell]] = []
    for fact in study.combined:
        body = fact.record.body
        used = listed(body.get("selected", body.get("inputs"))) or "none: the round is void"
        round_ = "-" if fact.record.round is None else fact.record.round
        rows.append((fact.line, fact.record.ts, round_, used, text(body.get("model"))))
    return Table(("line", "time (UTC)", "round", "updates combined", "model that stands (SHA-256)"), rows)


def _released(study: Study) -> Table:
    rows: list[Sequence[Cell]] = [
        (fact.line, fact.record.ts, fact.details.get("model", "-"), fact.details.get("files", "-"))
        for fact in study.released
    ]
    return Table(("line", "time (UTC)", "model that was released (SHA-256)", "files"), rows)


def _trouble(found: Sequence[Fact]) -> list[Item]:
    if not found:
        return ["Nothing."]
    rows = [
        (
            fact.line,
            fact.record.ts,
            "-" if fact.record.round is None else fact.record.round,
            fact.sense.words,
            fact.peer or "-",
            fact.code or "-",
        )
        for fact in found
    ]
    return [Table(("line", "time (UTC)", "round", "what", "other party", "code"), rows)]


def _privacy(study: Study) -> list[Item]:
    spent = study.epsilons()
    if not spent:
        return ["No update was shared, so nothing was spent."]
    rows = [
        (
            name,
            count,
            "no noise: not bounded" if epsilon is None else f"{epsilon:g}",
            "-" if delta is None else f"{delta:g}",
        )
        for name, (count, epsilon, delta) in sorted(spent.items())
    ]
    note = (
        "Epsilon and delta of differential privacy with the hospital's whole update as the unit: they bound what can be"
        " learnt about whether this hospital took part, not about one patient."
    )
    return [Table(("hospital", "updates", "epsilon in all", "delta"), rows), note]


def _elsewhere(found: Account) -> list[Section]:
    sections = []
    if found.elsewhere:
        sections.append(Section("Turned away, outside any study", _trouble(found.elsewhere)))
    if found.policies:
        rows = [
            (
                fact.line,
                fact.record.ts,
                text(key),
                text(value) or listed(value) or ("none" if value in ([], None) else "-"),
            )
            for fact, policy in found.policies
            for key, value in policy.items()
        ]
        columns = ("line", "in force from (UTC)", "rule", "value")
        sections.append(Section("The hospital's policy", [Table(columns, rows)]))
    return sections


def _problems(problems: Sequence[str]) -> str:
    return f"problems: {text('; '.join(problems))}" if problems else "nothing is wrong"
