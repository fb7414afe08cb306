"""DICOM files in, patient-level private training, report out: through the library, on a small phantom hospital."""

import json

import pytest

from dpeq.config import RunConfig, load_config
from dpeq.data.index import index_folder
from dpeq.errors import ConfigError
from dpeq.pipeline import train_and_report
from dpeq.privacy.ledger import read_ledger
from dpeq.reporting.check import check_report
from dpeq.resources import asset, load_module
from dpeq.training.run import make_plan, prepare


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
    assert report["data"]["counts"]["train"] is None, "the size of the private data is nobody's business"
    assert report["data"]["counts"]["test"]["units"] < report["data"]["counts"]["test"]["images"]
    assert read_ledger(outcome.run / "ledger.jsonl").steps == 3
    assert outcome.baseline is not None
    assert json.loads((outcome.baseline / "run.json").read_text())["non_private"]
    assert check_report(tmp_path / "reports" / "demo" / "report.json", run_dir=outcome.run)

    html = outcome.html.read_text()
    assert "NON-PRIVATE" in html, "the baseline beside is labelled"
    names = {line.split(",")[0] for line in (hospital / "labels.csv").read_text().splitlines()[1:]}
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.name not in ("manifest.private.json", "manifest.scan.sqlite"):
            text = path.read_bytes().decode("latin-1")
            assert not any(name in text for name in names), f"a patient id stands in {path.name}"


def test_image_level_data_is_not_passed_off_as_patient_level(hospital, tmp_path):
    """Changing data.unit changes what the plan, and so the report, promises."""
    manifest = tmp_path / "index" / "manifest.json"
    index_folder(hospital / "archive", hospital / "labels.csv", manifest, classes=("healthy", "lesion"))
    by_image = config(manifest, "data.unit=image")
    outcome = train_and_report(by_image, runs=tmp_path / "runs", reports=tmp_path / "reports")
    assert outcome.report["guarantee"]["unit"] == "image"
    counts = outcome.report["data"]["counts"]["test"]
    assert counts["units"] == counts["images"]
    titles = [entry["title"] for entry in outcome.report["assumptions"] if entry["kind"] == "attention"]
    assert "One image is protected, not one patient" in titles


def test_a_card_counts_its_own_units_only():
    with pytest.raises(ConfigError, match=r"give privacy\.public_units, the published number of training images"):
        make_plan(prepare(load_config("demo", ["data.unit=image"])))
