"""Every kind of layer and architecture that the library has, exported and run in the runtimes."""

import pytest
import torch
from torch import nn

from dpeq.export import Description, export_model
from dpeq.groups import group
from dpeq.models.registry import ModelChoice, build_model, resolve_spec
from dpeq.models.vit import ViTSpec
from dpeq.models.wide_resnet import WideResNetSpec
from dpeq.nn.activations import FourierActivation, GatedActivation, NormActivation, activation_for
from dpeq.nn.fields import FieldType
from dpeq.nn.invariant import InvariantPool, Restrict
from dpeq.nn.norm import EquivariantGroupNorm
from dpeq.nn.pooling import MaxPool, SymmetricPool, pool_for
from dpeq.nn.separable import SeparableConv
from dpeq.nn.steerable import SteerableConv
from dpeq.nn.upsample import Upsample


def regular(name: str, subgroup: str) -> nn.Module:
    whole = group(name)
    image, features = FieldType(whole, "trivial", 1), FieldType(whole, "regular", 2)
    restrict = Restrict(features, whole.subgroup(subgroup))
    return nn.Sequential(
        SteerableConv(image, features),
        EquivariantGroupNorm(features, 2),
        activation_for(features),
        MaxPool(features),
        SeparableConv(features, features),
        Upsample(2, "linear"),
        SymmetricPool(),
        restrict,
        SteerableConv(restrict.out_type, restrict.out_type, dilation=2),
        InvariantPool(restrict.out_type),
        nn.Linear(restrict.out_type.fields, 2),
    )


def fourier(name: str) -> nn.Module:
    whole = group(name)
    image, features = FieldType(whole, "trivial", 1), FieldType(whole, "fourier:1", 2)
    body = nn.Sequential(
        SteerableConv(image, features, 5),
        EquivariantGroupNorm(features, 2),
        FourierActivation(features),
        pool_for(whole),
        SteerableConv(features, features, 5),
        GatedActivation(features),
        SteerableConv(features, features, 5),
        NormActivation(features),
        InvariantPool(features),
    ).eval()
    with torch.no_grad():
        numbers = body(torch.zeros(1, 1, *[8] * whole.dim)).shape[1]
    return body.append(nn.Linear(numbers, 2))


def preset(name: str, shape: tuple[int, ...]) -> nn.Module:
    return build_model(resolve_spec(ModelChoice(name), shape, 2), 1, 2, seed=0)


NETWORKS = {
    "D4": ((1, 12, 12), lambda: regular("D4", "halved")),
    "axial-D4": ((1, 8, 8, 6), lambda: regular("axial-D4", "invariant")),
    "SO2": ((1, 9, 9), lambda: fourier("SO2")),
    "axial-SO2": ((1, 8, 8, 5), lambda: fourier("axial-SO2")),
    "family": ((1, 28, 28), lambda: preset("eqnet-xs", (1, 28, 28))),
    "family-3d": ((1, 32, 24, 16), lambda: preset("eqnet-3d-xs", (1, 32, 24, 16))),
    "Wide-ResNet": ((1, 12, 12), lambda: WideResNetSpec(2, 10, 0.5).build(1, 2)),
    "ViT": ((1, 8, 8, 8), lambda: ViTSpec(3, (8, 8, 8), 4, 8, 1, 2, 16).build(1, 2)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_any_layers_is_exported(name, tmp_path):
    """Every file is compared with the network before it counts as written; a difference is an error."""
    shape, build = NETWORKS[name]
    model = build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        spread = model(torch.randn(4, *shape)).std(dim=0).max()
    assert spread > 1e-3, "a network that hardly looks at its input would show nothing"
    written = export_model(model, shape, tmp_path, ["onnx", "torchscript"], Description("net", ("a", "b")))
    assert all(exported.path.is_file() and exported.error <= 1e-5 for exported in written)
