"""What tests of audits share: accountants at hand, and keys and coins that are counted instead of drawn."""

import dataclasses

import numpy as np
import pytest

import dpeq.audit.members as members_module
import dpeq.audit.one_run as one_run_module
from dpeq.privacy import accounting
from dpeq.privacy.randomness import Randomness


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
