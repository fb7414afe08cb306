import pytest
import torch
from helpers import assert_equivariant

from dpeq.errors import ConfigError
from dpeq.groups import group
from dpeq.models.registry import PRESETS, ModelChoice, build_model, describe_model, resolve_spec
from dpeq.models.resnet9 import ResNet9Spec
from dpeq.models.widths import reference_fields
from dpeq.nn.fields import FieldType

SPATIAL = {2: (28, 28), 3: (16, 16, 9)}


@pytest.mark.parametrize("name", [n for n in PRESETS if n.startswith("eq")])
def test_presets_classify_invariantly(name):
    """The whole classifier, not only its features, ignores the symmetries that its last stage keeps."""
    spec = PRESETS[name].spec
    whole = group(spec.group)
    model = build_model(spec, 1, 3, seed=1).eval()
    kept = whole.subgroup(spec.restriction)
    assert_equivariant(model, FieldType(kept, "trivial", 1), None, SPATIAL[whole.dim])


@pytest.mark.parametrize("name", ["C4", "D4", "axial-C4", "axial-D4"])
def test_unrestricted_networks_are_invariant_under_the_whole_group(name):
    g = group(name)
    model = build_model(ResNet9Spec(name, "none", (1, 2, 2), (1, 1, 2)), 2, 2, seed=0).eval()
    spatial = (14, 14) if g.dim == 2 else (12, 12, 7)
    assert_equivariant(model, FieldType(g, "trivial", 2), None, spatial)


def test_restriction_breaks_exactly_the_rest_of_the_symmetry():
    model = build_model(ResNet9Spec("D4", "halved", (1, 2, 2), (1, 1, 2)), 1, 2, seed=0).eval()
    x = torch.randn(1, 1, 12, 12)
    with torch.no_grad():
        half, quarter = (group("D4").act_on_grid(x, r) for r in (2, 1))
        assert torch.allclose(model(x), model(half), atol=1e-5)
        assert not torch.allclose(model(x), model(quarter), atol=1e-3)


def test_the_reference_has_the_published_widths():
    """Fields 6-13-39 for D4 at widths 16-32-64, halved (counted from the authors' code); parameters near theirs.

    The authors' network has 255,675 parameters for 3 input channels, 10 classes and a 2x2 head.
    """
    d4, d2 = group("D4"), group("D4").subgroup("halved")
    assert (reference_fields(16, d4), reference_fields(32, d4), reference_fields(64, d2)) == (6, 13, 39)
    assert PRESETS["eqresnet9"].spec.fields == (6, 13, 39)
    model = build_model(PRESETS["eqresnet9"].spec, 3, 10, seed=0)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(255_675, rel=0.02)


def test_another_group_keeps_the_parameters_about_equal():
    sizes = {}
    for name in ("D4", "C4", "D2"):
        model = build_model(resolve_spec(ModelChoice("eqresnet9", group=name), (1, 28, 28), 2), 1, 2, seed=0)
        sizes[name] = sum(p.numel() for p in model.parameters())
    assert max(sizes.values()) < 1.35 * min(sizes.values()), sizes


def test_seeds_decide_the_weights_and_the_global_state_is_left_alone():
    spec = PRESETS["eqresnet9-small"].spec
    before = torch.random.get_rng_state()
    a, b, c = (build_model(spec, 1, 2, seed=s).state_dict() for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], c[k]) for k in a)


def test_state_is_the_same_in_training_and_evaluation():
    model = build_model(PRESETS["eqresnet9-small"].spec, 1, 2, seed=0)
    training, evaluation = model.train().state_dict(), model.eval().state_dict()
    assert training.keys() == evaluation.keys()
    assert all(torch.equal(training[k], evaluation[k]) for k in training)


def test_describe_counts_what_is_there():
    spec = PRESETS["eqresnet9-small"].spec
    model = build_model(spec, 1, 2, seed=0)
    described = describe_model("eqresnet9-small", spec, model, (1, 28, 28))
    assert described["parameters"] == sum(p.numel() for p in model.parameters())
    assert described["invariant_under"] == "D2"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "eqresnet10"}, "did you mean 'eqresnet9'"),
        ({"name": "eqresnet9", "group": "axial-D4"}, "acts on 3D images"),
        ({"name": "eqresnet9", "group": "D7"}, "Unknown symmetry group"),
        ({"name": "eqresnet9", "group": "C4", "restriction": "reflection"}, "no restriction 'reflection'"),
    ],
)
def test_impossible_networks_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        resolve_spec(ModelChoice(**arguments), (1, 28, 28), 2)


def test_wrong_norm_groups_are_refused_when_the_network_is_built():
    spec = resolve_spec(ModelChoice("eqresnet9", norm_groups=(8, 8, 8)), (1, 28, 28), 2)
    with pytest.raises(ConfigError, match="8 norm groups do not divide 6 fields"):
        build_model(spec, 1, 2, seed=0)
