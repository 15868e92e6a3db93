"""Pixels come out as they went in, and a hostile picture comes out as one exception with a reason."""

import contextlib
import logging
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import config, dcmread, uid
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence

from models.errors import DataError
from silos.dicom.decode import PLUGINS, read_image
from silos.dicom.header import Reason, UnreadableFile
from silos.dicom.scan import scan

Make = Callable[..., Path]

LOSSLESS = [
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.RLELossless,
    uid.JPEG2000Lossless,
    uid.JPEGLSLossless,
]


def noise(dtype: str) -> Any:
    low, high = (-2000, 2000) if dtype.startswith("i") else (0, 256 if dtype == "u1" else 4096)
    return np.random.default_rng(1).integers(low, high, (33, 37)).astype(dtype)


def refusal(path: Path) -> Reason:
    with pytest.raises(UnreadableFile, match=path.name) as caught:
        read_image(path)
    assert isinstance(caught.value, DataError)
    return caught.value.reason


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2"])
@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda syntax: syntax.keyword)
def test_what_was_stored_is_what_is_read(syntax: uid.UID, dtype: str, make: Make, tmp_path: Path) -> None:
    array = noise(dtype)
    image = read_image(make(tmp_path / "image", array, syntax))
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image, array)


def test_every_decoder_that_is_named_is_installed() -> None:
    from pydicom.pixels.decoders.base import get_decoder

    for syntax, plugin in PLUGINS.items():
        assert not plugin or plugin in get_decoder(uid.UID(syntax)).available_plugins, syntax


def test_rescaled_values_are_in_modality_units(make: Make, tmp_path: Path) -> None:
    array = noise("u2")
    path = make(tmp_path / "ct", array, RescaleSlope="0.5", RescaleIntercept="-1024")
    np.testing.assert_array_equal(read_image(path), array * np.float32(0.5) - 1024)


