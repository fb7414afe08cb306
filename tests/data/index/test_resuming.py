"""Indexing that was stopped goes on; indexing again reads what is new."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from archives import rejects, write_nifti, write_table

from dpeq.data.index import index_folder, workers
from dpeq.data.manifest import Manifest

FILES = 40
READER = """
    import time
    from pathlib import Path
    from dpeq.data.readers import read as honest

    def _say(what, name):
        with open(Path(__file__).with_name(what + ".log"), "a") as log: log.write(name + "\\n")

    def examine(path):
        _say("examined", path.name)
        time.sleep(0.15 if Path(__file__).with_name("slow").exists() else 0)
        return honest.examine(path)

    def read(root, source):
        _say("read", source.files[0])
        return honest.read(root, source)
"""
SCRIPT = """
    import sys
    from pathlib import Path
    from dpeq.data.index import index_folder, workers
    workers.READER = "watching"
    index_folder(
        Path("a"), Path("l.csv"), Path("i/m.json"), classes=("a", "b"), layout="{patient}.nii", modality="MR", workers=2
    )
"""


@pytest.fixture
def room(tmp_path) -> Path:
    for number in range(FILES):
        write_nifti(tmp_path / "a" / f"p{number}.nii", number)
    (tmp_path / "a" / "notes.txt").write_text("hello")
    write_table(tmp_path / "l.csv", "patient_id,label", [f"p{n},{n % 2}" for n in range(FILES)])
    (tmp_path / "watching.py").write_text(textwrap.dedent(READER))
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    return tmp_path


def start(room: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(room), str(Path(workers.__file__).parents[3])])}
    return subprocess.Popen(
        [sys.executable, "script.py"],
        cwd=room,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Where the tests run in the background Ctrl-C is ignored, and children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(room: Path) -> Manifest:
    process = start(room)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 0, said.decode()
    return Manifest.read(room / "i" / "m.json")


def take_log(room: Path, name: str) -> list[str]:
    path = room / f"{name}.log"
    lines = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_stopped_index_goes_on_where_it_was(room, how):
    (room / "slow").touch()
    process = start(room)
    log = room / "examined.log"
    while process.poll() is None and not (log.exists() and len(log.read_text().split()) >= FILES - 6):
        time.sleep(0.02)
    process.send_signal(how)
    process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert not (room / "i" / "m.json").exists()
    first = take_log(room, "examined")
    (room / "slow").unlink()
    manifest = finish(room)
    again = take_log(room, "examined")
    assert set(first) | set(again) == {f"p{n}.nii" for n in range(FILES)} | {"notes.txt"}
    assert len(first) < FILES + 1, "it was stopped in the middle"
    # What was known to the parent is on disk at most a second later, on Ctrl-C at once; what was under way is lost.
    assert len(again) < FILES if how != signal.SIGINT else len(again) <= FILES + 1 - len(first) + 2 * 2
    whole = room / "b"
    shutil.copytree(room, whole, ignore=shutil.ignore_patterns("b", "i", "*.log"))
    (whole / "i").mkdir()
    shutil.copy(room / "i" / "m.key", whole / "i")
    assert finish(whole).records == manifest.records


def test_a_second_run_reads_what_changed(room):
    before = finish(room)
    assert len(take_log(room, "examined")) == FILES + 1
    assert len(take_log(room, "read")) == FILES
    assert finish(room) == before
    assert take_log(room, "examined") == take_log(room, "read") == []
    write_nifti(room / "a" / "p3.nii", 1003)
    os.utime(room / "a" / "p3.nii", ns=(1, 1))
    write_nifti(room / "a" / "p99.nii", 99)
    (room / "a" / "p5.nii").unlink()
    after = finish(room)
    assert sorted(take_log(room, "examined")) == ["p3.nii", "p99.nii"]
    assert take_log(room, "read") == ["p3.nii"]
    assert set(before.files) - set(after.files) == {"p5.nii"}
    assert {name for name in after.files if after.files[name] != before.files.get(name)} == {"p3.nii"}
    assert rejects(room / "i" / "m.json") == {
        "notes.txt": "not an image (text)",
        "p99.nii": "no label is known for it",
    }


def test_files_that_took_each_others_place_are_read_again(room):
    """Their sizes and times are the same."""
    one, two, aside = (room / "a" / name for name in ("p3.nii", "p4.nii", "aside"))
    for path in (one, two):
        os.utime(path, ns=(10**18, 10**18))
    before = finish(room)
    take_log(room, "examined")
    one.rename(aside), two.rename(one), aside.rename(two)
    after = finish(room)
    assert sorted(take_log(room, "examined")) == ["p3.nii", "p4.nii"]
    assert after.files["p3.nii"].sha256 == before.files["p4.nii"].sha256 != before.files["p3.nii"].sha256


def test_a_file_of_the_far_future_is_indexed(room):
    os.utime(room / "a" / "p3.nii", ns=(2**63 + 10**9, 2**63 + 10**9))
    if (room / "a" / "p3.nii").stat().st_mtime_ns < 2**63:
        pytest.skip("this file system has no such times")
    assert "p3.nii" in finish(room).files
    assert finish(room).files["p3.nii"].mtime_ns > 2**63


def test_a_file_that_changes_while_it_is_indexed_is_refused(room, monkeypatch):
    """While its voxels are read, and between the walk and that."""
    (room / "fickle.py").write_text(
        "import os\nfrom dpeq.data.readers import read as honest\n"
        "def examine(path):\n    header = honest.examine(path)\n"
        "    if path.name == 'p8.nii': os.utime(path, ns=(1, 1))\n    return header\n"
        "def read(root, source):\n    volume = honest.read(root, source)\n"
        "    if source.files[0] == 'p7.nii': os.utime(root / 'p7.nii', ns=(1, 1))\n    return volume\n"
    )
    monkeypatch.syspath_prepend(room)
    monkeypatch.setattr(workers, "READER", "fickle")
    options = {"classes": ("a", "b"), "layout": "{patient}.nii", "modality": "MR"}
    summary = index_folder(room / "a", room / "l.csv", room / "m.json", **options)
    assert summary.rejects == {"not an image (text)": 1, "changed while it was read": 2}
    monkeypatch.setattr(workers, "READER", "dpeq.data.readers.read")
    assert index_folder(room / "a", room / "l.csv", room / "m.json", **options).rejects == {"not an image (text)": 1}
