"""Keyed pseudonyms: whoever has not the key can neither undo nor redo them."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
from pathlib import Path

from dpeq.data.private import create_private
from dpeq.errors import DataError

__all__ = ["Pseudonyms"]

_KEY_BYTES = 32
_LENGTH = 16  # hexadecimal digits: among a million patients, two share one with probability 3e-8


class Pseudonyms:
    """HMAC-SHA-256 under a key in a file, which is made on first use and readable by its owner alone.

    Raises:
        DataError: when the file is there and holds no key.
    """

    def __init__(self, path: Path) -> None:
        if path.is_file():
            text = path.read_text(encoding="ascii", errors="replace").strip()
            if not re.fullmatch(f"[0-9a-f]{{{2 * _KEY_BYTES}}}", text):
                # A short key, left by a crash or an editor, would give pseudonyms that can be guessed.
                raise DataError(
                    f"{path} is not a key of {_KEY_BYTES} bytes in hexadecimal; delete it to make a new one."
                )
            path.chmod(0o600)
            self._key = bytes.fromhex(text)
            return
        self._key = secrets.token_bytes(_KEY_BYTES)
        with os.fdopen(create_private(path), "w", encoding="ascii") as handle:
            handle.write(self._key.hex())

    def of(self, kind: str, *names: str) -> str:
        """Of a patient or an image; names of different kinds, or cut differently, have different pseudonyms."""
        text = json.dumps([kind, *names])  # in ASCII, because a name that a path gives need not be valid text
        return hmac.new(self._key, text.encode("ascii"), hashlib.sha256).hexdigest()[:_LENGTH]
