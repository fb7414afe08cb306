"""Activations: equivariance for every kind of field, closed forms, and the plain twins."""

import copy
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_equivariant, relative_error
from torch import nn

from dpeq.errors import ConfigError
from dpeq.groups import group
from dpeq.nn.activations import FourierActivation, GatedActivation, NormActivation, activation_for, default_angles
from dpeq.nn.fields import FieldType
from dpeq.nn.invariant import Restrict
from dpeq.representations import irreps, representation

FOURIER = [("SO2", "fourier:1"), ("SO2", "fourier:2"), ("O2", "fourier:2"), ("axial-SO2", "fourier:3")]
IRREPS = [
    (name, f"irrep:{i}")
    for name in ("C4", "C8", "D4", "SO2", "O2", "mirror", "axial-D4", "O", "Oh")
    for i in range(min(6, len(irreps(group(name)))))
]


def random_bias(layer):
    for p in layer.parameters():
        nn.init.normal_(p)
    return layer


def assert_commutes(layer, t, elements=None):
    """With the action on channels alone, in double precision: activations do not look at neighbouring pixels."""
    layer = copy.deepcopy(layer).double()
    x = torch.randn(2, t.channels, *[3] * t.group.dim, dtype=torch.float64)
    for element in t.group.elements if elements is None else elements:
        matrix = torch.block_diag(*[torch.from_numpy(t.rep.matrices[element])] * t.fields)
        turned = torch.einsum("ab,nb...->na...", matrix, x)
        expected = torch.einsum("ab,nb...->na...", matrix, layer(x))
        assert relative_error(layer(turned), expected) <= 1e-6, element


@pytest.mark.parametrize(("name", "rep"), FOURIER)
def test_fourier_activation_commutes_with_every_sixteenth_turn(name, rep):
    """Only those that permute the samples: with 16 angles all elements, with 8 every second."""
    t = FieldType(group(name), rep, 2)
    layer = FourierActivation(t)
    step = 16 // layer.angles
    half = t.group.rotations
    elements = [e for e in t.group.elements if (e % half) % step == 0]
    assert_commutes(layer, t, elements)


@pytest.mark.parametrize("function", ["mish", "silu", "relu"])
def test_fourier_activation_at_any_angle_is_as_exact_as_its_samples_are_many(function):
    """Rotations between the samples cost what aliases: little for smooth functions, less with more angles."""
    t = FieldType(group("SO2"), "fourier:2", 4)
    x = torch.randn(8, t.channels, 3, 3, dtype=torch.float64)
    turn = np.eye(5)
    for k in (1, 2):
        c, s = np.cos(0.3 * k), np.sin(0.3 * k)
        turn[2 * k - 1 : 2 * k + 1, 2 * k - 1 : 2 * k + 1] = [[c, -s], [s, c]]
    matrix = torch.block_diag(*[torch.from_numpy(turn)] * t.fields)
    errors = []
    for angles in (8, 16, 32, 64):
        layer = FourierActivation(t, function, angles=angles).double()
        turned = layer(torch.einsum("ab,nb...->na...", matrix, x))
        expected = torch.einsum("ab,nb...->na...", matrix, layer(x))
        errors.append(relative_error(turned, expected))
    assert all(few > many for few, many in itertools.pairwise(errors)), errors
    assert errors[1] <= (0.1 if function == "relu" else 0.02), errors


def test_fourier_activation_is_a_projection_of_the_function_of_the_samples():
    """With the identity for a function nothing changes; a constant field goes through the function itself."""
    t = FieldType(group("O2"), "fourier:2", 3)
    layer = FourierActivation(t)
    x = torch.randn(2, t.channels, 4, 4)
    constant = torch.zeros(2, t.fields, t.size, 4, 4)
    constant[:, :, 0] = torch.randn(2, t.fields, 4, 4)
    expected = torch.zeros_like(constant)
    expected[:, :, 0] = F.mish(constant[:, :, 0])
    torch.testing.assert_close(layer(constant.flatten(1, 2)), expected.flatten(1, 2), atol=1e-6, rtol=1e-5)
    layer.function = nn.Identity()
    torch.testing.assert_close(layer(x), x)


