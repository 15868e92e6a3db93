"""What reading images costs, beside pydicom and MONAI reading the same ones.

    python scripts/bench_ingest.py [--files 100000] [--with-gdcm]

Five measures, each of both sides in turns, in one process with one thread, after checking that both give the same:

    header      the attributes that a scan reads, of CT slices with a real scanner's header (pydicom's CT_small)
    unchanged   bringing the index of a tree up to date in which nothing has changed
    first pass  decode, clip to percentiles, scale and resize 512 x 512 slices
    cached      an epoch over images that were prepared before, and the bytes that they take on disk
    codecs      JPEG 2000 and JPEG-LS slices in Hounsfield units, with the decoder that pydicom takes if not told

Printed are CPU seconds (the minimum over the turns, which other work on the machine disturbs least) and their
ratio, beside a bar. A bar that is missed is printed as missed, and the exit code is then 1. `--with-gdcm` fetches
python-gdcm into a temporary folder for this run: where it is installed, pydicom prefers it.

Then a tree of `--files` make-believe images is indexed on all cores, killed on the way, taken up again, and looked
at once more (0 leaves this out; 100,000 take 1 GB and about five minutes). The table is also written to
scripts/results/bench_ingest.md.
"""

import argparse
import logging
import os
import platform
import random
import re
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydicom
import torch
from pydicom.data import get_testdata_file
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_modality_lut
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless

from models import tasks
from models.console import FAILED, OK, show_table
from models.plan import Plan
from silos import dataset
from silos.cohort import Cohort
from silos.config import Data, Labels
from silos.dicom import apart
from silos.dicom import index as store
from silos.dicom.decode import read_image
from silos.dicom.header import read_header
from silos.dicom.scan import ATTRIBUTES, refresh, scan, walk
from silos.phantom import write_hospital
from silos.phantom.style import STYLES

RESULTS = Path(__file__).parent / "results" / "bench_ingest.md"
CONFIG = Path(__file__).parent.parent / "configs" / "study.toml"
SALT = "0123456789abcdef"
SLICES, IMAGES, SIZE, BATCH = 20_000, 128, 64, 16
HEADER, UNCHANGED, FIRST, EPOCH, BYTES, J2K, JPEG_LS = 12, 200, 4, 20, 2, 1.1, 1.4
"""The bars: how many times less than the other side."""


@dataclass(frozen=True)
class Finding:
    """A line of the table: what was measured, ours, theirs, and the bar that their ratio must reach."""

    what: str
    ours: str
    theirs: str
    ratio: float = 0
    bar: float = 0

    @property
    def met(self) -> bool:
        """Whether the bar is reached; there may be none."""
        return self.ratio >= self.bar

    @property
    def cells(self) -> tuple[str, ...]:
        """As they are printed."""
        bar = (f"{self.ratio:.2f}", f">= {self.bar:g}", "met" if self.met else "MISSED") if self.bar else ("", "", "")
        return self.what, self.ours, self.theirs, *bar


def spent() -> float:
    """CPU seconds of this process, and of the one in which compressed pictures are decoded."""
    decoder = apart._decoder
    clock = (~decoder.process.pid << 3) | 2 if decoder else 0  # as clock_getcpuclockid(3) has it
    return time.process_time() + (time.clock_gettime(clock) if clock else 0)


def in_turns(*functions: Callable[[], Any], turns: int) -> list[float]:
    """CPU seconds of each function, the least of some turns in which all are run one after the other."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(turns):
        for function, seconds in zip(functions, times, strict=True):
            began = spent()
            function()
            seconds.append(spent() - began)
    return [min(seconds) for seconds in times]


# --- headers -------------------------------------------------------------------------------------------


def write_slices(folder: Path, count: int) -> Path:
    """CT slices with the 260 elements of a real scanner's header, and few pixels."""
    template = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    template.PixelData, template.Rows, template.Columns = template.PixelData[: 2 * 16 * 16], 16, 16
    template.InstanceNumber, template.ImagePositionPatient = "10000", ["-158.135803", "-179.035797", "10000.50"]
    template.save_as(folder / "template")
    content = (folder / "template").read_bytes()
    (folder / "template").unlink()
    uid = template.SOPInstanceUID.encode()
    root = folder / "slices"
    for number in range(10_000, 10_000 + count):
        path = root / f"{number // 500}" / f"{number}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        own = b"%d" % number
        path.write_bytes(content.replace(b"10000", own).replace(uid, uid[: -len(own)] + own))
    return root


def by_pydicom(path: Path) -> dict[str, Any]:
    """The attributes of a scan, as somebody would read them with pydicom."""
    header = pydicom.dcmread(path, stop_before_pixels=True)
    found = {keyword: header.get(keyword) for keyword in ATTRIBUTES}
    return found | {"TransferSyntaxUID": header.file_meta.TransferSyntaxUID}


