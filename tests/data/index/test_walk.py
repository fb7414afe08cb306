from __future__ import annotations

import os
import socket
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpeq.data.index.walk import Entry, walk
from dpeq.errors import DataError


class Queue:
    def __init__(self) -> None:
        self.waiting: list[str] = []
        self.seen: set[tuple[int, int]] = set()

    def push(self, path: str, device: int, inode: int) -> bool:
        new = (device, inode) not in self.seen
        self.seen.add((device, inode))
        self.waiting += [path] if new else []
        return new

    def pop(self) -> str | None:
        return self.waiting.pop(0) if self.waiting else None


def found(root: Path, *leave_out: Path) -> dict[str, Entry]:
    return {entry.path: entry for entry in walk(root, Queue(), leave_out)}


def test_everything_that_is_no_folder_is_found_once(tmp_path):
    root = tmp_path / "a"
    (root / "b" / "c").mkdir(parents=True)
    (root / "b" / "c" / "file").write_bytes(b"12345")
    (root / "empty").touch()
    (root / "link to a file").symlink_to(root / "b" / "c" / "file")
    (root / "link to a folder").symlink_to(root / "b")
    (root / "link to itself").symlink_to(root / "link to itself")
    (root / "loop").symlink_to(root)
    (root / "link to nothing").symlink_to("nowhere")
    os.mkfifo(root / "pipe")
    os.mkfifo(root / "other")
    (root / "link to a pipe").symlink_to(root / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "socket"))
    entries = found(root)
    status = (root / "b" / "c" / "file").stat()
    stamp = (5, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    assert entries["b/c/file"] == Entry("b/c/file", *stamp)
    assert entries["link to a file"] == Entry("link to a file", *stamp)
    assert entries["empty"].reason == ""
    assert {path: entry.reason for path, entry in entries.items() if entry.reason} == {
        "link to a folder": "a link to a folder, which is not followed",
        "loop": "a link to a folder, which is not followed",
        "link to itself": "a link to nothing",
        "link to nothing": "a link to nothing",
        **dict.fromkeys(["pipe", "other", "link to a pipe", "socket"], "no file (a pipe, a socket or a device)"),
    }
    assert len(entries) == 11


def test_odd_names_are_kept_as_they_are(tmp_path):
    for name in (b"M\xfcller", "x" * 255, "a\nb", "日本"):
        (Path(os.fsdecode(tmp_path)) / os.fsdecode(name)).touch()
    assert sorted(map(os.fsencode, found(tmp_path))) == sorted(map(os.fsencode, os.listdir(tmp_path)))  # noqa: PTH208


def test_folders_that_cannot_be_read_do_not_stop_it(tmp_path, monkeypatch):
    """Patched, because root may read everything."""
    (tmp_path / "closed" / "x").mkdir(parents=True)
    (tmp_path / "open").touch()
    scandir = os.scandir

    def refuse(place: Path) -> Iterator[os.DirEntry[str]]:
        if Path(place).name == "closed":
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refuse)
    entries = found(tmp_path)
    assert {path: entry.reason for path, entry in entries.items()} == {
        "closed": "a folder that cannot be read",
        "open": "",
    }
    assert entries["closed"].detail == "Permission denied"
    with pytest.raises(DataError, match=r"closed cannot be read \(Permission denied\)"):
        found(tmp_path / "closed")


def test_a_folder_that_is_there_twice_is_walked_once(tmp_path):
    """As with a folder that is mounted into itself: the queue is made to believe so."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").touch()
    (tmp_path / "b").mkdir()

    class Forgetful(Queue):
        def push(self, path: str, device: int, inode: int) -> bool:
            return super().push(path, 0, 0 if not path else 1)

    entries = {entry.path: entry.reason for entry in walk(tmp_path, Forgetful())}
    assert sorted(entries.values()) in (
        ["", "a folder that is in the tree twice"],
        ["a folder that is in the tree twice"],
    )


def test_files_are_left_out_by_where_they_lie_not_by_how_they_are_called(tmp_path):
    root = tmp_path / "a"
    (root / "b").mkdir(parents=True)
    for name in ("labels.csv", "b/labels.csv", "b/m.json"):
        (root / name).touch()
    (tmp_path / "alias").symlink_to(root)
    assert set(found(tmp_path / "alias", root / "labels.csv", root / "b" / ".." / "b" / "m.json")) == {"b/labels.csv"}
    assert set(found(root, tmp_path / "alias" / "labels.csv")) == {"b/labels.csv", "b/m.json"}
    assert set(found(root, root / "none" / "x.csv")) == {"labels.csv", "b/labels.csv", "b/m.json"}


def test_memory_does_not_grow_with_the_number_of_files(tmp_path):
    for number in range(20_000):
        (tmp_path / f"{number}").touch()
    tracemalloc.start()
    count = sum(1 for _ in walk(tmp_path, Queue()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 20_000
    assert peak < 300_000
