"""A picture can take a decoder with it, and nothing else."""

import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread, uid
from pydicom.encaps import encapsulate, get_frame

from silos.dicom import apart
from silos.dicom.decode import PLUGINS, read_image
from silos.dicom.header import Reason, UnreadableFile

Make = Callable[..., Path]

SYNTAXES = [uid.RLELossless, uid.JPEG2000Lossless, uid.JPEGLSLossless]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    apart._forget()
    yield
    apart._forget()


@pytest.fixture
def image(make: Make, tmp_path: Path) -> Path:
    return make(tmp_path / "image", syntax=uid.JPEGLSLossless)


def running() -> int:
    assert apart._decoder
    return apart._decoder.process.pid


def refusal(path: Path) -> Reason:
    with pytest.raises(UnreadableFile) as caught:
        read_image(path)
    return caught.value.reason


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.keyword)
@pytest.mark.parametrize("dtype", ["u1", "i2", "u2"])
def test_pixels_are_those_of_the_same_decoder_in_this_process(
    syntax: uid.UID, dtype: str, make: Make, tmp_path: Path
) -> None:
    array = np.random.default_rng(1).integers(0, 100, (32, 48)).astype(dtype)
    dataset = dcmread(make(tmp_path / "image", array, syntax))
    dataset.pixel_array_options(decoding_plugin=PLUGINS[syntax])
    found = read_image(tmp_path / "image")
    assert np.array_equal(found, dataset.pixel_array)
    assert np.array_equal(found, array)


def test_one_process_decodes_many_pictures_and_starts_with_the_first(make: Make, tmp_path: Path, image: Path) -> None:
    read_image(make(tmp_path / "native"))
    assert not apart._decoder
    read_image(image)
    first = running()
    for _ in range(3):
        read_image(image)
    assert running() == first


@pytest.mark.parametrize("end", [signal.SIGSEGV, signal.SIGXCPU, signal.SIGABRT])
def test_a_decoder_that_crashes_costs_one_picture(end: int, image: Path) -> None:
    whole = read_image(image)
    first = running()
    os.kill(first, end)
    assert refusal(image) == Reason.PIXELS
    assert np.array_equal(read_image(image), whole)
    assert running() != first


def test_a_decoder_that_somebody_killed_is_not_the_pictures_fault(image: Path) -> None:
    read_image(image)
    os.kill(running(), signal.SIGKILL)
    assert refusal(image) == Reason.UNREADABLE
    read_image(image)


def test_decoders_that_cannot_be_started_are_not_the_pictures_fault(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(UnreadableFile, match="cannot be started") as caught:
        read_image(image)
    assert caught.value.reason == Reason.UNREADABLE


def precincts_of_two(path: Path) -> None:
    """Make a JPEG 2000 picture one of millions of partitions (T.800 A.6.1), in the same few bytes."""
    dataset = dcmread(path)
    code = get_frame(dataset.PixelData, 0, number_of_frames=1)
    start = code.index(b"\xff\x52")
    (length,) = struct.unpack_from(">H", code, start + 2)
    style = bytearray(code[start : start + 2 + length])
    levels = style[9]
    style[4] |= 1
    style[2:4] = struct.pack(">H", length + levels + 1)
    code = code[:start] + bytes(style) + b"\x11" * (levels + 1) + code[start + 2 + length :]
    dataset.PixelData = encapsulate([code])
    dataset.save_as(path)


def test_a_small_file_that_unfolds_to_gigabytes_is_refused(
    make: Make, tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apart, "MEMORY", 2**30)
    path = make(tmp_path / "bomb", np.zeros((2048, 2048), np.uint16), uid.JPEG2000Lossless)
    whole = read_image(path)
    precincts_of_two(path)
    assert path.stat().st_size < 1000
    assert refusal(path) == Reason.PIXELS
    assert whole.shape == (2048, 2048)
    read_image(image)


def test_a_picture_that_takes_too_long_is_refused(
    make: Make, tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apart, "SECONDS", 1)
    path = make(tmp_path / "slow", np.zeros((2048, 2048), np.uint16), uid.JPEG2000Lossless)
    precincts_of_two(path)
    began = time.process_time()
    assert refusal(path) == Reason.PIXELS
    assert time.process_time() - began < 1
    read_image(image)


def test_a_picture_of_many_colours_is_refused_before_it_is_decoded(make: Make, tmp_path: Path) -> None:
    path = make(tmp_path / "colours", syntax=uid.JPEG2000Lossless)
    dataset = dcmread(path)
    code = get_frame(dataset.PixelData, 0, number_of_frames=1)
    start = code.index(b"\xff\x51")
    size = code[start : start + 2] + struct.pack(">H", 38 + 3 * 9000) + code[start + 4 : start + 38]
    size += struct.pack(">H", 9000) + code[start + 40 : start + 43] * 9000
    dataset.PixelData = encapsulate([code[:start] + size + code[start + 43 :]])
    dataset.save_as(path)
    assert refusal(path) == Reason.PIXELS
    assert not apart._decoder


def test_a_process_that_was_forked_has_a_decoder_of_its_own(image: Path) -> None:
    whole = read_image(image)
    decoder = apart._decoder
    assert decoder
    decoder.owner = -1
    assert np.array_equal(read_image(image), whole)
    assert running() != decoder.process.pid
    decoder.owner = os.getpid()
    decoder.stop()


def test_the_decoder_ends_with_whoever_started_it(image: Path) -> None:
    program = (
        "import os, sys, pathlib\n"
        "from silos.dicom import apart, decode\n"
        "decode.read_image(pathlib.Path(sys.argv[1]))\n"
        "print(apart._decoder.process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    paths = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", program, image], capture_output=True, check=False, env=os.environ | {"PYTHONPATH": paths}
    )
    assert done.returncode == -signal.SIGKILL
    end = time.monotonic() + 20
    while Path(f"/proc/{int(done.stdout)}/cmdline").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
