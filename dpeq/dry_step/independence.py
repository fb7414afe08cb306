"""Whether a network keeps the units of a batch apart: their outputs at rest, their gradients while it trains."""

from __future__ import annotations

import copy
import random

import torch
from torch import Tensor, nn

from dpeq.dry_step.batch import MadeUpBatch
from dpeq.dry_step.findings import TOLERANCE, Stop, in_a_line, step_fails
from dpeq.dry_step.trace import Trace, first_to_mix, near, tensors_in
from dpeq.errors import ConfigError
from dpeq.privacy.clipping import UnitGradSampleModule
from dpeq.privacy.state import StateGuard

__all__ = ["check_gradients_in_training", "check_outputs"]

_SEEDS = 6  # random layers may do nothing under one of them


def check_outputs(model: nn.Module, batch: MadeUpBatch) -> dict[str, int]:
    """One row in, one row out; the same twice; and a unit's output does not change when another unit does.

    Args:
        model: its random layers are switched off, in place, as far as it takes to get the same output twice.

    Returns:
        how often each layer was called in one pass.

    Raises:
        Stop: where that is not so.
    """
    first = _quieted(model, batch.x)
    wanted = f"return one tensor [N, {batch.classes}]"
    if not first.output:
        raise Stop("its forward returns no tensor", wanted)
    for t in first.output:
        if not t.dim() or t.shape[0] != batch.rows:
            raise Stop(f"it returns {list(t.shape)} for {batch.rows} rows, and each row must stay one", wanted)
        if not bool(t.isfinite().all()):
            raise Stop("its output is not finite", "look at its initial weights")
    changed = _forward(model, batch.with_others_changed(0))
    mine = batch.rows_of(0)
    if not near([t[mine] for t in first.output], [t[mine] for t in changed.output]):
        culprit = first_to_mix(first.seen, changed.seen, batch.rows, batch.views)
        raise Stop(
            f"it mixes the units of a batch{f' in {culprit!r}' if culprit else ''}: the output of one unit changes "
            "when another does",
            "use a layer that looks at each row alone",
        )
    return first.calls


def check_gradients_in_training(model: nn.Module, batch: MadeUpBatch) -> None:
    """With everything switched on and the same random numbers, a unit's gradient ignores all other units.

    Also those of the batch before: every trial sees two batches, and the gradients of the second are compared.

    Args:
        model: left as it was.

    Raises:
        Stop: where that is not so, or where the private engine refuses the network.
    """
    units = (0, batch.units - 1)
    changed = [batch.with_others_changed(unit) for unit in units]
    for seed in range(_SEEDS):
        before, *after = [_gradients_in_training(model, batch, x, seed) for x in (batch.x, *changed)]
        for name in before:
            for unit, trial in zip(units, after, strict=True):
                one, two = before[name][unit], trial[name][unit]
                if float((one - two).norm()) > TOLERANCE * max(float(one.norm()), 1e-6):
                    raise Stop(
                        f"it mixes units while it trains: the gradient of one at '{name}' changes when others do",
                        "use layers that look at each row alone and keep nothing between batches",
                    )


def _gradients_in_training(model: nn.Module, batch: MadeUpBatch, x: Tensor, seed: int) -> dict[str, Tensor]:
    trial = copy.deepcopy(model)
    guard = StateGuard(trial)
    random.seed(seed)
    torch.manual_seed(seed)
    try:
        wrapped = UnitGradSampleModule(trial, batch.views)
        for images in (x.flip(-1), x):
            for p in trial.parameters():
                p.grad_sample = p.grad = None  # type: ignore[attr-defined]
            wrapped.backward(wrapped(images), batch.labels)
        guard.check()
    except (ConfigError, RuntimeError) as error:
        raise step_fails(error) from error
    return {name: p.grad_sample for name, p in trial.named_parameters() if p.requires_grad}  # type: ignore[attr-defined]


def _quieted(model: nn.Module, x: Tensor) -> Trace:
    """A pass that gives the same output again: without dropout, or without every layer that has no parameters."""
    for quiet in (_is_dropout, _has_no_parameters):
        for name, layer in model.named_modules():
            if name and quiet(layer):
                layer.training = False  # for this layer alone: gradients are compared without their randomness
        first, again = _forward(model, x), _forward(model, x)
        if near(first.output, again.output):
            return first
    raise Stop(
        "its output is random beyond dropout, so its gradients cannot be checked",
        "take the random part out of its forward",
    )


def _forward(model: nn.Module, x: Tensor) -> Trace:
    trace = Trace(model, keep=True)
    try:
        with trace, torch.no_grad():
            trace.output = tensors_in(model(x))
    except Exception as error:  # foreign code: whatever it raises is what the user has to know
        where = f" in '{trace.innermost}'" if trace.innermost else ""
        raise Stop(
            f"it fails{where} on a batch {list(x.shape)}: {in_a_line(error)}",
            "give it the channels, the size and the number of axes that it was built for",
        ) from error
    return trace


def _is_dropout(layer: nn.Module) -> bool:
    return isinstance(layer, nn.modules.dropout._DropoutNd) or (
        not any(True for _ in layer.children()) and "drop" in type(layer).__name__.lower()
    )


def _has_no_parameters(layer: nn.Module) -> bool:
    return not any(True for _ in layer.parameters(recurse=False))
