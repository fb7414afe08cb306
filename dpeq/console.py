"""What the person at the machine sees while a run goes on, and the tables printed afterwards."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.table import Column, Table
from rich.text import Text

from dpeq.advice import GroupAdvice
from dpeq.privacy.curve import EpsilonCurve
from dpeq.privacy.plan import PrivacyPlan
from dpeq.privacy.solving import Solution
from dpeq.reporting.numbers import round_up

if TYPE_CHECKING:
    from dpeq.data.index.summary import IndexSummary
    from dpeq.dry_step import LayerVerdict
    from dpeq.training.loop import PrivateRecord, StepRecord

__all__ = [
    "RichObserver",
    "advice_table",
    "index_tables",
    "models_table",
    "plan_table",
    "print_json",
    "solution_table",
    "summary_table",
    "verdict_table",
]

_STEPS_OF_SPEED = 10
_KINDS = {  # of entries in the list of what found no partner
    "row": "rows of the table",
    "path": "files",
    "image": "images",
    "image_id": "images",
    "series_id": "series",
    "study_id": "studies",
    "patient_id": "patients",
}


class RichObserver:
    """Live progress on a terminal; where there is none, a line every tenth of a stage with the same facts.

    Shown are: how far, epsilon spent so far, units per second, time left. What is private is shown only when the record
    of a step carries it, which it does when private metrics were asked for.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, max_width=30)),
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=6)),
            TextColumn("{task.fields[facts]}", markup=False),
            console=console,
            disable=not console.is_terminal,
            expand=True,
        )
        self._task: TaskID | None = None
        self._begin("")

    def __enter__(self) -> RichObserver:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def _begin(self, text: str) -> None:
        self._text, self._printed, self._began = text, -1, time.monotonic()
        self._start = (self._began, 0)  # when work began to be counted, and how much of it was done then
        self._seconds: deque[float] = deque(maxlen=_STEPS_OF_SPEED)

    def stage(self, text: str) -> None:
        if not self._console.is_terminal:
            self._console.print(f"{text} ...")
        elif self._task is not None:
            # One live row, the current one: the columns of several would take each other's room.
            self._progress.remove_task(self._task)
            self._console.print(f"  {self._text}: {duration(time.monotonic() - self._began)}", soft_wrap=True)
        self._begin(text)
        self._task = self._progress.add_task(text, total=None, facts="")

    def loading(self, done: int, total: int) -> None:
        self._advance(done, total)

    def planned(self, plan: PrivacyPlan) -> None:
        EpsilonCurve(plan)  # asks the accountant now, not within the first step
        if plan.accountant_note:
            self._console.print(f"Note: {plan.accountant_note}", style="yellow", soft_wrap=True)

    def stepped(self, record: StepRecord, plan: PrivacyPlan) -> None:
        if not self._seconds:  # a resumed run does not begin at its first step
            self._start = (time.monotonic() - record.seconds, record.step - 1)
        self._seconds.append(record.seconds)
        speed = plan.expected_batch_size * len(self._seconds) / max(sum(self._seconds), 1e-9)
        spent = EpsilonCurve(plan).after(record.step)
        epsilon = f"epsilon {round_up(spent)} of {plan.epsilon_target:g}" if plan.private else "NON-PRIVATE"
        below = () if record.private is None else _private_lines(record.private)
        self._advance(record.step, plan.steps, epsilon, f"{_two_digits(speed)} units/s", below=below)

    def _advance(self, done: int, total: int, *facts: str, below: Sequence[str] = ()) -> None:
        began, before = self._start
        told = [f"{done} of {total}", *facts]
        if before < done < total:
            left = (total - done) * (time.monotonic() - began) / (done - before)
            told.append(f"{duration(left)} left")
        text = "\n".join([", ".join(told), *below])
        if self._task is not None:
            if self._progress.tasks[-1].total is None:
                self._progress.reset(self._task, completed=before)
            self._progress.update(self._task, completed=done, total=total or None, facts=text)
        tenth = 10 * done // total if total else 0
        if not self._console.is_terminal and tenth > self._printed:
            self._printed = tenth
            self._console.print(f"  {self._text}: {text}".replace("\n", "\n    "), soft_wrap=True)


