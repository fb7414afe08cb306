"""Every candidate is decoded once, in the worker processes; what was found out is remembered as long as files stay."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from dpeq.data.index.check import Check, ImageCheck
from dpeq.data.index.images import Image
from dpeq.data.index.scan import Scan
from dpeq.data.index.workers import Workers
from dpeq.data.manifest import FileStamp
from dpeq.data.readers.source import Refused, Source

__all__ = ["Checks", "twins", "verify"]

_FILES_AT_ONCE = 32
Files = tuple[str, ...]


@dataclass
class _Group:
    """Images that are read together, because they are in the same files; their shapes as the headers promise them."""

    sources: list[Source] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)


@dataclass
class Checks:
    """What was found by reading: of each image by its source, of each file its stamp, of files why they are refused."""

    images: dict[Source, ImageCheck] = field(default_factory=dict)
    files: dict[str, FileStamp] = field(default_factory=dict)
    refused: dict[Files, Refused] = field(default_factory=dict)


def verify(scan: Scan, workers: Workers, images: Sequence[Image], progress: Callable[[int, int], None]) -> Checks:
    """Reads images and masks; ``progress`` counts what is read together.

    Images of one file are all or nothing. A file that is not what the walk saw is refused.
    """
    groups: dict[Files, _Group] = defaultdict(_Group)
    for image in images:
        for source, shape in ((image.source, image.shape), *([(m.source, m.shape)] if (m := image.mask) else [])):
            groups[source.files].sources.append(source)
            groups[source.files].shapes.append(shape)
    checks = Checks()
    waiting = []
    done = 0
    for files, group in groups.items():
        known = scan.checked(_key(scan, files, group))
        if known is None:
            waiting.append(files)
        else:
            done += 1
            found = Refused(known["reason"], known["detail"]) if "reason" in known else Check.from_json(known)
            _take(checks, files, group, found)
    progress(done, len(groups))
    for files, found in workers.check(_batches(waiting, groups)):
        group = groups[files]
        if isinstance(found, Check):
            if any((s.size, s.mtime_ns, s.ctime_ns) != scan.stamp(name)[:3] for name, s in found.files.items()):
                found = Refused("changed while it was read")
            elif [image.shape for image in found.images] != group.shapes:
                found = Refused("not the image that its header promises")
        _take(checks, files, group, found)
        told = {"reason": found.reason, "detail": found.detail} if isinstance(found, Refused) else found.to_json()
        scan.keep_check(_key(scan, files, group), told)
        done += 1
        progress(done, len(groups))
    return checks


def _take(checks: Checks, files: Files, group: _Group, found: Check | Refused) -> None:
    if isinstance(found, Refused):
        checks.refused[files] = found
    else:
        checks.images.update(zip(group.sources, found.images, strict=True))
        checks.files.update(found.files)


def _key(scan: Scan, files: Files, group: _Group) -> bytes:
    first = group.sources[0]
    told = [first.format, [source.part for source in group.sources], files, [scan.stamp(name) for name in files]]
    return hashlib.sha256(json.dumps(told).encode("ascii")).digest()


def _batches(waiting: list[Files], groups: dict[Files, _Group]) -> Iterator[list[tuple[Files, list[Source]]]]:
    batch: list[tuple[Files, list[Source]]] = []
    count = 0
    for files in waiting:
        batch.append((files, groups[files].sources))
        count += len(files) + len(groups[files].sources)
        if count >= _FILES_AT_ONCE:
            yield batch
            batch, count = [], 0
    if batch:
        yield batch


def twins(images: Sequence[Image], checks: Checks) -> tuple[list[Image], list[Image]]:
    """Images whose voxels occur under two patients, and images whose voxels occur twice under one patient.

    In the first case one patient may have two ids, and the privacy unit be torn; in the second it is torn where an
    image is the unit.
    """
    patients: dict[str, Counter[str]] = defaultdict(Counter)
    for image in images:
        if digest := checks.images[image.source].digest:
            patients[digest][image.ids["patient"]] += 1
    under_two, twice = [], []
    for image in images:
        of = patients[checks.images[image.source].digest]
        if len(of) > 1:
            under_two.append(image)
        if of[image.ids["patient"]] > 1:
            twice.append(image)
    return under_two, twice
