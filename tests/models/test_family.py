"""The family of scaled networks, choosing networks by name, and the widths that make groups comparable."""

import copy

import pytest
import torch
from helpers import assert_equivariant
from safetensors.torch import load, save

from dpeq.errors import ConfigError
from dpeq.groups import group
from dpeq.models.family import FamilySpec, scaled
from dpeq.models.registry import PRESETS, ModelChoice, build_model, resolve_spec
from dpeq.models.widths import fields_for
from dpeq.nn.fields import FieldType

SHAPES = {2: (1, 14, 14), 3: (1, 12, 12, 7)}


def parameters(spec):
    return sum(p.numel() for p in spec.build(1, 2).parameters())


@pytest.mark.parametrize("block", ["full", "separable"])
@pytest.mark.parametrize(
    ("name", "restriction"),
    [
        ("C4", "none"),
        ("D4", "none"),
        ("D4", "halved"),
        ("D4", "reflection"),
        ("D4", "C4"),
        ("D4", "invariant"),
        ("mirror", "none"),
        ("axial-C4", "halved"),
        ("axial-D4", "mirror"),
        ("O", "axial-C4"),
        ("Oh", "halved"),
    ],
)
def test_logits_are_invariant_under_what_the_last_stage_keeps(name, restriction, block):
    g = group(name)
    spec = FamilySpec(name, restriction, (1, 2, 2), (1, 1, 2), (1, 0, 1), block)
    spatial = (10, 10) if g.dim == 2 else (8, 8, 8) if g.kind == "octahedral" else (8, 8, 5)
    model = spec.build(2, 3).eval()
    kept = g.subgroup(restriction)
    assert model.symmetry == kept
    assert_equivariant(model, FieldType(kept, "trivial", 2), None, spatial)


@pytest.mark.parametrize("name", ["C8", "D8", "SO2", "O2", "axial-SO2"])
def test_networks_off_the_grid_turn_by_45_degrees_within_twice_the_interpolation_error(name):
    torch.manual_seed(0)
    model = FamilySpec(name, "none", (4, 8, 8), (1, 1, 1), (1, 1, 1), "full").build(1, 10).eval()
    spatial = (28, 28) if group(name).dim == 2 else (20, 20, 6)
    assert_equivariant(model, FieldType(group(name), "trivial", 1), None, spatial)


def test_continuous_groups_can_be_restricted_to_finite_ones():
    spec = FamilySpec("SO2", "C4", (2, 2, 3), (1, 1, 1), (1, 0, 1), "full")
    model = spec.build(1, 2).eval()
    assert_equivariant(model, FieldType(group("C4"), "trivial", 1), None, (12, 12))


@pytest.mark.parametrize("dim", [2, 3])
def test_presets_grow_in_every_way(dim):
    prefix = "eqnet-" if dim == 2 else "eqnet-3d-"
    specs = [PRESETS[f"{prefix}{size}"].spec for size in ("xs", "s", "m", "l")]
    orders = [group(s.group).order for s in specs]
    for values in (orders, [s.resolution for s in specs], [sum(s.depths) for s in specs]):
        assert values == sorted(values)
        assert values[0] < values[-1]
    sizes = [parameters(s) for s in specs]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 4
    assert all(s.block == "separable" and s.dim == dim for s in specs)


def test_the_coefficient_zero_is_the_base_and_halves_exist():
    assert scaled(0, 2) == PRESETS["eqnet-xs"].spec
    assert parameters(scaled(0, 2)) < parameters(scaled(1.5, 2)) < parameters(scaled(3, 2))


@pytest.mark.parametrize("resolution", [8, 12, 20])
def test_images_are_scaled_to_the_resolution_and_symmetry_stays_exact(resolution):
    for name, spatial in (("D4", (14, 14)), ("axial-D4", (12, 12, 6))):
        spec = FamilySpec(name, "none", (1, 1, 2), (1, 1, 1), (0, 0, 0), "full", resolution)
        model = spec.build(1, 2).eval()
        seen = model.resize(torch.randn(1, 1, *spatial)).shape[2:]
        assert max(seen) == resolution
        assert_equivariant(model, FieldType(group(name), "trivial", 1), None, spatial)


