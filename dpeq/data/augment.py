"""Which random views of an image are asked for, and which of them a network's symmetry makes a waste.

With augmentation multiplicity (De et al. 2022, arXiv 2204.13650) a privacy unit is shown as K views whose gradients are
averaged before clipping: views cost no epsilon, only time. The settings are here, without torch; the views are made by
:class:`dpeq.data.views.Augment`.

A network whose logits are invariant under a move gives the moved image the same loss, so the same gradient, whatever
its weights: a view that differs by that move alone is computed for nothing. The same holds beside other views, because
their ranges are symmetric: the moved image is shifted and turned as often as the image is. :func:`redundant` names
them, by the matrices of the group.

>>> config = AugmentConfig(flip=("x",), quarter_turns=True)
>>> len(redundant(config, "D4")), len(redundant(config, "C4")), len(redundant(config, "trivial"))
(2, 1, 0)
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from dpeq.data.settings import ExtraTransform
from dpeq.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dpeq.groups import SymmetryGroup

__all__ = ["AugmentConfig", "Axis", "redundant"]

Axis = Literal["x", "y", "z"]


class AugmentConfig(BaseModel):
    """What is changed at random in every view; everything is off by default.

    The axes have names: x runs left-right and y up-down in an image; x, y and z, the scan axis, in a volume. The plane
    is that of x and y. All ranges are symmetric, all draws uniform and independent from row to row.

    Attributes:
        shift: largest move along each axis in pixels, whole pixels only, edges reflected. This is the random crop after
            padding by reflection as well: a crop at offset o of an image padded by p is the image moved by p - o.
            Where the spacing differs by axis, the largest distance in millimetres is the same along all: ``shift``
            counts the finest pixels, coarser ones are rounded down.
        rotate: largest turn in the plane, in degrees.
        tilt: largest turn about each of x and y, in degrees; volumes only. Voxels that are much longer along the scan
            axis are blurred by it.
        scale: largest change of size, as a fraction: 0.1 is 0.9 to 1.1 times, the same along all axes.
        flip: axes that are mirrored, each with probability one half. A mirrored body has its heart on the other side.
        quarter_turns: turns in the plane by 0, 90, 180 or 270 degrees; images must be square in it.
        brightness: largest amount added to all pixels, in the units of the pixels.
        contrast: largest change, as a fraction, of each pixel's distance from the mean of its channel in its image.
        noise: standard deviation of Gaussian noise of each pixel, in the units of the pixels. It protects nobody.
        transforms: random ones of MONAI, by class name, applied last; see :mod:`dpeq.data.extra`. They are made row by
            row on the processor, so they take longer than all of the above.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    shift: int = Field(default=0, ge=0)
    rotate: float = Field(default=0.0, ge=0, le=180)
    tilt: float = Field(default=0.0, ge=0, le=180)
    scale: float = Field(default=0.0, ge=0, lt=1)
    flip: tuple[Axis, ...] = ()
    quarter_turns: bool = False
    brightness: float = Field(default=0.0, ge=0)
    contrast: float = Field(default=0.0, ge=0, lt=1)
    noise: float = Field(default=0.0, ge=0)
    transforms: tuple[ExtraTransform, ...] = ()

    @field_validator("flip")
    @classmethod
    def _once_each(cls, flip: tuple[Axis, ...]) -> tuple[Axis, ...]:
        if len(set(flip)) != len(flip):
            raise PydanticCustomError("axis_twice", "Input should name each axis once")
        return flip

    @property
    def off(self) -> bool:
        """Whether every view is the image itself."""
        return not any(getattr(self, name) for name in type(self).model_fields)

    @property
    def interpolates(self) -> bool:
        """Whether a view is made by interpolation; shifts, flips and quarter turns only move whole pixels."""
        return bool(self.rotate or self.tilt or self.scale)

    def require_dim(self, dim: int) -> None:
        """Raises :class:`ConfigError` when something is asked for that images of ``dim`` dimensions do not have."""
        if dim == 2 and "z" in self.flip:
            raise ConfigError("augment.flip names the axis z, which images do not have; use x or y.")
        if dim == 2 and self.tilt:
            raise ConfigError("augment.tilt turns volumes out of the plane but these are images; use augment.rotate.")


def redundant(config: AugmentConfig, group: str | SymmetryGroup, restriction: str = "none") -> list[str]:
    """The views that a network's symmetry makes a waste, one sentence each; nothing when all of them teach something.

    Only moves of whole pixels are judged, where invariance is exact: mirrors axis by axis, then quarter turns, then
    their combinations (a half turn of an image under C2). Rotations by other angles are never named: under C8 or SO2
    they change the logits a little.

    Args:
        group: of the network's first stages, or its name; "trivial" for conventional networks.
        restriction: of its last stage, as for :meth:`~dpeq.groups.SymmetryGroup.subgroup`; the logits are invariant
            under the group that this leaves.

    Raises:
        ConfigError: for an unknown group or restriction, or views that images of the group's dimension do not have.
    """
    import numpy as np

    from dpeq.groups import group as named

    whole = named(group) if isinstance(group, str) else group
    kept = whole.subgroup(restriction)
    config.require_dim(kept.dim)
    held = {_key(m) for m in kept.matrices if np.array_equal(m, np.rint(m))}
    network = f"a network with group {whole.name}" + ("" if kept == whole else f" restricted to {kept.name}")
    why = f"the logits of {network} ignore it, so the view repeats a gradient"
    sentences = []

    mirrors = {axis: np.diag([-1.0 if a == axis else 1.0 for a in "xyz"[: kept.dim]]) for axis in config.flip}
    for axis in [axis for axis in mirrors if _key(mirrors[axis]) in held]:
        del mirrors[axis]
        sentences.append(f"Mirroring along {axis} is a waste: {why}; take {axis} out of augment.flip.")
    turn = np.eye(kept.dim)
    turn[:2, :2] = [[0, -1], [1, 0]]
    turning = config.quarter_turns
    if turning and _key(turn) in held:
        turning = False
        sentences.append(f"Turning by quarter turns is a waste: {why}; set augment.quarter_turns to false.")

    moves = _combinations(list(mirrors.values()), turn, turning)
    different = [a for i, a in enumerate(moves) if not any(_key(a @ b.T) in held for b in moves[:i])]
    if len(different) < len(moves):
        asked = [f"augment.flip {' and '.join(mirrors)}"] * bool(mirrors) + ["augment.quarter_turns"] * turning
        sentences.append(
            f"Of the {len(moves)} moves of {' with '.join(asked)} {len(moves) - len(different)} are a waste: {network} "
            "gives them the gradients of the others; ask for fewer, or for a smaller group."
        )
    return sentences


def _combinations(
    mirrors: list[NDArray[np.float64]], turn: NDArray[np.float64], turning: bool
) -> list[NDArray[np.float64]]:
    """All different products of some of the mirrors and then a number of turns."""
    import numpy as np

    found: dict[tuple[int, ...], NDArray[np.float64]] = {}
    for turns, *chosen in product(range(4 if turning else 1), *[(False, True)] * len(mirrors)):
        move = np.linalg.matrix_power(turn, turns)
        for mirror, used in zip(mirrors, chosen, strict=True):
            move = move @ mirror if used else move
        found.setdefault(_key(move), move)
    return list(found.values())


def _key(matrix: NDArray[np.float64]) -> tuple[int, ...]:
    return tuple(int(value) for value in matrix.round().ravel())
