"""What a network costs: arithmetic, memory, and the noise that its parameters attract.

Everything is measured on a copy of the network on torch's meta device, where tensors have shapes but no numbers: a
measurement takes milliseconds and holds no activations. A batch of one and a batch of two are compared, and what a
second image adds is the cost per image: whatever is paid once per batch, such as expanding filters from their
coefficients, cancels.

>>> cost = measure(nn.Conv2d(1, 8, 3, padding=1, bias=False), (1, 28, 28))
>>> cost.parameters, cost.macs, cost.activation_bytes, cost.per_unit_gradient_bytes
(72, 56448, 3136, 288)
>>> round(cost.noise_norm(sigma=2.0, max_grad_norm=0.5), 3)  # 2 * 0.5 * sqrt(72)
8.485
"""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["Cost", "count_macs", "measure", "parameter_count"]


@dataclass(frozen=True)
class Cost:
    """What one image, one privacy unit and one step cost.

    Attributes:
        parameters: trainable numbers P.
        macs: multiply-accumulates of one image's forward pass, see :func:`count_macs`.
        activation_bytes: what autograd keeps of one image for the backward pass, its input included.
        per_unit_gradient_bytes: the gradient of one privacy unit, 4 P in single precision, however many views it has.
    """

    parameters: int
    macs: int
    activation_bytes: int
    per_unit_gradient_bytes: int

    def noise_norm(self, sigma: float, max_grad_norm: float = 1.0) -> float:
        """Root mean square length of a step's noise, sigma * C * sqrt(P): a vector of P independent N(0, (sigma C)^2).

        The clipped gradient that it hides is at most C long per unit, whatever P is: a smaller network hears more.
        """
        return sigma * max_grad_norm * math.sqrt(self.parameters)

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


def measure(model: nn.Module, input_shape: tuple[int, ...]) -> Cost:
    """The cost of a network for images of ``input_shape``, ``(channels, *spatial)``; the network is left as it was.

    Raises:
        ConfigError: what the network itself raises for images of a size that it refuses.
    """
    bare = _on_meta(model)
    return Cost(
        parameters=parameter_count(model),
        macs=_macs_per_image(bare, input_shape),
        activation_bytes=_activation_bytes(bare, 2, input_shape) - _activation_bytes(bare, 1, input_shape),
        per_unit_gradient_bytes=sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad),
    )


def parameter_count(model: nn.Module) -> int:
    """Trainable numbers in a network; a tied parameter counts once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def count_macs(model: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of one image's forward pass as executed, taps on zero padding included.

    Convolutions (grouped and depthwise ones too), linear layers and matrix products count. What grows with the feature
    maps only (norms, activations, pooling, biases) does not, as is usual. Nor does the expansion of filters from
    coefficients: it is paid once per batch, and cancels when a batch of one is subtracted from a batch of two.

    Args:
        model: left as it was.
        input_shape: ``(channels, *spatial)`` of one image.
    """
    return _macs_per_image(_on_meta(model), input_shape)


def _on_meta(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).to("meta")


def _images(model: nn.Module, batch: int, input_shape: tuple[int, ...]) -> Tensor:
    dtype = next((p.dtype for p in model.parameters()), torch.get_default_dtype())
    return torch.empty(batch, *input_shape, dtype=dtype, device="meta")


def _macs_per_image(model: nn.Module, input_shape: tuple[int, ...]) -> int:
    model.eval()
    flops = []
    for batch in (1, 2):
        counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.mv: _matrix_times_vector})
        with torch.no_grad(), counter:
            model(_images(model, batch, input_shape))
        flops.append(counter.get_total_flops())
    return (flops[1] - flops[0]) // 2  # torch counts a multiplication and an addition as two


def _matrix_times_vector(matrix: torch.Size, *_: object, **__: object) -> int:
    """The one product that torch's counter does not know."""
    return 2 * math.prod(matrix)


def _activation_bytes(model: nn.Module, batch: int, input_shape: tuple[int, ...]) -> int:
    """Bytes of all storages that the backward pass of a batch needs; two views of one storage count once."""
    model.train()
    kept: list[Tensor] = []  # held until the end: a freed storage's address may be used again

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.enable_grad(), saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(_images(model, batch, input_shape))
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in kept}
    del output
    return sum(storages.values())
