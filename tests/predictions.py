"""Made-up predictions."""

import numpy as np

BINARY = ("normal", "pneumonia")


def binormal(n: int, shift: float, seed: int, share: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Scores N(0, 1) and N(shift, 1), pushed through a logistic curve: AUC = Phi(shift / sqrt(2))."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) < share * n).astype(int)
    score = 1 / (1 + np.exp(-(rng.normal(size=n) + shift * labels - shift / 2)))
    return np.stack([1 - score, score], axis=1), labels


def multiclass(n: int, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % k
    logits = rng.normal(size=(n, k)) + 1.5 * np.eye(k)[labels]
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), labels


def coarse(proba: np.ndarray, steps: int) -> np.ndarray:
    """Binary predictions with many ties."""
    score = np.round(proba[:, 1] * steps) / steps
    return np.stack([1 - score, score], axis=1)
