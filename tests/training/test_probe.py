"""Linear probes: starting weights, a frozen backbone, and what of both the run records, from end to end."""

import hashlib
import json
import logging

import pytest
import torch
from helpers import unit_gradients_by_autograd
from safetensors.torch import load_file, save_file
from torch import nn

import dpeq.training.run as run_module
from benchmarks.killable import make_config, make_plan, make_splits
from dpeq.config import RunConfig, load_config
from dpeq.errors import ConfigError
from dpeq.models.partial import train_only
from dpeq.models.registry import ModelChoice, build_model, resolve_spec
from dpeq.models.weights import StartingWeights
from dpeq.nn.norm import EquivariantGroupNorm
from dpeq.privacy.clipping import UnitGradSampleModule
from dpeq.privacy.optimizer import PlanOptimizer
from dpeq.reporting.model import build_report
from dpeq.training.prepare import prepare
from dpeq.training.run import run

STEPS = 3


@pytest.fixture
def room(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "make_plan", lambda prepared: make_plan(STEPS))
    return tmp_path


def config(room, **model) -> RunConfig:
    whole = make_config(room, steps=STEPS, seed=None)
    return whole.model_copy(update={"model": whole.model.model_copy(update=model)})


def train_it(room, configuration: RunConfig):
    return run(configuration, out=room / "runs", command="dpeq train", splits=make_splits()).folder


def pretrained(room, classes: int = 2, **changes):
    """A file of weights of the very network, or of one with other classes, and what is in it."""
    prepared = prepare(config(room))
    tensors = build_model(prepared.spec, 1, classes, seed=77).state_dict() | changes
    path = room / "public.safetensors"
    save_file(tensors, path)
    return path, tensors


# Which parameters


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.Linear(3, 3), nn.GroupNorm(1, 3)), nn.Linear(3, 2))


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["2"], ["2.weight", "2.bias"]),
        (["2.weight"], ["2.weight"]),
        (["1"], ["1.0.weight", "1.0.bias", "1.1.weight", "1.1.bias"]),
        (["*.bias"], ["0.bias", "1.0.bias", "1.1.bias", "2.bias"]),
        (["1", "!1.1", "1.1.bias"], ["1.0.weight", "1.0.bias", "1.1.bias"]),
        (["!1", "!0.bias"], ["0.weight", "2.weight", "2.bias"]),
    ],
    ids=str,
)
def test_patterns_name_layers_and_parameters(patterns, expected):
    model = small()
    train_only(model, patterns)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == expected


def test_what_the_network_itself_froze_stays_frozen_unless_it_is_named():
    model = small()
    model[0].weight.requires_grad_(False)
    train_only(model, ["!1"])
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["0.bias", "2.weight", "2.bias"]
    train_only(model, ["0"])
    assert model[0].weight.requires_grad


@pytest.mark.parametrize("name", ["eqresnet9-small", "eqnet-xs", "vit-tiny", "wide-resnet-16-4", "cnn"])
def test_every_network_can_be_a_probe(name):
    match = "eqresnet9-small" if name == "cnn" else None
    spec = resolve_spec(ModelChoice(name, match=match, trainable=("classifier",)), (1, 28, 28), 2)
    model = build_model(spec, 1, 2, seed=0)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["classifier.weight", "classifier.bias"]
    assert spec.describe()["trainable"] == ["classifier"]


def test_patterns_that_name_nothing_or_leave_nothing_are_refused():
    with pytest.raises(ConfigError, match=r"nothing in the network is named 'head'; its parts are: 0, 1, 2\."):
        train_only(small(), ["2", "head"])
    with pytest.raises(ConfigError, match="leaves nothing to train"):
        train_only(small(), ["2", "!*"])
    with pytest.raises(ConfigError, match=r"named 'head'; its parts are: conv1, .*classifier"):
        prepare(load_config("pneumoniamnist", ["model.trainable=[head]"]))


# From end to end


