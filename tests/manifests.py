"""Manifests made by hand: small archives whose every file a test has written itself."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np

from dpeq.data.manifest import FileStamp, Manifest, Record
from dpeq.data.readers.dicom_series import assemble
from dpeq.data.readers.read import examine, read
from dpeq.data.readers.source import Source
from dpeq.resources import asset, load_module

__all__ = ["Entry", "nifti_archive", "phantom_archive", "stamp", "write_manifest"]


@dataclass(frozen=True)
class Entry:
    """One image of an archive."""

    patient: str
    label: int
    split: str
    source: Source
    mask: Source | None = None


def stamp(path: Path) -> FileStamp:
    status = path.stat()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return FileStamp(status.st_size, status.st_mtime_ns, digest, status.st_ctime_ns)


def write_manifest(
    root: Path, out: Path, entries: Sequence[Entry], *, classes: Sequence[str] = ("no", "yes"), modality: str = "MR"
) -> Path:
    """A manifest of ``entries``; images are called by their number, in 16 hexadecimal digits."""
    records = []
    for number, entry in enumerate(entries):
        shape = tuple(int(n) for n in read(root, entry.source).voxels.shape)
        records.append(
            Record(entry.patient, f"{number:016x}", entry.label, entry.split, shape, False, entry.source, entry.mask)
        )
    files = {name: stamp(root / name) for record in records for name in record.files}
    Manifest(root, tuple(classes), modality, tuple(records), files).write(out)
    return out


def nifti_archive(folder: Path, *, patients: int = 9, size: Sequence[int] = (14, 12, 10), masks: bool = False) -> Path:
    """A manifest of NIfTI volumes of 2 x 2 x 3 mm: patient p has ``1 + p % 2`` of them, labels and values differ."""
    rng = np.random.default_rng(0)
    root, entries = folder / "archive", []
    for patient in range(patients):
        for scan in range(1 + patient % 2):
            name = f"Doe_Jane_{patient}_{scan}.nii"
            voxels = rng.normal(100.0 * (1 + patient), 40, size).astype(np.float32)
            affine = np.diag([-2.0, 2.0, 3.0, 1.0])
            (root / "masks").mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(voxels, affine), root / name)
            mask = None
            if masks:
                marked = np.zeros(size, np.uint8)
                marked[3:7, 4:9, 2 : 5 + patient % 3] = 1
                nibabel.save(nibabel.Nifti1Image(marked, affine), root / "masks" / name)
                mask = Source("nifti", (f"masks/{name}",))
            split = ("train", "val", "test")[patient % 3]
            entries.append(Entry(f"p{patient}", (patient + scan) % 2, split, Source("nifti", (name,)), mask))
    return write_manifest(root, folder / "manifest.json", entries)


def phantom_archive(folder: Path, *, patients: int = 16, seed: int = 0) -> Path:
    """A manifest of the phantom hospital's DICOM series; a patient may have several."""
    generator = load_module(asset("datasets", "phantom_hospital.py"))
    generator.generate(folder, patients=patients, seed=seed)
    root, entries = folder / "archive", []
    rows = {row.patient_id: row for row in generator.roster(patients, seed)}
    for series in sorted({file.parent for file in root.rglob("*.dcm")}):
        files = [(str(file.relative_to(root)), examine(file)) for file in sorted(series.iterdir())]
        sources, refused = assemble(files)
        assert not refused
        row = rows[files[0][1].patient]
        entries += [Entry(row.patient_id, int(row.label), row.split, source) for source in sources]
    classes = ("healthy", "lesion")
    return write_manifest(root, folder / "manifest.json", entries, classes=classes, modality="CT")
