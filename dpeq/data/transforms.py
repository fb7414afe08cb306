"""Preprocessing of volumes with MONAI: orientation, spacing, window, size; no statistic of the data set enters."""

from __future__ import annotations

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Orientation, ResizeWithPadOrCrop, ScaleIntensityRange, Spacing
from torch import Tensor

from dpeq.data.cards import VolumeSettings
from dpeq.data.dicom import Volume

__all__ = ["VolumeTransform"]


class VolumeTransform:
    """A :class:`Volume` to a plain float32 tensor ``[1, x, y, z]`` in RAS order, windowed to -1..1.

    What lies outside the scan is air, the lower end of the window.
    """

    def __init__(self, settings: VolumeSettings) -> None:
        low, high = settings.window
        self._compose = Compose(
            [
                Orientation("RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
                Spacing(settings.spacing, mode="bilinear", padding_mode="border"),
                ScaleIntensityRange(low, high, -1.0, 1.0, clip=True),
                ResizeWithPadOrCrop(settings.size, mode="constant", constant_values=-1.0),
            ]
        )

    def __call__(self, volume: Volume) -> Tensor:
        tensor = MetaTensor(torch.from_numpy(volume.voxels)[None], affine=torch.from_numpy(np.asarray(volume.affine)))
        # Plain tensors from here on: MetaTensor and custom gradients do not mix.
        return self._compose(tensor).as_tensor().float().contiguous()
