"""A few kills of the harness in ``benchmarks/chaos.py``; ``python -m benchmarks.chaos`` does fifty."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.killable import Moment, _name_of

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def result():
    command = [sys.executable, "-m", "benchmarks.chaos", "--json", "--kills", "8", "--steps", "12", "--seed", "3"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_no_kill_makes_the_ledger_say_too_little(result):
    assert result["kills"] == 8
    assert result["under_reported"] == 0
    rows = result["rows"]
    assert {row["rng"] for row in rows} == {"seeded", "secure"}
    assert all(row["ledger_steps"] >= row["true_steps"] for row in rows if not row["torn"])
    assert any(row["true_steps"] > 0 and row["killed"] for row in rows), "the kills come while something is spent"
    finished = [row for row in rows if row["killed"] is None]
    assert all(row["ledger_steps"] == result["steps"] for row in finished)
    assert max(row["resumed"] for row in finished) > 0


def test_reproducible_runs_end_in_the_same_bits(result):
    assert result["runs_compared"] >= 3
    assert result["bit_identical"] is True


def test_a_full_disk_stops_a_run_and_does_not_spoil_it(result):
    for row in result["disk_full"]:
        assert row["exit_code"] in (1, 4)
        assert "dpeq train --resume" in row["said"][0] or "mend the disk" in row["said"][0]
        assert row["old_checkpoints_whole"]
        assert row["bit_identical"]


def test_moments_are_found_by_the_path_of_the_descriptor(tmp_path):
    with (tmp_path / "ledger.jsonl").open("w") as file:
        assert _name_of(file.fileno()) == str(tmp_path / "ledger.jsonl")
    assert str(Moment("write", "ledger", "middle", 3)) == "middle write 3 of ledger"
