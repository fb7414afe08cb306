"""What the dry private step says of networks whose fault is known."""

import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets import DenseNet, UNet
from torch import nn

from dpeq.dry_step import examine_model, require_trainable
from dpeq.errors import ConfigError
from dpeq.models.foreign import PooledOutput, batch_norms_replaced
from dpeq.models.vit import ViTSpec
from dpeq.models.wide_resnet import WideResNetSpec

SHAPE = (1, 8, 8)


class Tail(nn.Module):
    """Features, then the mean over positions and a classifier."""

    def __init__(self, *layers: nn.Module, channels: int = 4):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, channels, 3), *layers)
        self.classifier = nn.Linear(channels, 3)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(2).mean(2))


class Through(nn.Module):
    """A layer made of a function; ``inner`` is a layer of its own."""

    def __init__(self, function, inner=None):
        super().__init__()
        self.function, self.inner = function, inner

    def forward(self, x):
        return self.function(self, x)


def found(model, **arguments):
    return {v.layer: v for v in examine_model(model, SHAPE, 3, **arguments)}


@pytest.mark.parametrize("views", [1, 2])
def test_a_network_that_is_fine_is_exact_throughout(views):
    verdicts = examine_model(Tail(nn.GroupNorm(2, 4), nn.Dropout(0.5)), SHAPE, 3, views)
    assert [(v.layer, v.kind, v.parameters, v.verdict) for v in verdicts] == [
        ("", "Tail", 40 + 8 + 15, "exact"),
        ("features.0", "Conv2d", 40, "exact"),
        ("features.1", "GroupNorm", 8, "exact"),
        ("classifier", "Linear", 15, "exact"),
    ]
    assert all(v.trains and not v.why and not v.mend for v in verdicts)


@pytest.mark.parametrize(
    "spec",
    [
        WideResNetSpec(2, depth=10, widen=1, base=4),
        ViTSpec(2, (8, 8), 4, hidden=8, layers=1, heads=2, mlp=8),
    ],
)
def test_our_own_networks_are_exact(spec):
    verdicts = examine_model(spec.build(1, 3), SHAPE, 3, views=2)
    assert {v.verdict for v in verdicts} == {"exact"}
    require_trainable(spec.build(1, 3), SHAPE, 3)


def test_batch_norm_is_refused_with_a_group_norm_that_fits_everywhere():
    """And everything else is examined without it."""
    v = found(Tail(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1)))
    assert {name for name, one in v.items() if not one.trains} == {"", "features.1", "features.3"}
    assert "mixes the units" in v["features.1"].why
    assert 'norm=("group", {"num_groups": 2})' in v["features.1"].mend  # divides 4 and 6
    assert "ModuleValidator.fix" in v["features.1"].mend
    assert "2 of 6 layers stand in the way: features.1, features.3" in v[""].why
    assert v["features.2"].verdict == "exact"


def test_a_mended_densenet_trains_and_the_shipped_one_does_not():
    def densenet():
        return DenseNet(2, 1, 3, init_features=4, growth_rate=4, block_config=(1, 1))

    with pytest.raises(
        ConfigError, match=r"'features.norm0' \(BatchNorm2d\) cannot be trained privately.*and \d+ more"
    ):
        require_trainable(densenet(), (1, 16, 16), 3)
    require_trainable(batch_norms_replaced(densenet()), (1, 16, 16), 3)


def test_running_statistics_and_other_buffers_are_refused():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.ones(1))

        def forward(self, x):
            return x * self.scale

    v = found(Tail(nn.InstanceNorm2d(4, affine=True, track_running_stats=True), Constant()))
    assert v["features.1"].verdict == v["features.2"].verdict == "refused"
    assert "running_mean, running_var" in v["features.1"].why
    assert "track_running_stats=False" in v["features.1"].mend
    assert "plain attributes" in v["features.2"].mend
    assert v["features.0"].verdict == v["classifier"].verdict == "exact"


