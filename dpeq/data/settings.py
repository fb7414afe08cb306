"""How images become the network's input: public constants alone, with sensible ones for each kind of image.

Every number here is a constant, or taken from the one image at hand: no statistic of the data set enters, so one
patient's result never depends on another patient. A preset says what a kind of image needs; each key overrides it.

| preset | values become -1 .. 1 | view | size by |
|---|---|---|---|
| ct | the window -1000 .. 1000 HU, air to dense bone | 3d | crop or pad |
| mr | the percentiles 0.5 .. 99.5 of each image, whose units are the scanner's own | 3d | crop or pad |
| xray | the percentiles 0.5 .. 99.5 of each image, because every detector stores another range | 2d | resizing |
| generic | 0 .. 255, the range of 8-bit pictures | 2d | resizing |

A narrower window shows more of what lies in it: -160 .. 240 HU for soft tissue, -1000 .. 400 for lungs. Which one
suits is the user's to say; it must not be read off the data.

>>> ImageSettings(preset="ct", spacing=(2, 2, 2), size=(96, 96, 64)).window
(-1000.0, 1000.0)
>>> ImageSettings(preset="xray", size=(320, 256)).shape(channels=1)  # an array has its rows first
(1, 256, 320)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

__all__ = [
    "Edge",
    "ExtraTransform",
    "Fit",
    "Foreground",
    "ImageSettings",
    "Millimetres",
    "Orientation",
    "Percentiles",
    "Preset",
    "Size",
    "Slices",
    "Spacing",
    "View",
    "Window",
]


def _interval(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] >= ends[1]:
        raise PydanticCustomError("interval", "Give the lower end first, and two different numbers")
    return ends


def _odd(number: int) -> int:
    if number % 2 == 0:
        raise PydanticCustomError("odd", "Input should be an odd number: a slice and as many neighbours on each side")
    return number


def _directions(codes: str) -> str:
    if sorted("LPI".find(c) if c in "LPI" else "RAS".find(c) for c in codes) != [0, 1, 2]:
        raise PydanticCustomError(
            "orientation", "Input should name where each axis points, one letter of each pair L/R, P/A and I/S, as RAS"
        )
    return codes


Edge = Annotated[int, Field(ge=1)]
Millimetres = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Percent = Annotated[float, Field(ge=0, le=100)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Preset = Literal["ct", "mr", "xray", "generic"]
View = Literal["3d", "2d", "2.5d"]
Fit = Literal["pad", "resize"]
Foreground = Literal["none", "intensity", "mask"]
Orientation = Annotated[str, AfterValidator(_directions)]
Size = Annotated[tuple[Edge, ...], Field(min_length=2, max_length=3)]
Spacing = Annotated[tuple[Millimetres, ...], Field(min_length=2, max_length=3)]
Window = Annotated[tuple[Finite, Finite], AfterValidator(_interval)]
Percentiles = Annotated[tuple[Percent, Percent], AfterValidator(_interval)]
Slices = Annotated[int, Field(ge=1), AfterValidator(_odd)]

_PRESETS: dict[str, dict[str, Any]] = {
    "ct": {"view": "3d", "fit": "pad", "window": (-1000.0, 1000.0)},
    "mr": {"view": "3d", "fit": "pad", "percentiles": (0.5, 99.5)},
    "xray": {"view": "2d", "fit": "resize", "percentiles": (0.5, 99.5)},
    "generic": {"view": "2d", "fit": "resize", "window": (0.0, 255.0)},
}
_MARGIN, _SLICES = 2, 3


class ExtraTransform(BaseModel):
    """A transform of MONAI by its class name; every other key is an argument, a plain value that nothing evaluates.

    Which names there are is known only where MONAI is loaded, see :mod:`dpeq.data.extra`.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9]*$")

    @model_validator(mode="after")
    def _arguments_are_plain(self) -> ExtraTransform:
        for argument, value in self.arguments.items():
            if argument.startswith("_") or not _plain(value):
                raise PydanticCustomError(
                    "plain",
                    "The argument {argument} of {name} is no plain number, text or list with a plain name",
                    {"argument": argument, "name": self.name},
                )
        return self

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class ImageSettings(BaseModel):
    """From what a file holds to the network's input.

    Attributes:
        preset: what all keys that are not given are taken from.
        view: "3d", a volume is one image ``[channels, x, y, z]``; "2d", images ``[channels, y, x]``: a flat image is
            one, a volume gives its slices across the third axis of ``orientation``; "2.5d", the same slices, each with
            its neighbours as further channels (at the ends the last slice again). All slices of a volume belong to the
            unit that owns the volume: with ``data.unit=image`` that is the volume, never a slice.
        orientation: where the axes x, y, z point; by default RAS in 3d and LPS for slices, which shows them as
            radiologists look at them: the first row is anterior, the first column the patient's right. Images without
            a place in the body are taken as they are stored.
        spacing: edges of a voxel (x, y, z) in mm to resample to; None leaves voxels as acquired.
        size: of the result (x, y, z) in voxels; two numbers for flat images. In 2d and 2.5d the third is how many
            slices of a volume are taken, from its middle.
        window: values that become -1 and 1, in HU or as stored.
        percentiles: of one image, that become -1 and 1; they are taken of the voxels above the lowest value, which is
            the one that padding has.
        foreground: crops to the box around the foreground before the size is made: "intensity", the voxels that are
            not darker than the mean of their image; "mask", those above zero of the mask that was indexed with it.
        margin: voxels kept around the foreground.
        fit: how the size is made: "pad" crops or pads about the centre with -1; "resize" stretches each axis by area
            averaging.
        slices: of 2.5d: how many neighbouring slices are the channels, an odd number.
        transforms: of MONAI, applied last, to the image as the network sees it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: Preset
    view: View
    orientation: Orientation | None = None
    spacing: Spacing | None = None
    size: Size
    window: Window | None = None
    percentiles: Percentiles | None = None
    foreground: Foreground = "none"
    margin: Annotated[int, Field(ge=0)] | None = None
    fit: Fit
    slices: Slices | None = None
    transforms: tuple[ExtraTransform, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        given = {key: value for key, value in values.items() if value is not None}
        defaults = dict(_PRESETS.get(str(given.get("preset")), {}))
        if "window" in given or "percentiles" in given:
            defaults.pop("window", None)
            defaults.pop("percentiles", None)
        if "spacing" in given:
            defaults["fit"] = "pad"  # resizing would change the spacing again
        filled = {**defaults, **given}
        if filled.get("view") == "2.5d":
            filled.setdefault("slices", _SLICES)
        if filled.get("foreground", "none") != "none":
            filled.setdefault("margin", _MARGIN)
        return filled

    @model_validator(mode="after")
    def _keys_agree(self) -> ImageSettings:
        if (self.window is None) == (self.percentiles is None):
            raise _disagreement("give either window or percentiles, not both")
        if self.view != "2d" and len(self.size) != 3:
            raise _disagreement(f"size {list(self.size)} needs three numbers (x, y, z) for the view {self.view}")
        if min(self.size[:2] if self.view != "3d" else self.size) < 4:
            raise _disagreement(f"size {list(self.size)} is too small; images need at least 4 pixels along each axis")
        if self.spacing is not None and len(self.spacing) != len(self.size):
            raise _disagreement(
                f"spacing {list(self.spacing)} and size {list(self.size)} name different axes; give as many numbers"
            )
        if self.spacing is not None and self.fit == "resize":
            raise _disagreement("fit resize would change the spacing again; leave spacing out, or set fit to pad")
        if self.slices is not None and self.view != "2.5d":
            raise _disagreement(f"slices are for the view 2.5d, not {self.view}; leave them out")
        if self.margin is not None and self.foreground == "none":
            raise _disagreement("margin is kept around a foreground; set foreground to intensity or mask")
        return self

    def changed(self, changes: Mapping[str, Any]) -> ImageSettings:
        """These settings with others in their place; keys that are None change nothing.

        Another preset brings its own view, fit and range of values; a window replaces percentiles and the reverse.

        Raises:
            pydantic.ValidationError: when the result does not fit together.
        """
        given = {key: value for key, value in changes.items() if value is not None}
        kept = {key: value for key, value in self.model_dump().items() if value is not None}
        dropped: set[str] = set()
        if given.get("preset", self.preset) != self.preset:
            dropped |= {"view", "fit", "window", "percentiles"}
        if given.keys() & {"window", "percentiles"}:
            dropped |= {"window", "percentiles"}
        if "spacing" in given:
            dropped |= {"fit"}
        view = given.get("view", _PRESETS[given["preset"]]["view"] if "view" in dropped else self.view)
        if view != self.view:
            dropped |= {"slices", "orientation"}
        if given.get("foreground") == "none":
            dropped |= {"margin"}
        return ImageSettings.model_validate({k: v for k, v in kept.items() if k not in dropped} | given)

    @property
    def axes(self) -> str:
        """Where x, y and z point."""
        return self.orientation or ("RAS" if self.view == "3d" else "LPS")

    @property
    def images_per_record(self) -> int:
        """How many images one indexed volume or picture gives."""
        return self.size[2] if self.view != "3d" and len(self.size) == 3 else 1

    @property
    def pixel_spacing(self) -> tuple[float, ...] | None:
        """Edges in mm by array axis of an image, ``(y, x)`` or ``(x, y, z)``; None when they differ by image."""
        if self.spacing is None:
            return None
        return self.spacing if self.view == "3d" else (self.spacing[1], self.spacing[0])

    def shape(self, channels: int) -> tuple[int, ...]:
        """``(channels, *spatial)`` of an image whose file has ``channels``."""
        if self.view == "3d":
            return (channels, *self.size)
        return (channels * (self.slices or 1), self.size[1], self.size[0])


def _disagreement(reason: str) -> PydanticCustomError:
    # Braces would be taken for placeholders; no reason has any.
    return PydanticCustomError("disagreement", reason[0].upper() + reason[1:])


def _plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_plain(v) for v in value)
    if isinstance(value, Mapping):
        # Names with an underscore would mean something in the configuration of an exported bundle, such as _target_.
        return all(isinstance(k, str) and not k.startswith("_") and _plain(v) for k, v in value.items())
    if isinstance(value, float):
        return value - value == 0  # finite: settings are written as JSON
    return value is None or isinstance(value, (bool, int, str))
