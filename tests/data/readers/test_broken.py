"""Every broken input gets its reason from the readers, also in little memory; odd files come in or are refused."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pydicom.data
import pytest
from broken import ACCEPTED, CASES

from dpeq.data.readers import dicom_series
from dpeq.data.readers.read import examine, read
from dpeq.data.readers.source import Header, Refused, Source

ROOM = 1 << 30  # bytes of address space above what the process has at its start


def judged(root: Path) -> dict[str, str]:
    """What becomes of every file below ``root``: its reason, or :data:`ACCEPTED`."""
    fates: dict[str, str] = {}
    series: dict[tuple[str, str, str], list[tuple[str, Header]]] = defaultdict(list)
    sources: list[Source] = []
    for where, folders, files in os.walk(root):
        for name in [*files, *(f for f in folders if Path(where, f).is_symlink())]:
            path = Path(where, name)
            file = str(path.relative_to(root))
            try:
                header = examine(path)
            except Refused as refused:
                fates[file] = refused.reason
                continue
            if header.format == "dicom":
                series[header.patient, header.study, header.series].append((file, header))
            else:
                assert header.members
                sources.extend(Source(header.format, (file,), part) for part in range(len(header.members)))
    for slices in series.values():
        images, refusals = dicom_series.assemble(slices)
        sources.extend(images)
        fates.update({file: refused.reason for file, refused in refusals})
    for source in sources:
        try:
            read(root, source)
            fate = ACCEPTED
        except Refused as refused:
            fate = refused.reason
        for file in source.files:
            fates[file] = fates.get(file) or fate
    return fates


@pytest.mark.parametrize("name", sorted(CASES))
def test_each_gets_its_reason(name, tmp_path):
    CASES[name].make(tmp_path)
    fates = judged(tmp_path)
    entries = sum(len(files) + sum(Path(w, f).is_symlink() for f in dirs) for w, dirs, files in os.walk(tmp_path))
    assert fates
    assert len(fates) == entries
    assert fates == {file: CASES[name].reason(file) for file in fates}


def test_there_are_many_kinds():
    assert len(CASES) >= 60
    reasons = {reason for case in CASES.values() for reason in case.reasons.values()}
    assert len(reasons) >= 50


def test_all_of_them_in_little_memory(tmp_path):
    """A child whose address space has a limit; a promise that is believed would show as another reason."""
    for name, case in CASES.items():
        (tmp_path / name).mkdir()
        case.make(tmp_path / name)
    tests = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == f"{len(CASES)} kinds, as expected"


ODD = sorted(p for p in Path(pydicom.data.__file__).parent.joinpath("test_files").rglob("*") if p.is_file())


@pytest.mark.parametrize("path", ODD, ids=lambda path: path.name)
def test_odd_files_of_pydicom_are_accepted_or_refused(path):
    fates = set()
    try:
        header = examine(path)
        for part in range(len(header.members) if header.format != "dicom" else 1):
            volume = read(path.parent, Source(header.format, (path.name,), part))
            assert volume.voxels.shape == header.shape
    except Refused as refused:
        fates.add(refused.reason)
    assert "cannot be decoded" not in fates  # a reader has a better reason for each of them


def main(root: Path) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
    for name in CASES:
        fates = judged(root / name)
        wrong = {file: fate for file, fate in fates.items() if fate != CASES[name].reason(file)}
        assert fates, name
        assert not wrong, (name, wrong)
    print(f"{len(CASES)} kinds, as expected")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
