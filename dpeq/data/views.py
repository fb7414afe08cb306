"""Random views of images and volumes, made for a whole batch on the device that holds it.

All random numbers of a logical batch are drawn at once, row by row, on the CPU (:class:`Draws`). A view is a function
of its own row's image and draws, so neither physical batches nor ranks nor other patients' images can change it.

Everything geometric is one resampling: the moves of a row are composed into one affine map, applied once. When only
whole pixels move (shifts, mirrors, quarter turns), pixels are gathered by index, which is exact; otherwise torch's
``grid_sample`` interpolates. Edges are reflected about the centre of the outermost pixel, as by torch's and numpy's
padding "reflect". Not MONAI's random transforms, which take one image at a time: those that a configuration names come
last, on the processor, each row by a fresh copy under a seed from its draws (:class:`dpeq.data.extra.Extras`). Not
kornia or torchvision, which are no dependencies.

The sampling points are computed by multiplications and additions, not by ``F.affine_grid``: that multiplies matrices,
which autocast rounds to bfloat16, a fifth of a pixel at 64 x 64, and TF32 to 11 bits. It is slower, too.

Pixel noise is a hash of a row's seed and a pixel's number (splitmix64; Steele, Lea & Flood, OOPSLA 2014), made normal
by Box and Muller. The hash is in whole numbers, the same on every device; the logarithm and the cosine after it may
differ in the last bits. No view is part of the guarantee, so none of this need be a cryptographic generator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from dpeq.data.augment import AugmentConfig
from dpeq.data.sampling import Uniform
from dpeq.errors import ConfigError

if TYPE_CHECKING:
    from dpeq.data.extra import Extras

__all__ = ["Augment", "Draws", "Moves", "normal_noise", "splitmix64"]


@dataclass(frozen=True, eq=False)
class Draws:
    """The random numbers of some rows: float64 ``[rows, numbers]`` in (0, 1), on the CPU.

    ``draws[part]``, with a slice or an int64 tensor, are those of some of them.
    """

    values: Tensor

    def __post_init__(self) -> None:
        if self.values.dim() != 2:
            raise ValueError(f"draws have the shape {list(self.values.shape)}, not [rows, numbers]; index by a slice.")

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, part: slice | Tensor) -> Draws:
        return Draws(self.values[part])


@dataclass(frozen=True, eq=False)
class Moves:
    """What :class:`Augment` does to each row: first mirrors, then quarter turns, turns, size, shift; last the pixels.

    Turns are about the centre and counter-clockwise seen with x to the right and y up (images are stored y down).

    Attributes:
        flip: bool ``[rows, dim]``, by array axis: ``[y, x]`` of images, ``[x, y, z]`` of volumes.
        quarters: int64 ``[rows]``, quarter turns from x to y.
        angles: float64 ``[rows, 1 or 3]`` in degrees, from x to y; volumes are turned from z to x and from y to z
            before.
        scale: float64 ``[rows]``, above 1 is larger.
        shift: int64 ``[rows, dim]``, pixels by array axis, towards higher indices.
        contrast, brightness: float64 ``[rows]``: a pixel p of a channel with mean m becomes m + contrast (p - m) +
            brightness.
        seeds: int64 ``[rows]``, of the noise and of MONAI's transforms.
    """

    flip: Tensor
    quarters: Tensor
    angles: Tensor
    scale: Tensor
    shift: Tensor
    contrast: Tensor
    brightness: Tensor
    seeds: Tensor


class Augment:
    """Makes the views that ``config`` asks for.

    Args:
        dim: 2 for images, 3 for volumes.
        spacing: distance of pixels by array axis, ``(y, x)`` of images and ``(x, y, z)`` of volumes, in millimetres;
            equal by default. What turns is the body, not its grid: angles and shapes are kept in millimetres.

    Raises:
        ConfigError: when the images cannot be changed like that, or MONAI has no such transform.
    """

    def __init__(self, config: AugmentConfig, dim: int, spacing: Sequence[float] | None = None) -> None:
        if dim not in (2, 3):
            raise ValueError(f"dim is {dim}; views are made of images (2) and volumes (3).")
        config.require_dim(dim)
        steps = [1.0] * dim if spacing is None else [float(s) for s in spacing]
        if len(steps) != dim or not all(0 < s < math.inf for s in steps):
            raise ConfigError(f"The spacing is {steps}, not {dim} positive numbers of millimetres; correct it.")
        if config.quarter_turns and not math.isclose(steps[0], steps[1], rel_tol=1e-3):
            raise ConfigError(
                f"Quarter turns need pixels with equal edges in the plane, these are {steps[0]:g} x {steps[1]:g} mm; "
                "set augment.quarter_turns to false or resample the images."
            )
        self.config, self.dim = config, dim
        self._spacing = torch.tensor(steps, dtype=torch.float64)
        # A hair above, because 3 * 0.7 / 0.7 is less than 3 in floating point.
        self._reach = torch.tensor([int(config.shift * min(steps) / s + 1e-6) for s in steps])
        names = "yx" if dim == 2 else "xyz"
        self._mirrored = torch.tensor([name in config.flip for name in names])
        # Of flip, quarters, shift, angles, scale, contrast, brightness and seeds, whether asked for or not.
        self._numbers = [dim, 1, dim, 2 * dim - 3, 1, 1, 1, 1]
        self._extras: Extras | None = None
        if config.transforms:
            from dpeq.data.extra import Extras  # loads MONAI, which takes seconds

            self._extras = Extras(config.transforms, "augment.transforms", random=True)

    def draw(self, keys: Uniform, rows: int) -> Draws:
        """All random numbers of ``rows`` views; the same ones whatever is switched on.

        Args:
            keys: a stream that has not been used for the same step from its start, for example to choose the images.
        """
        return Draws(keys.uniform(rows, sum(self._numbers)))

    def moves(self, draws: Draws) -> Moves:
        """What the draws mean under the settings."""
        if draws.values.shape[1] != sum(self._numbers):
            raise ValueError(f"these draws are not of {self.dim}D views; make them with the draw of this object.")
        c = self.config
        flip, quarter, shift, angles, scale, contrast, brightness, seeds = torch.split(
            draws.values, self._numbers, dim=1
        )
        largest = torch.tensor([c.rotate, c.tilt, c.tilt][: angles.shape[1]], dtype=torch.float64)
        return Moves(
            flip=(flip < 0.5) & self._mirrored,
            quarters=_whole(quarter, 4).flatten() * c.quarter_turns,
            angles=(2 * angles - 1) * largest,
            scale=(1 + (2 * scale - 1) * c.scale).flatten(),
            shift=_whole(shift, 2 * self._reach + 1) - self._reach,
            contrast=(1 + (2 * contrast - 1) * c.contrast).flatten(),
            brightness=((2 * brightness - 1) * c.brightness).flatten(),
            seeds=_whole(seeds, 2**53).flatten(),
        )

    def check(self, spatial: Sequence[int]) -> None:
        """Raises :class:`ConfigError` when images of the shape ``spatial`` cannot be changed like that."""
        if len(spatial) != self.dim:
            raise ConfigError(f"These views are of {self.dim}D images, not of the shape {_by(spatial)}; give others.")
        if self.config.quarter_turns and spatial[0] != spatial[1]:
            raise ConfigError(
                f"Quarter turns need images that are square in the plane, not {_by(spatial)}; set "
                "augment.quarter_turns to false or resize the images."
            )
        for reach, edge in zip(self._reach.tolist(), spatial, strict=True):
            if reach >= edge:
                raise ConfigError(
                    f"augment.shift moves images of {_by(spatial)} by up to {reach} pixels, beyond the edge of {edge}; "
                    "make it smaller."
                )

    def dry_run(self, shape: Sequence[int]) -> None:
        """Raises :class:`ConfigError` when images ``(channels, *spatial)`` cannot be changed like that; tries it."""
        self.check(shape[1:])
        if self._extras is not None:
            self._extras.dry_run(shape)

    @torch.no_grad()
    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        """The views of ``x``, one per row, on its device and in its precision.

        Args:
            x: ``[rows, channels, *spatial]``, floating; half precision is computed in single.
            draws: of these rows.

        Raises:
            ConfigError: as :meth:`check`.
        """
        self.check(x.shape[2:])
        if not x.is_floating_point():
            raise ValueError(f"views are made of floating-point images, not of {x.dtype}.")
        if len(draws) != len(x):
            raise ValueError(f"there are {len(draws)} rows of draws for {len(x)} images.")
        if self.config.off or len(x) == 0:
            return x
        moves = self.moves(draws)
        if self.config.interpolates:
            view = self._resample(x, moves)
        elif self.config.shift or self.config.flip or self.config.quarter_turns:
            view = self._gather(x, moves)
        else:
            view = x
        return self._named(self._intensity(view, moves), moves).to(x.dtype)

    def _sources(self, moves: Moves) -> Tensor:
        """Matrices ``[rows, dim, dim]`` from where a pixel of the view is, less the shift, to where it comes from.

        Both are counted in pixels from the centre, by array axis.
        """
        forth = torch.diag_embed(1.0 - 2.0 * moves.flip.double())
        forth = self._turns(90.0 * moves.quarters, 0, 1) @ forth
        if self.dim == 3:
            forth = self._turns(moves.angles[:, 2], 2, 0) @ forth
            forth = self._turns(moves.angles[:, 1], 1, 2) @ forth
        forth = self._turns(moves.angles[:, 0], 0, 1) @ forth
        back = forth.mT / moves.scale[:, None, None]
        return back * self._spacing / self._spacing[:, None]  # into millimetres, turned back, into pixels

    def _turns(self, degrees: Tensor, a: int, b: int) -> Tensor:
        """Rotations ``[rows, dim, dim]`` from axis ``a`` to axis ``b``."""
        radians = torch.deg2rad(degrees.double())
        turns = torch.eye(self.dim, dtype=torch.float64).repeat(len(degrees), 1, 1)
        turns[:, a, a] = turns[:, b, b] = radians.cos()
        turns[:, b, a] = radians.sin()
        turns[:, a, b] = -turns[:, b, a]
        return turns

    def _gather(self, x: Tensor, moves: Moves) -> Tensor:
        """Moves whole pixels: the number of the pixel to show is a sum of one term for each axis of the view."""
        spatial = x.shape[2:]
        strides = torch.tensor([math.prod(spatial[axis + 1 :]) for axis in range(self.dim)])
        step = (strides[:, None] * self._sources(moves).round().long()).sum(1).to(x.device)  # [rows, dim]
        shift = moves.shift.to(x.device)
        number = torch.zeros(1, device=x.device, dtype=torch.int64)
        for axis, edge in enumerate(spatial):
            place = (torch.arange(edge, device=x.device) - shift[:, axis, None]).abs()
            place = edge - 1 - (edge - 1 - place).abs()  # reflected at both edges
            place = torch.where(step[:, axis, None] > 0, place, edge - 1 - place)
            number = number + _along(step[:, axis, None].abs() * place, axis, self.dim)
        return x.flatten(2).gather(2, number.flatten(1)[:, None].expand(-1, x.shape[1], -1)).view(x.shape)

    def _resample(self, x: Tensor, moves: Moves) -> Tensor:
        """Interpolates, bilinearly or trilinearly, between pixels."""
        x = x.float() if x.dtype.itemsize < 4 else x
        back = self._sources(moves)
        if self.dim == 2 or self.config.tilt:
            return _sample(x, back, moves.shift)
        # Nothing tilts the scan axis, so trilinear interpolation is linear along it and bilinear in the plane, the same
        # plane for all slices: equal, and many times faster.
        rows, channels, *plane, depth = x.shape
        x = _sample_slices(x.permute(0, 4, 1, 2, 3).contiguous(), back[:, 2, 2], moves.shift[:, 2])
        x = _sample(x.flatten(1, 2), back[:, :2, :2], moves.shift[:, :2])
        return x.view(rows, depth, channels, *plane).permute(0, 2, 3, 4, 1).contiguous()

    def _intensity(self, x: Tensor, moves: Moves) -> Tensor:
        c = self.config
        if not (c.contrast or c.brightness or c.noise):
            return x
        x = x.float() if x.dtype.itemsize < 4 else x
        if c.contrast:
            mean = x.mean(dim=tuple(range(2, x.dim())), keepdim=True)
            x = torch.lerp(mean, x, _rowwise(moves.contrast, x))
        if c.brightness:
            x = x + _rowwise(moves.brightness, x)
        if c.noise:
            noise = normal_noise(moves.seeds.to(x.device), math.prod(x.shape[1:]))
            x = x + c.noise * noise.view(x.shape)
        return x

    def _named(self, x: Tensor, moves: Moves) -> Tensor:
        """MONAI's transforms, row by row."""
        if self._extras is None:
            return x
        # The first output is the noise's; half of the bits of the others are the seeds that numpy takes.
        words = splitmix64(moves.seeds.cpu(), 1 + len(self._extras))[:, 1:]
        seeds = (words >> 32).bitwise_and_(0xFFFFFFFF).tolist()
        rows = [self._extras(row, of_row) for row, of_row in zip(x.float().cpu(), seeds, strict=True)]
        return torch.stack(rows).to(x.device)


