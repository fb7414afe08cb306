"""The picture of an attack: which lines it has, where they lie, and that page and file are drawn alike."""

import re

import numpy as np
import pytest

from dpeq.audit.picture import draw_roc
from dpeq.reporting.figure import new_figure, style
from dpeq.reporting.privacy_plots import trade_off_plot
from dpeq.reporting.roc import attack_plot, draw_attack

ROW = {
    "rate": 0.01,
    "hits": 0.3,
    "low": 0.2,
    "high": 0.4,
    "false_alarms_high": 0.02,
    "allowed": 0.456,
    "contradicts": False,
}
ATTACK = {
    **{"of": "training", "members": 500, "others": 500, "confidence": 0.95, "auc": 0.8125},
    "hit_rates": [ROW | {"rate": 0.001}, ROW],
    "roc": [[0.0, 0.0], [0.0, 0.25], [0.01, 0.3], [1.0, 1.0]],
    "limit": [[0.0, 0.0], [1e-4, 0.1], [0.001, 0.2], [0.1, 0.8], [1.0, 1.0]],
}


def drawn(attack):
    with style():
        _, axes = new_figure(3.0)
        draw_attack(axes, attack)
    named = {line.get_label(): np.asarray(line.get_xydata()) for line in axes.lines}
    unnamed = [line.get_xydata().tolist() for line in axes.lines if line.get_label().startswith("_")]
    return axes, named, unnamed


def test_curve_limit_and_chance_lie_where_they_belong():
    axes, named, intervals = drawn(ATTACK)
    assert axes.get_xscale() == "log"
    left, right = axes.get_xlim()
    assert (left, right) == (pytest.approx(0.001 / 1.3), 1.0)
    assert axes.get_ylim()[1] >= 1.0
    assert next(line for line in axes.lines if line.get_label() == "attack").get_drawstyle() == "steps-post"
    assert named["attack"].tolist() == [[left, 0.0], [left, 0.25], [0.01, 0.3], [1.0, 1.0]]
    assert named["limit"].tolist() == [[0.001, 0.2], [0.1, 0.8], [1.0, 1.0]]
    assert (named["pure chance"][:, 0] == named["pure chance"][:, 1]).all()
    assert named["pure chance"][[0, -1], 0] == pytest.approx([0.001, 1.0])
    assert intervals == [[[0.001, 0.2], [0.001, 0.4]], [[0.01, 0.2], [0.01, 0.4]]]
    styles = [line.get_linestyle() for line in axes.lines if not line.get_label().startswith("_")]
    assert len(set(styles)) == 3  # not by colour alone


@pytest.mark.parametrize(
    ("others", "smallest"), [(1, 0.1), (2, 0.1), (9, 0.1), (500, 0.001), (1000, 0.001), (5000, 1e-4)]
)
def test_the_axis_begins_where_one_false_alarm_is_too_many(others, smallest):
    axes, _, intervals = drawn(ATTACK | {"others": others})
    assert axes.get_xlim()[0] == pytest.approx(smallest / 1.3)
    assert min(axes.xaxis.get_major_locator().locs) == smallest
    assert len(intervals) == sum(rate >= smallest for rate in (0.001, 0.01))


def test_without_a_limit_there_is_none():
    bare = ATTACK | {"limit": None, "hit_rates": [ROW | {"allowed": None}]}
    assert set(drawn(bare)[1]) & {"limit", "attack", "pure chance"} == {"attack", "pure chance"}
    told = attack_plot(bare, "x")
    assert "allowed" not in told
    nbsp = "\N{NO-BREAK SPACE}"
    assert f"at 1 % false alarms 30.0{nbsp}% hits, with an interval from 20.0{nbsp}% to 40.0{nbsp}%. The" in told
    told = attack_plot(ATTACK, "x")
    assert f", where 45.6{nbsp}% are allowed" in told
    assert "curve is 0.812; pure chance has 0.500" in told


def test_the_page_and_the_file_show_the_same_curve(tmp_path):
    paths = []
    for name in ("a.svg", "b.svg", "c.png"):
        draw_roc(ATTACK, "A training", tmp_path / name)
        paths.append((tmp_path / name).read_bytes())
    assert paths[0] == paths[1]
    assert paths[2].startswith(b"\x89PNG")
    colours = [
        set(re.findall("stroke: (#[0-9a-f]{6})", text)) for text in (paths[0].decode(), attack_plot(ATTACK, "x"))
    ]
    assert colours[0] == colours[1]


def test_the_limit_of_a_training_has_the_same_axes():
    told = trade_off_plot([(1e-6, 1.0), (1e-5, 0.9), (0.001, 0.8), (1.0, 0.0)], 1.0, 1e-5)
    ours = attack_plot(ATTACK | {"others": 100_000}, "x")
    ticks = [len(re.findall(r'id="[a-z]+-xtick_\d+"', text)) for text in (told, ours)]
    assert ticks == [6, 6]
