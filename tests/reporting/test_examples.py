"""The example reports in the repository hold together, by today's accountants and schemas."""

import pytest
from helpers import REPOSITORY

from dpeq.reporting.check import check_report
from dpeq.reporting.summary_check import check_summary

EXAMPLES = REPOSITORY / "privacy_reports" / "examples"


@pytest.mark.parametrize(
    "path",
    [
        "pneumoniamnist/pneumoniamnist-eqresnet9-small-eps1-3/report.json",
        "pneumoniamnist/pneumoniamnist-eqresnet9-small-epsinf-3/report.json",
        "phantom_hospital/demo-eqresnet9-3d-tiny-eps8-2/report.json",
    ],
)
def test_a_report_holds_together(path, tmp_path):
    copy = tmp_path / "report.json"  # without its page, whose figures another matplotlib draws otherwise
    copy.write_bytes((EXAMPLES / path).read_bytes())
    assert check_report(copy)


@pytest.mark.parametrize("data", ["pneumoniamnist", "phantom_hospital"])
def test_a_summary_holds_together(data, tmp_path):
    copy = tmp_path / "summary.json"
    copy.write_bytes((EXAMPLES / data / "summary.json").read_bytes())
    assert check_summary(copy)


def test_every_report_has_its_page():
    for found in EXAMPLES.rglob("*.json"):
        assert found.with_suffix(".html").is_file(), found
