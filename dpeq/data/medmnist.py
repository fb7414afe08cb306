"""MedMNIST files: found, or downloaded from the official address, checked and cached."""

from __future__ import annotations

import hashlib
import http.client
import os
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from dpeq.data.cards import Card
from dpeq.data.images import ImageSet
from dpeq.errors import DataError
from dpeq.resources import cache_dir

__all__ = ["find_or_download", "load_medmnist"]

Progress = Callable[[int, int], None]
_CHUNK = 1 << 16


def find_or_download(card: Card, root: Path | None, progress: Progress | None = None) -> Path:
    """The data file: under ``root``, ``$DPEQ_DATA``, then the user's cache; else downloaded to the cache.

    Raises:
        DataError: when ``root`` is given and lacks it, or without a network, saying where to put the file; when a file
            does not have the card's md5.
    """
    name = str(card.file)
    for folder in _folders(root):
        for path in (folder / name, folder / card.name / name):
            if path.is_file():
                _check(path, card)
                return path
    if root is not None:
        raise DataError(f"There is no {name} in {root}; put the file there or leave out --data-root.")
    return _download(card, cache_dir("data") / name, progress)


def load_medmnist(card: Card, path: Path, unit: str) -> dict[str, ImageSet]:
    """The three splits of an npz file, pixels mapped from 0..255 to -1..1 by fixed constants.

    Raises:
        DataError: when the file is truncated, lacks an array, or cannot give the asked unit.
    """
    if unit != "image":
        raise DataError(f"{card.title} names no patients, so a patient cannot be its unit; set data.unit to image.")
    splits = {}
    try:
        # numpy leaks the file of a broken archive when it opens the path itself.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = {key: archive[key] for s in ("train", "val", "test") for key in (f"{s}_images", f"{s}_labels")}
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} is no whole MedMNIST file ({reason}); delete it and download it again.") from error
    for split in ("train", "val", "test"):
        pixels, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        if pixels.dtype != np.uint8 or pixels.shape[1:] != card.image_size:
            raise DataError(
                f"{path} holds {pixels.dtype} {split} images of shape {pixels.shape[1:]}, not grey uint8 of "
                f"{card.image_size}; use the file that the card describes."
            )
        if not np.issubdtype(labels.dtype, np.integer) or labels.size != len(pixels):
            raise DataError(
                f"{path} holds {labels.dtype} {split} labels of shape {labels.shape}; give one whole number per image."
            )
        images = torch.from_numpy(pixels).unsqueeze(1).float() / 255
        n = len(images)
        targets = torch.from_numpy(labels.astype(np.int64)).flatten()
        splits[split] = ImageSet((images - 0.5) / 0.5, targets, torch.arange(n), n, card.classes, split, unit)
    return splits


def _folders(root: Path | None) -> list[Path]:
    if root is not None:
        return [root.expanduser()]
    env = os.environ.get("DPEQ_DATA")
    return ([Path(env).expanduser()] if env else []) + [cache_dir("data")]


def _check(path: Path, card: Card) -> None:
    digest = _md5(path)
    if digest != card.md5:
        raise DataError(
            f"{path} is not the file that its card describes (md5 {digest}, not {card.md5}); delete it to download it "
            "again."
        )


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def _download(card: Card, target: Path, progress: Progress | None) -> Path:
    # A name of its own and a rename at the end: two processes, or a cut connection, never leave half a file behind.
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=target.stem, suffix=".part")
    partial = Path(name)
    mend = f"put {card.file} in {target.parent}, or name its folder with --data-root"
    try:
        with os.fdopen(handle, "wb") as out, urllib.request.urlopen(str(card.url), timeout=30) as response:
            total = int(response.headers.get("Content-Length") or 0)
            while block := response.read(_CHUNK):
                out.write(block)
                if progress is not None:
                    progress(out.tell(), total)
        if (digest := _md5(partial)) != card.md5:
            raise DataError(f"{card.url} gave a broken file (md5 {digest}, not {card.md5}); try again, or {mend}.")
        partial.chmod(0o644)  # mkstemp gives 0600; the cache may be shared
        partial.replace(target)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it is the answer of the server too, with an open connection
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise DataError(f"{card.title} could not be downloaded from {card.url} ({reason}); {mend}.") from error
    finally:
        partial.unlink(missing_ok=True)
    return target
