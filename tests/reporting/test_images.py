"""Evaluation images in a report: which, how they look, and that they are of the very run."""

from __future__ import annotations

import base64
import io
import json
from hashlib import md5

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from benchmarks.killable import UNITS, make_config, make_plan
from dpeq.config import RunConfig, write_config
from dpeq.errors import ConfigError, DataError
from dpeq.models.registry import build_model
from dpeq.privacy.ledger import Ledger
from dpeq.reporting.images import chosen, evaluation_images, grey
from dpeq.training.files import fingerprint_key
from dpeq.training.prepare import load_data, prepare
from dpeq.training.start import fingerprint


def pixels(png: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(png, validate=True))) as picture:
        assert (picture.format, picture.mode) == ("PNG", "L")
        return np.asarray(picture)


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 12))
def test_half_are_wrong_where_there_are_so_many(correct, count):
    correct = np.array(correct)
    picked = chosen(correct, count)
    assert picked == sorted(set(picked))
    assert len(picked) == min(count, len(correct))
    wrong = int((~correct[picked]).sum())
    assert wrong >= min(count // 2, int((~correct).sum()))
    assert wrong <= max(count // 2, count - int(correct.sum()))


def test_grey_spans_black_to_white_and_shows_the_middle_of_a_volume():
    image = torch.arange(12.0).reshape(1, 3, 4) - 5
    assert pixels(grey(image)).tolist() == (np.arange(12).reshape(3, 4) * 255 / 11).round().tolist()
    volume = torch.zeros(1, 5, 3, 4)
    volume[0, 2] = image
    assert grey(volume) == grey(image)
    assert grey(torch.stack([image[0], image[0] * 3])) == grey(image)
    assert not pixels(grey(torch.full((1, 2, 2), 7.0))).any()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """As much of a run as pictures need: settings, data, weights, the data's fingerprint."""
    room = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", UNITS), ("val", 8), ("test", 14)):
        arrays[f"{split}_images"] = rng.integers(0, 255, (n, 8, 8)).astype(np.uint8)
        arrays[f"{split}_labels"] = (np.arange(n) % 2)[:, None].astype(np.uint8)
    np.savez(room / "none.npz", **arrays)
    values = make_config(room, steps=2, seed=1).model_dump()
    card = yaml.safe_load((room / "card.yaml").read_text())
    digest = md5((room / "none.npz").read_bytes(), usedforsecurity=False).hexdigest()
    (room / "card.yaml").write_text(
        yaml.safe_dump(card | {"splits": {"train": UNITS, "val": 8, "test": 14}, "md5": digest})
    )
    values["data"]["root"] = room
    config = RunConfig.model_validate(values)
    folder = room / "runs" / "tiny"
    (folder / "checkpoints").mkdir(parents=True)
    write_config(config, folder / "config.yaml")
    prepared = prepare(config)
    model = build_model(prepared.spec, prepared.shape[0], 2, seed=0)
    save_file(model.state_dict(), folder / "checkpoints" / "final.safetensors")
    found = fingerprint(load_data(prepared), fingerprint_key(folder.parent, make=True))
    (folder / "run.json").write_text(json.dumps({"data": {"sha256": found}}))
    Ledger.create(folder / "ledger.jsonl", make_plan(2)).close()
    return folder


def test_pictures_are_those_of_the_test_split_with_the_models_answers(run):
    shown = evaluation_images(run, 4)
    assert shown == evaluation_images(run, 4)
    assert "--images 4" in shown["consent"]
    assert "identify" in shown["consent"]
    with np.load(run.parent.parent / "none.npz") as data:
        test = data["test_images"].astype(float)
    stretched = [np.round((x - x.min()) * 255 / (x.max() - x.min())).tolist() for x in test]
    for item in shown["items"]:
        case = stretched.index(pixels(item["png"]).tolist())
        assert item["truth"] == ("dark", "bright")[case % 2]
        assert item["correct"] == (item["truth"] == item["answer"])
        assert 0.5 <= item["probability"] <= 1
    assert len(shown["items"]) == 4


def test_other_data_and_no_count_are_refused(run, tmp_path):
    with pytest.raises(ConfigError, match="--images is 0"):
        evaluation_images(run, 0)
    record = (run / "run.json").read_text()
    (run / "run.json").write_text(json.dumps({"data": {"sha256": "0" * 64}}))
    with pytest.raises(DataError, match="not the data that"):
        evaluation_images(run, 2)
    (run / "run.json").write_text(record)
