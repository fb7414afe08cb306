"""What is reported of networks that train and of those that do not, and that looking changes nothing."""

import pytest
import torch
from dry_step.networks import SHAPE, Tail
from monai.networks.nets import DenseNet, UNet
from torch import nn

from dpeq.dry_step import examine_model, require_trainable
from dpeq.errors import ConfigError
from dpeq.models.foreign import PooledOutput, batch_norms_replaced
from dpeq.models.vit import ViTSpec
from dpeq.models.wide_resnet import WideResNetSpec


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


def test_a_mended_densenet_trains_and_the_shipped_one_does_not():
    def densenet():
        return DenseNet(2, 1, 3, init_features=4, growth_rate=4, block_config=(1, 1))

    with pytest.raises(
        ConfigError, match=r"'features.norm0' \(BatchNorm2d\) cannot be trained privately.*and \d+ more"
    ):
        require_trainable(densenet(), (1, 16, 16), 3)
    require_trainable(batch_norms_replaced(densenet()), (1, 16, 16), 3)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_3d_segmentation_network_that_opacus_cannot_train_is_explained_or_trains(batch_norm):
    net = UNet(3, 1, 3, (4, 8), (2,), norm="batch" if batch_norm else "instance")
    if batch_norm:
        with pytest.raises(ConfigError, match="batch norm mixes the units of a batch"):
            require_trainable(PooledOutput(net), (1, 8, 8, 8), 3)
        net = batch_norms_replaced(net)
    require_trainable(PooledOutput(net), (1, 8, 8, 8), 3)


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
