"""NIfTI-1 and -2 in one file, compressed or not, in either byte order; time points of a 4D image are its members.

The header follows nifti1.h and nifti2.h (nifti.nimh.nih.gov). Where the standard lets readers choose and they do choose
differently, the file is refused instead:

- The sform is used when it is set, else the qform; a file with neither has no orientation. When both are set and lie
  more than half a voxel apart somewhere in the grid, one reader would see another image than the next (SimpleITK and
  nibabel do). Half a voxel, because a qform holds its rotation as three float32: near half turns that alone can cost
  0.3 voxels over 256.
- Voxel edges come from the affine; a pixdim that says otherwise is a contradiction. Lengths without a unit are mm;
  metres and microns are converted.
- Values are ``scl_slope * stored + scl_inter`` in float64, then rounded once to float32; a slope of 0 or NaN means
  none.
"""

from __future__ import annotations

import itertools
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dpeq.data.readers.kept import Kept
from dpeq.data.readers.sniff import gzip_start, open_regular
from dpeq.data.readers.source import Header, Member, Refused, Volume

__all__ = ["read_nifti", "read_nifti_header"]

_MOST_BYTES = 1 << 31  # of one decoded file that is compressed, and of one image as float32
_MOST_KEPT = 1 << 29
_MOST_MEMBERS = 1 << 16
_DEFLATE_RATIO = 1032  # no deflate stream holds more bytes per byte (zlib's technical notes)
_CHUNK = 1 << 18
_LAST_CODE = 5  # NIFTI_XFORM_TEMPLATE_OTHER
_APART = 0.5  # voxels, between qform and sform
_EDGE = 1e-3  # relative, between affine and pixdim
_SHEAR = 1e-3  # cosine between two axes
_EDGES = (1e-4, 1e4)  # mm
_MILLIMETRES = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
_DTYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
    128: "u1", 2304: "u1",
}  # fmt: skip
_CHANNELS = {128: 3, 2304: 4}  # RGB24, RGBA32
_COMPLEX = (32, 1792, 2048)
_kept = Kept()


@dataclass(frozen=True)
class _Layout:
    """What the header says: ``shape`` is that of one image as stored, with 4 channels for RGBA."""

    shape: tuple[int, int, int, int]
    members: int
    dtype: np.dtype
    offset: int
    slope: float
    intercept: float
    affine: np.ndarray

    @property
    def image_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize

    @property
    def end(self) -> int:
        return self.offset + self.members * self.image_bytes


def read_nifti_header(path: Path) -> Header:
    """The header of a NIfTI file; no voxel is read, and a compressed file is inflated only as far as its header.

    Raises:
        Refused: when the header is broken, ambiguous, or promises another size than the file has.
    """
    with open_regular(path) as stream:
        layout, _ = _layout(stream)
    channels, *rest = layout.shape
    return Header("nifti", (min(channels, 3), *rest), members=(Member(),) * layout.members)


def read_nifti(path: Path, part: int = 0) -> Volume:
    """Time point ``part``; of an uncompressed file nothing else is read, a compressed one is checked to its end.

    A compressed file of several time points (of at most 512 MiB) is kept decoded until another one is asked for, so
    that all of them cost one pass.

    Raises:
        Refused: also when the stream is shorter or longer than the header promises, its checksum is wrong, or colours
            are not opaque.
    """
    with open_regular(path) as stream:
        layout, compressed = _layout(stream)
        if not 0 <= part < layout.members:
            raise Refused("no image of that number in its file", part)
        start = layout.offset + part * layout.image_bytes
        if not compressed:
            raw = np.empty(layout.image_bytes, np.uint8)
            stream.seek(start)
            if stream.readinto(memoryview(raw)) != raw.size:
                raise Refused("shorter than its header promises")
        elif layout.members > 1 and layout.end <= _MOST_KEPT:
            status = os.fstat(stream.fileno())
            every = _kept.get(path, status, lambda: _inflated(stream, layout.offset, layout.end, layout))
            raw = every[start - layout.offset :][: layout.image_bytes]
        else:
            raw = _inflated(stream, start, start + layout.image_bytes, layout)
    stored = raw.view(layout.dtype).reshape(layout.shape, order="F")
    if layout.shape[0] == 4:
        if (stored[3] != 255).any():
            raise Refused("colours that are not opaque")
        stored = stored[:3]
    return Volume(_scaled(stored, layout.slope, layout.intercept), layout.affine, "placed")


