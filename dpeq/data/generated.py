"""Generated data sets: made once into the user's cache, then indexed like any folder of a hospital."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dpeq.data.cards import Card
from dpeq.data.index import index_folder
from dpeq.data.manifest import Manifest
from dpeq.errors import ConfigError, DataError
from dpeq.resources import asset, cache_dir, load_module

__all__ = ["ensure_generated"]

Progress = Callable[[int, int], None]


def ensure_generated(card: Card, progress: Progress | None = None) -> Path:
    """The manifest of a card's generated archive, made on first use; ``progress`` counts patients.

    The folder is named by the generator's options and its code, so a change of either makes another archive; one that
    is there but no longer reads back is made anew. Of several processes that want it at once, one makes it and the
    others wait.
    """
    options = card.generator_options
    if card.generator is None or options is None:
        raise ConfigError(f"{card.title} cannot be generated; index its folder and set data.manifest.")
    source = asset("datasets", card.generator)
    version = hashlib.sha256(source.read_bytes()).hexdigest()[:8]
    folder = cache_dir("data") / f"{card.name}-{options.patients}-{options.seed}-{version}"
    with _alone(folder.with_name(f".{folder.name}.lock")):
        return _ensure(card, folder, source, progress)


def _ensure(card: Card, folder: Path, source: Path, progress: Progress | None) -> Path:
    options = card.generator_options
    assert options is not None
    manifest = folder / "index" / "manifest.json"
    if manifest.is_file():
        try:
            Manifest.read(manifest)
            return manifest
        except DataError:  # of an older version, or damaged; the archive may be whole all the same
            shutil.rmtree(manifest.parent)
    if not (folder / "archive").is_dir():
        generator = load_module(source)
        generator.generate(folder, patients=options.patients, seed=options.seed, progress=progress)
    index_folder(folder / "archive", folder / "labels.csv", manifest, classes=card.classes)
    return manifest


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Waits until no other process is within; the system opens the lock of a process that was killed."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