def _sample(x: Tensor, back: Tensor, shift: Tensor) -> Tensor:
    """torch's interpolation of ``[rows, channels, *spatial]``: pixel p shows ``back (p - shift)``, from the centre."""
    spatial = x.shape[2:]
    # grid_sample counts from -1 to 1 between the centres of the outermost pixels, axes in reverse order.
    halves = (torch.tensor(spatial, dtype=torch.float64) - 1) / 2
    back = (back / halves.clamp(min=0.5)[:, None]).flip(1).to(x.device, x.dtype)
    shift = shift.to(x.device, x.dtype)
    grid = torch.zeros(1, device=x.device, dtype=x.dtype)
    for axis, edge in enumerate(spatial):
        place = torch.arange(edge, device=x.device, dtype=x.dtype) - (edge - 1) / 2 - shift[:, axis, None]
        grid = grid + _along(place[:, :, None] * back[:, None, :, axis], axis, len(spatial))
    return F.grid_sample(x, grid, "bilinear", "reflection", align_corners=True)


def _sample_slices(x: Tensor, back: Tensor, shift: Tensor) -> Tensor:
    """The same along the first axis after the rows: ``[rows, slices, ...]`` with one number per row each."""
    last = x.shape[1] - 1
    place = back[:, None] * (torch.arange(last + 1) - last / 2 - shift[:, None]) + last / 2
    place = last - (last - place.abs().remainder(max(2 * last, 1))).abs()
    lower = place.floor()
    weight = (place - lower).to(x.device, x.dtype)
    index = lower.long().to(x.device)
    row = torch.arange(len(x), device=x.device)[:, None]
    below = x[row, index]
    if not bool((place != lower).any()):
        return below
    return below.lerp_(x[row, (index + 1).clamp(max=last)], weight.view(*weight.shape, *[1] * (x.dim() - 2)))


