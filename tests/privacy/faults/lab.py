"""The product's own training on a network and data so small that a guard can read every release off the weights.

The network is linear, starts at zero and is trained with a learning rate of 2^-30: what step k released is what it
changed in the weights, and no step changes the gradients of the next. A zero image has no gradient at all, so training
on zero images releases nothing but noise.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dpeq.data.images import ImageSet
from dpeq.privacy.ledger import Ledger
from dpeq.privacy.plan import PrivacyPlan
from dpeq.privacy.randomness import Randomness
from dpeq.training import distributed, loop, resume
from dpeq.training.distributed import Ranks
from dpeq.training.loop import StepRecord
from dpeq.training.start import Start
from dpeq.training.state import OptimizerSettings, TrainingState

SHAPE = (1, 8, 16)
PIXELS = 64
"""In each half of an image; pixel j of either half is seen by a layer of its own."""

SIGMA, CLIP, BATCH, VIEWS, PUBLIC = 1.0, 0.5, 4, 2, 40
LR = 2.0**-30
SETTINGS = OptimizerSettings(LR)
CPU = torch.device("cpu")
Patient = tuple[int, Sequence[Tensor]]
"""A label and the images of one unit, each ``[2, 64]``."""


class Network(nn.Module):
    """Two layers without biases, one for each half of an image, whose outputs are added up; 256 parameters.

    ``shown`` are the first pixels of the rows it has seen, batch by batch; ``look`` is called before each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.upper, self.lower = (nn.Linear(PIXELS, 2, bias=False).double() for _ in range(2))
        for layer in (self.upper, self.lower):
            nn.init.zeros_(layer.weight)
        self.shown: list[list[float]] = []
        self.look: Callable[[], None] = nothing

    def forward(self, x: Tensor) -> Tensor:
        self.look()
        self.shown.append(x.flatten(1)[:, 0].tolist())
        x = self.prepared(x.flatten(1))
        return self.upper(x[:, :PIXELS].double()) + self.lower(x[:, PIXELS:].double())

    def prepared(self, x: Tensor) -> Tensor:
        return x


def nothing() -> None:
    """What ``look`` does by default; a function with a name can be deep-copied with the network."""


def make_network() -> nn.Module:
    """What every guard trains; a fault may put another in its place."""
    return Network()


def make_plan(steps: int, rate: float = 1.0) -> PrivacyPlan:
    """A plan with chosen constants; its epsilons are not looked at."""
    return PrivacyPlan(
        epsilon_target=1000.0,
        delta=1e-5,
        unit="patient",
        sample_rate=rate,
        steps=steps,
        expected_batch_size=BATCH,
        noise_multiplier=SIGMA,
        max_grad_norm=CLIP,
        public_units=PUBLIC,
        views=VIEWS,
        accountant="prv",
        epsilon={"prv_upper": 999.0},
    )


def blank() -> Tensor:
    return torch.zeros(2, PIXELS)


def make_data(patients: Sequence[Patient]) -> ImageSet:
    images = torch.stack([image for _, each in patients for image in each]).view(-1, *SHAPE)
    units = torch.tensor([unit for unit, (_, each) in enumerate(patients) for _ in each])
    labels = torch.tensor([label for label, each in patients for _ in each])
    return ImageSet(images, labels, units, len(patients), ("a", "b"), "train", "patient")


@dataclass(frozen=True)
class Trace:
    """What a training showed, step by step.

    Attributes:
        sums: float64 ``[steps, 256]``, the noised sums that the changes of the weights come from.
        shown: the first pixels of the rows that the network saw in each step.
    """

    sums: Tensor
    shown: list[list[float]]


def train(data: ImageSet, plan: PrivacyPlan, key: int, folder: Path, *, look: Callable[[], None] = nothing) -> Trace:
    """One whole training in one process."""
    with Ledger.create(_free(folder), plan) as ledger:
        return _train(data, plan, ledger, Randomness.create(key), Ranks(), look)


