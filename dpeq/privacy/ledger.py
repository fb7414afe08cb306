"""The ledger: what a training has spent, written durably before it is spent.

One JSON object per line, in canonical form. ``prev`` is the SHA-256 of the line before (64 zeros on the first) and
``check`` the SHA-256 of the entry without ``check``: an edited, removed or swapped line is found and named. A chain
cannot show that whole lines were cut from its *end*; the report therefore quotes :attr:`Ledger.head`, and checkpoints
the hash of their step's line (:meth:`Ledger.head_at`). Each entry is fsync'd before the call returns, so a crash can
only over-count: a spend may lack its step, never a step its spend.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from dpeq.errors import BudgetError, ConfigError, DataError
from dpeq.privacy.plan import PrivacyPlan

__all__ = ["Ledger", "LedgerEntries", "read_ledger"]

_GENESIS = "0" * 64
_RESERVED = frozenset({"kind", "prev", "check", "step", "plan_sha256"})


class LedgerEntries(tuple[dict[str, Any], ...]):
    """Verified entries, first to last, with ``head`` (hash of the last line), ``steps`` (spent) and ``torn``.

    ``torn`` is None, or a sentence saying that a crash left an unfinished last line, which is not among the entries.
    ``step_heads[k]`` is the hash of the line of step k, and of the plan's line for k = 0.
    """

    head: str
    steps: int
    torn: str | None
    step_heads: tuple[str, ...]
    _size: int  # bytes that hold the entries: where a torn line begins


def _canonical(entry: dict[str, Any]) -> str:
    return json.dumps(entry, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _plan_of(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key not in ("kind", "prev", "check", "plan_sha256")}


def read_ledger(path: Path | str) -> LedgerEntries:
    """Reads and verifies a ledger without locking or changing it.

    An unfinished last line (no newline: the crash came before the spend was durable, so its step never ran) is reported
    in ``torn``. Raises :class:`DataError` naming the line for any other damage, and when the file cannot be read.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"The ledger {path} cannot be read ({error.strerror}); give the run's ledger.jsonl.") from error
    return _verify(path, content)


def _verify(path: Path | str, content: bytes) -> LedgerEntries:
    *lines, rest = content.split(b"\n")
    entries: list[dict[str, Any]] = []
    step_heads: list[str] = []
    head, steps, allowed = _GENESIS, 0, 0
    for number, raw in enumerate(lines, start=1):

        def damaged(why: str, number: int = number) -> DataError:
            return DataError(f"Line {number} of the ledger {path} {why}; restore the ledger from a backup.")

        try:
            line = raw.decode("utf-8")
            entry = json.loads(line)
        except ValueError as error:
            raise damaged("is not JSON") from error
        if not isinstance(entry, dict) or not isinstance(entry.get("kind"), str):
            raise damaged("is not a ledger entry")
        try:
            expected = _sha256(_canonical({key: value for key, value in entry.items() if key != "check"}))
            changed = entry.get("check") != expected or _canonical(entry) != line
        except ValueError:
            changed = True  # NaN and infinity are not canonical JSON
        if changed:
            raise damaged("was changed after it was written")
        if entry.get("prev") != head:
            raise damaged("does not follow the line before it (a line was removed, added or moved)")
        if (number == 1) != (entry["kind"] == "plan"):
            raise damaged("must be the plan" if number == 1 else "is a second plan")
        if number == 1:
            try:
                plan = PrivacyPlan.from_dict(_plan_of(entry))
            except ConfigError as error:
                raise damaged("holds no valid plan") from error
            if plan.sha256 != entry.get("plan_sha256"):
                raise damaged("holds a plan with another hash")
            allowed = plan.steps
        if entry["kind"] == "step":
            steps += 1
            if entry.get("step") != steps or isinstance(entry["step"], bool) or steps > allowed:
                raise damaged(f"spends step {entry.get('step')!r} where step {steps} of {allowed} was due")
        entries.append(entry)
        head = _sha256(line)
        if entry["kind"] in ("plan", "step"):
            step_heads.append(head)
    if not entries:
        raise DataError(f"Line 1 of the ledger {path} holds no complete plan; delete the file and start the run anew.")
    result = LedgerEntries(entries)
    result.head, result.steps, result._size = head, steps, len(content) - len(rest)
    result.step_heads = tuple(step_heads)
    result.torn = None
    if rest:
        result.torn = f"Line {len(lines) + 1} was left unfinished ({len(rest)} bytes) by a crash and does not count."
    return result


