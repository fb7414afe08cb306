"""Memory does not grow with the number of files; a million of them is `python -m benchmarks.many_files`."""

from __future__ import annotations

from benchmarks.many_files import measure


def test_ten_times_as_many_files_take_no_more_memory():
    few, many = (measure(files, size=0, workers=2, folder=None) for files in (2_000, 20_000))
    for run in ("first", "again"):
        assert many[run]["seen"] == 20_003
        assert many[run]["accepted"] == 3
        assert many[run]["rejects"] == {"an empty file": 20_000}
        # 18,000 paths, reasons and rows in memory would be 10 MiB at the least.
        assert many[run]["peak_mib"] - few[run]["peak_mib"] < 8
        assert many[run]["peak_worker_mib"] - few[run]["peak_worker_mib"] < 8
