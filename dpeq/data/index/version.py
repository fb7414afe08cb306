"""The version of the code that reads files: what another one found out is not believed."""

from __future__ import annotations

import hashlib
import importlib.metadata
from pathlib import Path

__all__ = ["reader_version"]

_KEEPERS = ("check.py", "scan.py", "spelling.py", "verify.py", "version.py")
_PACKAGES = ("numpy", "pydicom", "pylibjpeg", "pylibjpeg-openjpeg", "pyjpegls", "python-gdcm", "nibabel", "pillow")


def reader_version() -> str:
    """Changes with the code that reads files and keeps what it found, and the versions of what it is built on."""
    digest = hashlib.sha256()
    data = Path(__file__).parent.parent
    keepers = [data / "attributes.py", data / "deid.py", *(data / "index" / name for name in _KEEPERS)]
    for path in (*sorted((data / "readers").glob("*.py")), *keepers):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    for package in _PACKAGES:
        try:
            digest.update(f"{package} {importlib.metadata.version(package)}".encode())
        except importlib.metadata.PackageNotFoundError:
            digest.update(f"{package} none".encode())
    return digest.hexdigest()
