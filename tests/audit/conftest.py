"""What tests of audits share: accountants at hand, and keys and coins that are counted instead of drawn."""

import dataclasses

import numpy as np
import pytest
from finished_runs import cell_config, lay_down, plan_at

import dpeq.audit.members as members_module
import dpeq.audit.one_run as one_run_module
import dpeq.training.prepare as prepare_module
from benchmarks.killable import make_config, make_splits
from dpeq.config import write_config
from dpeq.privacy import accounting
from dpeq.privacy.randomness import Randomness
from dpeq.training.files import fingerprint_key
from dpeq.training.start import fingerprint


@pytest.fixture(scope="package", autouse=True)
def _accountants():
    with accounting.session("pld", "rdp"):
        yield


@pytest.fixture(autouse=True)
def _keys(monkeypatch):
    """The tests say the same every time: one that fails once in two hundred times would be believed less."""

    def secure(seed):  # as a key from the operating system: steps are never repeated
        return dataclasses.replace(create(next(keys)), seed=None) if seed is None else create(seed)

    def toss(units):
        return coins.random(units) < 0.5

    create, keys, coins = Randomness.create, iter(range(1000)), np.random.default_rng(1)
    monkeypatch.setattr(Randomness, "create", secure)
    for module in (one_run_module, members_module):
        monkeypatch.setattr(module, "toss", toss)
    monkeypatch.setattr(members_module, "fresh_generator", lambda: np.random.default_rng(7))


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe whose plan needs no accountant and whose data is made up."""
    write_config(make_config(tmp_path, steps=4, seed=None), tmp_path / "recipe.yaml")
    monkeypatch.setattr("dpeq.planning.plan_of", lambda config: plan_at(config.privacy.epsilon))
    monkeypatch.setattr(prepare_module, "load_data", lambda prepared, progress=None: make_splits())
    return tmp_path / "recipe.yaml"


@pytest.fixture
def run(tmp_path):
    """A finished run on the made-up data."""
    key = fingerprint_key(tmp_path, make=True)
    return lay_down(tmp_path, cell_config(tmp_path, "run", 8.0), data_sha256=fingerprint(make_splits(), key))
