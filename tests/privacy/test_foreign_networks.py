"""Networks that were never written for privacy: their gradients per unit against single-sample autograd."""

import pytest
import torch
from helpers import relative_error, unit_gradients_by_autograd
from monai.networks.nets import DenseNet, DynUNet, SegResNet, UNet
from torch import nn

from dpeq.errors import ConfigError
from dpeq.privacy.clipping import UnitGradSampleModule


class Classify(nn.Module):
    """Makes a classifier of a network with a map of scores: their mean over all positions."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        y = self.inner(x)
        return y.flatten(2).mean(2) * 10 + y.flatten(2).square().mean(2)  # a mean alone is flat behind instance norm


class Scale(nn.Module):
    """A parameter that sits beside a layer, in no layer of its own."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.scale = nn.Parameter(torch.full((1,), 1.5))
        self.inner = inner

    def forward(self, x):
        return self.inner(x) * self.scale


class Residual(nn.Module):
    """As torchvision writes it: in-place ReLU and ``out += x``."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm1, self.norm2 = nn.GroupNorm(2, 4), nn.GroupNorm(2, 4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        out += x
        return self.relu(out)


class Twice(nn.Module):
    """One layer, called twice on paths of different length, and registered under two names."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.also = nn.Sequential(self.conv)

    def forward(self, x):
        return self.conv(x).sigmoid().square() - self.conv(x * 0.5)


NETWORKS = {
    "MONAI UNet": lambda: Classify(UNet(3, 1, 3, (3, 4), (2,), num_res_units=1)),
    "MONAI DynUNet": lambda: Classify(DynUNet(3, 1, 3, [3] * 3, [1, 2, 1], [2, 1], filters=[3, 4, 4])),
    "MONAI SegResNet": lambda: Classify(SegResNet(3, 8, 1, 3, blocks_down=(1, 1), blocks_up=(1,))),
    "MONAI DenseNet with group norm": lambda: DenseNet(
        3, 1, 3, init_features=4, growth_rate=4, block_config=(1, 1), norm=("group", {"num_groups": 2})
    ),
    "in-place residual": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3), Residual(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    ),
    "in-place after instance norm": lambda: Classify(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.ELU(inplace=True), nn.Conv2d(4, 3, 3))
    ),
    "transposed convolution": lambda: Classify(nn.ConvTranspose2d(1, 3, 3, stride=2, padding=1, output_padding=1)),
    "a parameter in a container": lambda: Classify(Scale(nn.Sequential(nn.Conv2d(1, 3, 3), nn.PReLU(3)))),
    "a layer called twice": lambda: Classify(nn.Sequential(nn.Conv2d(1, 3, 3), Twice())),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("views", [1, 2])
def test_foreign_networks_get_exact_gradients_per_unit(name, views):
    net = NETWORKS[name]().double()
    three = any(isinstance(m, nn.Conv3d) for m in net.modules())
    x = torch.randn(2 * views, 1, *((8, 8, 8) if three else (8, 8)), dtype=torch.float64)
    y = torch.tensor([0, 2]).repeat_interleave(views)
    expected = unit_gradients_by_autograd(net, x, y, views)
    whole = max(float(g.abs().max()) for g in expected.values())
    wrapped = UnitGradSampleModule(net, views)
    for _ in range(2):  # nothing of the first pass is left behind
        wrapped.backward(wrapped(x), y)
        for key, p in net.named_parameters():
            assert p.grad_sample.shape == expected[key].shape
            if float(expected[key].abs().max()) > 1e-9 * whole:  # biases before a norm have no gradient but rounding
                assert relative_error(p.grad_sample, expected[key]) <= 1e-9, key
            p.grad_sample = None


class TakesTwo(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x, y):
        return x * self.weight + y


class Calls(nn.Module):
    def __init__(self, layer, call):
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, x):
        return self.call(self.layer, x)


def test_layers_of_two_inputs_or_two_outputs_are_refused():
    x = torch.randn(2, 3, 4)
    with pytest.raises(ConfigError, match=r"'layer' \(TakesTwo\) has no registered grad sampler and takes 2 inputs"):
        UnitGradSampleModule(Calls(TakesTwo(), lambda layer, x: layer(x, x)))(x)
    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    with pytest.raises(ConfigError, match=r"'layer' \(MultiheadAttention\) does not turn one tensor into one"):
        UnitGradSampleModule(Calls(attention, lambda layer, x: layer(x, x, x)[0]))(x)


def test_an_input_that_is_changed_afterwards_is_noticed():
    """Autograd does not see it where it needs the input no more; the gradient would be wrong."""

    def overwrite(layer, x):
        x = x * 1
        y = layer(x)
        x.zero_()
        return y

    layer = nn.Linear(4, 3)
    layer.weight.requires_grad_(False)
    wrapped = UnitGradSampleModule(Calls(layer, overwrite))
    with pytest.raises(ConfigError, match=r"'layer' \(Linear\) had its input changed in place"):
        wrapped.backward(wrapped(torch.randn(2, 4)), torch.tensor([0, 1]))


def test_randomness_inside_a_layer_that_is_run_row_by_row_is_refused():
    wrapped = UnitGradSampleModule(nn.Sequential(Scale(nn.Dropout(0.5)), nn.Flatten(), nn.Linear(4, 3)))
    with pytest.raises(ConfigError, match=r"'0' \(Scale\) cannot be run row by row: vmap: called random operation"):
        wrapped.backward(wrapped(torch.randn(2, 4)), torch.tensor([0, 1]))
