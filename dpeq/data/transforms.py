"""From the voxels of a file to the network's input, by MONAI's transforms; see :mod:`dpeq.data.settings` for the keys.

Every step looks at one image alone. What lies outside of an image is the lower end of its range, -1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import (
    CropForeground,
    Orientation,
    Resize,
    ResizeWithPadOrCrop,
    ScaleIntensityRange,
    Spacing,
    generate_spatial_bounding_box,
)
from torch import Tensor

from dpeq.data.extra import Extras
from dpeq.data.readers.source import Volume
from dpeq.data.settings import ImageSettings
from dpeq.errors import DataError

__all__ = ["ImageTransform", "foreground", "scale_by_percentiles", "slices_of"]


class ImageTransform:
    """A :class:`Volume` to the images that it gives, plain float32 ``[images, *settings.shape(channels)]``.

    A volume seen in 3D, and a flat image, give one; a volume seen in 2D or 2.5D gives its slices. All of them belong to
    the unit that owns the volume.

    Args:
        channels: of every file, 1 for grey values and 3 for colours.

    Raises:
        ConfigError: for a transform of MONAI that cannot be applied to such images.
    """

    def __init__(self, settings: ImageSettings, channels: int = 1) -> None:
        self.settings, self.channels = settings, channels
        s = settings
        self._orientation = Orientation(s.axes, labels=(("L", "R"), ("P", "A"), ("I", "S")))
        self._spacing = self._mask_spacing = None
        if s.spacing is not None:
            self._spacing = Spacing(s.spacing, mode="bilinear", padding_mode="border")
            self._mask_spacing = Spacing(s.spacing, mode="nearest", padding_mode="border")
        self._crop = None
        if s.foreground == "intensity":
            self._crop = CropForeground(foreground, margin=s.margin, allow_smaller=True)
        self._scale = None if s.window is None else ScaleIntensityRange(*s.window, -1.0, 1.0, clip=True)
        if s.fit == "resize":
            self._fit: Any = Resize(s.size, mode="area")
        else:
            self._fit = ResizeWithPadOrCrop(s.size, mode="constant", constant_values=-1.0)
        self._extras = Extras(s.transforms, "data.transforms", random=False)

    def check(self) -> None:
        """Raises ConfigError when ``settings.transforms`` cannot be applied; needs no data."""
        self._extras.dry_run(self.settings.shape(self.channels))

    def __call__(self, volume: Volume, mask: Volume | None = None) -> Tensor:
        """
        Args:
            mask: of the foreground, on the grid of ``volume``.

        Raises:
            DataError: when the image is not of the kind that the settings are for.
        """
        s = self.settings
        self.require(volume.voxels.shape)
        if s.spacing is not None and volume.geometry == "none":
            raise DataError(
                "its format has no lengths, so it cannot be resampled to millimetres; leave data.spacing out"
            )
        box = None if s.foreground != "mask" else self._mask_box(volume, mask)
        image = self._placed(volume, self._spacing)
        if box is not None:
            image = image[box]
        elif self._crop is not None:
            image = self._crop(image)
        if self._scale is not None:
            image = self._scale(image)
        else:
            assert s.percentiles is not None
            image = scale_by_percentiles(_plain(image), *s.percentiles)
        # Plain tensors from here on: MetaTensor and custom gradients do not mix.
        tensor = _plain(self._fit(image)).float()
        if s.view == "3d":
            images = tensor[None]
        else:
            images = slices_of(tensor if len(s.size) == 3 else tensor[..., None], s.slices or 1)
        if len(self._extras):
            images = torch.stack([self._extras(image) for image in images])
        if not bool(torch.isfinite(images).all()):
            raise DataError("preprocessing gives values that are not finite; leave out the transform that does")
        return images.contiguous()

    def require(self, shape: Sequence[int]) -> None:
        """Raises DataError when the settings are not for images of ``shape``, ``(channels, x, y, z)`` as stored."""
        s = self.settings
        channels, *_, depth = shape
        if channels != self.channels:
            raise DataError(f"it has {channels} channels; set channels to that on the card, or leave such images out")
        if depth == 1 and len(s.size) == 3:
            raise DataError(
                "it is a flat image, but data.size names three axes; set data.view to 2d and give data.size two numbers"
            )
        if depth > 1 and len(s.size) == 2:
            raise DataError(
                f"it has {depth} slices, but data.size names two axes; give data.size a third number, of slices"
            )

    def _placed(self, volume: Volume, spacing: Spacing | None) -> MetaTensor:
        """``[channels, x, y(, z)]``, turned and resampled."""
        affine = np.diag([*volume.spacing, 1.0]) if volume.geometry == "scaled" else np.asarray(volume.affine)
        if volume.geometry == "none":
            affine = np.eye(4)
        image = MetaTensor(torch.from_numpy(_dense(volume.voxels)), affine=torch.from_numpy(affine))
        if volume.geometry == "placed":
            image = self._orientation(image)
        if len(self.settings.size) == 2:
            if image.shape[-1] != 1:
                raise DataError(
                    f"it is one slice, but not across the third axis of {self.settings.axes}; set data.orientation so "
                    "that it is"
                )
            edges = image.affine[:3, :3].norm(dim=0)
            image = MetaTensor(image.as_tensor()[..., 0], affine=torch.diag(torch.tensor([*edges[:2], 1.0, 1.0])))
        return image if spacing is None else spacing(image)

    def _mask_box(self, volume: Volume, mask: Volume | None) -> tuple[slice, ...]:
        if mask is None:
            raise DataError("it has no mask; index it with one, or set data.foreground to none or intensity")
        same = mask.voxels.shape[1:] == volume.voxels.shape[1:] and mask.geometry == volume.geometry
        if not same or not np.allclose(mask.affine, volume.affine, atol=1e-3 * min(volume.spacing)):
            raise DataError("its mask lies on another grid; resample the mask to the image, and index again")
        placed = _plain(self._placed(mask, self._mask_spacing))
        if not bool((placed > 0).any()):
            raise DataError("its mask is empty; set data.foreground to none or intensity")
        start, end = generate_spatial_bounding_box(placed, margin=self.settings.margin or 0, allow_smaller=True)
        return (slice(None), *(slice(int(a), int(b)) for a, b in zip(start, end, strict=True)))


def foreground(image: Tensor) -> Tensor:
    """What is not darker than the mean of ``image``; never empty, also where rounding puts the mean above all of it."""
    return image >= image.mean().clamp(max=image.max())


def scale_by_percentiles(image: Tensor, lower: float, upper: float) -> Tensor:
    """Maps two percentiles of ``image`` to -1 and 1, and what lies beyond them to the ends.

    They are taken of the voxels above the lowest value, which padding and what was masked out have; by nearest rank, so
    they are values of the image. Where both are the same value, that and all above it become 1.
    """
    values = image.contiguous().numpy().ravel()
    padding = int((values == values.min()).sum())
    count = values.size - padding
    if count == 0:
        return torch.full_like(image, -1.0)
    # The lowest values come first in order, so ranks are counted behind them; nothing need be copied out.
    places = [padding + max(1, math.ceil(percent / 100 * count)) - 1 for percent in (lower, upper)]
    low, high = (float(value) for value in np.partition(values, places)[places])
    scaled = (image - low) / (high - low if high > low else 1.0) * 2 - 1
    return torch.where(image < low, -1.0, torch.where(image >= high, 1.0, scaled))


def slices_of(volume: Tensor, slices: int) -> Tensor:
    """Of ``[channels, x, y, z]`` the slices across z, as ``[z, slices * channels, y, x]``.

    Each has ``slices - 1`` neighbours as further channels, from lower to higher z, all channels of a slice together;
    beyond the ends the last slice is repeated.
    """
    images = volume.permute(3, 0, 2, 1)
    last = len(images) - 1
    offsets = range(-(slices // 2), slices // 2 + 1)
    order = torch.arange(last + 1)
    return torch.cat([images[(order + offset).clamp(0, last)] for offset in offsets], dim=1)


def _dense(voxels: np.ndarray) -> np.ndarray:
    """The same in C order: readers give views of slices as files hold them, which torch copies slowly, more than once.

    Slice by slice numpy does it three times as fast as in one go.
    """
    if voxels.flags.c_contiguous:
        return voxels
    return np.stack([voxels[..., k] for k in range(voxels.shape[-1])], axis=-1)


def _plain(image: Tensor) -> Tensor:
    return image.as_tensor() if isinstance(image, MetaTensor) else image
