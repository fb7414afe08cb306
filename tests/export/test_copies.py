"""The network under deepcopy and safetensors: other ways in which trained networks are used."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file

from dpeq.models.registry import build_model
from dpeq.models.resnet9 import ResNet9Spec


@pytest.fixture(params=["D4", "axial-D4"])
def network(request):
    spec = ResNet9Spec(request.param, "halved", (1, 1, 2), (1, 1, 1), stem_pool=True)
    dim = 3 if request.param.startswith("axial") else 2
    return build_model(spec, 1, 2, seed=0).eval(), torch.randn(5, 1, *[16, 12, 8][:dim])


def test_copies_and_stored_weights_give_the_same_network(network, tmp_path):
    model, x = network
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(copy.deepcopy(model)(x), expected)
        save_file(model.state_dict(), tmp_path / "w.safetensors")
        other = build_model(model.spec, 1, 2, seed=1).eval()
        assert not torch.allclose(other(x), expected)
        other.load_state_dict(load_file(tmp_path / "w.safetensors"))
        assert torch.equal(other(x), expected)
