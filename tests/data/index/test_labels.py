from __future__ import annotations

import pytest
from archives import write_table

from dpeq.data.index.labels import KEYS, Classes, Row, Table
from dpeq.data.index.splits import check_disjoint, make_splits
from dpeq.errors import DataError

CLASSES = Classes(("healthy", "lesion"))


def read(tmp_path, columns: str, *rows: str, label_column: str = "label", need_labels: bool = True, **more) -> Table:
    path = write_table(tmp_path / "l.csv", columns, rows)
    return Table(path, CLASSES, label_column, need_labels=need_labels, **more)


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


def test_groups_are_read_where_columns_are_named_and_are_normalised(tmp_path):
    rows = ["p,0,F,45, North  Wing ,GE", "q,1,male,91.5,,", "r,1,2,x,über,", "s,0,o,60-69,,"]
    groups = {"sex": "Gender", "age": "age", "site": "Clinic"}
    table = read(tmp_path, "patient_id,label,Gender,age,Clinic,device", *rows, groups=groups)
    assert [dict(row.groups) for row in table.rows.values()] == [
        {"sex": "female", "age": "40-49", "site": "North Wing"},
        {"sex": "male", "age": "90+"},
        {"site": "über"},
        {"sex": "other", "age": "60-69"},
    ]
    assert table.not_understood == {"sex": 1, "age": 1}
    assert all(not row.groups for row in read(tmp_path, "patient_id,label,sex", "p,0,f").rows.values())


def test_what_lines_about_one_thing_differ_in_is_unknown(tmp_path):
    rows = ["p,0,f,61", "p,0,f,72", "p,0,f,61"]
    table = read(tmp_path, "patient_id,label,sex,age", *rows, groups={"sex": "sex", "age": "age"})
    assert table.rows["p"].groups == {"sex": "female"}
    table = read(tmp_path, "path,label,sex,age", "a,0,f,61", "b,0,f,72", groups={"sex": "sex", "age": "age"})
    found = table.find({**keys(), "path": ("a", "b")})
    assert found is not None
    assert found.groups == {"sex": "female"}
    assert table.rows["a"].groups == {"sex": "female", "age": "60-69"}


@pytest.mark.parametrize(
    ("columns", "rows", "groups", "reason"),
    [
        ("patient_id,label", ["a,0"], {"sex": "sex"}, "has no column sex for the sex; name another by --groups"),
        ("patient_id,label,sex", ["a,0,1", "b,1,"], {"sex": "sex"}, "column sex of .* is understood as a sex"),
        ("patient_id,label", ["a,0"], {"site": "patient_id"}, "from the column patient_id, which has ids"),
        ("path,study_id,label", ["a,s,0"], {"device": "study_id"}, "from the column study_id, which has ids"),
        ("patient_id,label", ["a,0"], {"device": "label"}, "which has ids, labels or splits"),
        ("patient_id,label,note", ["a,0," + 41 * "x"], {"site": "note"}, "Line 2 of .* too long for a site"),
    ],
)
def test_columns_that_cannot_be_meant_are_refused(tmp_path, columns, rows, groups, reason):
    with pytest.raises(DataError, match=reason) as caught:
        read(tmp_path, columns, *rows, groups=groups)
    assert "xxx" not in str(caught.value)


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
