"""What the examination says of a network, layer by layer, and the refusal of one that cannot be trained privately."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from dpeq.dry_step.examination import examine
from dpeq.dry_step.findings import Finding, Findings
from dpeq.errors import ConfigError
from dpeq.models.cost import parameter_count

__all__ = ["LayerVerdict", "examine_model", "require_trainable"]

_NOT_EXAMINED = Finding("refused", "it was not examined, because the network as a whole fails", "mend that first")
_FROZEN = Finding("frozen", "its parameters do not require a gradient")


@dataclass(frozen=True)
class LayerVerdict:
    """What the step found out about one layer, or (first in the list, with an empty name) about the network.

    Attributes:
        layer: dotted name in the network.
        kind: class of the layer.
        parameters: numbers in it (not in the layers inside it); for the network, the trainable ones.
        verdict: "exact" and "functorch" (run again row by row: exact, slower) train; "frozen" has nothing to train;
            "refused" and "unused" (never reached by the loss) stand in the way.
        why: the reason, in a sentence; empty for "exact".
        mend: what to put in its place; empty where nothing has to be done.
    """

    layer: str
    kind: str
    parameters: int
    verdict: str
    why: str = ""
    mend: str = ""

    @property
    def trains(self) -> bool:
        return self.verdict not in ("refused", "unused")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def examine_model(
    model: nn.Module, input_shape: tuple[int, ...], classes: int, views: int = 1, units: int = 5
) -> list[LayerVerdict]:
    """Examines a copy of ``model``; the network itself and the global random state are left as they are.

    Args:
        input_shape: ``(channels, *spatial)`` of one image.
        classes: outputs that a classifier has to have.
        views: rows of a batch that belong to one unit.
        units: units of the made-up batch; at least 2, or nobody could tell whether they are kept apart.

    Returns:
        the verdict on the network, then one on every layer that has parameters of its own or stands in the way, in the
        network's order.
    """
    if units < 2:
        raise ValueError(f"units is {units}; two are needed to see whether they are kept apart.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        findings = examine(model, input_shape, classes, views, units)
    layers = [
        _of_layer(name, layer, findings.layers.get(name))
        for name, layer in model.named_modules()
        if name in findings.layers or any(True for _ in layer.parameters(recurse=False))
    ]
    return [_of_network(model, layers, findings), *layers]


def require_trainable(model: nn.Module, input_shape: tuple[int, ...], classes: int, views: int = 1) -> None:
    """Raises ConfigError with the first thing that stands in the way of private training, and how many more do."""
    in_the_way = [v for v in examine_model(model, input_shape, classes, views) if not v.trains]
    if in_the_way:
        network, *layers = in_the_way  # the network's verdict comes first, and is never better than its layers'
        first = layers[0] if layers else network
        name = f"Layer '{first.layer}' ({first.kind})" if first.layer else f"The network ({first.kind})"
        more = f" (and {len(layers) - 1} more)" if len(layers) > 1 else ""
        raise ConfigError(f"{name} cannot be trained privately: {first.why}; {first.mend}{more}.")


def _of_layer(name: str, layer: nn.Module, finding: Finding | None) -> LayerVerdict:
    own = list(layer.parameters(recurse=False))
    if finding is None:
        finding = _NOT_EXAMINED if any(p.requires_grad for p in own) else _FROZEN
    return LayerVerdict(name, type(layer).__name__, sum(p.numel() for p in own), *finding)


def _of_network(model: nn.Module, layers: list[LayerVerdict], findings: Findings) -> LayerVerdict:
    why, mend = findings.why, findings.mend
    trainable = parameter_count(model)
    in_the_way = [v for v in layers if not v.trains]
    verdict = "functorch" if any(v.verdict == "functorch" for v in layers) else "exact"
    if why or in_the_way or not trainable:
        verdict = "refused"
    if in_the_way and findings.compared:
        names = ", ".join(v.layer or type(model).__name__ for v in in_the_way[:3])
        count = f"{len(in_the_way)} of {len(layers)} layers stand in the way: {names}"
        why = f"{why + '; and ' if why else ''}{count}{', ...' if len(in_the_way) > 3 else ''}"
        mend = f"{mend + '; and ' if mend else ''}do what is said of each"
    elif not why and not trainable:
        why, mend = "nothing in it is trainable", "unfreeze a layer"
    return LayerVerdict("", type(model).__name__, trainable, verdict, why, mend)
