"""The same facts in the order in which two laws ask for them.

`hipaa` follows 45 CFR 164.528(b), the accounting of disclosures; `gdpr` follows article 30(1) of Regulation
(EU) 2016/679, the record of processing activities. What the ledger holds is filled in; what only the
hospital knows is left blank, visibly. Neither says what the law makes of a model update: that is for the
hospital to decide.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from aggregator.exports.fact import Fact, filters, text
from aggregator.report.account import Account, Study
from models.page import Blank, Cell, Item, Section, Table

_FIELDS = ("asked for by", "what", "answer")
_Row = Sequence[Cell]


def hipaa(found: Account) -> list[Section]:
    """An accounting of disclosures for each study (45 CFR 164.528(b))."""
    return [
        _section(f"HIPAA 164.528: accounting of disclosures, study {study.name}", _HIPAA, _hipaa(found, study))
        for study in found.studies
    ]


def gdpr(found: Account) -> list[Section]:
    """A record of the processing for each study (article 30(1) GDPR)."""
    return [
        _section(f"GDPR article 30: record of processing, study {study.name}", _GDPR, _gdpr(found, study))
        for study in found.studies
    ]


_HIPAA = (
    "Whether a model update is protected health information, and whether one of the exceptions of 164.528(a)(1)"
    " applies, is for the covered entity to decide. The fields stand here in case it does. Disclosures to one"
    " recipient for one purpose are summed up as (b)(3) allows; each of them is listed above under its line."
)
_GDPR = (
    "Filled from the ledger where it knows; the rest is the controller's to add. The record describes the training of"
    " a model in this study and nothing else that the controller does."
)


def _section(heading: str, preface: str, rows: Sequence[_Row]) -> Section:
    items: list[Item] = [preface, Table(_FIELDS, rows)]
    return Section(heading, items)


def _hipaa(found: Account, study: Study) -> list[_Row]:
    left = study.disclosed
    name, key = study.recipient
    who = found.party if found.is_hospital else ", ".join(study.silos) or "none"
    rows: list[_Row] = [
        ("164.528", "Covered entity, as the ledger names it", who),
        ("164.528", "Covered entity, legal name and address", Blank("legal name and address")),
        ("(b)(2)(ii)", "Recipient, as the ledger names it", f"{name} (key {key})" if name else Blank("recipient")),
        ("(b)(2)(ii)", "Recipient, legal name and address", Blank("legal name and address, if known")),
        ("(b)(2)(i)", "Date of the first disclosure", _time(left[:1])),
        ("(b)(3)(ii)", "Number of disclosures in the period", len(left)),
        ("(b)(3)(ii)", "How often", _how_often(study, left)),
        ("(b)(3)(iii)", "Date of the last disclosure", _time(left[-1:])),
        ("(b)(2)(iii)", "What was disclosed", _disclosed(left)),
        ("(b)(2)(iv)", "Purpose", study.purpose or Blank("purpose")),
        ("(b)(2)(iv)", "Authority: authorization, waiver or data use agreement", Blank("kind, date and reference")),
        ("(b)(4)(i)(A)", "Name of the research protocol or activity", study.name or Blank("name")),
        ("(b)(4)(i)(A)", "Protocol number, IRB or privacy board", Blank("number and board")),
        ("(b)(4)(i)(B)", "Purpose of the research, in plain language", study.purpose or Blank("purpose")),
        ("(b)(4)(i)(B)", "Criteria for selecting records", Blank("criteria")),
        ("(b)(4)(i)(C)", "Type of protected health information", _data(study)),
        ("(b)(4)(i)(D)", "Period of the disclosures", _period(left)),
        ("(b)(4)(i)(E)", "Sponsor and researcher: name, address, telephone", Blank("name, address, telephone")),
        (
            "(b)(4)(i)(F)",
            "Statement",
            "Protected health information of the individual may or may not have been disclosed for this activity.",
        ),
        ("164.528(c)", "Person who prepared this accounting, and date", Blank("name, title, date, signature")),
    ]
    return rows


def _gdpr(found: Account, study: Study) -> list[_Row]:
    name, key = study.recipient
    others = [silo for silo in study.silos if silo != found.party]
    policies = found.policies
    rows: list[_Row] = [
        ("30(1)(a)", "Controller, as the ledger names it", found.party),
        ("30(1)(a)", "Controller: name and contact details", Blank("legal name, address, contact")),
        ("30(1)(a)", "Joint controllers", Blank("names and contact details, or none")),
        ("30(1)(a)", "Representative; data protection officer", Blank("names and contact details")),
        ("30(1)(b)", "Purposes of the processing", study.purpose or Blank("purposes")),
        ("30(1)(c)", "Categories of data subjects", Blank("for example: patients examined from when to when")),
        ("30(1)(c)", "Categories of personal data, read inside the hospital", _data(study)),
        ("30(1)(c)", "What left, as recorded", _disclosed(study.disclosed)),
        ("30(1)(d)", "Recipient, as the ledger names it", f"{name} (key {key})" if name else Blank("recipient")),
        (
            "30(1)(d)",
            "Recipients of the combined model",
            ", ".join(others) or Blank("the other hospitals of the study"),
        ),
        ("30(1)(e)", "Transfers to a third country, and safeguards", Blank("country and safeguards, or none")),
        ("30(1)(f)", "Time limits for erasure", Blank("time limits")),
        ("30(1)(f)", "Single hospitals' updates at the recipient, by the plan", _kept(study)),
        ("30(1)(g)", "Technical measures, by the hospital's policy", _measures(policies[-1][1] if policies else {})),
        ("30(1)(g)", "Filters applied to what left", _filters(study.disclosed)),
        (
            "30(1)(g)",
            "Integrity and accountability",
            "Every order and update is signed by its sender and countersigned by its receiver; both keep a"
            " tamper-evident ledger (RFC 6962) that this report was made from.",
        ),
        ("30(1)(g)", "Organisational measures", Blank("measures under article 32(1)")),
    ]
    return rows


def _time(found: Sequence[Fact]) -> Cell:
    return found[0].record.ts if found else "none so far"


def _period(left: Sequence[Fact]) -> str:
    return f"{left[0].record.ts} to {left[-1].record.ts}" if left else "none so far"


def _how_often(study: Study, left: Sequence[Fact]) -> str:
    rounds = {fact.record.round for fact in left} - {0}  # which is a survey's
    planned = f" of {study.agreement.plan.rounds} planned" if study.agreement else ""
    said = f"{len(left)} times, in {len(rounds)}{planned} rounds or right before or after them"
    return said if left else "none so far"


def _disclosed(left: Sequence[Fact]) -> str:
    updates = [fact for fact in left if fact.statement.get("kind") == "update"]
    metrics = sorted({name for fact in left if fact.manifest for name in fact.manifest.metrics})
    arrays = {len(fact.manifest.tensors) for fact in updates if fact.manifest}
    said = [f"{len(updates)} model updates"]
    if arrays:
        said[0] += f" of {' or '.join(map(str, sorted(arrays)))} arrays (differences of the network's numbers)"
    surveys = [fact for fact in left if fact.statement.get("kind") == "survey"]
    said.append(f"{len(left) - len(updates) - len(surveys)} reports of metrics alone")
    if surveys:
        fields = sorted({name for fact in surveys if fact.survey for name in fact.survey.fields})
        said.append(f"{len(surveys)} surveys in bands before the study: {', '.join(fields)}")
    said.append(f"metrics: {', '.join(metrics) or 'none'}")
    said.append(f"{sum(fact.nbytes or 0 for fact in left):,} bytes in all")
    return "; ".join(said)


def _data(study: Study) -> Cell:
    if study.agreement is None:
        return Blank("kind of images and labels")
    task = study.agreement.plan.task
    return f"images of modality {text(', '.join(task.modality))} with the labels {text(', '.join(task.classes))}"


def _kept(study: Study) -> Cell:
    if study.agreement is None:
        return Blank("kept or deleted")
    kept = study.agreement.plan.keep_updates
    return "kept after the round" if kept else "deleted after each round"


def _measures(policy: Mapping[str, Any]) -> Cell:
    """What of a policy protects somebody."""
    words = {
        "min_patients": "at least {} patients per update",
        "counts": "counts told {}",
        "clip": "updates clipped to an L2 norm of {}",
        "noise": "noise of {} times that norm",
        "max_epsilon": "epsilon at most {}",
        "max_rounds": "at most {} rounds",
    }
    said = [sentence.format(text(policy[key])) for key, sentence in words.items() if text(policy.get(key))]
    return "; ".join(said) or Blank("measures under article 32(1)")


def _filters(left: Sequence[Fact]) -> str:
    applied = {" then ".join(filters(fact.manifest)) or "none" for fact in left if fact.manifest and fact.payload}
    return "; ".join(sorted(applied)) or "none"
