"""How an update's numbers are told: rounded before anything is signed, and packed small on the way.

A plan's `encoding` says how finely a hospital's numbers are told. The rounding is a filter of the gate, named in
the manifest; digest, norm, ledgers and the mean speak of the rounded numbers. So packing them loses nothing:
whoever unpacks has the very float32 numbers that the digest names, and a simulation need not pack at all.

| `encoding` | an update's numbers | bytes each | on the way |
|---|---|---|---|
| `float32` | as they are | 4 | 4 |
| `bfloat16` | 8 significant bits, to nearest, ties to even | 2 | about 1.4 |
| `compact` | arrays of two and more dimensions in 50 steps, the rest as `bfloat16` | 1 | about 0.6 |

`compact` moves no number by more than 1 % of its array's range (0 belongs to the range; one below 6e-37 is 0). What has
one dimension, as statistics and gains of normalisation layers, is few numbers and matters much, so it is told finely.

Packed are first the lower bytes of all bfloat16 numbers, which are chance and would not get smaller; then, under
Zstandard (RFC 8878), their higher bytes and what `compact` tells. Both sizes are known beforehand, and nothing larger
is unpacked.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import zstandard

from models.errors import Malformed, TooLarge
from models.exchange.spec import Spec, Vector
from models.plan import Encoding as EncodingName

BOUND = 0.01
"""How far `compact` moves a number at most, in units of its array's range."""

_STEPS = 50  # in a range; a number is then half a step, or 1 % of the range, from the nearest
# Of Zstandard's fastest strategy: numbers repeat by chance only, so it hardly looks for repetitions.
_EFFORT = zstandard.ZstdCompressionParameters.from_level(1, hash_log=6, write_content_size=True)
_PIECE = 1 << 16  # numbers that are worked on at a time; they stay in a core's cache

_Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class _Run:
    """Arrays that lie side by side in the vector and are told alike; of a coarse run there is only one."""

    place: slice
    coarse: bool


@dataclass(frozen=True)
class Encoding:
    """How the updates of one study are told.

    Attributes:
        name: As the plan says it.
        spec: The arrays.
    """

    name: EncodingName
    spec: Spec

    @cached_property
    def nbytes(self) -> int:
        """Bytes of one update in this encoding, before it is compressed on the way."""
        if self.name == "float32":
            return 4 * self.spec.size
        return sum(_size(run) for run in self._runs)

    def rounded(self, vector: Vector) -> Vector:
        """The numbers that are told instead of a vector's.

        Args:
            vector: `(spec.size,)` float32, finite; not changed.

        Returns:
            `(spec.size,)` float32; with `float32` the very same array.
        """
        if self.name == "float32":
            return vector
        found = np.empty(self.spec.size, np.float32)
        for run in self._runs:
            part, out = vector[run.place], found[run.place]
            if run.coarse:
                _multiples(part, out, _step(part))
            else:
                _nearest(part, out)
        return found

    def pack(self, vector: Vector) -> bytes:
        """Pack a vector that `rounded` gave.

        Raises:
            ValueError: It holds other numbers than `rounded` gives.
        """
        lower, rest = np.empty(self._lower, np.uint8), np.empty(self.nbytes - self._lower, np.uint8)
        for run, low, part in self._parts(lower, rest):
            numbers = np.ascontiguousarray(vector[run.place], "<f4")
            if run.coarse:
                step = _step_of(numbers)
                part[:2] = np.array([step], "<f4").view(np.uint8)[2:]
                _codes(numbers, step, part[2:].view(np.int8))
            else:
                _halve(numbers, low, part)
        return b"".join((lower.data, zstandard.ZstdCompressor(compression_params=_EFFORT).compress(rest.data)))

    def unpack(self, data: bytes) -> Vector:
        """The numbers of a packed vector, to the bit. Takes no more memory than the spec says.

        Args:
            data: A stranger's.

        Raises:
            TooLarge: Longer than any vector is when packed.
            Malformed: It is no packed vector of this encoding and spec.
        """
        if len(data) > self.nbytes + self.nbytes // 128 + 1024:
            raise TooLarge("the packed arrays are longer than unpacked", detail="bytes")
        size, frame = self.nbytes - self._lower, memoryview(data)[self._lower :]
        try:
            # What the frame declares would be allocated, so it is looked at first.
            if zstandard.frame_content_size(frame) != size:
                raise Malformed("the packed arrays are of another size than the study's", detail="declared")
            unpacker = zstandard.ZstdDecompressor()
            rest = np.frombuffer(unpacker.decompress(frame, max_output_size=size, allow_extra_data=False), "u1")
        except zstandard.ZstdError as error:
            raise Malformed("the packed arrays cannot be unpacked", detail="declared") from error
        if rest.size != size:
            raise Malformed("the packed arrays are shorter than they declare", detail="declared")
        found = np.zeros(self.spec.size, "<f4")
        for run, low, part in self._parts(np.frombuffer(data, "u1", self._lower), rest):
            if run.coarse:
                step = np.zeros(4, np.uint8)
                step[2:] = part[:2]
                with np.errstate(over="ignore", invalid="ignore"):  # whoever uses it looks for infinity
                    np.multiply(part[2:].view(np.int8), step.view("<f4"), out=found[run.place])
            else:
                _join(low, part, found[run.place])
        return found.astype(np.float32, copy=False)

    @cached_property
    def _runs(self) -> tuple[_Run, ...]:
        runs: list[_Run] = []
        start = 0
        for tensor in self.spec.tensors:
            coarse, stop = self.name == "compact" and len(tensor.shape) > 1, start + tensor.size
            if runs and not coarse and not runs[-1].coarse:
                start = runs.pop().place.start
            if stop > start:
                runs.append(_Run(slice(start, stop), coarse))
            start = stop
        return tuple(runs)

    @cached_property
    def _lower(self) -> int:
        """How many lower bytes there are."""
        return sum(_length(run) for run in self._runs if not run.coarse)

    def _parts(self, lower: _Bytes, rest: _Bytes) -> Iterator[tuple[_Run, _Bytes, _Bytes]]:
        """Each run with its lower bytes, of which a coarse one has none, and its others."""
        for run in self._runs:
            low, part = (0, 2 + _length(run)) if run.coarse else (_length(run), _length(run))
            yield run, lower[:low], rest[:part]
            lower, rest = lower[low:], rest[part:]


