"""Gaussian noise as whole numbers, so that its floating-point digits give nothing away.

The floats that a normal generator can return are a thin set. Added to a float sum they leave outputs that one data set
can produce and its neighbour cannot, and one such output ends all privacy (Mironov, CCS 2012; Holohan and Braghin,
ESORICS 2021). Here the sum is rounded to a grid whose spacing is public,

    spacing = std / 2^31,

the noise is a discrete Gaussian on the whole numbers with parameter s = 2^31 (Canonne, Kamath and Steinke, NeurIPS
2020), and the two are added exactly, as integers. What leaves is that integer times the spacing: every point of the
grid is possible whatever the data. s is a constant of the code, so every plan draws from the same sampler.

**Sampler.** The magnitude of z is drawn by rejection from strips of width w = s/16. Strip j is chosen in proportion to
the density at its left end, exp(-(jw)^2 / 2s^2) = exp(-j^2/512), by a uniform number of 144 bits against a table; u is
uniform in [0, w); and jw + u is kept with probability exp(-f), f = u(2jw + u) / 2s^2, a fraction of 63 bits. That coin
is tossed exactly: a chain grows from length k-1 to k with probability f/k, so it reaches k with probability f^k/k!, and
its length is even with probability 1 - f + f^2/2 - ... = exp(-f) (von Neumann 1951; Canonne et al., algorithm 1). A
sign bit makes z, and -0 is drawn again. Nothing is rounded but the table.

**Distance from the ideal.** The table's rounding, and the strips beyond 16 s that it leaves out, move a number's
distribution by less than 2^-135 in total variation. The accountants speak of the continuous Gaussian. Added to whole
numbers and then rounded, it keeps exactly the guarantee they compute, as all post-processing does. From this rounded
Gaussian r the discrete one p differs by r(z)/p(z) - 1 = ((z/s)^2 - 1) / 24s^2 to first order, hence by a
Kullback-Leibler divergence of 1 / 288s^4 < 2^-132 per number. Over d numbers in each of T adaptive steps divergences
add up, and by Pinsker's inequality the whole run is within sqrt(dT) 2^-66 of one with the noise that was accounted for;
delta grows by at most 1 + exp(epsilon) times that. For d = 10^8 and T = 10^4 the distance is below 10^-13.

What this does not do: rejection takes longer for some numbers than for others, so whoever can time single steps very
finely learns a little about their noise (Jin et al., S&P 2022).
"""

from __future__ import annotations

import functools
import itertools
import math
from bisect import bisect_right
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpeq.errors import ConfigError
from dpeq.privacy.randomness import Stream

__all__ = ["LOG_SCALE", "add_noise", "clip_bound", "discrete_gaussian"]

Words = NDArray[np.uint64]

LOG_SCALE = 31
"""log2 of s. With it, f fills 63 bits, so that all arithmetic on it fits a 64-bit word."""

_LARGEST_SUM = 2.0**51
"""In units of the spacing. Below it, the division of a sum by the spacing is off by at most 2^-3."""

_EXCESS = 1.25
"""How much further apart, in units of the spacing, two coordinates can be after rounding: see :func:`clip_bound`."""

_LOG_STRIPS = 4  # log2(s / w)
_STRIPS = 256  # up to 16 s, where f reaches 1
_TABLE_BITS = 144  # of which the first 16 are looked up, and 128 drawn only where those do not settle the strip
_MIXED = 255
_BLOCK = 1 << 15  # candidates at a time: the arrays they need stay in the processor's cache


@dataclass(frozen=True)
class _StripTable:
    """Where a uniform number of 144 bits falls.

    Attributes:
        thresholds: ``[257]``, rising from 0 to 2^144; strip j begins at the j-th and ends before the next.
        cells: ``[65536]``, the strip of all numbers with these leading 16 bits, or ``_MIXED`` where they have several.
    """

    thresholds: tuple[int, ...]
    cells: NDArray[np.uint8]


