"""Equivariance under rotations by 45 degrees, which no pixel grid keeps: measured beside what interpolating costs.

Run with ``-s`` to read the figures that the documentation quotes.
"""

import pytest
import torch
from helpers import assert_equivariant, eighth_turns, equivariance_errors, smooth_images
from torch import nn

from dpeq.groups import group
from dpeq.nn.activations import GatedActivation, NormActivation, activation_for
from dpeq.nn.fields import FieldType, hidden_representation
from dpeq.nn.invariant import InvariantPool
from dpeq.nn.norm import EquivariantGroupNorm
from dpeq.nn.pooling import AntialiasedPool, DiscMask, SymmetricPool, mask_for, pool_for
from dpeq.nn.steerable import SteerableConv
from dpeq.representations import representation

OFF_GRID = ["C8", "D8", "SO2", "O2", "axial-SO2"]
SPATIAL = {2: (28, 28), 3: (20, 20, 6)}


def types(name, fields=2):
    g = group(name)
    return FieldType(g, "trivial", 1), FieldType(g, hidden_representation(g), fields)


def classifier(name, *, fields=(4, 4, 8), kernel_size=3, pool=None, treat_as=None):
    """Three convolutions and two poolings, an invariant head: ``[N, 1, *spatial] -> [N, 10]``.

    ``treat_as`` names the group whose pooling and masks are used, for networks of other groups.
    """
    g, looks = group(name), group(treat_as or name)
    layers, current = [], FieldType(g, "trivial", 1)
    for number, count in enumerate(fields):
        hidden = FieldType(g, hidden_representation(g), count)
        layers += [SteerableConv(current, hidden, kernel_size), activation_for(hidden), EquivariantGroupNorm(hidden, 1)]
        layers.append(mask_for(looks) if number == len(fields) - 1 else pool_for(looks) if pool is None else pool())
        current = hidden
    head = InvariantPool(current)
    return nn.Sequential(*layers, head, nn.Linear(head.features, 10))


@pytest.mark.parametrize("name", OFF_GRID)
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_convolutions(name, kernel_size):
    if (name, kernel_size) in (("axial-SO2", 5), ("D8", 5)):
        pytest.skip("covered by the other groups; this basis takes long to solve")
    image, hidden = types(name)
    spatial = SPATIAL[image.group.dim]
    assert_equivariant(SteerableConv(image, hidden, kernel_size), image, hidden, spatial)
    assert_equivariant(SteerableConv(hidden, hidden, kernel_size), hidden, hidden, spatial)


@pytest.mark.parametrize("name", ["C8", "O2"])
def test_convolutions_to_irreps(name):
    image, _ = types(name)
    vectors = FieldType(image.group, "irrep:1" if name == "C8" else "irrep:2", 2)
    assert vectors.size == 2
    assert_equivariant(SteerableConv(image, vectors), image, vectors, SPATIAL[2])
    assert_equivariant(NormActivation(vectors), vectors, vectors, SPATIAL[2])


@pytest.mark.parametrize("name", OFF_GRID)
def test_norms_activations_and_pooling(name):
    _, hidden = types(name)
    layers = [EquivariantGroupNorm(hidden, 1), activation_for(hidden), DiscMask(), AntialiasedPool(2.0)]
    if hidden.group.continuous:
        layers += [GatedActivation(hidden), NormActivation(hidden)]
    for layer in layers:
        assert_equivariant(layer, hidden, hidden, SPATIAL[hidden.group.dim])


@pytest.mark.parametrize("name", OFF_GRID)
def test_whole_networks(name):
    """Exactly where a quarter turn or a mirror keeps the grid; elsewhere within twice the interpolation error."""
    image, _ = types(name)
    spatial = SPATIAL[image.group.dim]
    network = classifier(name)
    for element in eighth_turns(image.group):
        error, interpolation = equivariance_errors(network, image, None, spatial, element)
        print(f"\n{name}, element {element}: network {error:.2%}, interpolation {interpolation:.2%}")
    assert_equivariant(network, image, None, spatial)


