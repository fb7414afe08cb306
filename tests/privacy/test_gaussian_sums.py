"""Sums of gradients on the grid of the noise: what leaves, what an attacker sees in it, and how far neighbours are."""

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr, ndtri

from dpeq.errors import ConfigError
from dpeq.privacy import gaussian
from dpeq.privacy.gaussian import add_noise, clip_bound, discrete_gaussian
from dpeq.privacy.randomness import Randomness


def stream(seed=0):
    return Randomness.create(seed).stream("noise", 1)


@pytest.mark.parametrize("std", [1.0, 0.3, 7.25e-5, 3e8])
def test_what_leaves_is_a_function_of_integers(std):
    total = torch.randn(30_000, dtype=torch.float64) * 40 * std
    spacing = std / 2**31
    noised = add_noise(total, std=std, stream=stream(5))
    z = discrete_gaussian(30_000, stream(5))
    expected = [(round(t / spacing) + int(v)) * spacing for t, v in zip(total.tolist(), z, strict=True)]
    assert noised.tolist() == expected
    assert noised.dtype == torch.float64
    assert float((noised - total).std()) == pytest.approx(std, rel=4.5 / math.sqrt(2 * 30_000))
    assert float((noised - total).mean()) == pytest.approx(0, abs=4.5 * std / math.sqrt(30_000))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_the_device_does_not_change_a_bit():
    total = torch.randn(1000, dtype=torch.float64)
    there = add_noise(total.cuda(), std=0.7, stream=stream())
    assert there.is_cuda
    assert torch.equal(there.cpu(), add_noise(total, std=0.7, stream=stream()))


def test_the_total_is_left_as_it_was():
    total = torch.randn(100, dtype=torch.float64)
    before = total.clone()
    add_noise(total, std=1.0, stream=stream())
    assert torch.equal(total, before)
    assert add_noise(torch.zeros(0, dtype=torch.float64), std=1.0, stream=stream()).shape == (0,)


def naive(total, random):
    """Floats from a fine uniform grid by inversion, added as floats."""
    return total + ndtri(random.uniform(2000).numpy())


def naive_can_reach(outputs, total):
    """Whether any uniform number near the one that fits yields exactly this output."""
    near = np.floor(ndtr(outputs - total) * 2.0**52)[:, None] + np.arange(-64, 65)
    return (total + ndtri((near + 0.5) * 2.0**-52) == outputs[:, None]).any(axis=1)


def test_the_attack_that_float_noise_allows_and_this_does_not():
    """Mironov's: a sum of 0 or 1, told apart by which of them can have led to the very bits of the output."""
    for total, other in ((0.0, 1.0), (1.0, 0.0)):
        outputs = naive(total, stream(6))
        assert naive_can_reach(outputs, total).all()
        assert naive_can_reach(outputs, other).mean() < 0.8, "each output that the other cannot reach is proof"
    std = 0.9
    for total in (0.0, 1.0, 1 / 3):
        outputs = add_noise(torch.full((2000,), total, dtype=torch.float64), std=std, stream=stream(6)).numpy()
        steps = np.rint(outputs / (std / 2**31))
        assert np.array_equal(steps * (std / 2**31), outputs)
        # From any of the sums the output is so many whole steps away; test_gaussian.py shows that all those are drawn.
        for other in (0.0, 1.0, 1 / 3):
            away = steps - np.rint(other / (std / 2**31))
            assert np.abs(away).max() < 13 * 2**31


def test_totals_that_do_not_fit_are_refused():
    total = torch.zeros(3, dtype=torch.float64)
    for bad in (math.nan, math.inf, -math.inf):
        total[1] = bad
        with pytest.raises(ConfigError, match="not finite"):
            add_noise(total, std=1.0, stream=stream())
    for bad in (2.0**20, -(2.0**20), 1e300):
        total[1] = bad
        with pytest.raises(ConfigError, match="too large beside the noise"):
            add_noise(total, std=1.0, stream=stream())
        with pytest.raises(ConfigError, match="too large beside the noise"):
            add_noise(total * 1e-5, std=1e-200, stream=stream())
    total[1] = 2.0**20 - 2.0**-31
    assert float(add_noise(total, std=1.0, stream=stream())[1]) == pytest.approx(2.0**20, abs=6)
    for std in (0.0, -1.0, math.nan, math.inf, 1e-300, 1e300):
        with pytest.raises(ValueError, match="std is"):
            add_noise(total, std=std, stream=stream())
    for wrong in (total.float(), total.reshape(1, 3), total[0]):
        with pytest.raises(ValueError, match="float64 and flat"):
            add_noise(wrong, std=1.0, stream=stream())


# Sensitivity


