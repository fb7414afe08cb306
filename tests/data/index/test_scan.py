from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from dpeq.data.index import scan as module
from dpeq.data.index.scan import Scan
from dpeq.data.index.version import reader_version
from dpeq.data.index.walk import Entry
from dpeq.data.readers.source import Header, Member, Refused, Slice
from dpeq.errors import DataError


def header(patient: str = "p", series: str = "s", kind: str = "dicom", identifying=("PatientName",)) -> Header:
    where = Slice((1.0, 0, 0, 0, 1, 0), (0.1, 0.2, 1 / 3), (1.0, 1.0), None, 3) if kind == "dicom" else None
    members = () if kind == "dicom" else (Member(),)
    return Header(kind, (1, 4, 5, 1), "CT", patient, "st", series, members, where, identifying=identifying)


@pytest.fixture
def store(tmp_path) -> Path:
    return tmp_path / "m.scan.sqlite"


ENTRIES = [Entry("a", 1, 10), Entry("b/M\udcfcller", 2, 20), Entry("c", 3, 30), Entry("d", reason="a link to nothing")]


def test_what_is_known_stays_known_until_the_file_changes(store, tmp_path):
    with Scan(store, tmp_path) as scan:
        scan.note(ENTRIES)
        assert sorted(scan.todo()) == ["a", "b/M\udcfcller", "c"]
        scan.keep("a", header())
        scan.keep("b/M\udcfcller", header("M\udcfcller"))
        scan.keep("c", Refused("not an image (text)", "Doe\udcfc"))
    with Scan(store, tmp_path) as scan:
        scan.note([Entry("a", 1, 11), ENTRIES[1], ENTRIES[2], Entry("e", 1, 1)])
        assert sorted(scan.todo()) == ["a", "e"]
        scan.keep("a", header())
        scan.keep("e", header("q", "t", "nifti"))
        assert [[path for path, _ in series] for series in scan.slices()] == [["b/M\udcfcller"], ["a"]]
        assert dict(next(scan.slices()))["b/M\udcfcller"] == Header.from_json(
            Header.to_json(header("M\udcfcller", identifying=()))
        )
        assert [path for path, _ in scan.whole()] == ["e"]
        assert scan.claimed_twice() == {"s"}
        assert scan.policy() == ({"PatientName": 2}, 2)
        scan.accept(["a", "b/M\udcfcller"])
        scan.reject(["e"], Refused("why", "d\udcfc"))
        assert scan.close_accounts() == (4, 2, {"why": 1, "not an image (text)": 1})
        assert list(scan.accepted()) == ["a", "b/M\udcfcller"]
        assert list(scan.rejects()) == [("c", "not an image (text)", "Doe\\udcfc"), ("e", "why", "d\\udcfc")]


@pytest.mark.parametrize("place", ["size", "mtime_ns", "ctime_ns", "inode"])
def test_a_file_that_differs_in_anything_is_read_again(store, tmp_path, place):
    """Numbers beyond the integers of SQLite too."""
    entry = Entry("a", 1, 2**63 + 1, 2**70, 2**64 - 1)
    for each, todo in ((entry, ["a"]), (entry, []), (replace(entry, **{place: getattr(entry, place) + 1}), ["a"])):
        with Scan(store, tmp_path) as scan:
            scan.note([each])
            assert list(scan.todo()) == todo
            assert scan.stamp("a") == (each.size, each.mtime_ns, each.ctime_ns, each.inode)
            scan.keep("a", header())


def test_what_may_pass_is_looked_at_again(store, tmp_path):
    for _ in range(2):
        with Scan(store, tmp_path) as scan:
            scan.note(ENTRIES)
            assert "a" in scan.todo()
            scan.keep("a", Refused("its decoder crashed"))
            scan.keep_check(b"1", {"reason": "its decoder crashed", "detail": ""})
            assert scan.checked(b"1") is None
            assert "a" not in scan.todo(), "in this run it is known"


def test_checks_are_kept_as_long_as_they_are_used(store, tmp_path):
    with Scan(store, tmp_path) as scan:
        scan.keep_check(b"1", {"images": []})
        scan.keep_check(b"2", {"reason": "two slices at one place", "detail": ""})
    with Scan(store, tmp_path) as scan:
        assert scan.checked(b"1") == {"images": []}
        scan.close_accounts()
        assert scan.checked(b"2") is None


def test_other_code_or_another_folder_begins_anew(store, tmp_path, monkeypatch):
    def fill() -> list[str]:
        with Scan(store, tmp_path) as scan:
            scan.note(ENTRIES)
            left = list(scan.todo())
            for path in left:
                scan.keep(path, header())
            return left

    assert len(fill()) == 3
    assert fill() == []
    monkeypatch.setattr(module, "reader_version", lambda: "another")
    assert len(fill()) == 3
    (tmp_path / "x").mkdir()
    with Scan(store, tmp_path / "x") as scan:
        scan.note(ENTRIES)
        assert scan.count_todo() == 3


