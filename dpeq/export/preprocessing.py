"""What the network expects of its input, for people and as MONAI transforms that need nothing else.

The transforms are those of :mod:`dpeq.data` (its tests compare the two), read from files instead of from memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dpeq.data.cards import VolumeSettings

__all__ = ["Preprocessing", "arrays", "images", "volumes"]


@dataclass(frozen=True)
class Preprocessing:
    """From a file to the network's input.

    Attributes:
        reads: what a file holds, in a few words.
        steps: one sentence for each thing that is done to it.
        transforms: MONAI dictionary transforms in the notation of its bundles, from a path to a tensor under "image".
        value_range: smallest and largest value of the input; empty when it is not bounded.
    """

    reads: str
    steps: tuple[str, ...]
    transforms: tuple[dict[str, Any], ...]
    value_range: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "reads": self.reads,
            "steps": list(self.steps),
            "monai_transforms": [dict(transform) for transform in self.transforms],
            "value_range": list(self.value_range),
        }


def volumes(settings: VolumeSettings) -> Preprocessing:
    """That of :class:`dpeq.data.transforms.VolumeTransform`, for NIfTI files and folders of a DICOM series."""
    low, high = settings.window
    spacing, size = list(settings.spacing), list(settings.size)
    millimetres, voxels = " x ".join(f"{s:g}" for s in spacing), " x ".join(map(str, size))
    return Preprocessing(
        reads="a volume with its geometry (NIfTI file, or folder of one DICOM series); values in HU for CT",
        steps=(
            "Turn the axes to right, anterior, superior (RAS).",
            f"Resample to {millimetres} mm, linearly, border values outside.",
            f"Window {low:g} .. {high:g} to -1 .. 1, clipped.",
            f"Crop or pad about the centre to {voxels} voxels with -1.",
        ),
        transforms=(
            # Named readers, in the order last to first: which reader is chosen must not depend on what is installed.
            {"_target_": "LoadImaged", "keys": "image", "reader": ["PydicomReader", "NibabelReader"]},
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
            {
                "_target_": "Orientationd",
                "keys": "image",
                "axcodes": "RAS",
                "labels": [["L", "R"], ["P", "A"], ["I", "S"]],
            },
            {
                "_target_": "Spacingd",
                "keys": "image",
                "pixdim": spacing,
                "mode": "bilinear",
                "padding_mode": "border",
            },
            _scale(low, high),
            {
                "_target_": "ResizeWithPadOrCropd",
                "keys": "image",
                "spatial_size": size,
                "mode": "constant",
                "constant_values": -1.0,
            },
            _plain_tensor(),
        ),
        value_range=(-1.0, 1.0),
    )


def images(shape: Sequence[int]) -> Preprocessing:
    """That of :mod:`dpeq.data.medmnist`, for picture files and ``.npy`` arrays of 8-bit values; ``shape`` is (C, H, W).

    A picture of another size is resized, which the data sets of the library never need.
    """
    channels, *size = shape
    mode = "L" if channels == 1 else "RGB"
    pixels = " x ".join(map(str, size))
    array: dict[str, Any] = {"_target_": "NumpyReader"} | ({} if channels == 1 else {"channel_dim": -1})
    return Preprocessing(
        reads=f"an 8-bit picture (PNG, JPEG, BMP) or a NumPy array [row, column] of values 0 .. 255, read as {mode}",
        steps=(
            f"Resize to {pixels} pixels by area averaging; a picture of that size is left as it is.",
            "Map 0 .. 255 to -1 .. 1.",
        ),
        transforms=(
            {
                "_target_": "LoadImaged",
                "keys": "image",
                # MONAI would turn pictures to [column, row]; the network was trained on [row, column].
                "reader": [
                    array,
                    {
                        "_target_": "PILReader",
                        "reverse_indexing": False,
                        "converter": f"$lambda picture: picture.convert('{mode}')",
                    },
                ],
            },
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
            {"_target_": "Resized", "keys": "image", "spatial_size": size, "mode": "area"},
            _scale(0.0, 255.0),
            _plain_tensor(),
        ),
        value_range=(-1.0, 1.0),
    )


def arrays(shape: Sequence[int]) -> Preprocessing:
    """None at all: ``.npy`` files that hold the network's input, without the batch axis."""
    return Preprocessing(
        reads=f"a NumPy array {list(shape)} that is the network's input already",
        steps=(),
        transforms=(
            {
                "_target_": "LoadImaged",
                "keys": "image",
                "reader": {"_target_": "NumpyReader", "channel_dim": 0},
            },
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
            _plain_tensor(),
        ),
    )


def _scale(low: float, high: float) -> dict[str, Any]:
    ends = {"a_min": low, "a_max": high, "b_min": -1.0, "b_max": 1.0}
    return {"_target_": "ScaleIntensityRanged", "keys": "image", **ends, "clip": True}


def _plain_tensor() -> dict[str, Any]:
    return {"_target_": "EnsureTyped", "keys": "image", "dtype": "$torch.float32", "track_meta": False}
