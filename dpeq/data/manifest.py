"""The manifest: which image belongs to which patient, with which label, in which split.

The public part (``manifest.json``) carries pseudonyms only; the list of files, whose names may identify, lies beside it
in ``manifest.private.json``, readable by its owner alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dpeq.errors import DataError

__all__ = ["SPLITS", "Manifest", "Record", "private_path", "write_private"]

SPLITS = ("train", "val", "test")
_VERSION = 1


@dataclass(frozen=True)
class Record:
    """One image or volume: pseudonym of its patient, an id of its own, a class index, a split, and its files."""

    patient: str
    image: str
    label: int
    split: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """An indexed data set; ``records`` name files relative to ``root``."""

    root: Path
    classes: tuple[str, ...]
    modality: str
    records: tuple[Record, ...]

    def check(self) -> None:
        """Raises :class:`DataError`, in one sentence, for a manifest that no run may rest on."""
        splits: dict[str, set[str]] = defaultdict(set)
        for record in self.records:
            splits[record.patient].add(record.split)
            if record.split not in SPLITS:
                raise DataError(f"Image {record.image} is in a split '{record.split}'; use one of {', '.join(SPLITS)}.")
            if not 0 <= record.label < len(self.classes):
                raise DataError(f"Image {record.image} has label {record.label}; use 0 to {len(self.classes) - 1}.")
            if not record.files:
                raise DataError(f"Image {record.image} has no files; run 'dpeq index' again.")
        if len({record.image for record in self.records}) < len(self.records):
            raise DataError("The manifest names an image twice; run 'dpeq index' again.")
        for patient, names in splits.items():
            if len(names) > 1:
                raise DataError(
                    f"Patient {patient} is in the splits {' and '.join(sorted(names))}; give it one of them."
                )
        for split in SPLITS:
            if not any(record.split == split for record in self.records):
                raise DataError(f"The manifest has no {split} images; put some patients into that split.")

    def counts(self) -> dict[str, dict[str, int]]:
        """Images and patients of each split."""
        return {
            split: {
                "images": sum(r.split == split for r in self.records),
                "patients": len({r.patient for r in self.records if r.split == split}),
            }
            for split in SPLITS
        }

    def write(self, path: Path) -> None:
        """Writes ``path`` and, beside it, the private list of files (mode 0600)."""
        public = [{k: v for k, v in asdict(record).items() if k != "files"} for record in self.records]
        body = {"version": _VERSION, "modality": self.modality, "classes": list(self.classes), "records": public}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        files = {record.image: list(record.files) for record in self.records}
        write_private(private_path(path), {"manifest_sha256": digest, "root": str(self.root.resolve()), "files": files})

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Reads and checks a manifest; raises :class:`DataError` when either part is missing, broken or mismatched."""
        if not path.is_file():
            raise DataError(f"There is no manifest {path}; make one with 'dpeq index FOLDER --out {path}'.")
        public, private = _load(path), _load(private_path(path))
        if private.get("manifest_sha256") != hashlib.sha256(path.read_bytes()).hexdigest():
            raise DataError(f"{path} was changed after it was indexed; run 'dpeq index' again.")
        try:
            records = tuple(
                Record(
                    str(r["patient"]),
                    str(r["image"]),
                    int(r["label"]),
                    str(r["split"]),
                    tuple(private["files"][r["image"]]),
                )
                for r in public["records"]
            )
            manifest = cls(Path(private["root"]), tuple(public["classes"]), str(public["modality"]), records)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} lacks or garbles the entry {error}; run 'dpeq index' again.") from error
        manifest.check()
        return manifest

    def split(self, name: str) -> tuple[Record, ...]:
        return tuple(record for record in self.records if record.split == name)


def write_private(path: Path, body: Any) -> None:
    """JSON that its owner alone can read, from the moment it exists."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as handle:
        json.dump(body, handle)


def private_path(path: Path) -> Path:
    """Where the list of files of the manifest ``path`` lies."""
    return path.with_name(f"{path.stem}.private.json")


def _load(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; run 'dpeq index' again.") from error
    except (ValueError, OSError) as error:
        raise DataError(f"{path} cannot be read ({error}); run 'dpeq index' again.") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} holds no manifest; run 'dpeq index' again.")
    return value
