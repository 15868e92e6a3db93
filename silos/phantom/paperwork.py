"""The papers of a make-believe hospital: its `site.toml`, commented line by line, and its README."""

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models.errors import ConfigError
from silos.phantom.style import Style

HELD_OUT = 0.25
"""Share of the patients that a phantom holds out."""

_SITE = """\
# site.toml of {name}, a make-believe hospital (seed {seed}).
# Read only by this hospital; never sent, never bundled.
# Paths are relative to this file. Whoever can change this file decides what may leave this hospital.

name = {name_}  # stands on everything this hospital signs

# Ed25519. Whoever can read it can speak as this hospital; whoever can replace it silences the hospital,
# since nobody has enrolled the new one. THIS key is worthless as a secret: it is computed from the name and
# the seed above, so that a demo repeats to the bit. A real hospital makes its own: intramural-silo key.
key = {key}

[data]
# Scanned for DICOM; only ever read. Whoever can write here decides what the model learns.
root = "dicom"
# Only these modalities are used; everything else is left out and counted.
modality = ["MR"]
# Decides which patients are held out, and hides who they are. Whoever knows it can find out on which side a
# PatientID falls; whoever changes it moves held-out patients into training and spoils the measurement. A real
# hospital draws its own at random; a phantom's follows from its name and seed.
salt = {salt}
# Share of the patients kept for evaluation; none of their images is ever trained on.
held_out = {held_out}
# Images with text burned into them are left out; of kinds that often have it, also those that
# do not deny it.
burned_in = "refuse"

[data.labels]
# How this hospital writes its labels. Whoever can change the file decides what the model believes.
file = "labels.csv"
delimiter = {delimiter}
# DICOM keyword = column of the file; all must agree for a row to belong to an image.
join = {join}
# The column of the label.
value = {value}
# This hospital's word = the study's class.
words = {words}
{annotations}
[policy]
# What may leave. What is not allowed here is forbidden, an absent key included.
# Whoever can add a study here can have a model trained on these patients.
studies = {studies}
tasks = {tasks}
# The only measurements that are told to others.
metrics = {metrics}
# What may be told of the images before a study starts, in ranges; cells with fewer than min_patients are hidden.
survey = ["patients", "studies", "series", "images", "classes", "sides", "modality", "manufacturer",
  "transfer_syntax", "year", "spacing", "thickness", "matrix"]
# Refuse to train on fewer patients in a round: the fewer, the more a model says about each.
min_patients = 11
# Held-out patients behind a metric. These are nobody, so one is enough; a real hospital leaves this line out, and tells
# a metric only of min_patients patients or more.
min_evaluated = 1
# Numbers of patients and images are told as ranges, not exactly.
counts = "banded"
# Metrics are rounded to this many decimals.
decimals = 3
# Updates of one study that may leave: each says a little more about the patients.
max_rounds = 100
# The largest update that may leave.
max_bytes = "200 MB"
# How far (L2 norm) one round may move the model; a longer update is shortened to this.
clip = 10.0
# Standard deviation of the Gaussian noise added to an update, in units of clip; 0 adds none.
noise = 0.0

[run]
# Index, caches and ledger. Whoever can write here can hide past releases from everyone who does not compare
# this ledger with the coordinator's.
work = "work"
# "cuda" if there is one, else "cpu".
device = "auto"
# CPU threads for training.
threads = 1
# The coordinator's public file, to take part over the network; simulations need none.
{coordinator}
"""

_ANNOTATIONS = """
[data.annotations]
# What was drawn on the images: DICOM SEG or RTSTRUCT, found by the images that it refers to, wherever its file lies.
kinds = ["SEG", "RTSTRUCT"]
# What this hospital calls a segment (or its code, as "SCT:52988006") = the study's class.
words = {words}
"""

_README = """\
# {name}: a make-believe hospital

Nothing here belongs to a person. The patients are made of syllables, the brains of ellipses; whoever
resembles one does so by chance. No conclusion about patients can be drawn from any of it.

| | |
|---|---|
| `dicom/` | the images, as this hospital's scanner stores them |
| `labels.csv` | which of them show a lesion, in this hospital's words |
| `site.toml` | the hospital's configuration, commented line by line |
| `keys/` | a signing key that anybody can repeat; worthless as a secret |
| `canaries.txt` | every identifier in the images: search what left for each line, and find none |

Written from the name `{name}` and the seed {seed}: the same two give the same bytes.
"""


def site_toml(
    *,
    name: str,
    seed: int,
    style: Style,
    salt: str,
    studies: Sequence[str],
    coordinator: Path | None = None,
    volumes: bool = False,
) -> str:
    """The text of `site.toml`.

    Args:
        name: The silo's name.
        seed: Named in a comment, so that the hospital can be written again.
        style: Gives the shape of the table of labels.
        salt: At least 16 characters.
        studies: Studies that the policy allows.
        coordinator: The coordinator's public file, if the hospital is to take part over the network.
        volumes: Whether the images make volumes, on which lesions are drawn.
    """
    drawn = ["dice", "hausdorff95"] if volumes else []
    return _SITE.format(
        name=name,
        seed=seed,
        name_=_toml(name),
        key=_toml(f"keys/{name}.key"),
        salt=_toml(salt),
        held_out=HELD_OUT,
        delimiter=_toml(style.delimiter),
        join=_table(style.join_volumes if volumes else style.join),
        value=_toml(style.value),
        words=_table(dict(zip(style.words, ("lesion", "none"), strict=True))),
        annotations=_ANNOTATIONS.format(words=_table({style.segment: "lesion"})) if volumes else "",
        tasks=_toml(["classification", *(["segmentation"] if volumes else [])]),
        metrics=_toml(["loss", "auc", "accuracy", *drawn]),
        studies=_toml(list(studies)),
        coordinator=f"coordinator = {_toml(str(coordinator))}" if coordinator else '# coordinator = "coordinator.json"',
    )


def parse(text: str) -> dict[str, Any]:
    """Read the text back.

    Raises:
        ConfigError: A name or a study that TOML cannot hold.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"phantom: name or studies: cannot be written as TOML: {error}",
            "use lower-case letters, digits and hyphens",
        ) from error


def readme(name: str, seed: int) -> str:
    """The text of the README."""
    return _README.format(name=name, seed=seed)


def _toml(value: str | list[str]) -> str:
    return json.dumps(value, ensure_ascii=False)  # a JSON string is a TOML basic string


def _table(values: dict[str, str]) -> str:
    return "{ " + ", ".join(f"{_toml(key)} = {_toml(value)}" for key, value in values.items()) + " }"
