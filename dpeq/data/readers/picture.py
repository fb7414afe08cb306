"""PNG and JPEG, with the values that the file stores: 0..1, 0..255 or 0..65535.

What would need a choice is refused: transparency, animation, CMYK, samples that Pillow would round. A palette is its
colours; an alpha channel that is opaque everywhere is left out. An EXIF orientation is applied, because it is a
permutation of the pixels and viewers show the result. Colour profiles and gamma are not applied.

The structure of a file is walked here, in bounded steps, before Pillow decodes it: nothing is allocated for a size that
the file cannot hold, and the checksums of a PNG, which Pillow leaves unchecked for pixels, are checked.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import JpegImagePlugin, PngImagePlugin

from dpeq.data.readers.sniff import open_regular
from dpeq.data.readers.source import Header, Member, Refused, Volume

__all__ = ["read_picture", "read_picture_header"]

_MOST_PIXELS = 1 << 27
_MOST_CHUNKS = 1 << 20
_MOST_EXIF = 1 << 16  # what a JPEG segment can hold
_DEFLATE_RATIO = 1032
_JPEG_RATIO = 512  # pixels per byte: every block of 8 x 8 has a DC code of at least one bit
_ORIENTATION = 0x0112
# (bit depth, colour type) of PNG section 11.2.2 -> Pillow's mode, stored samples per pixel, channels
_PNG_MODES = {
    (1, 0): ("1", 1, 1),
    (8, 0): ("L", 1, 1),
    (16, 0): ("I;16", 1, 1),
    (8, 2): ("RGB", 3, 3),
    (8, 4): ("LA", 2, 1),
    (8, 6): ("RGBA", 4, 3),
    **{(bits, 3): ("P", 1, 3) for bits in (1, 2, 4, 8)},
}
_SIZED_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_READ_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive; all with Huffman codes
_NO_LENGTH = (0x01, *range(0xD0, 0xD8))


@dataclass(frozen=True)
class _Layout:
    kind: str
    mode: str
    width: int
    height: int
    channels: int
    orientation: int = 1

    @property
    def shape(self) -> tuple[int, int, int, int]:
        turned = self.orientation >= 5
        x, y = (self.height, self.width) if turned else (self.width, self.height)
        return (self.channels, x, y, 1)


def read_picture_header(path: Path) -> Header:
    """Size and channels of a PNG or JPEG; no pixel is decoded.

    Raises:
        Refused: when it is broken, cut off, or of a kind that is not read exactly.
    """
    with open_regular(path) as stream:
        return Header("picture", _layout(stream).shape, members=(Member(),))


def read_picture(path: Path) -> Volume:
    """Voxels ``[channels, x along a row, y down, 1]`` with no geometry.

    Raises:
        Refused: also when pixels cannot be decoded, a checksum is wrong, or pixels are not opaque.
    """
    with open_regular(path) as stream:
        layout = _layout(stream, checksums=True)
        stream.seek(0)
        # The plugins themselves, not Image.open: it would only warn of too many pixels, which are refused above.
        plugin = PngImagePlugin.PngImageFile if layout.kind == "png" else JpegImagePlugin.JpegImageFile
        # Pillow warns of odd metadata, with its values; no pixel depends on it.
        with warnings.catch_warnings(), plugin(stream) as image:
            warnings.simplefilter("ignore")
            if image.size != (layout.width, layout.height) or image.mode != layout.mode:
                raise Refused("not the pixels that its header promises", (image.size, image.mode))
            image.load()
            if "transparency" in image.info:
                raise Refused("a picture with transparency")
            pixels = np.asarray(image.convert("RGB") if image.mode == "P" else image)
    if layout.mode in ("LA", "RGBA"):
        if (pixels[..., -1] != 255).any():
            raise Refused("a picture with transparency")
        pixels = pixels[..., :-1]
    voxels = pixels.reshape(layout.height, layout.width, layout.channels).astype(np.float32).transpose(2, 1, 0)
    return Volume(np.ascontiguousarray(_upright(voxels, layout.orientation))[..., None], np.eye(4), "none")


def _upright(voxels: np.ndarray, orientation: int) -> np.ndarray:
    """``[channels, x, y]`` as EXIF 2.3 table 6 wants it shown: row 0 and column 0 of the file lie where it says."""
    if orientation >= 5:
        voxels = voxels.swapaxes(1, 2)
    if orientation in (2, 3, 6, 7):
        voxels = voxels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        voxels = voxels[:, :, ::-1]
    return voxels


def _layout(stream: BinaryIO, checksums: bool = False) -> _Layout:
    size = stream.seek(0, 2)
    stream.seek(0)
    layout = _png(stream, size, checksums) if stream.read(1) == b"\x89" else _jpeg(stream, size)
    if layout.width < 1 or layout.height < 1:
        raise Refused("an image without voxels")
    if layout.width * layout.height > _MOST_PIXELS:
        raise Refused("larger than is read", (layout.width, layout.height))
    return layout


def _png(stream: BinaryIO, size: int, checksums: bool) -> _Layout:
    """Walks the chunks of a PNG (W3C PNG, section 5) to its end."""
    layout, orientation, data = None, 1, 0
    at = 8
    for _ in range(_MOST_CHUNKS):
        stream.seek(at)
        head = stream.read(8)
        if len(head) < 8:
            raise Refused("a picture that is cut off")
        length, name = struct.unpack(">I4s", head)
        if at + 12 + length > size:
            raise Refused("a picture that is cut off")
        if checksums:
            _check_sum(stream, length, name)
            stream.seek(at + 8)
        if (name == b"IHDR") != (layout is None):
            raise Refused("a picture that contradicts itself", name)
        if name == b"IHDR":
            layout = _png_header(stream.read(length))
        elif name == b"acTL":
            raise Refused("an animation")
        elif name == b"tRNS":
            raise Refused("a picture with transparency")
        elif name == b"IDAT":
            data += length
        elif name == b"eXIf":
            orientation = _orientation(stream.read(min(length, _MOST_EXIF)))
        elif name == b"IEND":
            break
        at += 12 + length
    else:
        raise Refused("a picture of too many pieces")
    assert layout is not None
    width, height, mode = layout
    name, samples, channels = mode
    bits = 16 if name == "I;16" else 1 if name == "1" else 8
    promised = height * ((width * samples * bits + 7) // 8 + 1) if name != "P" else height * (width // 8 + 1)
    if promised > data * _DEFLATE_RATIO:
        raise Refused("a picture that is cut off", (promised, data))
    return _Layout("png", name, width, height, channels, orientation)


def _check_sum(stream: BinaryIO, length: int, name: bytes) -> None:
    value, left = zlib.crc32(name), length
    while left:
        block = stream.read(min(left, 1 << 18))
        if not block:
            raise Refused("a picture that is cut off")
        value, left = zlib.crc32(block, value), left - len(block)
    if stream.read(4) != struct.pack(">I", value):
        raise Refused("a picture whose checksum is wrong", name)


def _png_header(body: bytes) -> tuple[int, int, tuple[str, int, int]]:
    if len(body) != 13:
        raise Refused("a picture that contradicts itself", "IHDR")
    width, height, bits, colours, *_ = struct.unpack(">2I5B", body)
    if (bits, colours) not in _PNG_MODES:
        raise Refused("pixels of a kind that is not read", (bits, colours))
    return width, height, _PNG_MODES[bits, colours]


def _jpeg(stream: BinaryIO, size: int) -> _Layout:
    """Walks the segments of a JPEG (ITU T.81, annex B) to its first scan."""
    orientation, frame = 1, None
    at = 2
    for _ in range(_MOST_CHUNKS):
        stream.seek(at)
        head = stream.read(2)
        if len(head) < 2:
            raise Refused("a picture that is cut off")
        if head[0] != 0xFF:
            raise Refused("a picture that contradicts itself", "a marker")
        marker = head[1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in _NO_LENGTH:
            at += 2
            continue
        if marker in (0xD8, 0xD9):
            raise Refused("a picture that contradicts itself", "a marker")
        length = int.from_bytes(stream.read(2), "big")
        if length < 2 or at + 2 + length > size:
            raise Refused("a picture that is cut off")
        if marker in _SIZED_FRAMES:
            if frame is not None:
                raise Refused("a picture that contradicts itself", "two frames")
            if marker not in _READ_FRAMES:
                raise Refused("pixels of a kind that is not read", marker)
            frame = stream.read(6)
        elif marker == 0xDA:
            break
        elif marker in (0xE1, 0xE2):
            body = stream.read(length - 2)
            if body.startswith(b"MPF\0"):
                raise Refused("several pictures in one file")
            if marker == 0xE1 and body.startswith(b"Exif\0"):
                orientation = _orientation(body[6:])
        at += 2 + length
    else:
        raise Refused("a picture of too many pieces")
    if frame is None or len(frame) < 6:
        raise Refused("a picture that contradicts itself", "no frame")
    bits, height, width, components = struct.unpack(">BHHB", frame)
    if bits != 8 or components not in (1, 3):
        raise Refused("pixels of a kind that is not read", (bits, components))
    if height * width > size * _JPEG_RATIO:
        raise Refused("a picture that is cut off", (height, width, size))
    return _Layout("jpeg", "L" if components == 1 else "RGB", width, height, components, orientation)


def _orientation(exif: bytes) -> int:
    """The orientation tag of the first directory of an EXIF block (EXIF 2.3, section 4.6), 1 without one."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    try:
        if order is None:
            raise struct.error("no TIFF header")
        start = struct.unpack_from(order + "I", exif, 4)[0]
        for entry in range(struct.unpack_from(order + "H", exif, start)[0]):
            tag, kind, count, value = struct.unpack_from(order + "HHIH", exif, start + 2 + 12 * entry)
            if tag == _ORIENTATION:
                if (kind, count) != (3, 1) or not 1 <= value <= 8:
                    raise Refused("an EXIF orientation that does not exist", value)
                return value
    except struct.error as error:
        raise Refused("an EXIF block that is broken", error) from None
    return 1
