from __future__ import annotations

import hashlib
import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from dpeq.data.manifest import FileStamp, Manifest, Record, private_path
from dpeq.data.private import own_files
from dpeq.data.readers.source import Source
from dpeq.errors import DataError

SHAPE = (1, 8, 6, 4)


def record(patient: str, image: str, label: int, split: str, *files: str, **more: object) -> Record:
    return Record(patient, image, label, split, SHAPE, False, Source("dicom", files), **more)


RECORDS = (
    record("aa", "i1", 0, "train", "Doe^Jane/1.dcm", "Doe^Jane/2.dcm"),
    record("aa", "i2", 0, "train", "Doe^Jane/3.dcm", mask=Source("nifti", ("Doe^Jane/m.nii",), 2)),
    replace(record("bb", "i3", 1, "val", "4.npz"), source=Source("npz", ("4.npz",), 7), burned_in=True),
    record(
        "cc", "i4", 1, "test", "M\udcfcller.dcm", groups=(("sex", "female"), ("site", "Nürnberg"))
    ),  # a name in Latin-1, which is not valid UTF-8
)


@pytest.fixture
def manifest(tmp_path) -> Manifest:
    names = dict.fromkeys([*(file for r in RECORDS for file in r.files), "5"])
    files = {
        name: FileStamp(10 + number, 10**18 + number, f"{number:064x}", 2 * 10**18 + number)
        for number, name in enumerate(names)
    }
    return Manifest(tmp_path / "archive", ("healthy", "lesion"), "CT", RECORDS, files)


def test_what_was_written_is_read_back(manifest, tmp_path):
    path = tmp_path / "out" / "manifest.json"
    manifest.write(path)
    assert Manifest.read(path) == manifest
    assert manifest.counts()["train"] == {"images": 2, "patients": 1}
    assert [r.image for r in manifest.split("train")] == ["i1", "i2"]


def test_paths_that_may_identify_are_in_the_private_part_alone(manifest, tmp_path):
    path = tmp_path / "manifest.json"
    manifest.write(path)
    text = path.read_text(encoding="utf-8")
    assert "Doe" not in text
    assert str(tmp_path) not in text
    assert "Doe" in private_path(path).read_text(encoding="utf-8")
    assert stat.S_IMODE(private_path(path).stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ((*RECORDS, record("aa", "i5", 0, "test", "5")), "Patient aa is in the splits test and train"),
        (RECORDS[2:], "no train images"),
        (RECORDS[:3], "no test images"),
        ((*RECORDS, record("dd", "i5", 2, "train", "5")), "label 2; use 0 to 1"),
        ((*RECORDS, record("dd", "i5", 1, "holdout", "5")), "a split 'holdout'"),
        ((*RECORDS, record("dd", "i1", 1, "train", "5")), "names an image twice"),
        ((*RECORDS, record("dd", "i5", 1, "train")), "i5 has no files"),
        ((*RECORDS, record("dd", "i5", 1, "train", "6")), "i5 has files that were never read"),
        ((*RECORDS, replace(RECORDS[0], image="i5", shape=(1, 8, 0, 4))), "i5 has the shape"),
        ((*RECORDS, replace(RECORDS[0], image="i5", groups=(("sex", "male"),))), "i5 is in groups"),
        ((*RECORDS, replace(RECORDS[3], image="i5", groups=(("name", "Doe"),))), "i5 is in groups"),
        ((*RECORDS, replace(RECORDS[0], image="i5", mask=Source("nifti", ()))), "i5 has no files"),
    ],
)
def test_a_manifest_that_no_run_may_rest_on_is_refused(manifest, records, reason, tmp_path):
    broken = replace(manifest, records=records)
    with pytest.raises(DataError, match=reason):
        broken.check()
    broken.write(tmp_path / "m.json")
    with pytest.raises(DataError, match=reason):
        Manifest.read(tmp_path / "m.json")


