"""Membership scores by shadow models: how the target answers about a unit, against how models with and without it do.

Carlini et al. 2022 (arXiv 2112.03570) train shadow models each on a random part of the units. The score of a unit is
the likelihood ratio of the target's answer under two normal laws, fitted to the shadows that had the unit and to those
that had not. With few shadows they fit one variance for all units. So do we, and one more thing is shared: how far a
unit's two means lie apart is estimated from few answers, so it is drawn towards the mean over all units by as much as
it is noise (the positive-part rule of James and Stein 1961). At one end this is Carlini's ratio; at the other, where
the shadows tell nothing of single units, it is the answer less the unit's own difficulty (Watson et al. 2022, arXiv
2111.08440).
"""

from __future__ import annotations

import numpy as np

from dpeq.errors import ConfigError
from dpeq.privacy.audit.counts import Array, Bits

__all__ = ["FEWEST", "balanced_halves", "check_shadows", "likelihood_ratios"]

FEWEST = 4
"""Shadow models: two with each unit and two without, from which a variance can be told."""


def check_shadows(shadows: int) -> None:
    """Raises :class:`ConfigError` for an odd number, and for fewer than :data:`FEWEST`."""
    if shadows < FEWEST or shadows % 2:
        raise ConfigError(f"{shadows} shadow models cannot be shared out; give an even number of {FEWEST} at least.")


def balanced_halves(shadows: int, units: int, random: np.random.Generator) -> Bits:
    """Which shadow has which unit, ``[shadows, units]``: every unit is in exactly half of them, chosen at random."""
    check_shadows(shadows)
    ranks = random.random((shadows, units)).argsort(axis=0)
    halves: Bits = ranks < shadows // 2
    return halves


def likelihood_ratios(target: Array, shadows: Array, had: Bits) -> Array:
    """The logarithm of the likelihood ratio of ``target [units]``, larger for "it was in": float64 ``[units]``.

    Args:
        target: the target's answer about each unit, any number that is about normal over trainings: the log-odds of the
            unit's own label.
        shadows: the same of every shadow model, ``[shadows, units]``.
        had: whether the shadow was trained with the unit, ``[shadows, units]``; half of them, for every unit.

    Raises:
        ConfigError: for shapes that do not fit, answers that are not finite, or units that are not in half of the
            shadows.
    """
    if shadows.shape != had.shape or shadows.shape[1:] != target.shape or target.ndim != 1:
        raise ConfigError("Answers of the target and of the shadow models are not about the same units; give one each.")
    check_shadows(len(shadows))
    if not (np.isfinite(target).all() and np.isfinite(shadows).all()):
        raise ConfigError("A network's answer is not finite; audit a training that does not diverge.")
    count = len(shadows) // 2
    if (had.sum(axis=0) != count).any():
        raise ConfigError("A unit is not in half of the shadow models; deal them out with balanced_halves.")
    inside, outside = (np.where(bits, shadows, 0.0).sum(axis=0) / count for bits in (had, ~had))
    variance = float(((shadows - np.where(had, inside, outside)) ** 2).sum()) / (len(target) * 2 * (count - 1))
    apart = inside - outside
    noise = 2.0 * variance / count  # of a difference of two means
    spread = float(((apart - apart.mean()) ** 2).mean())
    kept = max(0.0, 1.0 - noise / spread) if spread > 0 else 0.0
    shrunk = apart.mean() + kept * (apart - apart.mean())
    centred = target - (inside + outside) / 2
    ratios: Array = centred * shrunk / (variance or 1.0)  # without any variance they rank the same
    return ratios