class Ledger:
    """An open ledger, locked against other writers; use :meth:`create` or :meth:`open`, and close it (or ``with``)."""

    def __init__(self, path: Path, descriptor: int, plan: PrivacyPlan, entries: LedgerEntries) -> None:
        self.path = path
        self.plan = plan
        self._descriptor: int | None = descriptor
        self._head, self._step_heads = entries.head, list(entries.step_heads)
        self._notes: list[dict[str, Any]] = []
        self._tear = False
        for entry in entries:
            self._count(entry)

    @classmethod
    def create(cls, path: Path | str, plan: PrivacyPlan) -> Ledger:
        """A new ledger whose first entry is ``plan``; :class:`ConfigError` when ``path`` exists or cannot be made."""
        path = Path(path)
        entry = {"kind": "plan", "plan_sha256": plan.sha256, **plan.to_dict(), "prev": _GENESIS}
        line = _canonical({**entry, "check": _sha256(_canonical(entry))}).encode() + b"\n"
        try:
            # Written whole under another name, then linked: no crash leaves a ledger without its plan.
            descriptor, temporary = tempfile.mkstemp(prefix=".ledger-", dir=path.parent)  # mode 0600
        except OSError as error:
            raise ConfigError(f"The ledger {path} cannot be made ({error.strerror}); choose another folder.") from error
        try:
            _lock(path, descriptor)
            _write(descriptor, line)
            os.fsync(descriptor)
            os.link(temporary, path)
        except FileExistsError as error:
            os.close(descriptor)
            raise ConfigError(f"The ledger {path} exists; choose another run folder.") from error
        except OSError as error:
            os.close(descriptor)
            raise ConfigError(f"The ledger {path} cannot be made ({error.strerror}); choose another folder.") from error
        finally:
            Path(temporary).unlink()
        _sync_folder(path.parent)
        return cls(path, descriptor, plan, _verify(path, line))

    @classmethod
    def open(cls, path: Path | str, plan: PrivacyPlan) -> Ledger:
        """Continues an existing ledger.

        A torn last line is replaced by an entry of kind "torn" (see :attr:`tear`). Raises :class:`ConfigError` when the
        file is missing, is being written by another process, or belongs to another plan (naming the fields that
        differ), and :class:`DataError` when it is damaged.
        """
        path = Path(path)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(
                f"The ledger {path} cannot be opened ({error.strerror}); give an existing run."
            ) from error
        try:
            _lock(path, descriptor)
            entries = read_ledger(path)  # under the lock: nobody else is appending
            recorded, given = _plan_of(entries[0]), plan.to_dict()
            different = sorted(key for key in given if recorded.get(key) != given[key])
            if different or entries[0]["plan_sha256"] != plan.sha256:
                names = ", ".join(different) or "plan_sha256"
                raise ConfigError(
                    f"The ledger {path} belongs to another plan (differs in {names}); open it with its own."
                )
            os.fchmod(descriptor, 0o600)
            os.lseek(descriptor, entries._size, os.SEEK_SET)
        except BaseException:
            os.close(descriptor)
            raise
        ledger = cls(path, descriptor, plan, entries)
        if entries.torn is not None:
            # Written over the unfinished line before the rest of that is cut: no crash in between forgets the tear.
            ledger.note("torn", detail=entries.torn)
            os.ftruncate(descriptor, os.lseek(descriptor, 0, os.SEEK_CUR))
            os.fsync(descriptor)
        return ledger

    @property
    def head(self) -> str:
        """SHA-256 of the last line: quoting it pins the whole ledger."""
        return self._head

    @property
    def steps(self) -> int:
        """Steps spent so far."""
        return len(self._step_heads) - 1

    @property
    def notes(self) -> tuple[dict[str, Any], ...]:
        """All entries that are neither the plan nor a step, first to last."""
        return tuple(self._notes)

    @property
    def tear(self) -> bool:
        """Whether a line after the last spent step was torn.

        If the disk kept what it promised, that line's step never ran. A disk that did not may have lost a line whose
        step was taken: who goes on should count it as spent.
        """
        return self._tear

    def head_at(self, step: int) -> str:
        """SHA-256 of the line that spends ``step``, of the plan's line for step 0; it pins all lines before."""
        return self._step_heads[step]

    def spend(self, step: int) -> None:
        """Records step ``step`` (from 1) durably; call it *before* the step runs, which may run only if this returns.

        Raises :class:`BudgetError` for a step beyond the plan, out of turn, or that could not be written.
        """
        if step > self.plan.steps:
            raise BudgetError(f"Step {step} is beyond the plan's {self.plan.steps} steps; stop, or make a larger plan.")
        if isinstance(step, bool) or step != self.steps + 1:
            raise BudgetError(f"Step {step} is out of turn; the ledger's next step is {self.steps + 1}.")
        self._append({"kind": "step", "step": step})
        self._step_heads.append(self._head)

    def note(self, kind: str, **fields: Any) -> None:
        """Records anything else worth keeping (a resume, a further run on the same data); ``fields`` must be JSON."""
        if kind in ("plan", "step") or _RESERVED & fields.keys():
            raise ValueError(
                "a note may not be a plan or a step, nor use the fields kind, prev, check, step, plan_sha256"
            )
        self._append({"kind": kind, **fields})

    def _append(self, entry: dict[str, Any]) -> None:
        if self._descriptor is None:
            raise BudgetError(f"The ledger {self.path} is closed; open it again before spending.")
        entry = {**entry, "prev": self._head}
        line = _canonical({**entry, "check": _sha256(_canonical(entry))})
        data = line.encode() + b"\n"
        try:
            _write(self._descriptor, data)
            os.fsync(self._descriptor)
        except OSError as error:
            # What reached the disk is unknown: write no more. The next open() counts the line if it is whole.
            self.close()
            raise BudgetError(
                f"The ledger {self.path} could not be written ({error.strerror}); mend the disk, then resume the run."
            ) from error
        self._head = _sha256(line)
        self._count(entry)

    def _count(self, entry: dict[str, Any]) -> None:
        if entry["kind"] not in ("plan", "step"):
            self._notes.append(entry)
        if entry["kind"] in ("step", "torn"):
            self._tear = entry["kind"] == "torn"

    def close(self) -> None:
        """Releases the lock; harmless when already closed."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):  # half-built, or the interpreter is going down
            self.close()


def _lock(path: Path, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(f"The ledger {path} is being written by another process; wait for it to end.") from error


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
