"""Resuming from the command line, signals and exit codes."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from resuming import STEPS, crash, go, weights

import dpeq.training.run as run_module
from benchmarks.killable import SEED, make_config, make_splits
from dpeq.cli import main
from dpeq.config import load_config, write_config
from dpeq.interruption import GracefulStop
from dpeq.privacy.accounting import epsilon_rdp
from dpeq.privacy.ledger import read_ledger
from dpeq.reporting.model import build_report


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
    assert report["ledger"]["notes"] == {"end": 1, "resume": 1, "start": 1}
    assert report["provenance"]["command"] == "dpeq train <path>"
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
