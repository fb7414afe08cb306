from __future__ import annotations

import pytest
from archives import write_table

from dpeq.data.index.labels import KEYS, Classes, Row, Table
from dpeq.data.index.splits import check_disjoint, make_splits
from dpeq.errors import DataError

CLASSES = Classes(("healthy", "lesion"))


def read(tmp_path, columns: str, *rows: str, label_column: str = "label", need_labels: bool = True) -> Table:
    return Table(write_table(tmp_path / "l.csv", columns, rows), CLASSES, label_column, need_labels=need_labels)


def keys(**ids: str) -> dict[str, tuple[str, ...]]:
    return {key: (ids[key],) if key in ids else () for key in KEYS}


def test_rows_are_found_by_the_most_specific_id(tmp_path):
    table = read(tmp_path, "patient_id,series_id,label", "p,s1,healthy", "p,s2,1", "q,s3,lesion")
    assert table.key == "series_id"
    assert table.find(keys(series_id="s2", patient_id="q")) == Row("p", 1)
    assert table.find(keys(patient_id="p")) is None
    assert table.unused() == ["s1", "s3"]


def test_rows_of_several_files_of_an_image_must_agree(tmp_path):
    table = read(tmp_path, "path,label", "./a,0", "b,0", "c,1")
    assert table.find({**keys(), "path": ("a", "b", "x")}) == Row("", 0)
    with pytest.raises(LookupError):
        table.find({**keys(), "path": ("a", "c")})


def test_a_label_may_be_missing_or_unknown(tmp_path):
    table = read(tmp_path, "patient_id,diagnosis", "a,healthy", "b,", "c,maybe", label_column="diagnosis")
    assert [row.problem for row in table.rows.values()] == [
        "", "its label is left empty", "its label is none of the classes",
    ]  # fmt: skip


def test_a_table_without_labels_may_tell_patients_and_splits(tmp_path):
    table = read(tmp_path, "path,patient_id,split", "a,p,train", "b,q,val", need_labels=False)
    assert table.find(keys(path="b")) == Row("q", None, "", "val")
    assert table.has_splits
    assert not table.has_labels
    assert not read(tmp_path, "path,patient_id,split", "a,p,", need_labels=False).has_splits


@pytest.mark.parametrize(
    ("columns", "rows", "reason"),
    [
        ("name,label", ["a,0"], "has no column path, image_id"),
        ("patient_id,diagnosis", ["a,0"], "no column label; .* or name another by --label-column"),
        ("patient_id,label,label", ["a,0,0"], "two columns of one name"),
        ("patient_id,label", ["a,0", "a,1"], "Line 3 of .* gives a patient two labels"),
        ("patient_id,label", ["a,0", "a,"], "a patient two labels"),
        ("series_id,patient_id,label", ["a,p,0", "a,q,0"], "Line 3 of .* gives a series two patients"),
        ("patient_id,label", ['"a,0'], "cannot be read"),
    ],
)
def test_a_table_that_cannot_be_right_is_refused(tmp_path, columns, rows, reason):
    with pytest.raises(DataError, match=reason) as caught:
        read(tmp_path, columns, *rows)
    assert str(caught.value).count("\n") == 0


def test_no_cell_of_a_table_is_quoted(tmp_path):
    for rows in (
        ["Doe,Jane,train"],
        ["Doe,0,Jane"],
        ["Doe,0,train", "Doe,1,train"],
        ["Doe,0,train", "Ray,0,"],
        ["Doe"],
    ):
        with pytest.raises(DataError) as caught:
            read(tmp_path, "patient_id,label,split", *rows)
        assert not {"Doe", "Jane", "Ray"} & set(str(caught.value).replace(",", " ").replace("'", " ").split())


def test_made_splits_keep_the_shares_of_every_combination_of_labels():
    labels = {f"{n:02d}": ((0,), (1,), (0, 1))[n % 3] for n in range(60)}
    splits = make_splits(labels)
    for kind in set(labels.values()):
        names = [splits[patient] for patient in labels if labels[patient] == kind]
        assert (names.count("test"), names.count("val"), names.count("train")) == (4, 2, 14)


def test_rare_combinations_are_split_together():
    splits = make_splits({f"{n:02d}": {n, n + 1} for n in range(20)})
    names = list(splits.values())
    assert (names.count("test"), names.count("val"), names.count("train")) == (4, 2, 14)


def test_patients_in_several_splits_are_counted():
    check_disjoint([("a", "train"), ("a", "train"), ("b", "val")])
    with pytest.raises(DataError, match="2 patients are in several splits"):
        check_disjoint([("a", "train"), ("a", "val"), ("b", "val"), ("b", "test"), ("c", "val")])
