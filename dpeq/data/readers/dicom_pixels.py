"""The pixels of one DICOM file: their layout, checked against what is really there, and their values.

Values are those of the Modality LUT's linear form (PS3.3 C.11.1): ``stored * slope + intercept``, Hounsfield units
for CT. Not applied: Philips' private scale factors and Real World Value Mappings, which say what a value means in yet
another unit. Not removed: padding (PixelPaddingValue), which no other value stands in for honestly.

MONOCHROME1 means that the least value is shown white (PS3.3 C.7.6.3.1.2). It says how to show values and nothing about
what they mean, so values that are a quantity (CT, PET and NM: Hounsfield units, activity, counts) stay what they are.
All others are mirrored within the range of what can be stored, so that more is brighter as in MONOCHROME2: ``low + high
- stored``, before slope and intercept. Mirroring afterwards, within the rescaled range, would come to the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gdcm
import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder

from dpeq.data.readers.dicom_codestream import check_frame, split_frames
from dpeq.data.readers.dicom_file import DEFLATED, DicomFile, integer, optional_number, text, value
from dpeq.data.readers.source import Refused

__all__ = ["LIMIT", "Layout", "Scale", "check_length", "frames_of", "layout_of", "scale_of", "voxels_of"]

LIMIT = 1 << 31
"""Bytes of decoded pixels that one file may have; one frame may have an eighth of them."""

_NATIVE = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", DEFLATED}
_JPEG = "1.2.840.10008.1.2.4."
# Chosen here and not by pydicom, which takes whichever is installed, so that voxels do not depend on that.
_PLUGINS = {
    "1.2.840.10008.1.2.5": "pydicom",
    **{_JPEG + end: "gdcm" for end in ("50", "51", "57", "70")},
    **{_JPEG + end: "pyjpegls" for end in ("80", "81")},
    **{_JPEG + end: "pylibjpeg" for end in ("90", "91", "201", "202", "203")},
}
_GREY = {"MONOCHROME1", "MONOCHROME2"}
_COLOUR = {"RGB", "YBR_FULL", "YBR_FULL_422"}
_COLOUR_2000 = {*_COLOUR, "YBR_ICT", "YBR_RCT"}  # the transforms within JPEG 2000, which its decoder undoes
_QUANTITIES = {"CT", "PT", "NM"}

# gdcm's warnings go to the error stream and quote header values.
gdcm.Trace.WarningOff()
gdcm.Trace.ErrorOff()
gdcm.Trace.DebugOff()


@dataclass(frozen=True)
class Layout:
    """How pixels are stored; ``bits`` are allocated for a sample, ``stored`` of them mean something."""

    rows: int
    columns: int
    samples: int
    frames: int
    bits: int
    stored: int
    signed: bool
    photometric: str
    planar: int
    keyword: str
    vr: str

    @property
    def native_bytes(self) -> int:
        per_pixel = 2 if self.photometric == "YBR_FULL_422" else self.samples
        return self.frames * self.rows * self.columns * per_pixel * self.bits // 8

    @property
    def decoded_bytes(self) -> int:
        return self.frames * self.rows * self.columns * self.samples * self.bits // 8


@dataclass(frozen=True)
class Scale:
    """From stored values to values; ``mirror`` stands for MONOCHROME1, see the head of this module."""

    slope: float
    intercept: float
    mirror: bool


def layout_of(opened: DicomFile, frames: int = 1) -> Layout:
    """What the header says of the pixels.

    Raises:
        Refused: for what is not read, and for pixels that are not all there.
    """
    data, pixels = opened.data, opened.pixels
    if pixels is None:
        raise Refused("not an image (no pixels)")
    if opened.syntax not in _NATIVE and opened.syntax not in _PLUGINS:
        raise Refused("a transfer syntax that is not read", opened.syntax)
    samples = integer(data, "SamplesPerPixel", 1)
    photometric = text(data, "PhotometricInterpretation")
    bits = integer(data, "BitsAllocated")
    if photometric == "PALETTE COLOR":
        raise Refused("palette colours, which are not read")
    colours = _COLOUR_2000 if _PLUGINS.get(opened.syntax) == "pylibjpeg" else _COLOUR
    if photometric not in (_GREY if samples == 1 else colours):
        raise Refused("a photometric interpretation that is not read", f"{samples} {photometric}")
    if bits == 1:
        raise Refused("pixels of a single bit")
    whole = pixels.keyword == "PixelData"
    if samples not in (1, 3) or bits not in ((8, 16, 32) if whole else (32, 64)) or (samples == 3 and bits != 8):
        raise Refused("a depth of pixels that is not read", f"{samples} x {bits}")
    stored = integer(data, "BitsStored", bits) if whole else bits
    sign = integer(data, "PixelRepresentation", 0) if whole else 1
    if not 1 <= stored <= bits or integer(data, "HighBit", stored - 1) != stored - 1 or sign not in (0, 1):
        raise Refused("stored bits that contradict each other")
    if not whole and (samples == 3 or opened.syntax not in _NATIVE):
        raise Refused("a depth of pixels that is not read", "floating point")
    if samples == 3 and (sign or stored != 8):
        raise Refused("a depth of pixels that is not read", "signed or dark colours")
    planar = integer(data, "PlanarConfiguration", 0) if samples == 3 else 0
    if planar not in (0, 1):
        raise Refused("stored bits that contradict each other", "PlanarConfiguration")
    if photometric == "YBR_FULL_422" and opened.syntax in _NATIVE and integer(data, "Columns") % 2:
        raise Refused("a photometric interpretation that is not read", "YBR_FULL_422 of odd width")
    rows, columns = integer(data, "Rows"), integer(data, "Columns")
    if rows < 1 or columns < 1 or frames < 1:
        raise Refused("no rows, no columns or no frames")
    layout = Layout(
        rows, columns, samples, frames, bits, stored, sign == 1, photometric, planar, pixels.keyword, pixels.vr
    )
    if layout.decoded_bytes > LIMIT or layout.decoded_bytes // frames > LIMIT // 8:
        raise Refused("more pixels than one file may have", layout.decoded_bytes)
    check_length(opened, layout)
    return layout


def check_length(opened: DicomFile, layout: Layout) -> None:
    """Holds the pixels that the header promises against the length of what is there.

    Raises:
        Refused: when they are fewer or, but for the byte that makes a length even, more.
    """
    assert opened.pixels is not None
    length, start = opened.pixels.length, opened.pixels.start
    if opened.syntax not in _NATIVE:
        if length is not None:
            raise Refused("compressed pixels that are not in fragments")
        return
    if length is None:
        raise Refused("uncompressed pixels of no known length")
    promised = layout.native_bytes
    if length < promised:
        raise Refused("fewer pixels than the header promises", f"{length} bytes for {promised}")
    if length > promised + promised % 2:
        raise Refused("more pixels than the header promises", f"{length} bytes for {promised}")
    if opened.size is not None and start + promised > opened.size:
        raise Refused("pixels that are cut off", f"{opened.size - start} of {promised} bytes")


def frames_of(opened: DicomFile, layout: Layout, wanted: Sequence[int] = (0,)) -> Iterator[np.ndarray]:
    """Stored values ``[rows, columns]``, or ``[rows, columns, 3]`` in RGB, of the frames ``wanted``, in their order.

    Raises:
        Refused: when they cannot be decoded.
    """
    native = opened.syntax in _NATIVE
    pieces: Iterator[bytes]
    if native:
        size = layout.native_bytes // layout.frames
        even = size % 2 if layout.frames == 1 else 0  # bytes of big endian words are swapped in pairs, the pad too
        pieces = (opened.read(size + even, size * k) for k in wanted)
    else:
        assert opened.size is not None  # only a deflated file has none, and it holds no compressed pixels
        assert opened.pixels is not None
        every = split_frames(opened.read(opened.size - opened.pixels.start), layout.frames)
        for k in wanted:  # all of them before any is decoded
            check_frame(every[k], opened.syntax, layout.rows, layout.columns, layout.samples, layout.bits)
        pieces = (every[k] for k in wanted)
    options: dict[str, Any] = {
        "rows": layout.rows,
        "columns": layout.columns,
        "samples_per_pixel": layout.samples,
        "number_of_frames": 1,
        "photometric_interpretation": layout.photometric,
        "bits_allocated": layout.bits,
        "pixel_keyword": layout.keyword,
        "allow_excess_frames": False,
    }
    if layout.keyword == "PixelData":
        options |= {"bits_stored": layout.stored, "pixel_representation": int(layout.signed), "pixel_vr": layout.vr}
    if layout.samples > 1:
        options["planar_configuration"] = layout.planar
    # The data set of a deflated file is inflated by now.
    decoder = get_decoder("1.2.840.10008.1.2.1" if opened.syntax == DEFLATED else opened.syntax)
    for piece in pieces:
        if native:
            source = piece
            if len(piece) < size:
                raise Refused("pixels that are cut off", f"{len(piece)} of {size} bytes")
        else:
            source = encapsulate([piece], has_bot=False)
        try:
            frame, _ = decoder.as_array(source, decoding_plugin=_PLUGINS.get(opened.syntax, ""), **options)
        except MemoryError:
            raise Refused("too large for the memory") from None
        except Exception as error:  # any decoder, any bytes
            raise Refused("pixels that cannot be decoded", f"{type(error).__name__}: {error}") from None
        if frame.shape != (layout.rows, layout.columns, 3)[: 2 if layout.samples == 1 else 3]:
            raise Refused("pixels that cannot be decoded", frame.shape)
        yield frame


def scale_of(data: Dataset, layout: Layout, transformation: Dataset | None = None) -> Scale:
    """Slope and intercept of one slice or frame, from ``transformation`` (of a functional group) or else ``data``.

    Raises:
        Refused: for values behind a look-up table, which replaces slope and intercept (PS3.3 C.11.1), half of the
            pair, and a CT whose values are in no known unit.
    """
    part = data if transformation is None else transformation
    if value(data, "ModalityLUTSequence") or value(part, "ModalityLUTSequence"):
        raise Refused("values behind a modality look-up table, which is not read")
    slope, intercept = optional_number(part, "RescaleSlope"), optional_number(part, "RescaleIntercept")
    modality = text(data, "Modality").upper()
    if modality == "CT" and (slope is None or intercept is None):
        raise Refused("a CT without rescale slope and intercept, so its values are not Hounsfield units")
    if modality == "CT" and (text(part, "RescaleType") or "HU").upper() != "HU":
        raise Refused("a CT whose values are not Hounsfield units", text(part, "RescaleType"))
    if (slope is None) != (intercept is None):
        raise Refused("a rescale slope without intercept, or the reverse")
    if slope == 0:
        raise Refused("a rescale slope of zero")
    mirror = layout.photometric == "MONOCHROME1" and modality not in _QUANTITIES
    return Scale(1.0 if slope is None else slope, 0.0 if intercept is None else intercept, mirror)


def voxels_of(frame: np.ndarray, layout: Layout, scale: Scale) -> np.ndarray:
    """float32 ``[channels, y, x]`` of stored values; colours are three channels, 0 to 255, never rescaled."""
    if layout.samples == 3:
        return np.moveaxis(frame, -1, 0).astype(np.float32)
    if layout.stored <= 16 and layout.keyword == "PixelData" and scale == Scale(1.0, 0.0, False):
        return frame.astype(np.float32)[None]  # exact
    # In float64 first: a product of a 16-bit value and a slope is exact there but for one rounding.
    values = frame.astype(np.float64)
    if scale.mirror:
        if layout.keyword != "PixelData":
            raise Refused("a photometric interpretation that is not read", "MONOCHROME1 in floating point")
        low_plus_high = -1 if layout.signed else 2**layout.stored - 1
        values = low_plus_high - values
    with np.errstate(over="ignore", invalid="ignore"):
        values *= scale.slope
        values += scale.intercept
        rounded = values.astype(np.float32)
    if not np.isfinite(rounded).all():
        raise Refused("voxels that are not finite")
    return rounded[None]
