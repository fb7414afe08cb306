"""Runs that stop and go on: the same weights with a seed, lost steps without one, and what is refused."""

import json
import math
import os
import signal
import stat
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load

import dpeq.training.run as run_module
from benchmarks.killable import SEED, make_config, make_plan, make_splits
from dpeq.cli import main
from dpeq.config import RunConfig, load_config, write_config
from dpeq.data.images import ImageSet
from dpeq.errors import BudgetError, ConfigError, DataError
from dpeq.interruption import GracefulStop
from dpeq.privacy import randomness as randomness_module
from dpeq.privacy.accounting import epsilon_rdp
from dpeq.privacy.ledger import Ledger, read_ledger
from dpeq.privacy.plan import PrivacyPlan
from dpeq.reporting.model import build_report
from dpeq.training import conditions, files, start
from dpeq.training.checkpoint import read
from dpeq.training.files import RunWriteError
from dpeq.training.resume import Keeper
from dpeq.training.run import Interrupted, Silent, run

STEPS = 12


@pytest.fixture(scope="session")
def plan() -> PrivacyPlan:
    return make_plan(STEPS)


@pytest.fixture
def room(tmp_path, plan, monkeypatch) -> Path:
    real = run_module.make_plan
    monkeypatch.setattr(run_module, "make_plan", lambda p: real(p) if math.isinf(p.config.privacy.epsilon) else plan)
    return tmp_path


class Crash(Exception):
    """What stands in for SIGKILL: nothing in dpeq catches it."""


class CrashAfter(Silent):
    """Training dies after so many steps, checkpoint or not."""

    def __init__(self, step: int) -> None:
        self.at = step

    def stepped(self, record, plan) -> None:
        if record.step == self.at:
            raise Crash


def go(room: Path, *, seed: int | None = SEED, splits=None, config=None, **options) -> Path:
    """One process of training; resumes what ``resume`` names."""
    config = config or make_config(room, steps=STEPS, seed=seed)
    return run(config, out=room / "runs", command="test", splits=splits or make_splits(), **options).folder


def crash(room: Path, step: int, **options) -> Path:
    """A run that died in step ``step``, after it was taken."""
    with pytest.raises(Crash):
        go(room, observer=CrashAfter(step), **options)
    return room / "runs" / "chaos"


def weights(folder: Path) -> bytes:
    return b"".join((folder / "checkpoints" / f"{name}.safetensors").read_bytes() for name in ("final", "raw"))


def steps_on_disk(folder: Path) -> list[int]:
    return sorted(int(p.stem[5:]) for p in (folder / "checkpoints").glob("step-*"))


