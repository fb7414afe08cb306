"""The ledger: durable before the step, chained, resumable, and never under-counting."""

import hashlib
import json
import os
import stat
import subprocess
import sys
from dataclasses import replace

import pytest

from dpeq.errors import BudgetError, ConfigError, DataError
from dpeq.privacy.ledger import Ledger, read_ledger
from dpeq.privacy.plan import PrivacyPlan

PLAN = PrivacyPlan(
    epsilon_target=8.0,
    delta=1e-4,
    unit="patient",
    sample_rate=0.1,
    steps=5,
    expected_batch_size=100,
    noise_multiplier=1.5,
    max_grad_norm=1.0,
    public_units=1000,
    accountant="prv",
    epsilon={"prv_upper": 7.9},
)


@pytest.fixture
def path(tmp_path):
    with Ledger.create(tmp_path / "ledger.jsonl", PLAN) as ledger:
        ledger.spend(1)
        ledger.note("resume", reason="test")
        ledger.spend(2)
        ledger.spend(3)
    return ledger.path


def lines_of(path):
    return path.read_bytes().splitlines(keepends=True)


def test_contents(path):
    entries = read_ledger(path)
    assert [e["kind"] for e in entries] == ["plan", "step", "resume", "step", "step"]
    assert (entries.steps, entries.torn) == (3, None)
    assert {k: entries[0][k] for k in PLAN.to_dict()} == PLAN.to_dict()
    assert entries[0]["plan_sha256"] == PLAN.sha256
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]  # no temporary file is left


def test_the_spend_is_on_disk_and_synced_before_it_returns(tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd)), fsync(fd))[1])
    with Ledger.create(tmp_path / "l", PLAN) as ledger:
        assert any(stat.S_ISDIR(s.st_mode) for s in synced)
        synced.clear()
        ledger.spend(1)
        assert [s.st_size for s in synced] == [ledger.path.stat().st_size]
        assert read_ledger(ledger.path).steps == 1
        assert read_ledger(ledger.path).head == ledger.head


def test_create_refuses_an_existing_file(path):
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="exists"):
        Ledger.create(path, PLAN)
    assert path.read_bytes() == before
    with pytest.raises(ConfigError, match="cannot be made"):
        Ledger.create(path.parent / "none" / "l", PLAN)


@pytest.mark.parametrize("step", [0, 1, 3, 5, 4.5, True])
def test_steps_out_of_turn_are_refused(tmp_path, step):
    with Ledger.create(tmp_path / "l", PLAN) as ledger:
        ledger.spend(1)
        before = ledger.head
        with pytest.raises(BudgetError, match="out of turn"):
            ledger.spend(step)
        assert (ledger.steps, ledger.head) == (1, before)
        ledger.spend(2)


def test_the_budget_ends(path):
    with Ledger.open(path, PLAN) as ledger:
        ledger.spend(4)
        ledger.spend(5)
        with pytest.raises(BudgetError, match="beyond the plan's 5 steps"):
            ledger.spend(6)
    with Ledger.open(path, PLAN) as ledger, pytest.raises(BudgetError, match="beyond"):
        ledger.spend(6)
    assert read_ledger(path).steps == 5


def test_resume_continues_the_chain(path):
    head = read_ledger(path).head
    with Ledger.open(path, PLAN) as ledger:
        assert (ledger.steps, ledger.head) == (3, head)
        ledger.spend(4)
    entries = read_ledger(path)
    assert entries[-1]["prev"] == head
    assert entries.steps == 4


def test_a_crash_at_every_byte_of_the_last_line(path):
    *whole, last = lines_of(path)
    start = b"".join(whole)
    for cut in range(len(last)):
        path.write_bytes(start + last[:cut])
        entries = read_ledger(path)
        assert entries.steps == 2
        assert (entries.torn is None) == (cut == 0)
        with Ledger.open(path, PLAN) as ledger:
            assert ledger.steps == 2
            ledger.spend(3)
        entries = read_ledger(path)
        assert (entries.steps, entries.torn) == (3, None)
        notes = [e for e in entries if e["kind"] == "torn"]
        assert len(notes) == (0 if cut == 0 else 1)
        if notes:
            assert f"Line 5 was left unfinished ({cut} bytes)" in notes[0]["detail"]


def test_a_crash_before_the_plan_was_whole(path):
    first = lines_of(path)[0]
    for cut in (0, 1, len(first) - 1):
        path.write_bytes(first[:cut])
        with pytest.raises(DataError, match="Line 1 "):
            Ledger.open(path, PLAN)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_an_edited_line_is_named(path, number):
    lines = lines_of(path)
    for position in range(0, len(lines[number - 1]) - 1, 7):
        damaged = bytearray(lines[number - 1])
        damaged[position] ^= 1
        path.write_bytes(b"".join([*lines[: number - 1], bytes(damaged), *lines[number:]]))
        with pytest.raises(DataError, match=f"Line {number} "):
            read_ledger(path)


def test_removed_swapped_doubled_and_spaced_lines_are_named(path):
    a, b, c, d, e = lines_of(path)
    spaced = json.dumps(json.loads(d)).encode() + b"\n"
    cases = [([a, c, d, e], 2), ([a, b, d, e], 3), ([b, c, d, e], 1), ([a, c, b, d, e], 2), ([a, b, c, e, d], 4)]
    cases += [([a, b, b, c, d, e], 3), ([a, b, c, d, e, a], 6), ([a, b, c, spaced, e], 4), ([a, b"\n", b], 2)]
    for lines, number in cases:
        path.write_bytes(b"".join(lines))
        with pytest.raises(DataError, match=f"Line {number} "):
            read_ledger(path)
        with pytest.raises(DataError, match=f"Line {number} "):
            Ledger.open(path, PLAN)


