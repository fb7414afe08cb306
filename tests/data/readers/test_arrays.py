import io
import os
import pickle
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import shared_data

from dpeq.data.readers.arrays import read_npz, read_npz_header
from dpeq.data.readers.read import examine, read
from dpeq.data.readers.source import Member, Refused, Source

RNG = np.random.default_rng(2)
GREY = RNG.integers(0, 256, (4, 5, 6)).astype(np.uint8)


def saved(path: Path, **content: np.ndarray) -> Path:
    np.savez_compressed(path, **content)
    return path


def reason(path: Path) -> str:
    with pytest.raises(Refused) as refusal:
        [read(path.parent, Source("npz", (path.name,), part)) for part in range(len(examine(path).members))]
    return refusal.value.reason


def zipped(path: Path, *members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def npy(array: np.ndarray, **options: object) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array, **options)
    return out.getvalue()


def lying(header: str, body: bytes = b"") -> bytes:
    """An npy file whose header says what one likes."""
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + body


@pytest.mark.parametrize("dtype", ["?", "u1", "i1", "<u2", ">i2", "<i4", "<i8", "<f2", "<f4", ">f8"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_grey_images(tmp_path, dtype, save):
    images = RNG.integers(0, 2 if dtype == "?" else 100, (4, 5, 6)).astype(dtype)
    save(tmp_path / "a.npz", images=images)
    assert read_npz_header(tmp_path / "a.npz").shape == (1, 6, 5, 1)
    for row in range(4):
        volume = read_npz(tmp_path / "a.npz", row)
        assert volume.voxels.dtype == np.float32
        assert volume.geometry == "none"
        for y, x in np.ndindex(5, 6):
            assert volume.voxels[0, x, y, 0] == images[row, y, x]


def test_colours_and_volumes(tmp_path):
    """The last of four axes is colour only where it has three places of uint8."""
    colour = RNG.integers(0, 256, (2, 5, 6, 3)).astype(np.uint8)
    path = saved(tmp_path / "colour.npz", images=colour)
    assert read_npz_header(path).shape == (3, 6, 5, 1)
    assert np.array_equal(read_npz(path, 1).voxels, colour[1].transpose(2, 1, 0)[..., None])
    for volumes in (colour.astype(np.uint16), colour[..., :2], RNG.normal(size=(2, 5, 6, 7))):
        path = saved(tmp_path / "volumes.npz", images=volumes)
        assert read_npz_header(path).shape == (1, *volumes.shape[1:])
        assert np.array_equal(read_npz(path, 1).voxels, volumes[1][None].astype(np.float32))


def test_columns_first(tmp_path):
    path = saved(tmp_path / "a.npz", images=np.asfortranarray(GREY))
    assert b"'fortran_order': True" in zipfile.ZipFile(path).read("images.npy")
    assert np.array_equal(read_npz(path, 2).voxels[0, ..., 0].T, GREY[2])


def test_ids(tmp_path):
    path = tmp_path / "a.npz"
    assert read_npz_header(saved(path, images=GREY)).members == (Member(),) * 4
    text, numbers = np.array(["Bé ", "A", "A", "C"]), np.array([7, 7, 8, 7], np.uint16)
    header = read_npz_header(saved(path, images=GREY, patient_id=text, image_id=numbers))
    assert header.members == (Member("Bé", "7"), Member("A", "7"), Member("A", "8"), Member("C", "7"))
    header = read_npz_header(saved(path, images=GREY, patient_id=np.char.encode(text, "utf-8")))
    assert header.members[0] == Member("Bé")
    assert reason(saved(path, images=GREY, patient_id=text, image_id=np.zeros(4, int))) == (
        "two images of the same id in one file"
    )


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (np.array(["A", "B"]), "ids that are not one text or whole number per image"),
        (np.zeros((4, 1), int), "ids that are not one text or whole number per image"),
        (np.array([1.0, 2, 3, 4]), "ids that are not one text or whole number per image"),
        (np.array(["A", "B\nC", "D", "E"]), "ids that are not plain text"),
        (np.array([b"A", b"\xff", b"D", b"E"]), "ids that are not plain text"),
        (np.array(["A", "\ud800", "D", "E"]), "ids that are not plain text"),
        (np.array(["A", "B", "C", "D"], object), "an array of objects, which would have to be unpickled"),
    ],
)
def test_ids_that_are_none(tmp_path, ids, expected):
    assert reason(saved(tmp_path / "a.npz", images=GREY, patient_id=ids)) == expected


