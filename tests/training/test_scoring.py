"""A finished run is scored again: the same bits, from its own weights and its own data, and nothing else is touched."""

import json
import math
import shutil
from hashlib import md5, sha256
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from finished_runs import begun_with, without_end
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import dpeq.training.run as run_module
from benchmarks.killable import UNITS, make_config, make_plan
from dpeq.cli import app
from dpeq.config import RunConfig
from dpeq.errors import ConfigError, DataError
from dpeq.evaluation.cases import cases_of
from dpeq.evaluation.operating import choose_thresholds
from dpeq.evaluation.predict import predict_cases
from dpeq.models.registry import build_model
from dpeq.privacy.ledger import read_ledger
from dpeq.reporting.rundir import read_run
from dpeq.training.evidence import check_weights
from dpeq.training.prepare import load_data, prepare
from dpeq.training.run import run
from dpeq.training.scoring import load_weights, rescore

STEPS = 2


def write_images(folder: Path, touched: str | None = None) -> None:
    """A file of the MedMNIST layout; one pixel of the ``touched`` array differs, or one label."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", UNITS), ("val", 10), ("test", 14)):
        labels = np.arange(n) % 2
        pixels = rng.integers(0, 200, (n, 8, 8)) + 55 * labels[:, None, None]
        arrays |= {f"{split}_images": pixels.astype(np.uint8), f"{split}_labels": labels[:, None].astype(np.uint8)}
    if touched is not None:
        first = arrays[touched].flat
        first[0] = 1 - first[0] if "labels" in touched else first[0] ^ 1
    folder.mkdir(exist_ok=True)
    np.savez(folder / "none.npz", **arrays)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run of two steps, without noise, on a data file."""
    room = tmp_path_factory.mktemp("scored")
    write_images(room / "data")
    values = make_config(room, steps=STEPS, seed=1).model_dump()
    card = yaml.safe_load((room / "card.yaml").read_text())
    card |= {
        "splits": {"train": UNITS, "val": 10, "test": 14},
        "md5": md5((room / "data" / "none.npz").read_bytes(), usedforsecurity=False).hexdigest(),
    }
    (room / "card.yaml").write_text(yaml.safe_dump(card))
    values["data"]["root"] = room / "data"
    values["privacy"]["epsilon"] = 1000
    values["training"]["ema_decay"] = 0.5
    config = RunConfig.model_validate(values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "make_plan", lambda prepared: make_plan(STEPS))
        return run(config, out=room / "runs", command="test").folder


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    """The run in a folder of its own, beside the key."""
    shutil.copytree(finished.parent, tmp_path / "runs")
    return tmp_path / "runs" / finished.name


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_run_scored_again_has_the_same_metrics_bit_for_bit_and_nothing_else_changes(copy):
    before = bytes_of(copy)
    (copy / "metrics.json").write_text("{}")  # as an older version may have left it: other scores
    metrics = rescore(copy)
    assert bytes_of(copy) == before
    assert json.loads(before["metrics.json"]) == metrics
    assert list(metrics) == ["weights", "test", "val", "symmetry"]
    assert (copy / "metrics.json").stat().st_mode & 0o077 == 0


def test_thresholds_of_the_test_split_are_those_of_validation(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    config = RunConfig.model_validate(yaml.safe_load((finished / "config.yaml").read_text()))
    prepared = prepare(config)
    images = load_data(prepared)["val"]
    model = build_model(prepared.spec, 1, 2, seed=0)
    load_weights(model, finished / "checkpoints" / "final.safetensors")
    cases = cases_of(images)
    probabilities = predict_cases(model, images, cases, device=torch.device("cpu")).numpy()
    chosen = choose_thresholds(probabilities, cases.labels.numpy(), images.classes)
    for split, words in (("test", "on the validation set"), ("val", "on this very set, which flatters")):
        points = metrics[split]["operating_points"]
        assert [p["threshold"] for p in points] == [0.5, *(t.value for t in chosen)]
        assert all(p["rule"].endswith(words) for p in points[1:])
        assert metrics[split]["bootstrap"]["resamples"] == 100
    assert (metrics["val"]["n"], metrics["test"]["n"]) == (10, 14)


def test_the_symmetry_is_that_of_the_trained_network(finished):
    symmetry = json.loads((finished / "metrics.json").read_text())["symmetry"]
    assert (symmetry["group"], symmetry["measured_on"], symmetry["images"]) == ("C2", "C2", 14)
    assert symmetry["worst_error"] < 1e-4
    assert symmetry["agreement"] == 1


def test_the_weights_are_those_that_the_configuration_names(copy):
    ema = json.loads((copy / "metrics.json").read_text())
    begun_with(copy, evaluation__weights="raw")
    raw = rescore(copy)
    assert raw["weights"] == "raw"
    assert raw["test"]["brier"] != ema["test"]["brier"]
    state = load_file(copy / "checkpoints" / "raw.safetensors")
    save_file(state, copy / "checkpoints" / "final.safetensors")
    begun_with(copy, evaluation__weights="ema")
    assert rescore(copy)["test"] == raw["test"]


@pytest.mark.parametrize("touched", ["train_images", "val_images", "test_images", "test_labels"])
def test_other_data_is_refused_and_the_scores_stay(copy, finished, tmp_path, touched):
    """Other images under the same card: its md5 is changed along, as whoever edits a card can."""
    write_images(tmp_path / "other", touched)
    config = yaml.safe_load((copy / "config.yaml").read_text())
    card = yaml.safe_load(Path(config["data"]["card"]).read_text())
    card["md5"] = md5((tmp_path / "other" / "none.npz").read_bytes(), usedforsecurity=False).hexdigest()
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(card))
    begun_with(copy, data__card=str(tmp_path / "card.yaml"))
    with pytest.raises(DataError, match=r"not the data that .* fingerprint differs\); give the same data"):
        rescore(copy, data_root=tmp_path / "other")
    assert (copy / "metrics.json").read_bytes() == (finished / "metrics.json").read_bytes()


