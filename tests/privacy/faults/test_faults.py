"""Every planted fault is noticed, by the guard that should and for the right reason; sound code is left in peace."""

import re

import pytest

from tests.privacy.faults.faults import FAULTS
from tests.privacy.faults.guards import GUARDS, LEVEL, count_of_tests, verdict
from tests.privacy.faults.table import PAGE, head, judge, line, room, shown

SEEDS = 20
REQUIRED = 16


@pytest.fixture(scope="module")
def folder():
    with room() as place:
        yield place


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_every_fault_is_reached_and_noticed_for_the_right_reason_as_the_page_says(folder, fault):
    row = judge(fault, folder)
    assert row.reached > 0, "the fault was switched on, and nothing came by"
    noticed = {name: said for name, (what, said) in row.verdicts.items() if what}
    assert noticed, "no guard notices this fault"
    assert re.search(fault.says, noticed.get(fault.guard, "")), noticed
    lines = shown(PAGE.read_text(encoding="utf-8")).splitlines()
    assert line(fault, row) in lines, "write the table anew: python -m tests.privacy.faults.table"


def test_the_page_has_all_faults_and_each_guard_catches_one():
    top = head()
    *lines, blank, _ = shown(PAGE.read_text(encoding="utf-8")).splitlines()
    assert lines[: len(top)] == top
    assert blank == ""
    cells = [[cell.strip(" *") for cell in row.strip("|").split("|")] for row in lines[len(top) :]]
    assert [name for name, *_ in cells] == [fault.name for fault in FAULTS]
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= REQUIRED
    for number, name in enumerate(GUARDS, start=2):
        assert "caught" in [row[number] for row in cells], name
    assert {fault.guard for fault in FAULTS} == GUARDS.keys() - {"auditor"}, "which looks for nothing in particular"


def test_sound_code_passes_every_guard_under_twenty_seeds(folder):
    """Were keys drawn anew, chance alone would fail this less than once in a thousand times."""
    before = count_of_tests()
    for seed in range(SEEDS):
        for name, guard in GUARDS.items():
            assert verdict(guard, seed, folder / f"sound {seed} {name}") == ("", ""), (seed, name)
    tests = count_of_tests() - before
    assert tests >= 30 * SEEDS
    assert tests * LEVEL * 4 <= 1e-3, "four for the two laws that are approximate"