def text(value: Any) -> str:
    """A value of pydicom's as text."""
    several = value if isinstance(value, pydicom.multival.MultiValue) else [value]
    return "\\".join("" if each is None else str(each) for each in several)


def headers(work: Path, turns: int) -> Iterator[Finding]:
    """The header of each slice, and the whole tree when nothing has changed."""
    root = write_slices(work, SLICES)
    sample = sorted(root.rglob("*.dcm"))[:: SLICES // 500]
    for path in sample:
        if read_header(path, ATTRIBUTES) != {keyword: text(value) for keyword, value in by_pydicom(path).items()}:
            raise SystemExit(f"error: {path.name} is not read as pydicom reads it")
    ours, theirs = in_turns(
        lambda: [read_header(path, ATTRIBUTES) for path in sample],
        lambda: [by_pydicom(path) for path in sample],
        turns=turns,
    )
    ours, theirs = ours / len(sample), theirs / len(sample)
    micro = partial("{:.1f} us".format)
    yield Finding("header of a CT slice", micro(ours * 1e6), f"pydicom {micro(theirs * 1e6)}", theirs / ours, HEADER)

    index = work / "slices.sqlite"
    columns = list(ATTRIBUTES)

    def update() -> int:
        with closing(store.open_index(index, root, columns)) as database:
            return refresh(database, root, walk(root), columns)

    assert update() == SLICES
    look = partial(scan, root, index, modality=["CT"])
    again, pydicoms, table = in_turns(
        lambda: update() and sys.exit("error: an unchanged file was opened"),
        lambda: [by_pydicom(path) for path in sample],
        look,
        turns=turns,
    )
    again, pydicoms, table = again / SLICES, pydicoms / len(sample), table / SLICES
    yield Finding(
        "unchanged file, the index brought up to date",
        micro(again * 1e6),
        f"pydicom {micro(pydicoms * 1e6)}",
        pydicoms / again,
        UNCHANGED,
    )
    yield Finding("... and the table of all images made", micro(table * 1e6), f"{pydicoms / table:.0f} times less")


# --- pixels --------------------------------------------------------------------------------------------


def write_images(folder: Path, count: int) -> list[Path]:
    """CT slices of 512 x 512: a real one enlarged, with noise of its own in each."""
    template = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    enlarged = np.kron(template.pixel_array, np.ones((4, 4), np.int16))
    template.Rows, template.Columns = enlarged.shape
    folder.mkdir()
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 8, enlarged.shape, dtype=np.int16)
        template.PixelData = (enlarged + noise).tobytes()
        template.SOPInstanceUID = f"1.2.3.{number}"
        template.save_as(folder / f"{number}.dcm")
    return [folder / f"{number}.dcm" for number in range(count)]


def pixels(work: Path, turns: int) -> Iterator[Finding]:
    """The first pass over images, and a later one, against MONAI."""
    from monai.data import PersistentDataset, PydicomReader
    from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Resized, ScaleIntensityRangePercentilesd

    paths = write_images(work / "images", IMAGES)
    plan = Plan.load(CONFIG)
    settings = plan.task.model_copy(update={"size": (SIZE, SIZE), "percentiles": (1.0, 99.0), "window": None})
    task = tasks.task(settings)
    cases = pd.DataFrame({"name": [path.name for path in paths]})
    cases = cases.assign(
        path=cases["name"], stamp="", target=0, classes=[frozenset({0})] * len(cases), patient="", held_out=False
    )
    labels = Labels(file=work / "none.csv", join={"PatientID": "patient"}, value="label", words={"no": "none"})
    data = Data(root=work / "images", modality=["CT"], salt=SALT, labels=labels)

    def prepare(count: int, cache: Path) -> dataset.Dataset:
        return dataset.prepare(Cohort(cases[:count], {}, ("none",)), data, cache, settings, task)

    transforms = Compose(
        [
            LoadImaged("image", reader=PydicomReader(swap_ij=False)),
            EnsureChannelFirstd("image"),
            ScaleIntensityRangePercentilesd("image", 1, 99, 0, 1, clip=True),
            Resized("image", (SIZE, SIZE), mode="area"),
        ]
    )
    few = [{"image": str(path)} for path in paths[:16]]
    cached = prepare(len(few), work / "few").train
    for number, item in enumerate(few):
        (case,) = cached.take(np.array([number]))
        if np.abs(case.image - transforms(item)["image"].numpy()).max() > 1 / 131070 + 1e-5:
            raise SystemExit("error: the prepared images differ from MONAI's")
    folders = (work / f"first-{number}" for number in range(turns))
    ours, theirs = in_turns(
        lambda: prepare(len(few), next(folders)), lambda: [transforms(item) for item in few], turns=turns
    )
    milli = partial("{:.2f} ms".format)
    yield Finding(
        "first pass over a 512 x 512 slice, cache written",
        milli(ours / len(few) * 1e3),
        f"MONAI LoadImaged and the same transforms {milli(theirs / len(few) * 1e3)}",
        theirs / ours,
        FIRST,
    )

    persistent = PersistentDataset([{"image": str(path)} for path in paths], transforms, work / "monai")
    ready = prepare(IMAGES, work / "cache").train
    order = random.Random(1).sample(range(IMAGES), IMAGES)  # noqa: S311
    batches = [np.array(order[first : first + BATCH]) for first in range(0, IMAGES, BATCH)]
    for number in order:
        persistent[number]
    ours, theirs = in_turns(
        lambda: [ready.take(batch) for _ in range(10) for batch in batches],
        lambda: [persistent[number] for number in order],
        turns=turns,
    )
    ours /= 10
    micro = partial("{:.1f} us".format)
    yield Finding(
        f"cached epoch, per {SIZE} x {SIZE} image",
        f"{micro(ours / IMAGES * 1e6)}, in batches of {BATCH}",
        f"MONAI PersistentDataset {micro(theirs / IMAGES * 1e6)}",
        theirs / ours,
        EPOCH,
    )
    ours, theirs = (
        sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / IMAGES
        for folder in (work / "cache", work / "monai")
    )
    yield Finding(
        f"bytes of a cached {SIZE} x {SIZE} image, index included",
        f"{ours:.0f} (16 bits a value)",
        f"MONAI PersistentDataset {theirs:.0f} (float32)",
        theirs / ours,
        BYTES,
    )


