"""Answers are found again under the same question alone, and never when they were touched."""

from __future__ import annotations

import json
import logging

import pytest

from dpeq.errors import ConfigError
from dpeq.privacy import remembered
from dpeq.privacy.plan import PrivacyPlan

CONSTANTS = {
    "epsilon": 8.0,
    "delta": 1e-4,
    "expected_batch_size": 64,
    "public_units": 640,
    "steps": 20,
    "max_grad_norm": 1.0,
    "unit": "image",
}


def fake(sigma: float, **changes) -> PrivacyPlan:
    values = {**CONSTANTS, "sample_rate": 0.1, "noise_multiplier": sigma, **changes}
    values["epsilon_target"] = values.pop("epsilon")
    return PrivacyPlan(**values, accountant="rdp", epsilon={"rdp": 6.9})


@pytest.fixture(autouse=True)
def asked(tmp_path, monkeypatch):
    """How often the accountant was asked; every answer differs."""
    monkeypatch.setenv("DPEQ_CACHE", str(tmp_path))
    calls: list[dict] = []

    def calibrate(**constants):
        calls.append(constants)
        if constants["steps"] == 0:
            raise ConfigError("no steps")
        return fake(1.0 + len(calls), **constants)

    monkeypatch.setattr(remembered, "calibrate", calibrate)
    return calls


def kept(tmp_path):
    return list((tmp_path / "accounting").glob("*.json"))


def test_the_same_question_is_asked_once(asked, tmp_path):
    first = remembered.remembered_plan(**CONSTANTS)
    assert remembered.remembered_plan(**CONSTANTS) == first == fake(2.0)
    assert len(asked) == 1
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in kept(tmp_path))


@pytest.mark.parametrize(
    "change", [{"epsilon": 7.0}, {"delta": 1e-5}, {"steps": 21}, {"views": 2}, {"unit": "patient"}]
)
def test_another_question_gets_another_answer(asked, change):
    remembered.remembered_plan(**CONSTANTS)
    remembered.remembered_plan(**{**CONSTANTS, **change})
    assert len(asked) == 2


def test_other_versions_are_asked_again(asked, monkeypatch):
    remembered.remembered_plan(**CONSTANTS)
    monkeypatch.setattr(remembered, "_answerers", lambda: {"opacus": "other"})
    remembered.remembered_plan(**CONSTANTS)
    assert len(asked) == 2


@pytest.mark.parametrize("damage", ["less noise", "half a file", "another question", "no json object"])
def test_a_touched_answer_is_not_believed(asked, tmp_path, caplog, damage):
    remembered.remembered_plan(**CONSTANTS)
    (path,) = kept(tmp_path)
    body = json.loads(path.read_text())
    if damage == "less noise":
        body["answer"]["noise_multiplier"] = 0.1
    if damage == "another question":
        body["question"] = body["question"].replace("8.0", "9.0")
    text = {"half a file": json.dumps(body)[:50], "no json object": "[]"}.get(damage, json.dumps(body))
    path.write_text(text)
    with caplog.at_level(logging.WARNING):
        assert remembered.remembered_plan(**CONSTANTS) == fake(3.0)
    assert "asked again" in caplog.text
    assert remembered.remembered_plan(**CONSTANTS) == fake(3.0), "and the new answer is kept"


def test_errors_are_not_kept(asked):
    for _ in range(2):
        with pytest.raises(ConfigError, match="no steps"):
            remembered.remembered_plan(**{**CONSTANTS, "steps": 0})
    assert len(asked) == 2


def test_an_answer_that_cannot_be_kept_is_still_given(asked, monkeypatch, caplog):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(remembered.tempfile, "mkstemp", full)
    with caplog.at_level(logging.WARNING):
        assert remembered.remembered_plan(**CONSTANTS) == fake(2.0)
    assert "No space left" in caplog.text


def test_a_curve_is_kept_too(monkeypatch):
    calls = []
    monkeypatch.setattr(remembered, "epsilon_curve", lambda plan: calls.append(1) or [(0, 0.0), (20, 7.9)])
    assert remembered.remembered_curve(fake(1.0)) == remembered.remembered_curve(fake(1.0)) == [(0, 0.0), (20, 7.9)]
    assert len(calls) == 1
    remembered.remembered_curve(fake(1.5))
    assert len(calls) == 2


@pytest.mark.parametrize("change", [{"steps": 200}, {"max_grad_norm": 9.0}, {"delta": 1e-3}, {"epsilon": 80.0}])
def test_a_forged_answer_to_another_question_is_refused(monkeypatch, change):
    """Its checksum can be made by anybody; the public constants are compared as well."""
    monkeypatch.setattr(remembered, "calibrate", lambda **constants: fake(2.0, **{**constants, **change}))
    with pytest.raises(ConfigError, match="empty that folder"):
        remembered.remembered_plan(**CONSTANTS)
