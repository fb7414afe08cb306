"""Names, ids and dates in every header and file name, then every byte that is written anywhere is searched for them.

What may carry them is the private part of the manifest alone, which its owner alone can read.
"""

import os
import subprocess
import sys
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from planting import Plants, leaks, written
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

PRIVATE = (
    "manifest.private.json",
    "manifest.key",
    "manifest.scan.sqlite",
    "manifest.rejects.csv",
    "manifest.unmatched.csv",
)
PATIENTS = 20
TINY = [
    "privacy.steps=2",
    "privacy.expected_batch_size=4",
    "privacy.public_units=14",
    "privacy.delta=1e-2",
    "evaluation.bootstrap=100",
    "model.fields=[1,1,2]",
    "model.norm_groups=[1,1,1]",
    "training.threads=1",
]


class Room:
    """A user's whole world in one folder: home, cache, temporary files, archive, and what the verbs say."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.plants, self.said = folder, Plants(), b""
        self.archive = folder / "archive"
        self.work = folder / "work"
        for name in ("home", "tmp", "cache", "work", "archive"):
            (folder / name).mkdir()

    def dpeq(self, *arguments: str, code: int = 0) -> str:
        places = {"HOME": "home", "TMPDIR": "tmp", "DPEQ_CACHE": "cache", "XDG_CACHE_HOME": "home/.cache"}
        environment = {**os.environ, **{key: str(self.folder / place) for key, place in places.items()}}
        done = subprocess.run(
            [sys.executable, "-m", "dpeq", *arguments], cwd=self.work, env=environment, capture_output=True, timeout=300
        )
        self.said += done.stdout + done.stderr
        assert done.returncode == code, done.stderr.decode()[-2000:]
        return done.stdout.decode()

    def found(self) -> list[str]:
        private = {self.work / name for name in PRIVATE}
        for path in private:
            assert path.stat().st_mode & 0o777 == 0o600, f"{path.name} is for its owner alone"
        inside = [
            (place, data)
            for place, data in written(self.folder)
            if not place.removeprefix("the name ").startswith("archive/")
            and not any(place == str(path.relative_to(self.folder)) for path in private)
        ]
        assert len(inside) > 10, "the search looked at something"
        return leaks(self.plants, [("what was said", self.said), *inside])


@pytest.fixture
def room(tmp_path) -> Room:
    return Room(tmp_path)


def pixels(label: int, shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 900 + 900 * label, shape)


def write_ct(room: Room) -> None:
    """Series of four slices; the table of labels lies beside the archive, inside the private world of the hospital."""
    rows = ["patient_id,label"]
    for number in range(PATIENTS):
        label, patient = number % 2, room.plants.text("the patient's id")
        study, series = room.plants.uid("the study's UID"), room.plants.uid("the series' UID")
        frame = room.plants.uid("the frame of reference's UID")
        folder = room.archive / room.plants.text("a folder's name") / room.plants.text("a folder's name")
        folder.mkdir(parents=True)
        rows.append(f"{patient},{('healthy', 'lesion')[label]}")
        for index in range(4):
            data = Dataset()
            room.plants.into(data)
            data.FrameOfReferenceUID = frame
            image = pixels(label, (12, 12), 10 * number + index).astype("<u2")
            data.PatientID, data.StudyInstanceUID, data.SeriesInstanceUID = patient, study, series
            data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, room.plants.uid("the image's UID")
            data.Modality, data.PatientAge, data.PatientSex = "CT", "099Y", "O"
            data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
            data.ImageOrientationPatient, data.PixelSpacing = [1, 0, 0, 0, 1, 0], [2.0, 2.0]
            data.ImagePositionPatient = [0, 0, 3.0 * index]
            data.Rows, data.Columns, data.SamplesPerPixel = 12, 12, 1
            data.PhotometricInterpretation = "MONOCHROME2"
            data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
            data.RescaleSlope, data.RescaleIntercept = 1, -1024
            data.BurnedInAnnotation = "YES" if number == 0 else "NO"
            data.PixelData = image.tobytes()
            data.file_meta = FileMetaDataset()
            data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            data.save_as(folder / room.plants.text("a file's name"), enforce_file_format=True)
    # Things to reject: a truncated slice of one more patient, a text, a broken header that quotes a name.
    whole = next(path for path in sorted(room.archive.rglob("*")) if path.is_file()).read_bytes()
    for content in (whole[:1500], room.plants.text("a text").encode(), whole[:300] + b"\xff" * 40 + whole[340:]):
        (room.archive / room.plants.text("a rejected file's name")).write_bytes(content)
    rows.append(f"{room.plants.text('a patient without images')},lesion")
    (room.archive / "labels.csv").write_text("\n".join(rows) + "\n")


def test_dicom_from_the_folder_to_the_export(room):
    write_ct(room)
    said = room.dpeq(
        "index", str(room.archive), "--labels", str(room.archive / "labels.csv"), "--classes", "healthy,lesion"
    )  # fmt: skip
    assert "PatientName" in said, "the policy report counts what was there"
    assert "burned" in said
    for reason in ("manifest.rejects.csv", "manifest.unmatched.csv"):
        assert len((room.work / reason).read_text().splitlines()) > 1
    settings = ["data.manifest=manifest.json", "data.spacing=[2,2,3]", "data.size=[8,8,4]", "tracking.mlflow=true"]
    room.dpeq("train", "demo", *settings, *TINY)
    room.dpeq("report", "runs/demo", "--out", "again")
    room.dpeq("export", "runs/demo", "--out", "exports")
    # What goes wrong is told without names, too: a file that changed, a file that is gone.
    victims = sorted(path for path in room.archive.rglob("*") if path.is_file() and path.parent != room.archive)
    victims[0].write_bytes(victims[0].read_bytes()[:-2] + b"\0\1")
    room.dpeq("train", "demo", *settings, *TINY, code=3)
    victims[0].unlink()
    room.dpeq("train", "demo", *settings, *TINY, code=3)
    room.dpeq("--debug", "train", "demo", *settings, *TINY, code=1)
    assert room.found() == []


def test_nifti_and_pictures(room):
    rows = ["path,patient_id,label"]
    for number in range(PATIENTS):
        label, patient = number % 2, room.plants.text("the patient's id")
        image = nibabel.Nifti1Image(pixels(label, (12, 12, 6), number).astype("<i2"), np.diag([2.0, 2.0, 3.0, 1.0]))
        image.header["descrip"] = room.plants.text("NIfTI's description").encode()
        image.header["aux_file"] = room.plants.text("NIfTI's auxiliary file").encode()
        image.header["db_name"] = room.plants.text("NIfTI's data base").encode()
        image.header["intent_name"] = room.plants.text("NIfTI's intent").encode()
        name = f"{room.plants.text('a file name')}.nii.gz"
        nibabel.save(image, room.archive / name)
        rows.append(f"{name},{patient},{label}")
    picture = PngInfo()
    picture.add_text("Comment", room.plants.text("a comment in a PNG"))
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(
        room.archive / room.plants.text("a picture"), "PNG", pnginfo=picture
    )
    (room.archive / "labels.csv").write_text("\n".join(rows) + "\n")
    room.dpeq("index", str(room.archive), "--labels", str(room.archive / "labels.csv"), "--classes", "healthy,lesion",
              "--modality", "CT")  # fmt: skip
    room.dpeq("train", "demo", "data.manifest=manifest.json", "data.spacing=[2,2,3]", "data.size=[8,8,4]", *TINY)
    assert room.found() == []


def test_the_search_finds_what_is_there(tmp_path):
    """In names and contents, in another case or encoding, compressed, and hashed without a key."""
    import gzip
    import hashlib
    import zipfile

    plants = Plants(seed=1)
    name, day = plants.text("a name"), plants.date("a birthday")
    (tmp_path / "capitals").write_text(name.upper())
    (tmp_path / "wide").write_bytes(name.encode("utf-16-le"))
    (tmp_path / "gz").write_bytes(gzip.compress(name.encode()))
    (tmp_path / "z").write_bytes(zlib.compress(name.encode()))
    with zipfile.ZipFile(tmp_path / "zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("member", name)
    (tmp_path / "hash").write_text(hashlib.sha256(name.encode()).hexdigest()[:16])
    (tmp_path / "iso").write_text(f"{day[:4]}-{day[4:6]}-{day[6:]}")
    (tmp_path / f"x{name}").touch()
    (tmp_path / "clean").write_text("nobody")
    found = "\n".join(leaks(plants, written(tmp_path)))
    for place in ("capitals", "wide", "gz, inflated", "z, inflated", "zip: member", "hash", "iso", f"the name x{name}"):
        assert f"in {place}" in found
    assert "clean" not in found
