"""Checkpoints: what a training holds after a step, in one safetensors file that is whole or counts as absent.

A file carries the tensors of :class:`~dpeq.training.state.TrainingState` and, as JSON in its metadata, what they belong
to: the step, the hash of the ledger's line of that step, the run (:class:`~dpeq.training.start.Start`), and a digest
over all of this. Nothing is pickled. The key of a run without a seed is in none of it; the seed of a reproducible run,
which is its key, is among the facts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dpeq.training.files import write_run_file

__all__ = [
    "FOLDER",
    "Checkpoint",
    "DamagedCheckpoint",
    "last_named_step",
    "newest_whole",
    "read",
    "set_aside_damaged",
    "write",
]

_log = logging.getLogger(__name__)

FOLDER = "checkpoints"
_FORMAT = 1
_KEPT = 2
_DAMAGED = ".damaged"
_NAME = re.compile(r"step-(\d{6,})\.safetensors")


class DamagedCheckpoint(Exception):
    """A file that is not a whole checkpoint; the message says why, to follow the file's name."""


@dataclass(frozen=True)
class Checkpoint:
    """What a run held after ``step``.

    Attributes:
        step: the last logical step that went into the weights.
        updates: how many did; fewer than ``step`` when some were lost.
        ledger_sha256: of the ledger's line of that step, which pins all lines before.
        seconds: of training so far, to two digits: the time of a step tells how many units were in it.
        run: what the run began with, by name; compared on resuming.
        tensors: by name, on the CPU.
    """

    step: int
    updates: int
    ledger_sha256: str
    seconds: float
    run: dict[str, Any]
    tensors: dict[str, Tensor] = field(repr=False)


def write(run: Path, checkpoint: Checkpoint) -> None:
    """Writes ``checkpoints/step-000120.safetensors`` in the folder ``run``; it and the newest other file are kept.

    Raises:
        RunWriteError: older checkpoints are whole, and nothing half-written is left.
    """
    facts = {f.name: getattr(checkpoint, f.name) for f in fields(checkpoint) if f.name != "tensors"}
    facts["format"] = _FORMAT
    metadata = {"facts": json.dumps(facts, sort_keys=True, allow_nan=False)}
    metadata["sha256"] = _digest(metadata["facts"], checkpoint.tensors)
    write_run_file(run, f"{FOLDER}/step-{checkpoint.step:06d}.safetensors", save(checkpoint.tensors, metadata))
    others = [path for step, path in _files(run) if step != checkpoint.step]
    for path in others[_KEPT - 1 :]:
        path.unlink(missing_ok=True)


def read(path: Path) -> Checkpoint:
    """Reads and verifies one file.

    Raises:
        DamagedCheckpoint: when any byte that matters is not what was written.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Copied out of the mapped file first: what is verified must be what is used, whatever becomes of the file.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # no mapping
        facts = json.loads(metadata["facts"])
        if metadata["sha256"] != _digest(metadata["facts"], tensors):
            raise DamagedCheckpoint("its content does not match its digest")
        if facts.pop("format") != _FORMAT:
            raise DamagedCheckpoint("it has another format than this version of dpeq writes")
        return Checkpoint(**facts, tensors=tensors)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise DamagedCheckpoint(f"it cannot be read ({type(error).__name__}: {error})") from error


def newest_whole(run: Path) -> Checkpoint | None:
    """The newest checkpoint of a run whose digest holds; damaged ones are skipped, and named in the log."""
    for _, path in _files(run):
        try:
            return read(path)
        except DamagedCheckpoint as damage:
            _log.warning("The checkpoint %s is skipped: %s.", path, damage)
    return None


def set_aside_damaged(run: Path, found: Checkpoint | None) -> None:
    """Renames what :func:`newest_whole` skipped on its way to ``found``, so that it counts as none of the two kept.

    The files get ``.damaged`` behind their names, which still say how far the ledger must reach.
    """
    for step, path in _files(run):
        if found is None or step > found.step:
            path.rename(path.with_name(path.name + _DAMAGED))


def last_named_step(run: Path) -> int:
    """The latest step that a checkpoint of the run is named by, whole or not; it was spent before that was written."""
    return max((step for step, _ in _files(run) + _files(run, _DAMAGED)), default=0)


def _files(run: Path, ending: str = "") -> list[tuple[int, Path]]:
    """Newest first."""
    paths = (run / FOLDER).glob(f"step-*.safetensors{ending}")
    found = [(_NAME.fullmatch(path.name.removesuffix(ending)), path) for path in paths]
    return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)


def _digest(facts: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(facts.encode())
    for name, tensor in sorted(tensors.items()):
        flat = tensor.detach().contiguous().reshape(-1)
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return digest.hexdigest()
