from __future__ import annotations

import pytest
import yaml

from dpeq.data.cards import card_names, load_card
from dpeq.errors import ConfigError
from dpeq.resources import asset


def test_every_shipped_card_is_valid_and_says_what_a_plan_needs():
    assert {"pneumoniamnist", "phantom_hospital"} <= set(card_names())
    for name in card_names():
        card = load_card(name)
        assert card.name == name
        assert card.public_units == card.splits["train"]
        assert card.licence
        assert card.citation


def test_pneumoniamnist_is_the_published_set_and_owns_up_to_its_unit():
    card = load_card("pneumoniamnist")
    assert card.splits == {"train": 4708, "val": 524, "test": 624}
    assert (card.classes, card.unit, card.dim, card.licence) == (("normal", "pneumonia"), "image", 2, "CC BY 4.0")
    assert "not per patient" in card.symmetries.note


def test_the_phantom_card_tells_the_generators_own_splits():
    from dpeq.resources import load_module

    card = load_card("phantom_hospital")
    options = card.generator_options
    assert options is not None
    roster = load_module(asset("datasets", card.generator)).roster(options.patients, options.seed)
    assert {split: sum(row.split == split for row in roster) for split in card.splits} == card.splits


def test_a_near_miss_is_suggested_and_anything_else_lists_the_cards():
    with pytest.raises(ConfigError, match="did you mean 'pneumoniamnist'"):
        load_card("pneumonia_mnist")
    with pytest.raises(ConfigError, match="phantom_hospital, pneumoniamnist"):
        load_card("xyz")
    with pytest.raises(ConfigError, match="nowhere"):
        load_card("/nowhere/card.yaml")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"colour": "blue"}, "colour: extra inputs"),
        ({"classes": ["one"]}, "classes"),
        ({"unit": "hospital"}, "unit"),
        ({"licence": None}, "licence"),
        ({"md5": None}, "needs url, file, md5 and image_size"),
        ({"kind": "dicom"}, "needs volume settings"),
        ({"kind": "dicom", "volume": {"spacing": [1, 1, 1], "size": [8, 8, 8], "window": [5, 1]}}, "window"),
        ({"splits": {"train": 5, "holdout": 5}}, "splits.holdout"),
        ({"public_units": 5}, "public_units"),
    ],
)
def test_a_wrong_card_is_refused_in_one_sentence(tmp_path, change, reason):
    values = yaml.safe_load(asset("datasets", "cards", "pneumoniamnist.yaml").read_text(encoding="utf-8"))
    path = tmp_path / "card.yaml"
    path.write_text(yaml.safe_dump({**values, **change}), encoding="utf-8")
    with pytest.raises(ConfigError, match=reason) as caught:
        load_card(str(path))
    assert "\n" not in str(caught.value)


def test_a_card_of_ones_own_is_read_by_path(tmp_path):
    text = asset("datasets", "cards", "pneumoniamnist.yaml").read_text(encoding="utf-8")
    (tmp_path / "mine.yml").write_text(text.replace("name: pneumoniamnist", "name: mine"), encoding="utf-8")
    assert load_card(str(tmp_path / "mine.yml")).name == "mine"
    (tmp_path / "broken.yaml").write_text("a: [1", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"broken\.yaml is not valid"):
        load_card(str(tmp_path / "broken.yaml"))
