"""What tests/training/test_distributed.py runs in processes of their own; started by torchrun, or to fork pairs.

``torchrun --nproc-per-node=2 two_ranks.py FOLDER`` trains every case. ``python two_ranks.py FOLDER`` makes every
failure happen to a fresh pair of processes without torchrun, and writes how they ended.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from dpeq.data.augment import AugmentConfig
from dpeq.data.images import ImageSet
from dpeq.data.views import Augment
from dpeq.errors import ConfigError, DpeqError
from dpeq.models.registry import build_model
from dpeq.models.resnet9 import ResNet9Spec
from dpeq.privacy.ledger import Ledger
from dpeq.privacy.plan import PrivacyPlan
from dpeq.privacy.randomness import Randomness, Stream
from dpeq.training import loop
from dpeq.training.distributed import Ranks, joined
from dpeq.training.loop import StepRecord, train
from dpeq.training.state import OptimizerSettings, TrainingState

CPU = torch.device("cpu")
SPEC = ResNet9Spec("C4", "none", (1, 1, 2), (1, 1, 1), stem_pool=True)
STEPS = 4
VIEWS = AugmentConfig.model_validate({
    "flip": ("x",), "shift": 2, "rotate": 20.0, "noise": 0.1,
    "transforms": [{"name": "RandGaussianNoise", "prob": 0.5}, {"name": "RandAxisFlip", "prob": 0.5}],
})  # fmt: skip


def make_plan(**changes: Any) -> PrivacyPlan:
    values: dict[str, Any] = {
        "epsilon_target": 100.0,
        "delta": 1e-5,
        "unit": "patient",
        "sample_rate": 0.4,
        "steps": STEPS,
        "expected_batch_size": 4,
        "noise_multiplier": 0.7,
        "max_grad_norm": 0.3,
        "public_units": 10,
        "views": 2,
        "accountant": "prv",
        "epsilon": {"prv_upper": 99.0},
    }
    return PrivacyPlan(**{**values, **changes})


def patients() -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    units = torch.repeat_interleave(torch.arange(10), torch.tensor([1, 2, 3, 1, 2, 3, 1, 2, 3, 1]))
    images = torch.randn(len(units), 1, 8, 8, generator=generator)
    return ImageSet(images, units % 2, units, 10, ("a", "b"), "train", "patient")


@dataclass(frozen=True)
class Case:
    """One training; ``stop`` asks for a stop after so many steps, ``resume`` goes on from two steps taken alone."""

    settings: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    augment: bool = False
    stop: int | None = None
    resume: bool = False
    metrics: bool = False


NO_NOISE = {"noise_multiplier": 0.0, "epsilon_target": math.inf, "accountant": "none", "epsilon": {}}
CASES = {
    "momentum": Case({"momentum": 0.9, "physical_units": 3}),
    "adam": Case({"optimizer": "adam", "lr": 0.01, "physical_units": 1, "schedule": "cosine"}),
    "augment": Case({"momentum": 0.9, "physical_units": 2}, augment=True, metrics=True),
    "no noise": Case({"physical_units": 2}, NO_NOISE, augment=True),  # under the noise a lost unit would hide
    "one view": Case({}, {"views": 1, "clipping": "per_layer", "sample_rate": 1.0}),
    "few units": Case({}, {"sample_rate": 0.05}),  # some steps have one unit, some none
    "empty": Case({}, {"sample_rate": 1e-6}, augment=True),
    "stopped": Case({"momentum": 0.9}, stop=2),
    "resumed": Case({"optimizer": "adam", "lr": 0.01}, resume=True),
}


def train_case(name: str, folder: Path, ranks: Ranks) -> dict[str, Any]:
    """Trains a case, writes its weights and says what each step looked like."""
    case = CASES[name]
    plan = make_plan(**case.plan)
    settings = OptimizerSettings(**{"lr": 0.5, "ema_decay": 0.5, **case.settings})
    augment = Augment(VIEWS, 2) if case.augment else None
    leads = ranks.leads
    seen: list[dict[str, Any]] = []
    saved: dict[str, torch.Tensor] = {}

    def after_step(state: TrainingState, record: StepRecord) -> None:
        private = None if record.private is None else vars(record.private)
        tensors = state.tensors()
        digest = {key: float(t.double().sum()) for key, t in tensors.items()}
        seen.append({"step": record.step, "private": private, "digest": digest})
        if record.step == 2:
            saved.update(tensors)

    def go(ledger: Ledger | None, ranks: Ranks, model: nn.Module, **others: Any) -> loop.TrainingResult:
        return train(
            model,
            patients(),
            plan,
            ledger,
            settings,
            Randomness.create(11) if ranks.leads else None,
            device=ranks.device,
            augment=augment,
            images_per_unit=1 if case.augment else None,
            ranks=ranks,
            after_step=after_step,
            log_private_metrics=case.metrics,
            **others,
        )

    # Every rank begins with other weights, as without a key in common it must.
    model = build_model(SPEC, 1, 2, seed=5 + ranks.rank)
    model.register_buffer("mark", torch.tensor([ranks.rank]), persistent=False)  # in no checkpoint, so in no state
    ledger = Ledger.create(folder / f"{name}.jsonl", plan) if leads else None
    stop = case.stop
    try:
        if case.resume:
            if leads:
                go(ledger, Ranks(), build_model(SPEC, 1, 2, seed=5), should_stop=lambda: len(seen) == 2)
                seen.clear()
            result = go(ledger, ranks, model, resume=(lambda state: state.restore(2, saved)) if leads else None)
        else:
            result = go(ledger, ranks, model, should_stop=lambda: stop is not None and len(seen) >= stop)
    finally:
        if ledger is not None:
            ledger.close()
    weights = {f"last.{key}": t.contiguous() for key, t in result.last.state_dict().items()}
    weights |= {f"averaged.{key}": t.contiguous() for key, t in result.averaged.state_dict().items()}
    save_file(weights, folder / f"{name}.{ranks.rank}.safetensors")
    return {"steps": result.steps, "stopped": result.stopped, "seen": seen, "mark": int(model.mark)}


class Counted:
    """Calls of what only rank 0 may do; pickles are refused outright."""

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}
        self._wrap(sys.modules["dpeq.privacy.optimizer"], "add_noise")
        self._wrap(loop, "poisson_sample")
        self._wrap(Ledger, "spend")
        self._wrap(Stream, "__init__")
        self._wrap(torch.distributed.distributed_c10d, "_object_to_tensor")
        self._wrap(torch.distributed.distributed_c10d, "_tensor_to_object")

    def _wrap(self, owner: Any, name: str) -> None:
        inner = getattr(owner, name)
        self.calls[name] = 0

        def counted(*args: Any, **named: Any) -> Any:
            self.calls[name] += 1
            return inner(*args, **named)

        setattr(owner, name, counted)


DISAGREEMENTS = ("plan", "data", "labels", "settings", "augment", "images", "network", "metrics")


def disagree(what: str, folder: Path, ranks: Ranks) -> str:
    """The error of a training whose rank 1 was given something else."""
    odd = not ranks.leads
    data, plan = patients(), make_plan(steps=5 if odd and what == "plan" else STEPS)
    if odd and what == "data":
        data.images[3, 0, 2, 2] += 1e-3
    if odd and what == "labels":
        data = replace(data, labels=1 - data.labels)
    model = build_model(SPEC if not (odd and what == "network") else replace(SPEC, group="C2"), 1, 2, seed=5)
    ledger = Ledger.create(folder / f"differs-{what}.jsonl", plan) if ranks.leads else None
    try:
        train(
            model,
            data,
            plan,
            ledger,
            OptimizerSettings(0.5, momentum=0.9 if odd and what == "settings" else 0.0),
            Randomness.create(11) if ranks.leads else None,
            device=CPU,
            augment=Augment(AugmentConfig(shift=1), 2) if odd and what == "augment" else None,
            images_per_unit=1 if odd and what == "images" else None,
            ranks=ranks,
            log_private_metrics=odd and what == "metrics",
        )
    except ConfigError as error:
        return str(error)
    return "nothing was refused"


def session(folder: Path) -> None:
    """Everything that goes well, in one pair of processes."""
    with joined(CPU, timedelta(seconds=60)) as ranks:
        told: dict[str, Any] = {"text": ranks.say("Grüße, " * 1000 if ranks.leads else None), "nothing": ranks.say("")}
        mine = {"a": torch.tensor(2.0), "b": torch.ones(2, 3, dtype=torch.bfloat16)} if ranks.leads else None
        told["tensors"] = {key: [str(t.dtype), t.tolist()] for key, t in ranks.hand_out(mine).items()}
        layer = nn.Linear(2, 3, bias=False)
        layer.register_buffer("flags", torch.tensor([ranks.leads, False]), persistent=False)
        layer.weight.data = torch.arange(6.0).view(2, 3).T + ranks.rank
        ranks.align(layer)
        told["aligned"] = [layer.weight.tolist(), layer.flags.tolist()]
        told["added"] = ranks.add_up(torch.full((3,), 2.0**-40 + ranks.rank, dtype=torch.float64)).tolist()
        refused = {what: disagree(what, folder, ranks) for what in DISAGREEMENTS}
        cases, calls = {}, {}
        for name in CASES:
            counted = Counted()
            cases[name] = train_case(name, folder, ranks)
            calls[name] = dict(counted.calls)  # later wrappers call this one
        body = {"rank": ranks.rank, "told": told, "refused": refused, "cases": cases, "calls": calls}
    body["parted"] = not torch.distributed.is_initialized()
    (folder / f"session.{ranks.rank}.json").write_text(json.dumps(body))


FAILURES: dict[str, Callable[[Ranks], None]] = {
    "kill 0": lambda ranks: os.kill(os.getpid(), signal.SIGKILL) if ranks.leads else None,
    "kill 1": lambda ranks: None if ranks.leads else os.kill(os.getpid(), signal.SIGKILL),
    "silent": lambda ranks: None if ranks.leads else time.sleep(60),
    "remembers": lambda ranks: None,  # see fail()
}


def fail(name: str, folder: Path) -> None:
    """One rank of a training in whose third step something goes wrong on one rank."""
    with joined(CPU, timedelta(seconds=5 if name == "silent" else 60)) as ranks:
        plan = make_plan(sample_rate=1.0)
        model, passes = build_model(SPEC, 1, 2, seed=5), []

        def at_third(*_: Any) -> None:
            passes.append(1)
            if len(passes) == 3:
                FAILURES[name](ranks)
                if name == "remembers" and not ranks.leads:
                    next(model.parameters()).data += 1.0

        model.register_forward_pre_hook(at_third)
        with Ledger.create(folder / f"{name}.jsonl", plan) if ranks.leads else nullcontext() as ledger:
            train(
                model,
                patients(),
                plan,
                ledger,
                OptimizerSettings(0.5),
                Randomness.create(None) if ranks.leads else None,
                device=CPU,
                ranks=ranks,
            )


def start_pair(name: str, folder: Path) -> dict[int, int]:
    """Forks two ranks, as two people at two machines might start them; process ids by rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pids = {}
    for rank in range(2):
        pids[rank] = os.fork()
        if pids[rank] == 0:
            os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            with (folder / f"{name}.{rank}.err").open("w") as handle:
                os.dup2(handle.fileno(), 2)
            code = 0
            try:
                fail(name, folder)
            except DpeqError as error:
                print(f"Error: {error}", file=sys.stderr, flush=True)
                code = 99 if torch.distributed.is_initialized() else error.exit_code
            if name == "kill 1":
                sys.exit(code)
            os._exit(code)  # Python takes a second to clean up; one pair shows that this goes well
    return pids


def failures(folder: Path) -> None:
    """All pairs at once: most of their time they wait."""
    started = time.monotonic()
    running = {(name, rank): pid for name in FAILURES for rank, pid in start_pair(name, folder).items()}
    ended: dict[str, dict[int, list[float]]] = {name: {} for name in FAILURES}
    while running:
        for (name, rank), pid in list(running.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                ended[name][rank] = [os.waitstatus_to_exitcode(status), time.monotonic() - started]
                del running[name, rank]
        if 0 in ended["silent"] and ("silent", 1) in running:
            os.kill(running["silent", 1], signal.SIGKILL)
        time.sleep(0.02)
    (folder / "failures.json").write_text(json.dumps(ended))


if __name__ == "__main__":
    torch.set_num_threads(1)
    (session if "RANK" in os.environ else failures)(Path(sys.argv[1]))
