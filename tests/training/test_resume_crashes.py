"""Crashes between two files, full disks, stops on request: nothing is lost that was written."""

import json
import os
import stat
from contextlib import contextmanager
from dataclasses import replace

import pytest
from resuming import STEPS, Crash, crash, go, notes, shorter, steps_on_disk, weights

import dpeq.training.run as run_module
from benchmarks.killable import SEED, make_config
from dpeq.config import RunConfig
from dpeq.errors import BudgetError, ConfigError, DataError
from dpeq.privacy.ledger import Ledger, read_ledger
from dpeq.reporting.model import build_report
from dpeq.training import files, start
from dpeq.training.checkpoint import read
from dpeq.training.files import RunWriteError
from dpeq.training.resume import Keeper
from dpeq.training.run import Interrupted, Silent


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


def test_who_needs_one_very_folder_gets_it_or_an_error(room):
    folder = go(room, exact_folder=True)
    assert folder == room / "runs" / "chaos"
    with pytest.raises(ConfigError, match=r"something at .*chaos already"):
        go(room, exact_folder=True)
    assert [path.name for path in folder.parent.glob("[!.]*")] == ["chaos"]
    assert go(room).name == "chaos-2"


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
        patch.setattr(run_module, "score", die)
        with pytest.raises(Crash):
            go(room)
    folder = room / "runs" / "chaos"
    assert go(room, resume=folder) == folder
    assert weights(folder) == untouched
    assert build_report(folder)["ledger"]["notes"] == {"end": 1, "resume": 1, "start": 1}


def test_the_last_step_has_a_checkpoint_whatever_their_distance(room, monkeypatch):
    """Without one, a secure run that dies while it evaluates would lose what it trained last."""

    def die(*arguments):
        raise Crash

    values = make_config(room, steps=STEPS, seed=None, checkpoint_every=5)
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "score", die)
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