def _private_lines(p: PrivateRecord) -> tuple[str, str]:
    return (
        f"private: loss {p.loss:.3g}, gradient norm {p.gradient_norm:.3g}, {p.clipped:.0%} clipped",
        f"private: {p.units} units, {p.not_finite} not finite",
    )


def _two_digits(value: float) -> str:
    """12000 for 12345: the speed of a step says how many units were in it, and needs no more."""
    return f"{float(f'{value:.2g}'):g}"


def plan_table(plan: PrivacyPlan, seconds: float | None) -> Table:
    """The plan before any training: every constant, every accountant, the time it will take."""
    table = Table(title="Privacy plan" if plan.private else "NON-PRIVATE plan", show_header=False, title_justify="left")
    rows: list[tuple[str, str]] = [
        ("target epsilon, delta", f"{plan.epsilon_target:g}, {plan.delta:g}"),
        ("privacy unit", f"one {plan.unit}, added or removed"),
        ("sampling", f"Poisson, rate {plan.sample_rate:.5f} of {plan.public_units} published units"),
        ("steps", str(plan.steps)),
        ("expected batch", f"{plan.expected_batch_size} units of {plan.views} view(s)"),
        ("noise multiplier", f"{plan.noise_multiplier:g}"),
        ("clipping norm", f"{plan.max_grad_norm:g}, {plan.clipping.replace('_', ' ')} clipping"),
    ]
    rows += [(f"epsilon by {name}", round_up(value, 3)) for name, value in plan.epsilon.items()]
    if plan.mu is not None:
        rows.append(("mu (Gaussian DP)", round_up(plan.mu, 3)))
    if plan.accountant_note:
        rows.append(("note", plan.accountant_note))
    if seconds is not None:
        rows.append(("time on this machine", f"about {duration(seconds)}"))
    for row in rows:
        table.add_row(*row)
    return table


def solution_table(solution: Solution, override: str) -> Table:
    """One constant solved for, the others as given, and how a configuration says it."""
    table = Table(title=f"Solved for {solution.unknown}", show_header=False, title_justify="left")
    batch = solution.expected_batch_size
    rows = [
        ("epsilon, delta", f"{round_up(solution.epsilon, 3)}, {solution.delta:g}, by {solution.accountant}"),
        ("noise multiplier", f"{solution.noise_multiplier:g}"),
        ("steps", str(solution.steps)),
        ("sampling", f"Poisson, rate {solution.sample_rate:.5f}" + (f", expected batch {batch}" if batch else "")),
        ("train with", override),
    ]
    if solution.accountant_note:
        rows.insert(1, ("note", solution.accountant_note))
    for row in rows:
        table.add_row(*row)
    return table


def summary_table(report: dict[str, Any]) -> Table:
    """What a run came to."""
    guarantee, utility = report["guarantee"], report["utility"]
    table = Table(title="Done", show_header=False, title_justify="left")
    if guarantee["private"]:
        table.add_row(
            "guarantee",
            f"epsilon {round_up(guarantee['epsilon'], 3)}, delta {guarantee['delta']:g} per {guarantee['unit']}",
        )
    else:
        table.add_row("guarantee", "NON-PRIVATE: no noise was added")
    for name in ("auc", "accuracy"):
        score = utility[name]
        table.add_row(
            f"test {name}", f"{score['value']:.3f}  (95 % interval {score['low']:.3f} to {score['high']:.3f})"
        )
    table.add_row("majority class", f"{utility['majority_accuracy']:.3f} accuracy")
    table.add_row("network", f"{report['model']['name']}, {report['model']['parameters']:,} parameters")
    table.add_row("time", duration(sum(report["resources"]["seconds"].values())))
    return table