def test_unused_parameters_are_named():
    """What usually lies behind Opacus' "Per sample gradient is not initialized"."""
    model = Tail()
    model.spare = nn.Linear(2, 2)
    v = found(model)
    assert v["spare"].verdict == "unused"
    assert "never used" in v["spare"].why
    assert "freeze" in v["spare"].mend
    assert v["classifier"].verdict == "exact"
    with pytest.raises(ConfigError, match=r"Layer 'spare' \(Linear\) cannot be trained privately"):
        require_trainable(model, SHAPE, 3)
    model.spare.requires_grad_(False)
    assert found(model)["spare"].verdict == "frozen"
    require_trainable(model, SHAPE, 3)


def test_a_layer_called_twice_is_exact_and_said_to_be():
    v = found(Tail(Through(lambda self, x: self.inner(self.inner(x).tanh()), nn.Conv2d(4, 4, 3, padding=1))))
    assert v["features.1.inner"].verdict == "exact"
    assert "called 2 times" in v["features.1.inner"].why


@pytest.mark.parametrize("views", [1, 2])
def test_layers_without_a_grad_sampler_are_run_row_by_row(views):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.conv = nn.Parameter(torch.ones(4, 1, 1)), nn.Conv2d(4, 4, 3)

        def forward(self, x):
            return self.conv(x) * self.scale

    v = found(Tail(nn.PReLU(4), nn.ConvTranspose2d(4, 4, 2), nn.ReLU(inplace=True), Scaled()), views=views)
    assert {name: one.verdict for name, one in v.items()} == {
        "": "functorch",
        "features.0": "exact",
        "features.1": "functorch",
        "features.2": "functorch",
        "features.4": "functorch",
        "features.4.conv": "functorch",
        "classifier": "exact",
    }
    assert all(one.trains for one in v.values())
    assert "row by row" in v["features.1"].why


