"""From a network of equivariant layers to one of plain torch layers that computes the same."""

from __future__ import annotations

import copy

from torch import Tensor, nn

__all__ = ["plain_network"]


def plain_network(model: nn.Module) -> nn.Module:
    """A frozen copy of ``model`` in evaluation mode, on the CPU, with every equivariant layer made plain.

    Every module with a method ``plain()`` is replaced by what that returns: a steerable convolution by ``nn.Conv2d`` or
    ``nn.Conv3d`` with its materialised filter, an equivariant norm by the norm of torch with one scale per channel.
    A module that two places share stays shared. ``model`` is left as it was.
    """
    network = _replace(copy.deepcopy(model).cpu().eval(), {})
    for module in network.modules():
        _constants_to_buffers(module)
    return network.eval().requires_grad_(False)


def _replace(module: nn.Module, done: dict[int, nn.Module]) -> nn.Module:
    if id(module) in done:
        return done[id(module)]
    plain = getattr(type(module), "plain", None)  # a method; a foreign network may call one of its layers so
    result: nn.Module = module if plain is None else plain(module)
    done[id(module)] = result
    for name, child in result._modules.items():
        if child is not None:
            result._modules[name] = _replace(child, done)
    return result


def _constants_to_buffers(module: nn.Module) -> None:
    """Constant tensors of a layer move with the exported network (``.to("cuda")``) only when they are buffers."""
    for name, value in list(vars(module).items()):
        if isinstance(value, Tensor):
            delattr(module, name)
            module.register_buffer(name, value.detach())
