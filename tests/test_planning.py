"""``dpeq plan``: the same question as a training asks, answered without torch; one constant solved for; the picture."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from rich.console import Console

from dpeq import planning
from dpeq.config import load_config, recipes
from dpeq.data.cards import load_card
from dpeq.errors import ConfigError
from dpeq.plan_verb import show_plan
from dpeq.privacy import accounting
from dpeq.privacy.plan import PrivacyPlan
from dpeq.privacy.solving import TradeOff
from dpeq.reporting.tradeoff import check_picture, draw_trade_off
from dpeq.training import prepare

SMALL = ["privacy.steps=40", "privacy.epsilon=3"]
PLAN = PrivacyPlan(
    epsilon_target=3.0,
    delta=1e-5,
    unit="image",
    sample_rate=0.1,
    steps=40,
    expected_batch_size=100,
    noise_multiplier=1.5,
    max_grad_norm=1.0,
    public_units=1000,
    accountant="pld",
    epsilon={"pld": 2.99},
)


@pytest.mark.parametrize("changes", [[], ["privacy.sample_rate=0.07", "privacy.views=9", "privacy.clipping=automatic"]])
@pytest.mark.parametrize("recipe", recipes())
def test_a_training_asks_the_same_question(recipe, changes, monkeypatch):
    """Two ways to one plan must never differ in a constant."""
    config = load_config(recipe, changes)
    card = load_card(config.data.card)
    asked = {}
    monkeypatch.setattr(prepare, "remembered_plan", lambda **constants: asked.update(constants))
    prepare.make_plan(prepare.Prepared(config, card, None, config.data.unit or card.unit, None, ()))
    assert planning.constants(config, card) == asked
    assert asked


def test_another_unit_needs_its_published_number():
    config = load_config("pneumoniamnist", ["data.unit=patient"])
    with pytest.raises(ConfigError, match=r"give privacy\.public_units"):
        planning.plan_of(config)
    config = load_config("pneumoniamnist", ["data.unit=patient", "privacy.public_units=900"])
    assert planning.constants(config, load_card("pneumoniamnist"))["public_units"] == 900


def shown(capsys, *overrides, **options):
    settings = {"wanted": None, "noise_multiplier": None, "plot": None, "time": False, "json": False}
    show_plan(Console(), "pneumoniamnist", [*SMALL, *overrides], **{**settings, **options})
    return capsys.readouterr().out


def test_the_plan_is_shown_and_is_what_a_training_gets(capsys):
    values = json.loads(shown(capsys, json=True))
    plan = PrivacyPlan.from_dict(values)
    config = load_config("pneumoniamnist", SMALL)
    assert plan == planning.plan_of(config)
    assert "seconds_estimate" not in values
    text = shown(capsys)
    assert f"{plan.noise_multiplier:g}" in text
    assert "epsilon by pld" in text


@pytest.mark.parametrize("wanted", ["steps", "batch", "epsilon"])
def test_solving_for_one_constant(wanted, capsys):
    values = json.loads(shown(capsys, wanted=wanted, noise_multiplier=2.0, json=True))
    config = load_config("pneumoniamnist", [*SMALL, values["override"]])
    spent = accounting.epsilon_pld(
        config.privacy.expected_batch_size / 4708, 2.0, config.privacy.steps, config.privacy.delta
    )
    if wanted == "epsilon":
        assert spent <= config.privacy.epsilon <= spent + 1e-3
    else:
        assert 2.9 < spent <= 3.0
    assert values["epsilon"] == spent
    assert values["override"] in shown(capsys, wanted=wanted, noise_multiplier=2.0)


@pytest.mark.parametrize(
    ("overrides", "options", "word"),
    [
        ([], {"wanted": "sigma", "noise_multiplier": 1.0}, "--for is sigma; solve for epsilon, steps, batch"),
        ([], {"noise_multiplier": 1.0}, "--for is missing"),
        ([], {"wanted": "steps"}, "give --noise-multiplier"),
        ([], {"wanted": "steps", "noise_multiplier": 1.0, "plot": "x.svg"}, "leave --for out"),
        (["privacy.epsilon=inf"], {"wanted": "steps", "noise_multiplier": 1.0}, "Epsilon is inf"),
        (["privacy.sample_rate=0.1"], {"wanted": "batch", "noise_multiplier": 1.0}, "sample_rate fixes"),
        ([], {"plot": "picture.bmp"}, "ends in none of"),
        ([], {"plot": "none/picture.svg"}, "no folder none"),
        (["privacy.epsilon=inf"], {"plot": "picture.svg"}, "no trade-off"),
        (["privacy.sample_rate=0.1"], {"plot": "picture.svg"}, "sample_rate fixes"),
    ],
)
def test_what_makes_no_sense_is_said(overrides, options, word, capsys, monkeypatch, tmp_path):
    from pathlib import Path

    monkeypatch.chdir(tmp_path)
    if "plot" in options:
        options = {**options, "plot": Path(options["plot"])}
    with pytest.raises(ConfigError, match=word):
        shown(capsys, *overrides, **options)
    assert list(tmp_path.glob("*.*")) == []


def test_the_options_reach_the_verb(monkeypatch, capsys, tmp_path):
    from dpeq import plan_verb
    from dpeq.cli import main

    asked = {}
    monkeypatch.setattr(
        plan_verb, "show_plan", lambda out, source, overrides, **o: asked.update(o, a=(source, overrides))
    )
    words = "plan demo privacy.steps=3 --for steps --noise-multiplier 1.5 --plot x.svg --no-time --json"
    monkeypatch.setattr("sys.argv", ["dpeq", *words.split()])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    assert asked.pop("a") == ("demo", ["privacy.steps=3"])
    assert str(asked.pop("plot")) == "x.svg"
    assert asked == {"wanted": "steps", "noise_multiplier": 1.5, "time": False, "json": True}


def test_the_answer_needs_no_torch(tmp_path):
    code = (
        "import sys\n"
        "sys.argv = ['dpeq', 'plan', 'pneumoniamnist', 'privacy.steps=3', '--no-time']\n"
        "from dpeq.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'opacus', 'scipy', 'monai', 'dp_accounting', 'prv_accountant', 'matplotlib'}\n"
        "print('loaded', sorted(heavy & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "loaded []"
    assert "noise multiplier" in result.stdout


# ------------------------------------------------------------------------------------------------ the picture


def rows(scale):
    return [TradeOff(b, t, 1.5, scale * b * t, 1.5 / b) for b in (25, 50, 100, 200) for t in (10, 20, 40)]


def test_the_numbers_around_a_plan(monkeypatch):
    asked = []
    monkeypatch.setattr(planning, "trade_off", lambda **question: asked.append(question) or [])
    plan = replace(PLAN, expected_batch_size=400)
    planning.trade_offs_of(load_config("pneumoniamnist", []), plan)
    fixed, free = asked
    assert fixed["expected_batch_sizes"] == {100, 200, 400, 800, 1000}  # never more than there are
    assert fixed["steps"] == {5, 10, 20, 40, 80, 160}
    assert (fixed["noise_multiplier"], free["epsilon"]) == (1.5, 3.0)
    assert (fixed["delta"], fixed["public_units"]) == (1e-5, 1000)


def test_the_picture_is_drawn_the_same_each_time(tmp_path):
    for name in ("a.svg", "b.svg", "a.png", "a.pdf"):
        draw_trade_off(rows(1e-3), rows(1e-3), PLAN, tmp_path / name)
        assert (tmp_path / name).stat().st_size > 3000
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    root = ElementTree.fromstring((tmp_path / "a.svg").read_text())
    assert root.tag.endswith("svg")
    draw_trade_off(rows(2e-3), rows(1e-3), PLAN, tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() != (tmp_path / "b.svg").read_bytes()


def test_lines_carry_the_numbers(tmp_path, monkeypatch):
    import matplotlib.axes

    drawn = []
    plot = matplotlib.axes.Axes.plot

    def spy(axes, x, y, **options):
        drawn.append((x, y, options.get("label"), options.get("marker"), options.get("linestyle")))
        return plot(axes, x, y, **options)

    monkeypatch.setattr(matplotlib.axes.Axes, "plot", spy)
    draw_trade_off(rows(1e-3), rows(1e-3), PLAN, tmp_path / "a.svg")
    lines = [line for line in drawn if line[2]]
    assert [line[2] for line in lines] == ["25", "50", "100", "200"] * 2
    assert lines[1][:2] == ([10, 20, 40], [0.5, 1.0, 2.0])
    assert lines[5][:2] == ([10, 20, 40], [0.03] * 3)
    assert len({line[3] for line in lines[:4]}) == 4  # told apart without colour
    rings = [line[:2] for line in drawn if not line[2]]
    assert rings == [(40, 2.99), (40, 1.5 / 100)]


def test_pictures_have_known_names(tmp_path):
    check_picture(tmp_path / "A.SVG")
    with pytest.raises(ConfigError, match="ends in none"):
        check_picture(tmp_path / "a.jpg")


def test_the_command_draws(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(planning, "trade_off", lambda **question: rows(1e-3))
    out = shown(capsys, plot=tmp_path / "trade.svg")
    assert (tmp_path / "trade.svg").is_file()
    assert "Trade-off:" in out


def test_epsilon_is_rounded_up_when_it_is_put_into_a_configuration():
    from dpeq.privacy.solving import Solution

    solution = Solution("epsilon", 2.00000001, 1e-5, 1.0, 10, 0.1, 100, "pld", None)
    assert planning.override_of(solution) == "privacy.epsilon=2.001"
    assert planning.override_of(replace(solution, unknown="steps")) == "privacy.steps=10"