def hounsfield(path: Path) -> np.ndarray:
    """A slice in Hounsfield units, as somebody would read it with pydicom."""
    image = pydicom.dcmread(path)
    return apply_modality_lut(image.pixel_array, image).astype(np.float32)


def codecs(work: Path, turns: int) -> Iterator[Finding]:
    """Reading a compressed slice."""
    source = write_images(work / "codecs", 4)
    for syntax, bar, encoder in ((JPEG2000Lossless, J2K, "pylibjpeg"), (JPEGLSLossless, JPEG_LS, "pyjpegls")):
        paths = []
        for path in source:
            image = pydicom.dcmread(path)
            image.compress(syntax, encoding_plugin=encoder)
            image.save_as(path.with_suffix(f".{syntax.keyword}"))
            paths.append(path.with_suffix(f".{syntax.keyword}"))
        if not all(np.array_equal(read_image(path), hounsfield(path)) for path in paths):
            raise SystemExit(f"error: {syntax.name}: the pixels differ from those of pydicom")
        ours, theirs = in_turns(
            lambda paths=paths: [read_image(path) for path in paths],
            lambda paths=paths: [hounsfield(path) for path in paths],
            turns=turns,
        )
        default = next(iter(get_decoder(syntax)._available))
        yield Finding(
            f"{syntax.keyword}, a 512 x 512 slice read, same pixels",
            f"{ours / len(paths) * 1e3:.2f} ms",
            f"pydicom with {default} {theirs / len(paths) * 1e3:.2f} ms",
            theirs / ours,
            bar,
        )


# --- a large tree ----------------------------------------------------------------------------------------


def write_tree(work: Path, count: int) -> Path:
    """Copies of make-believe hospitals' images, each with a UID of its own."""
    styles = [number for number, style in enumerate(STYLES) if style.syntax != DeflatedExplicitVRLittleEndian]
    for style in styles:
        write_hospital(work / f"phantom-{style}", name="north", seed=1, patients=12, images=3, size=32, style=style)
    sources = sorted(
        path for style in styles for path in (work / f"phantom-{style}/dicom").rglob("*") if path.is_file()
    )
    templates = [(path.read_bytes(), pydicom.dcmread(path).SOPInstanceUID.encode()) for path in sources]
    root = work / "tree"
    for number in range(count):
        if number % 1000 == 0:
            (root / f"{number // 1000:03}").mkdir(parents=True)
        content, uid = templates[number % len(templates)]
        own = uid[:-8] + b"%08d" % number
        (root / f"{number // 1000:03}" / f"{number:08}").write_bytes(content.replace(uid, own))
    return root