def index_tables(summary: IndexSummary) -> list[Table]:
    """What became of every file, and which identifying attributes the headers carry; numbers alone."""
    from dpeq.data.deid import EDITION, policy_rows

    files = Table(show_header=False)
    files.add_row("files seen", str(summary.files_seen))
    files.add_row("files accepted", f"{summary.files_accepted} in {len(summary.manifest.records)} images")
    files.add_row("files rejected", str(summary.files_rejected))
    for reason, count in summary.rejects.most_common():
        files.add_row(f"  {reason}", str(count))
    files.add_row("images left out of accepted files", str(summary.images_left_out))
    for (kind, reason), count in sorted(summary.unmatched.items()):
        files.add_row(f"{_KINDS[kind]}: {reason}", str(count))
    if summary.masks is not None:
        files.add_row("images with a mask", str(summary.masks))
    for split, count in summary.manifest.counts().items():
        files.add_row(split, f"{count['images']} images of {count['patients']} patients")
    for name, known in summary.groups.rows():
        files.add_row(name, known)
    title = f"Identifying attributes in {summary.dicom_headers} headers of DICOM images that are read ({EDITION})"
    policy = Table(title=title, title_justify="left")
    for heading in ("kind", "attribute"):
        policy.add_column(heading)
    policy.add_column("files", justify="right")
    for kind, name, count in policy_rows(summary.identifying):
        policy.add_row(kind, name, str(count))
    return [files, policy] if summary.dicom_headers else [files]


def models_table(rows: list[dict[str, Any]]) -> Table:
    """What :func:`dpeq.models.overview.overview` found; a dash where a network does not take images of the size."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0, collapse_padding=True)
    for heading in ("name", "dim", "group"):
        table.add_column(heading, no_wrap=True)
    for heading in ("parameters", "MACs per\nimage", "memory per\nimage", "gradient\nper unit", "noise\nnorm"):
        table.add_column(heading, no_wrap=True, justify="right")
    for row in rows:
        costs = ["-"] * 4
        if row["refused"] is None:
            costs = [
                _scaled(row["macs"], 1000, ("", "k", "M", "G", "T")),
                _scaled(row["activation_bytes"], 1024, ("B", "KiB", "MiB", "GiB")),
                _scaled(row["per_unit_gradient_bytes"], 1024, ("B", "KiB", "MiB", "GiB")),
                f"{row['noise_norm']:,.3g}" if row["noise_norm"] < 100 else f"{row['noise_norm']:,.0f}",
            ]
        table.add_row(row["name"], str(row["dim"]), row["group"], f"{row['parameters']:,}", *costs)
    return table


def advice_table(advice: list[GroupAdvice]) -> Table:
    """Every group with what is thought of it, and what to take instead."""
    colours = {"sound": "green", "questionable": "yellow", "refused": "red"}
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0, collapse_padding=True)
    for heading in ("group", "order", "on the grid", "verdict"):
        table.add_column(heading, no_wrap=True)
    table.add_column("why")
    for a in advice:
        why = a.reason if a.instead is None else f"{a.reason} Instead: {a.instead}."
        order = "infinite" if a.order is None else str(a.order)
        exact = "exact" if a.exact_on_grid else "about"
        table.add_row(a.group, order, exact, Text(a.grade, style=colours[a.grade]), why)
    return table


def verdict_table(verdicts: list[LayerVerdict]) -> Table:
    """What a dry private step found out: the network first, then its layers."""
    colours = {"exact": "green", "functorch": "green", "frozen": "yellow", "refused": "red", "unused": "red"}
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0, collapse_padding=True)
    for heading in ("layer", "kind"):
        table.add_column(heading, overflow="fold")
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("why and what to do")
    for v in verdicts:
        why = f"{v.why}; {v.mend}" if v.mend else v.why
        name = v.layer or "(the network)"
        table.add_row(name, v.kind, f"{v.parameters:,}", Text(v.verdict, style=colours[v.verdict]), why)
    return table


def _scaled(value: int, step: int, units: tuple[str, ...]) -> str:
    """Three significant digits with a unit: 27250584 as 27.3 M."""
    scaled, index = float(value), 0
    while index < len(units) - 1 and float(f"{scaled:.3g}") >= step:
        scaled, index = scaled / step, index + 1
    return f"{scaled:.0f} {units[index]}".rstrip() if scaled >= 100 or index == 0 else f"{scaled:.3g} {units[index]}"


def duration(seconds: float) -> str:
    """A length of time as a person says it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def print_json(value: Any) -> None:
    """Plain JSON on standard output, for other programs; infinity as the string "inf"."""
    print(json.dumps(value, indent=1, allow_nan=False))
