"""One cell of a sweep: what has become of it so far, and running it, once, wherever it stands."""

from __future__ import annotations

import fcntl
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dpeq.config import RunConfig
from dpeq.data.cards import load_card
from dpeq.errors import ConfigError, DataError
from dpeq.training.files import make_folder
from dpeq.training.start import Start, settings_of

if TYPE_CHECKING:
    from dpeq.pipeline import Outcome
    from dpeq.training.run import Interruptible, Observer

__all__ = ["State", "run_cell", "state_of"]

State = Literal["new", "unfinished", "unreported", "done"]
_REPORT = ("report.html", "report.json")
_BEFORE_THE_LEDGER = ("config.yaml", "plan.json", "start.json")


def state_of(folder: Path, config: RunConfig) -> State:
    """What has become of the run of ``config`` in ``folder``.

    A run that died before it had a ledger counts as new; one that is finished but for its report is unreported.

    Raises:
        ConfigError: when a run with other settings lies there, naming the first that differs.
        DataError: for a damaged folder.
    """
    if not (folder / "ledger.jsonl").is_file():
        return "new"
    was, now = Start.read(folder).settings, settings_of(config, load_card(config.data.card))
    for key in sorted(was.keys() | now.keys()):
        if was.get(key) != now.get(key):
            raise ConfigError(
                f"The run in {folder} has {key} {was.get(key)!r}, but this sweep says {now.get(key)!r}; give the sweep "
                "another --out, or the old setting."
            )
    if not (folder / "run.json").is_file():
        return "unfinished"
    return "done" if all((folder / name).is_file() for name in _REPORT) else "unreported"


def run_cell(
    config: RunConfig,
    *,
    out: Path,
    reports: Path,
    command: str,
    observer: Observer,
    interruptible: Interruptible,
) -> Outcome | None:
    """Trains the run of ``config`` in ``out/<name>``, or goes on with it; None when it was done already.

    The folder is that very one: a second run under the name, which would spend the budget again, never begins.

    Raises:
        ConfigError: when another process is at this cell, and as :func:`state_of`.
        DataError: when a run in ``out`` was trained on other data.
        Also whatever :func:`dpeq.pipeline.train_and_report` raises.
    """
    make_folder(out)
    folder = out / config.name
    with _alone_with(folder):
        state = state_of(folder, config)
        if state == "done":
            return None
        if state == "unreported":
            private = math.isfinite(config.privacy.epsilon)
            return _report(folder, reports / (config.name if private else f"{config.name}-nonprivate"))
        if state == "new":
            _clear(folder)
        else:
            _same_threads(folder, config)
        from dpeq.pipeline import train_and_report

        return train_and_report(
            config,
            runs=out,
            reports=reports,
            command=command,
            observer=observer,
            resume=folder if state == "unfinished" else None,
            interruptible=interruptible,
            accept=lambda fingerprint: _accept(out, fingerprint),
            exact_folder=True,
        )


def _accept(out: Path, fingerprint: str) -> None:
    """The price of a sweep and its summary are of one data set: other data is refused before any of it is spent on."""
    for ledger in sorted(out.glob("*/ledger.jsonl")):
        if Start.read(ledger.parent).data_sha256 != fingerprint:
            raise DataError(
                f"The data is not that of {ledger.parent} (its fingerprint differs), with which this run would be "
                "summed up; give the same data, or the sweep another --out."
            )


def _report(folder: Path, published: Path) -> Outcome:
    """What a run does last: its own report comes last, for it says that nothing is left to do."""
    from dpeq.pipeline import Outcome
    from dpeq.reporting.html import write_report
    from dpeq.reporting.model import build_report

    report = build_report(folder)
    html, _ = write_report(report, published)
    write_report(report, folder)
    return Outcome(folder, None, report, html)


@contextmanager
def _alone_with(folder: Path) -> Iterator[None]:
    """Holds the cell's lock, which ends with the process, however that ends."""
    path = folder.with_name(f".{folder.name}.lock")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"Another process is running the cell {folder.name}; wait for it to end.") from None
        yield
    finally:
        os.close(descriptor)


def _clear(folder: Path) -> None:
    """Takes away what a process left that died before there was a ledger, and so before any step."""
    if not folder.is_dir():
        return
    left = sorted(folder.iterdir())
    for path in left:
        if path.name not in _BEFORE_THE_LEDGER and not path.name.startswith((".ledger-", ".start.json")):
            raise ConfigError(f"{folder} holds {path.name} but no ledger, so it is no run; move the folder away.")
    for path in left:
        path.unlink()
    folder.rmdir()


def _same_threads(folder: Path, config: RunConfig) -> None:
    """Steps of a run with a seed are repeated only by as many threads as took them."""
    if config.training.seed is None or config.training.threads is not None:
        return
    import torch

    torch.set_num_threads(int(Start.read(folder).machine["training.threads"]))
