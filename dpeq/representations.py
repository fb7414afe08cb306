"""Orthogonal representations of the symmetry groups: how the channels of one field mix under each element.

Named as in the literature (Weiler & Cesa 2019): ``trivial`` (a scalar), ``regular`` (one channel per element),
``quotient:H`` (one channel per coset of the subgroup H), ``irrep:i`` (the i-th irreducible representation) and, for the
continuous groups, ``fourier:L`` (band-limited functions on the group, frequencies up to L).

>>> from dpeq.groups import group
>>> representation(group("D4"), "quotient:D1").size, representation(group("SO2"), "fourier:2").size
(4, 5)
>>> [i.dim for i in irreps(group("O"))]
[1, 1, 2, 3, 3]
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from dpeq.errors import ConfigError
from dpeq.groups import SymmetryGroup, group

__all__ = ["Irrep", "Representation", "fourier_samples", "irreps", "representation"]


@dataclass(frozen=True, eq=False)
class Irrep:
    """A real irreducible representation.

    Attributes:
        dim: its dimension d.
        complex_type: whether its commuting maps are the complex numbers (rotations of C_N by 0 < k < N/2) instead of
            the reals; it then occurs d / 2 times in the regular representation, else d times.
        matrices: ``[elements, d, d]``.
        frequency: angular frequency about the axis, 0 where there is none.
        label: (mirror parity, frequency) for axial groups, in escnn's naming; empty otherwise.
    """

    dim: int
    complex_type: bool
    matrices: np.ndarray
    frequency: int = 0
    label: tuple[int, ...] = ()

    @property
    def multiplicity(self) -> int:
        """How often it occurs in the regular representation."""
        return self.dim // 2 if self.complex_type else self.dim


@dataclass(frozen=True, eq=False)
class Representation:
    """One representation of one group, by its matrices.

    Attributes:
        group: whose elements act.
        name: as in configurations.
        matrices: ``[elements, size, size]``, orthogonal; for permutation representations 0 or 1.
        blocks: irreducible parts as (offset, irrep), in the order of the channels; empty for permutations.
    """

    group: SymmetryGroup
    name: str
    matrices: np.ndarray
    blocks: tuple[tuple[int, Irrep], ...] = ()

    @property
    def size(self) -> int:
        """Channels of one field."""
        return int(self.matrices.shape[1])

    @property
    def is_permutation(self) -> bool:
        """Whether elements only permute channels, so that pointwise functions and maxima commute with them."""
        return not self.blocks

    @property
    def invariant(self) -> np.ndarray:
        """Vectors ``[k, size]`` that no element changes: where a bias may go."""
        if self.is_permutation:
            return np.ones((1, self.size)) if _transitive(self.matrices) else np.eye(self.size)
        scalar = [i for i in range(self.size) if np.allclose(self.matrices[:, i, i], 1.0)]
        return np.eye(self.size)[scalar]


def _transitive(matrices: np.ndarray) -> bool:
    return bool((matrices.sum(axis=0) > 0.5).all())


@cache
def representation(whole: SymmetryGroup, name: str) -> Representation:
    """The representation of ``whole`` called ``name``.

    ``restricted:G:NAME`` is the representation NAME of the larger group G, seen by its subgroup ``whole``.

    Raises:
        ConfigError: when the group has none of that name.
    """
    kind, _, argument = name.partition(":")
    if name == "trivial":
        return Representation(whole, name, np.ones((len(whole.elements), 1, 1)))
    if name == "regular" and not whole.continuous:
        return Representation(whole, name, _cosets(whole, (0,)))
    if kind == "quotient" and not whole.continuous and argument:
        embedded = whole.embedding(group(argument))
        if embedded is not None:
            return Representation(whole, name, _cosets(whole, embedded))
    if kind == "irrep" and argument.isdigit():
        table = irreps(whole)
        if int(argument) < len(table):
            chosen = table[int(argument)]
            return Representation(whole, name, chosen.matrices, ((0, chosen),))
    if kind == "fourier" and whole.continuous and argument.isdigit():
        return _sum(whole, name, _spectrum(whole, int(argument)))
    if kind == "restricted":
        larger, _, inner = argument.partition(":")
        embedded = group(larger).embedding(whole)
        if embedded is not None:
            return _restrict(whole, name, representation(group(larger), inner), embedded)
    fields = "trivial, irrep:i, fourier:L" if whole.continuous else "trivial, regular, quotient:SUBGROUP, irrep:i"
    raise ConfigError(f"Group {whole.name} has no representation '{name}'; use one of: {fields}.")


def _cosets(whole: SymmetryGroup, subgroup: tuple[int, ...]) -> np.ndarray:
    """Permutation matrices of the left cosets g H; of the group itself for the trivial H: g e_h = e_{gh}."""
    number = {}
    count = 0
    for g in whole.elements:
        if g not in number:
            number.update({whole.product(g, h): count for h in subgroup})
            count += 1
    first = {n: g for g, n in reversed(number.items())}
    matrices = np.zeros((len(whole.elements), count, count))
    for g in whole.elements:
        for n in range(count):
            matrices[g, number[whole.product(g, first[n])], n] = 1.0
    return matrices


def _sum(whole: SymmetryGroup, name: str, parts: list[Irrep]) -> Representation:
    offsets = np.cumsum([0, *(p.dim for p in parts)])
    matrices = np.zeros((len(whole.elements), offsets[-1], offsets[-1]))
    for offset, part in zip(offsets, parts, strict=False):
        matrices[:, offset : offset + part.dim, offset : offset + part.dim] = part.matrices
    blocks = tuple((int(o), p) for o, p in zip(offsets, parts, strict=False))
    return Representation(whole, name, matrices, blocks)


def _restrict(whole: SymmetryGroup, name: str, larger: Representation, embedded: tuple[int, ...]) -> Representation:
    matrices = larger.matrices[list(embedded)]
    blocks = tuple(
        (offset, Irrep(i.dim, i.complex_type, i.matrices[list(embedded)], i.frequency)) for offset, i in larger.blocks
    )
    return Representation(whole, name, matrices, blocks)


@cache
def irreps(whole: SymmetryGroup) -> tuple[Irrep, ...]:
    """All real irreps of a finite group; of a continuous one, those that its sample angles can tell apart.

    Written out, not solved for: cyclic and dihedral ones are rotations by multiples of the angle; those of the cube's
    rotations are the scalar, the sign of the permutation of the axes, the permutation's two-dimensional part, the
    rotation itself and its product with the sign (e.g. Serre 1977, section 5.8); Oh is O times the inversion.
    """
    if whole.kind == "octahedral":
        return _octahedral_irreps(whole)
    n = whole.rotations
    top = n // 2 - 1 if whole.continuous else n // 2
    return tuple(p for k in range(top + 1) for p in _axial_irreps(whole, k))


def _axial_irreps(whole: SymmetryGroup, k: int) -> list[Irrep]:
    n = whole.rotations
    rotation = np.tile(np.arange(n), 2 if whole.mirrored else 1)
    flip = np.repeat([0, 1], n) if whole.mirrored else np.zeros(n, dtype=int)
    if k == 0 or 2 * k == n:
        base = np.cos(2 * np.pi * k * rotation / n)
        signs = [0, 1] if whole.mirrored else [0]
        return [Irrep(1, False, _column(np.rint(base) * (-1.0) ** (j * flip)), k, (j, k)) for j in signs]
    angle = 2 * np.pi * k * rotation / n
    cosine, sine = np.cos(angle), np.sin(angle)
    turn = np.stack([np.stack([cosine, -sine], -1), np.stack([sine, cosine], -1)], -2)
    mirror = np.where(flip[:, None, None] == 1, np.diag([1.0, -1.0]), np.eye(2))
    label = (1, k) if whole.mirrored else (0, k)
    return [Irrep(2, not whole.mirrored, turn @ mirror, k, label)]


def _octahedral_irreps(whole: SymmetryGroup) -> tuple[Irrep, ...]:
    matrices = whole.matrices
    parity = np.linalg.det(matrices).round()
    turn = matrices * parity[:, None, None]  # the rotation, with the inversion taken out
    axes = np.abs(turn)
    sign = np.linalg.det(axes).round()
    plane = np.array([[1.0, -1.0, 0.0], [1.0, 1.0, -2.0]]) / np.sqrt([[2.0], [6.0]])
    even = [_column(np.ones(len(sign))), _column(sign), plane @ axes @ plane.T, turn, turn * sign[:, None, None]]
    odd = [m * parity[:, None, None] for m in even] if whole.mirrored else []
    return tuple(Irrep(m.shape[1], False, m) for m in (*even, *odd))


def _column(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, dtype=float).reshape(-1, 1, 1)


def _spectrum(whole: SymmetryGroup, band: int) -> list[Irrep]:
    """Irreps of band-limited functions on the group: each as often as the regular representation holds it."""
    if band > whole.rotations // 2 - 1:
        raise ConfigError(f"fourier:{band} is beyond frequency {whole.rotations // 2 - 1}; use a lower band limit.")
    return [p for k in range(band + 1) for p in _axial_irreps(whole, k) for _ in range(p.multiplicity)]


def fourier_samples(whole: SymmetryGroup, band: int, angles: int) -> np.ndarray:
    """Values of a ``fourier:band`` field at ``angles`` equal angles (and their mirror images): ``[samples, size]``.

    The columns are orthogonal with squared norm ``samples``, so the transposed matrix over ``samples`` transforms back
    exactly, provided ``angles > 2 * band`` (Cesa, Lang & Weiler 2022, section 3 on Fourier non-linearities).
    """
    if angles <= 2 * band:
        raise ConfigError(f"{angles} angles cannot tell frequencies up to {band} apart; use more than {2 * band}.")
    theta = 2 * np.pi * np.arange(angles) / angles
    halves = []
    for flip in (0, 1) if whole.mirrored else (0,):
        columns = [np.ones(angles)]
        if whole.mirrored:
            columns.append(np.full(angles, (-1.0) ** flip))
        for k in range(1, band + 1):
            cosine, sine = np.sqrt(2) * np.cos(k * theta), np.sqrt(2) * np.sin(k * theta)
            if whole.mirrored:
                # entries of R(k theta) diag(1, -1)^flip: the two columns are the two copies of the irrep
                s = (-1.0) ** flip
                columns += [cosine, sine, -s * sine, s * cosine]
            else:
                columns += [cosine, sine]
        halves.append(np.stack(columns, axis=1))
    return np.concatenate(halves)
