"""What stands on the pages of a PDF, by Poppler's pdftotext, and whether that is the whole of an HTML page."""

import html
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

PDFTOTEXT = shutil.which("pdftotext")
A4, MARGIN = (595.28, 841.89), 18 / 25.4 * 72  # points


class Words(HTMLParser):
    """What a reader of the page sees: its words, without styles and without what figures say to screen readers."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.hidden: list[str] = []
        self.seen: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag in ("style", "svg", "title", "sup", "sub") or ("class", "skip") in attrs:
            self.hidden.append(tag)

    def handle_endtag(self, tag):
        if self.hidden and self.hidden[-1] == tag:
            self.hidden.pop()

    def handle_data(self, data):
        if not self.hidden:
            self.seen += data.split()


def words_on_paper(pdf: Path) -> list[tuple[int, float, float, str]]:
    """(page, left, right, word) of every word of ``pdf``."""
    if PDFTOTEXT is None:
        pytest.skip("no pdftotext on this machine (Debian: poppler-utils)")
    text = subprocess.run([PDFTOTEXT, "-bbox", pdf, "-"], capture_output=True, text=True, check=True).stdout
    words = []
    for number, part in enumerate(text.split("<page ")[1:], 1):
        size = re.match(r'width="([\d.]+)" height="([\d.]+)"', part)
        assert [float(side) for side in size.groups()] == pytest.approx(A4, abs=1)
        found = re.findall(r'<word xMin="([-\d.]+)" yMin="[-\d.]+" xMax="([-\d.]+)"[^>]*>(.*?)</word>', part)
        words += [(number, float(left), float(right), html.unescape(word)) for left, right, word in found]
    return words


def check_paper(pdf: Path, page: str) -> None:
    """Every word of ``page`` is in ``pdf``, and none in its margins."""
    words = words_on_paper(pdf)
    assert 3 <= words[-1][0] <= 25
    assert [word for word in words if word[1] < MARGIN - 1 or word[2] > A4[0] - MARGIN + 1] == []
    printed = {word for *_, word in words}
    joined = "".join(word for *_, word in words)  # what is too long for its line is broken, without its hyphen
    missing = [word for word in Words(page).seen if word not in printed and word not in joined]
    assert [word for word in missing if not all(part in joined for part in word.split("-"))] == []