def train_on_two_ranks(data: ImageSet, plan: PrivacyPlan, key: int, folder: Path) -> Trace:
    """The same shared by two ranks, which are threads here: the code of ranks, above calls that cross threads."""
    threads = _Threads(2)
    traces: dict[int, Trace] = {}
    errors: list[BaseException] = []

    def go(rank: int, ledger: Ledger | None, randomness: Randomness | None) -> None:
        threads.own.rank = rank
        try:
            traces[rank] = _train(data, plan, ledger, randomness, Ranks(rank, 2), nothing)
        except BaseException as error:
            errors.append(error)
            threads.barrier.abort()

    with pytest.MonkeyPatch.context() as patch, Ledger.create(_free(folder), plan) as ledger:
        patch.setattr(distributed, "dist", threads)
        other = threading.Thread(target=go, args=(1, None, None))
        other.start()
        go(0, ledger, Randomness.create(key))
        other.join()
    if errors:
        raise errors[0]
    assert torch.equal(traces[0].sums, traces[1].sums)
    return traces[0]


def _train(
    data: ImageSet,
    plan: PrivacyPlan,
    ledger: Ledger | None,
    randomness: Randomness | None,
    ranks: Ranks,
    look: Callable[[], None],
) -> Trace:
    network = make_network()
    network.look = look
    shown: Any = network.shown
    weights, rows = [_flat(network)], []

    def after_step(state: TrainingState, record: StepRecord) -> None:
        weights.append(_flat(state.model))
        rows.append([value for batch in shown for value in batch])
        shown.clear()

    loop.train(
        network, data, plan, ledger, SETTINGS, randomness, device=CPU, ranks=ranks, after_step=after_step
    )  # fmt: skip
    return Trace(-torch.diff(torch.stack(weights), dim=0) / LR * plan.expected_batch_size, rows)


class Crash(Exception):
    """What stands in for a power cut: nothing in dpeq catches it."""


def begin_and_crash(data: ImageSet, plan: PrivacyPlan, key: int, folder: Path, after: int) -> None:
    """A run as `dpeq train` makes it, with a checkpoint of every second step, that dies after ``after`` steps."""
    start = Start(Start.new_name(), "lab", "today", "os", None, 0, plan.sha256, "data", {}, {}, {})
    plan.write(folder / "plan.json")
    start.write(folder)
    with Ledger.create(folder / "ledger.jsonl", plan) as ledger:
        start.check_ledger(ledger)
        keeper = resume.Keeper(folder, start, ledger, 2, None)
        with pytest.raises(Crash):
            _keep_training(data, plan, ledger, key, keeper, after)


def go_on(data: ImageSet, plan: PrivacyPlan, key: int, folder: Path) -> None:
    """Resumes the run of :func:`begin_and_crash` under a fresh key, to its end, as `dpeq train --resume` does it."""
    start, ledger = resume.reopen(folder)
    with ledger:
        found = resume.find_checkpoint(folder, start, ledger)
        resume.settle(start, ledger, found, {}, {})
        _keep_training(data, plan, ledger, key, resume.Keeper(folder, start, ledger, 2, found), None)


def _keep_training(
    data: ImageSet, plan: PrivacyPlan, ledger: Ledger, key: int, keeper: resume.Keeper, after: int | None
) -> None:
    def after_step(state: TrainingState, record: StepRecord) -> None:
        keeper.step(state)
        if record.step == after:
            raise Crash

    secure = Randomness(None, 0, key.to_bytes(32, "little"))  # as a key from the operating system is treated
    loop.train(
        make_network(), data, plan, ledger, SETTINGS, secure, device=CPU, resume=keeper.begin, after_step=after_step
    )


def _flat(network: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters() if p.requires_grad])


def _free(folder: Path) -> Path:
    return folder / f"{len(list(folder.iterdir()))}.jsonl"


class _Threads:
    """The few calls of torch.distributed that :class:`Ranks` makes, between threads of this process."""

    def __init__(self, world: int) -> None:
        self.barrier, self.own = threading.Barrier(world, timeout=60), threading.local()
        self.tensors: list[Tensor] = [torch.empty(0)] * world

    def _exchange(self, tensor: Tensor) -> list[Tensor]:
        self.tensors[self.own.rank] = tensor.clone()
        self.barrier.wait()
        found = list(self.tensors)
        self.barrier.wait()
        return found

    def broadcast(self, tensor: Tensor, source: int) -> None:
        tensor.copy_(self._exchange(tensor)[source])

    def reduce(self, tensor: Tensor, target: int) -> None:
        total = torch.stack(self._exchange(tensor)).sum(dim=0)
        if self.own.rank == target:
            tensor.copy_(total)

    def all_gather(self, out: list[Tensor], tensor: Tensor) -> None:
        for place, theirs in zip(out, self._exchange(tensor), strict=True):
            place.copy_(theirs)
