"""Preprocessed images on disk, so that an archive is decoded once: MONAI's PersistentDataset, kept private.

The images are patients'. So the folder is its owner's alone (0700), each file too (0600), whatever the umask, and a
name is a hash: of the files' contents (SHA-256, from the manifest), which image of a file it is, the settings, the
versions of every library that decodes or transforms, and the source code of ours that does. Whatever of these changes,
the image is made anew; nothing has to be cleared by hand.

PersistentDataset's own reading and writing is replaced, because in MONAI 1.6 it

- writes through a folder in ``$TMPDIR``, often another disk, where a killed process leaves images behind, and moves the
  file with the permissions that the umask gives it;
- passes on most of the errors that torch raises for a damaged file (one that is cut off, say), which would end the run,
  and does not notice changed voxels at all: torch does not check the sums in its files;
- wraps the error of a transform into another whose text is the transform's whole description;
- copies each item deeply, and says nothing when a folder cannot be written.

What is read here are tensors alone, ``weights_only=True``: a file in the cache cannot run code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import torch
from monai.data import PersistentDataset
from torch import Tensor

from dpeq.data.manifest import FileStamp
from dpeq.data.readers.source import Source
from dpeq.data.settings import ImageSettings
from dpeq.errors import ConfigError
from dpeq.resources import cache_dir

__all__ = ["ImageCache", "Item", "content_key", "image_folder", "prune"]

_log = logging.getLogger(__name__)
_LIBRARIES = (
    "torch", "monai", "numpy", "scipy", "nibabel", "pillow", "pydicom", "pylibjpeg", "pylibjpeg-openjpeg", "pyjpegls",
    "python-gdcm",
)  # fmt: skip
_CODE = ("transforms.py", "extra.py", "settings.py", "readers/*.py")
_ABANDONED = 3600.0  # seconds after which an unfinished file belongs to no living process
_DAMAGED = (RuntimeError, EOFError, UnpicklingError, ValueError, KeyError, TypeError, AttributeError)


class Item(Protocol):
    """What an image is made from; ``key`` names its file, None where it is not kept."""

    @property
    def key(self) -> str | None: ...


class ImageCache(PersistentDataset):  # type: ignore[misc]  # MONAI has no types
    """Makes the image of each item, or takes it from ``folder``.

    Args:
        make: from an item to a tensor.
        folder: from :func:`image_folder`; None keeps nothing.
    """

    def __init__(self, items: Sequence[Item], make: Callable[[Any], Tensor], folder: Path | None) -> None:
        super().__init__(items, transform=[], cache_dir=folder, weights_only=True, track_meta=False)
        self._make = make
        self._writes = folder is not None

    def _cachecheck(self, item: Item) -> Tensor:
        if self.cache_dir is None or item.key is None:
            return self._make(item)
        path = self.cache_dir / f"{item.key}.pt"
        kept = self._read(path)
        if kept is not None:
            return kept
        made = self._make(item)
        if self._writes:
            self._write(path, made)
        return made

    def _read(self, path: Path) -> Tensor | None:
        try:
            with path.open("rb") as stream:
                kept = torch.load(stream, weights_only=self.weights_only)
        except FileNotFoundError:
            return None
        except _DAMAGED:
            kept = None
        except OSError as error:
            _log.warning("A kept image cannot be read (%s); it is made anew.", error.strerror)
            return None
        if not isinstance(kept, dict) or not isinstance(kept.get("images"), Tensor) or kept.get("sum") != _sum(kept):
            _log.warning("A kept image is damaged; it is made anew.")
            return None
        with contextlib.suppress(OSError):  # of a folder that may only be read
            os.utime(path)  # used now, for prune
        return kept["images"]  # type: ignore[no-any-return]

    def _write(self, path: Path, made: Tensor) -> None:
        """Beside its place, then renamed: a file is there whole or not at all, and its owner's from the beginning."""
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
                torch.save({"images": made, "sum": _sum({"images": made})}, stream)
            unfinished.replace(path)
        except OSError as error:
            self._writes = False
            _log.warning("Preprocessed images cannot be kept (%s); they are made anew every time.", error.strerror)
        finally:
            unfinished.unlink(missing_ok=True)


def content_key(
    source: Source, mask: Source | None, files: dict[str, FileStamp], settings: ImageSettings, channels: int
) -> str:
    """A hash of all that decides what an image becomes, in hexadecimal; paths do not enter."""
    parts = [
        None if part is None else [part.format, part.part, [files[name].sha256 for name in part.files]]
        for part in (source, mask)
    ]
    body = [parts, settings.model_dump(mode="json"), channels, _versions()]
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def image_folder() -> Path:
    """``$DPEQ_CACHE/images``, made and kept for its owner alone.

    Raises:
        ConfigError: when it is another user's.
    """
    folder = cache_dir() / "images"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not folder.is_dir() or folder.is_symlink() or status.st_uid != os.getuid():
        raise ConfigError(
            f"{folder} is not a folder of your own, and images of patients would be kept there; set DPEQ_CACHE to "
            "one, or data.cache to false."
        )
    if status.st_mode & 0o077:
        folder.chmod(0o700)
    return folder


def prune(folder: Path, most_bytes: float) -> int:
    """Deletes what was used longest ago until at most ``most_bytes`` are left; returns how many images went."""
    now, found = time.time(), []
    for entry in _entries(folder):
        with contextlib.suppress(FileNotFoundError):  # another process prunes, too
            status = entry.stat(follow_symlinks=False)
            if entry.name.endswith(".pt"):
                found.append((status.st_mtime, status.st_size, entry.path))
            elif entry.name.endswith(".part") and now - status.st_mtime > _ABANDONED:
                Path(entry.path).unlink(missing_ok=True)
    total, gone = sum(size for _, size, _ in found), 0
    for _, size, path in sorted(found):
        if total <= most_bytes:
            break
        Path(path).unlink(missing_ok=True)
        total, gone = total - size, gone + 1
    return gone


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from entries


def _sum(kept: dict[str, Any]) -> int:
    return zlib.crc32(kept["images"].contiguous().numpy().view("uint8").data)


@cache
def _versions() -> dict[str, str]:
    """Of the libraries, and of our own code as a hash, so that nobody has to remember to count a number up."""
    found = {name: _version(name) for name in _LIBRARIES}
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for pattern in _CODE:
        for path in sorted(here.glob(pattern)):
            digest.update(path.read_bytes())
    return {**found, "dpeq.data": digest.hexdigest()}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"  # a decoder that is not there decides, too
