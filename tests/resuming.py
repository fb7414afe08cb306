"""One process of training after another on a tiny run: what the tests of resuming share."""

from pathlib import Path

import pytest

from benchmarks.killable import SEED, make_config, make_splits
from dpeq.privacy import randomness as randomness_module
from dpeq.privacy.ledger import read_ledger
from dpeq.training.run import Silent, run

STEPS = 12


class Crash(Exception):
    """What stands in for SIGKILL: nothing in dpeq catches it."""


class CrashAfter(Silent):
    """Training dies after so many steps, checkpoint or not."""

    def __init__(self, step: int) -> None:
        self.at = step

    def stepped(self, record, plan) -> None:
        if record.step == self.at:
            raise Crash


def go(room: Path, *, seed: int | None = SEED, splits=None, config=None, **options) -> Path:
    """One process of training; resumes what ``resume`` names."""
    config = config or make_config(room, steps=STEPS, seed=seed)
    return run(config, out=room / "runs", command="test", splits=splits or make_splits(), **options).folder


def crash(room: Path, step: int, **options) -> Path:
    """A run that died in step ``step``, after it was taken."""
    with pytest.raises(Crash):
        go(room, observer=CrashAfter(step), **options)
    return room / "runs" / "chaos"


def weights(folder: Path) -> bytes:
    return b"".join((folder / "checkpoints" / f"{name}.safetensors").read_bytes() for name in ("final", "raw"))


def steps_on_disk(folder: Path) -> list[int]:
    return sorted(int(p.stem[5:]) for p in (folder / "checkpoints").glob("step-*"))


def notes(folder: Path) -> list[dict]:
    entries = read_ledger(folder / "ledger.jsonl")
    chain = ("kind", "prev", "check", "machine")
    return [{k: v for k, v in e.items() if k not in chain} for e in entries if e["kind"] == "resume"]


def drawn(monkeypatch) -> list[tuple[int, bytes]]:
    """Every step whose noise is drawn from now on, with the stream it is drawn from."""
    found: list[tuple[int, bytes]] = []
    stream = randomness_module.Randomness.stream

    def watched(self, use, step):
        if use == "noise":
            found.append((step, stream(self, use, step).words(2).tobytes()))
        return stream(self, use, step)

    monkeypatch.setattr(randomness_module.Randomness, "stream", watched)
    return found


def shorter(ledger: Path, folder: Path) -> None:
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:-3]))
