"""The sampler: its distribution at full scale, and its exactness."""

import itertools
import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import ndtr

from dpeq.privacy import gaussian
from dpeq.privacy.gaussian import LOG_SCALE, discrete_gaussian
from dpeq.privacy.randomness import Randomness, Stream

SCALE = 2.0**LOG_SCALE
DRAWS = 2_000_000


def stream(seed=0, step=1, use="noise"):
    return Randomness.create(seed).stream(use, step)


class Scripted(Stream):
    """Gives out the words it was given."""

    def __init__(self, *words):
        self.left = list(words)

    def words(self, count):
        given, self.left = self.left[:count], self.left[count:]
        assert len(given) == count, "the sampler drew more words than expected"
        return np.array(given, dtype=np.uint64)


@pytest.fixture(scope="module")
def draws():
    return discrete_gaussian(DRAWS, stream())


# The distribution at full scale


def test_moments(draws):
    x = draws / SCALE
    assert abs(x.mean()) < 4.5 / math.sqrt(DRAWS)
    assert x.std() == pytest.approx(1, rel=4.5 / math.sqrt(2 * DRAWS))  # 0.23 %
    assert abs(stats.skew(x)) < 4.5 * math.sqrt(6 / DRAWS)
    assert abs(stats.kurtosis(x)) < 4.5 * math.sqrt(24 / DRAWS)
    assert abs((draws > 0).mean() - 0.5) < 4.5 * 0.5 / math.sqrt(DRAWS)


def test_the_shape_is_the_normal_one(draws):
    x = draws / SCALE
    assert stats.kstest(x, "norm").pvalue > 1e-3
    assert stats.kstest(1.01 * x, "norm").pvalue < 1e-6, "the test cannot see one per cent"
    counts = np.bincount((ndtr(x) * 400).astype(int), minlength=400)
    assert stats.chisquare(counts).pvalue > 1e-3
    assert stats.ks_2samp(x[x > 0], -x[x < 0]).pvalue > 1e-3


def test_tails():
    """Both tails beyond 3, 4 and 5 standard deviations, within binomial bounds."""
    n = 16_000_000
    z = discrete_gaussian(n, stream(1))
    for threshold in (3, 4, 5):
        for side in (1, -1):
            count = int((side * z > threshold * SCALE).sum())
            assert stats.binomtest(count, n, stats.norm.sf(threshold)).pvalue > 1e-3


def test_the_far_tail_follows_the_table():
    """Numbers with leading bits 65535 of 65536: strips from 4 s upwards, which few samples reach."""
    n = 200_000
    strips = gaussian._choose_strips(np.full(n, 65535, dtype=np.uint64), stream())
    weights = np.exp(-(np.arange(256.0) ** 2) / 512)
    below = np.cumsum(weights) / weights.sum()
    expected = np.diff(np.clip((below - 65535 / 65536) * 65536, 0, 1), prepend=0) * n
    counts = np.bincount(strips, minlength=256).astype(float)
    ends = np.flatnonzero(expected > 20)
    first, last = ends[0], ends[-1]
    pool = [np.append(v[first:last], v[last:].sum()) for v in (counts, expected)]
    assert counts[:first].sum() == 0
    assert first > 64
    assert stats.chisquare(*pool).pvalue > 1e-3


def test_low_bits_are_uniform(draws):
    for modulus in (256, 3, 5):
        assert stats.chisquare(np.bincount(draws % modulus, minlength=modulus)).pvalue > 1e-3
    magnitudes = np.abs(draws)
    low, strip = magnitudes & 15, (magnitudes >> 27) & 3
    assert stats.chi2_contingency(np.histogram2d(low, strip, bins=(16, 4))[0]).pvalue > 1e-3


