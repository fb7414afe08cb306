"""What an audit keeps in its folder, so that it can go on there, and so that it ends once.

An audit whose result was seen is over: one that went on until the result pleased would not hold with 95 %.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dpeq.errors import ConfigError, DataError
from dpeq.training.files import as_json, write_durably
from dpeq.training.state import TrainingState

__all__ = ["KeptState", "begin", "read_scores", "read_state", "refuse_over", "write_scores", "write_state"]

_BEGUN, _RESULT, _SCORES, _STATE = "begun.json", "audit.json", "scores.json", "state.safetensors"

Array = npt.NDArray[np.float64]
Bits = npt.NDArray[np.bool_]


def begin(folder: Path, facts: dict[str, Any]) -> bool:
    """Says in ``folder`` what is being audited, and how; returns whether that was begun there before.

    Raises:
        ConfigError: when another audit, or one that is over, lies there.
        DataError: when what lies there cannot be read.
    """
    refuse_over(folder)
    path = folder / _BEGUN
    if not path.exists():
        write_durably(path, as_json(facts))
        return False
    before = _read(path)
    for key in sorted(facts.keys() | before.keys()):
        if facts.get(key) != before.get(key):
            raise ConfigError(
                f"The audit in {folder} was begun with {key} {before.get(key)!r}, not {facts.get(key)!r}; give --out "
                "another folder."
            )
    return True


def refuse_over(folder: Path) -> None:
    """Raises :class:`ConfigError` when an audit has its result in ``folder``."""
    if (folder / _RESULT).exists():
        raise ConfigError(f"The audit in {folder} is over; give --out another folder for a new one.")


def read_scores(folder: Path) -> tuple[list[float], list[float]]:
    """Scores with and without the canary so far."""
    path = folder / _SCORES
    if not path.exists():
        return [], []
    kept = _read(path)
    lists = kept.get("with"), kept.get("without")
    if not all(isinstance(one, list) and all(isinstance(x, float) for x in one) for one in lists):
        raise DataError(f"{path} holds other things than scores; remove the folder and audit again.")
    return kept["with"], kept["without"]


def write_scores(folder: Path, with_canary: list[float], without: list[float]) -> None:
    write_durably(folder / _SCORES, as_json({"with": with_canary, "without": without}))


@dataclass(frozen=True)
class KeptState:
    """A training with canaries after ``step``: its tensors, the coins, the scores, and the number of steps heard."""

    step: int
    included: Bits
    scores: Array
    heard: int
    tensors: dict[str, Tensor] = field(repr=False)


def write_state(folder: Path, state: TrainingState, included: Bits, scores: Array, heard: int) -> None:
    """One file, whole or not at all, readable by its owner alone."""
    own = {"audit.included": torch.from_numpy(included.copy()), "audit.scores": torch.from_numpy(scores.copy())}
    metadata = {"step": str(state.step), "heard": str(heard)}
    write_durably(folder / _STATE, save(state.tensors() | own, metadata))


def read_state(folder: Path) -> KeptState | None:
    """Raises :class:`DataError` when the file is damaged."""
    path = folder / _STATE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # no mapping
        included, scores = tensors.pop("audit.included"), tensors.pop("audit.scores")
        return KeptState(int(metadata["step"]), included.numpy(), scores.numpy(), int(metadata["heard"]), tensors)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path} cannot be used ({error}); remove the folder and audit again.") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("no object")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); remove the folder and audit again.") from error
    return values
