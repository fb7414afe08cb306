"""The report as a PDF, by weasyprint (the extra dpeq[pdf])."""

import subprocess
import sys

import pytest
from paper import check_paper

from dpeq.errors import ConfigError, DataError
from dpeq.reporting.pdf import write_pdf


@pytest.fixture(scope="module")
def weasyprint():
    try:
        import weasyprint
    except (ImportError, OSError) as error:
        pytest.skip(f"weasyprint does not work here: {error}")
    return weasyprint


def test_a_pdf_holds_the_whole_report_with_tags_and_a_title(full_report, full_page, tmp_path, weasyprint):
    path = tmp_path / "report.html"
    path.write_text(full_page, encoding="utf-8")
    pdf = write_pdf(path)
    assert pdf == tmp_path / "report.pdf"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report.html", "report.pdf"]
    check_paper(pdf, full_page)
    facts = subprocess.run(["pdfinfo", pdf], capture_output=True, text=True, check=True).stdout
    assert f"Title:           Privacy and performance report: {full_report['run']}\n" in facts
    assert "Tagged:          yes\n" in facts


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_page_for_its_owner_alone_becomes_such_a_pdf(mode, tmp_path, weasyprint):
    page = tmp_path / "page.html"
    page.write_text("<html lang=en><title>x</title><p>text</html>", encoding="utf-8")
    page.chmod(mode)
    readable = bool(write_pdf(page).stat().st_mode & 0o077)
    assert readable == bool(mode & 0o077)


def test_the_same_page_gives_the_same_bytes_in_another_process(tmp_path, weasyprint):
    odd = "<p style='text-wrap: pretty; no-such-style: 1'>ε = 8.00</p>"
    small = f"<!DOCTYPE html><html lang=en><title>A title</title><h1>One</h1>{odd}</html>"
    code = "import sys, pathlib, dpeq.reporting.pdf as pdf; pdf.write_pdf(pathlib.Path(sys.argv[1]))"
    (tmp_path / "here.html").write_text(small, encoding="utf-8")
    (tmp_path / "there.html").write_text(small, encoding="utf-8")
    write_pdf(tmp_path / "here.html")
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "there.html"], capture_output=True, check=True)
    assert done.stderr == b"", "styles that are for screens alone are no news"
    assert (tmp_path / "here.pdf").read_bytes() == (tmp_path / "there.pdf").read_bytes()


@pytest.mark.parametrize("address", ["https://example.invalid/x.png", "file:///etc/hostname"])
def test_a_page_that_asks_for_something_outside_is_refused(address, tmp_path, weasyprint):
    path = tmp_path / "page.html"
    path.write_text(f'<html lang="en"><title>x</title><img src="{address}" alt="x"></html>')
    with pytest.raises(DataError, match="asks for something outside of itself"):
        write_pdf(path)
    assert not (tmp_path / "page.pdf").exists()


def test_without_weasyprint_the_mend_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "weasyprint", None)
    with pytest.raises(ConfigError, match=r"pip install 'dpeq\[pdf\]'"):
        write_pdf(tmp_path / "report.html")
