"""Compressed pixels before they are decoded: their fragments, and what their own headers say of their size.

A decoder allocates what its codestream's header promises, so that promise is held against the DICOM header first.
"""

from __future__ import annotations

import struct
from itertools import pairwise

from dpeq.data.readers.source import Refused

__all__ = ["check_frame", "split_frames"]

_ITEM, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_RLE = "1.2.840.10008.1.2.5"
_EXTENDED = "1.2.840.10008.1.2.4.51"
_STANDALONE = {0x01, *range(0xD0, 0xD9)}
_SOF = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
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
    found = _size_2000(frame) if frame[:2] == b"\xff\x4f" else _size_jpeg(frame)
    if found is None:
        raise Refused("pixels that cannot be decoded", "a codestream without its header")
    depth, *size = found
    if size != [rows, columns, samples] or depth > bits:
        raise Refused(_CONTRADICTION, f"{size} of {depth} bits")
    if frame[:2] != b"\xff\x4f" and (depth > 8) != (bits > 8) and b"\xff\xf7" not in frame[:256]:
        raise Refused(_CONTRADICTION, f"{depth} bits in {bits}")
    if syntax == _EXTENDED and depth != 8:
        raise Refused("JPEG of 12 bits, which is not read")


def _size_jpeg(frame: bytes) -> tuple[int, int, int, int] | None:
    """(bits, rows, columns, components) of the frame header (ISO 10918-1 B.2.2; ISO 14495-1 C.2.2)."""
    if frame[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 4 <= len(frame):
        if frame[at] != 0xFF:
            return None
        marker = frame[at + 1]
        if marker == 0xFF:  # fill bytes
            at += 1
        elif marker in _STANDALONE:
            at += 2
        elif marker in _SOF:
            if at + 10 > len(frame):
                return None
            return struct.unpack(">BHHB", frame[at + 4 : at + 10])
        else:
            at += 2 + struct.unpack(">H", frame[at + 2 : at + 4])[0]
    return None


def _size_2000(frame: bytes) -> tuple[int, int, int, int] | None:
    """(bits, rows, columns, components) of the SIZ segment, which comes first (ISO 15444-1 A.5.1)."""
    if frame[2:4] != b"\xff\x51" or len(frame) < 43:
        return None
    x, y, x0, y0 = struct.unpack(">4I", frame[8:24])
    components = struct.unpack(">H", frame[40:42])[0]
    return (frame[42] & 0x7F) + 1, y - y0, x - x0, components
