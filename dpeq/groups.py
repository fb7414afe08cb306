"""Named symmetry groups of images and volumes, and how they act on plain tensors.

A group is given by its orthogonal matrices on coordinates: x to the right and y up for images (stored ``[y down, x]``);
x, y and z, the scan axis, for volumes (stored ``[x, y, z]``). Elements are numbered from 0, the identity. Groups whose
matrices only permute and flip the axes map the pixel grid onto itself, so networks are equivariant under them exactly;
under the others (C8, D8 and the continuous SO2, O2, axial-SO2) up to what sampling a rotated image costs.

>>> group("D4").order, group("Oh").order, group("SO2").order
(8, 48, None)
>>> group("D4").subgroup("halved").name, group("Oh").subgroup("axial-C4").name
('D2', 'axial-C4')
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np

from dpeq.errors import ConfigError

if TYPE_CHECKING:
    import torch

__all__ = ["GROUP_NAMES", "RESTRICTIONS", "Element", "SymmetryGroup", "group"]

RESTRICTIONS = ("none", "halved", "reflection", "invariant")
_SAMPLES = 16  # angles at which a continuous group is looked at; the Fourier non-linearity chooses its own

Element = int


@dataclass(frozen=True)
class SymmetryGroup:
    """A group of rotations and reflections.

    Attributes:
        name: the name used in configurations.
        dim: number of spatial dimensions of the images it acts on, 2 or 3.
        rotations: rotations about the centre or the scan axis; for a continuous group, the number of sample angles.
        mirrored: whether reflections belong to it: x -> -x (left-right), followed by the rotations.
        kind: "axial" turns in the plane or about the scan axis; "octahedral" are the rotations of a cube.
        continuous: all angles; ``elements`` is then a closed sample of them (a cyclic or dihedral group of 16 angles).
    """

    name: str
    dim: int
    rotations: int
    mirrored: bool
    kind: Literal["axial", "octahedral"] = "axial"
    continuous: bool = False

    @property
    def order(self) -> int | None:
        """Number of elements; None when there are infinitely many."""
        return None if self.continuous else len(self.elements)

    @property
    def elements(self) -> range:
        """Indices of the elements: rotations first, then the mirror followed by each rotation; 0 is the identity."""
        return range(self.rotations * (2 if self.mirrored else 1))

    @property
    def on_grid(self) -> bool:
        """Whether every element maps the grid of pixels or voxels onto itself."""
        return bool(np.all(self.matrices == np.rint(self.matrices)))

    @property
    def matrices(self) -> np.ndarray:
        """Orthogonal matrices ``[elements, dim, dim]`` on coordinate columns; whole numbers on the grid."""
        return _matrices(self)

    def product(self, a: Element, b: Element) -> Element:
        """``a`` after ``b``."""
        return int(_table(self)[a, b])

    def inverse(self, element: Element) -> Element:
        return int(np.argmin(_table(self)[element]))  # the one whose product is the identity, 0

    def act_on_grid(self, x: torch.Tensor, element: Element) -> torch.Tensor:
        """Transforms the space of images ``[..., *spatial]`` exactly: ``(g f)(p) = f(g^-1 p)``.

        Raises:
            ValueError: when the element does not map the grid onto itself.
        """
        import torch

        matrix = self._on_array(element)
        if not np.array_equal(matrix, np.rint(matrix)):
            raise ValueError(f"element {element} of {self.name} does not keep the grid; use act_by_interpolation.")
        source = [int(np.flatnonzero(row)[0]) for row in matrix]
        lead = x.dim() - self.dim
        moved = x.permute(*range(lead), *(lead + s for s in source))
        return torch.flip(moved, [lead + a for a in range(self.dim) if matrix[a, source[a]] < 0])

    def act_by_interpolation(self, x: torch.Tensor, element: Element, mode: str = "bilinear") -> torch.Tensor:
        """The same for any element on ``[N, C, *spatial]``, edges equal in the plane, interpolated; zero outside."""
        import torch
        import torch.nn.functional as F

        # affine_grid asks where each output pixel comes from, coordinates in reverse order of the axes.
        back = self._on_array(element).T[::-1, ::-1].copy()
        theta = torch.zeros(len(x), self.dim, self.dim + 1, dtype=x.dtype, device=x.device)
        theta[:, :, : self.dim] = torch.as_tensor(back, dtype=x.dtype, device=x.device)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, mode=mode, padding_mode="zeros", align_corners=False)

    def _on_array(self, element: Element) -> np.ndarray:
        """The element's matrix in the order and direction of array axes."""
        matrix = self.matrices[element]
        if self.dim == 3:
            return matrix
        turn = np.array([[0.0, -1.0], [1.0, 0.0]])  # array axes (y down, x) of a point (x, y)
        return turn @ matrix @ turn.T

    def embedding(self, subgroup: SymmetryGroup) -> tuple[Element, ...] | None:
        """For each element of ``subgroup`` its index here, or None when it is no subgroup."""
        if subgroup.dim != self.dim or (subgroup.continuous and not self.continuous):
            return None
        same = np.abs(subgroup.matrices[:, None] - self.matrices[None]).max(axis=(2, 3)) < 1e-9
        return tuple(int(i) for i in same.argmax(axis=1)) if same.any(axis=1).all() else None

    @property
    def restrictions(self) -> tuple[str, ...]:
        """What :meth:`subgroup` accepts: the reference's names where they apply, then the proper subgroups by name."""
        named = [r for r in RESTRICTIONS if _restricted(self, r) is not None]
        return (*named, *(n for n in GROUP_NAMES if n != self.name and self.embedding(group(n)) is not None))

    def subgroup(self, restriction: str) -> SymmetryGroup:
        """The group left after a restriction of Hölzl et al. 2023, or the subgroup of that name.

        "none" keeps all, "halved" every second rotation (of Oh: the rotations), "reflection" the mirror, "invariant"
        nothing.

        Raises:
            ConfigError: lists what this group can be restricted to.
        """
        name = _restricted(self, restriction)
        if name is None and restriction in GROUP_NAMES and self.embedding(group(restriction)) is not None:
            name = restriction
        if name is None:
            raise ConfigError(
                f"Group {self.name} has no restriction '{restriction}'; use one of: {', '.join(self.restrictions)}."
            )
        return group(name)


