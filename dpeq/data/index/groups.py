"""Groups that scores are told apart by: which columns say them, and what of them a manifest carries."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from dpeq.data.attributes import ATTRIBUTES
from dpeq.data.index.pseudonyms import Pseudonyms
from dpeq.data.manifest import Record
from dpeq.errors import ConfigError

__all__ = ["GroupCounts", "columns_of", "settle"]


@dataclass(frozen=True)
class GroupCounts:
    """What is known of groups, in numbers alone.

    Attributes:
        images: images that are evaluated on.
        known: how many of these have the attribute.
        two_sexes: patients who are evaluated on and have both a female and a male image, or the like; of unknown sex.
        not_understood: cells of the table that say nothing, by attribute.
        asked: attributes that were asked of the table.
    """

    images: int = 0
    known: Counter[str] = field(default_factory=Counter)
    two_sexes: int = 0
    not_understood: Counter[str] = field(default_factory=Counter)
    asked: tuple[str, ...] = ()

    def rows(self) -> Iterable[tuple[str, str]]:
        """For the table at the end of indexing."""
        for name in ATTRIBUTES:
            if self.known[name] or name in self.asked:
                yield f"{name} known", f"{self.known[name]} of {self.images} validation and test images"
            if self.not_understood[name]:
                yield f"  rows whose {name} is not understood", str(self.not_understood[name])
        if self.two_sexes:
            yield "  patients of two sexes, taken as unknown", str(self.two_sexes)


def columns_of(text: str) -> dict[str, str]:
    """Columns by attribute: ``sex,age`` names attributes whose columns are called so, ``sex=Gender`` another column.

    Raises:
        ConfigError: for anything else.
    """
    found: dict[str, str] = {}
    for part in text.split(","):
        name, equals, column = (piece.strip() for piece in part.partition("="))
        if name not in ATTRIBUTES or name in found or bool(equals) != bool(column):
            raise ConfigError(
                f"--groups '{text}' is not understood; name some of {', '.join(ATTRIBUTES)}, each once, as in "
                "'sex,age' or, for a column of another name, 'sex=Gender,age'."
            )
        found[name] = column or name
    return found


def settle(
    records: list[Record], names: Pseudonyms, from_table: Iterable[str] = ()
) -> tuple[list[Record], GroupCounts]:
    """Groups as a manifest may carry them; those of images that are trained on are left out, and decide nothing.

    A patient has one sex, or it is unknown. Sites that headers name are numbered in the order of keyed pseudonyms,
    which tells nothing of the names; those ``from_table`` are shown as written.
    """
    shown = [record for record in records if record.split != "train"]
    sexes: dict[str, set[str]] = defaultdict(set)
    for record in shown:
        sexes[record.patient].update(value for name, value in record.groups if name == "sex")
    sites: Mapping[str, str] = {}
    if "site" not in from_table:
        found = {dict(record.groups)["site"] for record in shown if "site" in dict(record.groups)}
        ordered = sorted(found, key=lambda site: names.of("site", site))
        sites = {site: f"site {number}" for number, site in enumerate(ordered, start=1)}
    known: Counter[str] = Counter()
    settled = []
    for record in records:
        groups: dict[str, str] = {}
        if record.split != "train":
            groups = dict(record.groups)
            groups.pop("sex", None)
            if len(sexes[record.patient]) == 1:
                (groups["sex"],) = sexes[record.patient]
            if "site" in groups and sites:
                groups["site"] = sites[groups["site"]]
            known.update(groups.keys())
        settled.append(replace(record, groups=tuple((name, groups[name]) for name in ATTRIBUTES if name in groups)))
    two_sexes = sum(len(found) > 1 for found in sexes.values())
    return settled, GroupCounts(len(shown), known, two_sexes, asked=tuple(from_table))
