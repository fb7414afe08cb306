import math

import pytest

from dpeq.config import load_config, write_config
from dpeq.errors import ConfigError
from dpeq.resources import room


@pytest.mark.parametrize("path", sorted(room("pipelines").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_recipes_are_valid_and_found_by_name(path):
    config = load_config(path.stem)
    assert config == load_config(path)
    assert config.name == path.stem


def test_transforms_are_read_with_their_arguments_and_written_back(tmp_path):
    given = ["data.transforms=[{name: GaussianSmooth, sigma: '$1+1'}]", "views.images_per_unit=1"]
    config = load_config("demo", [*given, "augment.transforms=[{name: RandFlip, prob: 0.5, spatial_axis: [0, 1]}]"])
    assert config.data.transforms is not None
    assert config.data.transforms[0].arguments == {"sigma": "$1+1"}, "nothing evaluates it"
    assert config.augment.transforms[0].arguments == {"prob": 0.5, "spatial_axis": [0, 1]}
    write_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("epsilon", ["3", "0.5", "inf", ".inf"])
def test_written_configuration_reads_back_equal(tmp_path, epsilon):
    config = load_config("pneumoniamnist", [f"privacy.epsilon={epsilon}", "training.seed=3"])
    assert config.privacy.epsilon == (math.inf if "inf" in epsilon else float(epsilon))
    write_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("privacy.epsilonn=3", r"privacy\.epsilonn in .* is not a known key; did you mean 'epsilon'\?"),
        ("privacy.public_unit=3", "did you mean 'public_units'"),
        ("colour=red", "the keys are: name, data, model"),
        ("privacy.epsilon=0", "greater than 0"),
        ("privacy.epsilon=-1", "greater than 0"),
        ("privacy.epsilon=nan", "greater than 0"),
        ("privacy.delta=1", "less than 1"),
        ("privacy.steps=many", "valid integer"),
        ("model.fields=[1,2]", r"model\.fields\.2 is missing"),
        ("training.lr=inf", "finite"),
        ("name=../up", "pattern"),
        ("data.preset=pet", r"data\.preset is 'pet' in .*; input should be 'ct', 'mr', 'xray' or 'generic'"),
        ("data.window=[1,0]", r"data\.window is \[1, 0\] in .*; give the lower end first"),
        ("data.orientation=RRS", r"data\.orientation is 'RRS' in .*; input should name where each axis points"),
        ("data.slices=2", r"data\.slices is 2 in .*; input should be an odd number"),
        ("data.transforms=[{sigma: 1}]", r"data\.transforms\.0\.name is missing"),
        ("data.workers=-1", r"data\.workers is -1"),
        ("data.cache_gib=0", r"data\.cache_gib is 0"),
        (
            "augment.transforms=[{name: a b}]",
            r"augment\.transforms\.0\.name is 'a b' in .*; string should match pattern",
        ),
        ("views.images_per_unit=0", r"views\.images_per_unit is 0"),
        ("views.images_per_unit=2", r"views\.images_per_unit asks for more images than the 1 rows that privacy\.views"),
        ("privacy.epsilon", "is no override; write section.key=value"),
        ("privacy: {", "not valid YAML|is no override"),
    ],
)
def test_bad_overrides_are_one_sentence_that_names_the_key(override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config("pneumoniamnist", [override])
    assert "\n" not in str(caught.value)


def test_missing_sections_and_files(tmp_path):
    with pytest.raises(ConfigError, match=r"the recipes are: demo, .*pneumoniamnist"):
        load_config("pneumonia")
    for text, message in (("- 1\n", "not a configuration"), ("name: x\n", "is missing"), ("a: [", "not valid YAML")):
        path = tmp_path / "bad.yaml"
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_config(path)