class Planted:
    """Unpickling it would be seen."""

    def __reduce__(self):
        return os.mkdir, (os.environ["DPEQ_PLANTED"],)


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.setenv("DPEQ_PLANTED", str(tmp_path / "planted"))
    objects = np.array([Planted()] * 4, object)
    path = saved(tmp_path / "a.npz", images=objects)
    assert reason(path) == "an array of objects, which would have to be unpickled"
    path = zipped(tmp_path / "b.npz", ("images.npy", lying("{'descr': '|O', 'fortran_order': False, 'shape': (4,)}")))
    assert reason(path) == "an array of objects, which would have to be unpickled"
    assert not (tmp_path / "planted").exists()
    pickle.loads(pickle.dumps(Planted()))  # the plant itself works
    assert (tmp_path / "planted").exists()


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (GREY[0], "images of a shape that is not read"),
        (GREY[None, None], "images of a shape that is not read"),
        (GREY[:0], "an image without voxels"),
        (GREY[:, :0], "an image without voxels"),
        (GREY.astype(complex), "complex values"),
        (np.full((4, 5, 6), "x"), "values of a type that is not read"),
        (np.zeros((4, 5, 6), "M8[s]"), "values of a type that is not read"),
        (np.zeros((4, 5, 6), [("a", "u1")]), "values of a type that is not read"),
        (np.zeros(((1 << 20) + 1, 1, 1), np.uint8), "more images than are read from one file"),
        (np.where(GREY > 250, np.nan, GREY), "voxels that are not finite"),
        (GREY * 1e39, "voxels that are not finite"),
    ],
)
def test_images_that_are_none(tmp_path, images, expected):
    assert reason(saved(tmp_path / "a.npz", images=images)) == expected


def test_other_archives(tmp_path):
    assert reason(saved(tmp_path / "a.npz", scans=GREY)) == "an npz without an array 'images'"
    assert (
        reason(saved(tmp_path / "b.npz", train_images=GREY)) == "a MedMNIST file; its card trains on it, not an index"
    )
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = zipped(tmp_path / "c.npz", ("images.npy", npy(GREY)), ("images.npy", npy(GREY)))
    assert reason(path) == "two arrays of the same name"
    path = saved(tmp_path / "b.npz", train_images=GREY)
    assert reason(path) == "a MedMNIST file; its card trains on it, not an index"
    path = zipped(tmp_path / "d.npz", ("images.npy", npy(GREY)), method=zipfile.ZIP_LZMA)
    assert reason(path) == "a zip compression that is not read"
    path = zipped(tmp_path / "e.npz", ("images.npy", npy(GREY, version=(3, 0))))
    assert reason(path) == "an npy version that is not read"
    assert reason(zipped(tmp_path / "f.npz", ("images.npy", b"no array"))) == "cannot be decoded"
    content = bytearray(zipped(tmp_path / "g.npz", ("images.npy", npy(GREY)), method=0).read_bytes())
    content[6] |= 1
    content[content.rindex(b"PK\1\2") + 8] |= 1
    (tmp_path / "g.npz").write_bytes(content)
    assert reason(tmp_path / "g.npz") == "an archive that is encrypted"


def test_sizes_that_lie(tmp_path):
    path = tmp_path / "a.npz"

    def of(shape: str, body: bytes = bytes(1000), descr: str = "|u1") -> str:
        header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}"
        zipped(path, ("images.npy", lying(header, body)))
        with pytest.raises(Refused) as refusal:
            examine(path)  # before anything is loaded
        return refusal.value.reason

    assert of("(10, 10, 11)") == "shorter than its header promises"
    assert of("(10, 10, 9)") == "longer than its header promises"
    assert of("(100000, 100000, 100000)") == "larger than is read"
    assert of("(10, 100000, 100000)") == "larger than is read"
    assert of("(1, -10, -100)") == "an image without voxels"
    assert of("(1, 10, 100)", descr="no type") == "cannot be decoded"
    zipped(path, ("images.npy", npy(np.zeros((1, 100, 100), np.uint8))))
    content = path.read_bytes()
    directory = content.rindex(b"PK\1\2")
    larger = content[: directory + 24] + struct.pack("<I", 1 << 30) + content[directory + 28 :]
    path.write_bytes(larger)  # the directory promises a gigabyte of 100 bytes
    assert reason(path) == "shorter than its header promises"


