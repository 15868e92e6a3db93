"""The pixels of a make-believe hospital: brain slices, some with a lesion, as its scanner would show them.

    rng = np.random.default_rng(7)
    scanner = install(rng)                        # one per hospital
    slices, lesion = examine(rng, scanner, count=6, size=64, burden=0.5)

A head is a stack of soft ellipses: scalp, skull, brain, white matter, ventricles; its pose, proportions
and texture are drawn anew for every patient. A lesion is a blurred, irregular, moderately bright blob.
What makes the task worth learning is what lies beside it: vessels as bright as a lesion but thin, old
scars of a lesion's size but dark, broad bright caps on the ventricles, and a scanner whose gain, bias
field and noise change the mean of an image more than any lesion does. All of these occur in slices with
and without a lesion alike, so that only the shape tells them apart.

It resembles a T2-FLAIR slice enough to try software with, and nothing more: no conclusion about
patients can be drawn from it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float64]

FULL_SCALE = 4095
"""The largest stored value: 12 bits."""


@dataclass(frozen=True)
class Scanner:
    """How one hospital's scanner and protocol look; what makes hospitals differ from each other."""

    gamma: float  # exponent on tissue brightness
    csf: float  # brightness of fluid, 0..1: dark where the sequence suppresses it, bright where not
    scalp: float  # brightness of fat, 0..1
    bias: float  # strength of the coil's uneven brightness
    noise: float  # standard deviation, in units of the brightest tissue
    blur: float  # standard deviation of the point spread, as a fraction of the image's width
    gain: float  # stored value of brightness 1
    slope: float  # modality value of one stored step (RescaleSlope)


def install(rng: np.random.Generator) -> Scanner:
    """Draw a hospital's scanner."""
    return Scanner(
        gamma=float(np.exp(rng.uniform(-0.15, 0.3))),
        csf=float(rng.uniform(0.05, 0.7)),
        scalp=float(rng.uniform(0.85, 1.1)),
        bias=float(rng.uniform(0.05, 0.3)),
        noise=float(rng.uniform(0.01, 0.035)),
        blur=float(rng.uniform(0.004, 0.011)),
        gain=float(rng.uniform(1100, 2300)),
        slope=round(float(rng.uniform(0.4, 3.0)), 3),
    )


def examine(
    rng: np.random.Generator, scanner: Scanner, *, count: int, size: int, burden: float
) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
    """Scan one made-up patient.

    Args:
        rng: Draws the patient.
        scanner: The hospital's scanner.
        count: Axial slices, from the base of the brain to its crown.
        size: Rows and columns of a slice.
        burden: Share of the slices that show the lesion, 0 for a patient without one. The slices are
            adjacent, as one lesion's are.

    Returns:
        Stored values, uint16 of shape (count, size, size), at most `FULL_SCALE`; and where the lesion is, bool of
        the same shape. A slice that is meant to show it has at least one pixel of it.
    """
    touched = round(burden * count)
    first = int(rng.integers(0, count - touched + 1))
    ill = np.zeros(count, bool)
    ill[first : first + touched] = True
    extent = np.zeros(count)  # of the lesion's radius: largest in its middle slice, as a ball's
    extent[ill] = np.sqrt(1 - np.linspace(-0.7, 0.7, touched) ** 2) if touched > 1 else 1.0

    pose = _Pose.draw(rng)
    lesion = _Blob.draw(rng, radius=rng.uniform(0.20, 0.34), level=rng.uniform(0.34, 0.50))
    scar = _Blob.draw(rng, radius=rng.uniform(0.15, 0.3), level=-rng.uniform(0.15, 0.30))
    scarred = rng.random() < 0.5
    slices, lesions = [], []
    for height, reach in zip(np.linspace(-0.8, 0.8, count), extent, strict=True):
        u, v = pose.grid(rng, size, shrink=1 - 0.08 * height**2)
        tissue = _head(rng, u, v, scanner, pose, height)
        tissue += _vessels(rng, u, v)
        if scarred and rng.random() < 0.7:
            tissue += scar.paint(u, v, 1.0)
        spot = lesion.paint(u, v, float(reach)) if reach else np.zeros_like(u)
        tissue += spot
        lesions.append(spot >= min(lesion.level / 2, spot.max()) if reach else spot > 0)
        slices.append(_acquire(rng, tissue, scanner))
    return np.stack(slices), np.stack(lesions)


@dataclass(frozen=True)
class _Pose:
    """How a patient's head lies and is built."""

    angle: float
    shift: tuple[float, float]
    width: float
    length: float
    ventricle: float
    fat: float  # thickness of the scalp
    brain: float  # brightness of the brain

    @staticmethod
    def draw(rng: np.random.Generator) -> "_Pose":
        return _Pose(
            angle=float(rng.normal(0, 0.12)),
            shift=(float(rng.normal(0, 0.04)), float(rng.normal(0, 0.04))),
            width=float(rng.uniform(0.66, 0.78)),
            length=float(rng.uniform(0.82, 0.93)),
            ventricle=float(rng.uniform(0.7, 1.5)),
            fat=float(rng.uniform(0.04, 0.12)),
            brain=float(rng.uniform(0.42, 0.54)),
        )

    def grid(self, rng: np.random.Generator, size: int, shrink: float) -> tuple[Image, Image]:
        """Coordinates in the head's own frame: the scalp is the unit circle, u to the left, v to the back."""
        axis = (np.arange(size) + 0.5) / size * 2 - 1
        y, x = np.meshgrid(axis - self.shift[1], axis - self.shift[0], indexing="ij")
        angle = self.angle + rng.normal(0, 0.01)
        cos, sin = np.cos(angle), np.sin(angle)
        return (cos * x + sin * y) / (self.width * shrink), (cos * y - sin * x) / (self.length * shrink)


