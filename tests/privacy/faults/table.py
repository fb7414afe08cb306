"""The table of docs/faults.md: which guard notices which fault.

``python -m tests.privacy.faults.table`` in the repository's root writes it anew.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[3]
if str(ROOT / "tests") not in sys.path:
    sys.path.insert(0, str(ROOT / "tests"))  # under pytest, tests/conftest.py has done it

from tests.privacy.faults.faults import FAULTS  # noqa: E402
from tests.privacy.faults.guards import GUARDS, verdict  # noqa: E402
from tests.privacy.faults.planting import Fault, planted  # noqa: E402

__all__ = ["PAGE", "Row", "head", "judge", "line", "room", "shown"]

PAGE = ROOT / "docs" / "faults.md"
SEED = 0
BEGIN, END = "<!-- the table: python -m tests.privacy.faults.table -->", "<!-- end of the table -->"


@dataclass(frozen=True)
class Row:
    """What became of one fault: how often it was reached, and by guard the verdict and what was said."""

    reached: int
    verdicts: Mapping[str, tuple[str, str]]


@contextmanager
def room() -> Iterator[Path]:
    """A folder for ledgers, in memory where that can be had: each of some thousand lines waits for the disk."""
    memory = Path("/dev/shm")
    kept = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=kept) as folder, pytest.MonkeyPatch.context() as patch:
        # The loop seeds torch's generators before every step; those of GPUs that are not there take longer than it.
        patch.setattr(torch, "manual_seed", torch.default_generator.manual_seed)
        yield Path(folder)


def judge(fault: Fault, folder: Path) -> Row:
    """Plants a fault and asks every guard."""
    reached, verdicts = 0, {}
    for name, guard in GUARDS.items():
        with planted(fault) as planting:  # for each guard anew: what one broke off must not reach the next
            verdicts[name] = verdict(guard, SEED, folder / f"{fault.name} {name}")
        reached += planting.reached
    return Row(reached, verdicts)


def head() -> list[str]:
    """The first lines of the table, its mark included."""
    return [BEGIN, "", f"| fault | what it breaks | {' | '.join(GUARDS)} |", "|---|---|" + "---|" * len(GUARDS)]


def line(fault: Fault, row: Row) -> str:
    """A fault's line of the table."""
    cells = [row.verdicts[name][0] for name in GUARDS]
    marked = [f" **{c}**" if name == fault.guard else f" {c}" for name, c in zip(GUARDS, cells, strict=True)]
    return f"| {fault.name} | {fault.breaks} |{' |'.join(marked)} |".replace("  |", " |")


def shown(page: str) -> str:
    """The table of a page, marks included."""
    return page[page.index(BEGIN) : page.index(END) + len(END)]


def main() -> None:
    torch.set_num_threads(1)
    with room() as folder:
        lines = [line(fault, judge(fault, folder)) for fault in FAULTS]
    table = "\n".join([*head(), *lines, "", END])
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(page.replace(shown(page), table), encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
