"""Indexing a folder of DICOM files: every file ends up in a volume of the manifest or in ``rejects.csv``."""

from __future__ import annotations

import csv
import hashlib
import hmac
import json
import os
import re
import secrets
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from dpeq.data.dicom import SliceHeader, order_slices, read_header, read_volume
from dpeq.data.manifest import SPLITS, FileStamp, Manifest, Record, private_path
from dpeq.data.readers.source import Source
from dpeq.errors import DataError

__all__ = ["IndexSummary", "index_folder"]

Progress = Callable[[int, int], None]
_LISTS = ("rejects.csv", "unmatched.csv")
_KEY_BYTES = 32
_SHARES = {"test": 0.2, "val": 0.1}  # of each class; the rest trains


@dataclass(frozen=True)
class IndexSummary:
    """What became of every file: ``files_seen == files_accepted + files_rejected``.

    ``rejects.csv`` beside the manifest has the reason for each rejected file, ``unmatched.csv`` the patients that are
    counted here as without label or without images.
    """

    manifest: Manifest
    files_seen: int
    files_accepted: int
    files_rejected: int
    patients_without_label: int
    labels_without_images: int


def index_folder(
    folder: Path, labels: Path | None, out: Path, *, classes: tuple[str, ...], progress: Progress | None = None
) -> IndexSummary:
    """Walks ``folder``, groups DICOM files into series, joins labels by patient id and writes the manifest ``out``.

    The CSV ``labels`` has the columns ``patient_id``, ``label`` (a class name or index) and, optionally, ``split``;
    without it a keyed hash of the patient decides: 70 % train, 10 % val, 20 % test of every class.

    Raises:
        DataError: when the folder or the labels are missing, or no volume can be accepted.
    """
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}; name the one that holds the images.")
    if labels is None or not labels.is_file():
        where = "no labels were given" if labels is None else f"there is no label file {labels}"
        raise DataError(
            f"The images in {folder} cannot be used because {where}; give a CSV with the columns "
            "patient_id,label[,split] by --labels."
        )
    own = [out, private_path(out), _key_path(out), *(out.with_name(name) for name in _LISTS)]
    if labels.resolve() in {path.resolve() for path in own}:
        raise DataError(f"The labels {labels} would be overwritten by the index of {out}; copy them to another name.")
    _make_room(out)
    table = _read_labels(labels, classes)
    paths = _walk(folder, {path.resolve() for path in (labels, *own)})
    series, rejects = _group(paths, progress)
    owners = defaultdict(set)
    for patient_id, _, uid in series:
        owners[uid].add(patient_id)
    key = _key(out)
    records, modalities, unlabelled = [], set(), set()
    for (patient_id, _, uid), headers in series.items():
        entry = table.get(patient_id)
        reason = None
        try:
            ordered = order_slices(headers)
            # Accepted means readable: a slice that lost its tail shows only when its pixels are decoded.
            read_volume([header.path for header in ordered])
        except DataError as error:
            reason = str(error)
        if len(owners[uid]) > 1:
            reason = "a series that belongs to two patients"
        if entry is None:
            unlabelled.add(patient_id)
            reason = "the patient has no label"
        if reason is not None or entry is None:
            rejects += [(header.path, str(reason)) for header in headers]
            continue
        label, split = entry
        names = tuple(str(header.path.relative_to(folder)) for header in ordered)
        image = _pseudonym(key, f"image|{patient_id}|{uid}")
        columns, rows = ordered[0].shape[1], ordered[0].shape[0]
        shape = (1, columns, rows, len(ordered))
        records.append(Record(_pseudonym(key, patient_id), image, label, split, shape, False, Source("dicom", names)))
        modalities.add(headers[0].modality)
    imaged = {patient for patient, _, _ in series}
    listed = sorted((str(path.relative_to(folder)), reason) for path, reason in rejects)
    _write_table(out.with_name("rejects.csv"), ("path", "reason"), listed)
    unmatched = [(patient, "no label") for patient in sorted(unlabelled)]
    unmatched += [(patient, "no images") for patient in sorted(set(table) - imaged)]
    _write_table(out.with_name("unmatched.csv"), ("patient_id", "reason"), unmatched)
    if not records:
        raise DataError(
            f"No volume in {folder} could be used; {out.with_name('rejects.csv')} has a reason for each file."
        )
    if len(modalities) > 1:
        raise DataError(f"{folder} mixes the modalities {', '.join(sorted(modalities))}; index each by itself.")
    if any(not record.split for record in records):
        records = _make_splits(records)
    files = {file: _stamp(folder / file) for record in records for file in record.files}
    manifest = Manifest(folder, classes, modalities.pop(), tuple(sorted(records, key=lambda r: r.image)), files)
    manifest.check()
    manifest.write(out)
    accepted = sum(len(record.files) for record in records)
    return IndexSummary(manifest, len(paths), accepted, len(rejects), len(unlabelled), len(set(table) - imaged))


def _walk(folder: Path, leave_out: set[Path]) -> list[Path]:
    """Every entry under ``folder`` that is no folder, and links to folders, which are not followed but not lost."""

    def stop(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}); mend its permissions.") from error

    found = []
    for where, folders, files in os.walk(folder, onerror=stop):
        found += [Path(where, name) for name in files]
        found += [path for name in folders if (path := Path(where, name)).is_symlink()]
    return sorted(path for path in found if path.resolve() not in leave_out)


