"""The table of labels: a CSV with a line of names, rows that are found by the most specific id that it has."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from dpeq.data.attributes import PLAIN
from dpeq.data.index.spelling import composed
from dpeq.data.manifest import SPLITS
from dpeq.errors import DataError

__all__ = ["KEYS", "Classes", "Row", "Table"]

KEYS = {
    "path": "a file",
    "image_id": "an image",
    "series_id": "a series",
    "study_id": "a study",
    "patient_id": "a patient",
}
"""Columns that a row may be found by, the most specific first, and what such a row is about."""
_MEANS = {
    "sex": "a sex (female, male, other, or f, m, o)",
    "age": "an age (in years, or as a band such as 60-69)",
    "site": "a site",
    "device": "a device",
}


@dataclass(frozen=True)
class Classes:
    """Names of classes in the order of their indices."""

    names: tuple[str, ...]

    def index(self, text: str) -> int | None:
        """Of a name, or of a number as text; None for what is neither.

        Where a class is itself called by a number, a number can only be meant as a name.
        """
        names = [composed(name) for name in self.names]
        if composed(text) in names:
            return names.index(composed(text))
        by_number = not any(name.isdigit() for name in self.names)
        if by_number and text.isascii() and text.isdigit() and int(text) < len(self.names):
            return int(text)
        return None


@dataclass(frozen=True)
class Row:
    """One line: ``label`` is None where it is empty or unknown, and ``problem`` says which.

    Lines about one thing may differ in ``groups``, value by attribute: what they differ in is unknown.
    """

    patient: str = ""
    label: int | None = None
    problem: str = ""
    split: str = ""
    groups: Mapping[str, str] = field(default_factory=dict, compare=False)


class Table:
    """A table of labels, splits, patients, or several of these.

    Attributes:
        key: the column that rows are found by, one of :data:`KEYS`.
        has_labels, has_splits: whether it has such columns.
        rows: by their id in composed spelling.
        groups: the column of each attribute that it was asked for.
        not_understood: cells of these that are not empty and say nothing, by attribute.
    """

    def __init__(
        self,
        path: Path,
        classes: Classes,
        label_column: str,
        *,
        need_labels: bool,
        groups: Mapping[str, str] | None = None,
    ) -> None:
        """Reads it; raises :class:`DataError` for a table that cannot be right, by the number of the line alone."""
        self.path, label_column = path, composed(label_column)
        self.groups = {name: composed(column) for name, column in (groups or {}).items()}
        self.not_understood: Counter[str] = Counter()
        self.rows: dict[str, Row] = {}
        self.used: set[str] = set()
        try:
            with path.open(newline="", encoding="utf-8-sig") as handle:
                self._read(csv.DictReader(handle, strict=True), classes, label_column, need_labels)
        except UnicodeDecodeError:
            raise DataError(f"The labels {path} are not text in UTF-8; save them as CSV in UTF-8.") from None
        except (OSError, csv.Error) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise DataError(f"The labels {path} cannot be read ({why}); save them as CSV in UTF-8.") from None

    def _read(self, lines: csv.DictReader[str], classes: Classes, label_column: str, need_labels: bool) -> None:
        columns = [composed(str(name).strip()) for name in lines.fieldnames or ()]
        lines.fieldnames = columns
        if len(set(columns)) < len(columns):
            raise DataError(f"{self.path} has two columns of one name; rename one.")
        self.key = next((name for name in KEYS if name in columns), "")
        if not self.key:
            raise DataError(f"{self.path} has no column {', '.join(KEYS)}; its first line must name one of them.")
        self.has_labels = label_column in columns
        if need_labels and not self.has_labels:
            raise DataError(
                f"{self.path} has no column {label_column}; its first line must name it, separated by commas, or name "
                "another by --label-column."
            )
        self.has_splits = "split" in columns
        for name, column in self.groups.items():
            if column not in columns:
                raise DataError(f"{self.path} has no column {column} for the {name}; name another by --groups.")
            if column in (*KEYS, label_column, "split"):
                raise DataError(f"--groups takes the {name} from the column {column}, which has ids, labels or splits.")
        for row in lines:
            self._take(row, lines.line_num, classes, label_column)
        known = [row for row in self.rows.values() if row.label is not None or not self.has_labels]
        if self.has_labels and self.rows and not known:
            raise DataError(
                f"No label in the column {label_column} of {self.path} is one of {', '.join(classes.names)}; "
                "name the classes by --classes, or another column by --label-column."
            )
        for name, column in self.groups.items():
            if self.not_understood[name] and not any(name in row.groups for row in self.rows.values()):
                raise DataError(
                    f"Nothing in the column {column} of {self.path} is understood as {_MEANS[name]}; name another by "
                    "--groups."
                )
        if self.has_splits and len({bool(row.split) for row in known}) > 1:
            raise DataError(f"{self.path} gives a split to some rows only; give all of them one, or none.")
        self.has_splits = self.has_splits and any(row.split for row in known)

    def _take(self, cells: Mapping[str | None, object], number: int, classes: Classes, label_column: str) -> None:
        line = f"Line {number} of {self.path}"
        if None in cells or None in cells.values():
            raise DataError(f"{line} has not as many cells as the first line; mend it, with commas in quotes.")
        cell = {str(name): composed(str(value).strip()) for name, value in cells.items()}
        key = cell[self.key]
        if self.key == "path":
            key = key.removeprefix("./")
        if not key:
            raise DataError(f"{line} has no {self.key}; give it one or delete the line.")
        label, problem = None, ""
        if self.has_labels:
            label = classes.index(cell[label_column])
            if label is None:
                problem = "its label is none of the classes" if cell[label_column] else "its label is left empty"
        split = cell.get("split", "")
        if split and split not in SPLITS:
            raise DataError(f"{line} has another split than {', '.join(SPLITS)}; use one of them.")
        row = Row(cell.get("patient_id", ""), label, problem, split, self._groups(cell, line))
        before = self.rows.setdefault(key, row)
        self.rows[key] = replace(before, groups=_common([before, row]))
        if before != row:
            what = {"label": before.label != label or before.problem != problem, "split": before.split != split}
            twice = next((name for name, differs in what.items() if differs), "patient")
            raise DataError(f"{line} gives {KEYS[self.key]} two {twice}s; give it one.")

    def _groups(self, cell: Mapping[str, str], line: str) -> dict[str, str]:
        found = {}
        for name, column in self.groups.items():
            try:
                value = PLAIN[name](cell[column])
            except ValueError:
                raise DataError(f"{line} has a text in the column {column} that is too long for a {name}.") from None
            if value:
                found[name] = value
            elif cell[column]:
                self.not_understood[name] += 1
        return found

    def find(self, ids: Mapping[str, tuple[str, ...]]) -> Row | None:
        """The row of an image by its composed ids under each of :data:`KEYS`, and notes that it was found.

        Raises:
            LookupError: when rows of several files of the image contradict each other.
        """
        keys = [key for key in ids[self.key] if key in self.rows]
        self.used.update(keys)
        found = [self.rows[key] for key in keys]
        if any(row != found[0] for row in found):
            raise LookupError
        return replace(found[0], groups=_common(found)) if found else None

    def unused(self) -> list[str]:
        """Ids of rows that no image was found for."""
        return sorted(set(self.rows) - self.used)


def _common(rows: list[Row]) -> dict[str, str]:
    """What all rows say of groups."""
    return {name: value for name, value in rows[0].groups.items() if all(r.groups.get(name) == value for r in rows)}
