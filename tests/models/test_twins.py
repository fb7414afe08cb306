"""Wide-ResNet, vision transformer and the CNN twin: sizes, shapes, and gradients per unit against autograd."""

import math

import pytest
import torch
from helpers import relative_error, unit_gradients_by_autograd

from dpeq.errors import ConfigError
from dpeq.groups import group
from dpeq.models.resnet9 import ResNet9Spec
from dpeq.models.twins import cnn_twin
from dpeq.models.vit import Patches, ViTSpec
from dpeq.models.wide_resnet import WideResNetSpec, norm_groups_for
from dpeq.privacy.clipping import UnitGradSampleModule

SPATIAL = {2: (12, 10), 3: (8, 6, 5)}


def wide_resnet(dim):
    return WideResNetSpec(dim, depth=10, widen=1.5, base=4, activation="mish"), SPATIAL[dim]


def vit(dim):
    size, patch = ((8, 6), (4, 3)) if dim == 2 else ((6, 4, 4), 2)
    return ViTSpec(dim, size, patch, hidden=8, layers=2, heads=2, mlp=12), size


@pytest.mark.parametrize("make", [wide_resnet, vit])
@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("units", [1, 3])
def test_every_parameter_gets_its_gradient_per_unit(make, dim, views, units):
    spec, size = make(dim)
    model = spec.build(2, 3)
    x = torch.randn(units * views, 2, *size)
    y = torch.randint(0, 3, (units,)).repeat_interleave(views)
    expected = unit_gradients_by_autograd(model, x, y, views)
    wrapped = UnitGradSampleModule(model, views)
    wrapped.backward(wrapped(x), y)
    for name, p in model.named_parameters():
        assert p.grad_sample.shape == (units, *p.shape)
        assert relative_error(p.grad_sample, expected[name]) <= 1e-5, name


def test_wide_resnet_16_4_is_that_of_the_paper():
    """2,748,890 parameters for 3 channels and 10 classes: the paper's 2.7 M (its table 4), counted with its batch norm,
    whose scales and shifts are as many as those of the group norm here."""
    model = WideResNetSpec(2).build(3, 10)
    assert sum(p.numel() for p in model.parameters()) == 2_748_890


