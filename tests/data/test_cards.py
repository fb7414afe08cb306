from __future__ import annotations

import pytest
import yaml
from helpers import shared_data

from dpeq.data.cards import card_names, load_card
from dpeq.data.medmnist import find_or_download, load_medmnist
from dpeq.errors import ConfigError
from dpeq.resources import asset


def write(folder, **change):
    """The path of a card like PneumoniaMNIST's, with changes."""
    values = yaml.safe_load(asset("datasets", "cards", "pneumoniamnist.yaml").read_text(encoding="utf-8"))
    path = folder / "card.yaml"
    path.write_text(yaml.safe_dump({**values, **change}), encoding="utf-8")
    return str(path)


def test_every_shipped_card_is_valid_and_says_what_a_plan_needs():
    assert {"pneumoniamnist", "phantom_hospital", "adrenalmnist3d"} <= set(card_names())
    for name in card_names():
        card = load_card(name)
        assert card.name == name
        assert card.public_units == card.splits["train"]
        assert card.licence
        assert card.citation
        assert card.symmetries.note


def test_pneumoniamnist_is_the_published_set_and_owns_up_to_its_unit():
    card = load_card("pneumoniamnist")
    assert card.splits == {"train": 4708, "val": 524, "test": 624}
    assert (card.classes, card.unit, card.dim, card.licence) == (("normal", "pneumonia"), "image", 2, "CC BY 4.0")
    assert "not per patient" in card.symmetries.note


def test_adrenalmnist3d_is_the_published_set():
    """Counts and checksum as MedMNIST publishes them (medmnist/info.py)."""
    card = load_card("adrenalmnist3d")
    assert card.splits == {"train": 1188, "val": 98, "test": 298}
    assert (card.dim, card.image_size, card.unit, card.licence) == (3, (28, 28, 28), "image", "CC BY 4.0")
    assert "not per patient" in card.symmetries.note


@pytest.mark.parametrize("name", ["adrenalmnist3d", "pneumoniamnist"])
def test_a_published_file_is_what_its_card_says(name):
    """Checksum, shapes, counts and classes of the real file."""
    path = shared_data(name)
    card = load_card(name)
    splits = load_medmnist(card, find_or_download(card, path), "image")
    assert {split: len(images.labels) for split, images in splits.items()} == card.splits
    assert all(images.images.shape[1:] == (1, *card.image_size) for images in splits.values())
    assert set(splits["train"].labels.tolist()) == set(range(len(card.classes)))


def test_left_and_right_glands_are_mixed_along_the_first_axis():
    """What the card's note says of the pose: the mean mask is its own mirror image along the first axis alone."""
    card = load_card("adrenalmnist3d")
    images = load_medmnist(card, find_or_download(card, shared_data("adrenalmnist3d")), "image")["train"].images
    mean = (images[:, 0] > 0).double().mean(dim=0)
    off = [float((mean - mean.flip(axis)).abs().sum() / mean.sum()) for axis in range(3)]
    assert off[0] < 0.5
    assert min(off[1:]) > 1.0


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
    with pytest.raises(ConfigError, match=r"adrenalmnist3d, .*phantom_hospital, pneumoniamnist"):
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
        ({"kind": "folder"}, "needs preprocessing"),
        (
            {"kind": "folder", "preprocessing": {"preset": "ct", "size": [8, 8, 8], "window": [5, 1]}},
            "preprocessing.window",
        ),
        ({"kind": "folder", "preprocessing": {"preset": "ct", "size": [8, 8, 8]}}, "dim is 2 but .* the view 3d"),
        ({"preprocessing": {"preset": "generic", "size": [8, 8]}}, "needs no preprocessing"),
        ({"kind": "dicom"}, "kind"),
        ({"splits": {"train": 5, "holdout": 5}}, "splits.holdout"),
        ({"public_units": 5}, "public_units"),
    ],
)
def test_a_wrong_card_is_refused_in_one_sentence(tmp_path, change, reason):
    with pytest.raises(ConfigError, match=reason) as caught:
        load_card(write(tmp_path, **change))
    assert "\n" not in str(caught.value)


ORGANS = {
    "laterality_matters": True,
    "isotropic": True,
    "orientation_matters": False,
    "mirrored_classes": [["normal", "pneumonia"]],
    "note": "invented",
}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"laterality_matters": False}, "laterality_matters must be true"),
        ({"mirrored_classes": [["normal", "normal"]]}, "pairs 'normal' with itself"),
        ({"mirrored_classes": [["normal", "liver"]]}, "names 'liver', which is none of the classes"),
        ({"mirrored_classes": [["normal"]]}, "symmetries.mirrored_classes.0"),
        ({"isotropic": "perhaps"}, "symmetries.isotropic"),
        ({"lateralty_matters": True}, "symmetries.lateralty_matters: extra inputs"),
    ],
)
def test_symmetries_that_contradict_themselves_are_refused(tmp_path, change, reason):
    with pytest.raises(ConfigError, match=reason):
        load_card(write(tmp_path, symmetries={**ORGANS, **change}))


def test_mirrored_classes_are_read_and_optional(tmp_path):
    assert load_card(write(tmp_path, symmetries=ORGANS)).symmetries.mirrored_classes == (("normal", "pneumonia"),)
    plain = {key: ORGANS[key] for key in ("laterality_matters", "isotropic", "orientation_matters", "note")}
    symmetries = load_card(write(tmp_path, symmetries=plain)).symmetries
    assert (symmetries.mirrored_classes, symmetries.aligned) == ((), False)


def test_a_card_of_ones_own_is_read_by_path(tmp_path):
    text = asset("datasets", "cards", "pneumoniamnist.yaml").read_text(encoding="utf-8")
    (tmp_path / "mine.yml").write_text(text.replace("name: pneumoniamnist", "name: mine"), encoding="utf-8")
    assert load_card(str(tmp_path / "mine.yml")).name == "mine"
    (tmp_path / "broken.yaml").write_text("a: [1", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"broken\.yaml is not valid"):
        load_card(str(tmp_path / "broken.yaml"))