def test_what_cannot_be_run_row_by_row_is_refused_and_the_rest_examined():
    def attend(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        return self.inner(tokens, tokens, tokens)[0].transpose(1, 2).reshape(x.shape)

    v = found(Tail(Through(attend, nn.MultiheadAttention(4, 2, batch_first=True))))
    assert v["features.1.inner"].verdict == "refused"
    assert v["features.1.inner"].why == "it does not turn one tensor into one"
    assert "DPMultiheadAttention" in v["features.1.inner"].mend
    assert v["classifier"].verdict == v["features.0"].verdict == "exact"


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_3d_segmentation_network_that_opacus_cannot_train_is_explained_or_trains(batch_norm):
    net = UNet(3, 1, 3, (4, 8), (2,), norm="batch" if batch_norm else "instance")
    if batch_norm:
        with pytest.raises(ConfigError, match="batch norm mixes the units of a batch"):
            require_trainable(PooledOutput(net), (1, 8, 8, 8), 3)
        net = batch_norms_replaced(net)
    require_trainable(PooledOutput(net), (1, 8, 8, 8), 3)


def test_parameters_used_outside_their_layer_are_refused():
    """Nobody calls the layer, so no hook of it fires."""
    v = found(Tail(Through(lambda self, x: F.conv2d(x, self.inner.weight), nn.Conv2d(4, 4, 3, bias=False))))
    assert v["features.1.inner"].verdict == "refused"
    assert "outside its own forward" in v["features.1.inner"].why
    assert v["features.0"].verdict == "exact"


def test_a_gradient_that_opacus_gets_wrong_is_found():
    """Its sampler of convolutions takes every padding for zeros."""
    v = found(Tail(nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")))
    assert v["features.1"].verdict == "refused"
    assert "wrong by" in v["features.1"].why
    assert "torch.nn.functional.pad" in v["features.1"].mend
    assert v["features.0"].verdict == "exact"


def test_a_layer_that_sees_positions_as_rows_is_refused():
    def by_position(self, x):
        flat = x.flatten(2).transpose(1, 2)
        return self.inner(flat.reshape(-1, 4)).view_as(flat).transpose(1, 2).reshape(x.shape)

    v = found(Tail(Through(by_position, nn.Linear(4, 4))))
    assert "saw 180 rows of a batch of 5" in v["features.1.inner"].why
    assert v["classifier"].verdict == "exact"


@pytest.mark.parametrize("views", [1, 2])
def test_mixing_is_found_by_its_effect_and_its_place_is_named(views):
    v = found(Tail(Through(lambda self, x: x - x.mean(0, keepdim=True))), views=views)
    assert "mixes the units of a batch in 'features.1'" in v[""].why
    assert v["classifier"].verdict == "refused"  # nothing could be checked
    assert "not examined" in v["classifier"].why


def test_views_of_one_unit_may_look_at_each_other():
    """The gradient of a unit is one; only other units' images must stay out of it."""
    model = Tail(Through(lambda self, x: x - x.view(-1, 2, *x.shape[1:]).mean(1).repeat_interleave(2, 0)))
    assert found(model, views=2)[""].verdict == "exact"


OUTPUTS = {
    "a map": (
        nn.Sequential(nn.Conv2d(1, 3, 3)),
        "returns a map [5, 3, 6, 6], as segmentation does",
        "model.pool_output: true",
    ),
    "a tuple": (Through(lambda self, x: (self.inner(x), x), Tail()), "returns a tuple", "model.pool_output: true"),
    "other classes": (
        nn.Sequential(nn.Flatten(), nn.Linear(64, 5)),
        "returns 5 numbers per row, not 3",
        "build it for that many classes",
    ),
    "other rows": (
        nn.Sequential(Through(lambda self, x: x.reshape(-1, 16)), nn.Linear(16, 3)),
        "returns [20, 3] for 5 rows",
        "return one tensor",
    ),
    "no tensor": (Through(lambda self, x: None, nn.Linear(1, 1)), "returns no tensor", "return one tensor [N, 3]"),
    "infinite": (
        nn.Sequential(nn.Flatten(), nn.Linear(64, 3), Through(lambda self, x: x / 0)),
        "not finite",
        "initial weights",
    ),
    "random": (
        nn.Sequential(nn.Flatten(), nn.Linear(64, 3), Through(lambda self, x: x + torch.randn_like(x))),
        "random beyond dropout",
        "take the random part out",
    ),
    "in place": (
        nn.Sequential(nn.Flatten(), nn.Linear(64, 3), Through(lambda self, x: x.sigmoid().mul_(2))),
        "a plain backward pass fails: one of the variables needed for gradient computation has been modified",
        "in place",
    ),
    "channels": (
        nn.Sequential(nn.Conv2d(3, 3, 3), nn.Flatten()),
        "fails in '0' on a batch [5, 1, 8, 8]: Given groups=1",
        "give it the channels",
    ),
    "nothing trainable": (
        nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).requires_grad_(False),
        "nothing that is trainable reaches its output",
        "unfreeze",
    ),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_networks_that_do_not_classify_are_explained(case):
    model, why, mend = OUTPUTS[case]
    whole = found(model)[""]
    assert whole.verdict == "refused"
    assert why in whole.why
    assert mend in whole.mend


def test_the_layers_of_a_segmentation_network_are_examined_and_pooling_makes_a_classifier_of_it():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Mish(), nn.Conv2d(4, 3, 3))
    v = found(model)
    assert [one.verdict for one in v.values()] == ["refused", "exact", "exact", "exact"]
    require_trainable(PooledOutput(model), SHAPE, 3)


def test_an_examination_leaves_network_and_random_state_alone():
    model = Tail(nn.BatchNorm2d(4), nn.Dropout(0.5)).eval()
    weights = {k: t.clone() for k, t in model.state_dict().items()}
    before = torch.random.get_rng_state()
    first = examine_model(model, SHAPE, 3)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(t, weights[k]) for k, t in model.state_dict().items())
    assert not model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    assert examine_model(model, SHAPE, 3) == first


def test_verdicts_can_be_printed():
    verdict = examine_model(Tail(), SHAPE, 3)[1].to_dict()
    assert verdict == {
        "layer": "features.0", "kind": "Conv2d", "parameters": 40, "verdict": "exact", "why": "", "mend": ""
    }  # fmt: skip


def test_one_unit_is_not_enough():
    with pytest.raises(ValueError, match="two are needed"):
        examine_model(Tail(), SHAPE, 3, units=1)


def test_tied_parameters_are_judged_where_they_are_met_first():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.head(torch.tanh(self.b(torch.tanh(self.a(x.mean((1, 2)))))))

    verdicts = found(Tied())
    assert {v.verdict for v in verdicts.values()} == {"exact"}
