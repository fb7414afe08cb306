"""Files are read in processes that may crash, hang or be killed; the others go on."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import textwrap
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from archives import rejects, write_nifti, write_png, write_table

from dpeq.data.index import index_folder, workers
from dpeq.data.index.check import Check, _look
from dpeq.data.index.workers import Workers
from dpeq.data.readers.source import Header, Refused, Source, Volume
from dpeq.errors import DataError

SPITEFUL = """
    import ctypes, os, time
    from dpeq.data.readers import read as honest

    def _act(text):
        if "abort" in text: os.abort()
        if "segfault" in text: ctypes.string_at(0)
        if "exit" in text: os._exit(0)
        if "hang" in text: time.sleep(60)
        if "spin" in text:
            while True: pass
        if "hungry" in text: bytearray(1 << 42)
        if "chatter" in text:
            os.write(1, b"Doe^Jane\\n"); os.write(2, b"Doe^Jane\\n"); print("Doe^Jane", flush=True)
        if "once" in text and not os.path.exists(text + ".seen"):
            open(text + ".seen", "w").close(); os.abort()
        if "parent" in text: raise KeyError("a bug")

    def examine(path):
        if "late" not in path.name: _act(str(path))
        return honest.examine(path)

    def read(root, source):
        _act(source.files[0])
        return honest.read(root, source)
"""


@pytest.fixture
def spiteful(tmp_path, monkeypatch) -> None:
    """A reader that does as the name of a file says; what reads late does it when voxels are read."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "spiteful.py").write_text(textwrap.dedent(SPITEFUL), encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(workers, "READER", "spiteful")
    monkeypatch.setattr(workers, "SECONDS", 1)


def examine(root: Path, names: list[str], size: int = 4) -> dict[str, Header | Refused]:
    batches = [names[at : at + size] for at in range(0, len(names), size)]
    with Workers(root, 2) as pool:
        return dict(pool.examine(batches))


def test_a_file_that_ends_its_process_is_refused_and_all_others_are_read(spiteful, tmp_path):
    names = [f"{n}.png" for n in range(12)]
    names += ["abort.png", "segfault.png", "exit.png", "hang.png", "spin.png", "parent.png", "hungry.png"]
    names.sort(key=lambda name: name[::-1])
    for seed, name in enumerate(names):
        write_png(tmp_path / "a" / name, seed)
    found = examine(tmp_path / "a", names)
    assert set(found) == set(names)
    reasons = {name: str(each) for name, each in found.items() if isinstance(each, Refused)}
    assert reasons == {
        **dict.fromkeys(["abort.png", "segfault.png", "exit.png", "parent.png"], "its decoder crashed"),
        **dict.fromkeys(["hang.png", "spin.png"], "its decoder did not end in time"),
        "hungry.png": "its decoder crashed",  # this reader does not turn a MemoryError into a refusal
    }


def test_a_file_that_was_innocent_is_not_refused(spiteful, tmp_path):
    for name in ("once.png", "a.png"):
        write_png(tmp_path / "a" / name)
    found = examine(tmp_path / "a", ["once.png", "a.png"])
    assert (tmp_path / "a" / "once.png.seen").exists(), "it ended a process"
    assert all(isinstance(header, Header) for header in found.values())


def test_what_decoders_print_goes_nowhere(spiteful, tmp_path, capfd):
    write_png(tmp_path / "a" / "chatter.png")
    assert isinstance(examine(tmp_path / "a", ["chatter.png"])["chatter.png"], Header)
    said = capfd.readouterr()
    assert "Doe" not in said.out + said.err


