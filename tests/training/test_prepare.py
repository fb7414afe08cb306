"""What a configuration means before any data is read."""

import logging

import pytest
import yaml

from dpeq.config import load_config
from dpeq.data.cards import load_card
from dpeq.errors import ConfigError
from dpeq.training.run import prepare


@pytest.fixture
def kidneys(tmp_path):
    """A card whose two classes are mirror images of each other."""
    card = load_card("pneumoniamnist").model_dump(mode="json")
    card["classes"] = ["left kidney", "right kidney"]
    card["symmetries"].update(laterality_matters=True, mirrored_classes=[card["classes"]])
    path = tmp_path / "kidneys.yaml"
    path.write_text(yaml.safe_dump(card))
    return path


def test_a_network_that_cannot_tell_left_from_right_is_a_warning_that_names_the_classes(kidneys, caplog):
    with caplog.at_level(logging.WARNING):
        prepared = prepare(load_config("pneumoniamnist", [f"data.card={kidneys}"]))
    assert "'left kidney' from 'right kidney'" in prepared.warnings[0]
    assert prepared.warnings[0] in caplog.text
    sound = ["model.group=C4", "model.restriction=none"]
    assert prepare(load_config("pneumoniamnist", [f"data.card={kidneys}", *sound])).warnings == ()


def test_every_option_of_the_model_reaches_it():
    options = ["model.name=eqnet-m", "model.group=C4", "model.block=full", "model.depths=[0,1,2]"]
    options += ["model.fields=[2,3,4]", "model.norm_groups=[1,3,2]", "model.resolution=16", "model.restriction=halved"]
    spec = prepare(load_config("pneumoniamnist", options)).spec
    assert (spec.group, spec.block, spec.depths, spec.fields) == ("C4", "full", (0, 1, 2), (2, 3, 4))
    assert (spec.norm_groups, spec.resolution, spec.restriction) == ((1, 3, 2), 16, "halved")


def test_twins_and_foreign_networks_by_configuration():
    twin = prepare(load_config("pneumoniamnist", ["model.name=vit", "model.match=eqresnet9-small"]))
    assert "transformer" in twin.spec.architecture
    path = "model.name=monai.networks.nets.DenseNet121"
    foreign = prepare(load_config("pneumoniamnist", [path, "model.replace_batch_norm=true"]))
    assert foreign.spec.path == "monai.networks.nets.DenseNet121"
    with pytest.raises(ConfigError, match=r"model\.block means nothing"):
        prepare(load_config("pneumoniamnist", [path, "model.block=full"]))


@pytest.mark.parametrize(
    "override", ["data.size=[8,8]", "data.window=[0,1]", "data.transforms=[{name: GaussianSmooth}]"]
)
def test_images_that_come_as_they_are_have_no_preprocessing(override):
    key = override.split("=")[0]
    with pytest.raises(ConfigError, match=rf"^{key} is for indexed folders, but the images of pneumoniamnist come as"):
        prepare(load_config("pneumoniamnist", [override]))


def test_views_of_pictures_may_be_monais():
    given = ["augment.transforms=[{name: RandAffine, prob: 0.5, rotate_range: 0.1}]"]
    prepare(load_config("pneumoniamnist", given))
    with pytest.raises(ConfigError, match="RandAffine takes no argument 'rotat_range'; did you mean 'rotate_range'"):
        prepare(load_config("pneumoniamnist", [given[0].replace("rotate_r", "rotat_r")]))
