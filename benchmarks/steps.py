"""One training step by every method that the benchmarks compare, on made-up images.

- ``nonprivate``: the same network and optimiser without privacy.
- ``functorch``: ``vmap(grad)`` over the whole network, the method of the reference implementation.
- ``opacus``: Opacus' hooks on the same plain layers, each run again row by row by torch.func.
- ``dpeq``: this engine.

The three private ones end alike: clip, sum, noise, step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from dpeq.models.registry import ModelChoice, build_model, resolve_spec
from dpeq.nn import UNIT_LAYERS
from dpeq.privacy.clipping import UnitGradSampleModule
from dpeq.privacy.optimizer import PlanOptimizer
from dpeq.privacy.plan import PrivacyPlan
from dpeq.privacy.randomness import Randomness

METHODS = ("nonprivate", "functorch", "opacus", "dpeq")


@dataclass(frozen=True)
class Task:
    """A network and the images it sees.

    Attributes:
        network: a name for people.
        choice: of :class:`ModelChoice`.
        shape: ``(channels, *spatial)``.
        batch: units of a step.
        views: images of a unit.
    """

    network: str
    choice: ModelChoice
    shape: tuple[int, ...]
    batch: int = 64
    views: int = 1

    @property
    def size(self) -> str:
        return "x".join(map(str, self.shape[1:]))


TASKS = {
    "2d-28": Task("EqResNet-9 D4", ModelChoice("eqresnet9"), (1, 28, 28)),
    "2d-28-small": Task("EqResNet-9 D4 small", ModelChoice("eqresnet9-small"), (1, 28, 28)),
    "2d-64": Task("EqResNet-9 D4", ModelChoice("eqresnet9"), (1, 64, 64)),
    "2d-64-small": Task("EqResNet-9 D4 small", ModelChoice("eqresnet9-small"), (1, 64, 64)),
    "3d-28": Task("EqResNet-9 axial-D4 tiny", ModelChoice("eqresnet9-3d-tiny"), (1, 28, 28, 28)),
}


def build_step(
    method: str, task: Task, device: torch.device, *, bf16: bool = False, compiled: bool = False
) -> Callable[[], None]:
    """A function that takes one step; everything is set up before it is returned.

    ``compiled`` is for the non-private step alone: the hooks of the private ones stop torch.compile.
    """
    model = build_model(resolve_spec(task.choice, task.shape, 2), task.shape[0], 2, seed=0).to(device).train()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(task.batch * task.views, *task.shape, generator=generator).to(device)
    y = torch.randint(2, (task.batch,), generator=generator).repeat_interleave(task.views).to(device)
    sgd = torch.optim.SGD(model.parameters(), 0.01)
    half = torch.autocast(device.type, torch.bfloat16, enabled=bf16)
    if method == "nonprivate":
        net = torch.compile(model) if compiled else model

        def step() -> None:
            sgd.zero_grad()
            with half:
                logits = net(x)
            F.cross_entropy(logits.float(), y).backward()
            sgd.step()

        return step
    private = PlanOptimizer(sgd, _plan(task))
    noise = Randomness.create(0)
    if method == "functorch":
        per_unit = _by_functorch(model, task.views, half)

        def step() -> None:
            for p, gradient in zip(model.parameters(), per_unit(x, y), strict=True):
                p.grad_sample = gradient
            private.accumulate()
            private.finish(noise.stream("noise", 1))

        return step
    if method == "opacus" and task.views > 1:
        raise ValueError("Opacus' own hooks know no views.")
    if method == "opacus":
        with _constants_stay():
            stock = GradSampleModule(model, loss_reduction="sum", force_functorch=True)

        def step() -> None:
            with half:
                logits = stock(x)
            F.cross_entropy(logits.float(), y, reduction="sum").backward()
            private.accumulate()
            private.finish(noise.stream("noise", 1))

        return step
    wrapped = UnitGradSampleModule(model, task.views)

    def step() -> None:
        with half:
            logits = wrapped(x)
        wrapped.backward(logits, y)
        private.accumulate()
        private.finish(noise.stream("noise", 1))

    return step


@contextmanager
def _constants_stay() -> Iterator[None]:
    """Opacus moves its copy of a layer to the "meta" device; constants that follow a layer would be lost there."""
    own = {kind: kind.__dict__["_apply"] for kind in UNIT_LAYERS if "_apply" in kind.__dict__}
    for kind in own:
        kind._apply = nn.Module._apply  # type: ignore[method-assign]
    try:
        yield
    finally:
        for kind, method in own.items():
            kind._apply = method  # type: ignore[method-assign]


def _by_functorch(model: nn.Module, views: int, half: torch.autocast) -> Callable[[Tensor, Tensor], list[Tensor]]:
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        with half:
            logits = functional_call(model, (parameters, buffers), (x,))
        return F.cross_entropy(logits.float(), y, reduction="sum") / views

    each = vmap(grad(loss), in_dims=(None, 0, 0))

    def per_unit(x: Tensor, y: Tensor) -> list[Tensor]:
        found = each(parameters, x.unflatten(0, (-1, views)), y.unflatten(0, (-1, views)))
        return [found[name] for name, _ in model.named_parameters()]

    return per_unit


def _plan(task: Task) -> PrivacyPlan:
    """Made up: what a step costs in time does not depend on what it costs in epsilon."""
    return PrivacyPlan(
        epsilon_target=8.0,
        delta=1e-5,
        unit="image",
        sample_rate=0.01,
        steps=1,
        expected_batch_size=task.batch,
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        public_units=100 * task.batch,
        views=task.views,
        accountant="rdp",
        epsilon={"rdp": 8.0},
    )
