"""JSON as a report may hold it: finite numbers and every key once, because a check of anything else checks nothing.

Every comparison with NaN is false, so a bound that is NaN passes for one that holds; of a key that stands twice,
different readers see different values.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

__all__ = ["not_finite", "read_strict"]


def read_strict(path: Path) -> Any:
    """What ``path`` holds. Raises OSError, and ValueError that names the field that no sound file has."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if place := not_finite(value):
        raise ValueError(f"{place} is no finite number")
    return value


def not_finite(value: Any, place: str = "") -> str | None:
    """Where ``value`` holds NaN, an infinity, or a whole number that is too large for a float; None if nowhere.

    >>> not_finite({"risk": [1.0, {"mu": float("nan")}]})
    'risk/1/mu'
    """
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return next((found for key, item in items if (found := not_finite(item, f"{place}/{key}".strip("/")))), None)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return None if math.isfinite(value) else place or "the whole"
    except OverflowError:
        return place or "the whole"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands in it twice")
    return value