def test_another_plan_is_refused_by_field(path):
    other = replace(PLAN, noise_multiplier=1.4, steps=6)
    with pytest.raises(ConfigError, match="noise_multiplier, steps"):
        Ledger.open(path, other)
    with Ledger.open(path, PLAN) as ledger:  # the refusal left no lock behind
        assert ledger.steps == 3


def test_two_writers_are_refused(path):
    with Ledger.open(path, PLAN), pytest.raises(ConfigError, match="another process"):
        Ledger.open(path, PLAN)
    PLAN.write(path.parent / "plan.json")
    code = (
        "import sys\nfrom dpeq.privacy.ledger import Ledger\nfrom dpeq.privacy.plan import PrivacyPlan\n"
        "try:\n    Ledger.open(sys.argv[1], PrivacyPlan.read(sys.argv[2]))\n"
        "except Exception as error:\n    print(type(error).__name__)\nelse:\n    print('opened')"
    )
    command = [sys.executable, "-c", code, str(path), str(path.parent / "plan.json")]
    with Ledger.open(path, PLAN):
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "ConfigError"
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "opened"


def test_a_missing_ledger(tmp_path):
    with pytest.raises(ConfigError, match="cannot be opened"):
        Ledger.open(tmp_path / "none", PLAN)
    with pytest.raises(DataError, match="cannot be read"):
        read_ledger(tmp_path / "none")


def test_a_failed_write_stops_the_step_and_the_ledger(path, monkeypatch):
    with Ledger.open(path, PLAN) as ledger:

        def full(fd):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(BudgetError, match="No space left"):
            ledger.spend(4)
        monkeypatch.undo()
        assert ledger.steps == 3
        with pytest.raises(BudgetError, match="closed"):
            ledger.spend(4)
    assert read_ledger(path).steps == 4  # the line got there all the same: over-counted, never under


def test_notes(tmp_path):
    with Ledger.create(tmp_path / "l", PLAN) as ledger:
        ledger.note("run", name="second", epsilon=1.5)
        assert read_ledger(ledger.path)[-1]["epsilon"] == 1.5
        for kind, fields in [("step", {}), ("plan", {}), ("x", {"prev": 1}), ("x", {"step": 2})]:
            with pytest.raises(ValueError, match="note"):
                ledger.note(kind, **fields)
        with pytest.raises(ValueError, match="JSON"):
            ledger.note("x", value=float("nan"))
        assert len(read_ledger(ledger.path)) == 2


def test_every_step_has_the_hash_of_its_line(path):
    entries = read_ledger(path)
    lines = [line.rstrip(b"\n") for line in lines_of(path)]
    expected = [hashlib.sha256(lines[i]).hexdigest() for i in (0, 1, 3, 4)]  # the third is a note
    assert list(entries.step_heads) == expected
    with Ledger.open(path, PLAN) as ledger:
        assert [ledger.head_at(step) for step in range(4)] == expected
        ledger.note("resume", lost=1)
        assert ledger.head_at(3) == expected[3]
        ledger.spend(4)
        assert ledger.head_at(4) == ledger.head == read_ledger(path).step_heads[4]
        assert [note["kind"] for note in ledger.notes] == ["resume", "resume"]


def test_a_tear_is_known_until_the_next_step_is_spent(path):
    path.write_bytes(path.read_bytes()[:-5])
    for _ in range(2):  # it outlives the process that mended it
        with Ledger.open(path, PLAN) as ledger:
            assert ledger.tear
            ledger.note("resume", lost=0)
            assert ledger.tear
    with Ledger.open(path, PLAN) as ledger:
        ledger.spend(3)
        assert not ledger.tear
    with Ledger.open(path, PLAN) as ledger:
        assert not ledger.tear


@pytest.mark.parametrize("rest", [5, 120, 5000])
def test_a_crash_while_a_tear_is_mended_does_not_forget_it(path, monkeypatch, rest):
    """Killed at every call that mending makes, and in the middle of its write."""

    class Killed(BaseException):
        pass

    *whole, last = lines_of(path)
    torn = b"".join(whole) + (last[:-1] * 40)[:rest]
    real = {name: getattr(os, name) for name in ("write", "fsync", "ftruncate")}
    moments = [("write", 0), ("write", 1), ("write", 100), ("fsync", None), ("ftruncate", None)]
    for call, part in moments:
        path.write_bytes(torn)

        def die(fd, *rest, call=call, part=part):
            if part:
                real["write"](fd, rest[0][:part])
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(os, call, die)
            with pytest.raises(Killed):
                Ledger.open(path, PLAN)
        with Ledger.open(path, PLAN) as ledger:
            assert ledger.tear, (call, part)
            assert ledger.steps == 2
            ledger.spend(3)
        assert read_ledger(path).torn is None


def test_a_tear_that_cannot_be_mended_for_want_of_room(path, monkeypatch):
    path.write_bytes(path.read_bytes()[:-5])
    before = path.read_bytes()

    def full(fd, data):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(BudgetError, match="No space left"):
            Ledger.open(path, PLAN)
    assert path.read_bytes() == before
    with Ledger.open(path, PLAN) as ledger:  # no lock was left behind
        assert ledger.tear
