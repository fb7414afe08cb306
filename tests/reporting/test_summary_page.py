"""The page of several runs: whole, self-contained, and its figures told in words and in tables."""

import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from dpeq.privacy import accounting
from dpeq.reporting.summary import build_summary
from dpeq.reporting.summary_html import render_summary, write_summary
from dpeq.reporting.summary_plots import _places, utility_plot


class Cells(HTMLParser):
    """Rows of all tables, as their cells' text, with the table's caption first."""

    def __init__(self, text):
        super().__init__()
        self.tables, self._cell = [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        if tag in ("caption", "th", "td"):
            self._cell = ""

    def handle_data(self, data):
        if self._cell is not None:
            self._cell += data

    def handle_endtag(self, tag):
        if tag in ("caption", "th", "td"):
            text = " ".join(self._cell.split())
            self.tables[-1].append([text]) if tag == "caption" else self.tables[-1][-1].append(text)
            self._cell = None


def test_the_page_needs_nothing_but_itself(summary_page):
    assert not re.findall(r"<(script|link|iframe|object|img)\b", summary_page)
    assert "default-src 'none'" in summary_page
    assert re.findall(r'href="(?!#)([^"]*)"', summary_page) == ["x-cnn-twin-eps8-1/report.html"]
    assert "http" not in re.sub(r'xmlns="[^"]*"', "", summary_page).replace("http-equiv", "")


def test_what_is_said_first(summary_page, summarised):
    for sentence in (*summarised["conclusions"], *summarised["privacy"]["sentences"], *summarised["scope"]):
        assert sentence.replace("'", "&#39;") in summary_page
    assert "This page shows runs without privacy" in summary_page
    assert "One run unfinished" in summary_page
    assert "Seeded runs" not in summary_page


def test_a_page_of_private_runs_alone_has_no_such_warning(summary_room):
    with accounting.session("pld", "rdp"):
        private = build_summary(sorted(path.parent for path in summary_room.glob("*eps8*/ledger.jsonl")))
    text = render_summary(private)
    assert "This page shows runs without privacy" not in text
    assert "no run of the same network without privacy is among these" in text.replace("\n", " ")


def test_tables_hold_what_the_curves_show(summary_page):
    tables = {rows[0][0]: rows[1:] for rows in Cells(summary_page).tables}
    mean = next(rows for caption, rows in tables.items() if caption.startswith("Mean AUC"))
    assert mean[0] == ["Network", "ε = 8", "ε = ∞"]
    by_network = {row[0]: row[1:] for row in mean[1:]}
    assert by_network["eqresnet9-d4"] == ["0.920 (0.793–1.000)", "0.955 (0.891–1.000)"]  # clipped at 1
    cost = next(rows for caption, rows in tables.items() if caption.startswith("What privacy costs in AUC"))
    assert {row[0]: row[1] for row in cost[1:]}["cnn-twin"].startswith("0.065 (−0.")
    runs = next(rows for caption, rows in tables.items() if caption.startswith("Every run"))
    unfinished = next(row for row in runs if row[0] == "x-begun-1")
    assert unfinished[3:] == ["2 of 4", "system", "–", "–", "unfinished"]


def test_every_figure_has_a_name_and_tells_its_points(summary_page):
    figures = re.findall(r"<svg.*?</svg>", summary_page, re.DOTALL)
    assert len(figures) == 2
    for figure, score in zip(figures, ("AUC", "Accuracy"), strict=True):
        root = ElementTree.fromstring(figure)
        title, desc = root.find("title"), root.find("desc")
        assert title.text == f"{score} against epsilon"
        assert root.get("aria-labelledby").split() == [title.get("id"), desc.get("id")]
        assert root.get("role") == "img"
    desc = ElementTree.fromstring(figures[0]).find("desc").text
    assert "eqresnet9-d4: epsilon 8 0.920 (0.793 to 1.000) of 2, without privacy 0.955" in desc
    assert desc.endswith("guessing: 0.500.")


def cell(model, epsilon, mean, low=None, high=None):
    return {
        "model": model,
        "epsilon": epsilon,
        "n": 1,
        "runs": [],
        "scores": {"auc": {"mean": mean, "low": low, "high": high}},
    }


@pytest.mark.parametrize(
    "cells",
    [
        [cell("net", "inf", 0.9)],
        [cell("net", 8.0, 0.9)],
        [cell("net", 8.0, 0.5)],
        [
            cell(f"a network with a long name, number {i}", e, 0.5 + i / 30, 0.4, 1.0)
            for i in range(12)
            for e in (1.0, "inf")
        ],
    ],
    ids=["infinity alone", "one epsilon", "at the level of guessing", "more networks than styles"],
)
def test_a_curve_can_be_drawn_of_whatever_there_is(cells):
    figure = utility_plot(cells, [], "auc", ("guessing", 0.5))
    assert ElementTree.fromstring(figure).tag == "svg"
    assert figure == utility_plot(cells, [], "auc", ("guessing", 0.5))


def test_infinity_stands_apart_behind_the_largest_epsilon():
    place = _places([8.0, math.inf, 1.0, 2.0])
    assert (place[1.0], place[8.0] - place[2.0]) == (0.0, pytest.approx(2 * (place[2.0] - place[1.0])))  # a logarithm
    assert place[math.inf] >= place[8.0] + 0.25
    assert _places([math.inf]).keys() == {math.inf}


def test_both_files_are_written_and_the_same_summary_gives_the_same_bytes(summarised, tmp_path, monkeypatch):
    first = [path.read_bytes() for path in write_summary(summarised, tmp_path / "a")]
    assert [path.read_bytes() for path in write_summary(summarised, tmp_path / "b")] == first
    assert [path.name for path in sorted((tmp_path / "a").iterdir())] == ["summary.html", "summary.json"]
    written = []
    monkeypatch.setattr("dpeq.reporting.summary_html.write_whole", lambda path, data: written.append(path.name))
    write_summary(summarised, tmp_path / "c")
    assert written == ["summary.json", "summary.html"]