def splitmix64(seeds: Tensor, count: int) -> Tensor:
    """The first ``count`` outputs of the generator for each seed, int64 ``[rows, count]`` with the bits of uint64."""
    z = seeds[:, None] + torch.arange(1, count + 1, device=seeds.device) * -0x61C8864680B583EB
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1)):
        # The sign is copied into the bits that a shift of an int64 frees; they must be zero.
        z ^= (z >> shift).bitwise_and_((1 << (64 - shift)) - 1)
        if factor != 1:
            z *= factor
    return z


def normal_noise(seeds: Tensor, count: int) -> Tensor:
    """Standard normal numbers, float32 ``[rows, count]``: those of a row follow from its int64 seed alone."""
    half = (count + 1) // 2
    # One step more, so that rows with neighbouring seeds do not run through the same states.
    bits = splitmix64(splitmix64(seeds, 1)[:, 0], half)
    radius = (bits >> 32).bitwise_and_(0xFFFFFFFF).float().add_(0.5).mul_(2.0**-32).log_().mul_(-2.0).sqrt_()
    angle = bits.bitwise_and_(0xFFFFFFFF).float().mul_(2.0**-31 * math.pi)
    return torch.cat([radius * angle.cos(), radius.mul_(angle.sin_())], dim=1)[:, :count]


def _whole(uniform: Tensor, count: Tensor | int) -> Tensor:
    """Whole numbers ``0 .. count - 1``, equally likely; a number that was rounded to 1 is the last."""
    return torch.minimum((uniform * count).floor(), torch.as_tensor(count, dtype=torch.float64) - 1).long()


def _along(values: Tensor, axis: int, dim: int) -> Tensor:
    """``[rows, edge, ...]`` laid out along one of ``dim`` axes, to be broadcast along the others."""
    rows, edge, *rest = values.shape
    return values.view(rows, *(edge if a == axis else 1 for a in range(dim)), *rest)


def _rowwise(values: Tensor, x: Tensor) -> Tensor:
    return values.to(x.device, x.dtype).view(-1, *[1] * (x.dim() - 1))


def _by(spatial: Sequence[int]) -> str:
    return " x ".join(str(edge) for edge in spatial)
