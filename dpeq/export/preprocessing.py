"""What the network expects of its input, for people and as MONAI transforms that need nothing else.

The transforms are those of :mod:`dpeq.data` (its tests compare the two), read from files instead of from memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpeq.data.settings import ImageSettings

__all__ = ["Preprocessing", "arrays", "images", "indexed"]


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


def indexed(settings: ImageSettings, channels: int = 1) -> Preprocessing:
    """That of :class:`dpeq.data.transforms.ImageTransform`.

    Where MONAI's readers cannot see what it needs (a mask beside the image; the pixel spacing of a flat image), or a
    text would be evaluated in a bundle that is plain text here, files hold the network's input itself and the steps say
    how it was made.
    """
    flat = len(settings.size) == 2
    steps = tuple(_steps(settings, flat))
    value_range = () if settings.transforms else (-1.0, 1.0)
    unsaid = any(_has_marks(extra.arguments) for extra in settings.transforms)
    if settings.foreground == "mask" or (flat and settings.spacing is not None) or unsaid:
        ready = arrays(settings.shape(channels))
        return Preprocessing(f"{ready.reads}, made as follows", steps, ready.transforms, value_range)
    if flat:
        reads = (
            "a picture (PNG, JPEG), a DICOM image of one frame, or a NumPy array [row, column], with values as stored"
        )
        transforms = [_load_flat(channels), {"_target_": "EnsureChannelFirst"}]
    else:
        reads = "a volume with its geometry (NIfTI file, or folder of one DICOM series); values in HU for CT"
        transforms = _load_placed(settings)
    transforms += _values_and_size(settings, flat)
    if settings.view != "3d" and not flat:
        transforms += _slices(settings.slices or 1)
    # As they were trained with: MONAI's versions for dictionaries take other arguments and have other defaults.
    transforms += [
        {"_target_": "Lambda", "func": {"_target_": extra.name, **extra.arguments}} for extra in settings.transforms
    ]
    return Preprocessing(reads, steps, (*map(_keyed, transforms), _plain_tensor()), value_range)


def _steps(s: ImageSettings, flat: bool) -> Iterator[str]:
    """One sentence for each thing that is done."""
    letters = {"R": "right", "L": "left", "A": "anterior", "P": "posterior", "S": "superior", "I": "inferior"}
    if not flat:
        yield f"Turn the axes to {', '.join(letters[code] for code in s.axes)} ({s.axes})."
    if s.spacing is not None:
        millimetres = " x ".join(f"{edge:g}" for edge in s.spacing)
        yield f"Resample to {millimetres} mm, linearly, border values outside."
    if s.foreground != "none":
        what = "the voxels not darker than the mean of the image" if s.foreground == "intensity" else "its mask"
        yield f"Crop to the box around {what}, and {s.margin} voxels more on each side."
    if s.window is not None:
        yield f"Window {s.window[0]:g} .. {s.window[1]:g} to -1 .. 1, clipped."
    elif s.percentiles is not None:
        lower, upper = s.percentiles
        yield (
            f"Map the percentiles {lower:g} .. {upper:g} of the voxels above the image's lowest value, by nearest "
            "rank, to -1 .. 1, clipped."
        )
    by = " x ".join(map(str, s.size))
    yield (
        f"Resize to {by} voxels by area averaging."
        if s.fit == "resize"
        else (f"Crop or pad about the centre to {by} voxels with -1.")
    )
    if flat:
        yield "Lay the image out as [row, column]."
    elif s.view != "3d":
        beside = "" if s.slices is None else f", with {s.slices} neighbouring slices as channels, the ends repeated"
        yield (
            f"Take the slices across the third axis as [row, column]{beside}; each has its own prediction, the score "
            "of the volume is the mean of their probabilities."
        )
    for extra in s.transforms:
        yield f"MONAI's {extra.name}({', '.join(f'{name}={value!r}' for name, value in extra.arguments.items())})."


def _load_placed(s: ImageSettings) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        # Named readers, in the order last to first: which reader is chosen must not depend on what is installed.
        {"_target_": "LoadImage", "reader": ["PydicomReader", "NibabelReader"]},
        {"_target_": "EnsureChannelFirst"},
        {"_target_": "Orientation", "axcodes": s.axes, "labels": [["L", "R"], ["P", "A"], ["I", "S"]]},
    ]
    if s.spacing is not None:
        found.append({"_target_": "Spacing", "pixdim": list(s.spacing), "mode": "bilinear", "padding_mode": "border"})
    return found


def _load_flat(channels: int) -> dict[str, Any]:
    mode = "L" if channels == 1 else "RGB"
    array: dict[str, Any] = {"_target_": "NumpyReader"} | ({} if channels == 1 else {"channel_dim": -1})
    # MONAI would turn images to [column, row]; the network was trained on [row, column]. Pictures of 16 bits stay so.
    picture = {
        "_target_": "PILReader",
        "reverse_indexing": False,
        "converter": f"$lambda picture: picture if picture.mode.startswith('I') else picture.convert('{mode}')",
    }
    return {"_target_": "LoadImage", "reader": [{"_target_": "PydicomReader", "swap_ij": False}, array, picture]}


def _values_and_size(s: ImageSettings, flat: bool) -> Iterator[dict[str, Any]]:
    size = [s.size[1], s.size[0]] if flat else list(s.size)
    if s.foreground == "intensity":
        yield {
            "_target_": "CropForeground",
            "source_key": "image",
            "select_fn": "$lambda x: x >= x.mean().clamp(max=x.max())",
            "margin": s.margin,
            "allow_smaller": True,
        }
    if s.window is not None:
        yield {
            "_target_": "ScaleIntensityRange",
            "a_min": s.window[0],
            "a_max": s.window[1],
            "b_min": -1.0,
            "b_max": 1.0,
            "clip": True,
        }
    elif s.percentiles is not None:
        yield {"_target_": "Lambda", "func": _percentiles(*s.percentiles)}
    if s.fit == "resize":
        yield {"_target_": "Resize", "spatial_size": size, "mode": "area"}
    else:
        yield {
            "_target_": "ResizeWithPadOrCrop",
            "spatial_size": size,
            "mode": "constant",
            "constant_values": -1.0,
        }


def _percentiles(lower: float, upper: float) -> str:
    """:func:`dpeq.data.transforms.scale_by_percentiles` as an expression; ``-(-a // 1)`` rounds up."""
    rank = "v.kthvalue(max(1, int(-(-({share!r} * v.numel()) // 1)))).values"
    low, high = (rank.format(share=percent / 100) for percent in (lower, upper))
    scaled = "torch.where(x < a, -1.0, torch.where(x >= b, 1.0, (x - a) / (b - a) * 2 - 1))"
    of_values = f"torch.full_like(x, -1.0) if v.numel() == 0 else (lambda a, b: {scaled})({low}, {high})"
    return f"$lambda image: (lambda x: (lambda v: {of_values})(x[x > x.min()]))(torch.as_tensor(image.numpy()))"


def _slices(slices: int) -> list[dict[str, Any]]:
    """:func:`dpeq.data.transforms.slices_of`, and then one item for each slice."""
    neighbours = (
        "$lambda x: torch.cat([x.permute(3, 0, 2, 1)[(torch.arange(x.shape[3]) + k).clamp(0, x.shape[3] - 1)] "
        f"for k in range(-{slices // 2}, {slices // 2 + 1})], dim=1)"
    )
    return [
        {"_target_": "Lambda", "func": neighbours},
        {"_target_": "SplitDim", "dim": 0, "keepdim": False, "list_output": True, "update_meta": False},
    ]


def _has_marks(value: Any) -> bool:
    """Whether a text holds what a bundle would evaluate: ``$`` expressions, ``@`` and ``%`` references."""
    if isinstance(value, str):
        return any(mark in value for mark in "$@%")
    if isinstance(value, (list, tuple)):
        return any(map(_has_marks, value))
    return isinstance(value, Mapping) and any(map(_has_marks, [*value, *value.values()]))


def _keyed(transform: dict[str, Any]) -> dict[str, Any]:
    """The transform of arrays as that of dictionaries."""
    arguments = {key: value for key, value in transform.items() if key != "_target_"}
    return {"_target_": f"{transform['_target_']}d", "keys": "image", **arguments}


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
