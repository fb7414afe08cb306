"""Child processes of a sweep, played by a small script: what becomes of each, and of all when the sweep is stopped."""

import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from finished_runs import cell_config

from dpeq.sweep import pool
from dpeq.sweep.grid import Cell

ACTOR = """
import json, os, signal, sys, time
task = json.loads(sys.stdin.readline())
name = task["config"]["name"]
def tell(**answer):
    os.write(1, (json.dumps(answer) + "\\n").encode())
asked = []
def stopped(*_):
    asked.append(1)
print("for the log:", task["command"], os.environ["OMP_NUM_THREADS"], file=sys.stderr)
if name == "slow":
    signal.signal(signal.SIGTERM, stopped)
tell(stage="Training")
tell(step=1, steps=4, epsilon=None if task["config"]["privacy"]["epsilon"] == "inf" else 0.5, speed=100.0)
if name == "slow":  # ends its step first, and is not to be asked twice
    while not asked:
        time.sleep(0.02)
    time.sleep(0.7)
    tell(stopped="Stopped after step 1 of 4.")
    print("asked", len(asked), file=sys.stderr)
    sys.exit(143)
elif name == "refused":
    tell(error="The data is not there; bring it.")
    sys.exit(3)
elif name == "silent":
    sys.exit(7)
elif name == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
elif name == "deaf":
    time.sleep(60)
tell(done={"auc": 0.9})
"""


class Listener:
    def __init__(self):
        self.heard, self.running, self.most = [], 0, 0

    def began(self, cell):
        self.running += 1
        self.most = max(self.most, self.running)

    def staged(self, cell, stage):
        self.heard.append((cell.name, stage))

    def stepped(self, cell, step, steps, epsilon, speed):
        self.heard.append((cell.name, step, steps, epsilon, speed))

    def ended(self, ended):
        self.running -= 1


@pytest.fixture
def play(tmp_path, monkeypatch):
    """Runs cells of these names; a name that ends in -inf has no privacy."""
    monkeypatch.setattr(pool, "_WORKER", (sys.executable, "-S", "-c", ACTOR))

    def run(names, *, workers=2, should_stop=lambda: False):
        listener = Listener()
        cells = []
        for name in names:
            epsilon = float("inf") if name.endswith("-inf") else 8.0
            cells.append(Cell(name, "model", epsilon, 1, (), cell_config(tmp_path, name, epsilon)))
        ended = pool.run_cells(
            cells,
            out=tmp_path,
            reports=tmp_path,
            logs=tmp_path,
            commands=lambda cell: f"dpeq train {cell.name}",
            workers=workers,
            threads=3,
            audience=listener,
            should_stop=should_stop,
        )
        return SimpleNamespace(ended={one.cell.name: one for one in ended}, listener=listener, logs=tmp_path)

    return run


def test_one_failure_leaves_the_others_alone(play):
    played = play(["first", "refused", "silent", "killed", "last-inf"])
    ended = played.ended
    assert {name: (one.auc, one.stopped) for name, one in ended.items() if one.error is None} == {
        "first": (0.9, False),
        "last-inf": (0.9, False),
    }
    assert ended["refused"].error.startswith("The data is not there; bring it. (log: ")
    assert ended["silent"].error.startswith("Its process ended with exit code 7 without a word.")
    assert ended["killed"].error.startswith("Its process ended by SIGKILL without a word.")
    assert played.listener.most == 2
    assert ("first", "Training") in played.listener.heard
    assert ("first", 1, 4, 0.5, 100.0) in played.listener.heard
    assert ("last-inf", 1, 4, None, 100.0) in played.listener.heard
    log = played.logs / "refused.log"
    assert log.read_text() == "for the log: dpeq train refused 3\n"
    assert log.stat().st_mode & 0o077 == 0


def test_stopping_asks_every_child_once_and_begins_no_other(play):
    asked = iter([False, False, True, True, True])
    played = play(["slow", "slow", "never"], should_stop=lambda: next(asked, True))
    assert [one.stopped for one in played.ended.values()] == [True]
    assert "never" not in played.ended
    assert (played.logs / "slow.log").read_text().count("asked 1\n") == 2


def test_a_child_that_had_nothing_to_end_was_stopped_and_did_not_fail(play):
    began = time.monotonic()
    played = play(["deaf"], should_stop=lambda: time.monotonic() > began + 0.6)
    assert (played.ended["deaf"].stopped, played.ended["deaf"].error) == (True, None)


def test_a_second_signal_ends_all_children(play, monkeypatch):
    children = []
    start = pool._start

    def watched(*arguments):
        children.append(start(*arguments))
        return children[-1]

    monkeypatch.setattr(pool, "_start", watched)

    def interrupt():
        if children:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        play(["deaf", "deaf"], should_stop=interrupt)
    assert len(children) == 2
    assert all(child.process.poll() is not None for child in children)


def test_a_worker_stops_when_its_sweep_is_gone(tmp_path):
    """The end of standard input is all that a killed parent leaves; the run is not even begun here."""
    config = cell_config(tmp_path, "cell", 8.0).model_dump(mode="json")
    task = {"config": config, "out": str(tmp_path / "runs"), "reports": str(tmp_path / "reports"), "command": "dpeq"}
    done = subprocess.run(
        [sys.executable, "-m", "dpeq.sweep.worker"],
        input=json.dumps(task) + "\n",
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 143
    assert "stopped" in json.loads(done.stdout.splitlines()[-1])
    assert not (tmp_path / "runs" / "cell" / "ledger.jsonl").exists()
