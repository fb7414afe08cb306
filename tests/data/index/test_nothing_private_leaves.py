"""What could name a patient is in files for their owner alone, at every moment, and in nothing that is printed."""

from __future__ import annotations

import json
import os
import stat
import threading
from pathlib import Path

import pytest
from archives import write_nifti, write_table
from typer.testing import CliRunner

from dpeq.cli import app
from dpeq.data.index import index_folder
from dpeq.data.index.pseudonyms import Pseudonyms
from dpeq.data.manifest import Manifest
from dpeq.data.private import own_files
from dpeq.errors import DataError

SECRETS = ("Quill", "Xanthe", "QX-77", "19610203", "ACC-0815", "Clinic Q")


@pytest.fixture
def slack_umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def archive(tmp_path, write_series) -> Path:
    """Twelve patients whose every name and header identifies, and things to reject that do too."""
    for n in range(12):
        write_series(
            f"archive/Quill^Xanthe{n}",
            PatientID=f"QX-77-{n:02d}",
            PatientName="Quill^Xanthe",
            PatientBirthDate="19610203",
            AccessionNumber="ACC-0815",
            InstitutionName="Clinic Q" if n % 2 else "Clinic Q South",
            Manufacturer="Quill Devices" if n % 3 else "SIEMENS Xanthe",
            ManufacturerModelName="Quill 7",
            DeviceSerialNumber="QX-77-5",
            PatientSex="FM"[n % 2],
            PatientAge=f"{n + 60:03d}Y",
            SeriesInstanceUID=f"2.25.{n + 1}",
            BurnedInAnnotation="YES" if n == 0 else None,
        )
    root = tmp_path / "archive"
    whole = (root / "Quill^Xanthe3" / "IM00").read_bytes()
    (root / "Quill^Xanthe.cut").write_bytes(whole[:-9])
    (root / "Quill^Xanthe.odd").write_bytes(whole.replace(b"ISO_IR", b"Quill_").replace(b"2.25.4", b"QX-77.")[:600])
    (root / "Quill^Xanthe.txt").write_text("Quill, Xanthe")
    write_nifti(root / "Quill^Xanthe.nii")
    (root / "Quill^Xanthe.link").symlink_to("QX-77")
    rows = [f"QX-77-{n:02d},{n % 2}" for n in range(11)] + ["QX-77-99,1", "QX-77-98,", "QX-77-97,Quill"]
    write_table(root / "labels.csv", "patient_id,label", rows)
    return root


def test_nothing_that_is_said_or_public_identifies(archive, tmp_path, caplog, capfd):
    out = tmp_path / "index" / "m.json"
    labels = archive / "labels.csv"
    done = CliRunner().invoke(app, ["index", str(archive), "--labels", str(labels), "--out", str(out)])
    assert done.exit_code == 0, done.output
    captured = capfd.readouterr()
    said = done.output + captured.out + captured.err + caplog.text + out.read_text(encoding="utf-8")
    assert [secret for secret in SECRETS if secret in said] == []
    assert "files seen" in said
    assert "PatientBirthDate" in said
    private = "".join(path.read_bytes().decode("latin-1") for path in own_files(out)[1:] if path.exists())
    assert [secret for secret in ("Quill", "QX-77") if secret in private] == ["Quill", "QX-77"]
    again = CliRunner().invoke(app, ["index", str(archive), "--labels", str(labels), "--out", str(out)])
    assert again.exit_code == 0


@pytest.mark.parametrize(
    "rows", [["QX-77-00,0,train", "QX-77-00,1,train"], ["QX-77-00,0,Quill"], ["x,0,train"], ["Quill"]]
)
def test_no_error_names_a_patient_or_a_file_below_the_folder(archive, tmp_path, rows):
    write_table(archive / "labels.csv", "patient_id,label,split", rows)
    with pytest.raises(DataError) as caught:
        index_folder(archive, archive / "labels.csv", tmp_path / "m.json", classes=("a", "b"))
    assert [secret for secret in SECRETS if secret in str(caught.value)] == []


def test_private_files_are_private_at_every_moment(archive, tmp_path, slack_umask):
    out = tmp_path / "index" / "m.json"
    seen: set[tuple[str, int]] = set()
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            for path in own_files(out):
                try:
                    seen.add((path.name, stat.S_IMODE(path.stat().st_mode)))
                except FileNotFoundError:
                    continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for _ in range(2):
            index_folder(archive, archive / "labels.csv", out, classes=("a", "b"))
    finally:
        stop.set()
        watcher.join()
    modes = {(path.name, stat.S_IMODE(path.stat().st_mode)) for path in out.parent.iterdir()} | seen
    assert {name for name, mode in modes if mode != 0o600} <= {"m.json", ".m.json.part"}
    ends = ("key", "private.json", "scan.sqlite", "rejects.csv", "unmatched.csv")
    assert {f"m.{end}" for end in ends} <= {name for name, _ in modes}
    assert "m.scan.sqlite-journal" in {name for name, _ in seen}
    assert {path.name for path in out.parent.iterdir()} == {"m.json", *(f"m.{end}" for end in ends)}


def test_two_manifests_in_one_folder_do_not_share_their_lists(archive, tmp_path):
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    first = index_folder(archive, archive / "labels.csv", one, classes=("a", "b"))
    second = index_folder(archive, archive / "labels.csv", two, classes=("a", "b"))
    assert not {r.patient for r in first.manifest.records} & {r.patient for r in second.manifest.records}
    assert Manifest.read(one) == first.manifest


def test_pseudonyms_need_the_key(tmp_path):
    one, other = Pseudonyms(tmp_path / "a.key"), Pseudonyms(tmp_path / "b.key")
    assert one.of("patient", "p") == Pseudonyms(tmp_path / "a.key").of("patient", "p")
    assert one.of("patient", "p") != other.of("patient", "p")
    names = {one.of("patient", "p"), one.of("image", "p"), one.of("image", "p", "q"), one.of("image", "pq")}
    assert len(names) == 4
    assert len(one.of("patient", "M\udcfcller")) == 16
    (tmp_path / "a.key").write_text("ab", encoding="ascii")
    with pytest.raises(DataError, match=r"a\.key is not a key of 32 bytes"):
        Pseudonyms(tmp_path / "a.key")


def test_the_public_part_says_no_more_than_it_must(archive, tmp_path):
    out = tmp_path / "m.json"
    index_folder(archive, archive / "labels.csv", out, classes=("a", "b"))
    body = json.loads(out.read_text(encoding="utf-8"))
    assert set(body) == {"version", "modality", "classes", "records"}
    assert {frozenset(record) for record in body["records"]} == {
        frozenset({"patient", "image", "label", "split", "burned_in", "shape", "groups"})
    }
    shown = [record["groups"] for record in body["records"] if record["split"] != "train"]
    assert [record["groups"] for record in body["records"] if record["split"] == "train"] == [{}] * (11 - len(shown))
    assert {name for groups in shown for name in groups} == {"sex", "age", "site", "device"}
    values = {value for groups in shown for value in groups.values()}
    assert values <= {"female", "male", "60-69", "70-79", "site 1", "site 2", "Siemens", "other"}
