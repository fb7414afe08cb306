"""The manifest: which image belongs to which patient, with which label, in which split.

The public part (``manifest.json``) carries pseudonyms only; where the images lie, whose paths may identify, is in
``manifest.private.json`` beside it, readable by its owner alone.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpeq.data.attributes import ATTRIBUTES
from dpeq.data.private import private_path, replacing, write_private_json
from dpeq.data.readers.source import Source
from dpeq.errors import DataError

__all__ = ["SPLITS", "FileStamp", "Manifest", "Record", "private_path"]

SPLITS = ("train", "val", "test")
_VERSION = 4
_PUBLIC = ("patient", "image", "label", "split", "burned_in")


@dataclass(frozen=True)
class FileStamp:
    """What a file was when it was indexed.

    Attributes:
        size: bytes.
        mtime_ns: time of change, which anyone may set.
        sha256: in hexadecimal.
        ctime_ns: time of change of the file or of what is said of it, which only the system sets: a file that was moved
            to the place of another has a new one. 0 where it is not known, which is the time of no file.
    """

    size: int
    mtime_ns: int
    sha256: str
    ctime_ns: int = 0


@dataclass(frozen=True)
class Record:
    """One image or volume.

    Attributes:
        patient, image: keyed pseudonyms.
        label: index of the class.
        shape: ``(channels, x, y, z)`` of the voxels.
        burned_in: whether the header says that text is burned into the pixels.
        source: where the voxels lie, relative to the root.
        mask: where those of its mask lie, on the same grid.
        groups: value by attribute of :data:`dpeq.data.attributes.ATTRIBUTES`, of those that are known, in words that
            name nobody. Images that are trained on have none: nothing asks for theirs.
    """

    patient: str
    image: str
    label: int
    split: str
    shape: tuple[int, int, int, int]
    burned_in: bool
    source: Source
    mask: Source | None = None
    groups: tuple[tuple[str, str], ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """Files of the image, then those of its mask, relative to the root."""
        return self.source.files + (self.mask.files if self.mask is not None else ())


@dataclass(frozen=True)
class Manifest:
    """An indexed data set. ``files`` has the stamp of every file that a record names, relative to ``root``."""

    root: Path
    classes: tuple[str, ...]
    modality: str
    records: tuple[Record, ...]
    files: dict[str, FileStamp] = field(default_factory=dict)

    def check(self) -> None:
        """Raises :class:`DataError`, in one sentence, for a manifest that no run may rest on."""
        splits: dict[str, set[str]] = defaultdict(set)
        for record in self.records:
            splits[record.patient].add(record.split)
            if record.split not in SPLITS:
                raise DataError(f"Image {record.image} is in a split '{record.split}'; use one of {', '.join(SPLITS)}.")
            if not 0 <= record.label < len(self.classes):
                raise DataError(f"Image {record.image} has label {record.label}; use 0 to {len(self.classes) - 1}.")
            if not record.source.files or (record.mask is not None and not record.mask.files):
                raise DataError(f"Image {record.image} has no files; run 'dpeq index' again.")
            if any(file not in self.files for file in record.files):
                raise DataError(f"Image {record.image} has files that were never read; run 'dpeq index' again.")
            if record.groups and (record.split == "train" or not set(dict(record.groups)) <= set(ATTRIBUTES)):
                raise DataError(f"Image {record.image} is in groups that it must not be in; run 'dpeq index' again.")
            if len(record.shape) != 4 or min(record.shape) < 1:
                raise DataError(f"Image {record.image} has the shape {record.shape}; run 'dpeq index' again.")
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
        """Writes ``path`` and, beside it, the private part (mode 0600); each appears whole or not at all."""
        public = [
            {name: getattr(r, name) for name in _PUBLIC} | {"shape": list(r.shape), "groups": dict(r.groups)}
            for r in self.records
        ]
        body = {"version": _VERSION, "modality": self.modality, "classes": list(self.classes), "records": public}
        text = json.dumps(body, indent=1) + "\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, private=False) as stream:
            stream.write(text)
        private = {
            "version": _VERSION,
            "manifest_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "root": str(self.root.resolve()),
            "sources": {r.image: r.source.to_dict() for r in self.records},
            "masks": {r.image: r.mask.to_dict() for r in self.records if r.mask is not None},
            "files": {name: [s.size, s.mtime_ns, s.sha256, s.ctime_ns] for name, s in self.files.items()},
        }
        write_private_json(private_path(path), private)

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Reads and checks a manifest; raises :class:`DataError` when either part is missing, broken or mismatched."""
        if not path.is_file():
            raise DataError(f"There is no manifest {path}; make one with 'dpeq index FOLDER --out {path}'.")
        public, private = _load(path), _load(private_path(path))
        for part, name in ((public, path), (private, private_path(path))):
            if part.get("version", 1) != _VERSION:
                raise DataError(f"{name} was written by another version of dpeq; run 'dpeq index' again.")
        if private.get("manifest_sha256") != hashlib.sha256(path.read_bytes()).hexdigest():
            raise DataError(f"{path} was changed after it was indexed; run 'dpeq index' again.")
        try:
            masks = {image: Source.from_dict(values) for image, values in private["masks"].items()}
            records = tuple(
                Record(
                    patient=str(r["patient"]),
                    image=str(r["image"]),
                    label=int(r["label"]),
                    split=str(r["split"]),
                    shape=tuple(map(int, r["shape"])),  # type: ignore[arg-type]  # of four numbers: check() sees to it
                    burned_in=bool(r["burned_in"]),
                    source=Source.from_dict(private["sources"][r["image"]]),
                    mask=masks.get(r["image"]),
                    groups=tuple((str(name), str(value)) for name, value in r["groups"].items()),
                )
                for r in public["records"]
            )
            stamps = private["files"].items()
            files = {name: FileStamp(int(s), int(m), str(digest), int(c)) for name, (s, m, digest, c) in stamps}
            manifest = cls(Path(private["root"]), tuple(public["classes"]), str(public["modality"]), records, files)
        except (AttributeError, KeyError, TypeError, ValueError):
            # No word of what stands there: it may be a path.
            raise DataError(f"{path} or its private part lacks or garbles an entry; run 'dpeq index' again.") from None
        manifest.check()
        return manifest

    def split(self, name: str) -> tuple[Record, ...]:
        return tuple(record for record in self.records if record.split == name)


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
