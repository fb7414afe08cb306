"""PNG and JPEG files that are broken, and pictures of other kinds."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from broken.case import broken

GREY = np.random.default_rng(1).integers(0, 256, (30, 40)).astype(np.uint8)


def content(kind: str = "PNG", image: Image.Image | None = None, **options: object) -> bytes:
    out = io.BytesIO()
    (image or Image.fromarray(GREY)).save(out, kind, **options)
    return out.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, bits: int, colours: int, rows: bytes) -> bytes:
    """A PNG whose header and pixels need not agree."""
    header = struct.pack(">2I5B", width, height, bits, colours, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows, 9)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@broken("a picture that is cut off")
def png_cut_off(folder: Path) -> None:
    whole = content()
    for length in (9, 20, 40, len(whole) // 2, len(whole) - 3):
        (folder / f"{length}.png").write_bytes(whole[:length])


@broken("a picture whose checksum is wrong")
def png_with_a_changed_byte(folder: Path) -> None:
    whole = bytearray(content())
    whole[len(whole) // 2] ^= 1
    (folder / "a.png").write_bytes(whole)


@broken({"jpeg": "cannot be decoded", "*": "a picture that is cut off"})
def jpeg_cut_off(folder: Path) -> None:
    whole = content("JPEG")
    (folder / "header").write_bytes(whole[:100])
    (folder / "jpeg").write_bytes(whole[: len(whole) // 2 + 300])


@broken("a picture that is cut off")
def pictures_of_absurd_sizes(folder: Path) -> None:
    (folder / "a.png").write_bytes(png(100_000, 100_000, 8, 0, bytes(1000)))
    (folder / "b.png").write_bytes(png(2**31 - 1, 2**31 - 1, 16, 0, bytes(1000)))
    whole = content("JPEG")
    at = whole.index(b"\xff\xc0") + 5
    (folder / "a.jpg").write_bytes(whole[:at] + struct.pack(">HH", 65_500, 65_500) + whole[at + 4 :])


@broken("larger than is read")
def png_bomb(folder: Path) -> None:
    """150 million pixels of one bit, all there, in 20 kB."""
    (folder / "a.png").write_bytes(png(12_288, 12_288, 1, 0, bytes((12_288 // 8 + 1) * 12_288)))


@broken("an image without voxels")
def png_of_no_pixels(folder: Path) -> None:
    (folder / "a.png").write_bytes(png(0, 10, 8, 0, b""))


@broken("cannot be decoded")
def png_with_too_few_pixels(folder: Path) -> None:
    (folder / "a.png").write_bytes(png(30, 30, 8, 0, bytes(200)))


@broken("pixels of a kind that is not read")
def pictures_of_odd_kinds(folder: Path) -> None:
    (folder / "16 bit colours").write_bytes(png(2, 2, 16, 2, (b"\0" + bytes(12)) * 2))
    (folder / "no such type").write_bytes(png(2, 2, 8, 5, bytes(10)))
    (folder / "cmyk").write_bytes(content("JPEG", Image.new("CMYK", (8, 8))))
    (folder / "lossless").write_bytes(content("JPEG").replace(b"\xff\xc0", b"\xff\xc3"))
    (folder / "12 bit").write_bytes(content("JPEG").replace(b"\xff\xc0\x00\x0b\x08", b"\xff\xc0\x00\x0b\x0c"))


@broken("a picture with transparency")
def transparent_png(folder: Path) -> None:
    (folder / "a.png").write_bytes(content("PNG", Image.new("LA", (8, 8), (1, 2))))
    (folder / "b.png").write_bytes(content("PNG", Image.new("P", (8, 8)), transparency=0))


@broken("an animation")
def animated_png(folder: Path) -> None:
    frames = [Image.fromarray(GREY + k) for k in range(2)]
    frames[0].save(folder / "a.png", save_all=True, append_images=frames[1:])


@broken("an EXIF block that is broken")
def jpeg_with_a_broken_exif_block(folder: Path) -> None:
    (folder / "a.jpg").write_bytes(content("JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"))


@broken("an EXIF orientation that does not exist")
def jpeg_turned_in_a_way_that_does_not_exist(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 12
    (folder / "a.jpg").write_bytes(content("JPEG", exif=exif.tobytes()))


@broken(
    {
        "gif": "a format that is not read (GIF)",
        "bmp": "a format that is not read (BMP)",
        "tif": "a format that is not read (TIFF)",
        "webp": "a format that is not read (WebP)",
        "jp2": "a format that is not read (JPEG 2000 outside DICOM)",
    }
)
def pictures_of_other_formats(folder: Path) -> None:
    for name, kind in (("gif", "GIF"), ("bmp", "BMP"), ("tif", "TIFF"), ("webp", "WEBP"), ("jp2", "JPEG2000")):
        (folder / name).write_bytes(content(kind))
