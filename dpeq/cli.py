"""The command line: doctor, models, index, plan, train, evaluate, audit, sweep, report, export, demo.

Exit codes: 0 done, 2 bad usage or configuration, 3 data refused, 4 budget refused, 130 stopped by Ctrl-C, 143 by
SIGTERM, 1 anything else. An error is one sentence; ``--debug`` adds the traceback.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dpeq.allocation import keep_freed_blocks
from dpeq.errors import ConfigError, DpeqError
from dpeq.options import ManyValues, split_values

__all__ = ["app", "main"]

app = typer.Typer(
    help="Differentially private training of equivariant networks on medical images.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
# No markup: a path in square brackets is a path. No highlighting: a number in a sentence is part of the sentence.
_out = Console(markup=False, highlight=False)
_err = Console(stderr=True, markup=False, highlight=False)

Config = Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped recipe such as pneumoniamnist.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="section.key=value, as in privacy.epsilon=3.")]
DataRoot = Annotated[Path | None, typer.Option("--data-root", help="Folder that holds the data set's file.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")]
Runs = Annotated[Path, typer.Option("--runs", help="Folder for run directories.")]
Reports = Annotated[Path, typer.Option("--reports", help="Folder for reports.")]


@app.callback()
def _options(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False) -> None:
    """Options of every verb; ``--debug`` is read in :func:`main`."""


@app.command()
def doctor(
    model: Annotated[
        str | None,
        typer.Option("--model", help="Examine a network instead: a preset, an import path, or a recipe."),
    ] = None,
    overrides: Overrides = None,
    input_size: Annotated[
        str | None, typer.Option("--input-size", help="Pixels along every axis, 28x28 or 32x24x16; 32x32 by default.")
    ] = None,
    classes: Annotated[int, typer.Option("--classes", min=2, help="Outputs of the network.")] = 2,
    channels: Annotated[int, typer.Option("--channels", min=1, help="Channels of an image.")] = 1,
    json: Json = False,
) -> None:
    """Check this machine: versions, libraries, GPU, cache. Or, with --model, whether a network can train privately."""
    from dpeq.console import print_json

    if model is not None:
        from dpeq import verbs

        if not verbs.examine(_out, model, overrides or [], input_size, channels, classes, json=json):
            raise typer.Exit(2)
        return
    from dpeq.doctor import examine

    checks = examine()
    if json:
        print_json([check.to_dict() for check in checks])
    else:
        table = Table(show_header=False)
        for check in checks:
            verdict = Text("ok") if check.ok else Text("fails", style="red")
            table.add_row(verdict, check.name, check.found, check.mend)
        _out.print(table)
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


@app.command()
def models(
    for_card: Annotated[str | None, typer.Option("--for", help="Say which groups are sound for a card's data.")] = None,
    input_size: Annotated[
        str | None, typer.Option("--input-size", help="Pixels along every axis, 28, or along each, 32x24x16.")
    ] = None,
    sigma: Annotated[float, typer.Option("--sigma", help="Noise multiplier, for the noise's length.")] = 1.0,
    max_grad_norm: Annotated[float, typer.Option("--max-grad-norm", help="Clipping norm, likewise.")] = 1.0,
    twins: Annotated[str | None, typer.Option("--twins", help="Show a preset beside its conventional twins.")] = None,
    json: Json = False,
) -> None:
    """List the networks that a configuration can name and what they cost, or the groups that suit a data set."""
    from dpeq import verbs

    if for_card is not None:
        verbs.advise_on(_out, for_card, json=json)
    else:
        verbs.list_models(_out, input_size, sigma, max_grad_norm, twins, json=json)


@app.command()
def index(
    folder: Annotated[Path, typer.Argument(help="Folder of images: DICOM, NIfTI, PNG, JPEG or npz, in any order.")],
    out: Annotated[Path, typer.Option("--out", help="The manifest to write.")] = Path("manifest.json"),
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels",
            help="CSV with a label for each path (below the folder), image_id, series_id, study_id or patient_id; "
            "optional columns are split (train, val or test) and patient_id.",
        ),
    ] = None,
    label_column: Annotated[str, typer.Option("--label-column", help="Column of the CSV with the label.")] = "label",
    classes: Annotated[str, typer.Option("--classes", help="Class names, comma-separated.")] = "negative,positive",
    groups: Annotated[
        str | None,
        typer.Option(
            "--groups",
            help="Columns of the CSV that scores are told apart by, as in 'sex,age' or 'sex=Gender,site=Clinic'. "
            "Sites and devices then stand in the manifest and in reports as written. Without it, headers say the sex, "
            "the age in bands, a number for the site and the manufacturer.",
        ),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            "--layout",
            help="What paths below the folder say, as in '{patient}/*/*.nii.gz' or '{split}/{label}/{patient}_*.png'. "
            "Placeholders: patient, study, series, image, label, split. * is any text in one name, ** any folders.",
        ),
    ] = None,
    masks: Annotated[
        str | None, typer.Option("--masks", help="Which files are masks, as in 'labels/{patient}.nii.gz'.")
    ] = None,
    modality: Annotated[
        str | None,
        typer.Option("--modality", help="Take this one alone (CT, MR, X-ray, ...); also for formats that do not say."),
    ] = None,
    channels: Annotated[
        int | None, typer.Option("--channels", min=1, help="Take images of so many channels alone: 1 grey, 3 colour.")
    ] = None,
    flat: Annotated[
        bool | None,
        typer.Option("--flat/--volumes", help="Take flat images (single slices), or volumes, alone: where both are."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Processes that read files; one for each processor by default."),
    ] = None,
) -> None:
    """Index a folder of images: every file is accepted or rejected with a reason. Run it again after a stop."""
    from dpeq.console import RichObserver, index_tables
    from dpeq.data.index import NoManifest, index_folder
    from dpeq.data.index.groups import columns_of

    names = tuple(name.strip() for name in classes.split(",") if name.strip())
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise ConfigError(f"--classes '{classes}' does not name two or more different classes, comma-separated.")
    try:
        with RichObserver(_out) as observer:
            summary = index_folder(
                folder,
                labels,
                out,
                classes=names,
                label_column=label_column,
                groups=None if groups is None else columns_of(groups),
                layout=layout,
                masks=masks,
                modality=modality,
                channels=channels,
                flat=flat,
                workers=workers,
                progress=observer.loading,
                stage=observer.stage,
            )
    except NoManifest as error:
        for each in index_tables(error.summary):
            _out.print(each)
        raise
    for table in index_tables(summary):
        _out.print(table)
    if summary.under_two_patients:
        _out.print(
            f"Warning: {summary.under_two_patients} images occur under two patients. If these are one patient under "
            "two ids, patients are protected less than promised; the list of what found no partner names them.",
            style="yellow",
            soft_wrap=True,
        )
    _out.print(f"Lists of rejected files and of what found no partner: beside {out}, for you alone.", soft_wrap=True)
    _out.print(f"Manifest: {out}", soft_wrap=True)


@app.command()
def plan(
    config: Config,
    overrides: Overrides = None,
    wanted: Annotated[
        str | None,
        typer.Option("--for", help="Solve for steps, batch or epsilon instead, at the noise of --noise-multiplier."),
    ] = None,
    noise_multiplier: Annotated[
        float | None, typer.Option("--noise-multiplier", help="Noise per step, in clipping norms; with --for.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw the trade-off around the plan: svg, png, pdf.")
    ] = None,
    time: Annotated[
        bool | None,
        typer.Option(
            "--time/--no-time", help="Also estimate how long a training takes, which loads torch; not with --json."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Show what a training would cost in privacy and time, before any training."""
    from dpeq.plan_verb import show_plan

    show_plan(
        _out,
        config,
        overrides or [],
        wanted=wanted,
        noise_multiplier=noise_multiplier,
        plot=plot,
        time=not json if time is None else time,
        json=json,
    )


