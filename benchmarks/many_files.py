"""Indexes an archive of very many files, none of which is an image but three, and says what it took.

    python -m benchmarks.many_files --files 1000000 --json

The archive is made in a temporary folder (``--folder`` says where), a thousand files to a folder, and indexed by a
process of its own, so that its peak of memory is its own. What is in memory must not grow with the number of files.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PER_FOLDER = 1000
_SPLITS = ("train", "val", "test")


def make(archive: Path, files: int, size: int) -> None:
    """``files`` files of ``size`` zeros, and one picture for each split."""
    content = bytes(size)
    for number in range(files):
        folder = archive / f"{number // PER_FOLDER:06}"
        if number % PER_FOLDER == 0:
            folder.mkdir(parents=True)
        with (folder / f"{number % PER_FOLDER:03}.dcm").open("wb") as stream:
            stream.write(content)
    for value, split in enumerate(_SPLITS):
        Image.fromarray(np.full((4, 4), value, np.uint8)).save(archive / f"{split}.png")


def index(archive: Path, out: Path, workers: int | None) -> dict[str, Any]:
    """Indexes in this process; peaks are of all that this process and its children ever did."""
    from dpeq.data.index import index_folder

    labels = out.with_name("labels.csv")
    rows = (f"{split}.png,{split},0,{split}\n" for split in _SPLITS)
    labels.write_text("path,patient_id,label,split\n" + "".join(rows), encoding="utf-8")
    start = time.perf_counter()
    summary = index_folder(archive, labels, out, classes=("0", "1"), modality="X-ray", workers=workers)
    seconds = time.perf_counter() - start
    return {
        "seen": summary.files_seen,
        "accepted": summary.files_accepted,
        "rejects": dict(summary.rejects),
        "seconds": round(seconds, 2),
        "files_per_second": round(summary.files_seen / seconds),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "peak_worker_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
    }


def measure(files: int, size: int, workers: int | None, folder: Path | None) -> dict[str, Any]:
    """Makes the archive, indexes it in a fresh process, and again, when everything is known."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        place = Path(name)
        start = time.perf_counter()
        make(place / "archive", files, size)
        result: dict[str, Any] = {
            "files": files,
            "bytes": size,
            "seconds_to_make": round(time.perf_counter() - start, 2),
        }
        command = [sys.executable, "-m", "benchmarks.many_files", "--index", name]
        command += [] if workers is None else ["--workers", str(workers)]
        for run in ("first", "again"):
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            result[run] = json.loads(done.stdout)
        result["scan_mib"] = round(sum(p.stat().st_size for p in place.glob("manifest.*")) / (1 << 20), 1)
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--size", type=int, default=0, help="bytes of each")
    parser.add_argument("--workers", type=int, help="processes that read; by default one for each processor")
    parser.add_argument("--folder", type=Path, help="where the archive is made")
    parser.add_argument("--index", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.index is not None:
        print(json.dumps(index(options.index / "archive", options.index / "manifest.json", options.workers)))
        return
    result = measure(options.files, options.size, options.workers, options.folder)
    print(json.dumps(result, indent=2) if options.json else result)


if __name__ == "__main__":
    main()