def _break(path: Path, how: str) -> None:
    if how == "missing":
        path.unlink()
    elif how == "private part missing":
        private_path(path).unlink()
    elif how == "not json":
        path.write_text("{", encoding="utf-8")
    elif how == "a list":
        path.write_text("[]", encoding="utf-8")
    elif how.startswith("private part: "):
        body = json.loads(private_path(path).read_text(encoding="utf-8"))
        body[how.split()[-1]] = {"i1": {"format": "Doe", "files": ["Doe"]}}
        private_path(path).write_text(json.dumps(body), encoding="utf-8")
    elif how == "no groups":
        body = json.loads(path.read_text(encoding="utf-8"))
        del body["records"][0]["groups"]
        text = json.dumps(body)
        path.write_text(text, encoding="utf-8")
        private = json.loads(private_path(path).read_text(encoding="utf-8"))
        private["manifest_sha256"] = hashlib.sha256(text.encode()).hexdigest()
        private_path(path).write_text(json.dumps(private), encoding="utf-8")
    elif how == "older":
        body = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**body, "version": 3}), encoding="utf-8")
    else:
        body = json.loads(path.read_text(encoding="utf-8"))
        body["records"][0]["split"] = "test"
        path.write_text(json.dumps(body), encoding="utf-8")


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("missing", "no manifest .*dpeq index"),
        ("private part missing", r"manifest\.private\.json is missing"),
        ("not json", "cannot be read"),
        ("a list", "holds no manifest"),
        ("older", r"another version of dpeq; run 'dpeq index' again"),
        ("no groups", "garbles an entry"),
        ("private part: version", r"another version of dpeq"),
        ("private part: sources", r"^[^']*manifest.json or its private part lacks or garbles an entry"),
        ("private part: masks", "garbles an entry"),
        ("private part: files", "garbles an entry"),
        ("a split changed by hand", "changed after it was indexed"),
    ],
)
def test_a_manifest_that_is_not_whole_is_refused(manifest, how, reason, tmp_path):
    path = tmp_path / "manifest.json"
    manifest.write(path)
    _break(path, how)
    with pytest.raises(DataError, match=reason):
        Manifest.read(path)


def test_a_broken_private_part_is_not_quoted(manifest, tmp_path):
    path = tmp_path / "manifest.json"
    manifest.write(path)
    _break(path, "private part: sources")
    with pytest.raises(DataError) as caught:
        Manifest.read(path)
    assert "Doe" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.fixture
def slack_umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_the_private_part_is_private_from_its_first_moment(manifest, tmp_path, slack_umask, monkeypatch):
    """Also while it is being written, and over a file of that name that all could read."""
    path = tmp_path / "manifest.json"
    private_path(path).write_text("{}", encoding="utf-8")
    modes = []

    def opened(*arguments, **options):
        handle = os_open(*arguments, **options)
        modes.append((Path(arguments[0]).name, stat.S_IMODE(os.fstat(handle).st_mode)))
        return handle

    os_open = os.open
    monkeypatch.setattr(os, "open", opened)
    manifest.write(path)
    assert [mode for name, mode in modes if "private" in name] == [0o600]
    assert stat.S_IMODE(private_path(path).stat().st_mode) == 0o600
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert {each.name for each in tmp_path.iterdir()} == {"manifest.json", "manifest.private.json"}


def test_a_write_that_fails_leaves_the_older_manifest(manifest, tmp_path, monkeypatch):
    path = tmp_path / "manifest.json"
    manifest.write(path)
    before = path.read_bytes()

    def fail(_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        replace(manifest, modality="MR").write(path)
    assert path.read_bytes() == before
    assert {each.name for each in tmp_path.iterdir()} == {"manifest.json", "manifest.private.json"}


def test_two_manifests_in_one_folder_share_no_file(tmp_path):
    assert not set(own_files(tmp_path / "ct.json")) & set(own_files(tmp_path / "mr.json"))


def test_files_of_an_image_are_its_own_and_its_masks():
    assert RECORDS[1].files == ("Doe^Jane/3.dcm", "Doe^Jane/m.nii")
