"""The command line from outside: exit codes, one-sentence errors, machine-readable faces."""

import json
import os
import shutil
import subprocess
import sys
from hashlib import md5
from pathlib import Path

import numpy as np
import pytest

from dpeq.cli import main
from dpeq.privacy.plan import PrivacyPlan

TINY = [
    "privacy.steps=2",
    "privacy.expected_batch_size=8",
    "privacy.delta=1e-3",
    "training.seed=1",
    "training.threads=1",
    "evaluation.bootstrap=100",
]


def dpeq(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, "-m", "dpeq", *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=300
    )


@pytest.fixture
def room(tmp_path):
    """A folder with a card, a recipe and an npz file of the MedMNIST layout: the product's own formats, no download."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 64), ("val", 12), ("test", 24)):
        labels = np.arange(n) % 2
        pixels = rng.integers(0, 120, (n, 28, 28)) + 120 * labels[:, None, None]
        arrays |= {f"{split}_images": pixels.astype(np.uint8), f"{split}_labels": labels[:, None].astype(np.uint8)}
    np.savez(tmp_path / "tiny.npz", **arrays)
    write_card(tmp_path)
    (tmp_path / "recipe.yaml").write_text(
        """
name: tiny
data: {card: card.yaml}
model: {name: eqresnet9-small, fields: [1, 2, 2], norm_groups: [1, 1, 1]}
privacy: {epsilon: 8, delta: 1.0e-3, steps: 2, expected_batch_size: 8}
training: {lr: 1.0}
"""
    )
    return tmp_path


def write_card(folder: Path) -> None:
    digest = md5((folder / "tiny.npz").read_bytes(), usedforsecurity=False).hexdigest()
    (folder / "card.yaml").write_text(
        f"""
