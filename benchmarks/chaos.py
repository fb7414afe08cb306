"""Kills training again and again, resumes it, and counts: does the ledger ever say less than was done?

    python -m benchmarks.chaos --json

A small private run on made-up images is started, killed by SIGKILL, and resumed until it is done; then the next one.
Some kills come from outside at a random time. The others come at a chosen call: before, in the middle of (half of the
bytes written) or after a write, an fsync or a rename of the ledger, a checkpoint or another file of the run, or right
after a step's noise was drawn. Sometimes the ledger's last line is cut at a random byte before resuming, as by a disk
that broke its promise, and twice the disk is full.

What was truly done is counted apart from the ledger: whenever the noise of a step is drawn, the driver appends the step
and the first bytes of the noise's stream to a file of its own. Different pairs are different releases. After every kill
epsilon of the ledger's steps must be at least epsilon of that many; ``under_reported`` counts where it was not. Runs
with a seed must end in the weights, to the last bit, of a run that nobody touched: ``bit_identical``.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import random
import resource
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.killable import SEED, Moment, Trial, make_plan, make_splits
from dpeq.privacy import accounting
from dpeq.privacy.ledger import read_ledger


def random_moment(dice: random.Random, left: int, seconds: float) -> Moment:
    """Half of them by the clock, half at a call; spread over what is left of the run."""
    if dice.random() < 0.4:
        return Moment("time", seconds=dice.uniform(0.0, seconds))
    late = dice.randint(1, max(1, left // 3))
    seldom = dice.randint(1, 3)
    return dice.choice([
        Moment("noise", count=late),
        Moment("write", "ledger", dice.choice(["before", "middle", "after"]), late),
        Moment("fsync", "ledger", dice.choice(["before", "after"]), late),
        Moment("write", "checkpoints/.step-", dice.choice(["before", "middle", "after"]), seldom),
        Moment("fsync", "checkpoints/.step-", dice.choice(["before", "after"]), seldom),
        Moment("replace", "checkpoints/.step-", dice.choice(["before", "after"]), seldom),
        Moment("fsync", "checkpoints", dice.choice(["before", "after"]), seldom),
        Moment(dice.choice(["write", "fsync"]), "", dice.choice(["before", "after"]), 2 * late),
        Moment("replace", "", dice.choice(["before", "after"]), seldom),
        Moment("link", "", dice.choice(["before", "after"])),
    ])  # fmt: skip


class Harness:
    """Kills, resumes and counts."""

    def __init__(self, steps: int, seed: int) -> None:
        self.steps = steps
        self.dice = random.Random(seed)
        self.plan = make_plan(steps)
        self.curve = dict(accounting.epsilon_curve(self.plan, steps + 1))
        self.splits = make_splits()
        self.rows: list[dict[str, Any]] = []
        self.identical: list[bool] = []

    def trial(self, room: Path, seed: int | None, *, runs: Path | None = None, **options: Any) -> Trial:
        room.mkdir()
        return Trial(room, runs or room / "runs", self.steps, seed, self.plan, self.splits, **options)

    def reference(self, room: Path) -> tuple[bytes, float]:
        """The weights of a run that nobody touches, and its seconds."""
        trial = self.trial(room, SEED)
        clock = time.monotonic()
        _expect(trial, trial.go(None), 0)
        return trial.weights(), time.monotonic() - clock

    def kill(self, room: Path, seed: int | None, kills: int, untouched: bytes, seconds: float) -> None:
        """Trial after trial, until so many kills have happened; the last one ends, too."""
        done, number = 0, 0
        while done < kills:
            trial = self.trial(room / f"{'seeded' if seed is not None else 'secure'}-{number}", seed)
            number, code = number + 1, -1
            while code != 0:
                left = self.steps - trial.true_steps()
                moment = random_moment(self.dice, left, seconds) if done < kills else None
                code = trial.go(moment)
                if code not in (0, -signal.SIGKILL):
                    _expect(trial, code, 0)
                if code == 0:
                    moment = None
                else:
                    done += 1
                self._count(trial, moment)
                trial.clear()
                if code != 0 and trial.folder.is_dir() and self.dice.random() < 0.3 and trial.tear(self.dice):
                    self.rows[-1]["torn"] = True
            if seed is not None:
                self.identical.append(trial.weights() == untouched)

    def _count(self, trial: Trial, moment: Moment | None) -> None:
        path, true = trial.folder / "ledger.jsonl", trial.true_steps()
        entries = read_ledger(path) if path.is_file() else None
        spent = 0 if entries is None else entries.steps
        resumed = 0 if entries is None else sum(entry["kind"] == "resume" for entry in entries)
        row = {
            "rng": "secure" if trial.seed is None else "seeded",
            "trial": trial.room.name,
            "killed": None if moment is None else str(moment),
            "torn": False,
            "resumed": resumed,
            "ledger_steps": spent,
            "true_steps": true,
            "epsilon_ledger": self.curve[spent],
            "epsilon_true": self.curve.get(true),  # none beyond the plan: more than it can say
        }
        # A line that this harness tore is counted again by the next process that gets as far as resuming.
        before = next((r for r in reversed(self.rows) if r["trial"] == row["trial"]), None)
        unsettled = before is not None and before["torn"] and resumed == before["resumed"]
        row["torn"] = unsettled
        row["under_reported"] = not unsettled and (true > self.steps or self.curve[spent] < self.curve[true])
        self.rows.append(row)

    def fill(self, room: Path, untouched: bytes) -> list[dict[str, Any]]:
        """The disk is full while a checkpoint, and while the ledger is written; then there is room again."""
        rows = []
        for number, (file, options) in enumerate((("checkpoints/.step-", {}), ("ledger", {"checkpoint_every": 1000}))):
            with small_disk(room / f"disk-{number}") as (folder, how, full, empty):
                trial = self.trial(room / f"full-{number}", SEED, runs=folder / "runs", **options)
                code = trial.go(Moment("write", file, "full", 3), full)
                empty()
                log = (trial.room / "log").read_text()
                whole = all(_is_whole(p) for p in (trial.folder / "checkpoints").glob("step-*.safetensors"))
                clean = not list((trial.folder / "checkpoints").glob(".*"))
                reached = read_ledger(trial.folder / "ledger.jsonl").steps
                self._count(trial, replace(Moment("write", file, "full", 3)))
                _expect(trial, trial.go(None), 0)
                self.identical.append(trial.weights() == untouched)
                rows.append({
                    "how": how, "file": file, "exit_code": code, "said": log.strip().splitlines()[-1:],
                    "old_checkpoints_whole": whole and clean, "ledger_steps": reached,
                    "bit_identical": self.identical[-1],
                })  # fmt: skip
        return rows


def _is_whole(path: Path) -> bool:
    from dpeq.training.checkpoint import DamagedCheckpoint, read

    try:
        read(path)
    except DamagedCheckpoint:
        return False
    return True


def _expect(trial: Trial, code: int, expected: int) -> None:
    if code != expected:
        log = (trial.room / "log").read_text()[-4000:]
        raise SystemExit(f"a run ended with {code}, not {expected}; its log:\n{log}")


@contextmanager
def small_disk(folder: Path) -> Iterator[tuple[Path, str, Callable[[], None], Callable[[], None]]]:
    """A place that can be filled and emptied: (folder, how, fill, empty). Root mounts one; others limit file sizes."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "tmpfs", str(folder)]
    if os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0:
        filler = folder / "filler"

        def fill() -> None:
            with filler.open("wb", buffering=0) as file:
                try:
                    while file.write(bytes(4096)):
                        pass
                except OSError:
                    pass  # full, as it should be

        try:
            yield folder, "tmpfs of 2 MiB", fill, lambda: filler.unlink(missing_ok=True)
        finally:
            subprocess.run(["umount", str(folder)], check=True)
    else:

        def limit() -> None:  # in the child, which takes the limit with it
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2500, 2500))

        yield folder, "file size limit of 2500 bytes", limit, lambda: None


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill training, resume it, and compare the ledger with the truth.")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger().setLevel(logging.WARNING)
    clock = time.monotonic()
    harness = Harness(options.steps, options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        room = Path(temporary)
        untouched, seconds = harness.reference(room / "reference")
        harness.kill(room, SEED, (options.kills + 1) // 2, untouched, seconds)
        harness.kill(room, None, options.kills // 2, untouched, seconds)
        full = harness.fill(room, untouched)
    kills = sum(row["killed"] is not None and "full" not in row["killed"] for row in harness.rows)
    result = {
        "device": f"{platform.machine()} CPU, 1 thread, torch {torch.__version__}",
        "seconds": round(time.monotonic() - clock, 1),
        "steps": options.steps,
        "kills": kills,
        "torn_lines": sum(row["torn"] for row in harness.rows),
        "under_reported": sum(row["under_reported"] for row in harness.rows),
        "bit_identical": all(harness.identical) and bool(harness.identical),
        "runs_compared": len(harness.identical),
        "disk_full": full,
        "rows": harness.rows,
    }
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        print(json.dumps({key: value for key, value in result.items() if key != "rows"}, indent=1))


if __name__ == "__main__":
    main()
