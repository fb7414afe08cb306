"""The verb ``audit`` as a test calls it, and what it left."""

import io
import json

import typer
from rich.console import Console

from dpeq.audit_verb import verb as audit_verb


def record(folder):
    return json.loads((folder / "audit.json").read_text())


def go(target, *overrides, **changes):
    options = {"method": "step", "canaries": 100, "repetitions": 120, "shadows": 4, "certain": None, "folder": None}
    out, err = io.StringIO(), io.StringIO()
    code = 0
    try:
        audit_verb.audit(
            Console(file=out, width=120),
            Console(file=err, width=120),
            str(target),
            list(overrides),
            **{**options, "data_root": None, **changes},
        )
    except typer.Exit as left:
        code = left.exit_code
    return code, out.getvalue(), err.getvalue()


def limits_are(attack, allowed):
    """Hits that the audited mechanism allows, where false alarms are few: nothing else may stand beside an attack."""
    few = [(rate, hits) for rate, hits in attack["limit"] if 0 < rate < 0.2]
    assert len(few) > 2
    few += [(row["false_alarms_high"], row["allowed"]) for row in attack["hit_rates"]]
    for rate, hits in few:
        assert allowed(rate) <= hits <= 1.001 * allowed(rate)