@pytest.mark.parametrize("intercept", ["-1024", "0.5", "1048575", "-1048577", "16777217"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_units_are_as_exact_as_float32_can_tell(intercept: str, photometric: str, make: Make, tmp_path: Path) -> None:
    array = np.random.default_rng(2).integers(0, 4096, (8, 9)).astype(np.uint16)
    path = make(
        tmp_path / "ct", array, RescaleSlope="1", RescaleIntercept=intercept, PhotometricInterpretation=photometric
    )
    expected = array.astype(float) if photometric == "MONOCHROME2" else 4095 - array.astype(float)
    assert np.array_equal(read_image(path), (expected + float(intercept)).astype(np.float32))


def test_a_modality_lut_is_looked_up(make: Make, tmp_path: Path) -> None:
    table = Dataset()
    table.LUTDescriptor = [4, 0, 16]
    table.ModalityLUTType = "US"
    table.LUTData = [7, 100, 1000, 30000]
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    path = make(tmp_path / "lut", np.array([[0, 1], [2, 9]], np.uint16), ModalityLUTSequence=Sequence([table]))
    np.testing.assert_array_equal(read_image(path), [[7, 100], [1000, 30000]])


@pytest.mark.parametrize(("dtype", "ends"), [("u2", 4095), ("u1", 255), ("i2", -1)])
def test_monochrome1_is_turned_so_that_larger_is_brighter(dtype: str, ends: int, make: Make, tmp_path: Path) -> None:
    array = noise(dtype)
    path = make(
        tmp_path / "cr",
        array,
        PhotometricInterpretation="MONOCHROME1",
        RescaleSlope="2",
        RescaleIntercept="10",
    )
    np.testing.assert_array_equal(read_image(path), (ends - array.astype(int)) * 2 + 10)


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda syntax: syntax.keyword)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("dtype", ["u2", "i2"])
def test_where_nothing_was_measured_is_as_dark_as_the_darkest_of_the_picture(
    syntax: uid.UID, photometric: str, dtype: str, make: Make, tmp_path: Path
) -> None:
    array = noise(dtype)
    words = {"PhotometricInterpretation": photometric, "RescaleIntercept": "-1024", "RescaleSlope": "1"}
    values = read_image(make(tmp_path / "whole", array, syntax, **words))
    array[:3] = lowest = array.min()
    padding = array == lowest
    image = read_image(make(tmp_path / "padded", array, syntax, PixelPaddingValue=int(lowest), **words))
    assert image[padding].max() == image.min() == values[~padding].min()
    assert np.array_equal(image[~padding], values[~padding])


def test_padding_may_be_a_range_of_values_and_its_sign_may_be_confused(make: Make, tmp_path: Path) -> None:
    array = np.array([[-2000, -1990, -1000], [-1995, 40, 50]], np.int16)
    path = make(tmp_path / "ct", array, PixelPaddingValue=-1990, PixelPaddingRangeLimit=-2000)
    np.testing.assert_array_equal(read_image(path), [[-1000, -1000, -1000], [-1000, 40, 50]])
    dataset = dcmread(make(tmp_path / "ct", array))
    dataset.add_new("PixelPaddingValue", "US", 2**16 - 2000)
    dataset.save_as(path)
    np.testing.assert_array_equal(read_image(path), [[-1995, -1990, -1000], [-1995, 40, 50]])


def test_padding_is_0_where_nothing_measured_is_below(make: Make, tmp_path: Path) -> None:
    array = np.array([[0, 0, 400], [0, 700, 30]], np.uint16)
    for empty in ({}, {"PixelPaddingValue": 0}):
        np.testing.assert_array_equal(read_image(make(tmp_path / "brain", array, **empty)), array)


def test_a_picture_of_nothing_but_padding_is_0(make: Make, tmp_path: Path) -> None:
    array = np.full((4, 4), 7, np.uint16)
    assert not read_image(make(tmp_path / "flat", array, PixelPaddingValue=7)).any()
    for other in ({"PixelPaddingValue": 9}, {}):
        np.testing.assert_array_equal(read_image(make(tmp_path / "flat", array, **other)), array)


@pytest.mark.zoo
@pytest.mark.parametrize(
    "name",
    [
        "dicomParser/CT1_UNC.explicit_little_endian.dcm",
        "dicomParser/CT1_UNC.implicit_little_endian.dcm",
        "dicomParser/CT1_UNC.explicit_big_endian.dcm",
        "dicomParser/encapsulated__single-frame__CT1_UNC.fragmented_bot_jpeg_ls.80.dcm",
        "pydicom-data/693_J2KR.dcm",
    ],
)
def test_around_the_circle_of_a_scanner_there_is_air(name: str, zoo: Path) -> None:
    """A fifth of each is padding, which would be -3024 HU."""
    image = read_image(zoo / name)
    assert image.min() == -1024
    assert (image == -1024).mean() > 0.21


def test_bits_that_are_not_stored_are_not_read(make: Make, tmp_path: Path) -> None:
    array = noise("u2")
    path = make(tmp_path / "overlay", array)
    content = path.read_bytes()
    dirty = (array | 0x8000).tobytes()
    path.write_bytes(content[: -len(dirty)] + dirty)
    np.testing.assert_array_equal(read_image(path), array)


def test_a_file_without_preamble_and_syntax_is_read(make: Make, tmp_path: Path) -> None:
    array = noise("u2")
    path = make(tmp_path / "old", array)
    content = path.read_bytes()
    path.write_bytes(content[132 + 12 + struct.unpack_from("<I", content, 140)[0] :])
    assert path.read_bytes().startswith(b"\x08\x00")
    np.testing.assert_array_equal(read_image(path), array)


@pytest.mark.parametrize(("slope", "intercept"), [("1", "1E400"), ("1E300", "0"), ("1E39", "0"), ("0", "1")])
def test_values_that_are_not_finite_or_all_the_same_are_refused(
    slope: str, intercept: str, make: Make, tmp_path: Path
) -> None:
    path = make(tmp_path / "far")
    with config.disable_value_validation():
        make(path, RescaleSlope=slope, RescaleIntercept=intercept)
    assert refusal(path) == Reason.PIXELS


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"Rows": 65535, "Columns": 65535}, Reason.TRUNCATED),
        ({"NumberOfFrames": 100000}, Reason.TRUNCATED),
        ({"Columns": 49}, Reason.TRUNCATED),
        ({"Columns": 0}, Reason.PIXELS),
        ({"BitsAllocated": None}, Reason.PIXELS),
        ({"BitsStored": 17}, Reason.PIXELS),
        ({"HighBit": 15}, Reason.PIXELS),
        ({"PixelRepresentation": None}, Reason.PIXELS),
        ({"PhotometricInterpretation": None}, Reason.PIXELS),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, Reason.COLOUR),
        ({"PixelData": None}, Reason.NO_IMAGE),
    ],
)
def test_a_header_that_its_pixels_contradict_is_refused(
    attributes: dict[str, Any], reason: Reason, make: Make, tmp_path: Path
) -> None:
    assert refusal(make(tmp_path / "odd", **attributes)) == reason