def test_the_version_of_the_readers_is_that_of_their_code(monkeypatch):
    before = reader_version()
    assert before == reader_version()
    read_bytes = Path.read_bytes
    for name in ("nifti.py", "attributes.py", "deid.py", "check.py", "verify.py"):
        monkeypatch.setattr(Path, "read_bytes", lambda path, name=name: read_bytes(path) + b"#" * (path.name == name))
        assert reader_version() != before


def test_a_file_that_is_lost_or_counted_twice_is_noticed(store, tmp_path):
    with Scan(store, tmp_path) as scan:
        scan.note(ENTRIES)
        for path in scan.todo():
            scan.keep(path, header())
        scan.accept(["a", "c"])
        with pytest.raises(DataError, match="1 of 4 files are not accounted for"):
            scan.close_accounts()
        with pytest.raises(DataError, match="accounted for twice"):
            scan.reject(["c"], Refused("x"))
    with Scan(store, tmp_path) as scan:
        scan.note(ENTRIES)
        scan.accept(["a", "b/M\udcfcller", "not there"])
        with pytest.raises(DataError, match="1 of 4 files are not accounted"):
            scan.close_accounts()


def test_the_store_and_its_journal_are_private_at_every_moment(store, tmp_path):
    before = os.umask(0o022)
    try:
        modes = set()
        with Scan(store, tmp_path) as scan:
            scan.note(Entry(f"{n}", n, n) for n in range(5000))
            for path in scan.todo():
                scan.keep(path, header())
                modes |= {(each.name, stat.S_IMODE(each.stat().st_mode)) for each in tmp_path.iterdir()}
        assert ("m.scan.sqlite-journal", 0o600) in modes, "the journal was seen"
        assert {mode for _, mode in modes} == {0o600}
        store.chmod(0o644)
        with Scan(store, tmp_path):
            assert {stat.S_IMODE(each.stat().st_mode) for each in tmp_path.iterdir()} == {0o600}
    finally:
        os.umask(before)


def test_a_damaged_or_busy_store_is_refused(store, tmp_path):
    with Scan(store, tmp_path), pytest.raises(DataError, match="Another 'dpeq index' is using"):
        Scan(store, tmp_path)
    store.write_bytes(b"no database" * 999)
    with pytest.raises(DataError, match="delete it, and every file is read again"):
        Scan(store, tmp_path)


def test_a_store_that_is_damaged_further_on_is_refused(store, tmp_path):
    with Scan(store, tmp_path) as scan:
        scan.note(Entry(f"{n}", n, n) for n in range(5000))
    content = store.read_bytes()
    store.write_bytes(content[: 4096 * 16] + b"\xff" * (len(content) - 4096 * 16))
    with pytest.raises(DataError, match=r"is damaged \(.*\); delete it, and every file"), Scan(store, tmp_path) as scan:
        scan.note([Entry(f"{n}", n, n) for n in range(5000)])
    store.unlink()
    base = sqlite3.connect(store)
    base.execute("CREATE TABLE about (strange)")
    base.close()
    with pytest.raises(DataError, match="delete it, and every file"):
        Scan(store, tmp_path)


def test_a_full_disk_is_said_and_costs_nothing_that_was_known(store, tmp_path):
    with Scan(store, tmp_path) as scan:
        scan.note(ENTRIES)
        scan.keep("a", header())

    def fill() -> None:
        with Scan(store, tmp_path) as scan:
            scan._base.execute("PRAGMA max_page_count = 40")
            scan.note(Entry(f"{n}", n, n) for n in range(50_000))

    with pytest.raises(DataError, match=r"\(database or disk is full\); make room") as caught:
        fill()
    assert str(caught.value).count("\n") == 0
    with Scan(store, tmp_path) as scan:
        scan.note(ENTRIES)
        assert "a" not in scan.todo()


def test_a_store_that_cannot_be_opened_is_refused(tmp_path):
    (tmp_path / "m.scan.sqlite").mkdir()
    with pytest.raises(DataError, match="unable to open database file"):
        Scan(tmp_path / "m.scan.sqlite", tmp_path)


def test_another_error_is_told_before_one_of_the_store(store, tmp_path):
    def spoil(error: BaseException) -> None:
        with Scan(store, tmp_path) as scan:
            scan._base.execute("ROLLBACK")
            raise error

    with pytest.raises(KeyboardInterrupt):
        spoil(KeyboardInterrupt())
    with pytest.raises(DataError, match="no transaction is active"), Scan(store, tmp_path) as scan:
        scan._base.execute("ROLLBACK")


def test_what_was_kept_outlives_an_error(store, tmp_path):
    with contextlib.suppress(KeyboardInterrupt), Scan(store, tmp_path) as scan:
        scan.note(ENTRIES)
        scan.keep("a", header())
        raise KeyboardInterrupt
    with sqlite3.connect(store) as base:
        assert base.execute("SELECT count(*) FROM known WHERE header NOT NULL").fetchone() == (1,)
    base.close()