def _restricted(whole: SymmetryGroup, restriction: str) -> str | None:
    """Name of the subgroup that one of the four general restrictions leaves, or None when it does not apply."""
    trivial, mirror = ("trivial", "D1") if whole.dim == 2 else ("trivial-3d", "mirror")
    if restriction == "none":
        return whole.name
    if restriction == "invariant":
        return trivial
    if restriction == "reflection" and whole.mirrored:
        return mirror
    if restriction == "halved" and not whole.continuous:
        if whole.kind == "octahedral":
            return "O" if whole.mirrored else None
        half = whole.rotations // 2
        if half == 1:
            return mirror if whole.mirrored else trivial
        if half > 1:
            return ("axial-" if whole.dim == 3 else "") + ("D" if whole.mirrored else "C") + str(half)
    return None


@cache
def _matrices(whole: SymmetryGroup) -> np.ndarray:
    matrices = _octahedral() if whole.kind == "octahedral" else _axial(whole.rotations, whole.dim)
    if whole.mirrored:
        mirror = np.diag([-1.0] + [1.0] * (whole.dim - 1))
        matrices = np.concatenate([matrices, matrices @ mirror])
    matrices.setflags(write=False)
    return matrices


def _axial(rotations: int, dim: int) -> np.ndarray:
    """Rotations by 2 pi r / N in the x-y plane; quarter turns are whole numbers exactly."""
    angles = 2 * np.pi * np.arange(rotations) / rotations
    cosine, sine = np.cos(angles), np.sin(angles)
    matrices = np.zeros((rotations, dim, dim)) + np.eye(dim)
    matrices[:, 0, 0], matrices[:, 0, 1] = cosine, -sine
    matrices[:, 1, 0], matrices[:, 1, 1] = sine, cosine
    whole = np.rint(matrices)
    return np.where(np.abs(matrices - whole) < 1e-12, whole, matrices)


def _octahedral() -> np.ndarray:
    """The 24 rotations of the cube: signed permutations of the axes with determinant 1, the identity first."""
    from itertools import permutations, product

    found = []
    for axes in permutations(range(3)):
        for signs in product((1.0, -1.0), repeat=3):
            matrix = np.zeros((3, 3))
            matrix[range(3), axes] = signs
            if math.isclose(np.linalg.det(matrix), 1.0):
                found.append(matrix)
    return np.stack(found)


@cache
def _table(whole: SymmetryGroup) -> np.ndarray:
    """Multiplication table ``[a, b] -> a b``, read off the matrices."""
    m = whole.matrices
    products = np.einsum("aij,bjk->abik", m, m)
    distance = np.abs(products[:, :, None] - m[None, None]).max(axis=(3, 4))
    return distance.argmin(axis=2)


_GROUPS = {
    "trivial": SymmetryGroup("trivial", 2, 1, False),
    "C2": SymmetryGroup("C2", 2, 2, False),
    "C4": SymmetryGroup("C4", 2, 4, False),
    "C8": SymmetryGroup("C8", 2, 8, False),
    "D1": SymmetryGroup("D1", 2, 1, True),
    "D2": SymmetryGroup("D2", 2, 2, True),
    "D4": SymmetryGroup("D4", 2, 4, True),
    "D8": SymmetryGroup("D8", 2, 8, True),
    "SO2": SymmetryGroup("SO2", 2, _SAMPLES, False, continuous=True),
    "O2": SymmetryGroup("O2", 2, _SAMPLES, True, continuous=True),
    "trivial-3d": SymmetryGroup("trivial-3d", 3, 1, False),
    "mirror": SymmetryGroup("mirror", 3, 1, True),
    "axial-C2": SymmetryGroup("axial-C2", 3, 2, False),
    "axial-C4": SymmetryGroup("axial-C4", 3, 4, False),
    "axial-D2": SymmetryGroup("axial-D2", 3, 2, True),
    "axial-D4": SymmetryGroup("axial-D4", 3, 4, True),
    "axial-SO2": SymmetryGroup("axial-SO2", 3, _SAMPLES, False, continuous=True),
    "O": SymmetryGroup("O", 3, 24, False, kind="octahedral"),
    "Oh": SymmetryGroup("Oh", 3, 24, True, kind="octahedral"),
}
GROUP_NAMES = tuple(_GROUPS)


def group(name: str) -> SymmetryGroup:
    """The group called ``name``; raises :class:`ConfigError` that lists the names when there is none."""
    if name not in _GROUPS:
        raise ConfigError(f"Unknown symmetry group '{name}'; use one of: {', '.join(GROUP_NAMES)}.")
    return _GROUPS[name]
