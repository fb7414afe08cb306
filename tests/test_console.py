"""What somebody sees of a run: on a terminal, and in a log."""

from __future__ import annotations

import io
import math
import re
from types import SimpleNamespace

import pytest
from rich.console import Console

from dpeq.console import RichObserver
from dpeq.privacy.plan import PrivacyPlan
from dpeq.training.loop import PrivateRecord, StepRecord

CONSTANTS = {"delta": 1e-6, "unit": "image", "sample_rate": 0.1, "max_grad_norm": 1.0, "public_units": 100_000}
PLAN = PrivacyPlan(
    epsilon_target=8.0,
    noise_multiplier=1.4,
    steps=40,
    expected_batch_size=500,
    accountant="prv",
    epsilon={"prv_upper": 7.98},
    **CONSTANTS,
)
OPEN_PLAN = PrivacyPlan(
    epsilon_target=math.inf, noise_multiplier=0.0, steps=40, expected_batch_size=500, accountant="none", **CONSTANTS
)
PRIVATE = PrivateRecord(units=97, loss=0.7310585, gradient_norm=3.1415927, clipped=0.2718282, not_finite=0)


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Time stands still until a test moves it, and epsilon rises by a tenth with every step."""
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr("dpeq.console.time", SimpleNamespace(monotonic=lambda: now.seconds))
    monkeypatch.setattr("dpeq.console.EpsilonCurve", lambda plan: SimpleNamespace(after=lambda step: step / 10))
    return now


def console(*, terminal: bool = False, width: int = 80) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, markup=False, highlight=False)


def shown(where: Console) -> str:
    text = where.file.getvalue()  # type: ignore[attr-defined]
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def train(observer: RichObserver, clock, steps, plan=PLAN, *, seconds=2.0, private=None) -> None:
    for step in steps:
        clock.seconds += seconds
        observer.stepped(StepRecord(step, 0.1, seconds, plan.expected_batch_size / seconds, private), plan)


def test_a_log_gets_a_line_every_tenth_with_all_facts(clock):
    where = console()
    with RichObserver(where) as observer:
        observer.stage("Training")
        train(observer, clock, range(1, 41))
    lines = shown(where).splitlines()
    assert lines[0] == "Training ..."
    assert lines[1] == "  Training: 1 of 40, epsilon 0.10 of 8, 250 units/s, 78 s left"
    assert lines[2] == "  Training: 4 of 40, epsilon 0.40 of 8, 250 units/s, 72 s left"
    assert [int(line.split()[1]) for line in lines[1:]] == [1, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40]
    assert lines[-1] == "  Training: 40 of 40, epsilon 4.00 of 8, 250 units/s"


def test_after_a_resume_it_begins_where_the_run_is(clock):
    """Steps of an earlier session count neither as fast nor as done in this one."""
    for terminal in (False, True):
        where = console(terminal=terminal)
        with RichObserver(where) as observer:
            observer.stage("Loading")
            clock.seconds += 100
            observer.stage("Training")
            clock.seconds += 50  # settling the ledger is no step
            train(observer, clock, [31, 32])
        expected = "31 of 40, epsilon 3.10 of 8, 250 units/s, 18 s left"
        last = "32 of 40, epsilon 3.20 of 8, 250 units/s, 16 s left"
        assert (last if terminal else expected) in shown(where)


def test_speed_is_of_the_last_ten_steps_and_no_finer_than_two_digits(clock):
    """The exact time of a step would tell how many units were in it."""
    where = console(terminal=True)
    with RichObserver(where) as observer:
        observer.stage("Training")
        train(observer, clock, range(1, 11), seconds=50.0)
        train(observer, clock, range(11, 21), seconds=0.0371)
    assert "13000 units/s" in shown(where).splitlines()[-1]  # 500 / 0.0371 = 13477
    where = console(terminal=True)
    with RichObserver(where) as observer:
        observer.stage("Training")
        train(observer, clock, range(1, 11), seconds=1.0)
        train(observer, clock, [11], seconds=6.0)
    assert "330 units/s" in shown(where).splitlines()[-1]  # 500 * 10 / (9 + 6)


def test_everything_fits_a_terminal_of_80_columns(clock, monkeypatch):
    monkeypatch.setattr("dpeq.console.EpsilonCurve", lambda plan: SimpleNamespace(after=lambda step: step / 1000))
    plan = PrivacyPlan.from_dict(PLAN.to_dict() | {"steps": 20_000, "expected_batch_size": 4096})
    where = console(terminal=True)
    with RichObserver(where) as observer:
        observer.stage("Loading a data set with a title that is quite long")
        observer.loading(123_456, 234_567)
        observer.stage("Training")
        train(observer, clock, [12_345, 12_346], plan, private=PRIVATE)
    text = shown(where)
    for part in (
        "12346 of 20000, epsilon 12.35 of 8, 2000 units/s, 4.3 h left",
        "private: loss 0.731, gradient norm 3.14, 27% clipped",
        "private: 97 units, 0 not finite",
    ):
        assert part in text, part
    assert all(len(line) <= 80 for line in re.split(r"[\r\n]", text))


@pytest.mark.parametrize("terminal", [True, False])
def test_a_stage_of_unknown_length_has_no_count(clock, terminal):
    where = console(terminal=terminal)
    with RichObserver(where) as observer:
        observer.stage("Calibrating the noise")
        clock.seconds += 3
        observer.stage("Loading")
        observer.loading(5, 10)
        clock.seconds += 4
        observer.stage("Evaluating")
    text = shown(where)
    assert "?" not in text
    assert "0/" not in text
    assert "1 of 1" not in text
    for line in text.splitlines():
        if "Calibrating" in line or "Evaluating" in line:
            assert " of " not in line
    if terminal:
        assert "Calibrating the noise: 3 s" in text
        assert "Loading: 4 s" in text


@pytest.mark.parametrize("terminal", [True, False])
def test_private_quantities_are_shown_only_if_the_record_has_them(clock, terminal):
    texts = {}
    for private in (None, PRIVATE):
        where = console(terminal=terminal)
        with RichObserver(where) as observer:
            observer.stage("Training")
            train(observer, clock, [1], private=private)
        texts[private] = shown(where)
    assert "private: loss 0.731, gradient norm 3.14, 27% clipped" in texts[PRIVATE]
    for word in ("private", "loss", "norm", "clipped", "97"):
        assert word not in texts[None]


def test_a_run_without_noise_says_so_at_every_step(clock):
    where = console()
    with RichObserver(where) as observer:
        observer.stage("Training")
        train(observer, clock, [1], OPEN_PLAN)
    assert "1 of 40, NON-PRIVATE, 250 units/s" in shown(where)
    assert "epsilon" not in shown(where)


def test_the_accountant_is_asked_before_the_first_step_and_its_note_is_shown(monkeypatch):
    asked = []
    monkeypatch.setattr("dpeq.console.EpsilonCurve", asked.append)
    where = console()
    RichObserver(where).planned(PLAN)
    noted = PrivacyPlan.from_dict(PLAN.to_dict() | {"accountant_note": "Another one answered."})
    RichObserver(where).planned(noted)
    assert asked == [PLAN, noted]
    assert shown(where) == "Note: Another one answered.\n"