def _group(
    paths: list[Path], progress: Progress | None
) -> tuple[dict[tuple[str, str, str], list[SliceHeader]], list[tuple[Path, str]]]:
    series: dict[tuple[str, str, str], list[SliceHeader]] = defaultdict(list)
    rejects: list[tuple[Path, str]] = []
    for done, path in enumerate(paths, start=1):
        try:
            if not path.is_file():
                raise DataError("not a file (a pipe, a device, or a link to a folder or to nothing)")
            header = read_header(path)
            series[header.patient_id, header.study, header.series].append(header)
        except DataError as error:
            rejects.append((path, str(error)))
        if progress is not None and (done % 64 == 0 or done == len(paths)):
            progress(done, len(paths))
    return series, rejects


def _read_labels(path: Path, classes: tuple[str, ...]) -> dict[str, tuple[int, str]]:
    """``patient_id -> (class index, split or "")``."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            rows, columns = list(reader), set(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"The labels {path} cannot be read ({error}); save them as CSV in UTF-8.") from error
    if missing := {"patient_id", "label"} - columns:
        raise DataError(
            f"{path} has no column {' or '.join(sorted(missing))}; its first line must name them, separated by commas."
        )
    # Where a class is itself called by a number, a number can only be meant as a name.
    by_index = not any(name.isdigit() for name in classes)
    table: dict[str, tuple[int, str]] = {}
    for line, row in enumerate(rows, start=2):
        patient, label, split = (str(row.get(c) or "").strip() for c in ("patient_id", "label", "split"))
        if not patient:
            raise DataError(f"Line {line} of {path} has no patient_id; give it one or delete the line.")
        if label in classes:
            index = classes.index(label)
        elif by_index and label.isascii() and label.isdigit() and int(label) < len(classes):
            index = int(label)
        else:
            raise DataError(f"Line {line} of {path} has the label '{label}'; use one of {', '.join(classes)}.")
        if split and split not in SPLITS:
            raise DataError(f"Line {line} of {path} has the split '{split}'; use one of {', '.join(SPLITS)}.")
        before = table.setdefault(patient, (index, split))
        if before != (index, split):
            what = "splits" if before[0] == index else "labels"
            raise DataError(f"Line {line} of {path} gives a patient two {what}; give every patient one.")
    if len({bool(split) for _, split in table.values()}) > 1:
        raise DataError(f"{path} gives a split to some patients only; give all of them one, or none.")
    return table


def _make_splits(records: list[Record]) -> list[Record]:
    """Patient-disjoint and stratified; the pseudonym is a keyed hash already, so its order is a keyed shuffle."""
    by_class: dict[int, list[str]] = defaultdict(list)
    for patient, label in sorted({(r.patient, r.label) for r in records}):
        by_class[label].append(patient)
    split: dict[str, str] = {}
    for patients in by_class.values():
        n_test, n_val = (round(_SHARES[name] * len(patients)) for name in ("test", "val"))
        names = ["test"] * n_test + ["val"] * n_val + ["train"] * (len(patients) - n_test - n_val)
        split.update(zip(patients, names, strict=True))
    return [replace(r, split=split[r.patient]) for r in records]


def _stamp(path: Path) -> FileStamp:
    stat = path.stat()
    return FileStamp(stat.st_size, stat.st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())


def _make_room(out: Path) -> None:
    """Finds out before a long walk whether the manifest can be written; nothing but an older manifest is replaced."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        older = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {"records": []}
    except (OSError, ValueError) as error:
        raise DataError(f"The manifest {out} cannot be written there ({error}); choose another --out.") from error
    if not isinstance(older, dict) or "records" not in older:
        raise DataError(f"{out} exists and is no manifest; choose another --out.")


def _key(out: Path) -> bytes:
    """The key of the pseudonyms, beside the manifest, readable by its owner alone; made on first use."""
    path = _key_path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        text = path.read_text(encoding="ascii", errors="replace").strip()
        if not re.fullmatch(f"[0-9a-f]{{{2 * _KEY_BYTES}}}", text):
            # A short key, left by a crash or an editor, would give pseudonyms that can be guessed.
            raise DataError(f"{path} is not a key of {_KEY_BYTES} bytes in hexadecimal; delete it to make a new one.")
        return bytes.fromhex(text)
    key = secrets.token_bytes(_KEY_BYTES)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as handle:
        handle.write(key.hex())
    return key


def _key_path(out: Path) -> Path:
    return out.with_name(f"{out.stem}.key")


def _pseudonym(key: bytes, text: str) -> str:
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()[:16]


def _write_table(path: Path, columns: tuple[str, ...], rows: list[tuple[str, str]]) -> None:
    """File names and patient ids identify, so these lists are for their owner alone, from the moment they exist."""
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    # A file name need not be valid text; it is shown escaped rather than stopping the list.
    with os.fdopen(handle, "w", newline="", encoding="utf-8", errors="backslashreplace") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(columns)
        table.writerows(rows)
