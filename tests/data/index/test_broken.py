"""An archive of everything that can be broken: each file is in the manifest, or in the rejects with its reason."""

from __future__ import annotations

import csv
import ctypes
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pydicom.data
import pytest
from broken import ACCEPTED, CASES
from broken.write import begin, series

from dpeq.data.index import IndexSummary, index_folder
from dpeq.data.private import rejects_path

REPOSITORY = Path(__file__).resolve().parents[3]
PATIENTS = ("P1", "P2", "P3")
LABELS = "patient_id,label,split\nP1,0,train\nP2,1,val\nP3,1,test\n"
PYDICOM = Path(pydicom.data.__file__).parent / "test_files"


def shown(path: Path | str) -> str:
    """As lists show a path, which need not be valid text."""
    return os.fsencode(path).decode("utf-8", "surrogateescape").encode("utf-8", "backslashreplace").decode("utf-8")


def entries(root: Path) -> set[str]:
    """Everything in the tree that is no folder, links to folders among it; counted by another walk than dpeq's."""
    found = set()
    for where, folders, files in os.walk(root):
        found |= {shown(os.path.relpath(Path(where, name), root)) for name in files}
        found |= {shown(os.path.relpath(path, root)) for f in folders if (path := Path(where, f)).is_symlink()}
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """All kinds, a folder each, as one patient's, beside whole series of three patients and pydicom's odd files."""
    place = tmp_path_factory.mktemp("broken")
    for name, case in CASES.items():
        (place / "archive" / "P1" / name).mkdir(parents=True)
        case.make(place / "archive" / "P1" / name)
    for patient in PATIENTS:
        for slices in (5, 1):
            begin(f"whole {patient} {slices}")
            series(place / "archive" / patient / f"whole {slices}", slices, PatientID=patient)
    (place / "archive" / "pydicom").mkdir()
    for path in PYDICOM.rglob("*"):
        if path.is_file():
            (place / "archive" / "pydicom" / path.relative_to(PYDICOM).as_posix().replace("/", "_")).symlink_to(path)
    (place / "labels.csv").write_text(LABELS, encoding="utf-8")
    return place


@dataclass(frozen=True)
class Run:
    """What indexing counted, and what became of each file by the manifest and the list of rejects."""

    summary: IndexSummary
    fates: dict[str, str]


@pytest.fixture(scope="module")
def runs(place) -> dict[str, Run]:
    """An archive gives volumes or flat images, and the voxels of those alone are read; by the reason of the others."""
    return {
        "a single slice among volumes": run(place, "volumes", flat=False),
        "a volume among single slices": run(place, "flat", flat=True),
    }


def run(place: Path, name: str, flat: bool) -> Run:
    out = place / name / "manifest.json"
    labels, layout = place / "labels.csv", "{patient}/**/*"
    summary = index_folder(
        place / "archive", labels, out, classes=("0", "1"), modality="MR", channels=1, layout=layout, flat=flat
    )
    with rejects_path(out).open(newline="", encoding="utf-8") as handle:
        fates = {path: reason for path, reason, _ in list(csv.reader(handle))[1:]}
    accepted = {shown(file) for record in summary.manifest.records for file in record.files}
    assert not accepted & set(fates)
    return Run(summary, {**fates, **dict.fromkeys(accepted, ACCEPTED)})


@pytest.mark.parametrize("name", sorted(CASES))
def test_each_gets_its_reason(name, place, runs):
    files = entries(place / "archive" / "P1" / name)
    assert files
    for file in files:
        expected = CASES[name].reason(file, indexed=True)
        found = [(run.fates[f"P1/{name}/{file}"], other) for other, run in runs.items()]
        assert expected in [fate for fate, _ in found]
        assert all(fate in (expected, other) for fate, other in found)


def test_nothing_is_lost(place, runs):
    files = entries(place / "archive")
    for run in runs.values():
        assert set(run.fates) == files
        assert run.summary.files_seen == len(files) == run.summary.files_accepted + run.summary.files_rejected
        assert run.summary.files_accepted == sum(fate == ACCEPTED for fate in run.fates.values())


def test_whole_series_beside_them_come_in(runs):
    volumes, flat = runs.values()
    for patient in PATIENTS:
        assert [volumes.fates[f"{patient}/whole 5/{k}.dcm"] for k in range(5)] == [ACCEPTED] * 5
        assert flat.fates[f"{patient}/whole 1/0.dcm"] == ACCEPTED


def without_power() -> None:
    """Root no longer reads what permissions forbid (capabilities(7); the bounding set counts when a program starts)."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        if libc.prctl(24, capability, 0, 0, 0):  # PR_CAPBSET_DROP
            raise OSError(ctypes.get_errno(), "prctl")


CODE = """
import sys
from dataclasses import dataclass
from pathlib import Path
from dpeq.data.index import index_folder

place = Path(sys.argv[1])
summary = index_folder(place / "archive", place / "labels.csv", place / "m.json", classes=("0", "1"), workers=1)
print(summary.files_seen, summary.files_accepted, sorted(summary.rejects.items()))
"""


def test_what_the_system_does_not_let_read_is_refused(tmp_path):
    for folder in (*PATIENTS, "closed", "shut"):
        begin(folder)
        series(tmp_path / "archive" / folder, PatientID=folder if folder in PATIENTS else "P1")
    (tmp_path / "labels.csv").write_text(LABELS, encoding="utf-8")
    for path in (tmp_path / "archive" / "shut").iterdir():
        path.chmod(0)
    (tmp_path / "archive" / "closed").chmod(0)
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        preexec_fn=without_power if os.geteuid() == 0 else None,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    (tmp_path / "archive" / "closed").chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "21 15 [('a folder that cannot be read', 1), ('cannot be opened', 5)]"
