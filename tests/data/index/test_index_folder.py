from __future__ import annotations

import csv
import re
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from dpeq.cli import main
from dpeq.data.index import IndexSummary, NoManifest, index_folder
from dpeq.data.manifest import Manifest, private_path
from dpeq.errors import DataError

CLASSES = ("healthy", "lesion")


@pytest.fixture
def archive(write_series, tmp_path) -> Path:
    """20 patients, one series each; the first has two."""
    for number in range(20):
        write_series(
            f"archive/{number}", slices=2, PatientID=f"P{number:02d}", SeriesInstanceUID=f"2.25.{100 + number}"
        )
    write_series("archive/0b", slices=2, PatientID="P00", SeriesInstanceUID="2.25.99")
    return tmp_path / "archive"


def write_labels(path: Path, rows: list[str], columns: str = "patient_id,label") -> Path:
    path.write_text("\n".join([columns, *rows]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def labels(tmp_path) -> Path:
    return write_labels(tmp_path / "labels.csv", [f"P{n:02d},{n % 2}" for n in range(20)])


def run(archive: Path, labels: Path | None, tmp_path: Path, **options: Any) -> IndexSummary:
    return index_folder(archive, labels, tmp_path / "index" / "manifest.json", classes=CLASSES, **options)


def rejects(out: Path) -> dict[str, str]:
    return {path: reason for path, reason, _ in table(out.with_name(f"{out.stem}.rejects.csv"))}


def table(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.reader(handle))[1:]


def test_every_file_ends_in_a_volume_or_in_the_rejects(archive, labels, write_series, tmp_path):
    (archive / "notes.txt").write_text("hello", encoding="utf-8")
    (archive / "dangling").symlink_to("nowhere")
    (archive / "linked").symlink_to(tmp_path)
    write_series("archive/x", slices=3, PatientID="stranger", SeriesInstanceUID="2.25.5")
    write_series("archive/y", slices=1, PatientID="P01", SeriesInstanceUID="2.25.6")
    write_series("archive/z", slices=2, PatientID="P01", SeriesInstanceUID="2.25.7")
    write_series("archive/w", slices=2, PatientID="P02", SeriesInstanceUID="2.25.7")
    with pytest.raises(DataError, match="volumes: 21 images, single slices: 1 image"):
        run(archive, labels, tmp_path)
    summary = run(archive, labels, tmp_path, flat=False)
    reasons = rejects(tmp_path / "index" / "manifest.json")
    assert summary.files_seen == summary.files_accepted + summary.files_rejected == 42 + 3 + 3 + 1 + 4
    assert len(reasons) == summary.files_rejected == 11
    accepted = {file for record in summary.manifest.records for file in record.files}
    assert len(accepted) == summary.files_accepted == 42
    assert not accepted & set(reasons)
    assert reasons["notes.txt"] == "not an image (text)"
    assert "a link to" in reasons["dangling"]
    assert "a link to" in reasons["linked"]
    assert "single slice" in reasons["y/IM00"]
    assert reasons["x/IM00"] == "no label is known for it"
    assert reasons["z/IM00"] == reasons["w/IM00"] == "a series that belongs to two patients"


def test_patients_without_label_or_image_are_counted_and_listed(archive, tmp_path):
    rows = [f"P{n:02d},{n % 2}" for n in range(19)] + ["ghost,1"]
    summary = run(archive, write_labels(tmp_path / "labels.csv", rows), tmp_path)
    assert summary.unmatched == {("patient_id", "no label is known for it"): 1, ("row", "no images"): 1}
    assert table(tmp_path / "index" / "manifest.unmatched.csv") == [
        ["patient_id", "P19", "no label is known for it"],
        ["row", "ghost", "no images"],
    ]


def test_nothing_public_identifies_and_everything_else_is_for_its_owner_alone(archive, labels, tmp_path):
    run(archive, labels, tmp_path)
    out = tmp_path / "index"
    text = (out / "manifest.json").read_text(encoding="utf-8")
    for secret in ("P00", "P13", "Doe", "Jane", "1970", str(tmp_path), "2.25"):
        assert secret not in text
    others = {path for path in out.iterdir() if path.name != "manifest.json"}
    names = {f"manifest.{end}" for end in ("key", "private.json", "rejects.csv", "unmatched.csv", "scan.sqlite")}
    assert {path.name for path in others} == names
    assert {stat.S_IMODE(path.stat().st_mode) for path in others} == {0o600}
    assert (out / "manifest.key").read_text(encoding="ascii") not in text + private_path(
        out / "manifest.json"
    ).read_text()


def test_the_key_is_kept_so_that_indexing_again_gives_the_same_manifest(archive, labels, tmp_path):
    first, second = run(archive, labels, tmp_path), run(archive, labels, tmp_path)
    assert first == second
    assert Manifest.read(tmp_path / "index" / "manifest.json") == first.manifest
    elsewhere = index_folder(archive, labels, tmp_path / "b" / "manifest.json", classes=CLASSES).manifest
    assert not {r.patient for r in elsewhere.records} & {r.patient for r in first.manifest.records}


def test_its_own_files_inside_the_folder_are_not_taken_for_images(archive, labels):
    inside = labels.rename(archive / "labels.csv")
    for _ in range(2):
        summary = index_folder(archive, inside, archive / "manifest.json", classes=CLASSES)
        assert (summary.files_seen, summary.files_rejected) == (42, 0)


def test_a_spoilt_key_is_refused_rather_than_used(archive, labels, tmp_path):
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "manifest.key").write_text("", encoding="ascii")
    with pytest.raises(DataError, match=r"manifest\.key is not a key"):
        run(archive, labels, tmp_path)


def test_made_splits_are_stratified_and_keep_patients_whole(archive, labels, tmp_path):
    records = run(archive, labels, tmp_path).manifest.records
    for label in (0, 1):
        split = {r.patient: r.split for r in records if r.label == label}
        assert sorted(split.values()).count("test") == 2
        assert sorted(split.values()).count("val") == 1
        assert sorted(split.values()).count("train") == 7
    two = [r for r in records if sum(o.patient == r.patient for o in records) == 2]
    assert len(two) == 2
    assert two[0].split == two[1].split


def test_given_splits_and_class_names_are_taken_as_they_are(archive, tmp_path):
    splits = {0: "train", 1: "val", 2: "test"}
    rows = [f"P{n:02d},{CLASSES[n % 2]},{splits[n % 3]}" for n in range(20)]
    manifest = run(archive, write_labels(tmp_path / "l.csv", rows, "patient_id,label,split"), tmp_path).manifest
    assert {name: count["patients"] for name, count in manifest.counts().items()} == {"train": 7, "val": 7, "test": 6}
    assert len([r for r in manifest.records if r.label == 1]) == 10


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (["P00,0,train", "P00,0,test"], "Line 3 of .* gives a patient two splits"),
        (["P00,0,train", "P00,1,train"], "two labels"),
        (["P00,2,train", "P01,²,test"], "No label in the column label of .* is one of healthy, lesion"),
        (["P00,0,holdout"], "Line 2 of .* has another split than train, val, test"),
        ([",0,train"], "Line 2 of .* has no patient_id"),
        (["P00,0,train", "P01,1,"], "to some rows only"),
        (["P00,0,train,more"], "Line 2 of .* has not as many cells"),
        (["P00,0"], "Line 2 of .* has not as many cells"),
        (["other,0,train"], r"rejects\.csv has a reason"),
        ([f"P{n:02d},0,train" for n in range(20)], "no val images"),
    ],
)
def test_labels_that_cannot_be_right_are_refused(archive, rows, reason, tmp_path):
    with pytest.raises(DataError, match=reason):
        run(archive, write_labels(tmp_path / "l.csv", rows, "patient_id,label,split"), tmp_path)


