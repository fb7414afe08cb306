"""The network under torch.compile."""

import pytest
import torch

from dpeq.models.registry import build_model
from dpeq.models.resnet9 import ResNet9Spec


@pytest.fixture(params=["D4", "axial-D4"])
def network(request):
    spec = ResNet9Spec(request.param, "halved", (1, 1, 2), (1, 1, 1), stem_pool=True)
    dim = 3 if request.param.startswith("axial") else 2
    return build_model(spec, 1, 2, seed=0).eval(), torch.randn(5, 1, *[16, 12, 8][:dim])


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_the_network_compiles_whole_and_computes_the_same(network, backend):
    """``fullgraph`` refuses graph breaks. Inductor agrees too, but its C++ compiler takes half a minute and more."""
    model, x = network
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    with torch.no_grad():
        for batch in (2, 5):
            torch.testing.assert_close(compiled(x[:batch]), model(x[:batch]), atol=1e-5, rtol=1e-5)
