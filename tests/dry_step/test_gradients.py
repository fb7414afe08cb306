"""Layers whose gradients per unit are exact, wrong, refused or missing."""

import pytest
import torch
import torch.nn.functional as F
from dry_step.networks import SHAPE, Tail, Through, found
from torch import nn

from dpeq.dry_step import examine_model, require_trainable
from dpeq.dry_step.batch import MadeUpBatch
from dpeq.dry_step.findings import Finding, Stop
from dpeq.dry_step.gradients import EngineGradient, compare, engine_gradients, plain_gradients, set_refused_aside
from dpeq.errors import ConfigError
from dpeq.privacy.clipping import LayerError


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


def test_parameters_of_the_network_itself_are_those_of_a_layer_without_a_name():
    class Rooted(Tail):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return super().forward(x) * self.scale

    network, root, *inner = examine_model(Rooted(), SHAPE, 3)
    assert (network.layer, network.verdict) == (root.layer, root.verdict) == ("", "functorch")
    assert (network.parameters, root.parameters) == (40 + 15 + 3, 3)
    assert {v.verdict for v in inner} == {"functorch"}


def test_what_cannot_be_run_row_by_row_is_refused_and_the_rest_examined():
    def attend(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        return self.inner(tokens, tokens, tokens)[0].transpose(1, 2).reshape(x.shape)

    v = found(Tail(Through(attend, nn.MultiheadAttention(4, 2, batch_first=True))))
    assert v["features.1.inner"].verdict == "refused"
    assert v["features.1.inner"].why == "it does not turn one tensor into one"
    assert "DPMultiheadAttention" in v["features.1.inner"].mend
    assert v["classifier"].verdict == v["features.0"].verdict == "exact"


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


def test_the_engine_and_the_oracle_agree_and_the_comparison_notices_when_they_do_not():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 3))
    batch = MadeUpBatch.drawn(SHAPE, 3, views=2, units=3, device=torch.device("cpu"))
    engine, plain = engine_gradients(model, batch), plain_gradients(model, batch)
    assert engine.keys() == plain.keys() == {"1.weight", "1.bias", "3.weight", "3.bias"}
    assert engine["1.weight"].sample.shape == (3, 4, 64)
    assert all(p.grad is None and not hasattr(p, "grad_sample") for p in model.parameters())
    assert compare(model, engine, plain, {"3": 2}, known=()) == {
        "1": Finding("exact"),
        "3": Finding("exact", "it is called 2 times per batch, and its gradients are added up"),
    }
    swapped = engine | {"1.weight": EngineGradient(engine["1.weight"].sample.flip(0), False)}
    assert compare(model, swapped, plain, {}, known=())["1"].verdict == "refused"
    slightly = engine | {"3.weight": EngineGradient(engine["3.weight"].sample * 1.01, False)}
    assert "wrong by 1%" in compare(model, slightly, plain, {}, known=())["3"].why
    listed = engine | {"3.weight": EngineGradient([engine["3.weight"].sample], False)}
    assert "several checkpoints" in compare(model, listed, plain, {}, known=())["3"].why
    assert compare(model, swapped, plain, {}, known={"1"}).keys() == {"3"}


def test_what_the_engine_refuses_is_frozen_and_quoted():
    model = nn.Sequential(nn.Linear(2, 2), nn.GRU(2, 2), nn.Linear(2, 2))
    error = LayerError("0", "Layer '0' (Linear) is not to its taste; take another.")
    assert set_refused_aside(model, error) == {"0": Finding("refused", "it is not to its taste", "take another")}
    assert [p.requires_grad for p in model[0].parameters()] == [False, False]
    assert all(p.requires_grad for p in [*model[1].parameters(), *model[2].parameters()])
    known = set_refused_aside(model, LayerError("1", "Layer '1' keeps a state; wait."))
    assert known["1"].mend == "use convolutions, or model.name: vit"
    for again in (error, ConfigError("The network is odd.")):  # nothing is left to freeze
        with pytest.raises(Stop, match=r"is not to its taste|The network is odd"):
            set_refused_aside(model, again)
