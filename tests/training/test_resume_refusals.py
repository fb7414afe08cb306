"""What is refused when a run is resumed, and named: other settings, data, ledgers, machines, sources."""

import json
from pathlib import Path

import pytest
import torch
from resuming import STEPS, crash, go, shorter, steps_on_disk, weights

import dpeq.training.run as run_module
from benchmarks.killable import SEED, make_config, make_splits
from dpeq.config import RunConfig
from dpeq.data.images import ImageSet
from dpeq.errors import ConfigError, DataError
from dpeq.privacy.ledger import Ledger
from dpeq.privacy.plan import PrivacyPlan
from dpeq.training import conditions, start

CHANGES = {
    "privacy.epsilon": ("privacy", "epsilon", 3.0),
    "privacy.max_grad_norm": ("privacy", "max_grad_norm", 2.0),
    "training.lr": ("training", "lr", 0.7),
    "training.seed": ("training", "seed", 8),
    "training.precision": ("training", "precision", "bf16"),
    "training.log_private_metrics": ("training", "log_private_metrics", True),
    "model.group": ("model", "group", "C2"),
    "augment.shift": ("augment", "shift", 1),
    "evaluation.weights": ("evaluation", "weights", "raw"),
}


@pytest.mark.parametrize("key", CHANGES)
def test_a_setting_that_the_result_depends_on_is_named(room, key):
    folder = crash(room, 5)
    before = (folder / "ledger.jsonl").read_bytes()
    section, name, value = CHANGES[key]
    values = make_config(room, steps=STEPS, seed=SEED).model_dump()
    values[section][name] = value
    with pytest.raises(ConfigError, match=rf"^{key} is {value!r} but was"):
        go(room, config=RunConfig.model_validate(values), resume=folder)
    assert (folder / "ledger.jsonl").read_bytes() == before
    go(room, resume=folder)  # the refusal left no lock behind


def test_what_only_says_where_and_how_fast_may_change(room, untouched):
    folder = crash(room, 5)
    values = make_config(room, steps=STEPS, seed=SEED).model_dump()
    values["training"] |= {"checkpoint_every": 1, "device": "cpu"}
    values["tracking"] |= {"mlflow_uri": "elsewhere"}
    go(room, config=RunConfig.model_validate(values), resume=folder)
    assert steps_on_disk(folder) == [11, 12]
    assert weights(folder) == untouched


def test_every_setting_is_either_compared_or_named_as_a_machine_key(room):
    """A key that is neither would let a repeated step be another one."""
    config = make_config(room, steps=STEPS, seed=SEED)
    prepared = run_module.prepare(config)
    compared = start.settings_of(config, prepared.card)
    for section, values in config.model_dump().items():
        for key in values if isinstance(values, dict) else [None]:
            name = section if key is None else f"{section}.{key}"
            free = name in start.MACHINE_KEYS or section in start.MACHINE_KEYS
            assert free != (name in compared or any(k.startswith(f"{name}.") for k in compared)), name
    assert compared["card.public_units"] == 32


def test_other_data_is_refused(room):
    folder = crash(room, 5)
    splits = make_splits()
    train = splits["train"]
    images = train.images.clone()
    images[3, 0, 2, 2] += 1e-6
    splits["train"] = ImageSet(images, train.labels, train.units, train.n_units, train.classes, "train", "image")
    with pytest.raises(DataError, match="data is not what it was"):
        go(room, splits=splits, resume=folder)
    (room / "runs" / ".fingerprint.key").unlink()
    with pytest.raises(ConfigError, match=r"no usable key .*\.fingerprint\.key"):
        go(room, resume=folder)


def test_another_plan_is_refused_by_field(room, plan):
    folder = crash(room, 5)
    values = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps({**values, "noise_multiplier": 0.5}))
    with pytest.raises(ConfigError, match="noise_multiplier"):
        go(room, resume=folder)


def of_another_run(ledger: Path, folder: Path) -> None:
    """Same plan, as many steps, an unbroken chain."""
    plan = PrivacyPlan.read(folder / "plan.json")
    ledger.unlink()
    with Ledger.create(ledger, plan) as other:
        other.note("start", sha256="0" * 64)
        for step in range(1, 10):
            other.spend(step)