@pytest.mark.parametrize("spacing", [1.0, 0.7, math.pi * 1e-7])
def test_rounding_moves_a_coordinate_by_at_most_five_eighths(spacing):
    """Consecutive floats near the largest sum, where the quotient's own rounding counts most."""
    start = int(np.float64(0.9 * 2.0**51 * spacing).view(np.int64))
    sums = np.arange(start, start + 5000).view(np.float64)
    steps = gaussian._round_to_grid(sums, spacing)
    moves = [Fraction(int(k)) - Fraction(x) / Fraction(spacing) for k, x in zip(steps, sums.tolist(), strict=True)]
    assert max(map(abs, moves)) <= Fraction(5, 8)
    if spacing != 1.0:
        assert max(moves) - min(moves) > Fraction(11, 10), "half a step would have been bound enough"


@given(st.data())
def test_sums_within_the_bound_stay_within_c_on_the_grid(data):
    """Neighbours chosen so that every coordinate is rounded apart, in exact fractions."""
    dimensions = data.draw(st.integers(1, 30))
    sigma = 2.0 ** data.draw(st.floats(-2, 20))
    norm = 2.0 ** data.draw(st.floats(-20, 20))
    bound, spacing = clip_bound(norm, sigma, dimensions), sigma * norm * 2.0**-31
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    reach = bound / math.sqrt(dimensions) / spacing  # of one coordinate, in steps
    edges = generator.integers(0, 2 ** data.draw(st.integers(1, 49)), dimensions) + 0.5
    if data.draw(st.booleans()):
        sums = np.nextafter(edges * spacing, 0)
        others = (edges + math.floor(reach)) * spacing * (1 + 2.0**-52)
    else:
        direction = generator.standard_normal(dimensions)
        sums = edges * spacing
        others = sums + direction / np.linalg.norm(direction) * bound
    for _ in range(200):  # rounding may have carried them too far apart
        if exact_square(sums, others) <= Fraction(bound) ** 2:
            break
        others = others + (sums - others) * 2.0**-30
    else:
        raise AssertionError("no neighbours found")
    steps, other_steps = (gaussian._round_to_grid(v, spacing) for v in (sums, others))
    moved = sum(int(k) ** 2 for k in (steps - other_steps).tolist())
    # Against sigma times the sensitivity, not against the float that std is: moved * spacing <= std / sigma.
    assert moved <= (Fraction(2**31) / Fraction(sigma)) ** 2
    assert moved * Fraction(spacing) ** 2 <= Fraction(norm) ** 2 * (1 + Fraction(1, 2**50))


def exact_square(a, b):
    return sum((Fraction(x) - Fraction(y)) ** 2 for x, y in zip(a.tolist(), b.tolist(), strict=True))


def test_without_the_margin_rounding_would_exceed_c():
    """With noise of 1.5 C, C is 2^31 / 1.5 steps: these sums are less than that apart, and more once rounded."""
    norm = Fraction(2**31) / Fraction(1.5)
    whole = math.floor(norm / 2)
    sums, others = np.full(4, 0.5 - 2.0**-10), np.full(4, whole + 0.5 + 2.0**-10)
    steps = gaussian._round_to_grid(others, 1.0) - gaussian._round_to_grid(sums, 1.0)
    assert clip_bound(float(norm), 1.5, 4) ** 2 < exact_square(sums, others) < norm**2 < int((steps**2).sum())


@pytest.mark.parametrize(("sigma", "dimensions"), [(0.5, 40_000), (1.5, 10**6), (10.0, 10**8)])
def test_the_bound_is_barely_below_c(sigma, dimensions):
    bound = clip_bound(2.0, sigma, dimensions)
    assert bound == pytest.approx(2 - 1.25 * math.sqrt(dimensions) * sigma * 2 / 2**31, rel=1e-13)
    assert 1.9997 < bound < 2


def test_the_rounding_of_the_bound_and_of_std_is_on_the_safe_side():
    """In 60 digits: bound + 1.25 sqrt(d) spacing <= std / sigma, with the std that floats make of sigma * C."""
    generator = np.random.default_rng(0)
    with mpmath.workdps(60):
        for _ in range(2000):
            sigma, norm = map(float, 2.0 ** generator.uniform(-3, 8, 2))
            dimensions, std = int(10 ** generator.uniform(0, 9)), mpmath.mpf(sigma * norm)
            margin = mpmath.mpf(5) / 4 * mpmath.sqrt(dimensions) * std / 2**31
            assert clip_bound(norm, sigma, dimensions) + margin <= min(std / sigma, mpmath.mpf(norm))


def test_bounds_that_cost_too_much_are_refused():
    limit = 0.01 * 2**31 / 1.25
    assert clip_bound(1.0, 0.999 * limit, 1) >= 0.99
    with pytest.raises(ConfigError, match="100 parameters is too much"):
        clip_bound(1.0, 0.1001 * limit, 100)
    for norm, sigma, dimensions in (
        (0.0, 1.0, 1),
        (1.0, 0.0, 1),
        (math.inf, 1.0, 1),
        (1.0, math.inf, 1),
        (math.nan, 1.0, 1),
        (1.0, math.nan, 1),
        (1.0, 1.0, -1),
    ):
        with pytest.raises(ValueError, match="clip_bound wants"):
            clip_bound(norm, sigma, dimensions)
