"""One private step on a made-up batch: which layers of a network get a gradient per privacy unit, and which do not.

The step goes through the engine that trains. Each layer's gradients per unit are compared with those of a plain
backward pass for every unit alone, so that a layer is called exact because it was, not because it is on a list. What
stands in the way (batch norm above all) is named, set aside in a copy of the network, and the rest examined without it.
"""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpeq.dry_statistics import set_statistics_aside
from dpeq.dry_trace import Trace, first_to_mix, near, tensors_in
from dpeq.errors import ConfigError
from dpeq.privacy.clipping import LayerError, PlanOptimizer, UnitGradSampleModule
from dpeq.privacy.plan import PrivacyPlan
from dpeq.privacy.randomness import Randomness
from dpeq.privacy.state import StateGuard

__all__ = ["LayerVerdict", "examine_model", "require_trainable"]

_TOLERANCE = 1e-3  # relative; single precision leaves 1e-6 to 1e-4, a wrong formula leaves 1
_SEEDS = 6  # random layers may do nothing under one of them
_FREEZE = "freeze it (in a recipe: model.freeze)"
_NOT_EXAMINED = ("refused", "it was not examined, because the network as a whole fails", "mend that first")
_MENDS = {
    nn.MultiheadAttention: "use opacus.layers.DPMultiheadAttention, or model.name: vit",
    nn.LSTM: "use convolutions, or model.name: vit",
    nn.GRU: "use convolutions, or model.name: vit",
    nn.RNN: "use convolutions, or model.name: vit",
}


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
        return _Examination(model, input_shape, classes, views, units).verdicts()


def require_trainable(model: nn.Module, input_shape: tuple[int, ...], classes: int, views: int = 1) -> None:
    """Raises ConfigError with the first thing that stands in the way of private training, and how many more do."""
    in_the_way = [v for v in examine_model(model, input_shape, classes, views) if not v.trains]
    if in_the_way:
        network, *layers = in_the_way  # the network's verdict comes first, and is never better than its layers'
        first = layers[0] if layers else network
        name = f"Layer '{first.layer}' ({first.kind})" if first.layer else f"The network ({first.kind})"
        more = f" (and {len(layers) - 1} more)" if len(layers) > 1 else ""
        raise ConfigError(f"{name} cannot be trained privately: {first.why}; {first.mend}{more}.")


class _Stop(Exception):
    """Nothing more can be found out: the network as a whole does not work."""

    def __init__(self, why: str, mend: str) -> None:
        super().__init__(why)
        self.why, self.mend = why, mend


