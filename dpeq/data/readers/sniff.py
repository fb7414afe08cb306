"""What a file is, by its content alone: names and suffixes never matter, and a bounded number of bytes is read.

What is not one of the formats that dpeq reads is refused with a reason. A file is opened only when it is a regular one,
so a pipe, a socket or a device never blocks the walk.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

from pydicom.datadict import dictionary_has_tag
from pydicom.valuerep import VR

from dpeq.data.readers.source import Format, Refused

__all__ = ["gzip_start", "kind_of", "open_regular"]

_HEAD = 4096  # bytes that decide
_GZIP_INPUT = 1 << 16  # enough for a gzip header with a long name, and for the start of the stream
_NIFTI_HEADER = 544
_PREAMBLE = 128

_NOT_READ: tuple[tuple[int, bytes, str], ...] = (
    (0, b"II*\0", "a format that is not read (TIFF)"),
    (0, b"MM\0*", "a format that is not read (TIFF)"),
    (0, b"II+\0", "a format that is not read (TIFF)"),
    (0, b"MM\0+", "a format that is not read (TIFF)"),
    (0, b"BM", "a format that is not read (BMP)"),
    (0, b"GIF87a", "a format that is not read (GIF)"),
    (0, b"GIF89a", "a format that is not read (GIF)"),
    (8, b"WEBP", "a format that is not read (WebP)"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "a format that is not read (JPEG 2000 outside DICOM)"),
    (0, b"\xff\x4f\xff\x51", "a format that is not read (JPEG 2000 outside DICOM)"),
    (0, b"\xff\x0a", "a format that is not read (JPEG XL)"),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "a format that is not read (JPEG XL)"),
    (4, b"ftyp", "a format that is not read (HEIF or MP4)"),
    (0, b"8BPS", "a format that is not read (Photoshop)"),
    (0, b"NRRD", "a format that is not read (NRRD)"),
    (0, b"ObjectType", "a format that is not read (MetaImage)"),
    (0, b"NDims", "a format that is not read (MetaImage)"),
    (0, b"MATRIX7", "a format that is not read (ECAT)"),
    (0, b"\x89HDF\r\n\x1a\n", "a format that is not read (HDF5)"),
    (0, b"CDF\x01", "a format that is not read (NetCDF)"),
    (0, b"CDF\x02", "a format that is not read (NetCDF)"),
    (0, b"MATLAB ", "a format that is not read (MATLAB)"),
    (0, b"\x93NUMPY", "a format that is not read (npy; npz is)"),
    (0, b"%PDF", "not an image (PDF)"),
    (0, b"\x80\x02", "not an image (pickle)"),
    (0, b"\x80\x03", "not an image (pickle)"),
    (0, b"\x80\x04", "not an image (pickle)"),
    (0, b"\x80\x05", "not an image (pickle)"),
    (0, b"BZh", "a format that is not read (bzip2)"),
    (0, b"\xfd7zXZ\0", "a format that is not read (xz)"),
    (0, b"\x28\xb5\x2f\xfd", "a format that is not read (zstd)"),
    (0, b"7z\xbc\xaf\x27\x1c", "a format that is not read (7z)"),
    (0, b"Rar!", "a format that is not read (rar)"),
    (257, b"ustar", "a format that is not read (tar)"),
    (0, b"SQLite format 3\0", "not an image (database)"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "not an image (office document or thumbnails)"),
    (0, b"\0\x05\x16\x07", "not an image (macOS metadata)"),
    (0, b"\0\x05\x16\x00", "not an image (macOS metadata)"),
    (0, b"\0\0\0\x01Bud1", "not an image (macOS metadata)"),
    (0, b"\x7fELF", "not an image (program)"),
    (0, b"MZ", "not an image (program)"),
)

_CONTROLS = frozenset(range(32)) - frozenset(b"\t\n\r\f\x1b") | {127}
_VRS = frozenset(vr.value.encode() for vr in VR if len(vr.value) == 2)
_LONG_VRS = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file for reading and never blocks; links to regular files are followed.

    Raises:
        Refused: for everything that is no regular file, and when the system says no.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        nowhere = getattr(error, "errno", None) in (errno.ENOENT, errno.ELOOP) and path.is_symlink()
        reason = "a link to nothing" if nowhere else "cannot be opened"
        raise Refused(reason, getattr(error, "strerror", None) or error) from None
    _require_regular(status)
    try:
        # Not blocking, and asked again: what was a file a moment ago may be a pipe now.
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise Refused("cannot be opened", error.strerror) from None
    stream = os.fdopen(handle, "rb")
    try:
        _require_regular(os.fstat(handle))
    except Refused:
        stream.close()
        raise
    return stream


def kind_of(path: Path) -> Format:
    """The format of a file; "dicom" stands for all of DICOM, with or without preamble.

    Raises:
        Refused: when it is no image, an image in a format that is not read, or cannot be opened.
    """
    with open_regular(path) as stream:
        try:
            return _kind(stream)
        except OSError as error:
            raise Refused("cannot be read", error.strerror) from None


def _require_regular(status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise Refused("a folder")
    if not stat.S_ISREG(status.st_mode):
        raise Refused("no file (a pipe, a socket or a device)", stat.filemode(status.st_mode))


def _kind(stream: BinaryIO) -> Format:
    head = stream.read(_HEAD)
    if not head:
        raise Refused("an empty file")
    if head[_PREAMBLE : _PREAMBLE + 4] == b"DICM":
        return "dicom"
    if head.startswith(b"\x1f\x8b"):
        head += stream.read(_GZIP_INPUT - len(head))
        if _is_nifti(gzip_start(head, _NIFTI_HEADER)):
            return "nifti"
        raise Refused("a gzip file that holds no NIfTI image")
    if _is_nifti(head):
        return "nifti"
    if head.startswith(b"\x89PNG\r\n\x1a\n") or head.startswith(b"\xff\xd8\xff"):
        return "picture"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        if _first_member(head).endswith(b".npy"):  # numpy writes nothing else, so the first one tells
            return "npz"
        raise Refused("a zip archive that is no npz")
    if _looks_like_dicom(head, os.fstat(stream.fileno()).st_size):
        return "dicom"
    for offset, magic, reason in _NOT_READ:
        if head[offset : offset + len(magic)] == magic:
            raise Refused(reason)
    if not head.strip(b"\0"):
        raise Refused("not an image (zeros)")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or not _CONTROLS.intersection(head):
        raise Refused("not an image (text)")
    raise Refused("not an image (unknown content)")


def gzip_start(data: bytes, most: int) -> bytes:
    """The first ``most`` bytes that the beginning of a gzip file decodes to, across its members (RFC 1952).

    Raises:
        Refused: when it is broken; fewer bytes when it ends before.
    """
    start = b""
    try:
        while data and len(start) < most:
            member = zlib.decompressobj(wbits=31)
            start += member.decompress(data, most - len(start))
            data = member.unused_data if member.eof else b""
    except zlib.error as error:
        raise Refused("a broken gzip file", error) from None
    return start


def _is_nifti(head: bytes) -> bool:
    """Whether it begins like a single-file NIfTI-1 or -2; its halves and forerunners are refused by name."""
    size = {struct.pack(order + "i", n): n for order in "<>" for n in (348, 540)}.get(head[:4])
    if size == 348 and head[344:348] == b"n+1\0":
        return True
    if size == 540 and head[4:12] == b"n+2\0\r\n\x1a\n":
        return True
    if (size == 348 and head[344:348] == b"ni1\0") or (size == 540 and head[4:8] == b"ni2\0"):
        raise Refused("half of a NIfTI pair (hdr and img); one file with both is read")
    if size == 348 and len(head) >= 348 and 1 <= max(head[40:42]) <= 7:  # the number of its dimensions
        raise Refused("a format that is not read (Analyze)")
    return False


def _first_member(head: bytes) -> bytes:
    """The name in the first local header of a zip (APPNOTE 4.3.7)."""
    if len(head) < 30:
        return b""
    return head[30 : 30 + int.from_bytes(head[26:28], "little")]


def _looks_like_dicom(head: bytes, size: int) -> bool:
    """Whether a file without preamble begins with plausible data elements of group 0002 or 0008 (PS3.5 7.1).

    Three elements in ascending order of known tags, or two before a sequence or the end of what was read; each explicit
    one with a VR that exists, each with a length that fits the file. Random bytes pass less than once in 10^9.
    """
    return any(_elements(head, size, order, explicit) for order, explicit in (("<", True), ("<", False), (">", True)))


def _elements(head: bytes, size: int, order: str, explicit: bool) -> bool:
    at, last, seen = 0, 0, 0
    while seen < 3:
        if at + 12 > len(head):  # the file is over, or the next element lies beyond what was read
            return seen >= 2 and at <= size
        group, element = struct.unpack_from(order + "HH", head, at)
        tag = group << 16 | element
        if (seen == 0 and group not in (2, 8)) or tag <= last:
            return False
        if element and not group % 2 and not dictionary_has_tag(tag):
            return False
        vr = head[at + 4 : at + 6]
        if not explicit:
            length = struct.unpack_from(order + "I", head, at + 4)[0]
            at += 8
        elif vr in _LONG_VRS:
            if head[at + 6 : at + 8] != b"\0\0":
                return False
            length = struct.unpack_from(order + "I", head, at + 8)[0]
            at += 12
        elif vr in _VRS:
            length = struct.unpack_from(order + "H", head, at + 6)[0]
            at += 8
        else:
            return False
        last, seen = tag, seen + 1
        if length == 0xFFFFFFFF:  # a sequence: what follows is not looked at
            return seen >= 2 and (not explicit or vr in (b"SQ", b"UN"))
        at += length
        if at > size:
            return seen >= 3 and at - length < size  # cut off within: still DICOM, and refused by its reader
    return True
