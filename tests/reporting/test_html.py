from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from jinja2 import UndefinedError
from made_audits import training_audit
from markupsafe import Markup

from dpeq.evaluation.metrics import evaluate_predictions
from dpeq.privacy.plan import PrivacyPlan
from dpeq.reporting import privacy_plots, utility_plots, utility_view
from dpeq.reporting.figure import BLUE, GREY, INK, VERMILLION
from dpeq.reporting.html import page as render_page
from dpeq.reporting.html import render_html, write_report
from dpeq.reporting.numbers import percent, percent_up, round_down, round_up
from dpeq.reporting.view import sections
from dpeq.resources import asset

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
def text(full_page):
    return full_page


@pytest.fixture(scope="module")
def plain(report):
    return render_html(report)


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_page_is_self_contained(text, page):
    assert not re.search(r"https?:|//www|@import|javascript:", text)
    assert not {"script", "link", "iframe", "object", "embed", "image"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not any(
            name.startswith("on") or name in ("srcset", "action", "formaction", "data") for name in attributes
        )
        assert attributes.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
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
    assert len(figures) == 15
    assert len(set(re.findall(r'<title id="([^"]*)', text))) == 15
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
    assert tags.count("table") == tags.count("caption") >= 20
    assert all(attributes.get("scope") in ("row", "col", "rowgroup") for tag, attributes in page.tags if tag == "th")
    regions = [attributes for _, attributes in page.tags if attributes.get("role") == "region"]
    assert len(regions) == tags.count("table")  # each can be scrolled by keyboard, and says what it is
    assert all(attributes["tabindex"] == "0" and len(attributes["aria-label"]) > 5 for attributes in regions)


def test_numbers_of_the_guarantee_are_on_the_page(text, full_report):
    report = full_report
    plain = re.sub(r"\s+", " ", text.replace("\N{NO-BREAK SPACE}", " "))
    for part in (
        report["guarantee"]["statement"].replace("\N{NO-BREAK SPACE}", " "),
        "≤ 80.3 %",
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


def test_many_classes_and_a_missing_accountant_render(report):
    many = copy.deepcopy(report)
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 12
    proba = rng.dirichlet(np.ones(12), size=120)
    names = [f"class {i} with a rather long name" for i in range(12)]
    many["utility"].update(evaluate_predictions(proba, labels, names, n_bootstrap=20))
    many["companion"] = None
    many["accountants"] = {"epsilon": {"pld": 7.9976}, "missing": {"prv": "it took too long"}, "gap": None}
    html = render_html(many)
    assert "mean over classes" in html
    assert html.count(f'<th scope="row">{names[11]}</th>') == 2  # by class, and in the confusion table
    assert "PRV (prv-accountant) gave no answer: it took too long." in html


def test_same_report_same_bytes_whatever_the_readers_settings(full_report, text):
    with matplotlib.rc_context({"font.size": 20.0, "svg.fonttype": "none", "axes.grid": True}):
        before = dict(matplotlib.rcParams)
        assert render_html(full_report) == text
        assert dict(matplotlib.rcParams) == before


def test_files_are_written_whole_and_twice_the_same(report, plain, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.html").write_text("an older page")
    html, data = write_report(report, tmp_path / "out")
    assert html.read_bytes() == plain.encode()
    assert json.loads(data.read_bytes()) == report
    assert sorted(p.name for p in html.parent.iterdir()) == ["report.html", "report.json"]


def test_every_section_is_numbered_listed_and_linked(text, page, full_report):
    listed = sections(full_report)
    assert [entry["number"] for entry in listed.values()] == [*range(1, 17)]
    headings = re.findall(r'<h2 id="([a-z]+)"><span class="no">(\d+)</span>([^<]+)</h2>', text)
    assert headings == [(name, str(entry["number"]), entry["title"]) for name, entry in listed.items()]
    places = {row["where"][1:] for rows in full_report["checklist"].values() for row in rows}
    assert places <= set(listed)


def test_sections_without_content_are_left_out(report, plain):
    assert "images" not in sections(report)
    assert 'id="subgroups"' not in plain
    assert "<img" not in plain
    assert Page(plain).open == []


def test_readers_are_three_and_the_officer_comes_first(text, full_report):
    places = [text.index(f"For the {reader}") for reader in ("data-protection officer", "clinician", "reviewer")]
    assert places == sorted(places)
    assert places[0] < text.index('class="sentence"')
    for reader in ("officer", "clinician", "reviewer"):
        for sentence in full_report["guarantee"][reader]:
            assert str(Markup.escape(sentence)) in text


def test_limits_are_those_of_the_risk(text, full_report):
    risk = full_report["risk"]
    even = next(row for row in risk["posteriors"] if row["prior"] == 0.5)
    assert f"≤ {percent_up(even['best_guess'])}" in text
    for row in risk["hit_rates"]:
        assert f'<td class="num">{percent_up(row["hits"])}</td>' in text
    for row in risk["reconstructions"]:
        assert f'<td class="num">{percent_up(row["success"])}</td>' in text
    assert ">no limit</td>" in text  # hardly ever, from a belief of one half: the guarantee allows certainty
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", text[text.index('id="risk"') : text.index('id="limits"')])
    assert len(cells) > 30
    assert not any(cell.startswith("100.0") for cell in cells)


def test_accountants_stand_with_their_bounds_and_the_one_that_is_quoted(text, report):
    place = text[text.index('id="accountants"') : text.index('id="model"')]
    used = re.findall(r'<tr class="used"><th scope="row">([^<]*)</th>', place)
    assert used == ["PLD (dp-accounting)"]
    assert f">{round_down(report['accountants']['epsilon']['prv_lower'], 3)}</td>" in place
    assert f">{round_up(report['accountants']['epsilon']['prv_upper'], 3)}</td>" in place


def test_groups_too_small_to_show_are_counted(text):
    place = text[text.index('id="subgroups"') : text.index('id="images"')]
    assert "Not shown: 34 cases" in place
    assert "All are withheld." in place
    assert "Sensitivity" not in place  # no group has one: no column of dashes


def test_an_images_words_say_nothing_of_the_patient(page):
    words = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert words == [f"Test image {i}: true class pneumonia, answer normal with probability 0.91" for i in (1, 2, 3)]


def test_text_has_enough_contrast():
    """WCAG 2.1, 1.4.3: 4.5 to 1 for every ink on every ground it stands on."""
    css = asset("privacy_reports", "page.css").read_text()
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", css)) | {"white": "#ffffff"}

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        return sum(
            w * (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4)
            for w, c in zip((0.2126, 0.7152, 0.0722), parts, strict=True)
        )

    grounds = {"white", "wash", "accent-wash", "alarm-wash", "caution-wash"}
    pairs = [(ink, ground) for ink in ("ink", "soft", "accent") for ground in grounds]
    pairs += [("alarm", "alarm-wash"), ("caution", "caution-wash"), ("alarm", "white"), ("caution", "white")]
    inks = {name: colours[name] for name, _ in pairs} | {f"plot {c}": c for c in (BLUE, VERMILLION, INK, GREY)}
    pairs += [(name, "white") for name in inks if name.startswith("plot")]
    for ink, ground in pairs:
        light, dark = luminance(colours[ground]), luminance(inks[ink])
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)


def test_a_value_that_a_template_lacks_is_an_error():
    with pytest.raises(UndefinedError):
        render_page("report.html.j2", report={})


def test_no_two_curves_differ_by_colour_alone():
    def grey(style):
        return str(style["linestyle"]), style.get("marker")

    assert len({grey(utility_plots._line(i)) for i in range(30)}) == 30
    assert len({(marker, dashes) for marker, _, dashes in utility_plots._ROLES.values()}) == 3


def test_figures_say_what_they_show():
    """Descriptions hold the figures' numbers, limits rounded up: by hand for (epsilon, delta) = (1, 0)."""
    curve = [(10.0**-k, 1.0 - 2 * 10.0**-k) for k in (5, 4, 3, 2, 1)] + [(1.0, 0.0)]
    drawn = privacy_plots.trade_off_plot(curve, 1.0, 0.0)
    assert (
        "at 1 % false alarms at most 2.0\N{NO-BREAK SPACE}% hits, from epsilon and delta alone 2.8" in drawn
    )  # e / 100
    drawn = privacy_plots.profile_plot([(0.0, 0.5), (2.0, 1e-3), (4.0, 1e-6), (9.0, 1e-12)], (2.0, 1e-3))
    assert "epsilon 4.00" in drawn
    assert "epsilon 9.00" not in drawn  # below the axis
    drawn = privacy_plots.accountant_plot([("A", {"lower": 1.0014, "upper": 1.0021})], 1.0021)
    assert "A: lower 1.001, upper 1.003. The quoted epsilon is 1.01." in drawn


def test_a_patients_images_have_limits_of_their_own(full_report, text):
    place = text[text.index("All images of one patient") : text.index('id="audits"')]
    assert "up to 4 images" in place
    assert ">∞</td>" in place  # the group's epsilon in this report; one image's stands before it
    assert place.index(f">{round_up(full_report['risk']['epsilon'])}</td>") < place.index(">∞</td>")


def test_every_attack_has_its_table_beside_what_the_plan_allows_and_its_picture(full_report, text):
    place = text[text.index('id="audits"') : text.index('id="limits"')]
    headings = re.findall(r'<h3 id="(audit-\d)">(.*?) <code>(.*?)</code></h3>', place)
    assert headings == [
        ("audit-1", "A training with made-up images", "black-box"),
        ("audit-2", "A training with made-up gradients", "one-run"),
        ("audit-3", "Who was in the training set? Shadow models", "shadow"),
        ("audit-4", "One private step, over and over", "step"),
    ]
    nbsp = "\N{NO-BREAK SPACE}"
    assert place.index("All attacks") < place.index('id="audit-1"')
    parts = re.split(r'<h3 id="audit-\d">', place)[1:]
    for part, audit in zip(parts, full_report["audits"], strict=True):
        assert f">at least {round_down(audit['epsilon_lower'])}</td>" in part
        assert ">at most 8.00</td>" in part
        for row in audit["attack"]["hit_rates"]:
            assert f">{percent(row['hits'])} <span" in part
            assert f">at most {percent_up(row['allowed'])} <span" in part
        assert "<title" in part
        assert f"{audit['attack']['auc']:.3f}; pure chance has 0.500" in part
        assert part.count("<details>") == 1
        assert "mu lower" in part[part.index("<details>") :]
        of_step = audit["attack"]["of"] == "step"
        assert ("limits are those of this single step" in part) is of_step
        assert ("the plan allows a single step" in " ".join(part.split())) is of_step
        assert ("not cover them" in part) is (audit["name"] == "shadow")
    assert "It took one further training on the same data" in parts[0]
    assert "It took 9 further trainings on the same data" in parts[2]
    assert "further training" not in parts[3]
    assert f"Hits at 0.1{nbsp}% false alarms" in parts[3]


def test_one_attack_needs_no_table_of_all_and_none_no_section(full_report, report):
    one = render_html(full_report | {"audits": full_report["audits"][:1]})
    assert "An attack that was carried out" in one
    assert "All attacks" not in one
    assert "By bad luck alone a bound is too high in up to one audit of twenty." in one
    assert "carried out" not in render_html(report)


def test_audits_without_a_result_are_named_also_where_none_has_one(report, full_report):
    def told(page):
        place = page[page.index('<h2 id="audits"') : page.index('<h2 id="limits"')]
        return " ".join(re.sub("<[^>]+>", "", place).split())

    begun = told(render_html(report | {"unfinished_audits": ["one-run"]}))
    assert begun == ("3Attacks that were begun Begun and without a result that can be read: one-run.")
    assert "confidence" not in begun
    both = told(render_html(full_report))
    assert "without a result that can be read: black-box-2, step-2." in both
    assert "Each bound holds with 95.0" in both
    assert "; of 4 audits at least one may be, with a probability of up to 20 %." in both
    assert "It is no share of patients." in both


def test_what_a_training_with_canaries_shows_is_said_to_be_a_release_of_it(text, full_report):
    parts = re.split(r'<h3 id="audit-\d">', text[text.index('id="audits"') : text.index('id="limits"')])[1:]
    for part, audit in zip(parts, full_report["audits"], strict=True):
        said = "a release of that training, whose loss the ε of this run leaves out" in part
        assert said is (audit["name"] in ("black-box", "one-run"))
        assert "95 % intervals; of trainings they are approximate" in part
        assert "what is certain" not in part
        assert ("the intervals in the table, which are approximate" in " ".join(part.split())) is (
            audit["name"] != "step"
        )


def test_an_attack_on_a_run_without_privacy_has_no_limit_beside_it(open_report, open_run):
    plan = PrivacyPlan.read(open_run / "plan.json")
    audited = {"name": "one-run", **json.loads(training_audit(plan, 1.5))}
    page = render_html(open_report | {"audits": [audited]})
    place = page[page.index('id="audits"') : page.index('id="limits"')]
    assert place.count(">no limit</td>") == 3
    assert "limit" not in re.findall(r"<desc.*?</desc>", place)[0]
    assert "Dashed" not in place


def test_points_of_curves_are_what_a_threshold_reaches():
    curve = {"fpr": [0.0, 0.04, 0.2, 1.0], "tpr": [0.1, 0.5, 0.9, 1.0]}
    nbsp = "\N{NO-BREAK SPACE}"
    assert utility_view._sensitivity([curve], 0.05) == f"50.0{nbsp}%"
    assert utility_view._sensitivity([curve, {"fpr": [0.0, 1.0], "tpr": [0.3, 1.0]}], 0.05) == f"40.0{nbsp}%"
    curve = {"recall": [0.0, 0.5, 0.8, 1.0], "precision": [1.0, 0.9, 0.7, 0.8]}
    assert utility_view._precision([curve], 0.6) == f"80.0{nbsp}%"  # finding all is more than 60 %, and more precise
    assert utility_view._precision([curve], 0.5) == f"90.0{nbsp}%"
