"""Indexing a folder: every file ends up in the manifest or in the list of rejects."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from dpeq.data.index.groups import GroupCounts, settle
from dpeq.data.index.images import Gathering, Image, Mask
from dpeq.data.index.kinds import of_one_kind
from dpeq.data.index.labels import Classes, Table
from dpeq.data.index.layout import Layout
from dpeq.data.index.masks import on_one_grid, pair
from dpeq.data.index.pseudonyms import Pseudonyms
from dpeq.data.index.scan import Scan
from dpeq.data.index.splits import check_disjoint, make_splits
from dpeq.data.index.summary import IndexSummary, NoManifest
from dpeq.data.index.verify import Checks, twins, verify
from dpeq.data.index.walk import walk
from dpeq.data.index.workers import Workers, available
from dpeq.data.manifest import Manifest, Record
from dpeq.data.private import (
    key_path,
    own_files,
    rejects_path,
    scan_path,
    unmatched_path,
    write_private_table,
)
from dpeq.data.readers.source import Refused
from dpeq.errors import ConfigError, DataError

__all__ = ["index_folder"]

Progress = Callable[[int, int], None]
_FILES_AT_ONCE = 32


def index_folder(
    folder: Path,
    labels: Path | None,
    out: Path,
    *,
    classes: Sequence[str],
    label_column: str = "label",
    groups: Mapping[str, str] | None = None,
    layout: str | None = None,
    masks: str | None = None,
    modality: str | None = None,
    channels: int | None = None,
    flat: bool | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    stage: Callable[[str], None] | None = None,
) -> IndexSummary:
    """Walks ``folder``, finds its images, joins labels and writes the manifest ``out`` and its private part.

    What was found out is kept beside the manifest: a run that was stopped goes on where it was, and a second one reads
    only files that are new or have changed.

    Args:
        labels: a CSV whose rows are found by the most specific of the columns path (relative to the folder), image_id,
            series_id, study_id and patient_id that it has; a row that fits several patients, or of an image several
            files, is not applied. Its column ``label_column`` holds names or indices of
            classes; optional are ``split`` (train, val or test) and ``patient_id``, which must agree with the headers.
            Without splits a keyed hash of the patient decides: 70 % train, 10 % val, 20 % test of every combination of
            labels.
        groups: columns of the table that say the sex, age, site or device, by attribute, see
            :func:`dpeq.data.index.groups.columns_of`. What headers say of other attributes is taken without asking.
        layout: what paths say, see :mod:`dpeq.data.index.layout`; gives the patient of formats whose headers do not,
            and labels and splits that are names of folders.
        masks: the layout of masks, which belong to the images of the same values.
        modality, channels, flat: which kind of image to take where there are several, see
            :func:`dpeq.data.index.kinds.of_one_kind`.
        workers: processes that read files; by default one for each processor.
        progress: called with (done, total) within a stage.
        stage: called with a word on each stage.

    Raises:
        ConfigError: for a layout that cannot be meant.
        DataError: when the folder or the labels are missing or contradict themselves, or images are of several kinds.
        NoManifest: when all files were read, and what can be used of them makes no manifest.
    """
    job = _Job(folder, out, progress or (lambda done, total: None), stage or (lambda text: None))
    patterns = Layout(layout) if layout else None, Layout(masks, "--masks") if masks else None
    table = _read_table(job, labels, Classes(tuple(classes)), label_column, groups or {}, patterns[0])
    _make_room(out)
    count = available() if workers is None else workers
    with Scan(scan_path(out), folder) as scan, Workers(folder, count) as pool:
        _scan_headers(job, scan, pool, labels)
        gathering = Gathering(scan, Classes(tuple(classes)), table, *patterns)
        job.stage("Sorting images")
        word, images, others = of_one_kind(gathering.images(), folder, modality=modality, channels=channels, flat=flat)
        for files, refused in {image.source.files: refused for image, refused in others}.items():
            scan.reject(files, refused)
        check_disjoint((image.ids["patient"], image.split) for image in images)
        lonely = pair(images, gathering.masks_found, patterns[1].names) if patterns[1] is not None else []
        job.stage("Reading voxels")
        checks = verify(scan, pool, images, job.progress)
        images, more = _sift(scan, images, checks)
        for mask, refused in (*lonely, *more):
            scan.reject(mask.source.files, refused)
        scan.accept({file for image in images for file in _files(image)})
        seen, accepted, rejects = scan.close_accounts()
        write_private_table(rejects_path(out), ("path", "reason", "detail"), scan.rejects())
        under_two, twice = twins(images, checks)
        _list_unmatched(out, gathering, images, under_two, twice, with_masks=masks is not None)
        manifest, counts = _manifest(job, images, checks, tuple(classes), word, table)
        if set(manifest.files) != set(scan.accepted()):
            raise DataError(
                "The manifest does not hold the accepted files, which is an error in dpeq; please report it."
            )
        summary = IndexSummary(
            manifest,
            seen,
            accepted,
            rejects,
            sum(gathering.left_out[file] for file in manifest.files),
            Counter((kind, reason) for kind, _, reason in gathering.unmatched),
            *scan.policy(),
            None if masks is None else sum(record.mask is not None for record in manifest.records),
            len(under_two),
            len(twice),
            counts,
        )
        if not images:
            why = f"No image in {folder} could be used; {rejects_path(out)} has a reason for each file."
            raise NoManifest(why, summary)
        try:
            manifest.check()
        except DataError as error:
            raise NoManifest(str(error), summary) from None
        manifest.write(out)
    return summary


@dataclass(frozen=True)
class _Job:
    folder: Path
    out: Path
    progress: Progress
    stage: Callable[[str], None]


def _read_table(
    job: _Job,
    labels: Path | None,
    classes: Classes,
    label_column: str,
    groups: Mapping[str, str],
    layout: Layout | None,
) -> Table | None:
    """Finds out, before anything long, whether folder, table and layout can give labels."""
    if not job.folder.is_dir():
        raise DataError(f"There is no folder {job.folder}; name the one that holds the images.")
    by_folder = layout.names if layout is not None else ()
    if labels is None and groups:
        raise ConfigError("--groups names columns of the table that --labels gives; give one.")
    if labels is None:
        if "label" in by_folder:
            return None
        raise DataError(
            f"The images in {job.folder} cannot be used because no labels were given; give a CSV with the columns "
            "patient_id,label[,split] by --labels, or name the folders that are labels by --layout."
        )
    if not labels.is_file():
        raise DataError(f"There is no label file {labels}; give a CSV with the columns patient_id,label[,split].")
    if labels.resolve() in {path.resolve() for path in own_files(job.out)}:
        raise DataError(
            f"The labels {labels} would be overwritten by the index of {job.out}; copy them to another name."
        )
    table = Table(labels, classes, label_column, need_labels="label" not in by_folder, groups=groups)
    for name, both in (("label", table.has_labels), ("split", table.has_splits)):
        if both and name in by_folder:
            raise ConfigError(f"{labels} and --layout both give the {name}; leave one of them out.")
    return table


def _scan_headers(job: _Job, scan: Scan, pool: Workers, labels: Path | None) -> None:
    job.stage("Looking for files")
    own = [*own_files(job.out), *([labels] if labels is not None else [])]
    scan.note(walk(job.folder, scan, own))
    total = scan.count_todo()
    job.stage("Reading headers")
    for done, (path, found) in enumerate(pool.examine(_pages(scan.todo(), _FILES_AT_ONCE)), start=1):
        scan.keep(path, found)
        job.progress(done, total)


def _pages(paths: Iterator[str], size: int) -> Iterator[list[str]]:
    while page := list(islice(paths, size)):
        yield page


def _sift(scan: Scan, images: list[Image], checks: Checks) -> tuple[list[Image], list[tuple[Mask, Refused]]]:
    """Images that could be read, and masks that cannot be used; rejects the files of the other images."""
    good: list[Image] = []
    masks: list[tuple[Mask, Refused]] = []
    rejected: dict[tuple[str, ...], Refused] = {}
    for image in images:
        refused = checks.refused.get(image.source.files)
        mask = image.mask
        if refused is not None:
            rejected[image.source.files] = refused
        else:
            good.append(image)
        if mask is None:
            continue
        if (spoilt := checks.refused.get(mask.source.files)) is None:
            if refused is not None:
                spoilt = Refused("a mask without an image")
            elif not on_one_grid(checks.images[image.source], checks.images[mask.source]):
                spoilt = Refused("a mask on another grid than its image")
        if spoilt is not None:
            masks.append((mask, spoilt))
            image.mask = None
    for files, why in rejected.items():
        scan.reject(files, why)
    return good, masks


def _files(image: Image) -> Iterable[str]:
    return image.source.files + (image.mask.source.files if image.mask is not None else ())


def _list_unmatched(
    out: Path,
    gathering: Gathering,
    images: list[Image],
    under_two: list[Image],
    twice: list[Image],
    *,
    with_masks: bool,
) -> None:
    """Completes the list of what found no partner, or is worth a look, and writes it."""
    table = gathering.table
    if table is not None:
        for key in table.unused():
            gathering.note("row", key, "no images")
        for key, row in table.rows.items():
            if row.problem:
                gathering.note("row", key, row.problem)
    for image in images:
        if with_masks and image.mask is None:
            gathering.note("image", _name(image), "no mask")
        if image.burned_in:
            gathering.note("image", _name(image), "text is burned in, by its header")
    for image in under_two:
        gathering.note("image", _name(image), "the same voxels as an image of another patient")
    for image in twice:
        gathering.note("image", _name(image), "the same voxels as another image of its patient")
    write_private_table(unmatched_path(out), ("kind", "name", "reason"), sorted(gathering.unmatched))


def _name(image: Image) -> str:
    return image.source.files[0] + (f"#{image.source.part}" if image.source.part else "")


def _manifest(
    job: _Job, images: list[Image], checks: Checks, classes: tuple[str, ...], modality: str, table: Table | None
) -> tuple[Manifest, GroupCounts]:
    names = Pseudonyms(key_path(job.out))
    labels: dict[str, set[int]] = defaultdict(set)
    records = []
    for image in images:
        patient = names.of("patient", image.ids["patient"])
        labels[patient].add(image.label)
        mask = image.mask.source if image.mask is not None else None
        records.append(
            Record(
                patient,
                names.of("image", *image.identity),
                image.label,
                image.split,
                image.shape,
                image.burned_in,
                image.source,
                mask,
                tuple(image.groups.items()),
            )
        )
    if any(not record.split for record in records):
        made = make_splits(labels)
        records = [replace(record, split=made[record.patient]) for record in records]
    records, counts = settle(records, names, {} if table is None else table.groups)
    if table is not None:
        counts.not_understood.update(table.not_understood)
    records.sort(key=lambda record: record.image)
    files = {name: checks.files[name] for name in sorted({name for record in records for name in record.files})}
    return Manifest(job.folder, classes, modality, tuple(records), files), counts


def _make_room(out: Path) -> None:
    """Finds out before a long walk whether the manifest can be written; nothing but an older manifest is replaced."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        older = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {"records": []}
    except (OSError, ValueError) as error:
        raise DataError(f"The manifest {out} cannot be written there ({error}); choose another --out.") from error
    if not isinstance(older, dict) or "records" not in older:
        raise DataError(f"{out} exists and is no manifest; choose another --out.")
