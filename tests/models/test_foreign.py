"""Networks by import path: MONAI's, and modules written here as a user would."""

import json
import sys

import pytest
import torch
from torch import nn

from dpeq.errors import ConfigError
from dpeq.models.foreign import ForeignSpec, batch_norms_replaced, import_callable

GROUP_NORM = ["group", {"num_groups": 4}]

SOURCE = """
from torch import nn

class Sized(nn.Sequential):
    def __init__(self, in_chans, num_classes, width=4):
        super().__init__(nn.Conv2d(in_chans, width, 3), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
                         nn.InstanceNorm2d(width, affine=True, track_running_stats=True),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))

class Wider(Sized):
    def __init__(self, factor=2, **kwargs):
        super().__init__(width=4 * factor, **kwargs)

def builder(*, weights=None, **kwargs):
    return Sized(3, **kwargs)

def annotated(*, weights=None, progress=True, **kwargs) -> Sized:
    return Sized(**kwargs)

def number():
    return 3

def broken(num_classes):
    raise RuntimeError("the moon is\\nin the wrong house")

CONSTANT = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A package of the user's own, importable for one test."""
    (tmp_path / "ownnets").mkdir()
    (tmp_path / "ownnets" / "__init__.py").touch()
    (tmp_path / "ownnets" / "zoo.py").write_text(SOURCE)
    (tmp_path / "ownnets" / "needy.py").write_text("import a_package_that_is_not_there")
    (tmp_path / "ownnets" / "angry.py").write_text("raise ValueError('no')")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "ownnets"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize(
    ("path", "arguments", "size"),
    [
        ("monai.networks.nets.DenseNet", {"init_features": 4, "growth_rate": 4, "block_config": [1, 1]}, (16, 16)),
        ("monai.networks.nets:resnet10", {"spatial_dims": 3, "feed_forward": True}, (32, 32, 32)),
        ("monai.networks.nets.SENet154", {"layers": [1, 1, 1, 1], "groups": 1, "inplanes": 8}, (32, 32)),
        ("monai.networks.nets.EfficientNetBN", {"model_name": "efficientnet-b0", "pretrained": False}, (32, 32)),
    ],
)
def test_monai_classifiers_are_given_channels_classes_and_axes(path, arguments, size):
    """Called in_channels, n_input_channels or hidden in a base class; out_channels or num_classes."""
    model = ForeignSpec(path, len(size), arguments).build(2, 5).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 2, *size)).shape == (1, 5)


def test_explicit_arguments_win(own):
    model = ForeignSpec("ownnets.zoo:Sized", 2, {"in_chans": 1, "num_classes": 7, "width": 6}).build(3, 2)
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 7)
    assert model[0].out_channels == 6


@pytest.mark.parametrize(
    "path", ["ownnets.zoo.Sized", "ownnets.zoo:Wider", "ownnets.zoo.builder", "ownnets.zoo.annotated"]
)
def test_modules_of_ones_own(own, path):
    assert ForeignSpec(path, 2).build(3, 2)(torch.randn(2, 3, 8, 8)).shape == (2, 2)


def test_specs_say_what_they_are(own):
    spec = ForeignSpec("monai.networks.nets.DenseNet121", 3, {"norm": GROUP_NORM}, pool_output=True)
    assert (spec.group, spec.restriction, spec.architecture) == (
        "trivial-3d",
        "none",
        "DenseNet121 of monai.networks.nets",
    )
    described = spec.describe()
    assert json.loads(json.dumps(described)) == described
    assert described["package_version"].split(".")[0].isdigit()
    assert ForeignSpec("ownnets.zoo.Sized", 2).describe()["package_version"] is None
    assert hash(spec) == hash(ForeignSpec("monai.networks.nets.DenseNet121", 3, {"norm": GROUP_NORM}, pool_output=True))


def test_batch_norms_are_replaced_wherever_they_hide(own):
    plain = ForeignSpec("ownnets.zoo.Sized", 2).build(1, 2)
    model = ForeignSpec("ownnets.zoo.Sized", 2, replace_batch_norm=True).build(1, 2)
    assert isinstance(model[1], nn.GroupNorm)
    assert (model[1].num_groups, model[1].num_channels) == (2, 4)
    assert isinstance(model[3], nn.InstanceNorm2d)
    assert [p.shape for p in model.parameters()] == [p.shape for p in plain.parameters()]
    assert not list(model.buffers())
    # MONAI's resnet10 writes some of its norms down where no argument reaches them.
    deep = ForeignSpec("monai.networks.nets.resnet10", 3, {"feed_forward": True}, replace_batch_norm=True).build(1, 2)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in deep.modules())
    assert isinstance(batch_norms_replaced(nn.BatchNorm3d(6)), nn.GroupNorm)


@pytest.mark.parametrize(
    ("path", "arguments", "message"),
    [
        ("Sized", {}, "'Sized' is not an import path; write package.module.Name"),
        ("torchvisionn.models.resnet18", {}, "There is no module 'torchvisionn' for the network"),
        ("ownnets.zoos.Sized", {}, r"There is no module 'ownnets\.zoos'"),
        ("ownnets.zoo.Size", {}, "There is no 'Size' in 'ownnets.zoo'; did you mean 'Sized'"),
        ("ownnets.needy.Net", {}, "'ownnets.needy' could not be imported because it needs 'a_package_that_is_not_ther"),
        ("ownnets.angry.Net", {}, "'ownnets.angry' could not be imported: no"),
        ("ownnets.zoo.CONSTANT", {}, "is a int; name a class or a function"),
        ("ownnets.zoo.number", {}, "gives a int; name a torch module"),
        ("ownnets.zoo.broken", {}, r"could not be built from \['num_classes'\]: the moon is in the wrong house"),
        ("ownnets.zoo.Sized", {"widht": 3}, "takes no argument 'widht'; did you mean 'width'"),
        ("ownnets.zoo.builder", {"hidden": 3}, "could not be built from"),
        ("monai.networks.nets.UNet", {"channels": [4, 8]}, "needs strides; give them in model.arguments"),
    ],
)
def test_networks_that_cannot_be_built_are_explained(own, path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        ForeignSpec(path, 3, arguments).build(1, 2)


def test_import_callable_takes_both_spellings():
    assert import_callable("torch.nn.Linear") is import_callable("torch.nn:Linear") is nn.Linear
