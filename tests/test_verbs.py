"""The verbs that list, advise on and examine networks."""

import io
import json

import pytest
from rich.console import Console

from dpeq.errors import ConfigError
from dpeq.verbs import advise_on, examine, list_models


@pytest.fixture
def out():
    return Console(record=True, width=160, force_terminal=False, file=io.StringIO())


def test_a_network_that_trains_is_called_exact_layer_by_layer(out, capsys):
    assert examine(out, "eqnet-xs", [], "16", 1, 2, json=False)
    assert "eqnet-xs can be trained privately." in out.export_text()
    assert examine(out, "eqnet-xs", ["model.group=C4"], "16", 1, 2, json=True)
    rows = json.loads(capsys.readouterr().out)
    assert {row["verdict"] for row in rows} == {"exact"}
    assert {"layer", "kind", "parameters", "why", "mend"} <= rows[0].keys()


def test_batch_norm_is_named_with_what_to_put_in_its_place(out):
    arguments = ["model.arguments={block_config: [1, 1], init_features: 4, growth_rate: 2}"]
    assert not examine(out, "monai.networks.nets.DenseNet", arguments, "16x16", 1, 2, json=False)
    text = out.export_text()
    assert "features.norm0" in text
    assert "replace_batch_norm" in text
    mended = [*arguments, "model.replace_batch_norm=true"]
    assert examine(out, "monai.networks.nets.DenseNet", mended, "16x16", 1, 2, json=False)


def test_a_3d_segmentation_network_is_explained_and_trains_when_pooled(out):
    """The kind of network on which Opacus stops with "Per sample gradient is not initialized"."""
    arguments = ["model.arguments={channels: [4, 8], strides: [2]}"]
    assert not examine(out, "monai.networks.nets.UNet", arguments, "8x8x8", 1, 2, json=False)
    assert "as segmentation does" in out.export_text()
    pooled = [*arguments, "model.pool_output=true"]
    assert examine(out, "monai.networks.nets.UNet", pooled, "8x8x8", 1, 2, json=False)


@pytest.mark.parametrize(
    ("name", "overrides", "size", "message"),
    [
        ("eqnet-zz", [], None, "did you mean"),
        ("eqnet-xs", ["privacy.epsilon=1"], None, r"Only model\.key=value"),
        ("eqnet-xs", ["model.depths=[-1,0,0]"], None, r"model\.depths\.0: "),
        ("eqnet-xs", ["model.colour=red"], None, r"model\.colour"),
        ("eqnet-xs", [], "wide", "is no image size"),
        ("no.such.Network", [], None, r"no\.such"),
    ],
)
def test_what_cannot_be_examined_is_said_in_a_sentence(out, name, overrides, size, message):
    with pytest.raises(ConfigError, match=message):
        examine(out, name, overrides, size, 1, 2, json=False)


def test_the_table_of_models_and_the_advice_for_a_card(out, capsys):
    list_models(out, None, 1.0, 1.0, None, json=True)
    rows = json.loads(capsys.readouterr().out)
    assert {"name", "group", "parameters", "macs", "activation_bytes", "noise_norm"} <= rows[0].keys()
    advise_on(out, "phantom_hospital", json=False)
    assert "Sound networks: eqresnet9-3d-tiny" in out.export_text()


def test_a_preset_beside_its_twins(out, capsys):
    list_models(out, "14", 1.0, 1.0, "eqnet-m", json=True)
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    target = rows["eqnet-m"]
    for kind in ("cnn", "wide-resnet", "vit"):
        assert rows[f"{kind} by parameters"]["parameters"] == pytest.approx(target["parameters"], rel=0.05)
        assert rows[f"{kind} by macs"]["macs"] == pytest.approx(target["macs"], rel=0.1)
    with pytest.raises(ConfigError, match="There is no model"):
        list_models(out, None, 1.0, 1.0, "eqnet-zz", json=True)
