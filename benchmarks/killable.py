"""What :mod:`benchmarks.chaos` kills: a small private run on made-up images, in a process that dies on cue.

The processes are forked from one that has imported everything, so a kill costs about the time of the steps it repeats.
"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sklearn.metrics  # noqa: F401  # for the children: the run comes to it late
import torch
import torch._dynamo  # for the children: torch's optimisers ask for it
import yaml

import dpeq.training.run as run_module
from dpeq.config import RunConfig
from dpeq.data.images import ImageSet
from dpeq.errors import DpeqError
from dpeq.privacy import accounting
from dpeq.privacy.plan import PrivacyPlan
from dpeq.privacy.randomness import Randomness

UNITS, BATCH, SIGMA, DELTA, SEED = 32, 8, 1.0, 1e-3, 7
CALLS = ("write", "fsync", "replace", "link", "ftruncate")


def make_card(folder: Path) -> Path:
    """A card of 8 x 8 images; made-up data is never read through it."""
    symmetries = {"laterality_matters": False, "isotropic": True, "orientation_matters": False, "note": "made up"}
    card = {
        "name": "chaos", "title": "Made-up images", "kind": "medmnist", "source": "made up", "licence": "CC0 1.0",
        "citation": "none", "modality": "none", "dim": 2, "classes": ["dark", "bright"], "unit": "image",
        "public_units": UNITS, "splits": {"train": UNITS, "val": 8, "test": 8}, "symmetries": symmetries,
        "url": "http://127.0.0.1:9/none.npz", "file": "none.npz", "md5": "0" * 32, "image_size": [8, 8],
    }  # fmt: skip
    path = folder / "card.yaml"
    path.write_text(yaml.safe_dump(card), encoding="utf-8")
    return path


def make_config(folder: Path, *, steps: int, seed: int | None, checkpoint_every: int = 4) -> RunConfig:
    return RunConfig.model_validate({
        "name": "chaos",
        "data": {"card": str(make_card(folder))},
        "model": {"name": "eqresnet9-small", "group": "C4", "fields": [1, 1, 2], "norm_groups": [1, 1, 1]},
        "privacy": {"epsilon": 1000, "delta": DELTA, "steps": steps, "expected_batch_size": BATCH},
        "training": {
            "lr": 0.5, "optimizer": "adam", "schedule": "cosine", "seed": seed, "threads": 1,
            "checkpoint_every": checkpoint_every, "physical_units": 16,
        },
        "evaluation": {"bootstrap": 100},
        "tracking": {"tensorboard": False},
    })  # fmt: skip


def make_splits() -> dict[str, ImageSet]:
    generator = torch.Generator().manual_seed(0)
    splits = {}
    for name, n in (("train", UNITS), ("val", 8), ("test", 8)):
        labels = torch.arange(n) % 2
        images = torch.randn(n, 1, 8, 8, generator=generator) + labels[:, None, None, None]
        splits[name] = ImageSet(images, labels, torch.arange(n), n, ("dark", "bright"), name, "image")
    return splits


def make_plan(steps: int) -> PrivacyPlan:
    """The Renyi bound alone: the quickest accountant. Kills do not care which one it is."""
    return PrivacyPlan(
        epsilon_target=1000.0,
        delta=DELTA,
        unit="image",
        sample_rate=BATCH / UNITS,
        steps=steps,
        expected_batch_size=BATCH,
        noise_multiplier=SIGMA,
        max_grad_norm=1.0,
        public_units=UNITS,
        accountant="rdp",
        epsilon={"rdp": accounting.epsilon_rdp(BATCH / UNITS, SIGMA, steps, DELTA)},
    )


@dataclass(frozen=True)
class Moment:
    """When a process meets its end: at the ``count``-th ``call`` on a file whose path contains ``file``.

    Attributes:
        call: one of ``CALLS``, "noise" for a step's noise just drawn, or "time" for ``seconds`` after the start.
        part: "before", "middle" (of a write) or "after" the call; "full" fills the disk before it instead of killing.
    """

    call: str
    file: str = ""
    part: str = "before"
    count: int = 1
    seconds: float = 0.0

    def __str__(self) -> str:
        if self.call == "time":
            return f"{self.seconds:.2f} s after the start"
        if self.call == "noise":
            return f"noise {self.count} drawn"
        return f"{self.part} {self.call} {self.count} of {self.file or 'any file'}"


def _name_of(target: Any) -> str:
    """The path of a file descriptor, or of what is renamed or linked."""
    if isinstance(target, int):
        try:
            return str(Path(f"/proc/self/fd/{target}").readlink())
        except OSError:
            return ""
    return str(target)


def arm(moment: Moment, disk: Callable[[], None]) -> None:
    """Replaces the calls of :mod:`os` in this process, so that it dies at ``moment``; ``disk`` fills the disk."""
    seen = 0

    def guarded(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal seen
            if moment.call != name or moment.file not in _name_of(arguments[0]):
                return real(*arguments, **options)
            seen += 1
            if seen != moment.count:
                return real(*arguments, **options)
            if moment.part == "full":
                disk()
                return real(*arguments, **options)
            if moment.part == "middle":
                data = bytes(arguments[1])
                real(arguments[0], data[: len(data) // 2])
            if moment.part == "after":
                real(*arguments, **options)
            os.kill(os.getpid(), signal.SIGKILL)

        return call

    for name in CALLS:
        setattr(os, name, guarded(name, getattr(os, name)))


def watch(truth: Path, moment: Moment | None) -> None:
    """Every noise that is drawn is written to ``truth``: the step, and 16 bytes of its stream, drawn apart."""
    descriptor = os.open(truth, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    write, stream, drawn = os.write, Randomness.stream, 0

    def watched(self: Randomness, use: Any, step: int) -> Any:
        nonlocal drawn
        if use == "noise":
            write(descriptor, f"{step} {stream(self, use, step).words(2).tobytes().hex()}\n".encode())
            drawn += 1
            if moment is not None and moment.call == "noise" and drawn == moment.count:
                os.kill(os.getpid(), signal.SIGKILL)
        return stream(self, use, step)

    Randomness.stream = watched  # type: ignore[method-assign]


@dataclass
class Trial:
    """One run of training, which is killed and resumed.

    Attributes:
        room: folder with the card, the log and what was truly done.
        runs: folder of the run's folder.
        steps, seed, plan, splits: of the run.
    """

    room: Path
    runs: Path
    steps: int
    seed: int | None
    plan: PrivacyPlan
    splits: dict[str, ImageSet]
    checkpoint_every: int = 4

    @property
    def folder(self) -> Path:
        return self.runs / "chaos"

    @property
    def truth(self) -> Path:
        return self.room / "truth"

    def go(self, moment: Moment | None, disk: Callable[[], None] = lambda: None) -> int:
        """Begins the run, or resumes it, in a process of its own; its exit status, negative for a signal."""
        config = make_config(self.room, steps=self.steps, seed=self.seed, checkpoint_every=self.checkpoint_every)
        started = (self.folder / "ledger.jsonl").is_file()
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            self._child(config, started, moment, disk)
        if moment is not None and moment.call == "time":
            time.sleep(moment.seconds)
            os.kill(child, signal.SIGKILL)  # a zombie at worst: it is not waited for yet
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def _child(self, config: RunConfig, started: bool, moment: Moment | None, disk: Callable[[], None]) -> None:
        code = 1
        try:
            log = os.open(self.room / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            watch(self.truth, moment)
            if moment is not None:
                arm(moment, disk)
            run_module.make_plan = lambda prepared: self.plan  # calibrated once for all
            run_module.run(
                config,
                out=self.runs,
                command="chaos",
                splits=self.splits,
                resume=self.folder if started else None,
            )
            code = 0
        except DpeqError as error:
            print(f"Error: {error}", flush=True)
            code = error.exit_code
        except BaseException as error:  # what was not foreseen is seen by its code, and in the log
            logging.exception("unforeseen: %s", error)
        finally:
            os._exit(code)

    def clear(self) -> None:
        """Takes away what a process left that died before there was a ledger; such a run is begun anew."""
        if self.folder.is_dir() and not (self.folder / "ledger.jsonl").is_file():
            for path in sorted(self.folder.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            self.folder.rmdir()

    def true_steps(self) -> int:
        """Different releases: pairs of a step and its noise."""
        return len(set(self.truth.read_text().splitlines())) if self.truth.is_file() else 0

    def weights(self) -> bytes:
        return b"".join((self.folder / "checkpoints" / f"{name}.safetensors").read_bytes() for name in ("final", "raw"))

    def tear(self, dice: random.Random) -> bool:
        """Cuts the ledger's last line at a random byte, if it is a step's that no checkpoint knows of."""
        path = self.folder / "ledger.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        last = json.loads(lines[-1]) if lines and lines[-1].endswith(b"\n") else {}
        named = [int(p.stem.split("-")[1]) for p in (self.folder / "checkpoints").glob("step-*.safetensors")]
        if last.get("kind") != "step" or last["step"] <= max(named, default=0):
            return False
        os.truncate(path, sum(map(len, lines[:-1])) + dice.randrange(1, len(lines[-1])))
        return True
