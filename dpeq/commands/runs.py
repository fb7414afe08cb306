"""Verbs for runs that are there: evaluate, audit, report, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpeq.commands.shared import DataRoot, Overrides, screen, screen_for_errors
from dpeq.errors import ConfigError

__all__ = ["audit", "evaluate", "export", "report"]


def evaluate(
    run: Annotated[Path, typer.Argument(help="The directory of a finished run.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Where the data is, or how fast: data.manifest=..., training.device=cpu.")
    ] = None,
    data_root: DataRoot = None,
) -> None:
    """Score a finished run again, on the data it was trained with; it costs no privacy budget."""
    from dpeq.console import RichObserver
    from dpeq.training.scoring import rescore

    with RichObserver(screen) as observer:
        metrics = rescore(run, overrides or [], data_root=data_root, observer=observer)
    for name in ("auc", "accuracy"):
        score = metrics["test"][name]
        screen.print(f"Test {name}: {score['value']:.3f} (95 % interval {score['low']:.3f} to {score['high']:.3f})")
    screen.print(f"Scores: {run / 'metrics.json'}; 'dpeq report {run}' writes the report anew.", soft_wrap=True)


def audit(
    target: Annotated[
        str, typer.Argument(metavar="CONFIG|RUN", help="A YAML file, a shipped recipe, or the directory of a run.")
    ],
    overrides: Overrides = None,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="step: one private step, many times. one-run: a training with canaries, every release heard. "
            "black-box: a training with images as canaries, of which the network is asked at the end. "
            "shadow: who was in the training set? By models trained on halves of it.",
        ),
    ] = "step",
    canaries: Annotated[int, typer.Option("--canaries", help="Of a training; each is in or out by a coin.")] = 1000,
    repetitions: Annotated[
        int, typer.Option("--repetitions", help="Of a step, with the canary, and as many without it.")
    ] = 5000,
    shadows: Annotated[int, typer.Option("--shadows", help="Shadow models, an even number; each is a training.")] = 16,
    certain: Annotated[
        bool | None,
        typer.Option(
            "--certain/--coins",
            help="Of a step: the unit is in every one, which tests noise and clipping sharply; or by the plan's coins. "
            "The first by default.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder to write to; RUN/audits/METHOD, or runs/<recipe>-audit-METHOD by default."),
    ] = None,
    data_root: DataRoot = None,
) -> None:
    """Attack the training and say what it reveals at least. Run it again after a stop."""
    from dpeq.audit_verb.verb import audit as run_audit

    run_audit(
        screen,
        screen_for_errors,
        target,
        overrides or [],
        method=method,
        canaries=canaries,
        repetitions=repetitions,
        shadows=shadows,
        certain=certain,
        folder=out,
        data_root=data_root,
    )


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run directories; with --check, also report.json files.")
    ],
    companion: Annotated[Path | None, typer.Option("--companion", help="A non-private run to show beside.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write to; the run directory by default.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Verify reports instead.")] = False,
    of_run: Annotated[
        Path | None, typer.Option("--run", metavar="RUN", help="With --check: the run, where it is not beside.")
    ] = None,
    pdf: Annotated[bool, typer.Option("--pdf", help="Also write report.pdf.")] = False,
    images: Annotated[
        int | None,
        typer.Option("--images", metavar="N", help="Show N evaluation images; they may identify people."),
    ] = None,
    images_per_patient: Annotated[
        int | None,
        typer.Option(
            "--images-per-patient",
            metavar="K",
            help="The most training images of one patient, a published number: also state what holds for a patient.",
        ),
    ] = None,
    attacks_on_units: Annotated[
        bool,
        typer.Option(
            "--attacks-on-units",
            help="Show the figures of attacks on the training units; they tell how many there are, and no noise covers "
            "them.",
        ),
    ] = False,
    data_root: DataRoot = None,
) -> None:
    """Write the report of a finished run, or of several; or check reports."""
    from dpeq.report_verb import check_reports, report_runs

    if check:
        given = (companion, out, images, images_per_patient, data_root)
        if pdf or attacks_on_units or any(value is not None for value in given):
            raise ConfigError("--check only reads; leave the other options out.")
        check_reports(screen, runs, of_run)
        return
    if of_run is not None:
        raise ConfigError("--run belongs to --check; give --check as well, or leave it out.")
    report_runs(
        screen,
        runs,
        companion=companion,
        folder=out,
        pdf=pdf,
        images=images,
        images_per_patient=images_per_patient,
        data_root=data_root,
        attacks_on_units=attacks_on_units,
    )


def export(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write to.")] = Path("exports"),
    formats: Annotated[
        list[str] | None, typer.Option("--format", help="onnx, torchscript or monai; repeat it for several.")
    ] = None,
) -> None:
    """Write the trained network for places without dpeq: ONNX, TorchScript, a MONAI bundle."""
    from dpeq.export import FORMATS, export_run

    with screen.status("Writing each format and comparing it with the network ..."):
        written = export_run(run, out, formats or FORMATS)  # type: ignore[arg-type]  # checked by export_run
    for one in written:
        screen.print(f"{one.path}: outputs equal within {one.error:.1e}", soft_wrap=True)