def look(root: Path, index: Path, processes: int) -> int:
    """In a process of its own: scan, telling how far it is, and how many files below the root it opened itself."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(cores)[:processes]))
    opened = [0]

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        opened[0] += event == "open" and str(arguments[0]).startswith(f"{root}{os.sep}")

    sys.addaudithook(watch)
    began = time.perf_counter()
    found = scan(
        root, index, modality=["MR"], progress=lambda done, _: print(done, flush=True) if done % 1024 == 0 else 0
    )
    assert len(found.instances) == found.files
    print("end", found.opened, opened[0], time.perf_counter() - began, flush=True)
    return OK


def large(work: Path, count: int) -> Iterator[Finding]:
    """A tree of make-believe images: both ways of indexing it, a kill, and a second look."""
    root = write_tree(work, count)
    cores = len(os.sched_getaffinity(0))

    def start(index: str, processes: int = cores, errors: int | None = None) -> subprocess.Popen[str]:
        words = [sys.executable, __file__, "look", str(root), str(work / index), str(processes)]
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, text=True)

    def end(child: subprocess.Popen[str]) -> tuple[int, int, float]:
        assert child.stdout
        words = child.stdout.read().split()[-3:]
        if child.wait():
            raise SystemExit("error: the scan failed")
        return int(words[0]), int(words[1]), float(words[2])

    for processes in (1, cores):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        opened, _, seconds = end(start(f"{processes}.sqlite", processes))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        assert opened == count
        yield Finding(
            f"{count:,} files indexed, {processes} process{'es' * (processes > 1)}",
            f"{seconds:.0f} s by the clock, {spent:.0f} s of CPU",
            "",
        )
    child = start("killed.sqlite", errors=subprocess.DEVNULL)  # Python tells of what a killed process left
    assert child.stdout
    for line in child.stdout:
        if int(line) >= count // 2:
            break
    child.send_signal(signal.SIGKILL)
    child.wait()
    with closing(sqlite3.connect(work / "killed.sqlite")) as database:
        (kept,) = database.execute("SELECT COUNT(*) FROM files").fetchone()
    opened, _, seconds = end(start("killed.sqlite"))
    assert opened == count - kept
    yield Finding(
        "... killed half-way and taken up again", f"{kept:,} files kept, {opened:,} read, {seconds:.0f} s", ""
    )
    opened, touched, seconds = end(start("killed.sqlite"))
    assert opened == touched == 0
    yield Finding("... nothing has changed", f"0 files opened, {seconds:.1f} s by the clock, table included", "")


# --- the whole -------------------------------------------------------------------------------------------


def write_results(findings: Sequence[Finding]) -> None:
    """The table as a page."""
    processor = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    wanted = ("pydicom", "monai", "torch", "numpy", "pylibjpeg-openjpeg", "pyjpegls", "python-gdcm")
    versions = ", ".join(f"{name} {version}" for name in wanted if (version := version_of(name)))
    text = [
        "# What reading images costs",
        "",
        f"{processor[1] if processor else platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GB; Python "
        f"{platform.python_version()}, {versions}. CPU time of one thread, the least of several turns; both sides in "
        "one run. Written by `scripts/bench_ingest.py`.",
        "",
        "| what | ours | the other side | ratio | bar | |",
        "|---|---|---|---|---|---|",
        *("| " + " | ".join(finding.cells) + " |" for finding in findings),
    ]
    RESULTS.write_text("\n".join(text) + "\n")


def version_of(distribution: str) -> str:
    """The installed version, or nothing."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def with_gdcm() -> int:
    """This script again, with python-gdcm from a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, "python-gdcm"]
        if subprocess.run(pip, check=False).returncode:
            print("python-gdcm cannot be had; going on without", file=sys.stderr)
        words = [word for word in sys.argv[1:] if word != "--with-gdcm"]
        paths = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
        child = subprocess.run([sys.executable, __file__, *words], env=os.environ | {"PYTHONPATH": paths}, check=False)
        return child.returncode


def main() -> int:
    """Measure, print, write."""
    if sys.argv[1:2] == ["look"]:
        return look(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000, help="of the large tree (default: 100,000; 0: none)")
    parser.add_argument("--turns", type=int, default=7, help="of each measure (default: 7)")
    parser.add_argument("--with-gdcm", action="store_true", help="fetch python-gdcm for this run")
    parser.add_argument("--work", type=Path, help="where to write the images (default: a temporary folder)")
    options = parser.parse_args()
    if options.with_gdcm:
        return with_gdcm()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    findings: list[Finding] = []
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        work = Path(folder).resolve()
        for part in (headers, pixels, codecs):
            findings += part(work, options.turns)
        if options.files:
            findings += large(work, options.files)
        cells = [finding.cells for finding in findings]
        show_table("what reading costs", ("what", "ours", "the other side", "ratio", "bar", ""), cells)
        write_results(findings)
        print("removing the images that were made for this", file=sys.stderr)
    return OK if all(finding.met for finding in findings) else FAILED


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main())