def test_without_a_manifest_it_is_still_said_what_became_of_the_files(archive, tmp_path, monkeypatch, capsys):
    (archive / "notes.txt").write_text("hello", encoding="utf-8")
    labels = write_labels(tmp_path / "l.csv", [f"P{n:02d},0,train" for n in range(20)], "patient_id,label,split")
    out = tmp_path / "index" / "manifest.json"
    with pytest.raises(NoManifest, match="no val images") as caught:
        run(archive, labels, tmp_path)
    summary = caught.value.summary
    assert (summary.files_seen, summary.files_accepted, summary.rejects) == (43, 42, {"not an image (text)": 1})
    assert not out.exists()
    command = ["dpeq", "index", str(archive), "--labels", str(labels), "--out", str(out)]
    for lines, reason in (([], "no val images"), (["x,0,train"], "could be used")):
        if lines:
            write_labels(labels, lines, "patient_id,label,split")
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 3
        said = capsys.readouterr()
        assert reason in said.err.replace("\n", " ")
        assert re.search(r"files seen +│ 43", said.out)
        assert re.search(r"not an image \(text\) +│ 1 ", said.out)
        assert "42 headers of DICOM images that are read" in " ".join(said.out.split())
        assert not out.exists()


def test_missing_inputs_say_how_to_give_them(archive, labels, tmp_path):
    with pytest.raises(DataError, match="patient_id,label"):
        run(archive, None, tmp_path)
    with pytest.raises(DataError, match="no label file"):
        run(archive, tmp_path / "none.csv", tmp_path)
    with pytest.raises(DataError, match="There is no folder"):
        run(tmp_path / "none", labels, tmp_path)
    with pytest.raises(DataError, match="no column label"):
        run(archive, write_labels(tmp_path / "l.csv", ["P00,1"], "patient_id,diagnosis"), tmp_path)
    (tmp_path / "l.csv").write_bytes(b"patient_id,label\nM\xfcller,1\n")
    with pytest.raises(DataError, match="UTF-8"):
        run(archive, tmp_path / "l.csv", tmp_path)