@app.command()
def train(
    context: typer.Context,
    config: Annotated[
        str | None,
        typer.Argument(help="A YAML file, or the name of a shipped recipe such as pneumoniamnist; not with --resume."),
    ] = None,
    overrides: Overrides = None,
    data_root: DataRoot = None,
    baseline: Annotated[bool, typer.Option("--baseline", help="Also train without noise, to compare.")] = False,
    runs: Runs = Path("runs"),
    reports: Reports = Path("privacy_reports"),
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="RUN", help="Go on with the unfinished run in this folder.")
    ] = None,
) -> None:
    """Train privately, evaluate, and write the report."""
    if resume is not None:
        given = [*([config] if config is not None else []), *(overrides or [])]  # there is no CONFIG: all are overrides
        if named := [word for word in given if "=" not in word]:
            raise ConfigError(f"With --resume a run goes on with its own configuration; leave '{named[0]}' out.")
        source = context.get_parameter_source("runs")
        if source is not None and source.name != "DEFAULT":
            raise ConfigError("With --resume a run goes on in its own folder; leave --runs out.")
        _train(None, given, data_root, baseline, runs, reports, resume)
    elif config is None:
        raise ConfigError("Nothing says what to train; give a CONFIG, or --resume RUN.")
    else:
        _train(config, overrides or [], data_root, baseline, runs, reports)


