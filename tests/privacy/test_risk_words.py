"""Sentences about risk: every figure in them is one of the risk's, rounded so that the sentence stays true."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpeq.privacy.risk import Risk, assess_epsilon, assess_gaussian
from dpeq.privacy.risk_words import clinician, officer, percent_up, reviewer


def said(risk):
    return "\n".join((*officer(risk), *clinician(risk), *reviewer(risk))).replace("\N{NO-BREAK SPACE}", " ")


def percents(text):
    return [float(number) for number in re.findall(r"([\d.]+) %", text)]


@given(st.floats(0, 1))
def test_percentages_are_rounded_up_and_never_above_all(share):
    number = float(percent_up(share).split("\N{NO-BREAK SPACE}")[0])
    assert 100 * share - 1e-9 <= number <= min(100.0, 100 * share + 0.1 + 1e-9)
    if share <= 0.01:
        assert number <= 100 * share + 0.01 + 1e-9


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, "0"), (1e-9, "0.01"), (0.001, "0.1"), (0.01, "1"), (0.0101, "1.1"), (0.5, "50"), (1.2, "100")],
)
def test_percentages(share, expected):
    assert percent_up(share) == f"{expected}\N{NO-BREAK SPACE}%"


def test_the_officer_reads_true_figures():
    """For mu = 1 in closed form: 1.83 % hits at 0.1 %, 69.15 % right guesses, beliefs by hand."""
    text = officer(assess_gaussian(1.0, 1e-5, "patient"))
    joined = "\n".join(text).replace("\N{NO-BREAK SPACE}", " ")
    assert "a patient, with all images of that patient" in joined
    assert "probability 1 in 1,000 names one from inside it with probability at most 1.9 %" in joined
    assert "right with probability at most 69.2 %; a coin is with 50 %" in joined
    risk = assess_gaussian(1.0, 1e-5, "patient")
    for row, sentence in zip(risk.posteriors, text[3:6], strict=True):
        prior, after = percents(sentence.replace("\N{NO-BREAK SPACE}", " "))
        assert prior == 100 * row.prior
        assert 100 * row.usually <= after <= 100 * row.usually + 0.1
        assert "except in at most 1 in 100 trainings" in sentence
    assert "not other releases" in joined


def test_the_clinician_reads_about_reconstruction():
    risk = assess_gaussian(1.0, 1e-5, "patient")
    text = [sentence.replace("\N{NO-BREAK SPACE}", " ") for sentence in clinician(risk)]
    assert len(text) == 4
    for row, sentence in zip(risk.reconstructions, text[:3], strict=True):
        without, succeeds = percents(sentence)
        assert without == 100 * row.base_rate
        assert 100 * row.success <= succeeds <= 100 * row.success + 0.1
    assert percents(text[3]) == [1.0, 1.0, pytest.approx(100 * risk.posteriors[0].flagged, abs=0.1)]


def test_the_reviewer_reads_how_it_was_computed():
    gaussian = " ".join(reviewer(assess_gaussian(1.0, 1e-5, "image")))
    assert "closed form" in gaussian
    assert "μ = 1.000;" in gaussian
    assert "advantage (hit rate minus false alarm rate) is at most 0.3830" in gaussian
    assert gaussian.endswith("at most 0.0000 (its regret).")
    pair = reviewer(assess_epsilon(2.0, 1e-5, "image", note="No profile was had."))
    assert "the pair (ε, δ) alone" in pair[0]
    assert "μ" not in " ".join(pair)
    assert pair[-1] == "No profile was had."


def test_the_unit_is_named_throughout():
    for unit, group, words in (
        ("patient", 1, "a patient"),
        ("image", 1, "an image"),
        ("image", 5, "a group of 5 images"),
    ):
        risk = assess_gaussian(1.0, 1e-5, unit, group=group)
        text = said(risk)
        assert words in text
        assert ("A patient with several images" in text) == (unit == "image" and group == 1)
        if unit == "image":
            assert "a patient," not in text
            assert not re.search(r"\ba image", text)


def test_no_protection_is_said_plainly():
    text = said(assess_gaussian(30.0, 1e-5, "image"))
    assert text.count("as far as this guarantee goes") == 8  # a flag on a rare member stays uncertain
    assert "at most 100 %" not in text


def test_no_loss_is_said_plainly():
    text = said(assess_gaussian(0.0, 1e-5, "patient"))
    assert "names one from inside it with probability at most 0.1 %" in text
    assert "right with probability at most 50 %" in text
    assert "advantage (hit rate minus false alarm rate) is at most 0.0000" in text


@settings(max_examples=40, deadline=None, derandomize=True)
@given(mu=st.floats(0, 40), unit=st.sampled_from(["image", "patient"]))
def test_nothing_is_promised_that_the_risk_does_not_hold(mu, unit):
    """Every "at most p %" is at least one of the bounds, and within rounding of it."""
    risk = assess_gaussian(mu, 1e-5, unit)
    assert isinstance(risk, Risk)
    bounds = [rate.hits for rate in risk.hit_rates] + [row.success for row in risk.reconstructions]
    bounds += [getattr(row, name) for row in risk.posteriors for name in ("usually", "flagged", "best_guess")]
    for number in re.findall(r"at most ([\d.]+) %", said(risk)):
        assert any(100 * bound - 1e-9 <= float(number) <= 100 * bound + 0.1 + 1e-9 for bound in bounds)
        assert float(number) < 100
