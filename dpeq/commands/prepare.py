"""Verbs before a training: doctor, models, index, plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from dpeq.commands.shared import Config, Json, Overrides, screen
from dpeq.errors import ConfigError

__all__ = ["doctor", "index", "models", "plan"]


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

        if not verbs.examine(screen, model, overrides or [], input_size, channels, classes, json=json):
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
        screen.print(table)
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


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
        verbs.advise_on(screen, for_card, json=json)
    else:
        verbs.list_models(screen, input_size, sigma, max_grad_norm, twins, json=json)


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
        with RichObserver(screen) as observer:
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
            screen.print(each)
        raise
    for table in index_tables(summary):
        screen.print(table)
    if summary.under_two_patients:
        screen.print(
            f"Warning: {summary.under_two_patients} images occur under two patients. If these are one patient under "
            "two ids, patients are protected less than promised; the list of what found no partner names them.",
            style="yellow",
            soft_wrap=True,
        )
    screen.print(f"Lists of rejected files and of what found no partner: beside {out}, for you alone.", soft_wrap=True)
    screen.print(f"Manifest: {out}", soft_wrap=True)


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
        screen,
        config,
        overrides or [],
        wanted=wanted,
        noise_multiplier=noise_multiplier,
        plot=plot,
        time=not json if time is None else time,
        json=json,
    )
