"""Bases of equivariant convolution kernels.

A kernel between fields with representations rho_in and rho_out must satisfy K(g x) = rho_out(g) K(x) rho_in(g)^-1
(Weiler & Cesa 2019; Cesa, Lang & Weiler 2022). Three ways lead to an orthonormal basis of the solutions:

- Between scalars and regular fields of a group that keeps the grid, the solution is a group convolution (Cohen &
  Welling 2016): one free function psi on the kernel's taps per element, K[h, g](x) = psi[h^-1 g](g^-1 x). Nothing is
  solved and nothing large is stored, only the index of the free value behind each tap.
- For other representations of such a group, random kernels are averaged over the group, which projects onto the
  solutions.
- For groups that turn the grid by other angles, escnn solves the constraint for continuous kernels and samples them.

In all cases the taps come from one space of angularly band-limited functions, which escnn samples (see
:mod:`dpeq.nn.spatial`). Bases are canonical, because stored coefficients would otherwise mean other filters on another
machine, and orthonormal, so that isotropic noise on the coefficients is isotropic noise on the filter.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
import torch
from torch import Tensor

from dpeq.errors import ConfigError
from dpeq.groups import SymmetryGroup
from dpeq.nn.spatial import canonical, spatial_basis, steerable_basis
from dpeq.representations import Representation, representation

__all__ = ["KernelBasis", "kernel_basis"]


@dataclass(frozen=True, eq=False)
class KernelBasis:
    """Kernels between one pair of fields as a linear function of ``n`` coefficients.

    ``(coefficients.view(blocks, rows) @ matrix).flatten()[index]`` is the kernel ``[out_size, in_size, *kernel]``,
    flattened; without an index it is the product itself.

    Attributes:
        matrix: float64 ``[rows, columns]``, orthonormal up to the repetition by ``index``.
        blocks: how many times the matrix is used on its own coefficients.
        index: int64 ``[out_size * in_size * taps]``, or None. Every free value is used equally often.
    """

    matrix: Tensor
    blocks: int = 1
    index: Tensor | None = None

    @property
    def n(self) -> int:
        """Number of coefficients."""
        return self.blocks * int(self.matrix.shape[0])

    @property
    def inverse(self) -> Tensor | None:
        """``[repetitions, blocks * columns]``: where in the kernel each free value is used."""
        if self.index is None:
            return None
        return torch.argsort(self.index, stable=True).view(self.blocks * self.matrix.shape[1], -1).T.contiguous()

    def dense(self) -> Tensor:
        """All basis kernels ``[n, out_size * in_size * taps]``; for tests and small fields."""
        whole = torch.block_diag(*[self.matrix] * self.blocks)
        return whole if self.index is None else whole[:, self.index]


@cache
def kernel_basis(group: SymmetryGroup, in_name: str, out_name: str, kernel_size: int) -> KernelBasis:
    """Basis of the kernels from ``in_name`` to ``out_name`` fields, a window of ``kernel_size`` along every axis.

    Raises:
        ConfigError: when only the zero kernel is equivariant, or an even kernel is asked of a group off the grid.
    """
    if not group.on_grid:
        if kernel_size % 2 == 0:
            raise ConfigError(
                f"An even kernel of {kernel_size} has no centre to rotate about under {group.name}; use an odd one."
            )
        return KernelBasis(steerable_basis(group, in_name, out_name, kernel_size).flatten(1))
    taps = spatial_basis(group.dim, kernel_size).numpy()
    moves = _moved_taps(group, kernel_size)
    if "regular" in (in_name, out_name) and {in_name, out_name} <= {"regular", "trivial"}:
        return _group_convolution(group, in_name, out_name, taps, moves)
    return _averaged(representation(group, in_name), representation(group, out_name), taps, moves)


def _moved_taps(group: SymmetryGroup, kernel_size: int) -> np.ndarray:
    """``[elements, taps]``: number of the tap that each tap comes from under the element, x -> g^-1 x."""
    numbers = torch.arange(kernel_size**group.dim).view(1, 1, *[kernel_size] * group.dim)
    return np.stack([group.act_on_grid(numbers, g).flatten().numpy() for g in group.elements])


def _group_convolution(
    group: SymmetryGroup, in_name: str, out_name: str, taps: np.ndarray, moves: np.ndarray
) -> KernelBasis:
    order, count = len(group.elements), taps.shape[1]
    outputs = group.elements if out_name == "regular" else range(1)
    inputs = group.elements if in_name == "regular" else range(1)
    blocks = order if len(outputs) == len(inputs) == order else 1
    index = np.empty((len(outputs), len(inputs), count), dtype=np.int64)
    for h, g in product(outputs, inputs):
        # from scalars, the element that moves the taps is the output's: K[h](x) = psi(h^-1 x)
        relative = group.product(group.inverse(h), g) if blocks > 1 else 0
        index[h, g] = relative * count + moves[h if in_name == "trivial" else g]
    scale = 1 / np.sqrt(order)
    return KernelBasis(torch.from_numpy(taps * scale), blocks, torch.from_numpy(index.ravel()))


def _averaged(inner: Representation, outer: Representation, taps: np.ndarray, moves: np.ndarray) -> KernelBasis:
    """Solutions as the image of the projector K -> mean_g rho_out(g) K(g^-1 x) rho_in(g)^T."""
    # The projector's trace is the number of solutions: characters need no kernel.
    characters = np.array([np.trace(taps @ taps[:, move].T) for move in moves])
    outer_trace = np.trace(outer.matrices, axis1=1, axis2=2)
    inner_trace = np.trace(inner.matrices, axis1=1, axis2=2)
    count = round(float(np.mean(characters * outer_trace * inner_trace)))
    if count == 0:
        raise ConfigError(
            f"Only the zero kernel maps {inner.name} to {outer.name} fields of {inner.group.name}; use a larger kernel "
            "or other fields."
        )
    generic = np.random.Generator(np.random.PCG64(20230130))
    random = generic.standard_normal((count, outer.size, inner.size, len(taps))) @ taps
    total = np.zeros_like(random)
    for g, move in enumerate(moves):
        total += np.einsum("ab,nbct,dc->nadt", outer.matrices[g], random[..., move], inner.matrices[g], optimize=True)
    return KernelBasis(torch.from_numpy(canonical(total.reshape(count, -1))))
