"""Whatever lies in a folder: files seen are files in accepted images and files rejected, by name."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from archives import Inline, rejects, write_nifti, write_png, write_slice, write_table
from hypothesis import given, settings
from hypothesis import strategies as st

from dpeq.data.index import build, index_folder
from dpeq.data.manifest import Manifest

KINDS = (
    "slice",
    "slices",
    "nifti",
    "4d",
    "mask",
    "png",
    "npz",
    "text",
    "cut",
    "link",
    "folder link",
    "pipe",
    "dicomdir",
)
THING = st.tuples(
    st.sampled_from(KINDS), st.sampled_from(["p0", "p1", "p2", "p3", "stranger"]), st.integers(0, 3), st.booleans()
)


def put(root: Path, number: int, kind: str, patient: str, seed: int, deep: bool) -> None:
    folder = root / patient / ("deeper" if deep else "")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{number}"
    if kind in ("slice", "slices", "cut"):
        for index in range(1 if kind == "slice" else 3):
            header = {
                "PatientID": patient,
                "SeriesInstanceUID": f"2.25.{seed}",  # may clash with another patient's, or be the same one again
                "ImagePositionPatient": [0, 0, 3.0 * index],
                "SOPInstanceUID": f"2.25.{number}.{index}",
            }
            pixels = np.random.default_rng([number, index]).integers(0, 99, (5, 6)).astype("<u2")
            write_slice(folder / f"{number}-{index}", pixels, **header)
        if kind == "cut":
            whole = (folder / f"{number}-1").read_bytes()
            (folder / f"{number}-1").write_bytes(whole[: len(whole) - 7 * (seed + 1)])
    elif kind in ("nifti", "4d", "mask"):
        name = f"{number}.mask.nii" if kind == "mask" else f"{number}.nii"
        write_nifti(folder / name, number, (4, 5, 6, 2) if kind == "4d" else (4, 5, 6))
    elif kind == "png":
        write_png(path, number, colour=deep)
    elif kind == "npz":
        ids = np.array([patient, "p1", "", "nobody"][: seed + 1])
        with path.open("wb") as stream:
            np.savez(stream, images=np.random.default_rng(number).random((len(ids), 4, 5)), patient_id=ids)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind.endswith("link"):
        path.symlink_to(root / patient if kind == "folder link" else root / "p0" / "0.nii")
    else:
        path.write_bytes(b"DICOMDIR" if kind == "dicomdir" else b"hello\n")


@pytest.fixture(scope="module")
def inline():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "Workers", Inline)
        yield


@settings(max_examples=40, deadline=None)
@given(st.lists(THING, max_size=12), st.booleans(), st.booleans(), st.booleans())
def test_every_file_is_accepted_or_rejected(inline, things, by_layout, masks, flat):
    with tempfile.TemporaryDirectory() as place:
        root, out = Path(place, "archive"), Path(place, "i", "m.json")
        # Three patients who are always usable, so that a manifest can be written.
        for n, _ in enumerate(("train", "val", "test")):
            if flat:
                write_png(root / f"q{n}" / "x.png", 100 + n)
            else:
                write_nifti(root / f"q{n}" / "x.nii", 100 + n)
        for number, thing in enumerate(things):
            put(root, number, *thing)
        rows = [f"q{n},{n % 2},{split}" for n, split in enumerate(("train", "val", "test"))]
        rows += ["p0,0,train", "p1,1,val", "p2,,", "p3,what,"]
        labels = write_table(root / "l.csv", "patient_id,label,split", rows)
        options = {
            "classes": ("a", "b"),
            "modality": "CT",
            "channels": 1,
            "layout": "{patient}/**" if by_layout else "{patient}/**/*",
            "masks": "{patient}/*.mask.nii" if masks else None,
            "flat": flat,
        }
        summary = index_folder(root, labels, out, **options)
        there = set()
        for where, folders, names in os.walk(root):
            links = [name for name in folders if Path(where, name).is_symlink()]
            there |= {str(Path(where, name).relative_to(root)) for name in [*names, *links]}
        there.remove("l.csv")
        rejected = rejects(out)
        accepted = {file for record in Manifest.read(out).records for file in record.files}
        assert accepted | set(rejected) == there
        assert not accepted & set(rejected)
        assert (summary.files_seen, summary.files_accepted) == (len(there), len(accepted))
        assert summary.files_rejected == len(rejected)
        assert set(summary.manifest.files) == accepted
        assert index_folder(root, labels, out, **options) == summary
