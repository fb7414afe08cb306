"""One spelling of every id: text that looks the same may be stored in several ways (Unicode Standard Annex 15)."""

from __future__ import annotations

import unicodedata
from dataclasses import replace

from dpeq.data.readers.source import Header, Member

__all__ = ["composed", "with_composed_ids"]


def composed(text: str) -> str:
    """In normalization form C: a letter and its accent are one character. Mac OS stores names of files the other way.

    For comparing and hashing ids, and paths where a layout or a table is matched; a file is opened by the path that it
    has. Bytes that are not valid text (lone surrogates) stay as they are.
    """
    return unicodedata.normalize("NFC", text)


def with_composed_ids(header: Header) -> Header:
    return replace(
        header,
        patient=composed(header.patient),
        study=composed(header.study),
        series=composed(header.series),
        members=tuple(Member(composed(member.patient), composed(member.image)) for member in header.members),
    )