class _Examination:
    def __init__(self, model: nn.Module, input_shape: tuple[int, ...], classes: int, views: int, units: int) -> None:
        self.original = model
        self.classes, self.views, self.units = classes, views, units
        self.moved = copy.deepcopy(model).train()  # off its initial weights, where gates and branches stand at zero
        with torch.no_grad():
            for p in self.moved.parameters():
                if p.requires_grad and p.numel() and float((p - p.flatten()[0]).abs().max()) == 0:
                    p.add_(0.3 * torch.randn_like(p) + 0.1)
        self.work = copy.deepcopy(self.moved)  # what stands in the way is set aside in it, step by step
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.rows = units * views
        self.x = torch.randn(self.rows, *input_shape).to(device)
        self.labels = (torch.arange(units) % classes).repeat_interleave(views).to(device)
        self.found: dict[str, tuple[str, str, str]] = {}  # layer: verdict, why, mend
        self.calls: dict[str, int] = {}
        self.examined = False  # whether the layers were compared at all

    def verdicts(self) -> list[LayerVerdict]:
        whole = ("", "")
        try:
            self.found = set_statistics_aside(self.work)
            self._check_rows_are_kept_apart()
            expected = self._gradients_one_unit_at_a_time()
            self._compare(self._private_gradients(), expected)
            self.examined = True
            whole = self._judge_output()
            if not whole[0] and all(verdict in ("exact", "functorch") for verdict, _, _ in self.found.values()):
                self._check_units_in_training()
                self._step()
        except _Stop as stop:
            whole = (stop.why, stop.mend)
        layers = [self._of_layer(name, layer) for name, layer in self._layers()]
        return [self._of_network(layers, *whole), *layers]

    # --- what is reported -------------------------------------------------------------------------------------------

    def _layers(self) -> Iterator[tuple[str, nn.Module]]:
        for name, layer in self.original.named_modules():
            if name in self.found or any(True for _ in layer.parameters(recurse=False)):
                yield name, layer

    def _of_layer(self, name: str, layer: nn.Module) -> LayerVerdict:
        own = list(layer.parameters(recurse=False))
        verdict, why, mend = self.found.get(name, _NOT_EXAMINED)
        if name not in self.found and not any(p.requires_grad for p in own):
            verdict, why, mend = "frozen", "its parameters do not require a gradient", ""
        return LayerVerdict(name, type(layer).__name__, sum(p.numel() for p in own), verdict, why, mend)

    def _of_network(self, layers: list[LayerVerdict], why: str, mend: str) -> LayerVerdict:
        trainable = sum(p.numel() for p in self.original.parameters() if p.requires_grad)
        in_the_way = [v for v in layers if not v.trains]
        verdict = "functorch" if any(v.verdict == "functorch" for v in layers) else "exact"
        if why or in_the_way or not trainable:
            verdict = "refused"
        if in_the_way and self.examined:
            names = ", ".join(v.layer or type(self.original).__name__ for v in in_the_way[:3])
            count = f"{len(in_the_way)} of {len(layers)} layers stand in the way: {names}"
            why = f"{why + '; and ' if why else ''}{count}{', ...' if len(in_the_way) > 3 else ''}"
            mend = f"{mend + '; and ' if mend else ''}do what is said of each"
        elif not why and not trainable:
            why, mend = "nothing in it is trainable", "unfreeze a layer"
        return LayerVerdict("", type(self.original).__name__, trainable, verdict, why, mend)

    # --- the steps of the examination -------------------------------------------------------------------------------

    def _check_rows_are_kept_apart(self) -> None:
        """One row in, one row out; the same twice; and a unit's output does not change when another unit does."""
        for quiet in (_is_dropout, _has_no_parameters):
            for name, layer in self.work.named_modules():
                if name and quiet(layer):
                    layer.training = False  # for this layer alone: gradients are compared without their randomness
            first, again = self._forward(self.x), self._forward(self.x)
            if near(first.output, again.output):
                break
        else:
            raise _Stop(
                "its output is random beyond dropout, so its gradients cannot be checked",
                "take the random part out of its forward",
            )
        self.calls = first.calls
        if not first.output:
            raise _Stop("its forward returns no tensor", f"return one tensor [N, {self.classes}]")
        for t in first.output:
            if not t.dim() or t.shape[0] != self.rows:
                raise _Stop(
                    f"it returns {list(t.shape)} for {self.rows} rows, and each row must stay one",
                    f"return one tensor [N, {self.classes}]",
                )
            if not bool(t.isfinite().all()):
                raise _Stop("its output is not finite", "look at its initial weights")
        other = self.x.clone()
        other[self.views :] = torch.randn_like(other[self.views :]) * 2 + 1
        changed = self._forward(other)
        mine = slice(0, self.views)
        if not near([t[mine] for t in first.output], [t[mine] for t in changed.output]):
            culprit = first_to_mix(first.seen, changed.seen, self.rows, self.views)
            raise _Stop(
                f"it mixes the units of a batch{f' in {culprit!r}' if culprit else ''}: the output of one unit changes "
                "when another does",
                "use a layer that looks at each row alone",
            )

    def _check_units_in_training(self) -> None:
        """With everything switched on and the same random numbers, a unit's gradient ignores all other units.

        Also those of the batch before: every trial sees two batches, and the gradients of the second are compared.
        """
        a, b = self.x.clone(), self.x.clone()
        a[self.views :] = torch.randn_like(a[self.views :]) * 2 + 1
        b[: -self.views] = torch.randn_like(b[: -self.views]) * 2 + 1
        for seed in range(_SEEDS):
            first, again = (self._gradients_in_training(x, seed) for x in (self.x, a))
            last = self._gradients_in_training(b, seed)
            for name in first:
                for one, two in ((first[name][0], again[name][0]), (first[name][-1], last[name][-1])):
                    if float((one - two).norm()) > _TOLERANCE * max(float(one.norm()), 1e-6):
                        raise _Stop(
                            f"it mixes units while it trains: the gradient of one at '{name}' changes when others do",
                            "use layers that look at each row alone and keep nothing between batches",
                        )

    def _gradients_in_training(self, x: Tensor, seed: int) -> dict[str, Tensor]:
        trial = copy.deepcopy(self.moved)
        guard = StateGuard(trial)
        random.seed(seed)
        torch.manual_seed(seed)
        try:
            wrapped = UnitGradSampleModule(trial, self.views)
            for batch in (x.flip(-1), x):
                for p in trial.parameters():
                    p.grad_sample = p.grad = None
                wrapped.backward(wrapped(batch), self.labels)
            guard.check()
        except (ConfigError, RuntimeError) as error:
            raise _Stop(f"the private step fails: {_line(error)}", "see its message") from error
        found = {}
        for name, p in trial.named_parameters():
            if p.requires_grad:
                found[name] = p.grad_sample
        return found

    def _gradients_one_unit_at_a_time(self) -> dict[str, list[Tensor | None]]:
        """By a plain backward pass per unit: the oracle."""
        trial = copy.deepcopy(self.work)  # a network may keep what it computed, and then cannot be copied any more
        result: dict[str, list[Tensor | None]] = {name: [] for name, _ in trial.named_parameters()}
        for unit in range(self.units):
            rows = slice(unit * self.views, (unit + 1) * self.views)
            trial.zero_grad(set_to_none=True)
            loss = self._loss(tensors_in(trial(self.x[rows])), self.labels[rows])
            if not loss.requires_grad:
                raise _Stop("nothing that is trainable reaches its output", "unfreeze a layer that the output uses")
            try:
                loss.backward()
            except RuntimeError as error:
                raise _Stop(
                    f"a plain backward pass fails: {_line(error)}", "let it change no tensor in place that it needs"
                ) from error
            for name, p in trial.named_parameters():
                result[name].append(None if p.grad is None else p.grad.clone())
        return result

    def _private_gradients(self) -> dict[str, tuple[Tensor | None, bool]]:
        """Per parameter its gradients per unit from the private engine, and whether they were taken by functorch.

        A layer that the engine refuses is noted and frozen in the copy, so that the others can be heard.
        """
        while True:
            trial = copy.deepcopy(self.work)
            try:
                wrapped = UnitGradSampleModule(trial, self.views)
                self._loss(tensors_in(wrapped(self.x)), self.labels).backward()
            except ConfigError as error:
                self._refuse(error.layer if isinstance(error, LayerError) else None, str(error))
                continue
            except RuntimeError as error:
                raise _Stop(f"the private step fails: {_line(error)}", "see its message") from error
            prepared = {name for name, layer in trial.named_modules() if hasattr(layer, "ft_compute_sample_grad")}
            by_functorch = {
                f"{name}.{key}".lstrip(".")
                for name in prepared
                for key, _ in trial.get_submodule(name).named_parameters()
            }
            samples = {
                name: (getattr(p, "grad_sample", None), name in by_functorch) for name, p in trial.named_parameters()
            }
            wrapped.detach()
            return samples

    def _refuse(self, name: str | None, sentence: str) -> None:
        layer = None if name is None else self.work.get_submodule(name)
        own = [] if layer is None else [p for p in layer.parameters(recurse=False) if p.requires_grad]
        if name is None or not own:
            raise _Stop(sentence.rstrip("."), "see there")
        reason = re.sub(r"^Layer '[^']*' (\([^)]*\) )?", "it ", sentence).rstrip(".")
        why, _, mend = reason.rpartition("; ")
        kind = type(self.original.get_submodule(name))
        self.found[name] = ("refused", why or reason, _MENDS.get(kind, mend or _FREEZE))
        for p in own:
            p.requires_grad_(False)

    def _compare(self, private: dict[str, tuple[Tensor | None, bool]], plain: dict[str, list[Tensor | None]]) -> None:
        whole = max((float(g.norm()) for gs in plain.values() for g in gs if g is not None), default=0.0)
        for name, layer in self._layers():
            own = [f"{name}.{key}".lstrip(".") for key, _ in layer.named_parameters(recurse=False)]
            # A tied parameter is judged where it is met first; only there does it have a name.
            trainable = [p for p in own if p in plain and self.original.get_parameter(p).requires_grad]
            if name in self.found or not trainable:
                continue
            unused = [p for p in trainable if all(g is None for g in plain[p])]
            problems = [w for p in trainable if p not in unused for w in self._difference(private[p], plain[p], whole)]
            if unused:
                which = "it is" if len(unused) == len(trainable) else f"{', '.join(unused)} is"
                why = f"{which} never used on the way to the output, so there is no gradient to clip"
                self.found[name] = ("unused", why, f"{_FREEZE}, or take it out of the network")
            elif problems:
                self.found[name] = ("refused", problems[0], self._mend_of_difference(layer))
            else:
                functorch = any(private[p][1] for p in trainable)
                why = "it has no registered grad sampler and is run again row by row" if functorch else ""
                times = self.calls.get(name, 1)
                if times > 1:
                    why += f"{'; ' if why else ''}it is called {times} times per batch, and its gradients are added up"
                self.found[name] = ("functorch" if functorch else "exact", why, "")

    def _difference(
        self, private: tuple[Tensor | None, bool], plain: list[Tensor | None], whole: float
    ) -> Iterator[str]:
        sample = private[0]
        if sample is None:
            yield "its parameters are used outside its own forward, where no hook sees them"
            return
        if not isinstance(sample, Tensor):
            yield "it is used in several checkpoints, and its gradients would be clipped in each"
            return
        expected = torch.stack([torch.zeros_like(sample[0]) if g is None else g for g in plain])
        # Biases before a norm have no gradient but rounding, which is measured against the network's.
        error = float((sample - expected).norm()) / max(float(expected.norm()), 1e-4 * whole, 1e-30)
        if not error <= _TOLERANCE:
            yield f"its gradients per unit are wrong by {error:.0%} of what a plain backward pass gives"

    def _mend_of_difference(self, layer: nn.Module) -> str:
        if getattr(layer, "padding_mode", "zeros") != "zeros":
            return "Opacus takes every padding for zeros: pad with torch.nn.functional.pad before it, and not in it"
        return f"call it as a layer, on [N, ...], and register a grad sampler that is right for it; or {_FREEZE}"

    def _judge_output(self) -> tuple[str, str]:
        with torch.no_grad():
            output = self.work(self.x)
        wanted = f"a tensor [N, {self.classes}]"
        if not isinstance(output, Tensor):
            return (
                f"it returns a {type(output).__name__}, not {wanted}",
                "return the logits alone (model.pool_output: true)",
            )
        if output.dim() == 2 and output.shape[1] == self.classes:
            return "", ""
        if output.dim() == 2:
            return f"it returns {output.shape[1]} numbers per row, not {self.classes}", "build it for that many classes"
        return (
            f"it returns a map {list(output.shape)}, as segmentation does; its layers were examined with a loss per "
            "row, but dpeq trains classifiers only",
            f"pool its output to {wanted} (in a recipe: model.pool_output: true)",
        )

    def _step(self) -> None:
        """The whole of a private step with everything switched on: clip, add noise, move the weights."""
        trial = copy.deepcopy(self.original).train()
        wrapped = UnitGradSampleModule(trial, self.views)
        sgd = torch.optim.SGD([p for p in trial.parameters() if p.requires_grad], lr=1e-3)
        try:
            optimizer = PlanOptimizer(sgd, _PLAN)
            wrapped.backward(wrapped(self.x), self.labels)
            optimizer.accumulate()
            optimizer.finish(Randomness.create(0).stream("noise", 1))
        except (ConfigError, RuntimeError) as error:
            raise _Stop(f"the private step fails: {_line(error)}", "see its message") from error
        if not all(bool(p.isfinite().all()) for p in trial.parameters()):
            raise _Stop("its weights are not finite after one step", "look at its initial weights")

    # --- small helpers ----------------------------------------------------------------------------------------------

    def _forward(self, x: Tensor) -> Trace:
        trace = Trace(self.work, keep=True)
        try:
            with trace, torch.no_grad():
                trace.output = tensors_in(self.work(x))
        except Exception as error:  # foreign code: whatever it raises is what the user has to know
            where = f" in '{trace.innermost}'" if trace.innermost else ""
            raise _Stop(
                f"it fails{where} on a batch {list(x.shape)}: {_line(error)}",
                "give it the channels, the size and the number of axes that it was built for",
            ) from error
        return trace

    def _loss(self, output: list[Tensor], labels: Tensor) -> Tensor:
        """Summed over rows, each row's own; for outputs that are no logits, some smooth function of every number."""
        if len(output) == 1 and output[0].dim() == 2 and output[0].shape[1] == self.classes:
            return F.cross_entropy(output[0], labels, reduction="sum") / self.views
        losses = []
        for t in output:
            flat = t.flatten(1)
            weights = torch.cos(torch.arange(flat.shape[1], device=t.device, dtype=t.dtype))
            losses.append((flat * weights).sum() + flat.square().sum() / 2)
        return torch.stack(losses).sum() / self.views


def _is_dropout(layer: nn.Module) -> bool:
    return isinstance(layer, nn.modules.dropout._DropoutNd) or (
        not any(True for _ in layer.children()) and "drop" in type(layer).__name__.lower()
    )


def _has_no_parameters(layer: nn.Module) -> bool:
    return not any(True for _ in layer.parameters(recurse=False))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


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
