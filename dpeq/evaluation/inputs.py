"""What every score asks of predictions and labels, checked once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpeq.errors import DataError

__all__ = ["checked"]

_ROW_SUM_TOLERANCE = 1e-3  # float32 softmax over many classes drifts; logits miss by far more


def checked(
    probabilities: ArrayLike, labels: ArrayLike, classes: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.int64], tuple[str, ...]]:
    """Probabilities ``[N, K]``, labels ``[N]`` and the K names of the classes.

    Raises :class:`DataError` for an empty set, a set with a single class, or rows that are not probabilities.
    """
    proba = np.asarray(probabilities, dtype=np.float64)
    raw = np.asarray(labels)
    names = tuple(str(name) for name in classes)
    if raw.ndim != 1 or raw.size == 0:
        raise DataError("The evaluation set is empty (or its labels are not a flat list); give it at least one case.")
    if proba.ndim != 2 or proba.shape[0] != raw.size:
        raise DataError(f"Predictions of shape {proba.shape} do not fit {raw.size} labels; one row per case is needed.")
    if len(names) < 2 or proba.shape[1] != len(names) or len(set(names)) != len(names):
        raise DataError(
            f"Predictions have {proba.shape[1]} columns for the classes {list(names)}; "
            "one column per class and at least two different classes are needed."
        )
    truth = raw.astype(np.int64)
    if not np.array_equal(truth, raw) or truth.min() < 0 or truth.max() >= len(names):
        raise DataError(f"Labels must be whole numbers from 0 to {len(names) - 1}, the positions in {list(names)}.")
    if not np.all(np.isfinite(proba)):
        raise DataError("Some predictions are not finite numbers; the network has diverged, lower its learning rate.")
    if proba.min() < 0.0 or np.any(np.abs(proba.sum(axis=1) - 1.0) > _ROW_SUM_TOLERANCE):
        raise DataError("Some rows of the predictions are not probabilities; apply softmax to the network's outputs.")
    if len(np.unique(truth)) < 2:
        raise DataError(
            f"The evaluation set has cases of {names[int(truth[0])]!r} alone, where no AUC exists; add another class."
        )
    return proba, truth, names