@functools.cache
def _strip_table() -> _StripTable:
    with localcontext(Context(prec=80, rounding=ROUND_HALF_EVEN)):  # whatever the caller has set
        weights = [(Decimal(-j * j) / 512).exp() for j in range(_STRIPS)]
        whole, below = sum(weights), Decimal(0)
        thresholds = [0]
        for weight in weights:
            below += weight
            thresholds.append(int((below / whole * 2**_TABLE_BITS).to_integral_value()))
    cells = np.full(1 << 16, _MIXED, dtype=np.uint8)
    size = 1 << (_TABLE_BITS - 16)
    for j, (start, end) in enumerate(itertools.pairwise(thresholds)):
        cells[-(-start // size) : end // size] = j
    return _StripTable(tuple(thresholds), cells)


def _choose_strips(leading: Words, stream: Stream) -> NDArray[np.uint8]:
    """The strips of uniform numbers whose leading 16 bits are given; the stream gives the others where they matter."""
    table = _strip_table()
    strips = table.cells[leading]
    mixed = np.flatnonzero(strips == _MIXED)
    rest = stream.words(2 * len(mixed)).tolist()
    for i, first, second in zip(mixed.tolist(), rest[::2], rest[1::2], strict=True):
        strips[i] = bisect_right(table.thresholds, int(leading[i]) << 128 | first << 64 | second) - 1
    return strips


def _roll(sides: int, count: int, stream: Stream) -> Words:
    """Numbers uniform in [0, sides), exactly: as many bits as that takes, again where they are too large."""
    shift = np.uint64(64 - (sides - 1).bit_length())
    values: Words = stream.words(count) >> shift
    while len(large := np.flatnonzero(values >= sides)):
        values[large] = stream.words(len(large)) >> shift
    return values


def _toss_exponential(f: Words, stream: Stream) -> NDArray[np.bool_]:
    """True with probability exp(-f / 2^64), exactly: whether the chain of the module's text has even length."""
    even = np.ones(len(f), dtype=np.bool_)
    alive = np.flatnonzero(stream.words(len(f)) < f)
    length = 1
    while len(alive):
        even[alive] = length % 2 == 0
        length += 1
        goes_on = (stream.words(len(alive)) < f[alive]) & (_roll(length, len(alive), stream) == 0)
        alive = alive[goes_on]
    return even


def _draw_block(candidates: int, stream: Stream, log_scale: int) -> NDArray[np.int64]:
    """What is kept of so many candidates. Bits of a word: 16 for the strip, one for the sign, the last ones for u."""
    words = stream.words(candidates)
    strips = _choose_strips(words >> np.uint64(48), stream)
    log_width = log_scale - _LOG_STRIPS
    left = strips.astype(np.uint64) << np.uint64(log_width)
    low = words & np.uint64((1 << log_width) - 1)
    # As a fraction of 2^64: f has 2 log_scale + 1 bits behind the point.
    f = (low * ((left << np.uint64(1)) + low)) << np.uint64(63 - 2 * log_scale)
    magnitude: NDArray[np.int64] = (left + low).view(np.int64)
    sign: NDArray[np.int64] = 1 - ((words >> np.uint64(46)) & np.uint64(2)).view(np.int64)
    minus_zero = (magnitude == 0) & (sign < 0)
    numbers: NDArray[np.int64] = (sign * magnitude)[_toss_exponential(f, stream) & ~minus_zero]
    return numbers


def discrete_gaussian(count: int, stream: Stream, log_scale: int = LOG_SCALE) -> NDArray[np.int64]:
    """``count`` independent whole numbers z with probabilities in proportion to exp(-z^2 / 2s^2), s = 2^log_scale.

    Their number and the stream determine them. The product uses only the default scale; small scales, from 2^5 to 2^31,
    run the same lines and can be compared with exact probabilities.
    """
    if not _LOG_STRIPS < log_scale <= LOG_SCALE:
        raise ValueError(f"log_scale is {log_scale}; it must be {_LOG_STRIPS + 1} to {LOG_SCALE}.")
    numbers = np.empty(count, dtype=np.int64)
    filled = 0
    while filled < count:
        missing = count - filled
        # About one candidate in forty is not kept.
        block = _draw_block(min(_BLOCK, missing + missing // 32 + 16), stream, log_scale)[:missing]
        numbers[filled : filled + len(block)] = block
        filled += len(block)
    return numbers


def _round_to_grid(sums: NDArray[np.float64], spacing: float) -> NDArray[np.int64]:
    if not np.isfinite(sums).all():
        raise ConfigError("The sum of clipped gradients is not finite; use a smaller max_grad_norm.")
    with np.errstate(over="ignore"):  # caught by the next line
        steps: NDArray[np.float64] = np.rint(sums / spacing)
    if not np.abs(steps).max(initial=0.0) < _LARGEST_SUM:
        raise ConfigError(
            "The sum of clipped gradients is too large beside the noise; use a smaller batch or more noise."
        )
    whole: NDArray[np.int64] = steps.astype(np.int64)
    return whole


def clip_bound(max_grad_norm: float, noise_multiplier: float, dimensions: int) -> float:
    """The norm to which units are clipped, a little below C, so that sums on the grid move by at most C.

    Two float64 sums whose exact distance is at most the value returned lie, once rounded by :func:`add_noise` with
    spacing g = std / 2^31, at most std / sigma from each other: the noise is at least sigma times the sensitivity.

    Take one coordinate with exact quotients a = S/g and a'. Each is computed with an error of at most 2^-3, half a unit
    in the last place below 2^51, and then moves by at most 1/2 to a whole number, so the integers differ by at most
    |a - a'| + 2 (1/2 + 1/8). By the triangle inequality the rounded vectors are at most 1.25 sqrt(d) g further apart
    than the sums, hence C - 1.25 sqrt(d) g. The spacing is exact, a division by a power of two; std, and what is
    computed here, are off by less than 8 roundings of 2^-53, which a factor of 1 - 2^-48 outweighs.

    Rounding in the norms, in the clipping and while the sum is formed comes before all this and is not in it.

    Args:
        max_grad_norm: C, by which one unit may move the sum.
        noise_multiplier: sigma > 0; the noise is ``std = noise_multiplier * max_grad_norm``.
        dimensions: d, the length of the whole sum, over all parameters.

    Raises:
        ConfigError: when it would lie below 0.99 C, for more numbers and noise than the grid is fine enough for.
        ValueError: when C or sigma is not a finite number above 0, or d is negative.
    """
    if not (0 < max_grad_norm < math.inf and 0 < noise_multiplier < math.inf and dimensions >= 0):
        raise ValueError("clip_bound wants a finite norm and noise multiplier above 0, and a number of dimensions.")
    share = _EXCESS * math.sqrt(dimensions) * noise_multiplier * 2.0**-LOG_SCALE
    if not share <= 0.01 - 2.0**-40:
        raise ConfigError(
            f"A noise multiplier of {noise_multiplier:g} on {dimensions} parameters is too much for the grid of the "
            "noise; train fewer parameters or ask for a larger epsilon."
        )
    return max_grad_norm * (1.0 - share) * (1.0 - 2.0**-48)


def add_noise(total: Tensor, *, std: float, stream: Stream) -> Tensor:
    """``total`` rounded to multiples of ``std / 2^31``, plus noise of standard deviation ``std`` on the same grid.

    The whole sum goes in at once, over all parameters: :func:`clip_bound` counts its coordinates. The work is done on
    the processor, in numpy, whose division rounds correctly; torch's may multiply by the reciprocal.

    Args:
        total: float64 ``[d]``, on any device: the sum of gradients that were clipped to :func:`clip_bound`.
        std: sigma * C, above 0.
        stream: this step's, and no other step's.

    Returns:
        float64 ``[d]`` on the device of ``total``.

    Raises:
        ConfigError: when the sum is not finite or overflows the grid, which fewer than 2^20 sigma clipped units cannot
            bring about.
        ValueError: when ``std`` is 0, not finite or absurd, or ``total`` is not float64 and flat.
    """
    if not 2.0**-900 <= std <= 2.0**900:  # the spacing is exact, and nothing below overflows
        raise ValueError(f"std is {std}; noise wants a standard deviation from 2^-900 to 2^900.")
    if total.dtype != torch.float64 or total.dim() != 1:
        raise ValueError(f"total is {total.dtype} with {total.dim()} dimensions; it must be float64 and flat.")
    spacing = std * 2.0**-LOG_SCALE
    steps = _round_to_grid(total.detach().cpu().numpy(), spacing)
    # Integers below 2^51 + 2^36 in magnitude: exact in int64, and again in float64.
    noised = (steps + discrete_gaussian(len(steps), stream)).astype(np.float64) * spacing
    return torch.from_numpy(noised).to(total.device)
