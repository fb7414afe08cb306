"""npz files that hold one image per row: an array ``images`` and, when there are any, ids of patients and images.

===================  ==========================================================================================
``images``           ``[N, rows, columns]``: grey, any real type; or ``[N, rows, columns, 3]`` of uint8: RGB; or
                     ``[N, x, y, z]``: volumes, any real type unless it is uint8 with z = 3
``patient_id``       ``[N]`` strings or whole numbers; optional
``image_id``         likewise; optional
===================  ==========================================================================================

Other arrays are not looked at. Nothing is unpickled, and headers are read without their arrays: the sizes that they
promise are held against those of the zip, and these against what deflate can hold.
"""

from __future__ import annotations

import contextlib
import errno
import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dpeq.data.readers.kept import Kept
from dpeq.data.readers.sniff import open_regular
from dpeq.data.readers.source import Header, Member, Refused, Volume

__all__ = ["read_npz", "read_npz_header"]

_MOST_BYTES = 1 << 31  # of one array as stored, and of one image as float32
_MOST_ID_BYTES = 1 << 27
_MOST_ROWS = 1 << 20
_MOST_DIRECTORY = 1 << 20  # bytes of the zip's directory, which zipfile reads whole
_DEFLATE_RATIO = 1032
_BLOCK = 1 << 22  # bytes that are inflated at a time


@dataclass(frozen=True)
class _Array:
    """One array of an archive by its header: nothing of it is in memory."""

    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    offset: int

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


_kept = Kept()


def read_npz_header(path: Path) -> Header:
    """Size and ids of the images; of the arrays only the ids are loaded.

    Raises:
        Refused: when the archive is broken, has no array ``images``, or one that is ambiguous or of a type that is
            not read.
    """
    with _archive(path) as arrays:
        images = arrays["images"]
        shape, rows = _image_shape(images), images.shape[0]
        patients = _ids(arrays, "patient_id", rows) or ("",) * rows
        names = _ids(arrays, "image_id", rows)  # never row numbers: those of another file are the same
    members = tuple(map(Member, patients, names or ("",) * rows))
    if names is not None and len(set(members)) != rows:
        raise Refused("two images of the same id in one file")
    return Header("npz", shape, members=members)


def read_npz(path: Path, part: int) -> Volume:
    """Row ``part`` as ``[channels, x, y, z]`` without geometry.

    The array is decoded once and kept (as stored, at most 2 GiB) until a row of another file is asked for, so that
    reading all rows costs one pass.

    Raises:
        Refused: also when the archive's checksum is wrong.
    """
    images = _images(path)
    if not 0 <= part < len(images):
        raise Refused("no image of that number in its file", part)
    row = images[part]
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is not finite, and refused as such
        if row.ndim == 2:  # rows and columns to x and y
            voxels = row.T[None, ..., None].astype(np.float32)
        elif _is_colour(images.dtype, images.shape):
            voxels = row.transpose(2, 1, 0)[..., None].astype(np.float32)
        else:
            voxels = row[None].astype(np.float32)
    return Volume(voxels, np.eye(4), "none")


def _images(path: Path) -> np.ndarray:
    def load() -> np.ndarray:
        with _archive(path) as arrays:
            _image_shape(arrays["images"])
            return arrays.load("images")

    with open_regular(path) as stream:
        status = os.fstat(stream.fileno())
    return _kept.get(path, status, load)


class _Arrays(dict[str, _Array]):
    """The arrays of an open archive by name."""

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        super().__init__()
        self.archive, self.file_size = archive, size

    def load(self, name: str) -> np.ndarray:
        """The whole array; its checksum is checked."""
        array = self[name]
        raw = np.empty(array.size, np.uint8)
        with self.archive.open(array.info) as member:
            member.read(array.offset)
            at, view = 0, memoryview(raw)
            while at < raw.size:
                read = member.readinto(view[at : at + _BLOCK])
                if not read:
                    raise Refused("shorter than its header promises", name)
                at += read
            member.read()  # nothing is left but the end of the stream, where zipfile compares the checksum
        return raw.view(array.dtype).reshape(array.shape, order="F" if array.fortran else "C")


@contextlib.contextmanager
def _archive(path: Path) -> Iterator[_Arrays]:
    with open_regular(path) as stream:
        size = stream.seek(0, 2)
        _check_directory(stream, size)
        try:
            with zipfile.ZipFile(stream) as archive:
                yield _directory(archive, size)
        except (zipfile.BadZipFile, zlib.error, EOFError, UnicodeDecodeError, NotImplementedError) as error:
            raise Refused("a broken zip archive", error) from None
        except OSError as error:
            if error.errno != errno.EINVAL:  # a member that begins before the file does
                raise
            raise Refused("a broken zip archive", "an offset") from None