def _scaled(stored: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """float32 of ``slope * stored + intercept``, in slabs so that float64 never holds the whole."""
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is not finite, and refused as such
        if (slope, intercept) == (1.0, 0.0):
            return stored.astype(np.float32, order="K")
        voxels = np.empty(stored.shape, np.float32, order="F")
        for z in range(stored.shape[-1]):
            voxels[..., z] = stored[..., z].astype(np.float64) * slope + intercept
        return voxels


def _inflated(stream: BinaryIO, start: int, stop: int, layout: _Layout) -> np.ndarray:
    """The decoded bytes from ``start`` to ``stop``; all is decoded, must end as promised, and checksums must hold."""
    out, at = np.empty(stop - start, np.uint8), 0
    stream.seek(0)
    for piece in _pieces(stream):
        low, high = max(start, at), min(stop, at + len(piece))
        if low < high:
            out[low - start : high - start] = np.frombuffer(piece, np.uint8)[low - at : high - at]
        at += len(piece)
        if at > layout.end:
            raise Refused("longer than its header promises")
    if at < layout.end:
        raise Refused("shorter than its header promises")
    return out


def _pieces(stream: BinaryIO) -> Iterator[bytes]:
    """What a gzip file decodes to (RFC 1952: one member after another), at most ``_CHUNK`` bytes at a time."""
    data = stream.read(_CHUNK)
    while data:
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            try:
                piece = member.decompress(data, _CHUNK)
            except zlib.error as error:
                raise Refused("a broken gzip file", error) from None
            data = member.unconsumed_tail
            if piece:
                yield piece
            elif not data and not member.eof:
                data = stream.read(_CHUNK)
                if not data:
                    raise Refused("a gzip file that is cut off")
        data = member.unused_data or stream.read(_CHUNK)
        if data and not data.startswith(b"\x1f"):
            raise Refused("a gzip file with something behind its end")


def _layout(stream: BinaryIO) -> tuple[_Layout, bool]:
    """The header and whether the file is compressed; promised sizes are held against the length of the file."""
    stream.seek(0, 2)
    size = stream.tell()
    stream.seek(0)
    head = stream.read(544)
    compressed = head.startswith(b"\x1f\x8b")
    if compressed:
        head = gzip_start(head + stream.read(1 << 16), 544)
    layout = _parse(head)
    if int(np.prod(layout.shape, dtype=object)) * 4 > _MOST_BYTES or (compressed and layout.end > _MOST_BYTES):
        raise Refused("larger than is read", layout.shape)
    if compressed and layout.end > size * _DEFLATE_RATIO:
        raise Refused("shorter than its header promises", (layout.end, size))
    if not compressed and layout.end > size:
        raise Refused("shorter than its header promises", (layout.end, size))
    if not compressed and layout.end < size:
        raise Refused("longer than its header promises", (layout.end, size))
    return layout, compressed


def _parse(head: bytes) -> _Layout:
    if len(head) < 348:
        raise Refused("a NIfTI header that is cut off")
    order = "<" if head[:4] in (struct.pack("<i", 348), struct.pack("<i", 540)) else ">"
    if struct.unpack_from(order + "i", head)[0] == 348:
        places = {
            "dim": (40, "8h"), "datatype": (70, "h"), "bitpix": (72, "h"), "pixdim": (76, "8f"), "offset": (108, "f"),
            "scaling": (112, "2f"), "units": (123, "B"), "codes": (252, "2h"), "quatern": (256, "3f"),
            "shift": (268, "3f"), "rows": (280, "12f"),
        }  # fmt: skip
        least = 352
    else:
        places = {
            "dim": (16, "8q"), "datatype": (12, "h"), "bitpix": (14, "h"), "pixdim": (104, "8d"), "offset": (168, "q"),
            "scaling": (176, "2d"), "units": (500, "i"), "codes": (344, "2i"), "quatern": (352, "3d"),
            "shift": (376, "3d"), "rows": (400, "12d"),
        }  # fmt: skip
        least = 544
        if len(head) < 540:
            raise Refused("a NIfTI header that is cut off")
    field = {name: struct.unpack_from(order + code, head, at) for name, (at, code) in places.items()}
    shape, members = _grid(field["dim"])
    (datatype,), (bitpix,), (offset,) = field["datatype"], field["bitpix"], field["offset"]
    if datatype in _COMPLEX:
        raise Refused("complex values")
    if datatype not in _DTYPES:
        raise Refused("values of a type that is not read", datatype)
    dtype, channels = np.dtype(order + _DTYPES[datatype]), _CHANNELS.get(datatype, 1)
    if bitpix != 8 * dtype.itemsize * channels:
        raise Refused("a header that contradicts itself", (datatype, bitpix))
    if not least <= offset <= 1 << 40 or offset != int(offset):
        raise Refused("a header that contradicts itself", ("vox_offset", offset))
    slope, intercept = field["scaling"]
    if slope == 0 or np.isnan(slope):
        slope, intercept = 1.0, 0.0
    if not np.isfinite([slope, intercept]).all():
        raise Refused("a rescaling that is not finite", (slope, intercept))
    if channels > 1 and (slope, intercept) != (1.0, 0.0):
        raise Refused("colours that are rescaled")
    unit = field["units"][0] & 7
    if unit not in _MILLIMETRES:
        raise Refused("a unit of length that does not exist", unit)
    with np.errstate(all="ignore"):  # what overflows or is no number fails the checks
        affine = _affine(field, shape, field["dim"][0])
        affine[:3] *= _MILLIMETRES[unit]
        _check_affine(affine)
    return _Layout((channels, *shape), members, dtype, int(offset), slope, intercept, affine)


def _grid(dim: tuple[int, ...]) -> tuple[tuple[int, int, int], int]:
    """Size along (x, y, z) and the number of time points."""
    count, sizes = dim[0], dim[1:]
    if not 1 <= count <= 7:
        raise Refused("a header that contradicts itself", ("dim", dim))
    sizes = sizes[:count] + (1,) * (7 - count)
    if min(sizes) < 1:
        raise Refused("an image without voxels", dim)
    if count < 2 or (sizes[1] == 1 and sizes[2] == 1):
        raise Refused("fewer than two dimensions", dim)
    if max(sizes[4:]) > 1:
        raise Refused("more than four dimensions", dim)
    if sizes[3] > _MOST_MEMBERS:
        raise Refused("more images than are read from one file", dim)
    return (sizes[0], sizes[1], sizes[2]), sizes[3]


def _affine(field: dict[str, tuple], shape: tuple[int, int, int], count: int) -> np.ndarray:
    """Voxel to RAS in the file's own unit; see the module for what is refused."""
    qform_code, sform_code = field["codes"]
    if not (0 <= qform_code <= _LAST_CODE and 0 <= sform_code <= _LAST_CODE):  # readers take these for 0 or for set
        raise Refused("a kind of orientation that does not exist", (qform_code, sform_code))
    if qform_code == sform_code == 0:
        raise Refused("a NIfTI image without orientation")
    sform = np.eye(4)
    sform[:3] = np.array(field["rows"]).reshape(3, 4)
    affine = sform if sform_code > 0 else _qform(field)
    if not np.isfinite(affine).all():
        raise Refused("an affine that is not finite")
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    if edges.min() == 0:
        raise Refused("an affine that is singular")
    if sform_code > 0 and qform_code > 0:
        corners = np.array([(*corner, 1) for corner in itertools.product(*((0, size - 1) for size in shape))])
        apart = corners @ (sform - _qform(field)).T
        if not np.abs(apart).max() <= _APART * edges.min():
            raise Refused("two orientations (qform and sform) that contradict each other")
    promised = np.array(field["pixdim"][1 : 1 + min(count, 3)])
    if not np.allclose(edges[: promised.size], promised, rtol=_EDGE, atol=0):
        raise Refused("a voxel size (pixdim) that contradicts the affine", promised)
    return affine


def _qform(field: dict[str, tuple]) -> np.ndarray:
    """The qform by the formulas of nifti1.h, method 2, with the half turns of nifti_quatern_to_mat44."""
    b, c, d = field["quatern"]
    rest = 1 - (b * b + c * c + d * d)
    if not rest >= -1e-4:  # beyond rounding, or not a number
        raise Refused("an affine that is not finite" if np.isnan(rest) else "a rotation (qform) that is none")
    a = np.sqrt(max(rest, 0))
    if rest < 1e-7:
        a = 0.0
        b, c, d = np.array([b, c, d]) / np.sqrt(b * b + c * c + d * d)
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    flip = -1.0 if field["pixdim"][0] < 0 else 1.0
    affine = np.eye(4)
    affine[:3, :3] = rotation * np.array([1, 1, flip]) * np.array(field["pixdim"][1:4])
    affine[:3, 3] = field["shift"]
    return affine


def _check_affine(affine: np.ndarray) -> None:
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    if not (edges.min() >= _EDGES[0] and edges.max() <= _EDGES[1]):
        raise Refused("voxels of an absurd size", edges)
    axes = affine[:3, :3] / edges
    if abs(np.linalg.det(axes)) < _SHEAR:
        raise Refused("an affine that is singular")
    if np.abs(axes.T @ axes - np.eye(3)).max() > _SHEAR:
        raise Refused("axes that are not perpendicular")