def test_fourier_activation_by_numerical_integration():
    """Coefficients of f(signal) against the integral over the circle, by 4096 points."""
    t = FieldType(group("SO2"), "fourier:1", 1)
    x = torch.randn(1, 3, 1, 1, dtype=torch.float64)
    theta = torch.arange(4096, dtype=torch.float64) * 2 * torch.pi / 4096
    waves = torch.stack([torch.ones_like(theta), 2**0.5 * theta.cos(), 2**0.5 * theta.sin()])
    expected = (F.mish(x.flatten() @ waves) * waves).mean(dim=1)
    layer = FourierActivation(t, angles=64).double()
    torch.testing.assert_close(layer(x).flatten(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("name", "rep"), FOURIER)
@pytest.mark.parametrize("function", ["mish", "relu"])
def test_gated_activation_commutes_and_is_its_formula(name, rep, function):
    t = FieldType(group(name), rep, 3)
    layer = GatedActivation(t, function)
    assert_commutes(layer, t)
    x = torch.randn(2, 3, t.size, *[2] * t.group.dim)
    y = layer(x.flatten(1, 2)).view_as(x)
    torch.testing.assert_close(y[:, :, 0], {"mish": F.mish, "relu": F.relu}[function](x[:, :, 0]))
    torch.testing.assert_close(y[:, :, 1:], x[:, :, 1:] * torch.sigmoid(x[:, :, :1]))


@pytest.mark.parametrize(("name", "rep"), [*IRREPS, *FOURIER])
@pytest.mark.parametrize("function", ["mish", "silu"])
def test_norm_activation_commutes(name, rep, function):
    t = FieldType(group(name), rep, 2)
    assert_commutes(random_bias(NormActivation(t, function)), t)


def test_norm_activation_of_a_scalar_is_the_function_and_of_a_vector_keeps_its_direction():
    scalars = FieldType(group("D4"), "irrep:0", 3)
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(NormActivation(scalars)(x), F.mish(x))
    torch.testing.assert_close(NormActivation(scalars, "silu")(x), F.silu(x))
    vectors = FieldType(group("O"), "irrep:3", 1)
    x = torch.randn(5, 3, 2, 2, 2)
    y = NormActivation(vectors)(x)
    torch.testing.assert_close(F.normalize(y, dim=1), F.normalize(x, dim=1))
    torch.testing.assert_close(y.norm(dim=1), F.mish(x.norm(dim=1)), atol=1e-4, rtol=1e-4)
    assert NormActivation(vectors)(torch.zeros(1, 3, 2, 2, 2).requires_grad_()).sum().backward() is None


@pytest.mark.parametrize(
    ("name", "rep", "kind"),
    [
        ("D4", "regular", nn.Mish),
        ("D4", "quotient:D1", nn.Mish),
        ("SO2", "trivial", nn.Mish),
        ("SO2", "fourier:2", FourierActivation),
        ("SO2", "irrep:1", NormActivation),
        ("C8", "irrep:0", NormActivation),
    ],
)
def test_every_kind_of_field_has_an_activation(name, rep, kind):
    t = FieldType(group(name), rep, 2)
    assert type(activation_for(t)) is kind


@pytest.mark.parametrize(
    ("name", "rep", "smaller"),
    [("SO2", "fourier:2", "C4"), ("O2", "fourier:2", "D4"), ("O2", "fourier:1", "D1"), ("O", "irrep:3", "axial-C4")],
)
def test_fields_seen_by_a_subgroup_keep_their_activation(name, rep, smaller):
    t = Restrict(FieldType(group(name), rep, 2), group(smaller)).out_type
    layer = random_bias(activation_for(t))
    assert type(layer) is (FourierActivation if rep.startswith("fourier") else NormActivation)
    assert_equivariant(layer, t, t, (4, 4) if t.group.dim == 2 else (4, 4, 4))


@pytest.mark.parametrize("spatial", [(5, 5), (4, 4)])
def test_activations_are_equivariant_on_images_of_groups_off_the_grid(spatial):
    for name, rep in [("C8", "irrep:1"), ("O2", "fourier:2")]:
        t = FieldType(group(name), rep, 2)
        layer = random_bias(activation_for(t))
        for element in range(0, t.group.rotations, t.group.rotations // 4):
            x = torch.randn(2, t.channels, *spatial)
            assert relative_error(layer(t.transform(x, element)), t.transform(layer(x), element)) <= 1e-5


def plain_cases():
    cases = []
    for name, rep in [("SO2", "fourier:2"), ("O2", "fourier:1"), ("axial-SO2", "fourier:1"), ("O", "irrep:3")]:
        t = FieldType(group(name), rep, 2)
        cases += [(random_bias(activation_for(t)), t), (random_bias(NormActivation(t, "silu")), t)]
    return cases


@pytest.mark.parametrize(("layer", "t"), plain_cases())
def test_plain_twins_compute_the_same_and_keep_their_constants_in_buffers(layer, t):
    plain = layer.plain()
    x = torch.randn(2, t.channels, *[3] * t.group.dim)
    torch.testing.assert_close(plain(x), layer(x))
    assert list(plain.parameters()) == []
    assert len(list(plain.buffers())) > 0
    exported = torch.export.export(plain, (x,)).module()
    torch.testing.assert_close(exported(x), layer(x))


@pytest.mark.parametrize("kind", [FourierActivation, NormActivation])
def test_constants_follow_casts_and_stay_out_of_the_state(kind):
    t = FieldType(group("SO2"), "fourier:2", 2)
    layer = kind(t)
    assert set(layer.state_dict()) <= {"bias"}
    assert list(layer.buffers()) == []
    x = torch.randn(1, t.channels, 3, 3)
    assert layer.double()(x.double()).dtype == torch.float64


@pytest.mark.parametrize("kind", [FourierActivation, GatedActivation, NormActivation])
def test_an_empty_batch_stays_empty(kind):
    t = FieldType(group("SO2"), "fourier:2", 2)
    assert kind(t)(torch.zeros(0, t.channels, 4, 4)).shape == (0, t.channels, 4, 4)


def test_the_default_number_of_angles_covers_twice_the_band_and_the_quarter_turns():
    for band in range(1, 8):
        assert default_angles(band) >= 2 * (2 * band + 1)
        assert default_angles(band) % 8 == 0


def test_impossible_activations_are_refused():
    regular, fourier = FieldType(group("D4"), "regular", 1), FieldType(group("SO2"), "fourier:2", 1)
    with pytest.raises(ConfigError, match="no activation 'mich'; use one of: mish, relu"):
        activation_for(regular, "mich")
    with pytest.raises(ConfigError, match="needs fourier:L fields, not regular fields of D4"):
        FourierActivation(regular)
    with pytest.raises(ConfigError, match="4 angles cannot tell"):
        FourierActivation(fourier, angles=4)
    with pytest.raises(ConfigError, match="have no scalar part"):
        GatedActivation(FieldType(group("D4"), "irrep:2", 1))
    with pytest.raises(ConfigError, match="have no irreducible parts"):
        NormActivation(regular)
    with pytest.raises(ConfigError, match="smooth at the origin, not 'relu'"):
        NormActivation(fourier, "relu")


def test_representations_that_the_tests_lean_on():
    """So that a renumbering of irreps does not quietly turn vectors into scalars."""
    assert representation(group("O"), "irrep:3").size == 3
    assert representation(group("D4"), "irrep:2").size == 2
