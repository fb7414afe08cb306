"""Upsampling: equivariance, agreement with plain torch, and its errors."""

import pytest
import torch
from helpers import assert_equivariant

from dpeq.errors import ConfigError
from dpeq.groups import group
from dpeq.nn.fields import FieldType
from dpeq.nn.pooling import SymmetricPool
from dpeq.nn.upsample import Upsample


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scale", [2, 3])
@pytest.mark.parametrize(
    ("name", "representation", "spatial"),
    [
        ("D4", "regular", (5, 5)),
        ("D4", "irrep:2", (4, 4)),
        ("axial-D4", "quotient:mirror", (4, 4, 3)),
        ("Oh", "regular", (3, 3, 3)),
    ],
)
def test_upsampling_is_equivariant(name, representation, spatial, scale, mode):
    t = FieldType(group(name), representation, 1)
    assert_equivariant(Upsample(scale, mode), t, t, spatial)
    assert Upsample(scale, mode)(torch.zeros(1, 2, *spatial)).shape[2:] == tuple(scale * s for s in spatial)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("dim", [2, 3])
def test_upsampling_is_undone_by_pooling_where_the_image_is_a_plane(dim, mode):
    """Repeating pixels is undone anywhere; interpolating a linear ramp is exact away from the border."""
    axes = torch.meshgrid(*[torch.arange(6.0)] * dim, indexing="ij")
    x = sum((k + 1) * a for k, a in enumerate(axes))[None, None]
    back = SymmetricPool()(Upsample(2, mode)(x))
    inner = (slice(None), slice(None), *[slice(1, -1)] * dim)
    torch.testing.assert_close(back[inner], x[inner])
    if mode == "nearest":
        assert torch.equal(back, x)


def test_each_pixel_is_repeated():
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(Upsample(2)(x), x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


def test_axes_have_scales_of_their_own():
    assert Upsample((2, 2, 1), "linear")(torch.zeros(1, 1, 4, 4, 3)).shape == (1, 1, 8, 8, 3)
    with pytest.raises(ConfigError, match="3 scales for 2 spatial axes"):
        Upsample((2, 2, 1))(torch.zeros(1, 1, 4, 4))


def test_impossible_upsamplings_are_refused():
    with pytest.raises(ConfigError, match="at least 1"):
        Upsample(0)
    with pytest.raises(ConfigError, match="nearest or linear"):
        Upsample(2, "bicubic")
