"""Opens one annotation's whole file, whose frames and contours say what a header does not."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset

from models.errors import IntramuralError
from silos.dicom.header import Flaw, Reason, UnreadableFile, items, open_header

MAX_BYTES = 2**29  # of one annotation's file, which is read whole
MAX_ITEMS = 1_000_000  # of its sequences; a hundred organs in 500 slices have half as many


@contextmanager
def open_annotation(path: Path, *, pixels: bool = True) -> Iterator[Dataset]:
    """The whole file, once its header was found sound; any error within is an `UnreadableFile`.

    Args:
        path: A DICOM SEG or RTSTRUCT.
        pixels: Whether the pixels of a SEG are read, too.

    Raises:
        UnreadableFile: It is damaged, or of absurd size.
    """
    try:
        with open_header(path, ()) as header:
            try:
                header.stream.seek(0)  # inflated, if need be
                chunks = iter(partial(header.stream.read, 2**20), b"")
                if path.stat().st_size > MAX_BYTES or sum(map(items, chunks)) > MAX_ITEMS:
                    raise Flaw(Reason.UNREADABLE, "an annotation of absurd size")
                yield dcmread(path, force=True, stop_before_pixels=not pixels)
            except (Flaw, OSError, IntramuralError, KeyboardInterrupt, SystemExit, GeneratorExit):
                raise
            except BaseException as error:  # a panic of a decoder that is written in Rust is no Exception
                raise Flaw(Reason.UNREADABLE, type(error).__name__) from None
    except OSError as error:
        raise UnreadableFile(path, Reason.UNREADABLE, error.strerror or "") from error
