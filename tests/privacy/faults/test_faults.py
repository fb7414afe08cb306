"""Every planted fault is noticed, by the guard that should and for the right reason; sound code is left in peace."""

import re

import pytest

from tests.privacy.faults.faults import FAULTS
from tests.privacy.faults.guards import GUARDS, LEVEL, count_of_tests, verdict
from tests.privacy.faults.table import PAGE, judge, render, room, shown

SEEDS = 20
REQUIRED = 16


@pytest.fixture(scope="module")
def folder():
    with room() as place:
        yield place


@pytest.fixture(scope="module")
def rows(folder):
    return judge(folder)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_every_fault_is_reached_and_noticed_for_the_right_reason(rows, fault):
    row = rows[fault.name]
    assert row.reached > 0, "the fault was switched on, and nothing came by"
    noticed = {name: said for name, (what, said) in row.verdicts.items() if what}
    assert noticed, "no guard notices this fault"
    assert re.search(fault.says, noticed.get(fault.guard, "")), noticed


def test_there_are_as_many_faults_as_there_should_be_and_each_guard_is_needed(rows):
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= REQUIRED
    caught = {name: [f.name for f in FAULTS if rows[f.name].verdicts[name][0] == "caught"] for name in GUARDS}
    assert all(caught.values()), caught
    assert {fault.guard for fault in FAULTS} == GUARDS.keys() - {"auditor"}, "which needs no faults of its own"


def test_the_page_shows_the_table(rows):
    assert shown(PAGE.read_text(encoding="utf-8")) == render(rows), "python -m tests.privacy.faults.table"


def test_sound_code_passes_every_guard_under_twenty_seeds(folder):
    """Were keys drawn anew, chance alone would fail this less than once in a thousand times."""
    before = count_of_tests()
    for seed in range(SEEDS):
        for name, guard in GUARDS.items():
            assert verdict(guard, seed, folder / f"sound {seed} {name}") == ("", ""), (seed, name)
    tests = count_of_tests() - before
    assert tests >= 30 * SEEDS
    assert tests * LEVEL * 4 <= 1e-3, "four for the two laws that are approximate"
