"""The table of networks and the advice, as the command line shows them."""

from __future__ import annotations

import json
import math
import sys

import pytest
import yaml

from dpeq.cli import main
from dpeq.console import _scaled
from dpeq.groups import GROUP_NAMES, group
from dpeq.models.cost import measure
from dpeq.models.overview import overview
from dpeq.models.registry import PRESETS, Preset, build_model
from dpeq.models.vit import ViTSpec
from dpeq.resources import asset

SMALL = {name: PRESETS[name] for name in ("eqresnet9-small", "eqresnet9-3d-tiny")}


@pytest.fixture
def dpeq(monkeypatch, capsys):
    def run(*arguments: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["dpeq", *arguments])
        with pytest.raises(SystemExit) as exit_:
            main()
        captured = capsys.readouterr()
        assert (exit_.value.code or 0) == code, captured.err
        return captured.err if code else captured.out

    return run


def test_a_row_tells_what_was_measured():
    row, _ = overview((12,), sigma=2.0, max_grad_norm=0.5, presets=SMALL)
    model = build_model(PRESETS["eqresnet9-small"].spec, 1, 2, seed=0)
    cost = measure(model, (1, 12, 12))
    assert {key: row[key] for key in cost.to_dict()} == cost.to_dict()
    assert row["noise_norm"] == pytest.approx(math.sqrt(sum(p.numel() for p in model.parameters())))
    assert (row["input_shape"], row["refused"]) == ([1, 12, 12], None)
    assert {"name", "dim", "group", "fields", "parameters", "restriction"} <= row.keys()


def test_sizes_of_one_dimension_leave_out_the_others():
    assert [row["name"] for row in overview((12, 12, 8), presets=SMALL)] == ["eqresnet9-3d-tiny"]
    assert [row["input_shape"] for row in overview((12,), presets=SMALL)] == [[1, 12, 12], [1, 12, 12, 12]]
    assert [row["input_shape"] for row in overview(presets=SMALL)] == [[1, 28, 28], [1, 28, 28, 28]]


def test_a_network_of_one_size_is_measured_at_that_size_or_made_for_the_other():
    presets = {"vit": Preset(ViTSpec(2, (16, 16), 4, 8, 1, 2, 16), "a test's")}
    (own,), (other,), (refused,) = (overview(size, presets=presets) for size in (None, (24,), (25,)))
    assert (own["input_shape"], other["input_shape"]) == ([1, 16, 16], [1, 24, 24])
    assert other["macs"] > own["macs"]
    assert "An edge of 25 is not a whole number of patches of 4" in refused["refused"]
    assert refused["macs"] is None
    assert refused["parameters"] == own["parameters"]


@pytest.mark.parametrize(
    ("value", "step", "units", "text"),
    [
        (27_250_584, 1000, ("", "k", "M", "G"), "27.3 M"),
        (999_600, 1000, ("", "k", "M"), "1 M"),
        (999, 1000, ("", "k"), "999"),
        (0, 1000, ("", "k"), "0"),
        (116_228, 1024, ("B", "KiB", "MiB"), "114 KiB"),
        (1023 * 1024, 1024, ("B", "KiB", "MiB"), "1023 KiB"),
        (5 * 1024**4, 1024, ("B", "KiB", "MiB"), "5242880 MiB"),
    ],
)
def test_numbers_are_shown_with_three_digits(value, step, units, text):
    assert _scaled(value, step, units) == text


def test_models_lists_every_network_with_its_costs(dpeq):
    text = dpeq("models", "--input-size", "12", "--sigma", "3", "--max-grad-norm", "0.5")
    lines = text.splitlines()
    for name, preset in PRESETS.items():
        (row,) = [line.split() for line in lines if line.split()[:1] == [name]]
        assert row[1:3] == [str(preset.dim), preset.spec.group]
        parameters = int(row[3].replace(",", ""))
        assert float(row[-1].replace(",", "")) == pytest.approx(1.5 * math.sqrt(parameters), rel=0.01)
        assert f"{name}: {preset.summary}." in lines
    assert all(len(line) <= 80 for line in lines[: len(PRESETS) + 3]), "the table fits a terminal"


def test_models_as_json(dpeq):
    rows = json.loads(dpeq("models", "--json", "--input-size", "16x12x8"))
    assert [row["name"] for row in rows] == [name for name, preset in PRESETS.items() if preset.dim == 3]
    assert all(row["macs"] > 0 and row["noise_norm"] == math.sqrt(row["parameters"]) for row in rows)


def test_models_for_a_card_tells_groups_and_networks(dpeq):
    text = " ".join(dpeq("models", "--for", "phantom_hospital").split())
    assert "axial-D4 8 exact sound" in text
    assert "Oh 48 exact refused It tilts the scan axis" in text
    assert "Sound networks: eqresnet9-3d-tiny" in text
    advice = json.loads(dpeq("models", "--for", "phantom_hospital", "--json"))
    assert [a["group"] for a in advice] == [name for name in GROUP_NAMES if group(name).dim == 3]
    assert {a["group"]: a["instead"] for a in advice if not a["sound"]} == {"O": "axial-C4", "Oh": "axial-D4"}


def test_models_for_a_card_with_sides_names_what_is_lost(dpeq, tmp_path):
    card = yaml.safe_load(asset("datasets", "cards", "pneumoniamnist.yaml").read_text(encoding="utf-8"))
    card["symmetries"] |= {"laterality_matters": True, "mirrored_classes": [["normal", "pneumonia"]]}
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(card), encoding="utf-8")
    text = " ".join(dpeq("models", "--for", str(tmp_path / "card.yaml")).split())
    assert "it cannot tell 'normal' from 'pneumonia'" in text
    assert "eqresnet9 is refused: The features follow D4, the logits ignore only D2: it ignores reflections" in text
    assert "wide-resnet-16-4" in text.split("Sound networks:")[1].split(".")[0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--input-size", "28y"), "--input-size '28y' is no image size"),
        (("--input-size", "0x28"), "is no image size"),
        (("--for", "phantom"), "There is no data set card 'phantom'"),
        (("--sigma", "-1"), "sigma -1"),
        (("--sigma", "inf"), "sigma inf"),
        (("--max-grad-norm", "0"), "positive clipping norm"),
    ],
)
def test_what_models_cannot_answer_is_one_sentence(dpeq, arguments, sentence):
    error = dpeq("models", *arguments, code=2)
    assert sentence in error
    assert len(error.strip().splitlines()) == 1
