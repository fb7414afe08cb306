from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from dpeq.evaluation.metrics import evaluate_predictions
from dpeq.reporting.html import render_html, write_report

VOID = {"meta", "br", "hr", "img", "input", "link", "wbr"}


class Page(HTMLParser):
    """Start tags with their attributes, and the nesting of everything that must be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def text(report):
    return render_html(report)


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_page_is_self_contained(text, page):
    assert not re.search(r"https?:|//www|@import|javascript:", text)
    assert not {"script", "link", "iframe", "object", "embed", "img", "image"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not any(name.startswith("on") or name == "src" for name in attributes)
        assert all(attributes[name].startswith("#") for name in ("href", "xlink:href") if name in attributes)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'")


def test_markup_is_closed_and_ids_are_unique_and_found(page):
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        named = (attributes.get("aria-labelledby") or "").split()
        if attributes.get("href"):
            named.append(attributes["href"][1:])
        assert set(named) <= set(ids)


def test_headings_are_in_order_and_language_is_set(page):
    assert ("html", {"lang": "en"}) in page.tags
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))


def test_every_figure_has_a_name_and_a_description(text):
    figures = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(figures) == 4
    for figure in figures:
        root = ElementTree.fromstring(figure)
        assert root.get("role") == "img"
        title, desc = root.find("title"), root.find("desc")
        assert root.get("aria-labelledby") == f"{title.get('id')} {desc.get('id')}"
        assert len(title.text) > 5
        assert len(desc.text) > 40
        assert not root.findall(".//metadata")


def test_tables_have_captions_and_scopes(page):
    tags = [tag for tag, _ in page.tags]
    assert tags.count("table") == tags.count("caption") >= 10
    assert all(attributes.get("scope") in ("row", "col") for tag, attributes in page.tags if tag == "th")


def test_numbers_of_the_guarantee_are_on_the_page(text, report):
    plain = re.sub(r"\s+", " ", text.replace("\N{NO-BREAK SPACE}", " "))
    for part in (
        report["guarantee"]["statement"].replace("\N{NO-BREAK SPACE}", " "),
        "≤ 83.4 %",
        report["ledger"]["head"],
        report["provenance"]["command"],
        f"{report['utility']['auc']['value']:.3f}",
        "Noise multiplier σ",
        "NON-PRIVATE, same network",
    ):
        assert part in plain


def test_only_an_open_run_wears_the_banner(text, open_report):
    assert 'class="banner"' not in text
    page = render_html(open_report)
    assert 'class="banner"' in page
    assert "<title>NON-PRIVATE" in page
    assert "proven limit" not in page
    Page(page)


def test_seeded_run_says_so_in_the_first_paragraph(make_run):
    from dpeq.reporting.model import build_report

    page = render_html(build_report(make_run(rng="seeded", seed=1)))
    assert "only against those who do not know the seed" in page
    assert "Needs your attention" in page


def test_what_comes_from_files_is_escaped(report):
    bad = copy.deepcopy(report)
    attack = "<script>alert(1)</script> & \"'$x_1$ 漢 -->"
    bad["run"] = bad["data"]["title"] = bad["model"]["name"] = bad["provenance"]["command"] = attack
    bad["utility"]["classes"] = ["normal", attack]
    bad["assumptions"].append({"kind": "attention", "title": attack, "text": attack})
    page = render_html(bad)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 6
    assert Page(page).open == []


def test_many_classes_render(report):
    many = copy.deepcopy(report)
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 12
    proba = rng.dirichlet(np.ones(12), size=120)
    names = [f"class {i} with a rather long name" for i in range(12)]
    many["utility"].update(evaluate_predictions(proba, labels, names, n_bootstrap=20))
    many["companion"] = None
    assert "mean over classes" in render_html(many)


def test_same_report_same_bytes_whatever_the_readers_settings(report, text):
    with matplotlib.rc_context({"font.size": 20.0, "svg.fonttype": "none", "axes.grid": True}):
        before = dict(matplotlib.rcParams)
        assert render_html(report) == text
        assert dict(matplotlib.rcParams) == before


def test_files_are_written_whole_and_twice_the_same(report, tmp_path):
    html, data = write_report(report, tmp_path / "out")
    first = html.read_bytes(), data.read_bytes()
    assert json.loads(first[1]) == report
    write_report(report, tmp_path / "out")
    assert (html.read_bytes(), data.read_bytes()) == first
    assert sorted(p.name for p in html.parent.iterdir()) == ["report.html", "report.json"]


def test_a_browser_opens_it_on_paper_and_on_a_phone(report, tmp_path):
    """Chromium prints it on A4, and at 390 px nothing sticks out: the margin at the right stays blank."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    html, _ = write_report(report, tmp_path)
    frame = tmp_path / "phone.html"
    # A window cannot be as narrow as a phone, a frame can; its content is clipped, so overflow would show at its edge.
    frame.write_text('<body style="margin:0"><iframe src="report.html" style="width:390px;height:9000px;border:0">')
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    options += ["--disable-background-networking", "--disable-component-update", "--hide-scrollbars"]
    options += ["--enable-logging=stderr"]

    def chromium(*arguments: str) -> str:
        profile = tmp_path / f"profile{len(list(tmp_path.iterdir()))}"
        environment = os.environ | {"HOME": str(tmp_path)}
        done = subprocess.run(
            [browser, *options, f"--user-data-dir={profile}", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            env=environment,
            check=True,
        )
        return done.stderr

    pdf, shot = tmp_path / "report.pdf", tmp_path / "phone.png"
    log = chromium(f"--print-to-pdf={pdf}", html.as_uri())
    log += chromium("--window-size=500,9000", f"--screenshot={shot}", frame.as_uri())
    assert "CONSOLE" not in log
    assert pdf.read_bytes().startswith(b"%PDF")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", pdf.read_bytes())) <= 12
    pixels = matplotlib.image.imread(shot)[:, :, :3]
    assert pixels.shape[1] == 500
    assert pixels[:, :370].min() < 0.5
    assert np.all(pixels[:, 380:390] > 0.99)


def test_template_ships_with_the_package():
    from dpeq.resources import asset

    assert Path(asset("privacy_reports", "report.html.j2")).stat().st_size > 1000