def test_modalities_are_not_mixed(archive, labels, write_series, tmp_path):
    write_series("archive/mr", slices=2, PatientID="P01", SeriesInstanceUID="2.25.8", Modality="MR")
    with pytest.raises(DataError, match="mixes the modalities CT: 21 images, MR: 1 image; choose one by --modality"):
        run(archive, labels, tmp_path)
    summary = run(archive, labels, tmp_path, modality="ct")
    assert summary.rejects == {"another modality than the one asked for": 2}
    assert summary.manifest.modality == "CT"


def test_progress_counts_all_files_and_pseudonyms_look_like_nothing(archive, labels, tmp_path):
    seen = []
    summary = index_folder(
        archive, labels, tmp_path / "m.json", classes=CLASSES, progress=lambda done, total: seen.append((done, total))
    )
    assert (42, 42) in seen  # headers
    assert seen[-1] == (21, 21)  # volumes
    assert all(re.fullmatch("[0-9a-f]{16}", r.patient) for r in summary.manifest.records)


def test_a_slice_that_lost_its_tail_is_rejected_with_its_series(archive, labels, tmp_path):
    """The header of a truncated file is whole; only its pixels tell."""
    victim = sorted(path for path in archive.rglob("*") if path.is_file())[0]
    victim.write_bytes(victim.read_bytes()[:-10])
    summary = run(archive, labels, tmp_path, flat=False)
    assert summary.files_rejected >= 1
    assert summary.files_seen == summary.files_accepted + summary.files_rejected
    assert str(victim.relative_to(archive)) in rejects(tmp_path / "index" / "manifest.json")


def test_labels_are_never_overwritten(archive, labels, tmp_path):
    text = labels.read_text(encoding="utf-8")
    unmatched = labels.rename(tmp_path / "manifest.unmatched.csv")
    for out in (tmp_path / "manifest.json", unmatched):
        with pytest.raises(DataError, match="would be overwritten"):
            index_folder(archive, unmatched, out, classes=CLASSES)
    assert unmatched.read_text(encoding="utf-8") == text


def test_numbers_are_names_where_classes_are_called_by_numbers(archive, tmp_path):
    rows = [f"P{n:02d},{n % 2 * 2}" for n in range(20)]
    summary = index_folder(archive, write_labels(tmp_path / "l.csv", rows), tmp_path / "m.json", classes=("1", "2"))
    assert {r.label for r in summary.manifest.records} == {1}
    assert summary.unmatched["row", "its label is none of the classes"] == 10


def test_nothing_but_a_manifest_is_replaced(archive, labels, tmp_path):
    other = tmp_path / "notes.json"
    other.write_text("[1, 2]", encoding="utf-8")
    with pytest.raises(DataError, match="is no manifest"):
        index_folder(archive, labels, other, classes=CLASSES)
    assert other.read_text(encoding="utf-8") == "[1, 2]"
