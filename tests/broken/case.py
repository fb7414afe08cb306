"""A kind of broken input: what writes it, and the reason that it must get."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from broken.write import begin

ACCEPTED = ""
"""In place of a reason: this file must come in."""

Make = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """``make(folder)`` writes it into a folder of its own.

    ``reasons`` has one reason for every file that :func:`make` writes, by its path in the folder; "*" stands for all
    that are not named. ``indexed`` is the same where a whole folder is indexed, if that knows better than one series.
    """

    name: str
    make: Make
    reasons: Mapping[str, str]
    indexed: Mapping[str, str]

    def reason(self, path: str, indexed: bool = False) -> str:
        reasons = self.indexed if indexed else self.reasons
        return reasons[path] if path in reasons else reasons["*"]


CASES: dict[str, Case] = {}


def broken(reason: str | Mapping[str, str], indexed: str | Mapping[str, str] | None = None) -> Callable[[Make], Make]:
    """Registers the function below it as a kind of broken input."""

    def register(make: Make) -> Make:
        assert make.__name__ not in CASES
        reasons, later = ({"*": r} if isinstance(r, str) else r for r in (reason, indexed or reason))

        def begun(folder: Path) -> None:
            begin(make.__name__)
            make(folder)

        CASES[make.__name__] = Case(make.__name__, begun, reasons, later)
        return make

    return register
