"""Evaluation images in a report: which, how they look, and that they are of the very run."""

from __future__ import annotations

import base64
import io
import json
import os
from dataclasses import replace
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
from dpeq.reporting.html import write_report
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


def test_images_whose_header_declares_text_in_the_pixels_are_not_shown(run, monkeypatch):
    """The text may be a name. A case of several images is left out if one of them is marked."""

    def marking(*marked):
        def load(prepared):
            splits = load_data(prepared)
            test = splits["test"]
            flags = torch.isin(torch.arange(14), torch.tensor(marked))
            cases = torch.arange(14) // 2 if len(marked) == 3 else None
            labels, units = (
                (test.labels[::2].repeat_interleave(2), torch.arange(14) // 2)
                if cases is not None
                else (test.labels, test.units)
            )
            monkeypatch.setattr("dpeq.reporting.images.fingerprint", lambda *_: recorded)
            changed = replace(test, labels=labels, units=units, n_units=int(units.max()) + 1, burned_in=flags)
            return {**splits, "test": changed}

        return load

    recorded = json.loads((run / "run.json").read_text())["data"]["sha256"]
    plain = evaluation_images(run, 14)
    assert len(plain["items"]) == 14
    assert "left out" not in plain["consent"]
    assert "Text in pixels is not looked for" in plain["consent"]
    monkeypatch.setattr("dpeq.reporting.images.load_data", marking(2, 7, 8, 13))
    shown = evaluation_images(run, 14)
    assert shown["items"] == [item for i, item in enumerate(plain["items"]) if i not in (2, 7, 8, 13)]
    assert "4 cases whose headers declare text in the pixels: left out" in shown["consent"]
    monkeypatch.setattr("dpeq.reporting.images.load_data", marking(0, 5, 9))
    pictures = [item["png"] for item in evaluation_images(run, 14)["items"]]
    assert pictures == [plain["items"][i]["png"] for i in (2, 6, 10, 12)]
    monkeypatch.setattr("dpeq.reporting.images.load_data", marking(*range(14)))
    with pytest.raises(DataError, match="leave --images out"):
        evaluation_images(run, 1)


def test_a_report_with_images_is_for_its_owner_alone(full_report, report, tmp_path):
    """Through the library too, whatever the umask, and where others could read the files before."""
    before = os.umask(0o022)
    try:
        without = write_report(report, tmp_path)
        assert {path.stat().st_mode & 0o777 for path in without} == {0o644}
        assert {path.stat().st_mode & 0o777 for path in write_report(full_report, tmp_path)} == {0o600}
    finally:
        os.umask(before)


def test_other_data_and_no_count_are_refused(run, tmp_path):
    with pytest.raises(ConfigError, match="--images is 0"):
        evaluation_images(run, 0)
    record = (run / "run.json").read_text()
    (run / "run.json").write_text(json.dumps({"data": {"sha256": "0" * 64}}))
    with pytest.raises(DataError, match="not the data that"):
        evaluation_images(run, 2)
    (run / "run.json").write_text(record)
