"""Networks that fail as a whole, and segmentation networks, whose layers are examined all the same."""

import pytest
import torch
from dry_step.networks import SHAPE, Tail, Through, found
from torch import nn

from dpeq.dry_step import examination, require_trainable
from dpeq.errors import ConfigError
from dpeq.models.foreign import PooledOutput
from dpeq.privacy.clipping import LayerError

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


def test_what_was_found_before_the_end_is_kept(monkeypatch):
    errors = [LayerError("features.0", "Layer 'features.0' (Conv2d) is odd; mend it."), ConfigError("All is odd.")]

    def refuse(model, batch):
        raise errors.pop(0)

    monkeypatch.setattr(examination, "engine_gradients", refuse)
    v = found(Tail())
    assert v[""].why == "All is odd"
    assert (v["features.0"].why, v["features.0"].mend) == ("it is odd", "mend it")
    assert "not examined" in v["classifier"].why
