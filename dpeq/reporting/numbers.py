"""Numbers as a reader meets them. Privacy losses are rounded up, never down: a rounded claim must still be true."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any

__all__ = [
    "duration",
    "one_in",
    "percent",
    "percent_down",
    "percent_up",
    "round_down",
    "round_up",
    "scientific",
    "show",
    "signal",
]

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def round_up(value: float, digits: int = 2) -> str:
    """``value`` with ``digits`` decimals, rounded towards plus infinity; infinity is the sign for it."""
    if math.isinf(value):
        return "∞"
    return str(_exact(value).quantize(Decimal(1).scaleb(-digits), ROUND_CEILING))


def round_down(value: float, digits: int = 2) -> str:
    """``value`` with ``digits`` decimals, rounded towards minus infinity (for lower bounds)."""
    return str(_exact(value).quantize(Decimal(1).scaleb(-digits), ROUND_FLOOR))


def percent(share: float, digits: int = 1) -> str:
    """A share as a percentage, rounded to nearest: 0.8734 -> '87.3 %'."""
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def percent_up(share: float, digits: int = 1) -> str:
    """A share as a percentage, rounded up (for bounds on an attacker's success), never above 100 %."""
    return f"{round_up(min(100 * share, 100.0), digits)}\N{NO-BREAK SPACE}%"


def percent_down(share: float, digits: int = 1) -> str:
    """A share as a percentage, rounded down (for a confidence): 0.99996 -> '99.9 %'; below 1 it is never 100 %."""
    below = 100.0 if share == 1 else 100.0 - 10.0**-digits
    return f"{round_down(min(100 * share, below), digits)}\N{NO-BREAK SPACE}%"


def signal(value: float, digits: int = 4) -> str:
    """A number with ``digits`` significant figures and no superfluous zeros."""
    return f"{value:.{digits}g}"


def scientific(value: float) -> str:
    """A small probability such as delta, rounded up to three figures: 1e-4 -> '1 × 10⁻⁴', 0.05 -> '0.05'."""
    if value <= 0 or value >= 0.01:
        return f"{float(round_up(value, 4)):g}"
    exponent = _exact(value).adjusted()
    mantissa = _exact(value).scaleb(-exponent).quantize(Decimal("0.01"), ROUND_CEILING).normalize()
    return f"{mantissa:f}\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}10{str(exponent).translate(_SUPERSCRIPT)}"


def one_in(probability: float) -> str:
    """1e-4 -> '1 in 10,000', rounded towards the larger chance."""
    return f"1 in {math.floor(1 / probability + 1e-6):,}" if probability > 0 else "never"


def duration(seconds: float) -> str:
    """Seconds as a reader says them: '41 s', '11 min 8 s', '3 h 5 min'."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def show(value: Any) -> str:
    """A setting in a table: yes or no, thousands separated, lists joined, nothing said as 'none'."""
    if value is None or value == "" or value == []:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return signal(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {show(item)}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(show(item) for item in value)
    return str(value)


def _exact(value: float) -> Decimal:
    # 12 significant digits first, so that 8.000000000000001 (rounding noise of float arithmetic) stays 8.00.
    return Decimal(f"{value:.12g}")
