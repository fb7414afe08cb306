"""What an audit keeps in its folder, so that it can go on there, and so that it ends once.

A folder whose files are damaged is left as it is, for another one: its ledgers say what was spent.

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

__all__ = [
    "Heard",
    "KeptState",
    "begin",
    "read_halves",
    "read_heard",
    "read_scores",
    "read_state",
    "refuse_over",
    "write_halves",
    "write_heard",
    "write_scores",
    "write_state",
]

_BEGUN, _RESULT, _SCORES = "begun.json", "audit.json", "scores.json"
_STATE, _HEARD, _HALVES = "state.safetensors", "heard.safetensors", "halves.safetensors"

Array = npt.NDArray[np.float64]
Bits = npt.NDArray[np.bool_]


def begin(folder: Path, facts: dict[str, Any]) -> None:
    """Says in ``folder`` what is being audited, and how, or makes sure that it is what was begun there.

    Raises:
        ConfigError: when another audit, or one that is over, lies there.
        DataError: when what lies there cannot be read.
    """
    refuse_over(folder)
    path = folder / _BEGUN
    if not path.exists():
        write_durably(path, as_json(facts))
        return
    before = _read(path)
    for key in sorted(facts.keys() | before.keys()):
        if key == "run" and key not in before:
            continue  # begun before audits said so; the plan and the folder are the run's
        if facts.get(key) != before.get(key):
            raise ConfigError(
                f"The audit in {folder} was begun with {key} {before.get(key)!r}, not {facts.get(key)!r}; give --out "
                "another folder."
            )


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
        raise DataError(f"{path} holds other things than scores; give --out another folder.")
    return kept["with"], kept["without"]


def write_scores(folder: Path, with_canary: list[float], without: list[float]) -> None:
    write_durably(folder / _SCORES, as_json({"with": with_canary, "without": without}))


@dataclass
class Heard:
    """What an attacker has so far: whether each of ``[units]`` was in, its score, and the steps in the weights."""

    included: Bits
    scores: Array
    steps: int = 0


@dataclass(frozen=True)
class KeptState:
    """A training under attack after ``step``: its tensors, and what was heard."""

    step: int
    heard: Heard
    tensors: dict[str, Tensor] = field(repr=False)


def write_state(folder: Path, state: TrainingState, heard: Heard) -> None:
    """One file, whole or not at all, readable by its owner alone."""
    metadata = {"step": str(state.step), "heard": str(heard.steps)}
    write_durably(folder / _STATE, save(state.tensors() | _as_tensors(heard), metadata))


def read_state(folder: Path) -> KeptState | None:
    """Raises :class:`DataError` when the file is damaged."""
    found = _read_tensors(folder / _STATE)
    if found is None:
        return None
    try:
        return KeptState(int(found[1]["step"]), _heard(*found), found[0])
    except (KeyError, ValueError) as error:
        raise _unusable(folder / _STATE, error) from error


def write_heard(folder: Path, heard: Heard) -> None:
    """In place of the state of a training that is over, whose weights nobody needs any more."""
    write_durably(folder / _HEARD, save(_as_tensors(heard), {"heard": str(heard.steps)}))
    (folder / _STATE).unlink(missing_ok=True)


def read_heard(folder: Path) -> Heard | None:
    """Raises :class:`DataError` when the file is damaged."""
    found = _read_tensors(folder / _HEARD)
    if found is None:
        return None
    try:
        return _heard(*found)
    except (KeyError, ValueError) as error:
        raise _unusable(folder / _HEARD, error) from error


def write_halves(folder: Path, halves: Bits) -> None:
    """Which model of an audit has which unit, ``[models, units]``."""
    write_durably(folder / _HALVES, save({"halves": torch.from_numpy(halves.copy())}))


def read_halves(folder: Path) -> Bits | None:
    """Raises :class:`DataError` when the file is damaged."""
    found = _read_tensors(folder / _HALVES)
    if found is None:
        return None
    try:
        halves: Bits = found[0]["halves"].numpy()
        return halves
    except KeyError as error:
        raise _unusable(folder / _HALVES, error) from error


def _as_tensors(heard: Heard) -> dict[str, Tensor]:
    return {
        "audit.included": torch.from_numpy(heard.included.copy()),
        "audit.scores": torch.from_numpy(heard.scores.copy()),
    }


def _heard(tensors: dict[str, Tensor], metadata: dict[str, str]) -> Heard:
    """Takes what :func:`_as_tensors` added out of ``tensors``."""
    return Heard(tensors.pop("audit.included").numpy(), tensors.pop("audit.scores").numpy(), int(metadata["heard"]))


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # no mapping
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be used ({error}); give --out another folder.")


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("no object")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); give --out another folder.") from error
    return values
