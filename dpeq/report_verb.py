"""What the verb ``report`` does: one run to a page, several to a summary, or a check. Loads torch for images alone."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from dpeq.errors import ConfigError
from dpeq.privacy import accounting

__all__ = ["check_reports", "report_runs"]


def check_reports(out: Console, paths: Sequence[Path], run: Path | None = None) -> None:
    """Verifies each report.json, or that of each run folder; raises :class:`DataError` at the first that is false.

    ``run`` is the folder of the one report's run, where it does not lie beside.
    """
    if run is not None and len(paths) != 1:
        raise ConfigError("--run names the run of one report; name one report, or leave --run out.")
    with accounting.session("pld"):  # its library loads while this process still imports
        from dpeq.reporting.check import check_report
        from dpeq.reporting.check_run import UNVERIFIED
        from dpeq.reporting.summary_check import check_summary, is_summary

        for path in paths:
            report = path
            if path.is_dir():
                one = (path / "report.json").is_file() or not (path / "summary.json").is_file()
                report = path / ("report.json" if one else "summary.json")
            if len(paths) > 1:
                out.print(f"{report}:", soft_wrap=True)
            summary = is_summary(report)
            if summary and run is not None:
                raise ConfigError("--run names the run of a report, and this is a summary; leave --run out.")
            for line in check_summary(report) if summary else check_report(report, run_dir=run):
                out.print(line if line.startswith(UNVERIFIED) else f"ok  {line}", soft_wrap=True)


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
    attacks_on_units: bool,
) -> None:
    """Writes the report of one run, or the summary of several."""
    if pdf and importlib.util.find_spec("weasyprint") is None:  # before the seconds that the report takes
        raise ConfigError("A PDF needs weasyprint, which is not installed; install it: pip install 'dpeq[pdf]'.")
    if data_root is not None and images is None:
        raise ConfigError("--data-root says where images are; give --images as well, or leave it out.")
    of_one = {
        "companion": companion,
        "images": images,
        "images_per_patient": images_per_patient,
        "attacks_on_units": attacks_on_units,
    }
    if len(runs) == 1 and not _inside(runs[0]):
        _one(out, runs[0], folder or runs[0], pdf, {**of_one, "data_root": data_root})
        return
    for name, given in of_one.items():
        if given is not None and given is not False:  # 0 images is something given
            option = name.replace("_", "-")
            raise ConfigError(f"--{option} belongs to the report of one run; name one, or leave it out.")
    _several(out, runs, folder, pdf)


def _one(out: Console, run: Path, folder: Path, pdf: bool, options: Mapping[str, Any]) -> None:
    with accounting.session("pld"):
        from dpeq.reporting.model import build_report

        report = build_report(run, **options)
        from dpeq.reporting.html import write_report
    old = (folder / "report.pdf").exists()
    html, _ = write_report(report, folder)
    out.print(f"Report: {html}", soft_wrap=True)
    _write_pdf(out, html, pdf, old)


def _several(out: Console, named: Sequence[Path], folder: Path | None, pdf: bool) -> None:
    """A folder of runs stands for all of them; what else a shell's ``*`` catches is left out, and said."""
    runs: list[Path] = []
    for path in named:
        if not path.exists():
            raise ConfigError(f"There is no {path}; name run folders, or a folder of runs.")
        found = [path] if (path / "ledger.jsonl").is_file() else _inside(path)
        if not found:
            out.print(f"Left out: {path} is no run.", style="yellow", soft_wrap=True)
        runs += found
    if not runs:
        raise ConfigError("None of these is a run; name the folders that training wrote.")
    with accounting.session("pld", "rdp"):  # their libraries load while this process still imports
        from dpeq.reporting.summary import build_summary
        from dpeq.reporting.summary_html import write_summary

        target = folder or _common(runs)
        summary = build_summary(runs, below=target)
    old = (target / "summary.pdf").exists()
    html, _ = write_summary(summary, target)
    for sentence in (*summary["conclusions"], *summary["privacy"]["sentences"]):
        out.print(sentence, soft_wrap=True)
    out.print(f"Summary: {html}", soft_wrap=True)
    _write_pdf(out, html, pdf, old)


def _inside(path: Path) -> list[Path]:
    """The runs in a folder that is none itself."""
    if (path / "ledger.jsonl").is_file():
        return []
    return sorted(ledger.parent for ledger in path.glob("*/ledger.jsonl"))


def _common(runs: Sequence[Path]) -> Path:
    """The folder of all runs; where they have none in common, this one."""
    parents = {run.resolve().parent for run in runs}
    return runs[0].parent if len(parents) == 1 else Path()


def _write_pdf(out: Console, html: Path, wanted: bool, old: bool) -> None:
    """The PDF of a new page; an ``old`` one, of the page before, went with it, and that is said."""
    if not wanted:
        if old:
            out.print(
                f"Removed: {html.with_suffix('.pdf')} was of the page before; --pdf writes it anew.", soft_wrap=True
            )
        return
    from dpeq.reporting.pdf import write_pdf

    out.print(f"PDF: {write_pdf(html)}", soft_wrap=True)