@dataclass(frozen=True)
class _Blob:
    """An irregular soft spot at one place of the brain: a lesion (bright) or a scar (dark)."""

    centre: tuple[float, float]
    radius: float
    level: float
    waves: NDArray[np.float64]  # amplitude and phase of the outline's second to fourth harmonic

    @staticmethod
    def draw(rng: np.random.Generator, radius: float, level: float) -> "_Blob":
        angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.62)
        waves = np.stack([rng.uniform(0, 0.22, 3), rng.uniform(0, 2 * np.pi, 3)], axis=1)
        return _Blob((distance * np.cos(angle), distance * np.sin(angle)), radius, level, waves)

    def paint(self, u: Image, v: Image, extent: float) -> Image:
        du, dv = u - self.centre[0], v - self.centre[1]
        bearing = np.arctan2(dv, du)
        outline = 1 + sum(a * np.cos(k * bearing + p) for k, (a, p) in enumerate(self.waves, start=2))
        return self.level * _inside(np.hypot(du, dv) / (self.radius * extent * outline), edge=0.25)


def _head(rng: np.random.Generator, u: Image, v: Image, scanner: Scanner, pose: _Pose, height: float) -> Image:
    """A healthy slice at `height` (-1 base .. 1 crown): brightness 0..1 before the scanner."""
    size = u.shape[0]
    radius = np.hypot(u, v)
    folds = radius + 0.03 * _texture(rng, size, 0.06)
    image = scanner.scalp * _inside(radius, 0.02)
    image = _over(image, _inside(radius / (1 - pose.fat), 0.02), 0.06)
    image = _over(image, _inside(radius / (0.93 - pose.fat), 0.02), pose.brain)
    image = _over(image, _inside(folds / 0.68, 0.05), 0.86 * pose.brain)
    image = _over(image, _inside(np.hypot(u / 0.012, v / 0.8), 0.5), scanner.csf)
    for side in (-1, 1):
        a = 0.10 * pose.ventricle * (1 - 0.3 * height**2)
        b = 0.30 * (1 - 0.25 * height**2)
        lean = u - side * (0.13 + 0.12 * v)
        image = _over(image, _inside(np.hypot(lean / a, (v + 0.02) / b), 0.15), scanner.csf)
        for end in (-1, 1):  # the bright caps at the horns of the ventricles
            cap = np.hypot((lean - 0.02 * side) / 0.10, (v - end * (b + 0.03)) / 0.07)
            image = image + rng.uniform(0.0, 0.06) * _inside(cap, 0.4)
    inner = _inside(radius / 0.85, 0.02)
    return image + inner * (0.025 * _texture(rng, size, 0.05) + 0.02 * _texture(rng, size, 0.015))


def _vessels(rng: np.random.Generator, u: Image, v: Image) -> Image:
    """Thin bright dots and strokes: as bright as a lesion or brighter, never as wide."""
    image = np.zeros_like(u)
    for _ in range(rng.integers(1, 5)):
        angle, distance, bearing = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.78), rng.uniform(0, np.pi)
        du, dv = u - distance * np.cos(angle), v - distance * np.sin(angle)
        along = np.cos(bearing) * du + np.sin(bearing) * dv
        across = np.cos(bearing) * dv - np.sin(bearing) * du
        length, width = rng.uniform(0.02, 0.09), rng.uniform(0.015, 0.025)
        image += rng.uniform(0.3, 0.8) * np.exp(-0.5 * ((along / length) ** 2 + (across / width) ** 2))
    return image


def _acquire(rng: np.random.Generator, tissue: Image, scanner: Scanner) -> NDArray[np.uint16]:
    """What the scanner stores: blur, gamma, coil sensitivity, Rician noise, 12 bits."""
    size = tissue.shape[0]
    signal = _blur(tissue, scanner.blur * size).clip(0, 1.2) ** scanner.gamma
    field = _texture(rng, size, 0.35).clip(-2, 2)
    signal *= np.exp(scanner.bias * field / 2) * np.exp(rng.normal(0, 0.2))
    real, imaginary = rng.normal(0, scanner.noise, (2, size, size))
    magnitude: Image = np.hypot(signal + real, imaginary)
    return np.rint(magnitude * scanner.gain).clip(0, FULL_SCALE).astype(np.uint16)


def _inside(radius: Image, edge: float) -> Image:
    """1 where `radius` is below 1, 0 above, over a soft edge of that relative width."""
    return 0.5 - 0.5 * np.tanh((radius - 1) / edge)


def _over(image: Image, mask: Image, level: float) -> Image:
    return image + mask * (level - image)


def _texture(rng: np.random.Generator, size: int, scale: float) -> Image:
    """Smooth noise of mean 0 and standard deviation 1; `scale` is a fraction of the image's width."""
    noise = _blur(rng.normal(size=(size, size)), scale * size)
    noise -= noise.mean()
    noise /= noise.std()
    return noise


def _blur(image: Image, sigma: float) -> Image:
    """Gaussian blur of `sigma` pixels through the Fourier transform; the edges wrap around."""
    rows, columns = np.fft.fftfreq(image.shape[0]), np.fft.rfftfreq(image.shape[1])
    squared = rows[:, None] ** 2 + columns[None, :] ** 2
    return np.fft.irfft2(np.fft.rfft2(image) * np.exp(-2 * (np.pi * sigma) ** 2 * squared), s=image.shape)