@pytest.mark.parametrize("name", ["C2", "C4", "D4", "axial-D4", "O"])
@pytest.mark.parametrize("block", ["full", "separable"])
def test_width_rules_keep_what_they_promise(name, block):
    """Wide layers, so that rounding to whole fields does not matter: equal parameters within 10 % of C^2 per tap."""
    g = group(name)
    width = 400
    fields = fields_for(width, g, "parameters", block)
    assert fields**2 * g.order == pytest.approx(width**2, rel=0.1)
    products = {"C2": 2, "C4": 6, "D4": 12, "axial-D4": 12, "O": 64}[name] if block == "separable" else g.order**2
    assert fields_for(width, g, "compute", block) ** 2 * products == pytest.approx(width**2, rel=0.1)


def test_another_group_keeps_the_parameters_or_the_compute():
    base = ModelChoice("eqnet-l")
    sizes = {}
    for name in ("D4", "C4", "D2"):
        choice = ModelChoice("eqnet-l", group=name)
        sizes[name] = parameters(resolve_spec(choice, SHAPES[2], 2))
    assert max(sizes.values()) < 1.25 * min(sizes.values()), sizes
    same = resolve_spec(base, SHAPES[2], 2)
    cheap = resolve_spec(ModelChoice("eqnet-l", block="full", width_rule="compute"), SHAPES[2], 2)
    assert max(cheap.fields) < max(same.fields)


@pytest.mark.parametrize("name", ["eqnet-xs", "eqnet-m", "eqnet-3d-xs"])
def test_state_copies_and_files_agree(name):
    spec = PRESETS[name].spec
    model = build_model(spec, 1, 2, seed=3)
    training, evaluation = model.train().state_dict(), model.eval().state_dict()
    assert training.keys() == evaluation.keys() == dict(model.named_parameters()).keys()
    x = torch.randn(2, *SHAPES[spec.dim])
    expected = model(x)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    other = build_model(spec, 1, 2, seed=4)
    other.load_state_dict(load(save(model.state_dict())))
    assert torch.equal(other.eval()(x), expected)
    torch.testing.assert_close(copy.deepcopy(model).double()(x.double()).float(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["eqnet-m", "eqresnet9-small"])
def test_the_evaluation_path_compiles_as_one_graph(name):
    model = build_model(PRESETS[name].spec, 1, 2, seed=0).eval()
    x = torch.randn(2, 1, 14, 14)
    with torch.no_grad():
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), model(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "eqnet-m", "block": "sparse"}, "There is no block 'sparse'"),
        ({"name": "eqnet-m", "group": "O"}, "acts on 3D images"),
        ({"name": "eqnet-3d-m"}, "is for 3D images but these are 2D"),
        ({"name": "eqnet-m", "group": "C8", "block": "separable"}, "use block 'full'"),
        ({"name": "eqnet-m", "restriction": "O"}, "has no restriction 'O'"),
        ({"name": "eqnet-m", "match": "eqresnet9"}, r"model\.match means nothing"),
        ({"name": "eqresnet9", "block": "full"}, r"model\.block means nothing"),
        ({"name": "cnn"}, r"name it in model\.match"),
        ({"name": "cnn", "match": "eqresnet9-small", "fields": (1, 1, 1)}, r"model\.fields means nothing"),
        ({"name": "vit-tiny", "group": "D4"}, r"model\.group means nothing"),
        ({"name": "eqnet-n"}, "did you mean 'eqnet-"),
    ],
)
def test_impossible_choices_are_refused_in_a_sentence(arguments, message):
    with pytest.raises(ConfigError, match=message):
        resolve_spec(ModelChoice(**arguments), (1, 28, 28), 2)


@pytest.mark.parametrize("kind", ["cnn", "wide-resnet", "vit"])
@pytest.mark.parametrize(("by", "tolerance"), [("parameters", 0.05), ("macs", 0.10)])
def test_twins_by_name(kind, by, tolerance):
    from dpeq.models.cost import count_macs

    shape = (1, 28, 28)
    twin = resolve_spec(ModelChoice(kind, match="eqresnet9-small", match_by=by), shape, 2)
    target = PRESETS["eqresnet9-small"].spec
    count = parameters if by == "parameters" else lambda spec: count_macs(spec.build(1, 2), shape)
    assert count(twin) == pytest.approx(count(target), rel=tolerance)
    assert group(twin.group).order == 1
