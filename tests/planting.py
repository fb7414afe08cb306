"""Marks of identity that occur nowhere else, planted wherever data can carry a name, and the search for them."""

from __future__ import annotations

import gzip
import hashlib
import random
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from dpeq.data.deid import IDENTIFYING_TAGS

KEPT = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "PatientID", "DataSetTrailingPadding")
_TEXTS = ("PN", "LO", "SH", "LT", "ST", "UT", "UC", "AE", "UR")
_LETTERS = "ghjklmnpqrvwxyz"  # none that hexadecimal numbers have
_HEXADECIMAL = re.compile(rb"[0-9a-f]{16,}")
TEXT, UID = "zqvjkxw", "2.25.7182818284"


class Plants:
    """Makes marks and remembers where each was planted.

    Texts and UIDs begin alike, and dates are few, so that a search looks for a handful of strings.
    """

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self.where: dict[str, str] = {}
        self._days = [f"17{self._random.randrange(10, 99)}{month:02d}{month + 9}" for month in range(1, 13)]

    def text(self, where: str) -> str:
        return self._keep(TEXT + "".join(self._random.choices(_LETTERS, k=9)), where)

    def date(self, where: str) -> str:
        return self._keep(self._random.choice(self._days), where)

    def uid(self, where: str) -> str:
        return self._keep(f"{UID}{self._random.randrange(10**19, 10**20)}", where)

    def _keep(self, mark: str, where: str) -> str:
        self.where[mark] = where
        return mark

    def into(self, data: Dataset) -> None:
        """Fills every identifying attribute of ``data`` that holds text, a date or a UID, top level and nested."""
        for tag, keyword in IDENTIFYING_TAGS.items():
            vr = data.get(tag).VR if tag in data else _vr(tag)
            if keyword in KEPT or tag >> 16 <= 2 or vr is None:
                continue
            if vr in _TEXTS:
                data[tag] = DataElement(tag, vr, self.text(keyword))
            elif vr in ("DA", "DT"):
                data[tag] = DataElement(tag, vr, self.date(keyword))
            elif vr == "UI":
                data[tag] = DataElement(tag, vr, self.uid(keyword))
        nested = Dataset()
        nested.PatientName = self.text("a name in a sequence")
        data.OtherPatientIDsSequence = [nested]
        data.add_new(0x00091001, "LO", self.text("a private element"))

    def forms(self) -> list[bytes]:
        """Every byte string to look for, in lower case."""
        marks = [TEXT, UID]
        for day in self._days:
            marks += [day, f"{day[:4]}-{day[4:6]}-{day[6:]}", f"{day[6:]}.{day[4:6]}.{day[:4]}"]
        return [form.lower() for mark in marks for form in (mark.encode(), mark.encode("utf-16-le"))]

    def hashed(self) -> dict[bytes, str]:
        """The beginnings of every mark's hash without a key."""
        return {
            hashlib.new(name, mark.encode()).hexdigest()[:16].encode(): where
            for mark, where in self.where.items()
            for name in ("md5", "sha1", "sha256")
        }


def _vr(tag: int) -> str | None:
    from pydicom.datadict import dictionary_VR

    vr = dictionary_VR(tag)
    return None if " or " in vr or vr == "SQ" else vr


def written(room: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of all files under ``room``, those in archives and compressed ones too."""
    for path in sorted(room.rglob("*")):
        place = str(path.relative_to(room))
        yield f"the name {place}", place.encode(errors="surrogateescape")
        if path.is_file():
            yield from _contents(place, path.read_bytes(), path)


def _contents(place: str, data: bytes, path: Path) -> Iterator[tuple[str, bytes]]:
    yield place, data
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                yield f"{place}: {name}", name.encode() + archive.read(name)
    elif data[:2] == b"\x1f\x8b":
        yield f"{place}, inflated", gzip.decompress(data)
    elif data[:1] == b"\x78":
        try:
            yield f"{place}, inflated", zlib.decompress(data)
        except zlib.error:
            return  # begins like a zlib stream, and is none


def leaks(plants: Plants, texts: Iterable[tuple[str, bytes]]) -> list[str]:
    """What was found, and where."""
    forms, hashed = plants.forms(), plants.hashed()
    found = []
    for place, data in texts:
        lowered = data.lower()
        for form in forms:
            if (at := lowered.find(form)) >= 0:
                around = lowered[max(0, at - 40) : at + 60].replace(b"\0", b"")
                told = next((where for mark, where in plants.where.items() if mark.encode() in around), "a mark")
                found.append(f"{told} in {place}")
        for number in _HEXADECIMAL.findall(lowered):
            if (where := hashed.get(number[:16])) is not None:
                found.append(f"{where}, hashed without a key, in {place}")
    return found