def test_a_probe_trains_its_classifier_alone(room, monkeypatch):
    path, tensors = pretrained(room)
    noised = []
    real = PlanOptimizer.noised

    def watched(self, total, noise):
        noised.append(len(total))
        return real(self, total, noise)

    monkeypatch.setattr(PlanOptimizer, "noised", watched)
    folder = train_it(room, config(room, trainable=("classifier",), weights=path))
    size = tensors["classifier.weight"].numel() + tensors["classifier.bias"].numel()
    assert noised == [size] * STEPS
    for name in ("final", "raw"):
        after = load_file(folder / "checkpoints" / f"{name}.safetensors")
        assert after.keys() == tensors.keys()
        for key, before in tensors.items():
            assert torch.equal(after[key], before) == (not key.startswith("classifier.")), key
    record = json.loads((folder / "run.json").read_text())
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert record["starting_weights"] == {"name": "public.safetensors", "sha256": sha256, "fresh": []}
    assert record["model"]["trainable"] == ["classifier"]
    assert record["model"]["parameters"] == size
    assert record["model"]["frozen_parameters"] == sum(t.numel() for t in tensors.values()) - size
    texts = {entry["title"]: entry["text"] for entry in build_report(folder)["assumptions"]}
    assert f"come from public.safetensors (SHA-256 {sha256})" in texts["Starting weights"]
    assert "epsilon adds up" in texts["Starting weights"]


def test_weights_of_a_run_start_another_and_a_run_without_says_so(room):
    first = train_it(room, config(room))
    assert json.loads((first / "run.json").read_text())["starting_weights"] is None
    assert "Starting weights" not in {entry["title"] for entry in build_report(first)["assumptions"]}
    weights = first / "checkpoints" / "final.safetensors"
    second = train_it(room, config(room, weights=weights, trainable=("!conv1",)))
    before, after = (load_file(f / "checkpoints" / "final.safetensors") for f in (first, second))
    same = {name for name in before if torch.equal(before[name], after[name])}
    # in both runs parameters of the rest move, so that what is equal is what was loaded and frozen
    assert same == {name for name in before if name.startswith("conv1.")} != set()


def test_resuming_wants_the_same_weights_wherever_they_lie(room):
    path, _ = pretrained(room)

    class Stop(Exception):
        pass

    class AtTwo(run_module.Silent):
        def stepped(self, record, plan) -> None:
            if record.step == 2:
                raise Stop

    whole = config(room, trainable=("classifier",), weights=path)
    with pytest.raises(Stop):
        run(whole, out=room / "runs", command="x", splits=make_splits(), observer=AtTwo())
    folder = room / "runs" / "chaos"
    moved = path.rename(room / "moved.safetensors")
    elsewhere = config(room, trainable=("classifier",), weights=moved)
    pretrained(room)  # puts others in its place
    others = build_model(prepare(whole).spec, 1, 2, seed=78).state_dict()
    save_file(others, path)
    with pytest.raises(ConfigError, match=r"model\.weights is .* but was"):
        run(whole, out=room / "runs", command="x", splits=make_splits(), resume=folder)
    run(elsewhere, out=room / "runs", command="x", splits=make_splits(), resume=folder)
    assert (folder / "run.json").is_file()


# Files


def test_a_classifier_of_other_classes_starts_fresh_and_says_so(room, caplog):
    path, tensors = pretrained(room, classes=5)
    model = build_model(prepare(config(room)).spec, 1, 2, seed=1)
    kept = {name: t.clone() for name, t in model.state_dict().items()}
    with caplog.at_level(logging.WARNING):
        fresh = StartingWeights.read(path).put_into(model)
    assert fresh == ("classifier.weight", "classifier.bias")
    assert "classifier 'classifier' has another shape in public.safetensors" in caplog.text
    for name, t in model.state_dict().items():
        assert torch.equal(t, kept[name] if name in fresh else tensors[name]), name
    train_only(model, ["conv1"])
    with pytest.raises(ConfigError, match=r"so it must be learned; name it in model\.trainable"):
        StartingWeights.read(path).put_into(model)