@pytest.mark.parametrize("dim", [2, 3])
def test_wide_resnet_has_16_layers_and_halves_twice(dim):
    spec = WideResNetSpec(dim, widen=0.5)
    model = spec.build(1, 2).eval()
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, __, y: seen.append(tuple(y.shape[1:])))
    size = (28, 28) if dim == 2 else (32, 24, 16)
    with torch.no_grad():
        assert model(torch.randn(2, 1, *size)).shape == (2, 2)
    sizes = [tuple(s // cut for s in size) for cut in (1, 1, 2, 2, 4, 4)]
    assert seen == [(width, *s) for width, s in zip((8, 8, 16, 16, 32, 32), sizes, strict=True)]
    assert sum(p.dim() == dim + 2 for p in model.parameters()) == 16


@pytest.mark.parametrize("size", [(7, 7), (5, 4), (1, 9)])
def test_wide_resnet_takes_small_and_odd_images(size):
    model = WideResNetSpec(2, depth=10, widen=1, base=4).build(1, 2)
    assert model(torch.randn(3, 1, *size)).shape == (3, 2)


def test_norm_groups_divide_and_hold_two_channels():
    for channels in range(1, 300):
        groups = norm_groups_for(channels)
        assert channels % groups == 0
        assert groups <= 16
        assert channels == 1 or channels // groups >= 2
    spec = WideResNetSpec(2, widen=0.8125)
    described = spec.describe()
    assert described["widths"] == [16, 13, 26, 52]
    assert described["norm_groups"] == [8, 1, 13, 13]


def test_scale_of_a_wide_resnet_stays_moderate():
    """Standardised filters keep the variance of what they see, so no depth or width blows up."""
    model = WideResNetSpec(2, depth=16, widen=2).build(1, 2).eval()
    with torch.no_grad():
        y = model.blocks(model.stem(torch.randn(4, 1, 28, 28)))
    assert 0.1 < float(y.std()) < 5


@pytest.mark.parametrize("dim", [2, 3])
def test_patches_are_cut_in_order(dim):
    size, patch = ((4, 6), (2, 3)) if dim == 2 else ((4, 6, 2), (2, 3, 1))
    x = torch.randn(2, 3, *size)
    cut = Patches(size, patch)(x)
    grid = [e // p for e, p in zip(size, patch, strict=True)]
    assert cut.shape == (2, math.prod(grid), 3 * math.prod(patch))
    for token, place in enumerate(torch.cartesian_prod(*[torch.arange(n) for n in grid]).tolist()):
        window = [slice(i * p, (i + 1) * p) for i, p in zip(place, patch, strict=True)]
        assert torch.equal(cut[:, token], x[(slice(None), slice(None), *window)].flatten(1))


def test_attention_is_that_of_torch():
    spec, _ = vit(2)
    attention = spec.build(1, 2).blocks[0].attention
    theirs = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(attention.qkv.weight)
        theirs.in_proj_bias.copy_(torch.nn.init.normal_(attention.qkv.bias))
    theirs.out_proj.load_state_dict(attention.out.state_dict())
    x = torch.randn(3, 4, 8)
    torch.testing.assert_close(attention(x), theirs(x, x, x, need_weights=False)[0])


def test_positions_tell_patches_apart():
    spec, size = vit(2)
    model = spec.build(1, 2).eval()
    x = torch.randn(1, 1, *size)
    with torch.no_grad():
        moved = x.roll(4, dims=2)  # whole patches change place
        assert not torch.allclose(model(x), model(moved), atol=1e-5)
        model.position.weight.zero_()
        torch.testing.assert_close(model(x), model(moved))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"image_size": (28, 30), "patch": 4},
            r"edge of 30 is not a whole number of patches of 4; use a patch of 2",
        ),
        ({"image_size": (28,)}, "one edge for each of 2 axes"),
        ({"patch": (4, 4, 4)}, "one edge for each of 2 axes"),
        ({"heads": 3}, "3 heads do not divide a width of 16; use one of: 1, 2, 4, 8, 16"),
        ({"layers": 0}, "at least 1"),
        ({"dim": 4}, "2D or 3D"),
    ],
)
def test_impossible_transformers_are_refused(arguments, message):
    good = {"dim": 2, "image_size": (28, 28), "patch": 7, "hidden": 16, "layers": 1, "heads": 2, "mlp": 32}
    with pytest.raises(ConfigError, match=message):
        ViTSpec(**(good | arguments))


def test_a_transformer_refuses_images_of_another_size():
    spec, _ = vit(2)
    with pytest.raises(ConfigError, match=r"built for images of \[8, 6\] but got \[8, 9\]"):
        spec.build(1, 2)(torch.zeros(1, 1, 8, 9))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 15}, "6n"),
        ({"dim": 1}, "2D or 3D"),
        ({"widen": 0}, "positive"),
        ({"activation": "tanh"}, "no activation 'tanh' here; use one of: relu, mish"),
    ],
)
def test_impossible_wide_resnets_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        WideResNetSpec(**({"dim": 2} | arguments))


@pytest.mark.parametrize("make", [wide_resnet, vit])
def test_specs_describe_themselves_for_reports(make):
    import json

    spec, _ = make(3)
    assert (spec.dim, spec.group, spec.restriction) == (3, "trivial-3d", "none")
    assert spec.architecture
    assert json.loads(json.dumps(spec.describe())) == spec.describe()


def test_the_cnn_twin_keeps_channels_and_loses_symmetry():
    spec = ResNet9Spec("D4", "halved", (3, 6, 12), (1, 1, 1))
    twin = cnn_twin(spec)
    assert (twin.group, twin.restriction, twin.fields) == ("trivial", "none", (24, 48, 48))
    equivariant, plain = spec.build(1, 2).eval(), twin.build(1, 2).eval()
    x = torch.randn(1, 1, 12, 12)
    turned = group("D4").act_on_grid(x, 4)
    with torch.no_grad():
        symmetric = group("D2").act_on_grid(x, 1)
        torch.testing.assert_close(equivariant(x), equivariant(symmetric), atol=1e-5, rtol=1e-4)
        assert not torch.allclose(plain(x), plain(symmetric), atol=1e-4)
        assert not torch.allclose(plain(x), plain(turned), atol=1e-4)


def test_a_network_without_symmetry_has_no_cnn_twin():
    with pytest.raises(ConfigError, match="no symmetry to take away"):
        cnn_twin(WideResNetSpec(2))
