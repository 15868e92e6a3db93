"""Filters that an update passes before it leaves: a bound on its length, noise, and rounding.

Clipping bounds what one round can move the model. Noise on top of it is the Gaussian mechanism with
the hospital's whole update as the unit: it hides whether this hospital took part, not one patient of
it, and neither metrics nor counts. SECURITY.md says what that is worth.
"""

import math
from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from models.errors import Unusable
from models.exchange.encoding import Encoding
from models.exchange.spec import Vector, norm


def clip(vector: Vector, bound: float) -> Vector:
    """Scale an update down to an L2 norm of at most `bound`.

    Args:
        vector: `(n,)` float32; not changed.
        bound: Above 0, in units of the parameters.

    Returns:
        `(n,)` float32; the very same array when it is short enough.

    Raises:
        Unusable: It holds NaN or infinity.
    """
    length = norm(vector)
    if not math.isfinite(length):
        raise Unusable("training gave NaN or infinity", "lower training.learning_rate in the study")
    if length <= bound:
        return vector
    scale = bound / length
    clipped = (vector * np.float32(scale)).astype(np.float32)
    while norm(clipped) > bound:  # rounding to float32 may leave it a hair too long
        scale = np.nextafter(np.float32(scale), np.float32(0), dtype=np.float32)
        clipped = (vector * scale).astype(np.float32)
    return clipped


def add_noise(vector: Vector, sd: float, secret: bytes) -> Vector:
    """Add Gaussian noise that only the holder of a secret can reproduce.

    The key of the noise is derived from the secret and from the update itself, as deterministic
    signatures derive their nonce (RFC 6979): the same update gets the same noise, so that telling it again
    tells nothing more. Another update gets independent noise, and is one more to be counted (`epsilon`).

    Args:
        vector: `(n,)` float32; not changed.
        sd: Standard deviation per element.
        secret: Known to this hospital only.

    Returns:
        `(n,)` float32.
    """
    if sd == 0:
        return vector
    mac = HMAC(secret, SHA256())
    mac.update(b"intramural noise v1\n" + np.float64(sd).tobytes() + np.ascontiguousarray(vector, "<f4").tobytes())
    keystream = Cipher(algorithms.ChaCha20(mac.finalize(), bytes(16)), mode=None).encryptor()
    half = (vector.size + 1) // 2
    raw = np.frombuffer(keystream.update(bytes(16 * half)), dtype="<u8") >> np.uint64(11)
    uniform = (raw.astype(np.float64) + 0.5) / 2.0**53  # in (0, 1), never 0
    radius, angle = np.sqrt(-2.0 * np.log(uniform[:half])), 2.0 * np.pi * uniform[half:]
    gaussian = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[: vector.size]
    return (vector + sd * gaussian).astype(np.float32)


def tell(vector: Vector, encoding: Encoding, bound: float) -> tuple[Vector, float]:
    """Round an update as the study tells its numbers, and keep it within a bound all the same.

    Rounding what is noisy takes nothing from what the noise promises: it looks at nothing else.

    Args:
        vector: `(n,)` float32 with an L2 norm of at most `bound`; not changed.
        encoding: The study's.
        bound: Above 0; infinite if there is none.

    Returns:
        `(n,)` float32, the very same array if the study tells numbers as they are; and its L2 norm.
    """
    found, limit = encoding.rounded(vector), bound
    while (length := norm(found)) > bound:
        limit *= bound / length * (1 - 2.0**-12)  # a hair less, for the next rounding may add again
        found = encoding.rounded(clip(vector, limit))
    return found, length


def epsilon(noises: Sequence[float], delta: float) -> float:
    """Epsilon of several Gaussian releases, exactly.

    Releases of sensitivity 1 with noises s compose to one of mu = sqrt(sum of 1 / s**2); delta(epsilon) of it is in
    closed form (Balle & Wang, ICML 2018; Dong et al., JRSS-B 2022).

    Args:
        noises: Of each release, the standard deviation in units of its clipping bound; at least one.
        delta: Between 0 and 1.

    Returns:
        The smallest epsilon >= 0 of that delta, to 1e-9; infinite if one release had no noise.
    """
    if not all(noises):
        return math.inf
    mu = math.sqrt(math.fsum(noise**-2 for noise in noises))

    def exceeds(candidate: float) -> bool:
        # e**eps overflows where the tail underflows; their product is taken in logarithms.
        second = math.exp(candidate + _log_tail(mu / 2 + candidate / mu))
        return _tail(candidate / mu - mu / 2) - second > delta

    low, high = 0.0, 1.0
    while exceeds(high):
        high *= 2
    while high - low > 1e-9 * max(1.0, high):
        middle = (low + high) / 2
        low, high = (middle, high) if exceeds(middle) else (low, middle)
    return high


def _tail(x: float) -> float:
    """Probability that a standard normal deviate exceeds x."""
    return math.erfc(x / math.sqrt(2)) / 2


def _log_tail(x: float) -> float:
    if x < 35:
        return math.log(_tail(x))
    # erfc underflows a little further on; the asymptotic series (DLMF 7.12.1) is exact to 1e-10 here.
    y = 1 / (x * x)
    return -x * x / 2 - math.log(x * math.sqrt(2 * math.pi)) + math.log1p(-y + 3 * y**2 - 15 * y**3)
