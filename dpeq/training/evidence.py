"""What binds the files of a run folder to each other, and whether it holds; read without loading torch.

The ledger's chain pins ``start.json`` by the note "start". Through that file it pins the settings, the data and the
randomness of the run, and every checkpoint names its line of the ledger: a ledger that was cut or made anew
contradicts them. Folders from before there was such a file or note are held together by what they have.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from dpeq.errors import DataError
from dpeq.privacy.ledger import LedgerEntries

__all__ = ["check_checkpoints", "check_complete"]


def check_complete(folder: Path, entries: LedgerEntries, planned: int) -> None:
    """A run is finished only when its whole plan is spent; :class:`DataError` for a ledger that says otherwise."""
    if entries.steps != planned:
        raise DataError(
            f"The run in {folder} is finished, so it has spent all {planned} steps of its plan, but its ledger ends at "
            f"step {entries.steps}: the ledger was cut; restore it from a backup."
        )


def check_checkpoints(folder: Path, entries: LedgerEntries) -> None:
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
        if step > entries.steps or entries.step_heads[step] != head or plan != entries[0]["plan_sha256"]:
            raise DataError(
                f"The ledger in {folder} is not the one that {path.name} was written under: one of them was cut or "
                "replaced; restore both from a backup."
            )
        return