def without_its_start(ledger: Path, folder: Path) -> None:
    plan = PrivacyPlan.read(folder / "plan.json")
    ledger.unlink()
    with Ledger.create(ledger, plan) as other:
        for step in range(1, 10):
            other.spend(step)


def begun_anew(ledger: Path, folder: Path) -> None:
    plan = PrivacyPlan.read(folder / "plan.json")
    ledger.unlink()
    Ledger.create(ledger, plan).close()


def with_another_past(ledger: Path, folder: Path) -> None:
    """The run's own start, an unbroken chain, enough steps; but not the one the checkpoint saw."""
    plan, own = PrivacyPlan.read(folder / "plan.json"), start.Start.read(folder)
    ledger.unlink()
    with Ledger.create(ledger, plan) as other:
        other.note("start", sha256=own.sha256)
        other.note("resume", checkpoint_step=0, ledger_steps=0, lost=0, repeated=0)
        for step in range(1, 10):
            other.spend(step)


def reordered(ledger: Path, folder: Path) -> None:
    lines = ledger.read_bytes().splitlines(keepends=True)
    lines[4], lines[5] = lines[5], lines[4]
    ledger.write_bytes(b"".join(lines))


def edited(ledger: Path, folder: Path) -> None:
    ledger.write_bytes(ledger.read_bytes().replace(b'"step":3}', b'"step":4}'))


def with_an_edited_start(ledger: Path, folder: Path) -> None:
    path = folder / "start.json"
    text = path.read_text()
    path.write_text(text.replace('"privacy.delta":0.001', '"privacy.delta":0.002'))
    assert path.read_text() != text


TAMPERED = {
    shorter: "ends at step 6, but .* holds a checkpoint of step 8: the ledger was cut or replaced",
    of_another_run: "does not belong to the start.json",
    without_its_start: "does not belong to the start.json",
    begun_anew: "ends at step 0, but .* holds a checkpoint of step 8",
    with_another_past: "its line of step 8 is another",
    reordered: "Line 5 of the ledger .* does not follow the line before",
    edited: "Line 5 of the ledger .* was changed",
    with_an_edited_start: "does not belong to the start.json",
}


@pytest.mark.parametrize("tamper", TAMPERED, ids=lambda f: f.__name__)
@pytest.mark.parametrize("seed", [SEED, None])
def test_a_ledger_that_was_changed_or_replaced_is_refused(room, tamper, seed):
    folder = crash(room, 9, seed=seed)
    tamper(folder / "ledger.jsonl", folder)
    with pytest.raises(DataError, match=TAMPERED[tamper]):
        go(room, seed=seed, resume=folder)


def test_a_short_ledger_is_noticed_even_if_the_newest_checkpoint_is_damaged(room):
    folder = crash(room, 9)
    (folder / "checkpoints" / "step-000008.safetensors").write_bytes(b"")
    shorter(folder / "ledger.jsonl", folder)
    with pytest.raises(DataError, match="ends at step 6"):
        go(room, resume=folder)


def test_a_checkpoint_of_another_run_is_refused(room):
    folder = crash(room, 9)
    other = room / "other"
    other.mkdir()
    foreign = crash(other, 9) / "checkpoints" / "step-000008.safetensors"  # same seed, plan, data and settings
    (folder / "checkpoints" / "step-000008.safetensors").write_bytes(foreign.read_bytes())
    with pytest.raises(DataError, match=r"belongs to another run \(run differs\)"):
        go(room, resume=folder)


def test_steps_are_not_repeated_by_another_version_of_the_code(room, monkeypatch):
    folder = crash(room, 6)
    with monkeypatch.context() as patch:
        patch.setattr(conditions.dpeq, "__version__", "99")
        with pytest.raises(ConfigError, match=r"repeat 2 steps, but dpeq is 99"):
            go(room, resume=folder)
    secure = room / "secure"
    secure.mkdir()
    folder = crash(secure, 6, seed=None)
    monkeypatch.setattr(conditions.dpeq, "__version__", "99")
    go(secure, seed=None, resume=folder)  # nothing is repeated