@pytest.mark.parametrize("name", ["C8", "SO2"])
@pytest.mark.parametrize("spatial", [(29, 29), (40, 40)])
def test_whole_networks_on_other_sizes(name, spatial):
    assert_equivariant(classifier(name), types(name)[0], None, spatial)


def test_a_plain_network_fails_by_far():
    """The same layers and channels without a symmetry, judged as C8: ten times the interpolation error and more."""
    image = types("C8")[0]
    plain = classifier("trivial", fields=(32, 32, 64), treat_as="C8")
    error, interpolation = equivariance_errors(plain, image, None, SPATIAL[2], 1)
    print(f"\nplain network {error:.2%}, interpolation {interpolation:.2%}")
    assert error > 5 * interpolation
    scalars = FieldType(group("C8"), "trivial", 16)
    error, interpolation = equivariance_errors(nn.Conv2d(1, 16, 3, padding=1), image, scalars, SPATIAL[2], 1)
    print(f"plain convolution {error:.2%}, interpolation {interpolation:.2%}")
    assert error > 5 * interpolation
    with pytest.raises(AssertionError, match="relative equivariance error"):
        assert_equivariant(plain, image, None, SPATIAL[2])


def test_a_network_of_quarter_turns_is_not_one_of_eighths():
    """C4's symmetry is exact and still not enough."""
    image = types("C8")[0]
    network = classifier("C4", treat_as="C8")
    error, interpolation = equivariance_errors(network, image, None, SPATIAL[2], 1)
    print(f"\nC4 judged as C8: {error:.2%}, interpolation {interpolation:.2%}")
    assert error > 2 * interpolation


@pytest.mark.parametrize("name", ["C8", "SO2"])
def test_averages_without_a_blur_are_worse(name):
    """Why groups off the grid do not pool like the others."""
    image = types(name)[0]
    errors = {}
    for pool in (None, SymmetricPool):
        found = []
        for seed in range(3):
            torch.manual_seed(seed)
            network = classifier(name, pool=pool)
            found.append(equivariance_errors(network, image, None, SPATIAL[2], eighth_turns(image.group)[0])[0])
        errors[pool] = sum(found) / len(found)
    assert errors[None] < 0.6 * errors[SymmetricPool]


def test_the_transformed_image_is_the_image_transformed():
    """The formula at turned coordinates against what is exact on the grid: quarter turns and mirrors."""
    for name, representation_name, spatial in [("D8", "irrep:2", (12, 12)), ("axial-SO2", "fourier:1", (10, 10, 4))]:
        t = FieldType(group(name), representation_name, 1)
        quarter = t.group.rotations // 4
        for element in (quarter, quarter + t.group.rotations) if t.group.mirrored else (quarter,):
            x, moved = smooth_images(t, spatial, element, images=2, wavelength=6.0)
            torch.testing.assert_close(moved, t.transform(x, element), atol=1e-6, rtol=1e-5)


def test_the_identity_has_only_the_error_of_its_measurement():
    """A map that is equivariant for certain seems to lose only what the splines lose that turn feature maps."""
    for name in ("C8", "O2", "axial-SO2"):
        t = types(name)[1]
        for element in eighth_turns(t.group):
            error, interpolation = equivariance_errors(nn.Identity(), t, t, SPATIAL[t.group.dim], element)
            assert error < 0.1 * interpolation
            assert 0.01 < interpolation < 0.05


def test_fields_that_turn_too_far_are_noticed():
    """A map that treats vectors as scalars has an error of the order of 1."""
    g = group("SO2")
    assert representation(g, "irrep:1").size == 2
    vectors, scalars = FieldType(g, "irrep:1", 1), FieldType(g, "trivial", 2)
    error, _ = equivariance_errors(nn.Identity(), vectors, scalars, SPATIAL[2], 2)
    assert error > 0.5
