"""The model's card: what a person must know of a model before using it, as far as a ledger can tell it.

Follows Mitchell et al., "Model Cards for Model Reporting" (FAT* 2019): model, intended use, data, evaluation,
training, limits. Every number is one that a hospital told the coordinator, by hospital and not only on the
mean; what no ledger knows is left blank, visibly, for people to fill in elsewhere.
"""

from collections.abc import Iterator, Sequence

from aggregator.exports.fact import text
from aggregator.release.bundle import STAYS
from aggregator.release.papers import EXACT, Hospital, Papers
from models.page import Blank, Cell, Code, Item, Page, Section, Table
from models.plan import Plan, TaskSettings
from models.settings import flat

_RUN = """\
pip install 'intramural[silo]'        # and fire, for MONAI's command line
python -m monai.bundle run --config_file configs/inference.json --bundle_root . \\
    --dataset_dir DICOM --output ../predictions"""

_RUN_IN_HOSPITAL = "intramural-silo predict SITE.toml . ../predictions"

_CHECK = """\
pip install --no-deps intramural && pip install cryptography
intramural-audit check . --key KEY"""


def card(told: Papers) -> Page:
    """Make the card of a released model."""
    sections = [
        Section("The model", [Table(("what", "as agreed or recorded"), list(_model(told)))]),
        Section("Intended use and limits", list(_use())),
        Section("Data, by hospital", list(_data(told))),
        Section("What it reaches, by hospital", list(_results(told))),
        Section("How it was trained", [Table(("key of the plan", "value"), list(_training(told.plan)))]),
        Section("Software, by hospital", [_software(told)]),
        Section("How to run it", list(_run(told.plan))),
        Section("How to check it", list(_check())),
    ]
    return Page(f"Model card: {told.plan.name}", sections)


def _model(told: Papers) -> Iterator[Sequence[Cell]]:
    plan, agreement = told.plan, told.agreement
    yield "Study", plan.name
    yield "Purpose, in the coordinator's words", text(plan.purpose)
    yield "Task", f"{plan.task.name}: {text(', '.join(plan.task.classes))}"
    yield "Images", f"modality {text(', '.join(plan.task.modality))}; {plan.task.extent}"
    yield "Network", plan.task.network.name
    if plan.strategy.local_norm:
        yield "What is not here", STAYS
    yield "Made by", f"round {told.round} of {plan.rounds}, with {plan.strategy}; {told.void} rounds were void"
    yield "Study's identity (SHA-256)", agreement.study
    yield "Model's digest (SHA-256)", told.model
    yield "Arrays' layout (SHA-256)", agreement.spec
    yield "Coordinator's key", agreement.coordinator_key


def _use() -> Iterator[Item]:
    yield "For research. This is no medical device, and nobody has examined it as one."
    yield "What no ledger knows is left open. This file is part of what was signed: write it on another page."
    yield Table(
        ("what", "known to people only"),
        [
            ("Who may use it, for what", Blank("intended users and use")),
            ("What it must not be used for", Blank("uses out of scope")),
            ("Patients it was made for", Blank("age, sex, setting, scanner")),
            ("Ethics approvals", Blank("board, number, date")),
            ("Contact", Blank("name, address")),
        ],
    )
    yield (
        "What a model learnt can be asked of it again: take a model of few patients as saying something about them. The"
        " hospitals' labels and metrics are their own word. A hospital that is not in the tables below may have other"
        " scanners, patients and habits; measure the model there first."
    )


def _data(told: Papers) -> Iterator[Item]:
    used = [hospital for hospital in told.hospitals.values() if hospital.rounds]
    rows = [
        (
            hospital.name,
            hospital.rounds,
            _count(hospital.examples),
            ", ".join(hospital.filters) or "-",
            hospital.epsilon,
        )
        for hospital in used
    ]
    gate = ("filters of its gate, on its last update", "epsilon up to that")
    yield Table(("hospital", "rounds", "trained on, in the last round", *gate), rows)
    equal = told.plan.weights == "equal"
    counts = "Hospitals count the same here, so none said how many it has." if equal else "Numbers are ranges."
    yield (
        f"No image and no label left a hospital. {counts} Epsilon is of differential privacy with the hospital's whole"
        " update as the unit, not one patient."
    )


def _results(told: Papers) -> Iterator[Item]:
    measured = [hospital for hospital in told.hospitals.values() if hospital.metrics or hospital.withheld]
    if not measured:
        yield "No hospital told how this model does."
        return
    names = sorted({name for hospital in measured for name in hospital.metrics})
    rows = [
        (
            hospital.name,
            _count(hospital.evaluated),
            *(f"{hospital.metrics[name]:g}" if name in hospital.metrics else "-" for name in names),
            ", ".join(hospital.withheld) or "-",
        )
        for hospital in measured
    ]
    yield Table(("hospital", "held out", *names, "withheld by its policy"), rows)
    yield "Of this model, on each hospital's own held-out patients, on whom it was never trained; as the hospital told."


def _software(told: Papers) -> Table:
    names = sorted({name for hospital in told.hospitals.values() for name in hospital.software})
    return Table(("hospital", *names), [(h.name, *_versions(h, names)) for h in told.hospitals.values()])


def _versions(hospital: Hospital, names: Sequence[str]) -> Iterator[str]:
    return (hospital.software.get(name, "-") for name in names)


def _run(plan: Plan) -> Iterator[Item]:
    yield "In a hospital with its site.toml, on its own images or, with --dicom, on others:"
    yield Code(_RUN_IN_HOSPITAL)
    local = "\\\n    --local WORK/local/STUDY/ROUND.safetensors" if plan.strategy.local_norm else ""
    yield f"Or in this folder, with MONAI and DICOM being {_what(plan.task)}:"
    yield Code(f"{_RUN} {local}".rstrip())
    masks = " and, of each series, a DICOM SEG on its own grid" if plan.task.drawn else ""
    yield f"Either writes a folder with predictions.csv{masks}. Nobody has checked what a program finds."
    yield (
        "It is a MONAI bundle: configs/inference.json names installed code only and evaluates nothing; network and"
        " preparation are those that agreement.json says. The model is safetensors; nothing is unpickled."
    )


def _what(task: TaskSettings) -> str:
    return "a file or a folder of images" if task.unit == "image" else "a folder of series, whose slices make volumes"


def _check() -> Iterator[Item]:
    yield "Before use; KEY is the coordinator's, from the coordinator or a hospital and not from this page:"
    yield Code(_CHECK)
    yield (
        "It shows that these files are those that were released, that the model is the output of that round of that"
        " study, and which hospitals signed the updates that went in and the metrics above."
    )


def _count(band: str) -> str:
    return band if band != EXACT else f"{EXACT}, and not here"


def _training(plan: Plan) -> Iterator[Sequence[Cell]]:
    for key, value in flat(plan.model_dump()):
        if value not in (None, {}):
            yield key, text(", ".join(map(str, value)) if isinstance(value, list | tuple) else value)
