"""Generated data sets: made once into the user's cache, then indexed like any folder of a hospital."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
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
    is there but no longer reads back is made anew.
    """
    options = card.generator_options
    if card.generator is None or options is None:
        raise ConfigError(f"{card.title} cannot be generated; index its folder and set data.manifest.")
    source = asset("datasets", card.generator)
    version = hashlib.sha256(source.read_bytes()).hexdigest()[:8]
    folder = cache_dir("data") / f"{card.name}-{options.patients}-{options.seed}-{version}"
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