@pytest.fixture(scope="session")
def untouched(tmp_path_factory, plan) -> bytes:
    """The weights of a run that nothing happened to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "make_plan", lambda prepared: plan)
        folder = go(tmp_path_factory.mktemp("untouched"))
    return weights(folder)


def notes(folder: Path) -> list[dict]:
    entries = read_ledger(folder / "ledger.jsonl")
    chain = ("kind", "prev", "check", "machine")
    return [{k: v for k, v in e.items() if k not in chain} for e in entries if e["kind"] == "resume"]


@pytest.mark.parametrize("step", [1, 4, 6, 11, 12])
def test_with_a_seed_a_resumed_run_ends_in_the_same_weights(room, untouched, step):
    folder = crash(room, step)
    assert go(room, resume=folder) == folder
    assert weights(folder) == untouched
    entries = read_ledger(folder / "ledger.jsonl")
    assert [e["step"] for e in entries if e["kind"] == "step"] == list(range(1, STEPS + 1))
    reached = step - step % 4
    if step < 12:  # the crash comes after the checkpoint of its step
        assert notes(folder) == [
            {"checkpoint_step": reached, "ledger_steps": step, "lost": 0, "repeated": step - reached}
        ]
    record = json.loads((folder / "run.json").read_text())
    assert (record["resumed"], record["steps_lost"]) == (1, 0)


def drawn(monkeypatch) -> list[tuple[int, bytes]]:
    """Every step whose noise is drawn from now on, with the stream it is drawn from."""
    found: list[tuple[int, bytes]] = []
    stream = randomness_module.Randomness.stream

    def watched(self, use, step):
        if use == "noise":
            found.append((step, stream(self, use, step).words(2).tobytes()))
        return stream(self, use, step)

    monkeypatch.setattr(randomness_module.Randomness, "stream", watched)
    return found


def test_without_a_seed_steps_after_the_checkpoint_are_lost_and_never_taken_again(room, monkeypatch):
    releases = drawn(monkeypatch)
    folder = crash(room, 6, seed=None)
    before = load((folder / "checkpoints" / "step-000004.safetensors").read_bytes())
    folder = crash(room, 9, seed=None, resume=folder)
    go(room, seed=None, resume=folder)
    assert [step for step, _ in releases] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    assert len(set(releases)) == STEPS
    assert notes(folder) == [
        {"checkpoint_step": 4, "ledger_steps": 6, "lost": 2, "repeated": 0},
        {"checkpoint_step": 8, "ledger_steps": 9, "lost": 1, "repeated": 0},
    ]
    record = json.loads((folder / "run.json").read_text())
    assert (record["resumed"], record["steps_lost"], record["rng"]) == (2, 3, "os")
    last = load((folder / "checkpoints" / "step-000012.safetensors").read_bytes())
    assert int(before["averaged.n_averaged"]) == 4
    assert int(last["averaged.n_averaged"]) == STEPS - 3, "what is lost is in no weight"


def test_with_a_seed_the_noise_of_repeated_steps_is_the_same_release(room, monkeypatch):
    releases = drawn(monkeypatch)
    folder = crash(room, 6)
    go(room, resume=folder)
    assert [step for step, _ in releases] == [1, 2, 3, 4, 5, 6, 5, 6, 7, 8, 9, 10, 11, 12]
    assert len(set(releases)) == STEPS


@pytest.mark.parametrize("seed", [SEED, None])
def test_a_torn_line_counts_as_spent(room, monkeypatch, seed):
    """The disk had promised to keep the line; its step was taken."""
    releases = drawn(monkeypatch)
    folder = crash(room, 7, seed=seed)
    ledger = folder / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes()[:-20])
    assert read_ledger(ledger).steps == 6
    with pytest.raises(Crash):
        go(room, seed=seed, resume=folder, observer=CrashAfter(5 if seed is not None else 8))
    assert read_ledger(ledger).steps >= len(set(releases)), "also while the step is not reached again"
    go(room, seed=seed, resume=folder)
    assert len(set(releases)) <= STEPS
    assert [step for step, _ in releases].count(7) == (1 if seed is None else 2)


@pytest.mark.parametrize("seed", [SEED, None])
def test_a_damaged_checkpoint_is_skipped_and_said(room, untouched, caplog, seed):
    folder = crash(room, 10, seed=seed)
    newest = folder / "checkpoints" / "step-000008.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    go(room, seed=seed, resume=folder)
    assert f"{newest} is skipped" in caplog.text
    (note,) = notes(folder)
    assert (note["checkpoint_step"], note["ledger_steps"]) == (4, 10)
    if seed is not None:
        assert weights(folder) == untouched


@pytest.mark.parametrize("seed", [SEED, None])
def test_without_any_checkpoint_a_run_begins_again_from_its_initial_weights(room, untouched, seed):
    folder = crash(room, 3, seed=seed)
    initial = load((folder / "checkpoints" / "step-000000.safetensors").read_bytes())
    for path in (folder / "checkpoints").iterdir():
        path.write_bytes(b"")
    with pytest.raises(Crash):
        go(room, seed=seed, resume=folder, observer=CrashAfter(1 if seed is not None else 4))
    again = load((folder / "checkpoints" / "step-000000.safetensors").read_bytes())
    assert all(torch.equal(initial[name], again[name]) for name in initial), "of its own, not of a new key"
    go(room, seed=seed, resume=folder)
    assert notes(folder)[0] == {
        "checkpoint_step": 0, "ledger_steps": 3, "lost": 0 if seed else 3, "repeated": 3 if seed else 0,
    }  # fmt: skip
    if seed is not None:
        assert weights(folder) == untouched


def test_the_key_of_a_secure_run_is_nowhere_and_a_resumed_one_has_another(room, monkeypatch):
    keys = [bytes(range(1, 33)), bytes(range(101, 133))]
    given = iter(keys)
    monkeypatch.setattr(randomness_module, "secrets", SimpleNamespace(token_bytes=lambda n: next(given)))
    releases = drawn(monkeypatch)
    folder = crash(room, 6, seed=None)
    go(room, seed=None, resume=folder)
    expected = [randomness_module.Randomness(None, 0, keys[step > 6]) for step in range(1, 13)]
    del releases[12:]
    streams = [r.stream("noise", step).words(2).tobytes() for step, r in enumerate(expected, start=1)]
    assert [noise for _, noise in releases[:12]] == streams
    for path in room.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for key in keys:
                assert key not in content
                assert key.hex().encode() not in content.lower()


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


def shorter(ledger: Path, folder: Path) -> None:
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:-3]))


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


def test_what_there_is_nothing_to_resume_in_is_said(room):
    with pytest.raises(ConfigError, match="no run folder"):
        go(room, resume=room / "nowhere")
    folder = go(room)
    with pytest.raises(ConfigError, match="is finished; 'dpeq report"):
        go(room, resume=folder)
    (folder / "run.json").unlink()
    (folder / "ledger.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"has no ledger\.jsonl"):
        go(room, resume=folder)
    (folder / "start.json").unlink()
    with pytest.raises(ConfigError, match=r"has no start\.json"):
        go(room, resume=folder)


def test_only_the_owner_can_read_a_run_whatever_the_umask(room):
    old = os.umask(0)
    try:
        folder = go(room)
    finally:
        os.umask(old)
    files_ = [path for path in folder.rglob("*") if path.is_file()]
    assert {"config.yaml", "plan.json", "start.json", "ledger.jsonl", "run.json"} <= {path.name for path in files_}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files_} == {0o600}


def test_a_second_process_is_refused(room, plan):
    folder = crash(room, 5)
    with Ledger.open(folder / "ledger.jsonl", plan), pytest.raises(ConfigError, match="another process"):
        go(room, resume=folder)
    go(room, resume=folder)


def test_leftovers_of_a_crash_are_removed(room):
    folder = crash(room, 5)
    leftovers = [folder / "checkpoints" / ".step-000008.safetensors.part", folder / ".run.json.part"]
    leftovers.append(folder / ".ledger-abc")
    for path in leftovers:
        path.write_bytes(b"half")
    go(room, resume=folder)
    assert not any(path.exists() for path in leftovers)
    assert {stat.S_IMODE(p.stat().st_mode) for p in (folder / "checkpoints").iterdir()} == {0o600}


def test_a_crash_before_the_ledger_knew_its_run_is_mended(room, monkeypatch, untouched):
    def die(self, ledger):
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(start.Start, "check_ledger", die)
        with pytest.raises(Crash):
            go(room)
    folder = room / "runs" / "chaos"
    assert len(read_ledger(folder / "ledger.jsonl")) == 1
    go(room, resume=folder)
    assert weights(folder) == untouched


def test_a_plan_with_less_noise_does_not_slip_in_before_the_ledger_knew_its_run(room, monkeypatch, plan):
    def die(self, ledger):
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(start.Start, "check_ledger", die)
        with pytest.raises(Crash):
            go(room)
    folder = room / "runs" / "chaos"
    other = replace(plan, noise_multiplier=plan.noise_multiplier / 10)
    (folder / "ledger.jsonl").unlink()
    other.write(folder / "plan.json")
    Ledger.create(folder / "ledger.jsonl", other).close()
    with pytest.raises(DataError, match=r"begun under another plan than the start\.json"):
        go(room, resume=folder)


def test_a_crash_while_evaluating_costs_nothing(room, monkeypatch, untouched):
    def die(*arguments):
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "_score", die)
        with pytest.raises(Crash):
            go(room)
    folder = room / "runs" / "chaos"
    assert go(room, resume=folder) == folder
    assert weights(folder) == untouched
    assert build_report(folder)["ledger"]["notes"] == {"resume": 1, "start": 1}


def test_the_last_step_has_a_checkpoint_whatever_their_distance(room, monkeypatch):
    """Without one, a secure run that dies while it evaluates would lose what it trained last."""

    def die(*arguments):
        raise Crash

    values = make_config(room, steps=STEPS, seed=None, checkpoint_every=5)
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "_score", die)
        with pytest.raises(Crash):
            go(room, config=values)
    folder = room / "runs" / "chaos"
    assert steps_on_disk(folder) == [10, 12]
    go(room, config=values, resume=folder)
    assert json.loads((folder / "run.json").read_text())["steps_lost"] == 0


def test_a_full_disk_stops_a_run_that_can_go_on_later(room, monkeypatch, untouched):
    real = files.write_durably

    def full(path, data):
        if path.name == "step-000008.safetensors":
            raise OSError(28, "No space left on device")
        real(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_durably", full)
        with pytest.raises(RunWriteError, match="No space left on device"):
            go(room)
    folder = room / "runs" / "chaos"
    assert steps_on_disk(folder) == [0, 4]
    go(room, resume=folder)
    assert weights(folder) == untouched


def test_a_ledger_that_cannot_be_written_stops_the_run(room, monkeypatch, untouched):
    real, calls = Ledger.spend, []

    def spend(self, step):
        if step == 6:
            calls.append(step)
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(5, "Input/output error")))
                real(self, step)
        real(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "spend", spend)
        with pytest.raises(BudgetError, match="Input/output error"):
            go(room)
    assert calls == [6]
    folder = room / "runs" / "chaos"
    go(room, resume=folder)
    assert weights(folder) == untouched


def test_stopping_writes_a_checkpoint_of_that_moment(room, untouched):
    taken = []

    class Count(Silent):
        def stepped(self, record, plan):
            taken.append(record.step)

    @contextmanager
    def stop_after_6(folder):
        yield lambda: len(taken) >= 6

    with pytest.raises(Interrupted, match=r"after step 6 of 12; go on with 'dpeq train --resume .*chaos'"):
        go(room, observer=Count(), interruptible=stop_after_6)
    folder = room / "runs" / "chaos"
    assert steps_on_disk(folder) == [4, 6]
    go(room, resume=folder)
    assert notes(folder) == [{"checkpoint_step": 6, "ledger_steps": 6, "lost": 0, "repeated": 0}]
    assert weights(folder) == untouched


def test_stopping_behind_damaged_checkpoints_keeps_its_own_and_names_it(room, untouched):
    folder = crash(room, 9)
    for path in (folder / "checkpoints").glob("step-*"):
        path.write_bytes(b"damaged")
    taken = []

    class Count(Silent):
        def stepped(self, record, plan):
            taken.append(record.step)

    @contextmanager
    def stop_after_3(folder):
        yield lambda: len(taken) >= 3

    with pytest.raises(Interrupted, match=r"after step 3 of 12"):
        go(room, resume=folder, observer=Count(), interruptible=stop_after_3)
    assert {int(p.stem[5:]) for p in (folder / "checkpoints").glob("step-*.safetensors")} == {0, 3}
    shorter(folder / "ledger.jsonl", folder)  # three lines: a resume and two steps
    with pytest.raises(DataError, match=r"ends at step 7, but .* step 8"):
        go(room, resume=folder)


def test_neither_of_two_checkpoints_tells_what_one_step_took(room, monkeypatch):
    monkeypatch.setattr(Keeper, "seconds", 1234.567)
    folder = crash(room, 5)
    assert {c.seconds for c in map(read, (folder / "checkpoints").glob("step-*"))} == {1200.0}


def test_a_network_that_is_refused_leaves_no_folder(room):
    values = make_config(room, steps=STEPS, seed=SEED).model_dump()
    values["model"] = {"name": "monai.networks.nets.DenseNet121"}
    with pytest.raises(ConfigError):
        go(room, config=RunConfig.model_validate(values))
    assert not (room / "runs").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals(number):
    before = signal.getsignal(number)
    with GracefulStop() as stop:
        with stop(Path("runs/x")) as should_stop:
            assert not should_stop()
            os.kill(os.getpid(), number)
            assert should_stop()
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
        assert (stop.exit_code, stop.folder) == (128 + number, Path("runs/x"))
        with pytest.raises(KeyboardInterrupt):  # outside training nothing is worth waiting for
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def dpeq(*words: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["dpeq", *words])
        with pytest.raises(SystemExit) as exit_:
            main()
    return exit_.value.code or 0


@pytest.fixture
def shell(room, monkeypatch):
    """A folder to type in; the data is made up instead of read."""
    monkeypatch.chdir(room)
    monkeypatch.setattr(run_module, "load_data", lambda prepared, progress: make_splits())
    write_config(make_config(room, steps=STEPS, seed=SEED), room / "recipe.yaml")
    return room


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_line_stops_says_how_to_go_on_and_does(shell, monkeypatch, capfd, untouched, number):
    from dpeq.console import RichObserver

    def stepped(self, record, plan):
        if record.step == 5:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(RichObserver, "stepped", stepped)
        assert dpeq("train", "recipe.yaml") == 128 + number
    said = capfd.readouterr().err
    assert "Stopped after step 5 of 12; go on with 'dpeq train --resume runs/chaos'." in said
    assert "once more to leave at once" in said
    assert dpeq("train", "--resume", "runs/chaos", "training.checkpoint_every=3") == 0
    assert weights(shell / "runs" / "chaos") == untouched
    report = json.loads((shell / "privacy_reports" / "chaos" / "report.json").read_text())
    assert report["ledger"]["notes"] == {"resume": 1, "start": 1}
    assert report["provenance"]["command"] == "dpeq train recipe.yaml"
    capfd.readouterr()
    assert dpeq("train", "--resume", "runs/chaos") == 2
    assert "is finished" in capfd.readouterr().err


def test_a_second_signal_leaves_at_once(shell, monkeypatch, capfd, untouched):
    from dpeq.training.state import TrainingState

    real = TrainingState.apply

    def apply(self, step, total):
        if step == 6:  # noise is drawn, weights are not yet changed
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        real(self, step, total)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "apply", apply)
        assert dpeq("train", "recipe.yaml") == 130
    assert "Interrupted; go on with 'dpeq train --resume runs/chaos'." in capfd.readouterr().err
    assert read_ledger(shell / "runs" / "chaos" / "ledger.jsonl").steps == 6
    assert dpeq("train", "--resume", "runs/chaos") == 0
    assert weights(shell / "runs" / "chaos") == untouched


REFUSED = {
    "a setting": (["training.lr=0.7"], "training.lr is 0.7 but was 0.5"),
    "a configuration": (["recipe.yaml"], "leave 'recipe.yaml' out"),
    "another folder": (["--runs", "elsewhere"], "leave --runs out"),
    "a key that is none": (["training.lrr=1"], "did you mean 'lr'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_command_line_refuses(shell, capfd, case):
    crash(shell, 5)
    words, sentence = REFUSED[case]
    assert dpeq("train", "--resume", "runs/chaos", *words) == 2
    assert sentence in capfd.readouterr().err


def test_neither_a_configuration_nor_a_run(shell, capfd):
    assert dpeq("train") == 2
    assert "give a CONFIG, or --resume RUN" in capfd.readouterr().err
    assert dpeq("train", "--resume", "runs/none") == 2
    assert "no run folder runs/none" in capfd.readouterr().err


def test_a_resumed_run_brings_its_baseline(shell):
    crash(shell, 5)
    assert dpeq("train", "--resume", "runs/chaos", "--baseline") == 0
    assert json.loads((shell / "runs" / "chaos-nonprivate" / "run.json").read_text())["non_private"]


def test_the_configuration_of_a_run_reads_back(room):
    folder = crash(room, 5)
    assert load_config(folder / "config.yaml") == make_config(room, steps=STEPS, seed=SEED)


def test_epsilon_after_a_resumed_run_is_that_of_all_steps(room, plan):
    folder = crash(room, 6, seed=None)
    go(room, seed=None, resume=folder)
    spent = build_report(folder)["guarantee"]["epsilon"]
    assert spent >= epsilon_rdp(plan.sample_rate, plan.noise_multiplier, STEPS, plan.delta)
