"""Per-unit gradients by Opacus' hooks.

A *unit* is what the guarantee protects: an image, or a patient. It is shown as ``views`` consecutive rows of the batch
(several images, or augmentations), whose gradients are averaged **before** clipping, so that a unit's influence on the
sum is at most ``max_grad_norm`` however many views it has (De et al. 2022, arXiv 2204.13650, section 3).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from opacus.grad_sample import GradSampleModule, register_grad_sampler
from opacus.grad_sample.functorch import ft_compute_per_sample_gradient, prepare_layer
from torch import Tensor, nn

from dpeq.errors import ConfigError
from dpeq.nn import UNIT_LAYERS, UnitLayer

__all__ = ["LayerError", "UnitGradSampleModule"]

GradSampler = Callable[[nn.Module, list[Tensor], Tensor], dict[nn.Parameter, Tensor]]


def _sample_unit_layer(layer: UnitLayer, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    return layer.per_unit_gradients(activations[0], backprops, layer.views)


for _kind in UNIT_LAYERS:
    register_grad_sampler(_kind)(_sample_unit_layer)


class LayerError(ConfigError):
    """A layer that cannot be trained privately; ``layer`` is its name in the network."""

    def __init__(self, layer: str, message: str) -> None:
        super().__init__(message)
        self.layer = layer


def _in_one_precision(sampler: GradSampler) -> GradSampler:
    """Under autocast a layer's input, its output's gradient and its constants differ in type; the widest is used."""

    def sample(layer: nn.Module, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
        wide = reduce(torch.promote_types, (p.dtype for p in layer.parameters()), backprops.dtype)
        inputs = [x.to(wide) if x.is_floating_point() else x for x in activations]
        return sampler(layer, inputs, backprops.to(wide))

    return sample


class _ByFunctorch:
    """Stands in the table of grad samplers for every layer that has none of its own."""


class UnitGradSampleModule(GradSampleModule):  # type: ignore[misc]  # Opacus is untyped
    """Opacus' hooks, with ``views`` consecutive rows of the batch folded into one per-unit gradient.

    After :meth:`backward`, ``grad_sample`` of each parameter is the gradient of every unit's mean loss over its views,
    ``[units, *parameter.shape]``.

    A layer without a registered grad sampler (Opacus' or dpeq's), and all that is inside it, is run again row by row by
    torch.func: exact, and slower. Hooks sit on output tensors, not on modules: a module's full backward hook wraps its
    output in a view that forbids the in-place ReLU or ``out += x`` which follows in most published networks.

    Args:
        module: the network.
        views: K, the rows of the batch that belong to one unit.

    Raises:
        LayerError: when a layer carries running statistics (batch norm above all), which mix units, or when the
            gradients of a layer cannot be taken row by row.
    """

    def __init__(self, module: nn.Module, views: int = 1) -> None:
        for name, layer in module.named_modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                raise LayerError(name, f"Layer '{name}' is a batch norm, which mixes patients; use group norm.")
            if any(buffer.is_floating_point() for buffer in layer.buffers(recurse=False)):
                raise LayerError(
                    name,
                    f"Layer '{name}' ({type(layer).__name__}) keeps running statistics in buffers, which no noise "
                    "covers; use a layer without them, such as group norm.",
                )
            own = any(p.requires_grad for p in layer.parameters(recurse=False))
            if own and type(layer) not in GradSampleModule.GRAD_SAMPLERS:
                if any(isinstance(inner, UnitLayer) for inner in layer.modules()):
                    # Run row by row it would see one row where it expects a unit's views.
                    raise LayerError(
                        name,
                        f"Layer '{name}' ({type(layer).__name__}) has no registered grad sampler and is or holds a "
                        "layer of dpeq's; add it to dpeq.nn.UNIT_LAYERS, or move its own parameters into a layer.",
                    )
                if any(True for _ in layer.buffers()):
                    raise LayerError(
                        name,
                        f"Layer '{name}' ({type(layer).__name__}) has no registered grad sampler and holds buffers, so "
                        "it cannot be run row by row; freeze it or use another layer.",
                    )
        for name, p in module.named_parameters():
            if p.requires_grad and p.is_complex():
                raise ConfigError(f"Parameter '{name}' is complex; write it as two real ones (torch.view_as_real).")
        self.views, self._rows = views, -1
        self._names = {layer: name for name, layer in module.named_modules()}
        # Looked up through the instance by Opacus' hook: the same samplers, folded over views.
        samplers = {**GradSampleModule.GRAD_SAMPLERS, _ByFunctorch: ft_compute_per_sample_gradient}
        self.GRAD_SAMPLERS = {kind: self._folded(kind, f) for kind, f in samplers.items()}
        try:
            super().__init__(module, loss_reduction="sum", strict=True)
        except NotImplementedError as error:
            raise ConfigError(f"The network has a layer that cannot be trained privately: {error}") from error
        for layer in module.modules():
            if isinstance(layer, UnitLayer):
                layer.views, layer.per_unit = views, True

    def _folded(self, kind: type[nn.Module], sampler: GradSampler) -> GradSampler:
        if issubclass(kind, UnitLayer):
            return _in_one_precision(sampler)
        sampler = _in_one_precision(sampler)

        def fold(layer: nn.Module, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
            if backprops.shape[0] == 0:  # Opacus' sampler of convolutions answers an empty batch with one gradient
                trained = (p for p in layer.parameters() if p.requires_grad)
                return {p: p.new_zeros(0, *p.shape) for p in trained}
            rows = sampler(layer, activations, backprops)
            if self.views == 1:
                return rows
            return {p: g.view(-1, self.views, *p.shape).sum(dim=1) for p, g in rows.items()}

        return fold

    def add_hooks(self, **kwargs: Any) -> None:
        """Watches every layer with trainable parameters; see the class for why not by Opacus' own hooks."""
        self.autograd_grad_sample_hooks = self._module.autograd_grad_sample_hooks = []
        # A layer that is registered under two names comes twice; watched twice, it would count double.
        for layer in dict.fromkeys(self.iterate_submodules(self._module)):
            if type(layer) not in self.GRAD_SAMPLERS:
                prepare_layer(layer)  # copies the layer, so before it gets a hook
            self.autograd_grad_sample_hooks.append(layer.register_forward_hook(self._watch, with_kwargs=True))
        self.enable_hooks()

    def _get_module_type(self, module: nn.Module) -> type:
        kind = type(module)
        return kind if kind in self.GRAD_SAMPLERS else _ByFunctorch

    def _watch(self, layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        """Keeps a layer's input and waits for the gradient at its output."""
        if not (self.hooks_enabled and layer.training and torch.is_grad_enabled()):
            return output
        name, kind = self._names[layer], type(layer).__name__
        given = [*inputs, *named.values()]
        tensors = [value for value in given if isinstance(value, Tensor)]
        if not isinstance(output, Tensor) or not tensors:
            raise LayerError(name, f"Layer '{name}' ({kind}) does not turn one tensor into one; use a layer that does.")
        if self._get_module_type(layer) is _ByFunctorch and len(given) != 1:
            raise LayerError(
                name,
                f"Layer '{name}' ({kind}) has no registered grad sampler and takes {len(given)} inputs; only layers "
                "of one input can be run row by row.",
            )
        self.capture_activations_hook(layer, tensors, output)
        kept = layer.activations[-1]  # type: ignore[index]
        versions = [t._version for t in kept]

        def on_gradient(gradient: Tensor) -> None:
            if [t._version for t in kept] != versions:
                raise LayerError(name, f"Layer '{name}' ({kind}) had its input changed in place afterwards; copy it.")
            # A layer may be called several times, and the last call need not be the first to come back.
            calls: list[Any] = layer.activations  # type: ignore[assignment]
            calls.append(calls.pop(next(i for i, call in enumerate(calls) if call is kept)))
            try:
                self.capture_backprops_hook(layer, None, (gradient,), loss_reduction="sum", batch_first=True)
            except RuntimeError as error:
                if self._get_module_type(layer) is not _ByFunctorch:
                    raise
                raise LayerError(name, f"Layer '{name}' ({kind}) cannot be run row by row: {error}") from error

        if output._is_view():
            # An in-place change of a view rewrites the history of its base and drops the view's hooks with it.
            output = output.clone()
        output.register_hook(on_gradient)
        return output

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        self._rows = x.shape[0]
        return super().forward(x, *args, **kwargs)

    def rearrange_grad_samples(self, *, module: nn.Module, **kwargs: Any) -> tuple[Any, Tensor]:
        activations, backprops = super().rearrange_grad_samples(module=module, **kwargs)
        rows = activations[0].shape[0]
        if {rows, len(backprops)} != {self._rows}:
            # Part of the rows cannot be told which unit each belongs to.
            raise LayerError(
                self._names[module],
                f"Layer '{self._names[module]}' saw {rows} rows of a batch of {self._rows}; it must see every row at "
                "every call.",
            )
        if rows % self.views:
            raise RuntimeError(f"a batch of {rows} rows is not a whole number of units of {self.views} views.")
        module.max_batch_len = rows // self.views  # the length of grad_sample, in units
        return activations, backprops

    def backward(self, logits: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
        """Back-propagates the cross-entropy, summed over units and averaged over each unit's views.

        Args:
            logits: ``[units * views, classes]``.
            labels: int64 ``[units * views]``.
            class_weights: public constants ``[classes]`` that multiply a row's loss; there is no division by their sum
                over the batch, which would tie units together.

        Returns:
            the loss. **Private**: it is computed from the data and covered by no noise.
        """
        for p in self._module.parameters():
            p.grad = None  # compared with the units' below
        # Single precision at least: under autocast the logits are halves.
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = F.cross_entropy(logits, labels, class_weights, reduction="sum") / self.views
        loss.backward()  # type: ignore[no-untyped-call]
        self._check_second_runs()
        units = len(labels) // self.views
        for name, p in self._module.named_parameters():
            if p.requires_grad and (not isinstance(p.grad_sample, Tensor) or len(p.grad_sample) != units):
                if isinstance(p.grad_sample, list):
                    raise ConfigError(
                        f"Parameter '{name}' is used in several checkpoints, and would be clipped in each."
                    )
                found = "no gradient" if p.grad_sample is None else f"{len(p.grad_sample)} gradients"
                raise ConfigError(
                    f"Parameter '{name}' got {found} for {units} units; every row of the batch must stay one row, and "
                    "every trainable parameter must be used."
                )
        return loss.detach()

    def _check_second_runs(self) -> None:
        """What torch.func ran again must be what ran: autograd's gradient is the sum of the units'."""
        for layer, name in self._names.items():
            if hasattr(layer, "ft_compute_sample_grad"):
                for p in layer.parameters():
                    if p.requires_grad and p.grad is not None and isinstance(p.grad_sample, Tensor):
                        norms = p.grad_sample.flatten(1).norm(dim=1).sum()
                        if bool((p.grad_sample.sum(dim=0) - p.grad).norm() > 1e-2 * norms + 1e-12):
                            raise LayerError(
                                name, f"Layer '{name}' is random beyond dropout: run again, it did otherwise."
                            )

    def detach(self) -> nn.Module:
        """Removes every hook and mark, and returns the plain network."""
        self.cleanup()
        for layer in self._module.modules():
            if isinstance(layer, UnitLayer):
                layer.leave_to_autograd()
        module: nn.Module = self._module
        return module
