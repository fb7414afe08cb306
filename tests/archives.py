"""Small archives of other formats than DICOM, and what indexing says of them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

from dpeq.data.index.check import Check, check
from dpeq.data.index.workers import K
from dpeq.data.readers.read import examine, read
from dpeq.data.readers.source import Header, Refused, Source

__all__ = ["Inline", "rejects", "table", "unmatched", "write_nifti", "write_png", "write_table"]


def write_nifti(
    path: Path, seed: int = 0, shape: tuple[int, ...] = (4, 5, 6), affine: np.ndarray | None = None
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).integers(0, 99, shape).astype(np.int16)
    nibabel.Nifti1Image(voxels, np.diag([2.0, 2, 3, 1]) if affine is None else affine).to_filename(path)
    return path


def write_png(path: Path, seed: int = 0, *, colour: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (5, 6, 3) if colour else (5, 6)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_table(path: Path, columns: str, rows: Iterable[str]) -> Path:
    path.write_text("\n".join([columns, *rows]) + "\n", encoding="utf-8")
    return path


def table(path: Path) -> list[tuple[str, ...]]:
    with path.open(newline="", encoding="utf-8") as handle:
        return [tuple(row) for row in csv.reader(handle)][1:]


def rejects(manifest: Path) -> dict[str, str]:
    """Reasons by path."""
    return {path: reason for path, reason, _ in table(manifest.with_name(f"{manifest.stem}.rejects.csv"))}


def unmatched(manifest: Path) -> list[tuple[str, ...]]:
    return table(manifest.with_name(f"{manifest.stem}.unmatched.csv"))


class Inline:
    """Stands in for the worker processes where a test makes many small indexes of harmless files."""

    def __init__(self, root: Path, count: int) -> None:
        self._root = root

    def __enter__(self) -> Inline:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def examine(self, batches: Iterable[Sequence[str]]) -> Iterator[tuple[str, Header | Refused]]:
        for path in (path for batch in batches for path in batch):
            yield path, _or_refused(lambda path=path: examine(self._root / path))

    def check(self, batches: Iterable[Sequence[tuple[K, Sequence[Source]]]]) -> Iterator[tuple[K, Check | Refused]]:
        for key, sources in (pair for batch in batches for pair in batch):
            yield key, _or_refused(lambda sources=sources: check(read, self._root, sources))


def _or_refused(call: Callable[[], object]) -> object:
    try:
        return call()
    except Refused as refused:
        return refused