@pytest.mark.parametrize("syntax", [uid.RLELossless, uid.JPEG2000Lossless, uid.JPEGLSLossless])
@pytest.mark.parametrize(("rows", "columns"), [(48, 32), (31, 48), (32, 49), (8192, 8192), (65535, 65535)], ids=str)
def test_a_frame_of_another_shape_is_refused_and_never_allocated(
    syntax: str, rows: int, columns: int, make: Make, tmp_path: Path
) -> None:
    path = make(tmp_path / "lies", syntax=syntax, Rows=rows, Columns=columns)
    if (rows, columns) == (48, 32) and syntax == uid.RLELossless:
        pytest.skip("run-length code holds a number of pixels, not a shape: 32 x 48 is 48 x 32")
    tracemalloc.start()
    try:
        refusal(path)
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


def test_a_codestream_that_claims_a_huge_frame_is_refused(make: Make, tmp_path: Path) -> None:
    path = make(tmp_path / "bomb", syntax=uid.JPEG2000Lossless)
    content = path.read_bytes()
    at = content.index(b"\xff\x4f\xff\x51") + 8
    path.write_bytes(content[:at] + struct.pack(">II", 2**31, 2**31) + content[at + 8 :])
    assert refusal(path) == Reason.PIXELS


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.RLELossless])
def test_no_more_is_read_of_pixel_data_than_the_picture_can_need(syntax: str, make: Make, tmp_path: Path) -> None:
    path = make(tmp_path / "endless", syntax=syntax)
    whole = read_image(path)
    content = path.read_bytes()
    native = syntax == uid.ExplicitVRLittleEndian
    start = content.index(b"\xe0\x7f\x10\x00") + 12
    if not native:  # the item after the offset table
        start = content.index(b"\xfe\xff\x00\xe0", start + 8) + 8
    with path.open("r+b") as file:
        file.seek(start - 4)
        file.write(struct.pack("<L", 2**31))
        file.truncate(start + 2**31)
        file.seek(0, os.SEEK_END)
        file.write(b"" if native else b"\xfe\xff\xdd\xe0\0\0\0\0")
    tracemalloc.start()
    try:
        if native:
            assert np.array_equal(read_image(path), whole)
        else:
            assert refusal(path) == Reason.PIXELS
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()
        path.unlink()


def test_random_damage_is_refused_or_decoded_and_nothing_else_escapes(make: Make, tmp_path: Path) -> None:
    random = np.random.default_rng(7)
    content = np.frombuffer(make(tmp_path / "whole").read_bytes(), np.uint8)
    path, refused = tmp_path / "damaged", 0
    for _ in range(300):
        damaged = content.copy()
        damaged[random.integers(132, 700, 8)] ^= random.integers(1, 256, 8, dtype=np.uint8)
        path.write_bytes(damaged.tobytes())
        try:
            assert np.isfinite(read_image(path)).all()
        except UnreadableFile:
            refused += 1
    assert 0 < refused < 300