def test_an_allocation_beyond_the_limit_fails(tmp_path, monkeypatch):
    """It would be granted without: the same reader reads the file when there is room."""
    write_png(tmp_path / "a" / "x.png")
    (tmp_path / "greedy.py").write_text(
        "import numpy\nfrom dpeq.data.readers.read import *\nfrom dpeq.data.readers import read as honest\n"
        "def examine(path):\n    numpy.empty(1 << 31, numpy.uint8)\n    return honest.examine(path)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(workers, "READER", "greedy")
    assert isinstance(examine(tmp_path / "a", ["x.png"])["x.png"], Header)
    monkeypatch.setattr(workers, "_memory", lambda: 2 << 30)
    assert str(examine(tmp_path / "a", ["x.png"])["x.png"]) == "its decoder crashed"


@pytest.mark.parametrize("fail", ["raise read.Refused('too large for the memory')", "os.abort()"])
def test_what_is_too_large_for_a_share_is_read_alone(tmp_path, monkeypatch, fail):
    """1.5 GiB of a share of 1 GiB; whether the reader says so, or its process ends."""
    for name in ("x.png", "y.png", "z.png"):
        write_png(tmp_path / "a" / name)
    (tmp_path / "greedy.py").write_text(
        "import numpy, os\nfrom dpeq.data.readers import read\n"
        "def examine(path):\n"
        "    try:\n        if path.name == 'y.png': numpy.empty(3 << 29, numpy.uint8)\n"
        f"    except MemoryError:\n        {fail}\n"
        "    return read.examine(path)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(workers, "READER", "greedy")
    monkeypatch.setattr(workers, "_LEAST_SHARE", 1 << 30)
    monkeypatch.setattr(workers, "_memory", lambda: 3 << 30)
    names = ["x.png", "y.png", "z.png"]
    with Workers(tmp_path / "a", 3) as pool:
        found = dict(pool.examine([names]))
        assert pool._large is not None, "it was asked"
    assert all(isinstance(found[name], Header) for name in names)


def test_a_crash_while_voxels_are_read_rejects_one_image(spiteful, tmp_path):
    names = [f"{n}" for n in range(10)] + ["late_abort", "late_hang"]
    for seed, name in enumerate(names):
        write_nifti(tmp_path / "a" / f"{name}.nii", seed)
    labels = write_table(tmp_path / "l.csv", "patient_id,label", [f"{name},{n % 2}" for n, name in enumerate(names)])
    out = tmp_path / "m.json"
    index = lambda: index_folder(  # noqa: E731
        tmp_path / "a", labels, out, classes=("a", "b"), layout="{patient}.nii", modality="MR"
    )
    summary = index()
    assert rejects(out) == {
        "late_abort.nii": "its decoder crashed",
        "late_hang.nii": "its decoder did not end in time",
    }
    assert len(summary.manifest.records) == 10
    # Neither is remembered: what ended the process may have been the machine.
    workers.READER = "dpeq.data.readers.read"
    assert len(index().manifest.records) == 12


def test_a_reader_that_cannot_start_is_an_error_rather_than_a_reject(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "READER", "no_such_module")
    with pytest.raises(DataError, match=r"do not start .*no_such_module"):
        examine(tmp_path, ["x"])


def test_voxels_are_checked_with_their_files(tmp_path):
    path = write_nifti(tmp_path / "a.nii.gz", shape=(4, 5, 6, 3))
    sources = [Source("nifti", ("a.nii.gz",), part) for part in range(3)]
    with Workers(tmp_path, 1) as pool:
        found = dict(pool.check([[("k", sources)]]))["k"]
    assert isinstance(found, Check)
    assert [image.shape for image in found.images] == [(1, 4, 5, 6)] * 3
    assert len({image.digest for image in found.images}) == 3
    np.testing.assert_allclose(np.reshape(found.images[0].affine, (4, 4)), np.diag([2.0, 2, 3, 1]))
    stamp = found.files["a.nii.gz"]
    assert stamp.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    status = path.stat()
    assert (stamp.size, stamp.mtime_ns, stamp.ctime_ns) == (status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def test_the_digest_is_of_values_however_they_lie_in_memory_and_takes_little():
    voxels = np.random.default_rng(0).random((2, 200, 210, 50)).astype(np.float32)
    lying = [voxels, np.asfortranarray(voxels), voxels[:, ::-1].copy()[:, ::-1]]
    lying.append(np.ascontiguousarray(voxels.transpose(3, 1, 0, 2)).transpose(2, 1, 3, 0))
    expected = hashlib.blake2b(repr(voxels.shape).encode() + voxels.tobytes(), digest_size=16).hexdigest()
    for each in lying:
        volume = Volume(each, np.eye(4), "none")
        tracemalloc.start()
        found = _look(volume)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found.digest == expected
        assert peak < voxels.nbytes / 4
    assert _look(Volume(voxels.transpose(0, 2, 1, 3), np.eye(4), "none")).digest != expected
    assert _look(Volume(np.ones((1, 2, 2, 2), np.float32), np.eye(4), "none")).digest == ""


def test_nothing_is_left_behind_when_the_caller_stops_early(spiteful, tmp_path):
    for name in ("a.png", "hang.png"):
        write_png(tmp_path / "a" / name)
    began = time.monotonic()
    with Workers(tmp_path / "a", 2) as pool:
        next(iter(pool.examine([["a.png"], ["hang.png"]])))
        children = [child._process for child in pool._children]
    assert children
    assert all(child.poll() is not None for child in children)
    assert time.monotonic() - began < 30


def test_a_caller_without_a_guard_around_its_main_module_is_fine(tmp_path):
    """And a module in the folder one stands in is not imported by the processes."""
    write_png(tmp_path / "a" / "x.png")
    for name in ("json", "numpy"):
        (tmp_path / "a" / f"{name}.py").write_text("raise SystemExit(9)", encoding="utf-8")
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\nfrom dpeq.data.index.workers import Workers\nprint('main')\n"
        f"with Workers(Path({str(tmp_path / 'a')!r}), 2) as pool:\n    print(dict(pool.examine([['x.png']])))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(workers.__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path / "a", env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("main") == 1
    assert "format='picture'" in done.stdout