def _check_directory(stream: BinaryIO, size: int) -> None:
    """Holds the size of the directory against a limit before zipfile reads it (APPNOTE 4.3.16)."""
    stream.seek(max(0, size - (1 << 16) - 22))
    tail = stream.read()
    end = tail.rfind(b"PK\5\6")
    if end < 0 or len(tail) < end + 22:
        raise Refused("a zip archive that is cut off")
    length = int.from_bytes(tail[end + 12 : end + 16], "little")
    if length > _MOST_DIRECTORY or tail[max(0, end - 20) : end].startswith(b"PK\6\7"):
        raise Refused("larger than is read", length)


def _directory(archive: zipfile.ZipFile, size: int) -> _Arrays:
    arrays = _Arrays(archive, size)
    infos = {info.filename: info for info in archive.infolist()}
    if len(infos) != len(archive.infolist()):
        raise Refused("two arrays of the same name")
    if "images.npy" not in infos:
        if "train_images.npy" in infos:
            raise Refused("a MedMNIST file; its card trains on it, not an index")
        raise Refused("an npz without an array 'images'")
    for name in ("images", "patient_id", "image_id"):
        if info := infos.get(f"{name}.npy"):
            arrays[name] = _header(archive, info, size)
    return arrays


def _header(archive: zipfile.ZipFile, info: zipfile.ZipInfo, size: int) -> _Array:
    """The npy header of one member (NEP 1), and whether it, the zip and the file agree on its size."""
    if info.flag_bits & 1:
        raise Refused("an archive that is encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Refused("a zip compression that is not read", info.compress_type)
    if info.header_offset + info.compress_size > size or info.file_size > info.compress_size * _DEFLATE_RATIO + 64:
        raise Refused("shorter than its header promises", info.filename)
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        if version not in ((1, 0), (2, 0)):
            raise Refused("an npy version that is not read", version)
        parse = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = parse(member)
        offset = member.tell()
    if dtype.hasobject:
        raise Refused("an array of objects, which would have to be unpickled", info.filename)
    array = _Array(info, shape, dtype, fortran, offset)
    if array.size > _MOST_BYTES:
        raise Refused("larger than is read", shape)
    if offset + array.size != info.file_size:
        wrong = offset + array.size > info.file_size
        raise Refused("shorter than its header promises" if wrong else "longer than its header promises", info.filename)
    return array


def _image_shape(images: _Array) -> tuple[int, int, int, int]:
    """``(channels, x, y, z)`` by the table of this module."""
    shape, dtype = images.shape, images.dtype
    if dtype.kind == "c":
        raise Refused("complex values")
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise Refused("values of a type that is not read", dtype)
    if len(shape) not in (3, 4):
        raise Refused("images of a shape that is not read", shape)
    if min(shape) < 1:
        raise Refused("an image without voxels", shape)
    if shape[0] > _MOST_ROWS:
        raise Refused("more images than are read from one file", shape)
    if 4 * int(np.prod(shape[1:], dtype=object)) > _MOST_BYTES:
        raise Refused("larger than is read", shape)
    if len(shape) == 3:
        return (1, shape[2], shape[1], 1)
    if _is_colour(dtype, shape):
        return (3, shape[2], shape[1], 1)
    return (1, shape[1], shape[2], shape[3])


def _is_colour(dtype: np.dtype, shape: tuple[int, ...]) -> bool:
    return dtype == np.uint8 and shape[3:] == (3,)


def _ids(arrays: _Arrays, name: str, rows: int) -> tuple[str, ...] | None:
    """The ids of all rows as text, or None where the file has none."""
    if name not in arrays:
        return None
    if arrays[name].shape != (rows,) or arrays[name].dtype.kind not in "USiu":
        raise Refused("ids that are not one text or whole number per image", name)
    if arrays[name].size > _MOST_ID_BYTES:
        raise Refused("larger than is read", name)
    values = arrays.load(name)
    try:
        if values.dtype.kind == "S":
            values = np.char.decode(values, "utf-8")
    except UnicodeDecodeError:
        raise Refused("ids that are not plain text", name) from None
    ids = tuple(str(value).strip() for value in values.tolist())
    if not all(text.isprintable() for text in ids):
        raise Refused("ids that are not plain text", name)
    return ids
