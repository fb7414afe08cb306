"""Pooling: equivariance, agreement with plain torch where the two mean the same, and what is left alone."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_equivariant

from dpeq.errors import ConfigError
from dpeq.groups import group
from dpeq.nn.fields import FieldType
from dpeq.nn.pooling import AntialiasedPool, DiscMask, MaxPool, SymmetricPool, mask_for, pool_for

SIZES = [(8, 8), (7, 7), (6, 6, 5), (5, 5, 4), (5, 5, 1), (6, 6, 6)]


def field_type(spatial, representation="regular"):
    name = {2: "D4", 3: "Oh" if len(set(spatial)) == 1 else "axial-D4"}[len(spatial)]
    return FieldType(group(name), representation, 2)


def pools(t):
    return [SymmetricPool(), MaxPool(t), AntialiasedPool(), AntialiasedPool(2.0)]


@pytest.mark.parametrize("spatial", SIZES)
def test_pools_are_equivariant_on_even_and_odd_axes(spatial):
    t = field_type(spatial)
    for pool in pools(t):
        assert_equivariant(pool, t, t, spatial)


@pytest.mark.parametrize("spatial", SIZES)
def test_pools_halve_every_axis_but_those_of_length_1(spatial):
    for pool in pools(field_type(spatial)):
        assert pool(torch.zeros(2, 16, *spatial)).shape == (2, 16, *((s + 1) // 2 for s in spatial))


@pytest.mark.parametrize("pool", [SymmetricPool(), AntialiasedPool()])
def test_averages_work_on_every_field(pool):
    for name, representation in [("D4", "irrep:2"), ("D4", "quotient:D1"), ("axial-D4", "irrep:2")]:
        t = FieldType(group(name), representation, 2)
        assert_equivariant(pool, t, t, (6, 6) if t.group.dim == 2 else (6, 6, 3))


@pytest.mark.parametrize("spatial", SIZES)
def test_averages_keep_constants_also_at_the_border(spatial):
    for pool in (SymmetricPool(), AntialiasedPool(), AntialiasedPool(2.0)):
        y = pool(torch.full((1, 2, *spatial), 3.0))
        torch.testing.assert_close(y, torch.full_like(y, 3.0))


def test_maxima_are_torchs():
    t = FieldType(group("D4"), "regular", 1)
    x = torch.randn(2, 8, 6, 6) - 5  # negative: a padding of zeros would win
    assert torch.equal(MaxPool(t)(x), F.max_pool2d(x, 2))
    assert torch.equal(MaxPool(t)(x[..., :5, :5]), F.max_pool2d(x[..., :5, :5], 3, 2, 1))


@pytest.mark.parametrize(("name", "representation"), [("D4", "irrep:2"), ("SO2", "fourier:2")])
def test_maxima_of_fields_that_are_no_permutations_are_refused(name, representation):
    with pytest.raises(ConfigError, match=f"means nothing for {representation} fields of {name}"):
        MaxPool(FieldType(group(name), representation, 1))


@pytest.mark.parametrize(("size", "places"), [(9, (-2, -1, 0, 1, 2)), (10, (-1.5, -0.5, 0.5, 1.5))])
def test_the_blur_is_a_gaussian_centred_on_its_window(size, places):
    """An inner output of a blurred axis, from the formula."""
    x = torch.randn(1, 1, size, 1, dtype=torch.float64)
    weights = [math.exp(-0.5 * (p / 0.66) ** 2) for p in places]
    centre = 4 if size == 9 else 4.5  # of output 2
    expected = sum(w * x[0, 0, int(centre + p), 0] for w, p in zip(weights, places, strict=True)) / sum(weights)
    torch.testing.assert_close(AntialiasedPool()(x)[0, 0, 2, 0], expected)


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan")])
def test_a_blur_of_nothing_is_refused(sigma):
    with pytest.raises(ConfigError, match="positive sigma"):
        AntialiasedPool(sigma)


def test_the_mask_keeps_the_disc_and_nothing_of_the_corners():
    y = DiscMask()(torch.ones(1, 1, 9, 9, 3))
    assert torch.equal(y[..., 0], y[..., 2])
    assert y[0, 0, 4, 4, 0] == 1
    assert y[0, 0, 4, 1, 0] == 1
    assert y[0, 0, 0, 0, 0] == 0
    assert y[0, 0, 4, 0, 0] == pytest.approx(0.5)
    for name in ("D4", "axial-D4"):
        t = FieldType(group(name), "regular", 1)
        assert_equivariant(DiscMask(), t, t, (7, 7) if t.group.dim == 2 else (6, 6, 3))


def test_groups_off_the_grid_get_a_mask_and_a_blur():
    assert isinstance(pool_for(group("D4")), SymmetricPool)
    assert isinstance(mask_for(group("Oh")), torch.nn.Identity)
    for name in ("C8", "D8", "SO2", "O2", "axial-SO2"):
        assert [type(m) for m in pool_for(group(name))] == [DiscMask, AntialiasedPool]
        assert isinstance(mask_for(group(name)), DiscMask)


@pytest.mark.parametrize("pool", [SymmetricPool(), AntialiasedPool(), DiscMask()])
def test_an_empty_batch_stays_empty(pool):
    assert pool(torch.zeros(0, 4, 6, 6)).shape[:2] == (0, 4)
