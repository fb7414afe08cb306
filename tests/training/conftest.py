"""A tiny run that can be resumed: its plan, its folder, and what becomes of it when nothing happens to it."""

import math
from pathlib import Path

import pytest
from resuming import STEPS, go, weights

import dpeq.training.run as run_module
from benchmarks.killable import make_plan
from dpeq.privacy.plan import PrivacyPlan


@pytest.fixture(scope="session")
def plan() -> PrivacyPlan:
    return make_plan(STEPS)


@pytest.fixture
def room(tmp_path, plan, monkeypatch) -> Path:
    real = run_module.make_plan
    monkeypatch.setattr(run_module, "make_plan", lambda p: real(p) if math.isinf(p.config.privacy.epsilon) else plan)
    return tmp_path


@pytest.fixture(scope="session")
def untouched(tmp_path_factory, plan) -> bytes:
    """The weights of a run that nothing happened to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "make_plan", lambda prepared: plan)
        folder = go(tmp_path_factory.mktemp("untouched"))
    return weights(folder)
