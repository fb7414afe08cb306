from __future__ import annotations

import csv
import hashlib
from collections import Counter
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pydicom
import pytest

from dpeq.data.attributes import age_band, device_of
from dpeq.resources import asset, load_module

phantom = load_module(asset("datasets", "phantom_hospital.py"))
PATIENTS = 8


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    return phantom.generate(tmp_path_factory.mktemp("phantom") / "hospital", patients=PATIENTS, seed=3)


def digest(folder: Path) -> str:
    whole = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        whole.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return whole.hexdigest()


def labels(folder: Path) -> list[dict[str, str]]:
    with (folder / "labels.csv").open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def test_the_same_seed_gives_the_same_bytes_whatever_the_number_of_processes(hospital, tmp_path):
    done = []
    again = phantom.generate(
        tmp_path / "again", patients=PATIENTS, seed=3, workers=3, progress=lambda n, of: done.append((n, of))
    )
    assert digest(again) == digest(hospital)
    assert done == [(i, PATIENTS) for i in range(1, PATIENTS + 1)]


def test_another_seed_gives_other_patients():
    assert phantom.roster(40, 0) != phantom.roster(40, 1)


@pytest.mark.parametrize("patients", [8, 41, 480])
def test_roster_is_balanced_in_every_split_and_ids_are_unique(patients):
    rows = phantom.roster(patients, 0)
    assert len({row.patient_id for row in rows}) == patients
    counts = Counter((row.split, row.label) for row in rows)
    for split, share in (("train", 0.625), ("val", 0.125), ("test", 0.25)):
        assert abs(counts[split, 0] - counts[split, 1]) <= 1
        assert abs(counts[split, 0] + counts[split, 1] - share * patients) <= 1


def test_every_series_is_whole_and_named_without_meaning(hospital):
    rows = labels(hospital)
    archive = hospital / "archive"
    assert {row["patient_id"] for row in rows} == {p.name for p in archive.iterdir()}
    instances, in_order = set(), []
    for series in archive.glob("*/*"):
        slices = [pydicom.dcmread(path) for path in sorted(series.iterdir())]
        assert len({s.SeriesInstanceUID for s in slices}) == 1
        assert {s.PatientID for s in slices} == {series.parent.name}
        heights = [float(s.ImagePositionPatient[2]) for s in slices]
        in_order.append(heights in (sorted(heights), sorted(heights, reverse=True)))
        np.testing.assert_allclose(np.diff(sorted(heights)), slices[0].SliceThickness, atol=2e-3)
        for s in slices:
            assert s.SOPInstanceUID.is_valid
            assert s.StudyInstanceUID.is_valid
            instances.add(s.SOPInstanceUID)
            for tag in ("PatientName", "PatientBirthDate", "InstitutionName", "AccessionNumber", "StudyDate"):
                assert s[tag].value
        hu = slices[len(slices) // 2].pixel_array * float(slices[0].RescaleSlope) + float(slices[0].RescaleIntercept)
        assert hu.min() < -900, "there is air around the patient"
        assert hu.max() > 150, "there is bone in the patient"
    assert not all(in_order), "file names must not give the order of the slices away"
    assert len(instances) == sum(1 for _ in archive.rglob("*.dcm"))


def test_headers_say_what_groups_are_made_of(hospital):
    """The same in all files of a patient; the age is that on the day of the study."""
    headers = {}
    for path in hospital.rglob("*.dcm"):
        data = pydicom.dcmread(path, stop_before_pixels=True)
        said = (data.PatientSex, data.PatientAge, data.InstitutionName, data.Manufacturer)
        assert headers.setdefault(data.PatientID, said) == said
        born, day = (datetime.strptime(text, "%Y%m%d") for text in (data.PatientBirthDate, data.StudyDate))
        assert 0 <= (day - born).days / 365.2425 - int(data.PatientAge[:3]) + 0.01 < 1.02
        assert data["PatientAge"].VR == "AS"
        assert len(data.PatientAge) == 4
    assert len(headers) == PATIENTS
    sexes, ages, institutions, manufacturers = map(set, zip(*headers.values(), strict=True))
    assert sexes == {"F", "M"}
    assert len({age_band(age) for age in ages}) > 2
    assert institutions == {"Phantom Hospital North", "Phantom Hospital South"}
    assert {device_of(name) for name in manufacturers} == {"GE", "Siemens"}


@pytest.mark.parametrize(
    ("born", "day", "years"), [("19450315", "20200315", 75), ("19450315", "20200314", 74), ("19451231", "20200101", 74)]
)
def test_years_are_whole(born, day, years):
    assert phantom._years(born, day) == years


def test_storage_varies_so_that_readers_must_apply_the_rescale(tmp_path):
    folder = phantom.generate(tmp_path / "h", patients=16, seed=0)
    seen = set()
    for series in folder.glob("archive/*/*"):
        data = pydicom.dcmread(next(series.iterdir()), stop_before_pixels=True)
        seen.add((data.PixelRepresentation, float(data.RescaleSlope), float(data.RescaleIntercept)))
    assert len(seen) == 4


def test_the_label_is_the_lesion_and_the_lesion_takes_air_away():
    anatomy = phantom._Anatomy.draw(np.random.default_rng(5), 1)
    assert len(anatomy.lesions) >= 1
    assert phantom._Anatomy.draw(np.random.default_rng(5), 0).lesions == ()
    x, y, z = np.meshgrid(*(np.arange(-100, 101, 10.0),) * 3, indexing="ij")
    points = np.stack([x, y, z], -1)
    difference = anatomy.hounsfield(points, 10.0) - replace(anatomy, lesions=()).hounsfield(points, 10.0)
    assert difference.min() >= 0
    assert difference.max() > 150


def test_refuses_a_folder_in_use_and_leaves_nothing_half_done(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").write_text("x")
    with pytest.raises(FileExistsError, match="not empty"):
        phantom.generate(tmp_path / "full", patients=8)
    with pytest.raises(ValueError, match="at least 8"):
        phantom.generate(tmp_path / "few", patients=7)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        phantom.generate(tmp_path / "cut", patients=8, progress=stop)
    assert {p.name for p in tmp_path.iterdir()} == {"full"}
