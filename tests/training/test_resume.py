"""Runs that die and go on: the same weights with a seed, lost steps without one."""

import json
from types import SimpleNamespace

import pytest
import torch
from resuming import STEPS, Crash, CrashAfter, crash, drawn, go, notes, weights
from safetensors.torch import load

from benchmarks.killable import SEED
from dpeq.privacy import randomness as randomness_module
from dpeq.privacy.ledger import read_ledger


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