name: tiny
title: Tiny test set
kind: medmnist
source: made by a test
url: http://127.0.0.1:9/tiny.npz
file: tiny.npz
md5: {digest}
licence: CC0 1.0
citation: none
modality: X-ray
dim: 2
image_size: [28, 28]
classes: [dark, bright]
unit: image
public_units: 64
splits: {{train: 64, val: 12, test: 24}}
symmetries: {{laterality_matters: false, isotropic: true, orientation_matters: false, note: none}}
"""
    )


def one_class_in_the_test_split(folder: Path) -> None:
    with np.load(folder / "tiny.npz") as data:
        arrays = dict(data)
    arrays["test_labels"][:] = 1
    np.savez(folder / "tiny.npz", **arrays)
    write_card(folder)


def archive(folder: Path) -> Path:
    """Ten patients of the phantom hospital."""
    from dpeq.resources import asset, load_module

    return load_module(asset("datasets", "phantom_hospital.py")).generate(folder / "hospital", patients=8, seed=1)


def twice_in_the_labels(folder: Path) -> None:
    table = folder / "hospital" / "labels.csv"
    lines = table.read_text().splitlines()
    patient, label, split = lines[1].split(",")
    other = "val" if split != "val" else "train"
    table.write_text("\n".join([*lines, f"{patient},{label},{other}"]) + "\n")


BAD_INPUT = {
    "unknown key": (["train", "recipe.yaml", "privacy.epsilonn=3"], 2, "did you mean 'epsilon'"),
    "wrong type": (["train", "recipe.yaml", "privacy.steps=lots"], 2, "privacy.steps is 'lots'"),
    "epsilon 0": (["train", "recipe.yaml", "privacy.epsilon=0"], 2, "privacy.epsilon is 0"),
    "epsilon below 0": (["plan", "recipe.yaml", "privacy.epsilon=-2"], 2, "privacy.epsilon is -2"),
    "delta too large": (["plan", "recipe.yaml", "privacy.delta=0.1"], 2, "delta"),
    "batch larger than the data": (["plan", "recipe.yaml", "privacy.expected_batch_size=65"], 2, "expected_batch_size"),
    "no such recipe": (["train", "pneumonia"], 2, "There is no file 'pneumonia'"),
    "no such model": (["plan", "recipe.yaml", "model.name=resnet"], 2, "There is no model 'resnet'"),
    "wrong norm groups": (["plan", "recipe.yaml", "model.norm_groups=[1,3,1]"], 2, "3 norm groups do not divide 2"),
    "no such card": (["train", "recipe.yaml", "data.card=chestxray"], 2, "There is no data set card 'chestxray'"),
    "unknown verb": (["trian"], 2, "No such command"),
    "missing file": (["train", "recipe.yaml", "--data-root", "empty"], 3, "There is no tiny.npz in empty"),
    "no network": (["train", "recipe.yaml"], 3, "could not be downloaded"),
    "truncated npz": (["train", "recipe.yaml", "--data-root", "cut"], 3, "md5"),
    "a folder without labels": (["index", "hospital/archive"], 3, "patient_id,label"),
    "labels that are not there": (["index", "hospital/archive", "--labels", "no.csv"], 3, "no label file no.csv"),
    "a patient in two splits": (
        ["index", "hospital/archive", "--labels", "hospital/labels.csv"], 3, "two splits",
    ),
    "labels where the index would go": (
        ["index", "hospital/archive", "--labels", "hospital/labels.csv", "--out", "hospital/labels.csv"],
        3, "would be overwritten",
    ),
    "something else where the index would go": (
        ["index", "hospital/archive", "--labels", "hospital/labels.csv", "--out", "recipe.yaml"],
        3, "manifest recipe.yaml cannot be written",
    ),
    "two classes of one name": (["index", "hospital/archive", "--classes", "a,a"], 2, "different classes"),
    "one class in the test split": (
        ["train", "recipe.yaml", "--data-root", "."], 3, "The test split has cases of one class only",
    ),
    "brackets in a name": (["plan", "x[/old].yaml"], 2, "There is no file 'x[/old].yaml'"),
    "runs that are a file": (["train", "recipe.yaml", "--runs", "card.yaml"], 2, "Nothing can be written to card.yaml"),
    "an empty window": (["plan", "demo", "data.window=[400,-1000]"], 2, "data.window is"),
    "an impossible size": (["plan", "demo", "data.size=[2,2,2]"], 2, "data: size [2, 2, 2] is too small"),
    "no manifest": (["train", "demo", "data.manifest=no.json"], 3, "There is no manifest no.json"),
    "a data root with a colon": (["train", "recipe.yaml", "--data-root", "d: x"], 3, "There is no tiny.npz in d: x"),
    "no folder": (["index", "nowhere", "--labels", "x.csv"], 3, "There is no folder nowhere"),
    "a layout with an unknown placeholder": (
        ["index", "hospital/archive", "--layout", "{name}/*", "--labels", "hospital/labels.csv"],
        2, "has the placeholder",
    ),
    "labels in two places": (
        ["index", "hospital/archive", "--layout", "{label}/**", "--labels", "hospital/labels.csv"],
        2, "both give the label",
    ),
    "no such column of labels": (
        ["index", "hospital/archive", "--labels", "hospital/labels.csv", "--label-column", "x"],
        3, "no column x",
    ),
    "none of the classes": (
        ["index", "hospital/archive", "--labels", "hospital/labels.csv", "--label-column", "split"],
        3, "or another column by --label-column",
    ),
    "no run": (["report", "runs/none"], 3, "no run directory"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_sentence_and_the_right_exit_code(case, room, monkeypatch, capsys):
    arguments, code, sentence = BAD_INPUT[case]
    (room / "empty").mkdir()
    if "hospital" in " ".join(arguments):
        archive(room)
    if case == "a patient in two splits":
        twice_in_the_labels(room)
    if case == "one class in the test split":
        one_class_in_the_test_split(room)
    if case == "truncated npz":
        (room / "cut").mkdir()
        (room / "cut" / "tiny.npz").write_bytes((room / "tiny.npz").read_bytes()[:1000])
    before = {p for p in room.rglob("*") if p.is_file()}
    monkeypatch.chdir(room)
    monkeypatch.setenv("DPEQ_CACHE", str(room / "cache"))
    monkeypatch.setattr(sys, "argv", ["dpeq", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    stderr = capsys.readouterr().err
    assert exit_.value.code == code, stderr
    assert sentence in " ".join(stderr.replace("│", " ").split())
    assert "Traceback" not in stderr
    if "Usage" not in stderr:
        assert len(stderr.strip().splitlines()) == 1, stderr
    left = {p for p in room.rglob("*") if p.is_file() and "cache" not in p.parts} - before
    assert not any("ledger" in p.name for p in left), "nothing may be spent on bad input"


def test_the_exit_code_reaches_the_shell(room):
    result = dpeq("train", "recipe.yaml", "privacy.epsilon=0", cwd=room)
    assert result.returncode == 2
    assert result.stderr.startswith("Error: privacy.epsilon is 0")
    assert result.stdout == ""


def test_debug_shows_the_traceback(room):
    result = dpeq("--debug", "train", "recipe.yaml", "privacy.epsilon=0", cwd=room)
    assert result.returncode != 0
    assert "Traceback" in result.stderr


def test_train_report_and_check(room):
    """The whole path on a tiny set: run directory, report, baseline beside it, and the check of the report."""
    shutil.copytree(room, room / "data", ignore=shutil.ignore_patterns("data"))
    result = dpeq("train", "recipe.yaml", *TINY, "--data-root", "data", "--baseline", cwd=room)
    assert result.returncode == 0, result.stderr
    assert "privacy_reports/tiny/report.html" in result.stdout
    run = room / "runs" / "tiny"
    names = {p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()}
    assert {
        "config.yaml",
        "plan.json",
        "ledger.jsonl",
        "run.json",
        "metrics.json",
        "report.html",
        "report.json",
    } <= names
    assert "checkpoints/final.safetensors" in names
    assert not list(run.rglob("*.pt")) + list(run.rglob("*.pkl")), "nothing is pickled"
    assert (run / "ledger.jsonl").stat().st_mode & 0o077 == 0
    report = json.loads((room / "privacy_reports" / "tiny" / "report.json").read_text())
    plan = PrivacyPlan.read(run / "plan.json")
    assert report["guarantee"]["epsilon"] == plan.epsilon_spent <= 8
    assert report["ledger"]["steps"] == 2
    assert report["provenance"]["command"].startswith("dpeq train <path>")
    checked = dpeq("report", "--check", str(run / "report.json"), cwd=room)
    assert checked.returncode == 0, checked.stderr
    again = dpeq("train", "recipe.yaml", *TINY, "--data-root", "data", cwd=room)
    assert again.returncode == 0
    assert (room / "runs" / "tiny-2" / "ledger.jsonl").is_file(), "a run never overwrites another's ledger"
    same = [json.loads((room / "runs" / name / "metrics.json").read_text()) for name in ("tiny", "tiny-2")]
    assert same[0] == same[1], "seeded runs are reproducible"
    published = (room / "privacy_reports" / "tiny" / "report.json").read_bytes()
    open_run = dpeq("train", "recipe.yaml", *TINY, "privacy.epsilon=inf", "--data-root", "data", cwd=room)
    assert open_run.returncode == 0, open_run.stderr
    assert "NON-PRIVATE" in open_run.stdout
    assert (room / "privacy_reports" / "tiny" / "report.json").read_bytes() == published, "a private report stays"
    assert (room / "privacy_reports" / "tiny-nonprivate" / "report.html").is_file()


def test_machine_readable_faces(room):
    values = json.loads(dpeq("plan", "recipe.yaml", "--json", "--time", cwd=room).stdout)
    keys = {
        "epsilon_target", "delta", "unit", "neighbouring", "sample_rate", "steps", "expected_batch_size",
        "noise_multiplier", "max_grad_norm", "views", "mu", "epsilon",
    }  # fmt: skip
    assert keys <= values.keys()
    assert values["epsilon"]["rdp"] > 0
    assert values.pop("seconds_estimate") > 0
    assert json.loads(dpeq("plan", "recipe.yaml", "--json", cwd=room).stdout) == values
    models = json.loads(dpeq("models", "--json", cwd=room).stdout)
    assert {"name", "group", "parameters"} <= models[0].keys()
    doctor = dpeq("doctor", "--json", cwd=room)
    assert doctor.returncode == 0, doctor.stdout
    assert {c["name"] for c in json.loads(doctor.stdout)} >= {
        "python",
        "torch",
        "opacus",
        "escnn",
        "monai",
        "gpu",
        "cache",
    }


def test_doctor_names_what_is_wrong_and_the_mend(room):
    blocked = room / "file"
    blocked.write_text("")
    result = dpeq("doctor", "--json", cwd=room, DPEQ_CACHE=str(blocked / "sub"))
    (cache,) = [c for c in json.loads(result.stdout) if c["name"] == "cache"]
    assert result.returncode == 1
    assert not cache["ok"]
    assert "DPEQ_CACHE" in cache["mend"]