@app.command(cls=ManyValues)
def sweep(
    config: Config,
    overrides: Overrides = None,
    epsilon: Annotated[
        list[str] | None,
        typer.Option("--epsilon", metavar="E ...", help="Targets, as in 1 2 4 8 inf; the recipe's by default."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="NAME ...",
            help="Networks: presets, a preset with a group as eqresnet9-d4, cnn-twin, wide-resnet-twin or vit-twin (as "
            "many parameters as the first preset listed, else as the recipe's), or import paths.",
        ),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(
            "--seeds", min=1, help="Repetitions of every cell, each with the system's randomness, as for release."
        ),
    ] = 1,
    seeded: Annotated[
        bool,
        typer.Option("--seeded", help="Give repetitions training.seed 0, 1, 2: reproducible, and not for release."),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", min=1, help="Runs at a time; by default one for two processor cores, or one on a GPU."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the runs; runs/<recipe>-sweep by default.")
    ] = None,
    reports: Annotated[
        Path | None, typer.Option("--reports", help="Folder for the reports and the summary; OUT/reports by default.")
    ] = None,
    data_root: DataRoot = None,
    commands: Annotated[
        bool, typer.Option("--commands", help="Print one command for each cell instead, for any scheduler.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show cells, price and time, and train nothing.")] = False,
    cell: Annotated[
        str | None, typer.Option("--cell", metavar="NAME", help="Run this one cell alone, unless it is done.")
    ] = None,
) -> None:
    """Train a grid of networks, epsilons and repetitions, and summarise it. CONFIG stands first. Run again to go on."""
    from dpeq.sweep_verb import Asked
    from dpeq.sweep_verb import sweep as run_sweep

    if commands + dry_run + (cell is not None) > 1:
        raise ConfigError("--commands, --dry-run and --cell are three different things; give one of them.")
    asked = Asked(
        config,
        tuple(overrides or ()),
        tuple(split_values(epsilon)),
        tuple(split_values(model)),
        seeds,
        seeded,
        workers,
        out,
        reports,
        data_root,
    )
    run_sweep(_out, _err, asked, commands=commands, dry_run=dry_run, only=cell)


@app.command()
def demo(
    overrides: Overrides = None,
    baseline: Annotated[bool, typer.Option(help="Also train without noise, to compare.")] = True,
    runs: Runs = Path("runs"),
    reports: Reports = Path("privacy_reports"),
) -> None:
    """The whole path on a generated phantom hospital: DICOM in, patient-level privacy, report out."""
    _train("demo", overrides or [], None, baseline, runs, reports)


@app.command()
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

    with RichObserver(_out) as observer:
        metrics = rescore(run, overrides or [], data_root=data_root, observer=observer)
    for name in ("auc", "accuracy"):
        score = metrics["test"][name]
        _out.print(f"Test {name}: {score['value']:.3f} (95 % interval {score['low']:.3f} to {score['high']:.3f})")
    _out.print(f"Scores: {run / 'metrics.json'}; 'dpeq report {run}' writes the report anew.", soft_wrap=True)


