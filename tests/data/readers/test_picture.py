import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from dpeq.data.readers.picture import read_picture, read_picture_header
from dpeq.data.readers.read import examine, read
from dpeq.data.readers.source import Refused, Source

RNG = np.random.default_rng(3)
GREY = RNG.integers(0, 256, (4, 7)).astype(np.uint8)
COLOUR = RNG.integers(0, 256, (4, 7, 3)).astype(np.uint8)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, "PNG" if path.suffix == ".png" else "JPEG", **options)
    return path


def reason(path: Path) -> str:
    """Why the file is refused, by its header or by its pixels."""
    with pytest.raises(Refused) as refusal:
        (examine(path), read(path.parent, Source("picture", (path.name,))))
    return refusal.value.reason


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, bits: int, colours: int, rows: bytes, between: bytes = b"") -> bytes:
    """A PNG written by hand, so that it can be wrong."""
    header = struct.pack(">2I5B", width, height, bits, colours, 0, 0, 0)
    body = between + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body


def pixels_of(path: Path) -> np.ndarray:
    volume = read_picture(path)
    assert volume.voxels.dtype == np.float32
    assert volume.voxels.shape == read_picture_header(path).shape
    assert volume.geometry == "none"
    return volume.voxels


def test_x_runs_along_a_row_and_y_down(tmp_path):
    voxels = pixels_of(saved(tmp_path / "a.png", Image.fromarray(GREY)))
    assert voxels.shape == (1, 7, 4, 1)
    for y, x in np.ndindex(4, 7):
        assert voxels[0, x, y, 0] == GREY[y, x]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_png_has_the_stored_values(tmp_path, dtype):
    pixels = RNG.integers(0, np.iinfo(dtype).max + 1, (4, 7)).astype(dtype)
    pixels[0, :2] = 0, np.iinfo(dtype).max
    assert np.array_equal(pixels_of(saved(tmp_path / "a.png", Image.fromarray(pixels)))[0, ..., 0].T, pixels)


def test_colours_of_every_kind(tmp_path):
    expected = COLOUR.transpose(2, 1, 0)[..., None]
    assert np.array_equal(pixels_of(saved(tmp_path / "rgb.png", Image.fromarray(COLOUR))), expected)
    opaque = np.concatenate([COLOUR, np.full((4, 7, 1), 255, np.uint8)], axis=2)
    assert np.array_equal(pixels_of(saved(tmp_path / "rgba.png", Image.fromarray(opaque))), expected)
    palette = Image.fromarray(GREY % 4).convert("L")
    palette = palette.convert("P")
    palette.putpalette(bytes(range(0, 12)) + bytes(756))
    values = np.arange(12).reshape(4, 3)[np.asarray(palette)]
    assert np.array_equal(pixels_of(saved(tmp_path / "p.png", palette)), values.transpose(2, 1, 0)[..., None])


def test_two_values_and_grey_with_opaque_alpha(tmp_path):
    mask = Image.fromarray((GREY > 127).astype(np.uint8) * 255).convert("1")
    assert np.array_equal(pixels_of(saved(tmp_path / "1.png", mask))[0, ..., 0].T, GREY > 127)
    grey = Image.merge("LA", [Image.fromarray(GREY), Image.new("L", (7, 4), 255)])
    assert np.array_equal(pixels_of(saved(tmp_path / "la.png", grey))[0, ..., 0].T, GREY)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_as_pillow_decodes_it(tmp_path, mode):
    image = Image.fromarray(np.kron(COLOUR, np.ones((9, 9, 1), np.uint8))).convert(mode)
    path = saved(tmp_path / "a.jpg", image, quality=90, progressive=mode == "L")
    with Image.open(path) as again:
        pixels = np.asarray(again)
    assert np.array_equal(pixels_of(path), np.atleast_3d(pixels).transpose(2, 1, 0)[..., None])


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_the_permutation_of_pillow(tmp_path, orientation, order, suffix):
    exif = Image.Exif()
    exif.endian = {"little": "<", "big": ">"}[order]
    exif[0x010F], exif[0x0112] = "a maker", orientation
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(GREY), exif=exif.tobytes())
    assert (b"MM\0*" if order == "big" else b"II*\0") in path.read_bytes()
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(pixels_of(path)[0, ..., 0].T, expected)


