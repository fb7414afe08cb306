"""One DICOM file, opened for whatever bytes it holds: its header as raw elements, and where its pixels lie.

pydicom parses; this module bounds what a file can make it do. Nothing is allocated by a length that the file merely
claims, a deflated file is inflated no further than its header explains, every error is a :class:`Refused`, and
pydicom's warnings and log, which quote values, stay silent.
"""

from __future__ import annotations

import io
import logging
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydicom import config
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_dataset

from dpeq.data.deid import present
from dpeq.data.readers.sniff import open_regular
from dpeq.data.readers.source import Refused

__all__ = [
    "DicomFile",
    "Pixels",
    "identifying",
    "integer",
    "numbers",
    "open_dicom",
    "optional_number",
    "quiet",
    "text",
    "value",
]

DEFLATED = "1.2.840.10008.1.2.1.99"
HEADER_LIMIT = 256 << 20
"""Bytes of header that one file may have; the largest ones, of thousands of frames, have some tens of MiB."""
_BIG_ENDIAN = "1.2.840.10008.1.2.2"
_PIXELS = {0x7FE0_0008: "FloatPixelData", 0x7FE0_0009: "DoubleFloatPixelData", 0x7FE0_0010: "PixelData"}
_LONG_VRS = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Pixels:
    """The element that holds the pixels: ``length`` is None where it is undefined, ``start`` where its value begins."""

    keyword: str
    vr: str
    length: int | None
    start: int


@dataclass(frozen=True)
class DicomFile:
    """A file that is open.

    Attributes:
        data: all that stands before the pixels, with ``file_meta``.
        syntax: UID of the transfer syntax; "" where the file has no meta information.
        little: byte order of the data set.
        pixels: None when there are none.
        size: bytes in the file, or None for a deflated one.
    """

    data: Dataset
    syntax: str
    little: bool
    pixels: Pixels | None
    size: int | None
    stream: _Bounded | _Inflated

    def read(self, length: int, offset: int = 0) -> bytes:
        """``length`` bytes of the pixels, fewer where the file ends; how many there should be was checked."""
        if self.pixels is None:
            raise Refused("not an image (no pixels)")
        try:
            self.stream.allow(offset + length)
            self.stream.seek(self.pixels.start + offset)
            return self.stream.read(length)
        except (OSError, zlib.error) as error:
            raise Refused("pixels that are cut off", type(error).__name__) from None


@contextmanager
def reopen(path: Path, known: DicomFile) -> Iterator[DicomFile]:
    """A file whose header was read before and is not read again; of a deflated one the pixels cannot be reached so."""
    with open_regular(path) as raw, quiet():
        yield replace(known, stream=_Bounded(raw))


@contextmanager
def open_dicom(path: Path) -> Iterator[DicomFile]:
    """Reads everything before the pixels.

    Every element is kept, as it stands and undecoded: which private ones there are is part of the policy report.

    Raises:
        Refused: when it cannot be opened or is no DICOM file, also for what the body of the ``with`` runs into.
    """
    with open_regular(path) as raw, quiet():
        try:
            opened = _open(raw)
        except Refused:
            raise
        except (MemoryError, RecursionError) as error:
            raise Refused("a header nested or sized beyond reason", type(error).__name__) from None
        except Exception as error:  # bytes can make a parser raise anything; its words may hold values
            raise Refused("a DICOM header that cannot be read", f"{type(error).__name__}: {error}") from None
        yield opened


def _open(raw: BinaryIO) -> DicomFile:
    stream: _Bounded | _Inflated = _Bounded(raw)
    if raw.read(132)[128:] != b"DICM":
        raw.seek(0)
    # Group 2 is explicit, little endian, whatever follows (PS3.10 7.1); a file without preamble may have none.
    meta = FileMetaDataset(read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2))
    syntax = text(meta, "TransferSyntaxUID")
    size: int | None = stream.size
    if syntax == DEFLATED:
        stream, size = _Inflated(raw), None
    start = stream.tell()
    group = int.from_bytes(stream.read(2), "little")
    stream.seek(start)
    # Without meta information the byte order shows in the first group number, which is small in the right one.
    big = syntax == _BIG_ENDIAN or (not syntax and group >= 0x0400)
    implicit = syntax in ("", "1.2.840.10008.1.2")
    data = read_dataset(stream, implicit and not big, not big, stop_when=lambda tag, vr, length: int(tag) in _PIXELS)
    data.file_meta = meta
    implicit, little = data.original_encoding
    if not len(data) and not len(meta):
        raise Refused("not a DICOM file")
    if not syntax:
        syntax = "1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.1" if little else _BIG_ENDIAN
    return DicomFile(data, syntax, bool(little), _pixels(stream, bool(implicit), bool(little)), size, stream)


def _pixels(stream: _Bounded | _Inflated, implicit: bool, little: bool) -> Pixels | None:
    """The element that pydicom stopped at."""
    head = stream.read(8)
    if len(head) < 8:
        return None
    order = "<" if little else ">"
    group, element = struct.unpack(order + "HH", head[:4])
    vr = head[4:6]
    if implicit or not vr.isalpha():
        vr, length = b"", struct.unpack(order + "I", head[4:])[0]
    elif vr in _LONG_VRS:
        length = struct.unpack(order + "I", stream.read(4).ljust(4, b"\0"))[0]
    else:
        length = struct.unpack(order + "H", head[6:])[0]
    keyword = _PIXELS.get(group << 16 | element)
    if keyword is None:
        return None
    return Pixels(keyword, vr.decode() or "OW", None if length == 0xFFFFFFFF else length, stream.tell())


