"""Patients, labels, splits and masks of formats whose headers have none, and folders of several kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archives import Inline, rejects, unmatched, write_nifti, write_png, write_table

from dpeq.data.index import IndexSummary, build, index_folder
from dpeq.data.readers.source import Source
from dpeq.errors import ConfigError, DataError

NAMES = [f"p{n}" for n in range(10)]


@pytest.fixture(autouse=True)
def inline(monkeypatch) -> None:
    monkeypatch.setattr(build, "Workers", Inline)


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "i" / "m.json"


@pytest.fixture
def labels(tmp_path) -> Path:
    return write_table(tmp_path / "l.csv", "patient_id,label", [f"{name},{n % 2}" for n, name in enumerate(NAMES)])


def run(folder: Path, labels: Path | None, out: Path, **options: Any) -> IndexSummary:
    return index_folder(folder, labels, out, **{"classes": ("a", "b"), "modality": "MR", **options})


def files(summary: IndexSummary) -> dict[str, int]:
    return {record.files[0]: record.label for record in summary.manifest.records}


def test_a_patient_is_never_guessed(tmp_path, labels, out):
    for n, name in enumerate(NAMES):
        write_nifti(tmp_path / "a" / f"{name}.nii", n)
    with pytest.raises(DataError, match="No image"):
        run(tmp_path / "a", labels, out)
    reason = "no patient is known for it; give --layout, or a table with path and patient_id"
    assert set(rejects(out).values()) == {reason}
    (tmp_path / "a" / "sub").mkdir()
    write_nifti(tmp_path / "a" / "sub" / "p0.nii")
    summary = run(tmp_path / "a", labels, out, layout="{patient}.nii")
    assert rejects(out) == {"sub/p0.nii": "its path does not fit the layout"}
    assert files(summary) == {f"p{n}.nii": n % 2 for n in range(10)}


def test_the_patient_may_stand_in_the_table(tmp_path, out):
    for n in range(20):
        write_nifti(tmp_path / "a" / f"{n}.nii", n)
    rows = [f"{n}.nii,{NAMES[n // 2]},{n % 2}" for n in range(20)]
    summary = run(tmp_path / "a", write_table(tmp_path / "l.csv", "path,patient_id,label", rows), out)
    assert len({record.patient for record in summary.manifest.records}) == 10
    assert files(summary) == {f"{n}.nii": n % 2 for n in range(20)}


def test_a_table_that_contradicts_the_path_is_believed_in_neither(tmp_path, out):
    for n, name in enumerate(NAMES):
        write_nifti(tmp_path / "a" / f"{name}.nii", n)
    rows = [f"{name}.nii,{name if n else 'other'},{n % 2}" for n, name in enumerate(NAMES)]
    table = write_table(tmp_path / "l.csv", "path,patient_id,label", rows)
    run(tmp_path / "a", table, out, layout="{patient}.nii")
    assert rejects(out) == {"p0.nii": "the table gives it another patient"}
    assert unmatched(out) == [("path", "p0.nii", "the table gives it another patient")]


def test_a_table_that_contradicts_a_header_is_not_believed(tmp_path, write_series, out):
    for n, name in enumerate(NAMES):
        write_series(f"a/{name}", PatientID=name, SeriesInstanceUID=f"2.25.{n + 1}")
    rows = [f"2.25.{n + 1},{name if n else 'p1'},{n % 2}" for n, name in enumerate(NAMES)]
    table = write_table(tmp_path / "l.csv", "series_id,patient_id,label", rows)
    summary = run(tmp_path / "a", table, out, modality=None)
    assert set(rejects(out).values()) == {"the table gives it another patient"}
    assert summary.files_rejected == 4
    by_series = write_table(tmp_path / "s.csv", "series_id,label", [f"2.25.{n + 1},{n % 2}" for n in range(10)])
    summary = run(tmp_path / "a", by_series, out, modality=None, layout="{patient}/*")
    assert summary.files_rejected == 0
    with pytest.raises(DataError, match="No image"):
        run(tmp_path / "a", table, out, modality=None, layout="p{patient}/*")
    assert set(rejects(out).values()) == {"its header and its path name different patients"}


def test_a_series_whose_files_lie_in_places_that_say_different_things_is_rejected(tmp_path, write_series, out):
    for n, name in enumerate(NAMES):
        write_series(f"a/{'ab'[n % 2]}/{name}", PatientID=name, SeriesInstanceUID=f"2.25.{n + 1}")
    (tmp_path / "a" / "a" / "p0" / "IM00").rename(tmp_path / "a" / "b" / "IM00")
    (tmp_path / "a" / "b" / "p1" / "IM00").rename(tmp_path / "a" / "elsewhere")
    summary = run(tmp_path / "a", None, out, modality=None, layout="{label}/**/*")
    assert summary.rejects == {
        "a series whose paths say different things": 4,
        # Without the file that does not fit, the series might still look whole.
        "its path does not fit the layout": 4,
    }


def test_labels_and_splits_may_be_folders(tmp_path, out):
    for n, name in enumerate(NAMES):
        split = ("train", "val", "test")[n % 3]
        write_png(tmp_path / "a" / split / "ab"[n % 2] / f"{name}_1.png", n)
    write_png(tmp_path / "a" / "train" / "c" / "p0_2.png", 98)
    write_png(tmp_path / "a" / "holdout" / "a" / "p77_2.png", 99)
    summary = run(tmp_path / "a", None, out, layout="{split}/{label}/{patient}_*.png")
    assert {r.split for r in summary.manifest.records} == {"train", "val", "test"}
    for record in summary.manifest.records:
        assert record.files[0].startswith(f"{record.split}/{'ab'[record.label]}/")
        assert record.shape == (1, 6, 5, 1)
    assert rejects(out) == {
        "holdout/a/p77_2.png": "its split is none of train, val, test",
        "train/c/p0_2.png": "its label is none of the classes",
    }
    write_png(tmp_path / "a" / "val" / "a" / "p0_9.png", 97)
    with pytest.raises(DataError, match="1 patient is in several splits"):
        run(tmp_path / "a", None, out, layout="{split}/{label}/{patient}_*.png")


def test_labels_come_from_one_place(tmp_path, labels, out):
    (tmp_path / "a").mkdir()
    with pytest.raises(ConfigError, match="both give the label"):
        run(tmp_path / "a", labels, out, layout="{label}/{patient}.png")


def test_patients_may_have_images_of_different_labels(tmp_path, out):
    for n in range(40):
        write_png(tmp_path / "a" / f"{n}.png", n)
    rows = [f"{n}.png,p{n // 2},{n % 2}" for n in range(40)]
    summary = run(tmp_path / "a", write_table(tmp_path / "l.csv", "path,patient_id,label", rows), out)
    assert summary.manifest.counts()["test"] == {"images": 8, "patients": 4}
    by_patient: dict[str, set[int]] = {}
    for record in summary.manifest.records:
        by_patient.setdefault(record.patient, set()).add(record.label)
    assert set(map(frozenset, by_patient.values())) == {frozenset({0, 1})}


def write_npz(path: Path, patients: list[str], **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(0).integers(0, 255, (len(patients), 6, 7)).astype(np.uint8)
    np.savez(path, images=images, patient_id=np.array(patients), **more)
    return path


def test_a_number_of_a_row_is_no_id_of_an_image(tmp_path, out):
    for n in range(3):
        write_npz(tmp_path / "a" / f"{n}.npz", [f"p{n}"] * 4)
    table = write_table(tmp_path / "l.csv", "image_id,label", [f"{k},{k % 2}" for k in range(4)])
    with pytest.raises(DataError, match="No image"):
        run(tmp_path / "a", table, out)
    assert set(rejects(out).values()) == {"no label is known for it"}
    # Nor does it take the place of the id that the path gives.
    table = write_table(tmp_path / "l.csv", "image_id,label,split", ["0,0,train", "1,1,val", "2,1,test"])
    summary = run(tmp_path / "a", table, out, layout="{image}.npz")
    assert {(r.files[0], r.label, r.split) for r in summary.manifest.records} == {
        ("0.npz", 0, "train"), ("1.npz", 1, "val"), ("2.npz", 1, "test"),
    }  # fmt: skip


def test_a_row_that_fits_images_of_several_files_or_patients_is_not_applied(tmp_path, out):
    write_npz(tmp_path / "a" / "x.npz", [*NAMES, "q"], image_id=np.arange(11))
    write_npz(tmp_path / "a" / "y.npz", ["p0"], image_id=np.array([0]))
    write_npz(tmp_path / "a" / "z.npz", ["r", "s"], image_id=np.array([11, 11]))
    table = write_table(tmp_path / "l.csv", "image_id,label", [f"{k},{k % 2}" for k in range(12)])
    summary = run(tmp_path / "a", table, out)
    reason = "its row in the table fits images of several files or patients"
    assert {record.source.part for record in summary.manifest.records} == set(range(1, 11))
    assert rejects(out) == {"y.npz": reason, "z.npz": reason}
    assert summary.images_left_out == 1
    assert unmatched(out) == [("image", "x.npz#0", reason), ("image_id", "0", reason), ("image_id", "11", reason)]
    # A patient_id beside says whose it is.
    rows = [f"{k},{name},{k % 2}" for k, name in enumerate([*NAMES, "q"])] + ["11,r,1"]
    summary = run(tmp_path / "a", write_table(tmp_path / "l.csv", "image_id,patient_id,label", rows), out)
    assert ("z.npz", 0) in {(record.files[0], record.source.part) for record in summary.manifest.records}
    assert rejects(out) == {"y.npz": reason}


def test_a_row_of_a_study_is_one_patients(tmp_path, out):
    for n, name in enumerate(NAMES):
        write_nifti(tmp_path / "a" / name / f"before{'' if n else ' all'}" / "x.nii", n)
    table = write_table(tmp_path / "l.csv", "study_id,label", ["before,1", "before all,0"])
    with pytest.raises(DataError, match="no val images"):
        run(tmp_path / "a", table, out, layout="{patient}/{study}/x.nii")
    reason = "its row in the table fits studies of several patients"
    assert rejects(out) == {f"p{n}/before/x.nii": reason for n in range(1, 10)}


def test_images_of_a_file_are_left_out_one_by_one_for_lack_of_label_or_patient(tmp_path, out):
    write_npz(tmp_path / "a" / "x.npz", [*NAMES, "stranger", "", "empty"])
    write_npz(tmp_path / "a" / "y.npz", ["stranger", "stranger"])
    rows = [f"{name},{n % 2}" for n, name in enumerate(NAMES)] + ["empty,", "p88,1"]
    summary = run(tmp_path / "a", write_table(tmp_path / "l.csv", "patient_id,label", rows), out)
    assert summary.images_left_out == 3
    assert (summary.files_seen, summary.files_accepted) == (2, 1)
    assert rejects(out) == {"y.npz": "no label is known for it"}
    sources = {record.source for record in summary.manifest.records}
    assert sources == {Source("npz", ("x.npz",), part) for part in range(10)}
    assert set(unmatched(out)) == {
        ("image", "x.npz#10", "no label is known for it"),
        ("image", "x.npz#11", "no patient is known for it; give --layout, or a table with path and patient_id"),
        ("image", "x.npz#12", "its label is left empty"),
        ("patient_id", "stranger", "no label is known for it"),
        ("patient_id", "empty", "its label is left empty"),
        ("row", "empty", "its label is left empty"),
        ("row", "p88", "no images"),
    }
    assert summary.rows_without_images == 2


def test_a_file_with_one_image_that_cannot_be_read_is_rejected_whole(tmp_path, out, labels):
    for n, name in enumerate(NAMES):
        write_nifti(tmp_path / "a" / f"{name}.nii", n, (4, 5, 6, 2))
    path = tmp_path / "a" / "p0.nii"
    import nibabel

    voxels = np.random.default_rng(0).random((4, 5, 6, 2)).astype(np.float32)
    voxels[..., 1] = np.nan
    nibabel.Nifti1Image(voxels, np.diag([2.0, 2, 3, 1])).to_filename(path)
    summary = run(tmp_path / "a", labels, out, layout="{patient}.nii")
    assert list(rejects(out)) == ["p0.nii"]
    assert len(summary.manifest.records) == 18
    assert {record.source.part for record in summary.manifest.records} == {0, 1}


def test_masks_are_paired_with_images_on_the_same_grid(tmp_path, labels, out):
    for n, name in enumerate(NAMES):
        write_nifti(tmp_path / "a" / "images" / f"{name}.nii", n)
        if n != 4:
            shape = (4, 5, 7) if n == 1 else (4, 5, 6)
            affine = np.diag([2.0, 2, 3.1 if n == 2 else 3, 1])
            write_nifti(tmp_path / "a" / "masks" / f"{name}.nii", 100 + n, shape, affine)
    write_nifti(tmp_path / "a" / "masks" / "p99.nii")
    write_nifti(tmp_path / "a" / "images" / "p98.nii", 98)
    write_nifti(tmp_path / "a" / "masks" / "p98.nii", 99)
    (tmp_path / "a" / "masks" / "p3.nii").write_bytes((tmp_path / "a" / "masks" / "p3.nii").read_bytes()[:400])
    write_nifti(tmp_path / "a" / "masks" / "p5.nii", 5, (4, 5, 6, 2))
    summary = run(tmp_path / "a", labels, out, layout="images/{patient}.nii", masks="masks/{patient}.nii")
    found = rejects(out)
    assert found.pop("masks/p3.nii")
    assert found == {
        "images/p98.nii": "no label is known for it",
        "masks/p1.nii": "a mask on another grid than its image",
        "masks/p2.nii": "a mask on another grid than its image",
        "masks/p5.nii": "a mask of several images in one file",
        "masks/p98.nii": "a mask without an image",
        "masks/p99.nii": "a mask without an image",
    }
    assert summary.masks == 5
    assert {name for kind, name, reason in unmatched(out) if reason == "no mask"} == {
        f"images/p{n}.nii" for n in (1, 2, 3, 4, 5)
    }
    for record in summary.manifest.records:
        if record.mask is not None:
            assert record.mask.files[0] == record.files[0].replace("images", "masks") == record.files[1]
            assert set(record.files) <= set(summary.manifest.files)


def test_a_mask_that_fits_several_images_or_has_a_twin_is_nobodys(tmp_path, labels, out):
    for n, name in enumerate(NAMES):
        write_nifti(tmp_path / "a" / name / "i1.nii", n)
        write_nifti(tmp_path / "a" / name / "m1.nii", 100 + n)
    write_nifti(tmp_path / "a" / "p0" / "i2.nii", 50)
    write_nifti(tmp_path / "a" / "p1" / "m2.nii", 51)
    summary = run(tmp_path / "a", labels, out, layout="{patient}/i*.nii", masks="{patient}/m*.nii")
    assert rejects(out) == {
        "p0/m1.nii": "a mask that fits several images",
        "p1/m1.nii": "several masks of one image",
        "p1/m2.nii": "several masks of one image",
    }
    assert summary.masks == 8


def test_masks_of_dicom_series_are_found_by_ids_of_the_header(tmp_path, write_series, out):
    for n, name in enumerate(NAMES):
        write_series(f"a/ct/{n}", PatientID=name, SeriesInstanceUID=f"2.25.{n + 1}")
        # Columns of the affine of write_series, in RAS.
        affine = np.array([[-3.0, 0, 0, -10], [0, -2, 0, -20], [0, 0, 4, 30], [0, 0, 0, 1]])
        write_nifti(tmp_path / "a" / "masks" / f"{name}.nii", n, (6, 5, 4), affine)
    rows = [f"{name},{n % 2}" for n, name in enumerate(NAMES)]
    table = write_table(tmp_path / "l.csv", "patient_id,label", rows)
    summary = run(tmp_path / "a", table, out, masks="masks/{patient}.nii", modality=None)
    assert (summary.masks, summary.files_rejected) == (10, 0)


def test_kinds_are_not_mixed(tmp_path, labels, out):
    for n, name in enumerate(NAMES):
        write_nifti(tmp_path / "a" / f"{name}_v.nii", n)
        write_png(tmp_path / "a" / f"{name}_g.png", n)
        write_png(tmp_path / "a" / f"{name}_c.png", n, colour=True)
    layout = "{patient}_*"
    with pytest.raises(DataError, match=r"grey and colour images \(by channels, 1: 20 images, 3: 10 images\)"):
        run(tmp_path / "a", labels, out, layout=layout)
    with pytest.raises(DataError, match=r"30 images in .* do not say their modality; name it, as in --modality MR"):
        run(tmp_path / "a", labels, out, layout=layout, modality=None)
    both = r"volumes and flat images \(volumes: 10 images, single slices: 10 images\); choose by --volumes or --flat"
    with pytest.raises(DataError, match=both):
        run(tmp_path / "a", labels, out, layout=layout, channels=1)
    summary = run(tmp_path / "a", labels, out, layout=layout, channels=1, flat=False)
    assert summary.rejects == {
        "a single slice among volumes": 10,
        "another number of channels than the one asked for": 10,
    }
    assert all(record.shape == (1, 4, 5, 6) for record in summary.manifest.records)
    summary = run(tmp_path / "a", labels, out, layout=layout, channels=1, flat=True)
    assert summary.rejects["a volume among single slices"] == 10
    assert all(record.shape == (1, 6, 5, 1) for record in summary.manifest.records)
    summary = run(tmp_path / "a", labels, out, layout=layout, channels=3)  # all of them flat, and not asked for
    assert all(record.shape == (3, 6, 5, 1) for record in summary.manifest.records)


def test_one_image_under_two_patients_is_noticed(tmp_path, labels, out):
    for n, name in enumerate(NAMES):
        write_nifti(tmp_path / "a" / name / "1.nii", n)
    write_nifti(tmp_path / "a" / "p3" / "2.nii", 7)
    write_nifti(tmp_path / "a" / "p4" / "2.nii", 4)
    import nibabel

    for name in ("p5", "p6"):  # black, as many are
        nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.eye(4)).to_filename(tmp_path / "a" / name / "2.nii")
    summary = run(tmp_path / "a", labels, out, layout="{patient}/*.nii")
    assert summary.under_two_patients == 2
    assert summary.twice_under_one == 2
    same = {name: reason for _, name, reason in unmatched(out) if "same voxels" in reason}
    assert same == {
        **dict.fromkeys(["p3/2.nii", "p7/1.nii"], "the same voxels as an image of another patient"),
        **dict.fromkeys(["p4/1.nii", "p4/2.nii"], "the same voxels as another image of its patient"),
    }
    assert summary.files_rejected == 0


def test_images_with_text_burned_in_are_flagged_and_listed(tmp_path, write_series, labels, out):
    for n, name in enumerate(NAMES):
        change = {2: {"BurnedInAnnotation": "YES"}} if n == 3 else {}
        write_series(f"a/{name}", PatientID=name, SeriesInstanceUID=f"2.25.{n + 1}", change=change)
    summary = run(tmp_path / "a", labels, out, modality=None)
    assert summary.burned_in == 1
    assert [reason for _, _, reason in unmatched(out)] == ["text is burned in, by its header"]
    assert summary.dicom_headers == 40
    assert (summary.identifying["PatientName"], summary.identifying["SeriesInstanceUID"]) == (40, 40)
    assert "AccessionNumber" not in summary.identifying
    assert run(tmp_path / "a", labels, out, modality=None) == summary


def test_names_that_are_no_valid_text_are_kept(tmp_path, out):
    for n, name in enumerate(NAMES):
        write_png(tmp_path / "a" / f"{name}\udcfc" / "x\udce4.png", n)
    (tmp_path / "a" / "\udcff").write_text("?")
    with pytest.raises(DataError, match="No image"):
        run(tmp_path / "a", write_table(tmp_path / "l.csv", "patient_id,label", ["x,0"]), out, layout="{patient}/*.png")
    for n, name in enumerate(NAMES):
        (tmp_path / "a" / f"{name}\udcfc").rename(tmp_path / "a" / f"{'ab'[n % 2]}{name}\udcfc")
    summary = run(tmp_path / "a", None, out, layout="{label}p{patient}/*.png")
    assert summary.files_accepted == 10
    assert rejects(out) == {"\\udcff": "not an image (text)"}


COMPOSED, APART = "M\u00fcller", "Mu\u0308ller"


@pytest.mark.parametrize(("here", "there"), [(COMPOSED, APART), (APART, COMPOSED)])
def test_ids_of_headers_that_look_the_same_are_the_same(tmp_path, write_series, out, here, there):
    utf8 = {"SpecificCharacterSet": "ISO_IR 192"}
    write_series("a/1", PatientID=here, SeriesInstanceUID="2.25.1", **utf8)
    write_series("a/2", PatientID=there, SeriesInstanceUID="2.25.2", **utf8)
    write_series("a/half", 4, {1: {"PatientID": there}}, PatientID=here, SeriesInstanceUID="2.25.5", **utf8)
    write_series("a/3", PatientID="v", SeriesInstanceUID="2.25.3")
    write_series("a/4", PatientID="t", SeriesInstanceUID="2.25.4")
    table = write_table(tmp_path / "l.csv", "patient_id,label,split", [f"{here},1,train", "v,0,val", "t,0,test"])
    summary = run(tmp_path / "a", table, out, modality=None)
    assert summary.files_rejected == 0
    assert summary.manifest.counts()["train"] == {"images": 3, "patients": 1}


@pytest.mark.parametrize(("here", "there"), [(COMPOSED, APART), (APART, COMPOSED)])
def test_paths_that_look_the_same_fit_the_same(tmp_path, out, here, there):
    """Layouts, masks, names of classes and rows of tables; files are opened by their own names."""
    for name, split in ((there, "train"), ("v", "val"), ("t", "test")):
        write_nifti(tmp_path / "a" / split / f"{there}s" / f"{name}.nii", len(name))
        write_nifti(tmp_path / "a" / "masks" / f"{here if name == there else name}.nii", 7)
    options = {"classes": ("other", f"{here}s"), "masks": "masks/{patient}.nii"}
    summary = run(tmp_path / "a", None, out, layout="{split}/{label}/{patient}.nii", **options)
    assert (summary.files_rejected, summary.masks, {r.label for r in summary.manifest.records}) == (0, 3, {1})
    names = ((here, "train"), ("v", "val"), ("t", "test"))
    rows = [f"{split}/{here}s/{name}.nii,{name},1,{split}" for name, split in names]
    table = write_table(tmp_path / "l.csv", "path,patient_id,label,split", rows)
    summary = run(tmp_path / "a", table, out, masks="masks/{patient}.nii", layout=f"*/{here}s/{{patient}}.nii")
    assert (summary.files_rejected, summary.masks, len(summary.manifest.records)) == (0, 3, 3)


def test_a_row_of_a_path_is_one_files(tmp_path, out):
    for n, name in enumerate((COMPOSED, APART, "v", "t")):
        write_nifti(tmp_path / "a" / f"{name}.nii", n)
    rows = [f"{COMPOSED}.nii,p,1,train", "v.nii,v,1,val", "t.nii,t,1,test"]
    table = write_table(tmp_path / "l.csv", "path,patient_id,label,split", rows)
    with pytest.raises(DataError, match="no train images"):
        run(tmp_path / "a", table, out)
    assert set(rejects(out).values()) == {"its row in the table fits files of names that look the same"}


def test_members_and_rows_that_look_the_same_are_the_same(tmp_path, out):
    write_npz(tmp_path / "a" / "x.npz", [COMPOSED, APART, "v", "t"])
    rows = [f"{APART},1,train", "v,1,val", "t,0,test"]
    summary = run(tmp_path / "a", write_table(tmp_path / "l.csv", "patient_id,label,split", rows), out)
    assert summary.manifest.counts()["train"] == {"images": 2, "patients": 1}
    rows.append(f"{COMPOSED},0,train")
    with pytest.raises(DataError, match="a patient two labels"):
        run(tmp_path / "a", write_table(tmp_path / "l.csv", "patient_id,label,split", rows), out)