@app.command()
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
            "black-box: a training with images as canaries, of which the network is asked at the end.",
        ),
    ] = "step",
    canaries: Annotated[int, typer.Option("--canaries", help="Of a training; each is in or out by a coin.")] = 1000,
    repetitions: Annotated[
        int, typer.Option("--repetitions", help="Of a step, with the canary, and as many without it.")
    ] = 5000,
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
        typer.Option("--out", help="Folder to write to; RUN/audit-METHOD, or runs/<recipe>-audit-METHOD by default."),
    ] = None,
    data_root: DataRoot = None,
) -> None:
    """Attack the training and say what it reveals at least. Run it again after a stop."""
    from dpeq.audit_verb import audit as run_audit

    run_audit(
        _out,
        _err,
        target,
        overrides or [],
        method=method,
        canaries=canaries,
        repetitions=repetitions,
        certain=certain,
        folder=out,
        data_root=data_root,
    )


@app.command()
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
    data_root: DataRoot = None,
) -> None:
    """Write the report of a finished run, or of several; or check reports."""
    from dpeq.report_verb import check_reports, report_runs

    if check:
        given = (companion, out, images, images_per_patient, data_root)
        if pdf or any(value is not None for value in given):
            raise ConfigError("--check only reads; leave the other options out.")
        check_reports(_out, runs, of_run)
        return
    if of_run is not None:
        raise ConfigError("--run belongs to --check; give --check as well, or leave it out.")
    report_runs(
        _out,
        runs,
        companion=companion,
        folder=out,
        pdf=pdf,
        images=images,
        images_per_patient=images_per_patient,
        data_root=data_root,
    )


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write to.")] = Path("exports"),
    formats: Annotated[
        list[str] | None, typer.Option("--format", help="onnx, torchscript or monai; repeat it for several.")
    ] = None,
) -> None:
    """Write the trained network for places without dpeq: ONNX, TorchScript, a MONAI bundle."""
    from dpeq.export import FORMATS, export_run

    with _out.status("Writing each format and comparing it with the network ..."):
        written = export_run(run, out, formats or FORMATS)  # type: ignore[arg-type]  # checked by export_run
    for one in written:
        _out.print(f"{one.path}: outputs equal within {one.error:.1e}", soft_wrap=True)


def _train(
    source: str | None,
    overrides: list[str],
    data_root: Path | None,
    baseline: bool,
    runs: Path,
    reports: Path,
    resume: Path | None = None,
) -> None:
    if resume is not None:
        from dpeq.training.start import resumed_config

        config = resumed_config(resume, overrides, data_root=data_root)
    else:
        from dpeq.config import load_config

        assert source is not None
        config = load_config(source, overrides, data_root=data_root)  # before the seconds that the other imports take
    from dpeq.console import RichObserver, summary_table
    from dpeq.interruption import GracefulStop
    from dpeq.pipeline import train_and_report
    from dpeq.training.provenance import command_line
    from dpeq.training.run import Interrupted

    command = command_line("dpeq", sys.argv[1:])
    stop = GracefulStop(rank=int(os.environ.get("RANK", "0")), world=int(os.environ.get("WORLD_SIZE", "1")))
    try:
        with stop, RichObserver(_out) as observer:
            outcome = train_and_report(
                config,
                runs=runs,
                reports=reports,
                command=command,
                baseline=baseline,
                observer=observer,
                resume=resume,
                interruptible=stop,
            )
    except Interrupted as interrupted:
        _err.print(str(interrupted), soft_wrap=True)
        raise typer.Exit(stop.exit_code) from None
    except KeyboardInterrupt:
        going_on = f"; go on with 'dpeq train --resume {stop.folder}'" if stop.folder is not None else ""
        _err.print(f"Interrupted{going_on}.", soft_wrap=True)
        raise typer.Exit(stop.exit_code) from None
    if outcome is None:  # a process beside the first
        return
    _out.print(summary_table(outcome.report))
    _out.print(f"Report: {outcome.html}", soft_wrap=True)


def main() -> None:
    """Entry point: turns every :class:`DpeqError` into one sentence and its exit code."""
    # Read when torch loads: on a shared machine, threads that spin while they wait slow training down tenfold and more.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_blocks()
    try:
        app()
    except DpeqError as error:
        if "--debug" in sys.argv:
            raise
        _err.print(f"Error: {error}", soft_wrap=True)
        sys.exit(error.exit_code)
    except OSError as error:
        if "--debug" in sys.argv:
            raise
        what = f"{error.filename}: " if error.filename else ""
        _err.print(f"Error: {what}{error.strerror or error}; mend that and run the command again.", soft_wrap=True)
        sys.exit(1)
