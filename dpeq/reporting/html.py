"""The face of a report: one HTML page that needs nothing but itself, and the files that a run leaves behind."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from dpeq.reporting import numbers
from dpeq.reporting.audit_form import shows_units
from dpeq.reporting.files import as_text, check_schema, remove_pdf, write_whole
from dpeq.reporting.view import view
from dpeq.resources import asset

__all__ = ["page", "render_html", "write_report"]


def write_report(report: dict[str, Any], out_dir: Path) -> tuple[Path, Path]:
    """Writes ``report.html`` and ``report.json`` into ``out_dir``, each whole or not at all; returns their paths.

    A ``report.pdf`` of the page that was there before is removed; :func:`~dpeq.reporting.pdf.write_pdf` makes another.
    Files that show images of people, or figures of an attack on the training units themselves, can be read by their
    owner alone.
    """
    check_schema(report, "report")
    html = render_html(report)
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    html_path, json_path = out_dir / "report.html", out_dir / "report.json"
    private = report["images"] is not None or shows_units(report["audits"])
    remove_pdf(html_path)
    write_whole(json_path, as_text(report).encode(), owner_alone=private)
    # The page comes last: where there is one, all of the report is there.
    write_whole(html_path, html.encode(), owner_alone=private)
    return html_path, json_path


def render_html(report: dict[str, Any]) -> str:
    """The page of ``report`` (see ``privacy_reports/report.html.j2``); the same report gives the same bytes."""
    return page("report.html.j2", report=report, **view(report))


def page(template_name: str, **values: Any) -> str:
    """The template of ``privacy_reports`` filled with ``values``; the same values give the same bytes.

    Templates extend ``base.html.j2`` and take tables and figures from ``macros.html.j2``. Everything is escaped but
    what was made as :class:`~markupsafe.Markup`. Raises jinja2's UndefinedError when a value is missing.
    """
    return _environment().get_template(template_name).render(**values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(asset("privacy_reports", "base.html.j2").parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        up=numbers.round_up,
        sci=numbers.scientific,
        raised=_raised,
        one_in=numbers.one_in,
        pct=numbers.percent,
        pct_up=numbers.percent_up,
        show=numbers.show,
    )
    return environment


def _raised(text: str) -> Markup:
    """Powers of ten as markup: large figures in a serif face have no raised digits of their own."""
    plain = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "−0123456789")
    return Markup(re.sub("[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda power: f"<sup>{power[0].translate(plain)}</sup>", escape(text)))
