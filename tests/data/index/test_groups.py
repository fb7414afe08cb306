"""Groups from headers and tables to the manifest: numbered sites, one sex, nothing of who is trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from archives import Inline, write_slice, write_table

from dpeq.data.index import IndexSummary, build, index_folder
from dpeq.data.index.groups import columns_of, settle
from dpeq.data.index.labels import Classes, Table
from dpeq.data.index.pseudonyms import Pseudonyms
from dpeq.data.manifest import Record
from dpeq.data.readers.source import Source
from dpeq.errors import ConfigError, DataError

SITES = ("Alpha", "Beta", "Gamma", "Delta", "Epsilon")


def record(image: str, split: str = "test", patient: str = "p", **groups: str) -> Record:
    return Record(patient, image, 0, split, (1, 4, 4, 1), False, Source("dicom", (image,)), None, tuple(groups.items()))


@pytest.fixture(scope="module")
def names(tmp_path_factory) -> Pseudonyms:
    return Pseudonyms(tmp_path_factory.mktemp("key") / "m.key")


def groups_of(records: list[Record]) -> dict[str, dict[str, str]]:
    return {record.image: dict(record.groups) for record in records}


def test_who_is_trained_on_is_in_no_group_and_decides_nothing(names):
    records = [record("a", "train", "p", sex="male", site="Alpha"), record("b", sex="female", site="Beta", patient="q")]
    settled, counts = settle(records, names)
    assert groups_of(settled) == {"a": {}, "b": {"sex": "female", "site": "site 1"}}
    assert (counts.images, counts.known) == (1, {"sex": 1, "site": 1})


def test_a_patient_has_one_sex_or_none(names):
    records = [
        *(record("a", sex="female", age="0-9"), record("b", age="10-19"), record("c", sex="male", patient="q")),
        *(record("d", sex="female", patient="q", device="GE"), record("e", patient="r")),
    ]
    settled, counts = settle(records, names)
    assert groups_of(settled) == {
        "a": {"sex": "female", "age": "0-9"},
        "b": {"sex": "female", "age": "10-19"},
        "c": {},
        "d": {"device": "GE"},
        "e": {},
    }
    assert (counts.two_sexes, counts.known) == (1, {"sex": 2, "age": 2, "device": 1})


def test_sites_are_numbered_in_an_order_that_is_not_their_names(tmp_path):
    """Another key, another order; from a table they are shown as written."""
    records = [record(site, site=site) for site in SITES for _ in range(1)]
    orders = set()
    for number in range(8):
        settled, _ = settle(records, Pseudonyms(tmp_path / f"{number}.key"))
        shown = groups_of(settled)
        assert {groups["site"] for groups in shown.values()} == {f"site {n}" for n in range(1, 6)}
        orders.add(tuple(shown[site]["site"] for site in SITES))
    assert len(orders) > 3
    settled, _ = settle(records, Pseudonyms(tmp_path / "0.key"), ["site"])
    assert {groups["site"] for groups in groups_of(settled).values()} == set(SITES)


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("sex", {"sex": "sex"}),
        ("sex, age=Years ,site = Clinic", {"sex": "sex", "age": "Years", "site": "Clinic"}),
        ("device=a=b", {"device": "a=b"}),
    ],
)
def test_columns_are_named_by_attribute(text, columns):
    assert columns_of(text) == columns


@pytest.mark.parametrize("text", ["", "name", "sex,,age", "sex,sex", "sex=", "Gender=sex"])
def test_other_columns_are_refused(text):
    with pytest.raises(ConfigError, match=r"--groups .* name some of sex, age, site, device"):
        columns_of(text)


@pytest.fixture
def archive(tmp_path, monkeypatch) -> Path:
    """Ten patients of one X-ray each, all of them tested on but four; the third has images of two sexes."""
    monkeypatch.setattr(build, "Workers", Inline)
    xray = {"Modality": "DX", "RescaleSlope": None, "RescaleIntercept": None, "ImagePositionPatient": None}
    xray["ImageOrientationPatient"] = None
    for n in range(11):
        write_slice(
            tmp_path / "archive" / f"{n}",
            np.random.default_rng(n).integers(0, 2000, (5, 6)).astype("<u2"),
            PatientID=f"P{n % 10}",
            SeriesInstanceUID=f"2.25.{n + 7}",
            PatientSex="FM"[n % 2] if n != 10 else "M",
            PatientAge=f"{20 + n:03d}Y",
            InstitutionName=SITES[n % 2],
            Manufacturer=("GE MEDICAL SYSTEMS", "Doe Ltd")[n % 2],
            **xray,
        )
    return tmp_path / "archive"


def run(archive: Path, **options: object) -> tuple[dict[str, dict[str, str]], IndexSummary, str]:
    """Groups of the images that are evaluated on, by their file."""
    out = archive.parent / "m.json"
    split = ["train", "train", "train", "train", "val", "val", "test", "test", "test", "test"]
    rows = [f"P{n},{n % 2},{split[n] if n else 'test'},{'m' if n < 8 else ''},Ward {n % 3},{n}" for n in range(10)]
    labels = write_table(archive.parent / "l.csv", "patient_id,label,split,Gender,site,years", rows)
    summary = index_folder(archive, labels, out, classes=("a", "b"), **options)
    shown = [record for record in summary.manifest.records if record.split != "train"]
    return {r.files[0]: dict(r.groups) for r in shown}, summary, out.read_text(encoding="utf-8")


def test_headers_say_groups_without_asking(archive):
    groups, summary, public = run(archive)
    sites = {groups[file]["site"] for file in ("0", "4", "6")}, {groups[file]["site"] for file in ("5", "7")}
    assert sorted(map(sorted, sites)) == [["site 1"], ["site 2"]]
    assert {name: value for name, value in groups["5"].items() if name != "site"} == {
        "sex": "male", "age": "20-29", "device": "other",
    }  # fmt: skip
    assert groups["4"]["sex"] == "female"
    assert "sex" not in groups["0"], "the first patient is female in one image and male in another"
    assert (groups["0"]["age"], groups["10"]["age"], groups["4"]["device"]) == ("20-29", "30-39", "GE")
    assert not {"sex", "age"} & set(groups["10"]) - {"age"}
    assert not any(site in public for site in SITES)
    assert list(summary.groups.rows()) == [
        ("sex known", "6 of 8 validation and test images"),
        ("age known", "8 of 8 validation and test images"),
        ("site known", "8 of 8 validation and test images"),
        ("device known", "8 of 8 validation and test images"),
        ("  patients of two sexes, taken as unknown", "1"),
    ]
    assert all(record["groups"] == {} for record in json.loads(public)["records"] if record["split"] == "train")


def test_the_table_wins_over_headers_and_its_words_do_not_mix_with_theirs(archive):
    groups, summary, _ = run(archive, groups={"sex": "Gender", "site": "site", "age": "years"})
    assert {file: found.get("sex") for file, found in groups.items()} == {
        "0": "male", "10": "male", "4": "male", "5": "male", "6": "male", "7": "male", "8": None, "9": None,
    }  # fmt: skip
    assert groups["4"] == {"sex": "male", "age": "0-9", "site": "Ward 1", "device": "GE"}
    assert summary.groups.two_sexes == 0
    assert [name for name, _ in summary.groups.rows()] == ["sex known", "age known", "site known", "device known"]


def test_what_was_asked_of_the_table_is_counted_though_it_says_nothing(archive):
    write_table(archive.parent / "x.csv", "patient_id,sex,age", [f"P{n},{'Ffx'[n % 3]}," for n in range(10)])
    table = Table(archive.parent / "x.csv", Classes(("a", "b")), "label", need_labels=False,
                  groups={"sex": "sex", "age": "age"})  # fmt: skip
    _, counts = settle([record("a")], Pseudonyms(archive.parent / "k.key"), table.groups)
    counts.not_understood.update(table.not_understood)
    assert list(counts.rows()) == [
        ("sex known", "0 of 1 validation and test images"),
        ("  rows whose sex is not understood", "3"),
        ("age known", "0 of 1 validation and test images"),
    ]


def test_files_of_a_series_that_differ_say_nothing(tmp_path, write_series, monkeypatch):
    monkeypatch.setattr(build, "Workers", Inline)
    for n in range(12):
        change = {1: {"PatientAge": "030Y"}} if n == 8 else {}
        write_series(f"archive/{n}", 3, change, PatientID=f"P{n}", SeriesInstanceUID=f"2.25.{n + 9}", PatientAge="029Y")
    rows = [f"P{n},{n % 2},{('train', 'val', 'test')[n // 4]}" for n in range(12)]
    labels = write_table(tmp_path / "l.csv", "patient_id,label,split", rows)
    summary = index_folder(tmp_path / "archive", labels, tmp_path / "m.json", classes=("a", "b"))
    ages = {r.files[0].split("/")[0]: dict(r.groups).get("age") for r in summary.manifest.split("test")}
    assert ages == {"8": None, "9": "20-29", "10": "20-29", "11": "20-29"}


def test_groups_need_a_table(archive):
    with pytest.raises(ConfigError, match="--groups names columns of the table that --labels gives"):
        index_folder(archive, None, archive.parent / "n.json", classes=("a", "b"), groups={"sex": "sex"})
    with pytest.raises(DataError, match="no column device"):
        run(archive, groups={"device": "device"})
