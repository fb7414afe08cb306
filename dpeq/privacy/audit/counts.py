"""From scores to counts, and from counts to rates that hold with a stated confidence.

An attacker gives every canary a score, high for "it was in". What the bounds need is how many of a number of guesses,
fixed beforehand, are right. Scores that are equal are ranked *against* the audit: the order in which canaries are
listed (members first, say) must not be able to tell what the scores do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dpeq.errors import ConfigError

__all__ = ["Guesses", "correct_guesses", "even_guesses", "rate_high", "rate_low"]

Array = npt.NDArray[np.float64]
Bits = npt.NDArray[np.bool_]

GUESSED = 0.1
"""Share of the canaries that are guessed in by default, and as many out; see docs/audit.md for what others find."""


class Guesses(NamedTuple):
    """How many canaries of highest score are guessed in, how many of lowest score out; the rest is left open."""

    highest: int
    lowest: int

    @property
    def total(self) -> int:
        return self.highest + self.lowest


def even_guesses(canaries: int, share: float = GUESSED) -> Guesses:
    """``share`` of the canaries guessed in and as many out, one each at least.

    >>> even_guesses(1000)
    Guesses(highest=100, lowest=100)
    """
    if not 0 < share <= 0.5:
        raise ConfigError(f"The share guessed in and out is {share}; give a number above 0 and at most 0.5.")
    if canaries < 2:
        raise ConfigError(f"There are {canaries} canaries; an audit needs two at least.")
    count = min(max(1, round(share * canaries)), canaries // 2)
    return Guesses(count, count)


def checked(scores: Sequence[float] | Array, included: Sequence[bool] | Bits) -> tuple[Array, Bits]:
    """Both as arrays of one length; raises :class:`ConfigError` for scores that are not numbers, bits that are none."""
    values, bits = np.asarray(scores, dtype=np.float64), np.asarray(included)
    if values.ndim != 1 or values.shape != bits.shape or not values.size:
        raise ConfigError("An audit needs one score and one in-or-out bit per canary; give two equal lists.")
    if np.isnan(values).any():
        raise ConfigError("A canary's score is not a number; repair the attack, or score it lowest.")
    if bits.dtype != np.bool_ and not np.isin(bits, (0, 1)).all():
        raise ConfigError("Whether a canary was in must be true or false; give one bit per canary.")
    return values, bits.astype(np.bool_)


def correct_guesses(scores: Sequence[float] | Array, included: Sequence[bool] | Bits, guesses: Guesses) -> int:
    """How many guesses are right at least, however equal scores are ranked.

    >>> correct_guesses([3.0, 2.0, 1.0, 0.0], [True, False, True, False], Guesses(2, 1))
    2
    >>> correct_guesses([0.0, 0.0, 0.0, 0.0], [True, True, False, False], Guesses(2, 2))  # scores that say nothing
    0
    """
    values, bits = checked(scores, included)
    if min(guesses) < 0 or not 0 < guesses.total <= len(values):
        raise ConfigError(
            f"{guesses.highest} guesses in and {guesses.lowest} out were asked for on {len(values)} canaries; "
            "guess one at least, and no canary twice."
        )
    # Among equal scores at the edge the wrong ones are taken first: those out for the guess "in", those in for "out".
    # Both can happen at once even if one group of equals is at both edges, because they are different canaries.
    return _right(values, bits, guesses.highest) + _right(-values, ~bits, guesses.lowest)


def _right(values: Array, bits: Bits, count: int) -> int:
    """How many of the ``count`` highest ``values`` have their bit set, at least."""
    if count == 0:
        return 0
    edge = np.partition(values, -count)[-count]
    above, equal = values > edge, values == edge
    wanted = count - int(above.sum())
    return int(bits[above].sum()) + max(0, wanted - int((~bits[equal]).sum()))


def rate_high(successes: int | Array, trials: int, confidence: float) -> Array:
    """Upper limit of a rate seen ``successes`` times in ``trials``: below it with probability ``confidence`` at least.

    One side of Clopper and Pearson 1934: the largest rate at which so few or fewer have probability 1 - confidence.
    It also holds for the rate beyond the (``successes`` + 1)-th largest of ``trials`` values, a threshold that was
    taken from the same sample by a rank fixed beforehand: that rate's law is Beta(successes + 1, trials - successes).

    >>> round(float(rate_high(0, 1000, 0.95)), 5)  # about 3 / n
    0.00299
    """
    _check(trials, confidence)
    seen = np.asarray(successes, dtype=np.float64)
    if ((seen < 0) | (seen > trials)).any():
        raise ConfigError(f"There are more successes than the {trials} trials, or fewer than none.")
    from scipy.stats import beta

    inside = np.minimum(seen, trials - 1)
    return np.where(seen < trials, beta.ppf(confidence, inside + 1, trials - inside), 1.0)


def rate_low(successes: int | Array, trials: int, confidence: float) -> Array:
    """Lower limit of a rate, as :func:`rate_high`."""
    return 1.0 - rate_high(trials - np.asarray(successes, dtype=np.float64), trials, confidence)


def check_confidence(confidence: float) -> None:
    if not 0.5 <= confidence < 1:
        raise ConfigError(f"The confidence is {confidence}; give a number of at least 0.5 and below 1.")


def _check(trials: int, confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ConfigError(f"The confidence is {confidence}; give a number between 0 and 1.")
    if trials < 1:
        raise ConfigError(f"There are {trials} trials; a rate needs one at least.")
