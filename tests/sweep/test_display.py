"""Lines of a sweep, with and without a terminal."""

import io

import pytest
from finished_runs import cell_config
from rich.console import Console

from dpeq.sweep.display import SweepDisplay
from dpeq.sweep.grid import Cell
from dpeq.sweep.pool import Ended


@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_shown(tmp_path, terminal):
    out = io.StringIO()
    cells = [Cell(name, "m", 8.0, 1, (), cell_config(tmp_path, name, 8.0)) for name in ("one", "two", "three")]
    console = Console(file=out, force_terminal=terminal, width=140, color_system=None)
    summaries = []
    with SweepDisplay(
        console, {cell.name: 10.0 for cell in cells}, lambda: summaries.append(1) or ["too few."]
    ) as shown:
        for cell in cells:
            shown.began(cell)
            shown.staged(cell, "Calibrating the noise")
            shown.stepped(cell, 1, 4, 0.501, 120.0)
            shown.stepped(cell, 2, 4, None, 120.0)
        if terminal:
            shown._progress.refresh()
        shown.ended(Ended(cells[0], 3.0, auc=0.91234))
        shown.ended(Ended(cells[1], 3.0, error="It broke. (log: x)"))
        shown.ended(Ended(cells[2], 3.0, stopped=True))
    text = out.getvalue()
    for line in ("done    one: 3 s, test AUC 0.912", "No summary yet: too few.", "FAILED  two: It broke. (log: x)"):
        assert line in text
    assert "stopped three; it can go on" in text
    assert summaries == [1]  # after the one that was finished
    if terminal:
        assert "2 of 4, NON-PRIVATE, 120 units/s" in text
        assert "all cells" in text
    else:
        assert "began   one" in text
        assert "1 of 3 cells done, 1 failed" in text
