"""Memory does not grow with the number of files; a million of them is `python -m benchmarks.many_files`."""

from __future__ import annotations

import sqlite3

from benchmarks.many_files import index, make, measure
from dpeq.data.index import store


def test_ten_times_as_many_files_take_no_more_memory():
    """But for SQLite's cache, which has a limit and is not full yet."""
    few, many = (measure(files, size=0, workers=2, folder=None) for files in (2_000, 20_000))
    for run in ("first", "again"):
        assert many[run]["seen"] == 20_003
        assert many[run]["accepted"] == 3
        assert many[run]["rejects"] == {"an empty file": 20_000}
        assert many[run]["peak_mib"] - few[run]["peak_mib"] < 8
        assert many[run]["peak_worker_mib"] - few[run]["peak_worker_mib"] < 8


def test_no_statement_sorts(tmp_path, monkeypatch):
    """What SQLite sorts without an index it keeps in memory, as the store has it: tens of bytes for each file."""
    plans: dict[str, str] = {}

    class Explaining(sqlite3.Connection):
        def execute(self, query, *values):
            if query.strip().upper().startswith(("SELECT", "INSERT", "UPDATE", "DELETE")):
                rows = super().execute(f"EXPLAIN QUERY PLAN {query}", *values).fetchall()
                plans[query] = "; ".join(row[3] for row in rows)
            return super().execute(query, *values)

    connect = sqlite3.connect
    monkeypatch.setattr(store.sqlite3, "connect", lambda *given, **named: connect(*given, **named, factory=Explaining))
    make(tmp_path / "archive", files=20, size=0)
    assert index(tmp_path / "archive", tmp_path / "manifest.json", workers=1)["accepted"] == 3
    assert len(plans) > 10
    assert not [query for query, plan in plans.items() if "TEMP B-TREE" in plan]