@pytest.mark.parametrize("syntax", [uid.RLELossless, uid.JPEG2000Lossless, uid.JPEGLSLossless, uid.JPEGExtended12Bit])
def test_a_damaged_compressed_image_is_refused_or_decoded_and_nothing_else_escapes(
    syntax: uid.UID, make: Make, tmp_path: Path
) -> None:
    random = np.random.default_rng(7)
    if syntax == uid.JPEGExtended12Bit:  # which nothing here can write
        source = Path(str(get_testdata_file("JPGExtended.dcm", download=False)))
    else:
        row, column = np.mgrid[:32, :48]
        smooth = (1500 + 800 * np.sin(row / 5) + 500 * np.cos(column / 7)).astype(np.uint16)
        source = make(tmp_path / "whole", smooth, syntax)
    content = np.frombuffer(source.read_bytes(), np.uint8)
    start = source.read_bytes().index(b"\xe0\x7f\x10\x00OB")
    path, decoded = tmp_path / "damaged", 0
    for _ in range(60):
        damaged = content.copy()
        places = random.integers(start, random.choice([min(start + 200, len(content)), len(content)]), 6)
        damaged[places] ^= random.integers(1, 256, 6, dtype=np.uint8)
        path.write_bytes(damaged[: random.choice([len(content), random.integers(start, len(content))])].tobytes())
        with contextlib.suppress(UnreadableFile):
            decoded += np.isfinite(read_image(path)).all()
    assert decoded < 60


def test_a_damaged_codestream_is_refused(make: Make, tmp_path: Path) -> None:
    assert (
        refusal(make(tmp_path / "junk", syntax=uid.JPEGLSLossless, PixelData=encapsulate([b"no picture at all"])))
        == Reason.PIXELS
    )


def test_what_the_decoders_say_of_a_picture_goes_nowhere(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    junk = make(tmp_path / "junk", syntax=uid.JPEGLSLossless, PixelData=encapsulate([b"no picture at all"]))
    fragile = make(tmp_path / "fragile", syntax=uid.JPEG2000Lossless)
    broken = make(tmp_path / "broken", syntax=uid.JPEGLSLossless)
    for path in (fragile, broken):
        content = path.read_bytes()
        path.write_bytes(content[:-600] + (bytes(550) if path == fragile else b"\xff" * 550) + content[-50:])
    caplog.clear()
    with caplog.at_level(logging.DEBUG):
        assert refusal(junk) == refusal(broken) == Reason.PIXELS
        read_image(fragile)
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
    assert not logging.getLogger("pydicom").disabled


def test_a_missing_file_is_a_data_error(tmp_path: Path) -> None:
    assert refusal(tmp_path / "gone") == Reason.UNREADABLE


@pytest.mark.zoo
def test_every_image_of_the_zoo_decodes_or_is_refused(zoo: Path, tmp_path: Path) -> None:
    decoded, refused = 0, set()
    for path in sorted(path for path in zoo.rglob("*") if path.is_file()):
        try:
            image = read_image(path)
        except UnreadableFile as error:
            refused.add(error.reason)
        else:
            assert image.ndim == 2
            assert np.isfinite(image).all()
            decoded += 1
    assert decoded > 100
    assert refused == set(Reason) - {
        Reason.SEVERAL_MODALITIES,
        Reason.SECONDARY_CAPTURE,
        Reason.MODALITY,
        Reason.BURNED_IN,
        Reason.DUPLICATE,
    }


@pytest.mark.zoo
def test_jpeg_lossless_gives_the_pixels_of_the_uncompressed_original(zoo: Path) -> None:
    original = read_image(zoo / "wam" / "medical.nema.org__compsamples_refanddir__IMAGES__REF__NM1_UNC")
    np.testing.assert_array_equal(read_image(zoo / "pydicom-data" / "JPEG-LL.dcm"), original)
    lossy = read_image(zoo / "pydicom-bundled" / "JPGExtended.dcm")
    assert np.abs(lossy - original).mean() < 0.05 * original.max()


@pytest.mark.lgg
@pytest.mark.parametrize("hospital", ["north", "east", "south", "west", "tiny"])
def test_images_of_every_hospital_decode(hospital: str, lgg: Path, tmp_path: Path) -> None:
    root = lgg / hospital / "dicom"
    found = scan(root, tmp_path / "index", modality=["MR"])
    brightest = max(read_image(root / path).max() for path in found.instances["path"][::20])
    assert read_image(root / found.instances["path"][0]).shape == (128, 128)
    assert brightest > 100
