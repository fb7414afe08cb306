"""What an audit leaves: its record, the picture of its attack, and a table on the screen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rich.table import Table

from dpeq.privacy.audit.membership import Membership
from dpeq.privacy.audit.result import AuditResult
from dpeq.privacy.tradeoff import Profile
from dpeq.reporting.audit_form import LIMIT_RATES
from dpeq.reporting.numbers import percent, round_down, round_up

if TYPE_CHECKING:
    from dpeq.audit_verb.asked import Asked

__all__ = ["Outcome", "as_table", "write"]


@dataclass(frozen=True)
class Outcome:
    """The bounds (the last one is of the training), and the attack on one ``step`` or the ``training``.

    ``profile`` is what the plan allows of what was attacked, None without privacy.
    """

    results: list[AuditResult]
    attack: Membership
    profile: Profile | None
    of: Literal["step", "training"]

    def to_dict(self) -> dict[str, Any]:
        """The record, in JSON values: the bound on the training, and under "attack" its curve beside the limit."""
        limit = None
        if self.profile is not None:
            limit = [[rate, self.profile.hit_rate(rate)] for rate in LIMIT_RATES]
        return {**self.results[-1].to_dict(), "attack": {"of": self.of, **self.attack.to_dict(), "limit": limit}}


def write(asked: Asked, outcome: Outcome) -> None:
    """The pictures first, and the record last: with it, the audit is over."""
    from dpeq.audit.picture import draw_roc
    from dpeq.training.files import as_json, write_durably

    body = outcome.to_dict()
    title = "One private step" if outcome.of == "step" else f"A training of {asked.plan.steps} steps"
    for suffix in ("svg", "png"):
        draw_roc(body["attack"], title, asked.folder / f"roc.{suffix}")
    write_durably(asked.folder / "audit.json", as_json(body))


def as_table(outcome: Outcome) -> Table:
    table = Table(title="Audit", show_header=False, title_justify="left")
    for result in outcome.results:
        table.add_row("method", result.method)
        table.add_row(
            "epsilon",
            f"at least {round_down(result.epsilon_lower, 3)} at delta {result.delta:g}, with "
            f"{percent(result.confidence, 0)} confidence",
        )
        share = "" if result.share is None else f", {percent(result.share)} of it explained"
        limit = "nothing" if outcome.profile is None else f"at most {round_up(result.theoretical or 0.0, 3)}{share}"
        table.add_row("the plan says", limit)
        table.add_row("this assumes", result.assumes)
    table.add_row("area under the ROC curve", f"{outcome.attack.auc:.3f}")
    if lost := outcome.results[-1].details.get("steps_lost"):
        table.add_row("steps lost in crashes", f"{lost}: they were spent, and the attack is weaker without them")
    for row in outcome.attack.hit_rates:
        allowed = "" if row.allowed is None else f"; the plan allows {percent(row.allowed)}"
        told = f"{percent(row.hits)} hits ({percent(row.low)} to {percent(row.high)})"
        alarms = percent(row.false_alarms_high)
        table.add_row(f"at {percent(row.rate)} false alarms", f"{told}{allowed} where false alarms are {alarms}")
    return table
