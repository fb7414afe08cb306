"""What indexing makes of folders, for a closer look at one or for a table over many: accepted and rejected, by reason.

    python -m benchmarks.archives FOLDER [FOLDER ...] --json

Every file is opened, every series assembled and every image decoded, as ``dpeq index`` does; no labels are needed, no
manifest is made. Colours, flat images and all modalities are taken alike.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from dpeq.data.readers.dicom_series import assemble
from dpeq.data.readers.read import examine, read
from dpeq.data.readers.source import Header, Refused, Source


def survey(folder: Path) -> dict[str, Any]:
    """Counts alone; files seen are accepted or rejected."""
    started = time.perf_counter()
    rejects: Counter[str] = Counter()
    headers: dict[str, Header] = {}
    files = sorted(path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    for path in track(files, f"{folder.name}: headers", console=Console(stderr=True), transient=True):
        try:
            headers[str(path.relative_to(folder))] = examine(path)
        except Refused as refused:
            rejects[refused.reason] += 1
    sources, accepted, images, voxels = _sources(headers, rejects), set(), 0, 0
    broken: dict[str, Refused] = {}
    for source in track(sources, f"{folder.name}: voxels", console=Console(stderr=True), transient=True):
        try:
            voxels += read(folder, source).voxels.size
            images += 1
            accepted.update(source.files)
        except Refused as refused:
            broken.update(dict.fromkeys(source.files, refused))
    rejects.update(refused.reason for file, refused in broken.items() if file not in accepted)
    if len(files) != len(accepted) + rejects.total():
        raise RuntimeError("files were lost")
    return {
        "folder": folder.name,
        "files": len(files),
        "accepted": len(accepted),
        "images": images,
        "rejected": dict(rejects.most_common()),
        "voxels": voxels,
        "seconds": round(time.perf_counter() - started, 2),
    }


def _sources(headers: dict[str, Header], rejects: Counter[str]) -> list[Source]:
    sources: list[Source] = []
    series: dict[tuple[str, str, str, str], list[tuple[str, Header]]] = defaultdict(list)
    for file, header in headers.items():
        if header.format == "dicom":
            # By folder too: the data at hand holds one series several times, in different encodings.
            series[str(Path(file).parent), header.patient, header.study, header.series].append((file, header))
        else:
            sources += [Source(header.format, (file,), part) for part in range(len(header.members))]
    for slices in series.values():
        found, refused = assemble(slices)
        sources += found
        rejects.update(reason.reason for _, reason in refused)
    return sources


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    rows = [survey(folder) for folder in arguments.folders]
    if arguments.json:
        print(json.dumps({"rows": rows}, indent=1))
        return
    table = Table()
    for heading in ("folder", "files", "accepted", "images", "rejected"):
        table.add_column(heading)
    for row in rows:
        reasons = "\n".join(f"{count} {reason}" for reason, count in row["rejected"].items())
        table.add_row(row["folder"], str(row["files"]), str(row["accepted"]), str(row["images"]), reasons)
    Console().print(table)


if __name__ == "__main__":
    main()
