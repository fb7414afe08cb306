"""One graph of torch operations, from which every format is written.

``torch.export`` follows the network with images of a fixed size and a free batch size: arithmetic on sizes is done
while it looks, and a network that fixes the batch is refused here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from dpeq.errors import DpeqError

__all__ = ["EXAMPLES", "capture", "known_deprecations", "traceable"]

EXAMPLES = 2  # images to look at a network with: one would be taken for a constant


def capture(network: nn.Module, input_shape: Sequence[int]) -> ExportedProgram:
    """The graph of ``network`` (plain, in evaluation mode) on images ``[batch, *input_shape]``.

    Raises:
        DpeqError: when the network cannot be captured, or only with a fixed number of images.
    """
    example = torch.zeros(EXAMPLES, *input_shape)
    try:
        with known_deprecations():
            program = torch.export.export(network, (example,), dynamic_shapes=({0: Dim("batch")},))
            return program.run_decompositions(_DECOMPOSED)
    except Exception as error:  # torch.export has many kinds of errors
        reason = " ".join(str(error).split())[:300]
        raise DpeqError(
            f"The network cannot be captured as one graph for any number of images ({reason}); its forward pass must "
            "not depend on the values of the images or on how many there are."
        ) from error


def traceable(program: ExportedProgram) -> nn.Module:
    """The graph as a module that ``torch.jit.trace`` can follow without fixing the batch size.

    Operations of ``torch.ops`` turn sizes into numbers when they are called; methods of tensors keep them symbolic.
    """
    module: Any = program.module()
    for node in list(module.graph.nodes):
        if node.op == "call_module" and not node.users:
            module.graph.erase_node(node)  # assertions on the input, which _FixedSize makes in a form that is stored
        elif node.target is torch.ops.aten.sym_size.int:
            node.target = torch.Tensor.size
        elif isinstance(node.target, torch._ops.OpOverload) and any(map(_holds_a_size, node.args)):
            node.target = _method(node.target)
    module.recompile()
    return module  # type: ignore[no-any-return]


@contextmanager
def known_deprecations() -> Iterator[None]:
    """torch.export uses what torch has deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*LeafSpec.* is deprecated", FutureWarning)
        yield


def _holds_a_size(argument: Any) -> bool:
    parts = argument if isinstance(argument, (list, tuple)) else [argument]
    return any(isinstance(p, fx.Node) and isinstance(p.meta.get("val"), torch.SymInt) for p in parts)


def _method(operation: Any) -> Any:
    name = operation._schema.name.split("::")[1]
    method = torch.Tensor.reshape if name == "_unsafe_view" else getattr(torch.Tensor, name, None)
    return operation if method is None else method  # a batch that stays fixed is found when the file is compared


def _adaptive_average(x: Tensor, output_size: Sequence[int]) -> Tensor:
    """Adaptive average pooling as a product with a matrix per axis, because ONNX has no such operation."""
    for axis, out in enumerate(output_size, start=x.dim() - len(output_size)):
        size = x.shape[axis]
        if out == 1:
            x = x.mean(dim=axis, keepdim=True)
        elif out != size:
            window, pixel = torch.arange(out, device=x.device), torch.arange(size, device=x.device)
            start, end = window * size // out, ((window + 1) * size + out - 1) // out
            inside = ((pixel >= start[:, None]) & (pixel < end[:, None])).to(x.dtype)
            weights = inside / inside.sum(dim=1, keepdim=True)
            x = (x.movedim(axis, -1) @ weights.T).movedim(-1, axis)
    return x


_DECOMPOSED = {
    torch.ops.aten.adaptive_avg_pool2d.default: _adaptive_average,
    torch.ops.aten.adaptive_avg_pool3d.default: _adaptive_average,
}