def _length(run: _Run) -> int:
    count: int = run.place.stop - run.place.start
    return count


def _size(run: _Run) -> int:
    return 2 + _length(run) if run.coarse else 2 * _length(run)


def _pieces(size: int) -> Iterator[slice]:
    return (slice(start, start + _PIECE) for start in range(0, size, _PIECE))


def _nearest(part: Vector, out: Vector) -> None:
    """Write each number rounded to bfloat16, to nearest, ties to even."""
    for piece in _pieces(part.size):
        bits, found = part[piece].view(np.uint32), out[piece].view(np.uint32)
        np.right_shift(bits, 16, out=found)
        found &= 1
        found += 0x7FFF
        found += bits
        found &= 0xFFFF0000


def _halve(part: Vector, lower: _Bytes, higher: _Bytes) -> None:
    """Write the lower and the higher byte of each bfloat16 number; the higher ones, side by side, are much alike.

    Raises:
        ValueError: One has more digits.
    """
    for piece in _pieces(part.size):
        bits = part[piece].view(np.uint32)
        if np.bitwise_or.reduce(bits) & 0xFFFF:
            raise ValueError("the vector has more digits than its encoding")
        quarters = bits.view(np.uint8)
        lower[piece], higher[piece] = quarters[2::4], quarters[3::4]


def _join(lower: _Bytes, higher: _Bytes, out: Vector) -> None:
    """Write the bfloat16 numbers that `_halve` took apart."""
    for piece in _pieces(out.size):
        bits = out[piece].view(np.uint32)
        np.left_shift(higher[piece], 8, out=bits, dtype=np.uint32)
        bits |= lower[piece]
        bits <<= 16


def _ends(part: Vector) -> tuple[float, float]:
    """The smallest and the largest number, 0 included."""
    return min(float(part.min()), 0.0), max(float(part.max()), 0.0)


def _step(part: Vector) -> np.float32:
    """The step in which an array is told.

    It is cut to bfloat16's eight bits, so that a multiple of it is exact in float32, and it can be found again from its
    multiples. Below the smallest normal number (1e-38) there are no eight bits, and it is 0.
    """
    low, high = _ends(part)
    step = np.array([(high - low) / _STEPS], np.float32)
    if step[0] < np.finfo(np.float32).tiny:
        return np.float32(0)
    return np.float32((step.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)[0])


def _step_of(part: Vector) -> np.float32:
    """A step of which all numbers are multiples, as `_step` chose it.

    Raises:
        ValueError: There is none.
    """
    low, high = _ends(part)
    width = high - low
    if width == 0:
        return np.float32(0)
    for count in (_STEPS, _STEPS + 1, _STEPS - 1):  # both ends were rounded
        step = np.float32(width / count)
        # 51 steps may be as wide as 50 of another size, of which the upper end is then no multiple.
        if float(step) * count == width and not step.view(np.uint32) & 0xFFFF and high % float(step) == 0:
            return step
    raise ValueError("the vector has other numbers than its encoding")


def _multiples(part: Vector, out: Vector, step: np.float32) -> None:
    """Write each number's nearest multiple of a step."""
    if step == 0:
        out[:] = 0
        return
    for piece in _pieces(part.size):
        found = out[piece]
        np.divide(part[piece], step, out=found)
        np.rint(found, out=found)
        found *= step
        found += 0.0  # no -0


def _codes(part: Vector, step: np.float32, codes: npt.NDArray[np.int8]) -> None:
    """Write which multiple of a step each number is.

    Raises:
        ValueError: One is none.
    """
    for piece in _pieces(part.size):
        quotients = part[piece] / step if step else np.zeros_like(part[piece])
        codes[piece] = quotients
        if not np.array_equal(codes[piece] * step, part[piece]):
            raise ValueError("the vector has other numbers than its encoding")
