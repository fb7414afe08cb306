"""npz archives that are broken, hostile or none of ours."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np

from broken.case import broken

IMAGES = np.random.default_rng(2).integers(0, 256, (3, 8, 9)).astype(np.uint8)


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array)
    return out.getvalue()


def lying(shape: str, body: bytes = b"", descr: str = "|u1") -> bytes:
    """An npy file whose header says what one likes."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + body


def zipped(path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


@broken("an array of objects, which would have to be unpickled")
def npz_of_pickles(folder: Path) -> None:
    np.savez(folder / "a.npz", images=np.array([IMAGES, None], object))
    np.savez(folder / "b.npz", images=IMAGES, patient_id=np.array(["A", "B", 3], object))


@broken("images of a shape that is not read")
def npz_of_wrong_shapes(folder: Path) -> None:
    np.savez(folder / "a.npz", images=IMAGES[0])
    np.savez(folder / "b.npz", images=IMAGES[None, None])
    np.savez(folder / "c.npz", images=np.float32(3))


@broken("an npz without an array 'images'")
def npz_without_images(folder: Path) -> None:
    np.savez(folder / "a.npz", scans=IMAGES)


@broken("a MedMNIST file; its card trains on it, not an index")
def npz_of_medmnist(folder: Path) -> None:
    np.savez(folder / "a.npz", train_images=IMAGES, train_labels=np.zeros((3, 1)))


@broken("an image without voxels")
def npz_of_no_images(folder: Path) -> None:
    np.savez(folder / "a.npz", images=IMAGES[:0])
    np.savez(folder / "b.npz", images=IMAGES[:, :, :0])


@broken("larger than is read")
def npz_of_absurd_size(folder: Path) -> None:
    zipped(folder / "a.npz", images=lying("(1, 100000, 100000)"))
    zipped(folder / "b.npz", images=lying("(1000000000000, 64, 64)"))


@broken("shorter than its header promises")
def npz_that_promises_more(folder: Path) -> None:
    zipped(folder / "a.npz", images=lying("(3, 8, 9)", bytes(215)))
    zipped(folder / "b.npz", images=lying("(30000, 64, 64)", bytes(215)))


@broken("longer than its header promises")
def npz_bomb(folder: Path) -> None:
    """100 MB behind a small array."""
    zipped(folder / "a.npz", images=lying("(3, 8, 9)", bytes(100 << 20)))


@broken("shorter than its header promises")
def npz_whose_directory_lies(folder: Path) -> None:
    zipped(folder / "a.npz", images=lying("(1, 32768, 32768)"))
    content = (folder / "a.npz").read_bytes()
    at = content.rindex(b"PK\1\2") + 24
    (folder / "a.npz").write_bytes(content[:at] + struct.pack("<I", (1 << 30) + 128) + content[at + 4 :])


@broken("a zip archive that is cut off")
def npz_cut_off(folder: Path) -> None:
    np.savez(folder / "a.npz", images=IMAGES)
    content = (folder / "a.npz").read_bytes()
    for length in (60, len(content) // 2, len(content) - 30):
        (folder / f"{length}.npz").write_bytes(content[:length])
    (folder / "a.npz").unlink()


@broken("a broken zip archive")
def npz_with_a_changed_byte(folder: Path) -> None:
    np.savez(folder / "a.npz", images=IMAGES)
    content = bytearray((folder / "a.npz").read_bytes())
    content[content.index(b"PK\1\2") - 50] ^= 1
    (folder / "a.npz").write_bytes(content)


@broken("complex values")
def npz_complex(folder: Path) -> None:
    np.savez(folder / "a.npz", images=IMAGES.astype(np.complex64))


@broken("values of a type that is not read")
def npz_of_odd_types(folder: Path) -> None:
    np.savez(folder / "a.npz", images=np.full((2, 3, 4), "text"))
    np.savez(folder / "b.npz", images=np.zeros((2, 3, 4), "M8[D]"))


@broken("voxels that are not finite")
def npz_values_not_finite(folder: Path) -> None:
    np.savez(folder / "a.npz", images=np.full((1, 8, 9), np.nan))


@broken("ids that are not one text or whole number per image")
def npz_with_too_few_ids(folder: Path) -> None:
    np.savez(folder / "a.npz", images=IMAGES, patient_id=np.array(["A", "B"]))


@broken("two images of the same id in one file")
def npz_with_an_id_twice(folder: Path) -> None:
    np.savez(folder / "a.npz", images=IMAGES, image_id=np.array([1, 2, 1]))


@broken("a format that is not read (npy; npz is)")
def npy_alone(folder: Path) -> None:
    np.save(folder / "a.npz.npy", IMAGES)


@broken("not an image (pickle)")
def a_pickle(folder: Path) -> None:
    (folder / "a.npz").write_bytes(b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c\x02os.")
