"""Named symmetry groups of the pixel and voxel grid, and how they act on plain tensors.

A group here is a finite group whose elements map the grid onto itself exactly, so that equivariance is exact too.
Elements are pairs ``(flip, rotation)`` and stand for "mirror ``flip`` times, then rotate by ``rotation`` steps"; their
order is that of escnn, so that a regular field's channels mean the same in both libraries.

>>> group("D4").order, group("axial-C4").dim
(8, 3)
>>> group("D4").subgroup("halved").name
'D2'
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from dpeq.errors import ConfigError

if TYPE_CHECKING:
    import torch

__all__ = ["GROUP_NAMES", "RESTRICTIONS", "SymmetryGroup", "group"]

RESTRICTIONS = ("none", "halved", "reflection", "invariant")

Element = tuple[int, int]


@dataclass(frozen=True)
class SymmetryGroup:
    """A cyclic or dihedral group of the square grid (2D), or the same about the scan axis of a volume (3D).

    Attributes:
        name: the name used in configurations.
        dim: number of spatial dimensions of the images it acts on, 2 or 3.
        rotations: number of rotations N of C_N or D_N (1, 2 or 4: those that keep the grid).
        mirrored: whether reflections in planes that contain the axis belong to it.
    """

    name: str
    dim: int
    rotations: int
    mirrored: bool

    @property
    def order(self) -> int:
        return self.rotations * (2 if self.mirrored else 1)

    @property
    def elements(self) -> tuple[Element, ...]:
        flips = (0, 1) if self.mirrored else (0,)
        return tuple((f, r) for f in flips for r in range(self.rotations))

    def index(self, element: Element) -> int:
        """Position of ``element`` in a regular field's channels."""
        return self.elements.index(element)

    def product(self, a: Element, b: Element) -> Element:
        """``a`` after ``b``; a mirror turns the sense of the rotation that follows it inside out."""
        sign = -1 if a[0] else 1
        return (a[0] + b[0]) % 2, (a[1] + sign * b[1]) % self.rotations

    def regular_permutation(self, element: Element) -> tuple[int, ...]:
        """Source channels of the regular representation: ``(rho(g) v)[i] = v[permutation[i]]``, i.e. g e_h = e_{gh}."""
        inverse = next(e for e in self.elements if self.product(element, e) == (0, 0))
        return tuple(self.index(self.product(inverse, e)) for e in self.elements)

    def act_on_grid(self, x: torch.Tensor, element: Element) -> torch.Tensor:
        """Transforms the space of images ``[..., *spatial]``: in 3D the axis is the last one (S in RAS order)."""
        import torch

        # An image is stored [y, x] with y pointing down, a volume [x, y, z]: the same turn, seen from opposite sides.
        y, x_axis = (-2, -1) if self.dim == 2 else (-2, -3)
        flip, rotation = element
        if flip:
            x = torch.flip(x, dims=(x_axis,))
        return torch.rot90(x, rotation * (4 // self.rotations), dims=(y, x_axis))

    def subgroup(self, restriction: str) -> SymmetryGroup:
        """The group left after a named restriction (Hölzl et al. 2023): 'halved', 'reflection' or 'invariant'."""
        prefix = "axial-" if self.dim == 3 else ""
        if restriction == "none":
            return self
        if restriction == "halved" and self.rotations > 1:
            half = self.rotations // 2
            return group(f"{prefix}D{half}" if self.mirrored else (f"{prefix}C{half}" if half > 1 else self._trivial()))
        if restriction == "reflection" and self.mirrored:
            return group(f"{prefix}D1")
        if restriction == "invariant":
            return group(self._trivial())
        if restriction in RESTRICTIONS:
            raise ConfigError(
                f"Group {self.name} has no restriction '{restriction}'; use one of: {', '.join(RESTRICTIONS)}."
            )
        raise ConfigError(f"Unknown restriction '{restriction}'; use one of: {', '.join(RESTRICTIONS)}.")

    def _trivial(self) -> str:
        return "trivial" if self.dim == 2 else "trivial-3d"


_GROUPS = {
    "trivial": (2, 1, False),
    "C2": (2, 2, False),
    "C4": (2, 4, False),
    "D1": (2, 1, True),
    "D2": (2, 2, True),
    "D4": (2, 4, True),
    "trivial-3d": (3, 1, False),
    "axial-C2": (3, 2, False),
    "axial-C4": (3, 4, False),
    "axial-D1": (3, 1, True),
    "axial-D2": (3, 2, True),
    "axial-D4": (3, 4, True),
}
GROUP_NAMES = tuple(_GROUPS)


@cache
def group(name: str) -> SymmetryGroup:
    """The group called ``name``; raises :class:`ConfigError` that lists the names when there is none."""
    if name not in _GROUPS:
        raise ConfigError(f"Unknown symmetry group '{name}'; use one of: {', '.join(GROUP_NAMES)}.")
    dim, rotations, mirrored = _GROUPS[name]
    return SymmetryGroup(name, dim, rotations, mirrored)
