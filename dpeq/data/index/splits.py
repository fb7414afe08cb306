"""Splits: given ones must keep patients whole; made ones do, and keep the shares of labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from dpeq.errors import DataError

__all__ = ["check_disjoint", "make_splits"]

_SHARES = {"test": 0.2, "val": 0.1}  # of each stratum; the rest trains
_LEAST = 6  # patients below which a stratum would leave a split empty


def make_splits(labels: Mapping[str, Iterable[int]]) -> dict[str, str]:
    """70 % train, 10 % val and 20 % test of the patients of every combination of labels.

    Args:
        labels: of each patient's images, by pseudonym. A pseudonym is a keyed hash already, so that its order is a
            keyed shuffle. Combinations that too few patients have are split together.
    """
    strata: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for patient in sorted(labels):
        strata[tuple(sorted(set(labels[patient])))].append(patient)
    whole = [patients for patients in strata.values() if len(patients) >= _LEAST]
    rest = sorted(patient for patients in strata.values() if len(patients) < _LEAST for patient in patients)
    splits: dict[str, str] = {}
    for patients in (*whole, rest):
        n_test, n_val = (round(_SHARES[name] * len(patients)) for name in ("test", "val"))
        names = ["test"] * n_test + ["val"] * n_val + ["train"] * (len(patients) - n_test - n_val)
        splits.update(zip(patients, names, strict=True))
    return splits


def check_disjoint(splits: Iterable[tuple[str, str]]) -> None:
    """Raises :class:`DataError` with their number when patients are in several splits.

    Args:
        splits: of each image, the patient and the split.
    """
    of: dict[str, set[str]] = defaultdict(set)
    for patient, split in splits:
        of[patient].add(split)
    if torn := sum(len(names) > 1 for names in of.values()):
        what = "1 patient is" if torn == 1 else f"{torn} patients are"
        raise DataError(f"{what} in several splits; give all images of a patient the same one.")