class _Bounded:
    """The calls of a file that pydicom makes; a read never asks for more than is there, nor in sum for too much."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self.size = raw.seek(0, 2)
        raw.seek(0)
        self._left = HEADER_LIMIT
        self.tell = raw.tell
        self.seek = raw.seek

    def allow(self, length: int) -> None:
        self._left = length

    def read(self, length: int) -> bytes:
        if length > 64:
            length = max(0, min(length, self.size - self._raw.tell()))
        self._left -= length
        if self._left < 0:
            raise Refused("a header nested or sized beyond reason", "more bytes than any header has")
        return self._raw.read(length)


class _Inflated:
    """The data set of a deflated file (PS3.5 A.5), inflated as far as it is read."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._machine = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
        self._buffer = io.BytesIO()
        self._have = 0
        self._limit = HEADER_LIMIT
        self.tell = self._buffer.tell

    def allow(self, length: int) -> None:
        self._limit = self._have + length

    def seek(self, offset: int, whence: int = 0) -> int:
        at = max(0, offset + (self._buffer.tell() if whence == 1 else 0))
        self._inflate(at)
        return self._buffer.seek(at)

    def read(self, length: int) -> bytes:
        self._inflate(self._buffer.tell() + length)
        return self._buffer.read(length)

    def _inflate(self, end: int) -> None:
        at = self._buffer.tell()
        self._buffer.seek(self._have)
        while self._have < end and not self._machine.eof:
            if self._have > self._limit:
                raise Refused("a deflated file that swells beyond reason")
            source = self._machine.unconsumed_tail or self._raw.read(_CHUNK)
            if not source:
                break
            out = self._machine.decompress(source, _CHUNK)
            self._have += self._buffer.write(out)
        self._buffer.seek(at)


_lock = threading.Lock()
_readers = 0
_restore = ExitStack()


_LOGGERS = [logging.getLogger(name) for name in ("pydicom", "pylibjpeg", "openjpeg")]
_SILENCE = logging.NullHandler()


@contextmanager
def quiet() -> Iterator[None]:
    """While anyone reads, warnings are off, pydicom logs nothing and checks no value against its VR's rules.

    These are settings of the process: the first reader that enters changes them and the last one that leaves puts them
    back, so threads that read at the same time do not undo each other's.
    """
    global _readers, _restore
    with _lock:
        _readers += 1
        if _readers == 1:
            _restore = ExitStack()
            _restore.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            _restore.callback(setattr, config.settings, "_reading_validation_mode", _validation())
            config.settings.reading_validation_mode = config.IGNORE
            for logger in _LOGGERS:  # their children's records end here too
                _restore.callback(vars(logger).update, propagate=logger.propagate, handlers=logger.handlers)
                logger.propagate, logger.handlers = False, [_SILENCE]
    try:
        yield
    finally:
        with _lock:
            _readers -= 1
            if _readers == 0:
                _restore.close()


def _validation() -> int | None:
    return config.settings._reading_validation_mode  # the public one turns None into a fixed mode


def identifying(data: Dataset) -> tuple[str, ...]:
    """:func:`dpeq.data.deid.present`, of a header that may hold any bytes."""
    try:
        return present(data)
    except Exception as error:
        raise Refused("a header value that cannot be read", f"{type(error).__name__}: {error}") from None


def value(data: Dataset, keyword: str) -> Any:
    """The value of an element, None where it is missing or empty."""
    # pydicom takes its time to say that an element is missing, which most are.
    if tag_for_keyword(keyword) not in data.keys():  # noqa: SIM118  # a dataset's own "in" makes a tag of it first
        return None
    try:
        found = data.get(keyword)
    except Exception as error:  # decoded here for the first time, so any bytes can raise anything
        raise Refused("a header value that cannot be read", f"{keyword}: {type(error).__name__}: {error}") from None
    return None if found is None or found == "" else found


def text(data: Dataset, keyword: str) -> str:
    found = value(data, keyword)
    if found is None:
        return ""
    parts = found if isinstance(found, (list, tuple)) or hasattr(found, "append") else [found]
    return "\\".join(str(part).strip().strip("\0") for part in parts)


def integer(data: Dataset, keyword: str, missing: int | None = None) -> int:
    found = value(data, keyword)
    if found is None and missing is not None:
        return missing
    try:
        return int(found)
    except (TypeError, ValueError, OverflowError):
        raise Refused("a header value that is missing or no number", f"{keyword}: {found!r}") from None


def numbers(data: Dataset, keyword: str, count: int) -> tuple[float, ...]:
    """Finite ones, or () where the element is missing or empty."""
    found = value(data, keyword)
    if found is None:
        return ()
    try:
        many = tuple(float(part) for part in found) if count > 1 else (float(found),)
    except (TypeError, ValueError, OverflowError):
        many = ()
    if len(many) != count or not np.isfinite(many).all():
        raise Refused("a header value that is missing or no number", f"{keyword}: {found!r}")
    return many


def optional_number(data: Dataset, keyword: str) -> float | None:
    found = numbers(data, keyword, 1)
    return found[0] if found else None
