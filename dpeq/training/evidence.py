"""What binds the files of a run folder to each other, and whether it holds; read without loading torch.

The ledger's chain pins ``start.json`` by the note "start", and by the note "end" the weights and ``run.json``, once
training has written them. Through ``start.json`` it pins the settings, the data and the randomness of the run, and
every checkpoint names its line of the ledger: a ledger that was cut or made anew contradicts them. Folders from before
there was such a file or note are held together by what they have. None of it is a signature: who makes every file of a
folder anew, the ledger among them, makes another run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from dpeq.errors import DataError
from dpeq.privacy.ledger import Ledger, LedgerEntries, read_ledger
from dpeq.training.start import FILE, Start

__all__ = [
    "WEIGHTS",
    "check_checkpoints",
    "check_complete",
    "check_end",
    "check_start",
    "check_weights",
    "note_end",
    "weights_sha256",
]

WEIGHTS = {"ema": "final", "raw": "raw"}
"""File in ``checkpoints`` of the weights that ``evaluation.weights`` names."""


def note_end(ledger: Ledger, weights: Mapping[str, bytes], record: bytes) -> None:
    """The last thing before ``run.json``: pins its bytes ``record``, and those of the ``weights`` by file name."""
    ledger.note("end", weights={name: _sha256(weights[name]) for name in sorted(weights)}, run_sha256=_sha256(record))


def check_complete(folder: Path, entries: LedgerEntries, planned: int) -> None:
    """A run is finished only when its whole plan is spent; :class:`DataError` for a ledger that says otherwise."""
    if entries.steps != planned:
        raise DataError(
            f"The run in {folder} is finished, so it has spent all {planned} steps of its plan, but its ledger ends at "
            f"step {entries.steps}: the ledger was cut; restore it from a backup."
        )


def check_start(folder: Path, entries: LedgerEntries) -> Start | None:
    """What the run in ``folder`` began with, held against ledger and ``config.yaml``; None for a run without a record.

    Raises :class:`DataError` when they contradict each other, or the ledger knows of a record that is gone.
    """
    if not (folder / FILE).is_file() and not any(entry["kind"] == "start" for entry in entries):
        return None  # from before there was one
    if not (folder / FILE).is_file():
        raise DataError(f"{folder} has no {FILE}, which its ledger names; restore it from a backup.")
    start = Start.read(folder)
    start.check_files(folder, entries)
    return start


def check_checkpoints(folder: Path) -> None:
    """Raises :class:`DataError` when the newest checkpoint has seen more of the ledger, or another one.

    Only its header is read; a damaged file says nothing here, and a folder without checkpoints is not held against it.
    """
    for path in sorted((folder / "checkpoints").glob("step-*.safetensors"), reverse=True):
        try:
            with safe_open(path, framework="np") as file:
                facts = json.loads((file.metadata() or {})["facts"])
            step, head, plan = int(facts["step"]), facts["ledger_sha256"], facts["run"]["plan_sha256"]
        except (SafetensorError, OSError, KeyError, ValueError, TypeError):
            continue  # torn or damaged: an older one has seen less, but may be whole
        entries = read_ledger(folder / "ledger.jsonl")  # after the checkpoint: the run may be going on
        if step > entries.steps or entries.step_heads[step] != head or plan != entries[0]["plan_sha256"]:
            raise DataError(
                f"The ledger in {folder} is not the one that {path.name} was written under: one of them was cut or "
                "replaced; restore both from a backup."
            )
        return


def check_end(folder: Path, entries: LedgerEntries) -> None:
    """Raises :class:`DataError` when ``run.json``, or a file of weights that is there, is not what training wrote."""
    end = _end(entries)
    if end is None:
        return
    if _sha256((folder / "run.json").read_bytes()) != end.get("run_sha256"):
        raise DataError(f"{folder / 'run.json'} was changed after training wrote it; restore it from a backup.")
    for name in WEIGHTS.values():
        path = folder / "checkpoints" / f"{name}.safetensors"
        if path.is_file():
            _same_weights(path, path.read_bytes(), end)


def check_weights(path: Path, content: bytes) -> None:
    """Raises :class:`DataError` unless ``content``, read from a run's ``checkpoints/``, is what training wrote there.

    A run without the note "end" is from before there was one, and pins no weights.
    """
    end = _end(read_ledger(path.parent.parent / "ledger.jsonl"))
    if end is not None:
        _same_weights(path, content, end)


def weights_sha256(folder: Path, weights: str, entries: LedgerEntries) -> str | None:
    """SHA-256 of the file of ``weights`` ("ema", "raw"): as the ledger pins it, else of the file if it is there."""
    if weights not in WEIGHTS:
        return None
    path = folder / "checkpoints" / f"{WEIGHTS[weights]}.safetensors"
    end = _end(entries)
    if end is not None:
        pinned = _pinned(end).get(path.name)
        return None if pinned is None else str(pinned)
    return _sha256(path.read_bytes()) if path.is_file() else None


def _end(entries: LedgerEntries) -> dict[str, Any] | None:
    """The last note "end": a crash before ``run.json`` leaves an earlier one, whose weights were written anew."""
    return next((entry for entry in reversed(entries) if entry["kind"] == "end"), None)


def _pinned(end: dict[str, Any]) -> dict[str, Any]:
    weights = end.get("weights")
    return weights if isinstance(weights, dict) else {}


def _same_weights(path: Path, content: bytes, end: dict[str, Any]) -> None:
    if _pinned(end).get(path.name) != _sha256(content):
        raise DataError(
            f"The checkpoint {path} does not hold the weights that this run's training wrote (the ledger pins their "
            "SHA-256); restore it from a backup."
        )


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