@pytest.mark.parametrize("value", [0, 9])
def test_an_orientation_that_does_not_exist(tmp_path, value):
    exif = Image.Exif()
    exif[0x0112] = value
    path = saved(tmp_path / "a.jpg", Image.fromarray(GREY), exif=exif.tobytes())
    assert reason(path) == "an EXIF orientation that does not exist"
    broken = saved(tmp_path / "b.jpg", Image.fromarray(GREY), exif=b"Exif\0\0II*\0\xff\xff\0\0")
    assert reason(broken) == "an EXIF block that is broken"


def test_transparency_and_animation_are_refused(tmp_path):
    clear = np.concatenate([COLOUR, np.full((4, 7, 1), 255, np.uint8)], axis=2)
    clear[3, 6, 3] = 254
    assert reason(saved(tmp_path / "a.png", Image.fromarray(clear))) == "a picture with transparency"
    with pytest.raises(Refused, match="a picture with transparency"):
        examine(saved(tmp_path / "b.png", Image.fromarray(GREY), transparency=3))
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    assert reason(saved(tmp_path / "c.png", frames[0], save_all=True, append_images=frames[1:])) == "an animation"
    frames[0].save(tmp_path / "d.jpg", "MPO", save_all=True, append_images=frames[1:])
    assert reason(tmp_path / "d.jpg") == "several pictures in one file"


def test_samples_that_pillow_would_round_are_refused(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png(2, 2, 16, 2, (b"\0" + bytes(12)) * 2))
    assert reason(path) == "pixels of a kind that is not read"
    path.write_bytes(png(2, 2, 4, 0, b"\0\x12\0\x34"))
    assert reason(path) == "pixels of a kind that is not read"
    cmyk = saved(tmp_path / "a.jpg", Image.fromarray(COLOUR).convert("CMYK"))
    assert reason(cmyk) == "pixels of a kind that is not read"


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_cut_off_anywhere(tmp_path, suffix):
    whole = saved(tmp_path / f"a.{suffix}", Image.fromarray(RNG.integers(0, 256, (40, 50)).astype(np.uint8)))
    content = whole.read_bytes()
    for length in range(9, len(content) - 2, 29):
        whole.write_bytes(content[:length])
        assert reason(whole) in ("a picture that is cut off", "cannot be decoded")


def test_a_changed_byte_of_a_png_is_noticed(tmp_path):
    path = saved(tmp_path / "a.png", Image.fromarray(GREY))
    content = path.read_bytes()
    for place in range(8, len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert reason(path)


def test_sizes_that_a_file_cannot_hold(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png(100_000, 100_000, 8, 0, bytes(100)))
    assert reason(path) == "a picture that is cut off"
    path.write_bytes(png(0, 5, 8, 0, b""))
    assert reason(path) == "an image without voxels"
    small = saved(tmp_path / "b.jpg", Image.fromarray(GREY)).read_bytes()
    at = small.index(b"\xff\xc0") + 5
    for height, width, expected in ((65500, 65500, "a picture that is cut off"), (0, 7, "an image without voxels")):
        path.write_bytes(small[:at] + struct.pack(">HH", height, width) + small[at + 4 :])
        assert reason(path) == expected


def test_a_bomb_that_keeps_its_promise_is_refused_by_its_header(tmp_path):
    path = tmp_path / "a.png"
    with path.open("wb") as out:  # 20,000 x 20,000 of one grey: 400 MB in 400 kB
        squeeze = zlib.compressobj(9)
        body = b"".join(squeeze.compress(bytes(20_001)) for _ in range(20_000)) + squeeze.flush()
        header = struct.pack(">2I5B", 20_000, 20_000, 8, 0, 0, 0, 0)
        out.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b""))
    with pytest.raises(Refused, match="larger than is read"):
        examine(path)


def test_odd_structure(tmp_path):
    path = tmp_path / "a.png"
    rows = b"\0\1\2\0\3\4"
    path.write_bytes(png(2, 2, 8, 0, rows, between=chunk(b"IHDR", bytes(13))))
    assert reason(path) == "a picture that contradicts itself"
    path.write_bytes(png(2, 2, 8, 0, rows, between=chunk(b"tEXt", b"Comment\0anything")))
    assert np.array_equal(pixels_of(path)[0, ..., 0].T, [[1, 2], [3, 4]])
    jpeg = saved(tmp_path / "b.jpg", Image.fromarray(GREY)).read_bytes()
    path.write_bytes(jpeg[:20] + b"\0\0" + jpeg[20:])  # behind the first segment
    assert reason(path) == "a picture that contradicts itself"
    lossless = jpeg.replace(b"\xff\xc0\0", b"\xff\xc3\0")
    path.write_bytes(lossless)
    assert reason(path) == "pixels of a kind that is not read"
