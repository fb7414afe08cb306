from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from dpeq.data.manifest import Manifest, Record, private_path
from dpeq.errors import DataError

RECORDS = (
    Record("aa", "i1", 0, "train", ("Doe^Jane/1.dcm", "Doe^Jane/2.dcm")),
    Record("aa", "i2", 0, "train", ("Doe^Jane/3.dcm",)),
    Record("bb", "i3", 1, "val", ("4.dcm",)),
    Record("cc", "i4", 1, "test", ("5.dcm",)),
)


@pytest.fixture
def manifest(tmp_path) -> Manifest:
    return Manifest(tmp_path / "archive", ("healthy", "lesion"), "CT", RECORDS)


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
        ((*RECORDS, Record("aa", "i5", 0, "test", ("6",))), "Patient aa is in the splits test and train"),
        (RECORDS[2:], "no train images"),
        (RECORDS[:3], "no test images"),
        ((*RECORDS, Record("dd", "i5", 2, "train", ("6",))), "label 2; use 0 to 1"),
        ((*RECORDS, Record("dd", "i5", 1, "holdout", ("6",))), "a split 'holdout'"),
        ((*RECORDS, Record("dd", "i1", 1, "train", ("6",))), "names an image twice"),
        ((*RECORDS, Record("dd", "i5", 1, "train", ())), "i5 has no files"),
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
        ("a split changed by hand", "changed after it was indexed"),
    ],
)
def test_a_manifest_that_is_not_whole_is_refused(manifest, how, reason, tmp_path):
    path = tmp_path / "manifest.json"
    manifest.write(path)
    _break(path, how)
    with pytest.raises(DataError, match=reason):
        Manifest.read(path)
