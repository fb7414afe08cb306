"""The examination from end to end: what is looked at, in which order, and on which copy of the network."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from dpeq.dry_step.batch import MadeUpBatch
from dpeq.dry_step.findings import Finding, Findings, Stop, step_fails
from dpeq.dry_step.gradients import EngineGradient, compare, engine_gradients, plain_gradients, set_refused_aside
from dpeq.dry_step.independence import check_gradients_in_training, check_outputs
from dpeq.dry_step.statistics import set_statistics_aside
from dpeq.errors import ConfigError
from dpeq.privacy.clipping import UnitGradSampleModule
from dpeq.privacy.optimizer import PlanOptimizer
from dpeq.privacy.plan import PrivacyPlan
from dpeq.privacy.randomness import Randomness

__all__ = ["examine"]


def examine(model: nn.Module, input_shape: tuple[int, ...], classes: int, views: int, units: int) -> Findings:
    """Examines copies of ``model``, on a batch and in weights that torch's global random state decides."""
    moved = _off_its_weights(model)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    batch = MadeUpBatch.drawn(input_shape, classes, views, units, device)
    work = copy.deepcopy(moved)  # what stands in the way is set aside in it, step by step
    found: dict[str, Finding] = {}
    compared, why, mend = False, "", ""
    try:
        found.update(set_statistics_aside(work))
        calls = check_outputs(work, batch)
        expected = plain_gradients(work, batch)
        gradients: dict[str, EngineGradient] | None = None
        while gradients is None:
            try:
                gradients = engine_gradients(work, batch)
            except ConfigError as error:
                found.update(set_refused_aside(work, error))
        found.update(compare(model, gradients, expected, calls, known=found))
        compared = True
        why, mend = _judge_output(work, batch)
        if not why and all(one.verdict in ("exact", "functorch") for one in found.values()):
            check_gradients_in_training(moved, batch)
            _take_a_step(model, batch)
    except Stop as stop:
        why, mend = stop.why, stop.mend
    return Findings(found, why, mend, compared)


def _off_its_weights(model: nn.Module) -> nn.Module:
    """A copy in training mode, moved off constant initial weights: gates and branches often stand at zero."""
    moved = copy.deepcopy(model).train()
    with torch.no_grad():
        for p in moved.parameters():
            if p.requires_grad and p.numel() and float((p - p.flatten()[0]).abs().max()) == 0:
                p.add_(0.3 * torch.randn_like(p) + 0.1)
    return moved


def _judge_output(model: nn.Module, batch: MadeUpBatch) -> tuple[str, str]:
    """Why the output is not a classifier's, and the mend; both empty if it is."""
    with torch.no_grad():
        output = model(batch.x)
    wanted = f"a tensor [N, {batch.classes}]"
    if not isinstance(output, Tensor):
        return (
            f"it returns a {type(output).__name__}, not {wanted}",
            "return the logits alone (model.pool_output: true)",
        )
    if output.dim() == 2 and output.shape[1] == batch.classes:
        return "", ""
    if output.dim() == 2:
        return f"it returns {output.shape[1]} numbers per row, not {batch.classes}", "build it for that many classes"
    return (
        f"it returns a map {list(output.shape)}, as segmentation does; its layers were examined with a loss per "
        "row, but dpeq trains classifiers only",
        f"pool its output to {wanted} (in a recipe: model.pool_output: true)",
    )


def _take_a_step(model: nn.Module, batch: MadeUpBatch) -> None:
    """The whole of a private step with everything switched on: clip, add noise, move the weights."""
    trial = copy.deepcopy(model).train()
    wrapped = UnitGradSampleModule(trial, batch.views)
    sgd = torch.optim.SGD([p for p in trial.parameters() if p.requires_grad], lr=1e-3)
    try:
        optimizer = PlanOptimizer(sgd, _PLAN)
        wrapped.backward(wrapped(batch.x), batch.labels)
        optimizer.accumulate()
        optimizer.finish(Randomness.create(0).stream("noise", 1))
    except (ConfigError, RuntimeError) as error:
        raise step_fails(error) from error
    if not all(bool(p.isfinite().all()) for p in trial.parameters()):
        raise Stop("its weights are not finite after one step", "look at its initial weights")


_PLAN = PrivacyPlan(  # no accounting: nothing real is trained under it
    epsilon_target=1.0,
    delta=1e-5,
    unit="image",
    sample_rate=0.5,
    steps=1,
    expected_batch_size=2,
    noise_multiplier=1.0,
    max_grad_norm=1.0,
    public_units=100,
    accountant="prv",
    epsilon={"prv_upper": 1.0},
)
