"""Which runs a sweep consists of, and under which settings."""

import math

import pytest

from benchmarks.killable import make_config
from dpeq.config import load_config, write_config
from dpeq.errors import ConfigError
from dpeq.sweep.grid import make_grid, parse_epsilons


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe that says more of its network than the name, and has a seed."""
    folder = tmp_path_factory.mktemp("recipe")
    path = folder / "chaos.yaml"
    write_config(make_config(folder, steps=4, seed=7), path)
    return str(path)


def test_the_grid_of_the_manual():
    cells = make_grid(
        "pneumoniamnist",
        [],
        epsilons=parse_epsilons(["1", "2", "4", "8", "inf"]),
        models=["eqresnet9-d4", "cnn-twin", "vit-twin"],
        repetitions=3,
    )
    assert len(cells) == len({cell.name for cell in cells}) == 45
    first, last = cells[0], cells[-1]
    assert (first.name, last.name) == ("pneumoniamnist-eqresnet9-d4-eps1-1", "pneumoniamnist-vit-twin-epsinf-3")
    assert (first.config.model.name, first.config.model.group) == ("eqresnet9", "D4")
    assert (last.config.model.name, last.config.model.match) == ("vit", "eqresnet9")
    assert math.isinf(last.config.privacy.epsilon)
    for cell in cells:
        assert cell.config == load_config("pneumoniamnist", cell.overrides)  # an ordinary run
        assert cell.config.name == cell.name
        assert cell.config.privacy.epsilon == cell.epsilon
        assert cell.config.training.seed is None
    assert [cell.repetition for cell in cells[::15]] == [1, 2, 3]


def test_seeded_repetitions_have_the_seeds_0_1_2(recipe):
    cells = make_grid(recipe, [], repetitions=3, seeded=True)
    assert [cell.config.training.seed for cell in cells] == [0, 1, 2]


def test_a_seed_of_the_recipe_does_not_make_repetitions_one(recipe):
    assert [cell.config.training.seed for cell in make_grid(recipe, [], repetitions=2)] == [None, None]


def test_another_network_takes_nothing_of_the_recipes_own(recipe):
    cells = make_grid(recipe, ["training.lr=2"], models=["eqresnet9-small", "eqnet-xs", "wide-resnet-twin"])
    own, other, twin = (cell.config for cell in cells)
    assert own.model.fields == (1, 1, 2)
    assert [cell.model for cell in cells] == ["eqresnet9-small-c4", "eqnet-xs", "wide-resnet-twin"]
    assert other.model.model_dump(exclude_defaults=True) == {"name": "eqnet-xs"}
    assert twin.model.model_dump(exclude_defaults=True) == {"name": "wide-resnet", "match": "eqresnet9-small"}
    assert own.training.lr == other.training.lr == twin.training.lr == 2


def test_without_a_list_of_networks_the_recipes_is_taken(recipe):
    (cell,) = make_grid(recipe, ["name=mine"])
    assert cell.name == "mine-eqresnet9-small-c4-eps1000-1"
    assert cell.config.model == load_config(recipe).model


@pytest.mark.parametrize(
    ("options", "overrides", "sentence"),
    [
        ({"models": ["eqresnet9-d5"]}, [], r"no network 'eqresnet9-d5', nor a preset with a group"),
        ({"models": ["eqresnet9-d4", "eqresnet9-D4"]}, [], "listed twice"),
        ({"models": ["cnn", "cnn-twin"]}, [], "listed twice"),
        ({"models": ["eqnet-xs"]}, ["model.name=eqresnet9"], "model.name is given twice"),
        ({"epsilons": [1.0]}, ["privacy.epsilon=3"], "privacy.epsilon is given twice"),
        ({}, ["training.seed=3"], "--seeded"),
        ({}, ["privacy.stps=3"], "not a known key"),
    ],
)
def test_what_is_refused(options, overrides, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make_grid("pneumoniamnist", overrides, **options)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (["1", "x.yaml"], "'x.yaml' is no epsilon; .* CONFIG before --epsilon"),
        (["0"], "Epsilon is 0"),
        (["nan"], "Epsilon is nan"),
        (["1", "1.0"], "listed twice"),
    ],
)
def test_what_is_no_epsilon(values, sentence):
    with pytest.raises(ConfigError, match=sentence):
        parse_epsilons(values)