def on(room: Path, **training) -> RunConfig:
    values = make_config(room, steps=STEPS, seed=SEED).model_dump()
    values["training"] |= training
    return RunConfig.model_validate(values)


MACHINES = {
    "training.physical_units": ({"physical_units": 3}, {}, "3 and was 16"),
    "training.threads": ({"threads": 2}, {}, "2 and was 1"),
    "the number of processes": ({}, {"the number of processes": 2}, "2 and was 1"),
    "training.device": ({}, {"training.device": "cuda (x)"}, r"cuda \(x\) and was cpu \(.+\)"),
}


@pytest.mark.parametrize("name", MACHINES)
def test_steps_are_not_repeated_where_sums_round_otherwise(room, monkeypatch, untouched, name):
    training, changes, was = MACHINES[name]
    real = conditions.machine_of
    elsewhere = room / "elsewhere"
    elsewhere.mkdir()
    for place, step in ((room, 6), (elsewhere, 8)):
        folder = crash(place, step)
        before = (folder / "ledger.jsonl").read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(run_module, "machine_of", lambda *given: real(*given) | changes)
            if step == 6:
                with pytest.raises(ConfigError, match=rf"repeat 2 steps, but {name} is {was} when they were taken"):
                    go(place, config=on(place, **training), resume=folder)
                assert (folder / "ledger.jsonl").read_bytes() == before
            else:
                go(place, config=on(place, **training), resume=folder)  # nothing is repeated
    torch.set_num_threads(1)
    go(room, resume=room / "runs" / "chaos")
    assert weights(room / "runs" / "chaos") == untouched


def test_what_counts_is_the_machine_that_took_the_steps(room):
    folder = crash(room, 4)
    crash(room, 6, config=on(room, physical_units=3), resume=folder)
    with pytest.raises(ConfigError, match="physical_units is 16 and was 3 when they were taken; resume with the old"):
        go(room, resume=folder)
    (folder / "checkpoints" / "step-000004.safetensors").write_bytes(b"")
    for units in (3, 16):  # the steps up to 4 were taken with 16 and those behind with 3
        with pytest.raises(ConfigError, match=rf"physical_units is {units} and was 16 and later 3 .*newer checkpoint"):
            go(room, config=on(room, physical_units=units), resume=folder)


def test_steps_of_a_foreign_network_are_not_repeated_by_another_source(room, monkeypatch):
    (room / "strange_layers.py").write_text("from torch import nn\n\n\nclass Odd(nn.Flatten):\n    pass\n")
    (room / "strangers.py").write_text(
        "from torch import nn\n\nimport strange_layers\n\n\ndef build(in_channels, num_classes):\n"
        "    return nn.Sequential(strange_layers.Odd(), nn.Linear(64, num_classes))\n"
    )
    monkeypatch.syspath_prepend(str(room))
    values = make_config(room, steps=STEPS, seed=SEED).model_dump()
    values["model"] = {"name": "strangers.build"}
    config = RunConfig.model_validate(values)
    folder = crash(room, 6, config=config)
    for name in ("strangers.py", "strange_layers.py"):
        text = (room / name).read_text()
        (room / name).write_text(text + "# changed\n")
        with pytest.raises(
            ConfigError, match=r"repeat 2 steps, but the source of strangers\.build is [0-9a-f]{64} and"
        ):
            go(room, config=config, resume=folder)
        (room / name).write_text(text)
    go(room, config=config, resume=folder)


def test_a_network_without_a_source_is_never_repeated(monkeypatch):
    made = type("Made", (torch.nn.Linear,), {"__module__": "nowhere"})
    monkeypatch.setattr(conditions, "import_callable", lambda path: made)
    versions = conditions.code_versions(made(2, 2), "nowhere.Made")
    assert versions["the source of nowhere.Made"] == "unknown"
    with pytest.raises(ConfigError, match=r"the source of nowhere\.Made is unknown"):
        conditions.refuse_another_repetition(2, (versions, versions), ([], {}))
    assert conditions.code_versions(torch.nn.Linear(2, 2)).keys() == {"dpeq", "torch", "numpy"}