def test_numbers_of_one_stream_are_independent(draws):
    n = 1 << 18
    for values in (draws[:n], np.abs(draws[:n]), draws[:n] % 1024):
        x = (values - values.mean()) / values.std()
        spectrum = np.abs(np.fft.rfft(x, 2 * n)) ** 2
        lags = np.fft.irfft(spectrum)[1 : n // 2] / n  # every lag at once
        assert np.abs(lags).max() < 6 / math.sqrt(n)


def test_steps_uses_and_keys_are_independent():
    streams = [stream(0, step, use) for use in ("sampling", "views", "noise", "augment") for step in (1, 2, 2**33)]
    x = np.stack([discrete_gaussian(50_000, s) for s in [*streams, stream(1)]]) / SCALE
    for values in (x, np.abs(x)):
        correlation = np.corrcoef(values) - np.eye(len(x))
        assert np.abs(correlation).max() < 4.5 / math.sqrt(50_000)


def test_the_stream_determines_the_numbers():
    first, again = (discrete_gaussian(100_000, stream(3)) for _ in range(2))
    assert first.dtype == np.int64
    assert np.array_equal(first, again)
    assert not np.isin(discrete_gaussian(1000, stream(3, step=2)), first).any()
    assert len(np.unique(first)) > 99_990
    ongoing = stream(3)
    discrete_gaussian(10, ongoing)
    assert not np.isin(discrete_gaussian(10, ongoing), discrete_gaussian(10, stream(3))).any()
    assert discrete_gaussian(0, stream()).shape == (0,)
    for log_scale in (4, 32):
        with pytest.raises(ValueError, match="log_scale"):
            discrete_gaussian(1, stream(), log_scale)


# Exactness


@pytest.mark.parametrize("log_scale", [5, 6, 8])
def test_a_small_twin_has_the_exact_probabilities(log_scale):
    s, n = 2**log_scale, 4_000_000
    z = discrete_gaussian(n, stream(log_scale), log_scale)
    support = np.arange(-6 * s, 6 * s + 1)
    pmf = np.exp(-(support**2) / (2 * s**2))
    expected = pmf / pmf.sum() * n
    counts = np.bincount(z + 16 * s, minlength=32 * s)[10 * s : 22 * s + 1]
    likely = expected > 20
    assert counts[np.abs(support) <= 3 * s].all(), "an integer is never reached"
    pool = [np.append(v[likely], n - v[likely].sum()) for v in (counts, expected)]
    assert stats.chisquare(*pool).pvalue > 1e-3
    wider = np.exp(-(support**2) / (2 * (1.01 * s) ** 2))
    wrong = (wider / wider.sum() * n)[likely]
    assert stats.chisquare(pool[0], np.append(wrong, n - wrong.sum())).pvalue < 1e-6, "cannot see one per cent"


def test_strip_table_against_mpmath():
    table = gaussian._strip_table()
    assert (table.thresholds[0], table.thresholds[-1], len(table.thresholds)) == (0, 2**144, 257)
    with mpmath.workdps(120):
        weights = [mpmath.exp(-mpmath.mpf(j * j) / 512) for j in range(800)]
        whole = mpmath.fsum(weights)
        for j in range(257):
            exact = mpmath.fsum(weights[:j]) / whole * 2**144
            assert abs(table.thresholds[j] - exact) < 0.5001
    for cell in range(65536):
        first, last = (strip_of(v, table.thresholds) for v in (cell << 128, ((cell + 1) << 128) - 1))
        assert table.cells[cell] == (first if first == last else 255)


def strip_of(number, thresholds):
    """By bisection, on its own feet."""
    low, high = 0, len(thresholds) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if thresholds[middle] <= number else (low, middle)
    return low


def test_strips_change_at_their_thresholds_to_the_last_bit():
    thresholds = gaussian._strip_table().thresholds
    tested = 0
    for j in range(1, 256):
        for number in {thresholds[j] - 1, thresholds[j]} - {2**144}:
            script = Scripted(number >> 64 & 2**64 - 1, number & 2**64 - 1)
            strip = gaussian._choose_strips(np.array([number >> 128], dtype=np.uint64), script)[0]
            assert strip == strip_of(number, thresholds)
            assert not script.left, "a threshold lies inside its cell"
            tested += thresholds[j - 1] < thresholds[j]
    assert tested > 400  # strips beyond 13.9 s are narrower than 2^-144


def test_distance_of_one_number_from_the_discrete_gaussian():
    """The bounds of the module's text: of the table in exact fractions, of the strips' law on a small twin."""
    thresholds = gaussian._strip_table().thresholds
    with mpmath.workdps(120):
        weights = [mpmath.exp(-mpmath.mpf(j * j) / 512) for j in range(800)]
        whole = mpmath.fsum(weights)
        drawn = [Fraction(b - a, 2**144) for a, b in itertools.pairwise(thresholds)]
        drawn = [mpmath.mpf(q.numerator) / q.denominator for q in drawn] + [mpmath.mpf(0)] * (800 - 256)
        table = mpmath.fsum(abs(q - w / whole) for q, w in zip(drawn, weights, strict=True)) / 2
        assert table <= mpmath.mpf(2) ** -137
        # Kept candidates of the twin: their law against exp(-z^2 / 2s^2).
        s, w = 64, 4
        law = {j * w + u: drawn[j] / w * mpmath.exp(-mpmath.mpf(u * (2 * j * w + u)) / (2 * s * s))
               for j in range(256) for u in range(w)}  # fmt: skip
        kept = mpmath.fsum(law.values())
        assert kept > 0.95
        assert 2 * table / kept < mpmath.mpf(2) ** -135
        law = {z: p * (1 if z else mpmath.mpf(1) / 2) for z, p in law.items()}  # -0 is drawn again
        ideal = {z: mpmath.exp(-mpmath.mpf(z * z) / (2 * s * s)) / (1 if z else 2) for z in range(40 * s)}
        kept, whole = mpmath.fsum(law.values()), mpmath.fsum(ideal.values())
        distance = mpmath.fsum(abs(law.get(z, 0) / kept - p / whole) for z, p in ideal.items()) / 2
        assert distance < mpmath.mpf(2) ** -135


def test_distance_from_the_rounded_continuous_gaussian():
    """1 / 288 s^4 bounds the divergence, and at s = 2^31 the first order is all there is."""
    with mpmath.workdps(100):

        def ratio(z, s):
            lower, upper = ((z + v) / (s * mpmath.sqrt(2)) for v in (-mpmath.mpf(1) / 2, mpmath.mpf(1) / 2))
            rounded = (mpmath.erfc(lower) - mpmath.erfc(upper)) / 2
            return rounded / (mpmath.exp(-(mpmath.mpf(z) ** 2) / (2 * s**2)) / (s * mpmath.sqrt(2 * mpmath.pi)))

        for s in (8, 16, 32):
            weights = {z: mpmath.exp(-mpmath.mpf(z * z) / (2 * s * s)) for z in range(-14 * s, 14 * s + 1)}
            whole = mpmath.fsum(weights.values())
            chi_square = mpmath.fsum(p / whole * (ratio(z, s) - 1) ** 2 for z, p in weights.items())
            assert float(chi_square * 288 * s**4) == pytest.approx(1, abs=2 / s**2)
        s = 2**LOG_SCALE
        assert mpmath.mpf(1) / (288 * mpmath.mpf(s) ** 4) < mpmath.mpf(2) ** -132
        for x in (0, 0.5, 2, 7, 13):
            first_order = (mpmath.mpf(x) ** 2 - 1) / (24 * mpmath.mpf(s) ** 2)
            assert abs((ratio(int(x * s), s) - 1) / first_order - 1) < 1e-12
    assert math.sqrt(2.0**-132 / 2) + 2.0**20 * 2.0**-135 < 2.0**-66  # Pinsker, and the table, for up to 2^40 numbers
    assert math.sqrt(1e8 * 1e4) * 2.0**-66 < 1e-13


@pytest.mark.parametrize("f", [0.0, 2.0**-9, 0.1, 0.25, 0.5, 511 / 512, 1 - 2.0**-53])
def test_the_coin_falls_with_probability_exp_minus_f(f):
    n = 2_000_000
    heads = int(gaussian._toss_exponential(np.full(n, int(f * 2.0**64), dtype=np.uint64), stream()).sum())
    assert stats.binomtest(heads, n, math.exp(-f)).pvalue > 1e-3


def test_coins_of_different_bias_do_not_mix():
    f = np.tile(np.array([0.02, 0.9, 0.4]), 500_000)
    heads = gaussian._toss_exponential((f * 2.0**64).astype(np.uint64), stream()).reshape(-1, 3)
    for i in range(3):
        assert stats.binomtest(int(heads[:, i].sum()), 500_000, math.exp(-f[i])).pvalue > 1e-3
    assert np.abs(np.corrcoef(heads.T) - np.eye(3)).max() < 4.5 / math.sqrt(500_000)


@pytest.mark.parametrize("sides", [2, 3, 4, 5, 7, 11])
def test_dice_are_fair(sides):
    rolls = gaussian._roll(sides, 1_000_000, stream(sides)).astype(np.int64)
    assert stats.chisquare(np.bincount(rolls, minlength=sides)).pvalue > 1e-3
    assert rolls.max() == sides - 1


def script_for(z):
    """Words with which the sampler draws z at once, and how many of them come before the coin."""
    strip, low = divmod(abs(z), 2**27)
    thresholds = gaussian._strip_table().thresholds
    number = (thresholds[strip] + thresholds[strip + 1]) // 2
    first = (number >> 128) << 48 | (z < 0) << 47 | low
    mixed = gaussian._strip_table().cells[number >> 128] == 255
    return [first, *([number >> 64 & 2**64 - 1, number & 2**64 - 1] if mixed else [])], strip, low


@given(st.integers(-13 * 2**31, 13 * 2**31))
def test_every_integer_is_drawn_by_some_words_and_the_coin_is_exact(z):
    """Full support on the grid; and 2^64 f, in Python's integers, is where the coin turns."""
    words, strip, low = script_for(z)
    f = Fraction(low * (2 * strip * 2**27 + low), 2 * 2**62)
    turn = f * 2**64
    assert turn.denominator == 1
    assert turn < 2**64
    drawn = gaussian._draw_block(1, Scripted(*words, int(turn)), LOG_SCALE)
    assert drawn.tolist() == [z]
    if turn > 0:
        # The chain grows to length one and then stops: odd, so not kept.
        stopped = Scripted(*words, int(turn) - 1, 2**64 - 1, 0)
        assert gaussian._draw_block(1, stopped, LOG_SCALE).tolist() == []
        assert not stopped.left
        # It grows to length two: kept.
        again = Scripted(*words, int(turn) - 1, int(turn) - 1, 0, 2**64 - 1, 0)
        assert gaussian._draw_block(1, again, LOG_SCALE).tolist() == [z]


def test_minus_zero_is_drawn_again():
    assert gaussian._draw_block(1, Scripted(0, 1), LOG_SCALE).tolist() == [0]
    assert gaussian._draw_block(1, Scripted(1 << 47, 1), LOG_SCALE).tolist() == []