def test_other_weights_are_refused_by_the_name_of_the_first_tensor_before_anything_is_spent(room):
    prepared = prepare(config(room))
    model = build_model(prepared.spec, 1, 2, seed=0)
    good = model.state_dict()
    name = sorted(good)[2]
    other = resolve_spec(ModelChoice("eqnet-xs"), (1, 8, 8), 2)
    cases = {
        "no_name": ({k: t for k, t in good.items() if k != name}, f"has no '{name}'"),
        "unknown": ({**good, "zzz": torch.zeros(1)}, "has 'zzz', which the network has not"),
        "shape": ({**good, name: torch.zeros(9, 9)}, rf"'{name}' is \[9, 9\] in .* and \[.*\] in the network"),
        "not_finite": ({**good, name: good[name] * torch.nan}, f"'{name}' in .* holds numbers that are not finite"),
        "network": (build_model(other, 1, 2, seed=0).state_dict(), "give weights of this very network"),
    }
    for label, (tensors, message) in cases.items():
        path = room / f"{label}.safetensors"
        save_file({k: t.contiguous() for k, t in tensors.items()}, path)
        with pytest.raises(ConfigError, match=message):
            train_it(room, config(room, weights=path))
    broken = room / "broken.safetensors"
    broken.write_bytes(b"\x80\x04pickle")
    with pytest.raises(ConfigError, match="is no safetensors file"):
        train_it(room, config(room, weights=broken))
    with pytest.raises(ConfigError, match=r"nowhere\.safetensors cannot be read \(No such file"):
        train_it(room, config(room, weights=room / "nowhere.safetensors"))
    assert not (room / "runs").exists(), "no run was begun"


# What a frozen part costs


@pytest.mark.parametrize("name", ["eqresnet9-small", "eqnet-xs", "vit-tiny"])
def test_nothing_is_watched_or_differentiated_before_the_first_trained_layer(name):
    spec = resolve_spec(ModelChoice(name, trainable=("classifier",)), (1, 28, 28), 2)
    model = build_model(spec, 1, 2, seed=0).train()
    seen = {}
    for layer_name, layer in model.named_modules():
        if layer_name and not list(layer.children()):
            layer.register_forward_hook(lambda _, given, out, name=layer_name: seen.update({name: (given[0], out)}))
    wrapped = UnitGradSampleModule(model)
    assert len(wrapped.autograd_grad_sample_hooks) == 1
    wrapped.backward(wrapped(torch.randn(4, 1, 28, 28)), torch.tensor([0, 1, 0, 1]))
    assert len(seen) > 10
    for layer_name, (given, out) in seen.items():
        assert not given.requires_grad, layer_name
        assert out.requires_grad == (layer_name == "classifier"), layer_name
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert all(p.grad is None and getattr(p, "grad_sample", None) is None for p in frozen)
    assert not any(getattr(layer, "activations", None) for layer in model.modules()), "nothing is kept"


def test_frozen_layers_behind_a_trained_one_keep_no_images():
    spec = resolve_spec(ModelChoice("eqnet-xs", trainable=("stem",)), (1, 28, 28), 2)
    model = build_model(spec, 1, 2, seed=0).train()
    wrapped = UnitGradSampleModule(model)
    wrapped.backward(wrapped(torch.randn(4, 1, 28, 28)), torch.tensor([0, 1, 0, 1]))
    norms = [layer for layer in model.modules() if isinstance(layer, EquivariantGroupNorm)]
    assert len(norms) > 3
    assert not any(layer._moments for layer in norms)


@pytest.mark.parametrize("pattern", ["stem", "stages.1", "*.bias"])
def test_gradients_are_exact_whichever_part_is_trained(pattern):
    spec = resolve_spec(ModelChoice("eqnet-xs", fields=(1, 2, 2), trainable=(pattern,)), (1, 12, 12), 3)
    model = build_model(spec, 1, 3, seed=0).double()
    x, y = torch.randn(6, 1, 12, 12, dtype=torch.float64), torch.tensor([0, 0, 1, 1, 2, 2])
    expected = unit_gradients_by_autograd(model, x, y, 2)
    wrapped = UnitGradSampleModule(model, 2)
    wrapped.backward(wrapped(x), y)
    found = {n: p.grad_sample for n, p in model.named_parameters() if p.requires_grad}
    assert found.keys() == expected.keys()
    largest = max(float(g.abs().max()) for g in expected.values())  # some vanish, by the norms that follow
    for n, g in found.items():
        assert float((g - expected[n]).abs().max()) <= 1e-9 * largest, n
