"""DICOM files in, patient-level private training, report out: through the library, on a small phantom hospital."""

import json

import pytest

from dpeq.config import RunConfig, load_config
from dpeq.data.index import index_folder
from dpeq.pipeline import train_and_report
from dpeq.privacy.ledger import read_ledger
from dpeq.reporting.check import check_report
from dpeq.resources import asset, load_module


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hospital") / "ct"
    load_module(asset("datasets", "phantom_hospital.py")).generate(folder, patients=24, seed=3)
    return folder


def config(manifest, *overrides: str) -> RunConfig:
    return load_config(
        "demo",
        [
            f"data.manifest={manifest}",
            "data.spacing=[20,20,20]",
            "data.size=[16,12,8]",
            "privacy.public_units=24",
            "privacy.expected_batch_size=6",
            "privacy.steps=3",
            "privacy.delta=1e-2",
            "training.seed=0",
            "training.threads=1",
            "evaluation.bootstrap=100",
            *overrides,
        ],
    )


def test_from_dicom_to_a_patient_level_report(hospital, tmp_path):
    manifest = tmp_path / "index" / "manifest.json"
    summary = index_folder(hospital / "archive", hospital / "labels.csv", manifest, classes=("healthy", "lesion"))
    assert summary.files_seen == summary.files_accepted + summary.files_rejected
    outcome = train_and_report(
        config(manifest, "privacy.views=2"), runs=tmp_path / "runs", reports=tmp_path / "reports", baseline=True
    )
    report = outcome.report
    assert report["guarantee"]["unit"] == "patient"
    assert report["guarantee"]["epsilon"] <= 8
    assert report["plan"]["views"] == 2
    assert report["data"]["counts"]["train"]["units"] < report["data"]["counts"]["train"]["images"]
    assert read_ledger(outcome.run / "ledger.jsonl").steps == 3
    assert outcome.baseline is not None
    assert json.loads((outcome.baseline / "run.json").read_text())["non_private"]
    assert check_report(tmp_path / "reports" / "demo" / "report.json", run_dir=outcome.run)

    html = outcome.html.read_text()
    assert "NON-PRIVATE" in html, "the baseline beside is labelled"
    names = {line.split(",")[0] for line in (hospital / "labels.csv").read_text().splitlines()[1:]}
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.name not in ("manifest.private.json", "rejects.csv"):
            text = path.read_bytes().decode("latin-1")
            assert not any(name in text for name in names), f"a patient id stands in {path.name}"


def test_image_level_data_is_not_passed_off_as_patient_level(hospital, tmp_path):
    """Changing data.unit changes what the plan, and so the report, promises."""
    manifest = tmp_path / "index" / "manifest.json"
    index_folder(hospital / "archive", hospital / "labels.csv", manifest, classes=("healthy", "lesion"))
    outcome = train_and_report(
        config(manifest, "data.unit=image"), runs=tmp_path / "runs", reports=tmp_path / "reports"
    )
    assert outcome.report["guarantee"]["unit"] == "image"
    counts = outcome.report["data"]["counts"]["train"]
    assert counts["units"] == counts["images"]
