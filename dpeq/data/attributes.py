"""Attributes that groups of patients are told apart by: sex, age band, site and device, in words that name nobody.

What a header says is mapped to a fixed vocabulary, or it is unknown, the empty text; nothing of a header passes as it
stands. Bands of ten years, and one band from 90 on, follow the Safe Harbor of HIPAA (45 CFR 164.514(b)(2)) in part.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable

__all__ = ["ATTRIBUTES", "DEVICES", "OTHER", "PLAIN", "TITLES", "age_band", "device_of", "plain", "sex_of", "site_key"]

TITLES = {"sex": "Sex", "age": "Age in years", "site": "Site", "device": "Device, by manufacturer"}
"""Attributes, in the order in which they are shown, and what they are called."""
ATTRIBUTES = tuple(TITLES)
OTHER = "other"

_SEXES = {"f": "female", "female": "female", "m": "male", "male": "male", "o": OTHER, "other": OTHER}
_PER_YEAR = {"D": 365.25, "W": 365.25 / 7, "M": 12.0, "Y": 1.0}
_OLDEST = 120  # years; an age beyond is a slip or a code for "unknown", such as 999Y
_BANDS = (*(f"{years}-{years + 9}" for years in range(0, 90, 10)), "90+")
_LONGEST = 40  # characters of a value that is shown as written

DEVICES = {
    "Agfa": "agfa",
    "Bruker": "bruker",
    "Canon (Toshiba)": "canon toshiba",
    "Carestream (Kodak)": "carestream kodak",
    "Elekta": "elekta",
    "Esaote": "esaote",
    "Fujifilm": "fuji fujifilm",
    "GE": "ge",
    "Hitachi": "hitachi",
    "Hologic": "hologic lorad",
    "Konica Minolta": "konica minolta",
    "Mindray": "mindray",
    "Neusoft": "neusoft",
    "Philips": "philips",
    "Samsung": "medison samsung",
    "Shimadzu": "shimadzu",
    "Siemens": "acuson siemens",
    "United Imaging": "uih united",
    "Varex": "varex",
    "Varian": "varian",
}
"""Manufacturers that may be named, with the words of a header that mean each, of which "united" needs "imaging"."""
_WORDS = {word: name for name, words in DEVICES.items() for word in words.split()}


def sex_of(text: str) -> str:
    """ "female", "male" or "other" of DICOM's F, M and O or of these words; "" for anything else."""
    return _SEXES.get(text.strip().casefold(), "")


def age_band(text: str, *, years: bool = False) -> str:
    """The band of ten years, "0-9" to "80-89" and "90+", of an age string of DICOM (PS3.5 6.2: 045Y, 018M, 003W, 010D).

    With ``years`` a plain number of years, and a band itself, are understood too. "" for anything else, and for ages
    beyond 120 years.
    """
    text = text.strip().upper()
    if years and text in _BANDS:
        return text
    if found := re.fullmatch(r"([0-9]{1,3})([DWMY])", text):
        age = int(found[1]) / _PER_YEAR[found[2]]
    elif years and re.fullmatch(r"[0-9]{1,3}(\.[0-9]+)?", text):
        age = float(text)
    else:
        return ""
    return _BANDS[min(math.floor(age) // 10, len(_BANDS) - 1)] if age <= _OLDEST else ""


def device_of(text: str) -> str:
    """The manufacturer by the fixed list, "other" for one that is not on it, "" for none."""
    words = re.findall(r"[a-z]+", text.casefold())
    for word in words:
        if word in _WORDS and (word != "united" or "imaging" in words):
            return _WORDS[word]
    return OTHER if text.strip() else ""


def site_key(text: str) -> str:
    """One spelling of the name of an institution, to tell sites apart by; it is private, and never shown."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def plain(text: str) -> str:
    """A value that is shown as written, on one line and composed; raises ValueError when it is free text by its length.

    What cannot be printed is unknown, "".
    """
    text = " ".join(unicodedata.normalize("NFC", text).split())
    if len(text) > _LONGEST:
        raise ValueError(f"longer than {_LONGEST} characters")
    return text if text.isprintable() else ""


PLAIN: dict[str, Callable[[str], str]] = {
    "sex": sex_of,
    "age": lambda text: age_band(text, years=True),
    "site": plain,
    "device": plain,
}
"""How a cell of a table is read, by attribute."""
