"""A run that goes on: where it stands by its ledger and its checkpoints, and who keeps the checkpoints.

The ledger decides what is spent. A reproducible run (``training.seed``) repeats the steps between its checkpoint and
the end of the ledger with the same coins and the same noise, so they are the same releases and cost nothing again. A
secure run cannot, because its key is gone: those steps are lost. They stay spent, no noise is ever drawn for them
again, and training goes on behind them, from the checkpoint's weights, under a fresh key.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpeq.errors import DataError
from dpeq.privacy.ledger import Ledger
from dpeq.privacy.plan import PrivacyPlan
from dpeq.training import checkpoint as checkpoints
from dpeq.training.checkpoint import Checkpoint
from dpeq.training.conditions import refuse_another_repetition
from dpeq.training.files import remove_leftovers
from dpeq.training.start import Start, refuse_finished
from dpeq.training.state import TrainingState

_log = logging.getLogger(__name__)

__all__ = ["Keeper", "find_checkpoint", "reopen", "settle"]


def reopen(folder: Path) -> tuple[Start, Ledger]:
    """The beginning of an unfinished run and its ledger, locked against every other process.

    Raises:
        ConfigError: when there is nothing to resume, the plan was changed, or another process is at it.
        DataError: when the ledger is damaged, or is not this run's.
    """
    start = Start.read(folder)
    ledger = Ledger.open(folder / "ledger.jsonl", PrivacyPlan.read(folder / "plan.json"))
    try:
        refuse_finished(folder)  # under the lock: whoever held it may just have finished
        start.check_ledger(ledger)
        remove_leftovers(folder)
    except BaseException:
        ledger.close()
        raise
    return start, ledger


def find_checkpoint(folder: Path, start: Start, ledger: Ledger) -> Checkpoint | None:
    """The newest whole checkpoint, held against the ledger; None when the initial weights are all there is.

    Raises:
        DataError: when a checkpoint is of another run, or the ledger lacks what a checkpoint has seen in it: then the
            ledger was cut or replaced, and would say too little.
    """
    named = checkpoints.last_named_step(folder)
    if named > ledger.steps:
        raise DataError(
            f"The ledger {ledger.path} ends at step {ledger.steps}, but {folder / checkpoints.FOLDER} holds a "
            f"checkpoint of step {named}: the ledger was cut or replaced by an older one; restore it from a backup."
        )
    found = checkpoints.newest_whole(folder)
    if found is None:
        return None
    name = f"{folder / checkpoints.FOLDER}/step-{found.step:06d}.safetensors"
    start.check_checkpoint(name, found.run)
    if found.step > ledger.steps or found.ledger_sha256 != ledger.head_at(found.step):
        raise DataError(
            f"The ledger {ledger.path} is not the one that {name} was written under: its line of step {found.step} is "
            "another; restore the ledger from a backup."
        )
    return found


def settle(
    start: Start, ledger: Ledger, found: Checkpoint | None, versions: Mapping[str, str], machine: Mapping[str, Any]
) -> None:
    """Writes into the ledger what resuming means for the steps after the checkpoint, before any step is taken.

    Args:
        versions, machine: of the process that resumes, see :mod:`dpeq.training.conditions`.

    Raises:
        ConfigError: when steps would be repeated by other versions of the code or on another machine, where they might
            round to something else.
    """
    reached = 0 if found is None else found.step
    if ledger.tear and ledger.steps < ledger.plan.steps:
        ledger.spend(ledger.steps + 1)  # if the disk broke its word, the step of the torn line was taken
    if start.seed is None:
        lost, repeated = ledger.steps - reached, 0
    else:
        lost, repeated = 0, ledger.steps - reached
        if repeated:
            machines = _machines_behind(start, ledger, reached)
            refuse_another_repetition(repeated, (start.versions, versions), (machines, machine))
    fates = {"lost": lost, "repeated": repeated}
    ledger.note("resume", checkpoint_step=reached, ledger_steps=ledger.steps, **fates, machine=dict(machine))
    if ledger.steps > reached:
        fate = f"lost, and stay spent: {lost}" if lost else f"repeated, at no further cost: {repeated}"
        _log.info("Resumed after step %d; steps %s.", reached, fate)


def _machines_behind(start: Start, ledger: Ledger, reached: int) -> list[dict[str, Any]]:
    """Of all processes that took steps after ``reached``, first to last."""
    resumes = [note for note in ledger.notes if note["kind"] == "resume"]
    begun = [(0, start.machine), *((note["checkpoint_step"], note["machine"]) for note in resumes)]
    ended = [*(note["ledger_steps"] for note in resumes), ledger.steps]
    return [machine for (first, machine), last in zip(begun, ended, strict=True) if last > max(first, reached)]


class Keeper:
    """Keeps the checkpoints of a run: the initial weights, every so many steps, and the last ones.

    Args:
        found: what to go on from; None for the network's initial weights.
        every: logical steps between checkpoints.
    """

    def __init__(self, folder: Path, start: Start, ledger: Ledger, every: int, found: Checkpoint | None) -> None:
        self.folder, self.start, self.ledger, self.every = folder, start, ledger, every
        self._found = found
        self._before = 0.0 if found is None else found.seconds
        self._clock = time.monotonic()
        self._state: TrainingState | None = None
        self._saved = -1

    def begin(self, state: TrainingState) -> None:
        """Puts the checkpoint into a fresh state, or makes the initial weights the first one."""
        self._state = state
        checkpoints.set_aside_damaged(self.folder, self._found)
        if self._found is None:
            self.save()
            return
        state.restore(self._found.step, self._found.tensors)
        self._saved = self._found.step
        self._found = None  # its tensors need no room any more

    def step(self, state: TrainingState) -> None:
        """After every step."""
        if state.step % self.every == 0 or state.step == self.ledger.plan.steps:
            self.save()

    def save(self) -> None:
        """A checkpoint of this very moment, unless it is there already; RunWriteError when it cannot be written."""
        assert self._state is not None
        step = self._state.step
        if step == self._saved:
            return
        head = self.ledger.head_at(step)
        tensors = self._state.tensors()
        seconds = float(f"{self.seconds:.2g}")  # two files must not tell by their difference what one step took
        checkpoints.write(self.folder, Checkpoint(step, self.updates, head, seconds, self.start.identity, tensors))
        self._saved = step

    @property
    def saved(self) -> int:
        """The step of the newest checkpoint, from which resuming would go on."""
        return self._saved

    @property
    def updates(self) -> int:
        """Steps that went into the weights."""
        assert self._state is not None
        return int(self._state.averaged.n_averaged)

    @property
    def seconds(self) -> float:
        """Of training so far, over all processes, but not what a crash made useless."""
        return round(self._before + time.monotonic() - self._clock, 3)
