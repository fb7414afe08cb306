"""What the verb ``report`` does: one run to a page, several to a summary, or a check. Loads torch for images alone."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from dpeq.errors import ConfigError
from dpeq.privacy import accounting

__all__ = ["check_reports", "report_runs"]


def check_reports(out: Console, paths: Sequence[Path]) -> None:
    """Verifies each report.json, or that of each run folder; raises :class:`DataError` at the first that is false."""
    with accounting.session("pld"):  # its library loads while this process still imports
        from dpeq.reporting.check import check_report

        for path in paths:
            report = path / "report.json" if path.is_dir() else path
            if len(paths) > 1:
                out.print(f"{report}:", soft_wrap=True)
            for line in check_report(report):
                out.print(f"ok  {line}", soft_wrap=True)


def report_runs(
    out: Console,
    runs: Sequence[Path],
    *,
    companion: Path | None,
    folder: Path | None,
    pdf: bool,
    images: int | None,
    images_per_patient: int | None,
    data_root: Path | None,
) -> None:
    """Writes the report of one run, or the summary of several."""
    if pdf and importlib.util.find_spec("weasyprint") is None:  # before the seconds that the report takes
        raise ConfigError("A PDF needs weasyprint, which is not installed; install it: pip install 'dpeq[pdf]'.")
    if data_root is not None and images is None:
        raise ConfigError("--data-root says where images are; give --images as well, or leave it out.")
    if len(runs) == 1:
        _one(out, runs[0], companion, folder or runs[0], pdf, images, images_per_patient, data_root)
        return
    for name, given in (
        ("--companion", companion),
        ("--images", images),
        ("--images-per-patient", images_per_patient),
    ):
        if given is not None:
            raise ConfigError(f"{name} belongs to the report of one run; name one, or leave it out.")
    _several(out, runs, folder, pdf)


def _one(
    out: Console,
    run: Path,
    companion: Path | None,
    folder: Path,
    pdf: bool,
    images: int | None,
    images_per_patient: int | None,
    data_root: Path | None,
) -> None:
    with accounting.session("pld"):
        from dpeq.reporting.model import build_report

        report = build_report(
            run, companion=companion, images=images, images_per_patient=images_per_patient, data_root=data_root
        )
        from dpeq.reporting.html import write_report
    html, _ = write_report(report, folder)
    out.print(f"Report: {html}", soft_wrap=True)
    if pdf:
        _write_pdf(out, html)


def _several(out: Console, runs: Sequence[Path], folder: Path | None, pdf: bool) -> None:
    raise ConfigError("A report of several runs cannot be written yet; name one run.")


def _write_pdf(out: Console, html: Path) -> None:
    from dpeq.reporting.pdf import write_pdf

    out.print(f"PDF: {write_pdf(html)}", soft_wrap=True)
