"""What headers and tables say of groups comes out in few words, and in none of their own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpeq.data.attributes import DEVICES, age_band, device_of, plain, sex_of, site_key


@pytest.mark.parametrize(
    ("text", "band"),
    [
        ("000Y", "0-9"), ("009Y", "0-9"), ("010Y", "10-19"), ("089Y", "80-89"), ("090Y", "90+"), ("120Y", "90+"),
        ("121Y", ""), ("999Y", ""), ("018M", "0-9"), ("119M", "0-9"), ("120M", "10-19"), ("003W", "0-9"),
        ("010D", "0-9"), ("45Y", "40-49"), (" 045y ", "40-49"), ("45", ""), ("", ""), ("-05Y", ""), ("045", ""),
        ("19450101", ""), ("40-49", ""), ("045Y\\046Y", ""), ("٠٤٥Y", ""),
    ],
)  # fmt: skip
def test_ages_of_headers_become_bands(text, band):
    assert age_band(text) == band


@pytest.mark.parametrize(
    ("text", "band"),
    [
        ("45", "40-49"), ("9.99", "0-9"), ("120.0", "90+"), ("121", ""), ("80-89", "80-89"), ("90+", "90+"),
        ("045Y", "40-49"), ("40-50", ""), ("1980", ""), ("nan", ""), ("1e1", ""),
    ],
)  # fmt: skip
def test_ages_of_tables_may_be_years_or_bands(text, band):
    assert age_band(text, years=True) == band


def test_sexes():
    assert [sex_of(text) for text in ("F", "m ", "O", "Female", "MALE", "other")] == ["female", "male", "other"] * 2
    assert [sex_of(text) for text in ("", "U", "1", "f m", "F\\M")] == [""] * 5


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("SIEMENS", "Siemens"), ("Siemens Healthineers", "Siemens"), ("GE MEDICAL SYSTEMS", "GE"),
        ("TOSHIBA_MEC", "Canon (Toshiba)"), ("Canon Inc.", "Canon (Toshiba)"),
        ("FUJI PHOTO FILM Co., ltd.", "Fujifilm"), ("KODAK", "Carestream (Kodak)"),
        ("UIH", "United Imaging"), ("United Imaging Healthcare", "United Imaging"), ("United Doe", "other"),
        ("KONICA MINOLTA", "Konica Minolta"), ("LORAD, A Hologic Company", "Hologic"), ("Imagerie Ge-neve", "GE"),
        ("GEMS Doe", "other"), ("?", "other"), (" ", ""),
    ],
)  # fmt: skip
def test_manufacturers_are_those_of_a_list(text, device):
    assert device_of(text) == device


def test_every_listed_manufacturer_is_found_by_each_of_its_words():
    for name, words in DEVICES.items():
        assert {device_of(f"{word.upper()} imaging") for word in words.split()} == {name}


@given(st.text())
def test_nothing_of_a_header_passes_as_it_stands(text):
    assert sex_of(text) in {"female", "male", "other", ""}
    assert device_of(text) in {*DEVICES, "other", ""}
    assert age_band(text) in {*(f"{ten}0-{ten}9" for ten in "12345678"), "0-9", "90+", ""}


def test_one_site_in_several_spellings_is_one():
    assert len({site_key(text) for text in ("St. Mary's  Köln", "st. mary's ko\u0308ln", " ST. MARY'S KÖLN\n")}) == 1
    assert site_key("  ") == ""


def test_values_that_are_shown_as_written_are_short_and_on_one_line():
    assert plain("  Ko\u0308ln \n Nord ") == "Köln Nord"
    assert plain("x\u202ey") == plain("x\x07") == ""
    assert plain("x" * 40) == "x" * 40
    with pytest.raises(ValueError, match="longer than 40"):
        plain("x" * 41)
