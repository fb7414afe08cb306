"""A report's page as a PDF: tagged for screen readers (PDF/UA-1), the same bytes for the same page, and no network."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dpeq.errors import ConfigError, DataError
from dpeq.reporting.files import write_whole

__all__ = ["write_pdf"]


def write_pdf(html_path: Path) -> Path:
    """Writes the page ``html_path`` as a PDF beside it, whole or not at all, for its readers alone; returns its path.

    The page must bring everything along: an address in it that is not ``data:`` raises :class:`DataError`. Raises
    :class:`ConfigError` when weasyprint, or a library of the system that it needs, is missing.
    """
    try:
        from weasyprint import HTML
        from weasyprint.urls import FatalURLFetchingError, URLFetcher
    except (ImportError, OSError) as error:  # OSError: weasyprint is there, Pango is not
        raise ConfigError(
            f"A PDF needs weasyprint and Pango ({error}); install them: pip install 'dpeq[pdf]', and "
            "'apt-get install libpango-1.0-0 libpangoft2-1.0-0' or what your system calls them."
        ) from error
    fetcher = URLFetcher(allowed_protocols=("data",), allow_redirects=False, fail_on_errors=True)
    try:
        with _errors_alone("weasyprint"):
            page = HTML(string=html_path.read_text(encoding="utf-8"), url_fetcher=fetcher)
            data = page.write_pdf(pdf_variant="pdf/ua-1")
    except FatalURLFetchingError as error:
        raise DataError(
            f"The page {html_path} asks for something outside of itself ({error}); write it again with 'dpeq report'."
        ) from error
    path = html_path.with_suffix(".pdf")
    write_whole(path, data, owner_alone=not html_path.stat().st_mode & 0o077)
    return path


@contextmanager
def _errors_alone(name: str) -> Iterator[None]:
    """Weasyprint warns of every style that is for screens, and of every one of a figure that it then draws."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