def test_the_data_may_lie_elsewhere(copy, finished, tmp_path):
    shutil.copytree(finished.parent.parent / "data", tmp_path / "elsewhere")
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["data"]["root"] = "/nowhere"
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(DataError, match=r"none\.npz"):
        rescore(copy)
    rescore(copy, [f"data.root={tmp_path / 'elsewhere'}", "training.device=cpu"])
    rescore(copy, data_root=tmp_path / "elsewhere")
    assert (copy / "metrics.json").read_bytes() == (finished / "metrics.json").read_bytes()


@pytest.mark.parametrize("override", ["training.lr=2", "evaluation.bootstrap=500", "data.card=x"])
def test_what_the_run_was_trained_with_cannot_change(copy, override):
    with pytest.raises(ConfigError, match=f"{override.partition('=')[0]} is what the run was trained with"):
        rescore(copy, [override])


def test_an_unfinished_run_is_refused(copy):
    (copy / "run.json").unlink()
    with pytest.raises(DataError, match=r"not finished .*; go on with 'dpeq train --resume"):
        rescore(copy)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda run: shutil.rmtree(run), DataError, "no run directory"),
        (lambda run: (run / "run.json").write_text("{}"), DataError, "run.json cannot be used"),
        (lambda run: (run / "run.json").write_text("torn"), DataError, "run.json cannot be used"),
        (lambda run: (run / "checkpoints" / "final.safetensors").unlink(), DataError, "no checkpoint"),
        (lambda run: (run / "checkpoints" / "final.safetensors").write_text("torn"), DataError, "broken"),
        (lambda run: (run.parent / ".fingerprint.key").unlink(), ConfigError, "no usable key"),
    ],
)
def test_what_is_missing_or_broken_is_named(copy, damage, error, message):
    damage(copy)
    with pytest.raises(error, match=message):
        rescore(copy)


def test_weights_of_another_network_are_refused(copy):
    path = copy / "checkpoints" / "final.safetensors"
    state = load_file(path)
    state["classifier.bias"] = torch.zeros(3)
    save_file(state, path)
    without_end(copy)
    with pytest.raises(DataError, match=r"belongs to another network \(classifier.bias has shape \(3,\), not \(2,\)\)"):
        rescore(copy)


@pytest.mark.parametrize("name", ["final", "raw"])
def test_weights_that_this_run_did_not_write_are_refused(copy, name):
    path = copy / "checkpoints" / f"{name}.safetensors"
    state = load_file(path)
    state["classifier.bias"] += 1e-6
    save_file(state, path)
    with pytest.raises(
        DataError, match=rf"{name}\.safetensors does not hold the weights that this run's training wrote"
    ):
        read_run(copy)
    with pytest.raises(DataError, match="does not hold the weights"):
        check_weights(path, path.read_bytes())
    if name == "raw":
        return  # they are not the ones that are scored
    with pytest.raises(DataError, match="does not hold the weights"):
        rescore(copy)
    without_end(copy)  # an old run pins none
    assert rescore(copy)
    assert read_run(copy).weights_sha256 == sha256(path.read_bytes()).hexdigest()


def test_the_last_line_of_the_ledger_pins_weights_and_record(copy):
    pinned = read_ledger(copy / "ledger.jsonl")[-1]
    written = {name: sha256((copy / "checkpoints" / name).read_bytes()).hexdigest() for name in pinned["weights"]}
    assert pinned["weights"] == written
    assert written.keys() == {"final.safetensors", "raw.safetensors"}
    assert read_run(copy).weights_sha256 == written["final.safetensors"]
    (copy / "checkpoints" / "final.safetensors").unlink()  # weights may lie elsewhere: the ledger still names them
    assert read_run(copy).weights_sha256 == written["final.safetensors"]
    record = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(record | {"warnings": ["none"]}))
    with pytest.raises(DataError, match=r"run\.json was changed after training wrote it"):
        read_run(copy)
    with pytest.raises(DataError, match=r"run\.json was changed after training wrote it"):
        rescore(copy)


def test_the_verb_says_what_it_does(copy):
    (copy / "metrics.json").unlink()
    result = CliRunner().invoke(app, ["evaluate", str(copy)], catch_exceptions=False)
    assert result.exit_code == 0
    assert "Evaluating ..." in result.stdout
    value = json.loads((copy / "metrics.json").read_text())["test"]["auc"]["value"]
    assert f"Test auc: {value:.3f}" in result.stdout


def test_the_record_of_a_run_has_its_energy(finished):
    energy = json.loads((finished / "run.json").read_text())["energy"]
    assert energy.keys() == {"kwh", "basis"}
    assert 0 < energy["kwh"] < 1
    assert math.isclose(energy["kwh"], float(f"{energy['kwh']:.2g}"))