def test_cut_off_or_changed(tmp_path):
    path = saved(tmp_path / "a.npz", images=GREY, patient_id=np.array(["A", "B", "C", "D"]))
    whole = path.read_bytes()
    for length in range(4, len(whole), 13):
        path.write_bytes(whole[:length])
        assert reason(path) in ("a zip archive that is no npz", "a zip archive that is cut off")
    names = zipfile.ZipFile(io.BytesIO(whole)).getinfo("images.npy")
    start = names.header_offset + 30 + len("images.npy") + 20
    changed = bytearray(whole)
    changed[start + names.compress_size // 2] ^= 4
    path.write_bytes(changed)
    assert reason(path) in ("a broken zip archive", "shorter than its header promises")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_wrong_checksum(tmp_path, method):
    path = zipped(tmp_path / "a.npz", ("images.npy", npy(GREY)), method=method)
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\1\2") + 16] ^= 1
    path.write_bytes(content)
    assert reason(path) == "a broken zip archive"


def test_ids_that_would_fill_the_memory(tmp_path):
    """144 MB of empty text in 140 kB."""
    text = lying("{'descr': '<U9000000', 'fortran_order': False, 'shape': (4,)}", bytes(4 * 4 * 9_000_000))
    path = zipped(tmp_path / "a.npz", ("images.npy", npy(GREY)), ("patient_id.npy", text))
    assert reason(path) == "larger than is read"


def test_many_tiny_members(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", npy(GREY))
        for number in range(20_000):
            archive.writestr(f"{number:010}", b"")
    assert reason(path) == "larger than is read"


def test_rows_are_decoded_once(tmp_path):
    """6000 rows one by one cost a few loads, not 6000; another file, or a changed one, is seen."""
    images = RNG.integers(0, 256, (2000, 64, 64)).astype(np.uint8)
    path, other = saved(tmp_path / "a.npz", images=images), saved(tmp_path / "b.npz", images=images[::-1])
    read_npz(other, 0)
    start = time.perf_counter()
    read_npz(path, 0)
    once = time.perf_counter() - start
    start = time.perf_counter()
    for row in range(2000):
        assert read_npz(path, row).voxels[0, 3, 4, 0] == images[row, 4, 3]
    assert time.perf_counter() - start < 100 * once
    assert read_npz(other, 0).voxels[0, 3, 4, 0] == images[-1, 4, 3]
    for newer in (255 - images, images):  # of the same length when they are not compressed
        np.savez(path, images=newer)
        assert read_npz(path, 7).voxels[0, 3, 4, 0] == newer[7, 4, 3]


def test_a_row_can_be_changed_without_the_next_reader_seeing_it(tmp_path):
    for images in (GREY.astype(np.float32), GREY):
        path = saved(tmp_path / "a.npz", images=images)
        read_npz(path, 1).voxels[:] = -1
        assert np.array_equal(read_npz(path, 1).voxels[0, ..., 0].T, GREY[1])


def test_a_row_that_is_not_there(tmp_path):
    path = saved(tmp_path / "a.npz", images=GREY)
    for row in (-1, 4):
        with pytest.raises(Refused, match="no image of that number"):
            read_npz(path, row)


def test_the_files_at_hand():
    path = shared_data("hannover_cxr", "hannover_64.npz")
    header = examine(path)
    with np.load(path) as content:
        images, patients, names = content["images"], content["patient_id"], content["image_id"]
    assert header.shape == (1, 64, 64, 1)
    assert [(m.patient, m.image) for m in header.members] == list(zip(patients.tolist(), names.tolist(), strict=True))
    for row in range(0, 243, 11):
        assert np.array_equal(read_npz(path, row).voxels[0, ..., 0].T, images[row])
    medmnist = shared_data("pneumoniamnist", "pneumoniamnist.npz")
    assert reason(medmnist) == "a MedMNIST file; its card trains on it, not an index"
