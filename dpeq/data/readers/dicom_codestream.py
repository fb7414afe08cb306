"""Compressed pixels before they are decoded: their fragments, and what their own headers say of their size.

A decoder allocates what its codestream's header promises, so that promise is held against the DICOM header first.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from itertools import pairwise

from dpeq.data.readers.source import Refused

__all__ = ["check_frame", "split_frames"]

_ITEM, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_RLE = "1.2.840.10008.1.2.5"
_EXTENDED = "1.2.840.10008.1.2.4.51"
_JPEG_2000 = {f"1.2.840.10008.1.2.4.{end}" for end in (90, 91, 201, 202, 203)}
_PROCESSES = {  # frame headers that a transfer syntax may have
    "1.2.840.10008.1.2.4.50": (0xC0,),
    _EXTENDED: (0xC0, 0xC1),
    "1.2.840.10008.1.2.4.57": (0xC3,),
    "1.2.840.10008.1.2.4.70": (0xC3,),
    "1.2.840.10008.1.2.4.80": (0xF7,),
    "1.2.840.10008.1.2.4.81": (0xF7,),
}
_GDCM = [syntax for syntax, markers in _PROCESSES.items() if 0xF7 not in markers]
_SCAN = 0xDA
_TABLES = {0xC4, 0xDB, 0xDD, 0xF8, 0xFE, *range(0xE0, 0xF0)}
_CONTRADICTION = "compressed pixels of another size than the header says"


def split_frames(stream: bytes, frames: int) -> list[bytes]:
    """The compressed frames of encapsulated pixels (PS3.5 A.4).

    Args:
        stream: from the offset table on; what follows the sequence's end is left alone.

    Raises:
        Refused: when fragments are cut off, or do not tell which frame they belong to.
    """
    table, spans, at = None, [], 0
    while True:
        head = stream[at : at + 8]
        if len(head) < 8:
            raise Refused("pixels that are cut off", "in the fragments")
        length = struct.unpack("<I", head[4:])[0]
        if head[:4] == _END:
            break
        if head[:4] != _ITEM:
            raise Refused("compressed pixels that are not in fragments")
        if at + 8 + length > len(stream):
            raise Refused("pixels that are cut off", "in a fragment")
        if table is None:
            table = stream[8 : 8 + length]
            base = 8 + length
        else:
            spans.append((at - base, at + 8, length))
        at += 8 + length
    pieces = [stream[start : start + length] for _, start, length in spans]
    if frames == 1 and pieces:
        return [b"".join(pieces)]
    offsets = struct.unpack(f"<{len(table or b'') // 4}I", (table or b"")[: len(table or b"") // 4 * 4])
    starts = [offset for offset, _, _ in spans]
    if len(pieces) == frames and (not offsets or list(offsets) == starts):
        return pieces
    if len(offsets) != frames or offsets[0] != 0 or list(offsets) != sorted(set(offsets) & set(starts)):
        raise Refused("compressed frames that cannot be told apart", f"{len(pieces)} fragments, {frames} frames")
    first = [starts.index(offset) for offset in offsets] + [len(pieces)]
    return [b"".join(pieces[a:b]) for a, b in pairwise(first)]


def check_frame(frame: bytes, syntax: str, rows: int, columns: int, samples: int, bits: int) -> None:
    """Holds one compressed frame's own header against the DICOM header.

    Raises:
        Refused: when they contradict each other, or nothing here decodes it.
    """
    if syntax == _RLE:
        segments = struct.unpack("<I", frame[:4].ljust(4, b"\0"))[0]
        # Literal runs add one byte to 128 (PS3.5 G.3.1), so what is longer can only decode to more than it should.
        most = 64 + (rows * columns * samples * bits // 8) * 2 + 2 * segments
        if segments != samples * bits // 8 or len(frame) > most:
            raise Refused(_CONTRADICTION, f"{segments} segments")
        return
    found = _size_2000(frame) if syntax in _JPEG_2000 else _size_jpeg(frame, _PROCESSES.get(syntax, ()))
    if found is None:
        raise Refused("pixels that cannot be decoded", "a codestream without a header of its kind")
    # libjpeg fills what is missing at the end with grey and says so on the error stream alone.
    # A pad byte or a few may follow the end (PS3.5 A.4); within compressed data its two bytes never come together.
    if b"\xff\xd9" not in frame[-16:]:
        raise Refused("pixels that are cut off", "a codestream without its end")
    depth, *size = found
    if size != [rows, columns, samples] or depth > bits:
        raise Refused(_CONTRADICTION, f"{size} of {depth} bits")
    if syntax in _GDCM and (depth > 8) != (bits > 8):
        raise Refused(_CONTRADICTION, f"{depth} bits in {bits}")
    if syntax == _EXTENDED and depth != 8:
        raise Refused("JPEG of 12 bits, which is not read")


def _size_jpeg(frame: bytes, processes: Collection[int]) -> tuple[int, int, int, int] | None:
    """(bits, rows, columns, components) of the frame header (ISO 10918-1 B.2.2; ISO 14495-1 C.2.2).

    None unless marker follows on marker up to the scan and there is one frame header, of one of ``processes``: on some
    codestreams that are not in order gdcm ends the process.
    """
    found: tuple[int, int, int, int] | None = None
    at = 2
    if frame[:2] != b"\xff\xd8":
        return None
    while at + 4 <= len(frame) and frame[at] == 0xFF:
        marker, length = frame[at + 1], struct.unpack(">H", frame[at + 2 : at + 4])[0]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == _SCAN:
            return found
        if marker in processes:
            if found is not None or length < 8 or at + 10 > len(frame):
                return None
            found = struct.unpack(">BHHB", frame[at + 4 : at + 10])
        elif marker not in _TABLES:
            return None
        at += 2 + length
    return None


def _size_2000(frame: bytes) -> tuple[int, int, int, int] | None:
    """(bits, rows, columns, components) of the SIZ segment, which comes first (ISO 15444-1 A.5.1)."""
    if frame[:4] != b"\xff\x4f\xff\x51" or len(frame) < 43:
        return None
    x, y, x0, y0 = struct.unpack(">4I", frame[8:24])
    components = struct.unpack(">H", frame[40:42])[0]
    return (frame[42] & 0x7F) + 1, y - y0, x - x0, components
