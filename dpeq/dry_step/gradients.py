"""Gradients per unit from the private engine, held against a plain backward pass for every unit alone."""

from __future__ import annotations

import copy
import re
from collections.abc import Container, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dpeq.dry_step.batch import MadeUpBatch
from dpeq.dry_step.findings import FREEZE, TOLERANCE, Finding, Stop, in_a_line, step_fails
from dpeq.dry_step.trace import tensors_in
from dpeq.errors import ConfigError
from dpeq.privacy.clipping import LayerError, UnitGradSampleModule

__all__ = ["EngineGradient", "compare", "engine_gradients", "plain_gradients", "set_refused_aside"]

_MENDS = {
    nn.MultiheadAttention: "use opacus.layers.DPMultiheadAttention, or model.name: vit",
    nn.LSTM: "use convolutions, or model.name: vit",
    nn.GRU: "use convolutions, or model.name: vit",
    nn.RNN: "use convolutions, or model.name: vit",
}


class EngineGradient(NamedTuple):
    """What the engine has of one parameter.

    Attributes:
        sample: ``[units, *parameter.shape]``; None where no hook fired, a list of those where several checkpoints did.
        by_functorch: whether the parameter's layer was run again row by row.
    """

    sample: Any
    by_functorch: bool


def plain_gradients(model: nn.Module, batch: MadeUpBatch) -> dict[str, list[Tensor | None]]:
    """The oracle: per parameter, the gradient of each unit by a plain backward pass of its rows alone.

    Raises:
        Stop: when nothing that is trainable reaches the output, or the backward pass fails.
    """
    trial = copy.deepcopy(model)  # a network may keep what it computed, and then cannot be copied any more
    result: dict[str, list[Tensor | None]] = {name: [] for name, _ in trial.named_parameters()}
    for unit in range(batch.units):
        rows = batch.rows_of(unit)
        trial.zero_grad(set_to_none=True)
        loss = batch.loss(tensors_in(trial(batch.x[rows])), batch.labels[rows])
        if not loss.requires_grad:
            raise Stop("nothing that is trainable reaches its output", "unfreeze a layer that the output uses")
        try:
            loss.backward()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise Stop(
                f"a plain backward pass fails: {in_a_line(error)}", "let it change no tensor in place that it needs"
            ) from error
        for name, p in trial.named_parameters():
            result[name].append(None if p.grad is None else p.grad.clone())
    return result


def engine_gradients(model: nn.Module, batch: MadeUpBatch) -> dict[str, EngineGradient]:
    """Per parameter what the private engine has of it; ``model`` is left as it was.

    Raises:
        ConfigError: of the engine, with the first layer that it refuses; see :func:`set_refused_aside`.
        Stop: when the step fails otherwise.
    """
    trial = copy.deepcopy(model)
    try:
        wrapped = UnitGradSampleModule(trial, batch.views)
        batch.loss(tensors_in(wrapped(batch.x)), batch.labels).backward()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise step_fails(error) from error
    by_functorch = {
        f"{name}.{key}".lstrip(".")
        for name, layer in trial.named_modules()
        if hasattr(layer, "ft_compute_sample_grad")
        for key, _ in layer.named_parameters()
    }
    gradients = {
        name: EngineGradient(getattr(p, "grad_sample", None), name in by_functorch)
        for name, p in trial.named_parameters()
    }
    wrapped.detach()
    return gradients


def set_refused_aside(model: nn.Module, error: ConfigError) -> dict[str, Finding]:
    """Freezes the layer that the engine refused, in place, so that the others can be heard; the finding on it.

    Raises:
        Stop: when the engine refused the network as a whole, or a layer that has nothing to freeze.
    """
    name, sentence = error.layer if isinstance(error, LayerError) else None, str(error)
    layer = None if name is None else model.get_submodule(name)
    own = [] if layer is None else [p for p in layer.parameters(recurse=False) if p.requires_grad]
    if name is None or not own:
        raise Stop(sentence.rstrip("."), "see there")
    for p in own:
        p.requires_grad_(False)
    reason = re.sub(r"^Layer '[^']*' (\([^)]*\) )?", "it ", sentence).rstrip(".")
    why, _, mend = reason.rpartition("; ")
    return {name: Finding("refused", why or reason, _MENDS.get(type(layer), mend or FREEZE))}


def compare(
    model: nn.Module,
    engine: Mapping[str, EngineGradient],
    plain: Mapping[str, list[Tensor | None]],
    calls: Mapping[str, int],
    known: Container[str],
) -> dict[str, Finding]:
    """A finding on every layer with trainable parameters of its own that is not known yet.

    Args:
        model: the network as it was given; nothing in it is frozen that its owner did not freeze.
        engine, plain: by the parameter's name.
        calls: how often each layer is called in a forward pass.
        known: layers that there is a finding on already.
    """
    whole = max((float(g.norm()) for gs in plain.values() for g in gs if g is not None), default=0.0)
    found: dict[str, Finding] = {}
    for name, layer in model.named_modules():
        own = [f"{name}.{key}".lstrip(".") for key, _ in layer.named_parameters(recurse=False)]
        # A tied parameter is judged where it is met first; only there does it have a name.
        trainable = [p for p in own if p in plain and model.get_parameter(p).requires_grad]
        if name in known or not trainable:
            continue
        unused = [p for p in trainable if all(g is None for g in plain[p])]
        problems = [w for p in trainable if p not in unused for w in _difference(engine[p].sample, plain[p], whole)]
        if unused:
            which = "it is" if len(unused) == len(trainable) else f"{', '.join(unused)} is"
            why = f"{which} never used on the way to the output, so there is no gradient to clip"
            found[name] = Finding("unused", why, f"{FREEZE}, or take it out of the network")
        elif problems:
            found[name] = Finding("refused", problems[0], _mend_of_difference(layer))
        else:
            functorch = any(engine[p].by_functorch for p in trainable)
            found[name] = Finding("functorch" if functorch else "exact", _remarks(functorch, calls.get(name, 1)))
    return found


def _difference(sample: Any, plain: list[Tensor | None], whole: float) -> Iterator[str]:
    if sample is None:
        yield "its parameters are used outside its own forward, where no hook sees them"
        return
    if not isinstance(sample, Tensor):
        yield "it is used in several checkpoints, and its gradients would be clipped in each"
        return
    expected = torch.stack([torch.zeros_like(sample[0]) if g is None else g for g in plain])
    # Biases before a norm have no gradient but rounding, which is measured against the network's.
    error = float((sample - expected).norm()) / max(float(expected.norm()), 1e-4 * whole, 1e-30)
    if not error <= TOLERANCE:
        yield f"its gradients per unit are wrong by {error:.0%} of what a plain backward pass gives"


def _mend_of_difference(layer: nn.Module) -> str:
    if getattr(layer, "padding_mode", "zeros") != "zeros":
        return "Opacus takes every padding for zeros: pad with torch.nn.functional.pad before it, and not in it"
    return f"call it as a layer, on [N, ...], and register a grad sampler that is right for it; or {FREEZE}"


def _remarks(functorch: bool, calls: int) -> str:
    remarks = ["it has no registered grad sampler and is run again row by row"] if functorch else []
    if calls > 1:
        remarks.append(f"it is called {calls} times per batch, and its gradients are added up")
    return "; ".join(remarks)
