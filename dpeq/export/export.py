"""Writing a network in several formats: all of them, checked, or none."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from torch import nn

from dpeq.errors import ConfigError
from dpeq.export.bundle import run_bundle, write_bundle
from dpeq.export.capture import capture
from dpeq.export.description import Description, describe_run
from dpeq.export.formats import (
    compare,
    require_onnx,
    run_onnx,
    run_torchscript,
    torchscript_is_deprecated,
    write_onnx,
    write_torchscript,
)
from dpeq.export.plain import plain_network
from dpeq.export.source import load_trained
from dpeq.training.run import make_folder

__all__ = ["FORMATS", "Exported", "Format", "export_model", "export_run"]

Format = Literal["onnx", "torchscript", "monai"]
FORMATS: tuple[Format, ...] = get_args(Format)


@dataclass(frozen=True)
class Exported:
    """One written file (a folder for MONAI), and its largest error: relative to max(1, |logit|), on random inputs."""

    format: Format
    path: Path
    error: float


def export_run(run: Path, out: Path, formats: Sequence[Format] = FORMATS) -> tuple[Exported, ...]:
    """Exports the network of a run directory, with the privacy statement that its plan and ledger support.

    Writes ``out/<run>.onnx``, ``out/<run>.ts`` and the folder ``out/<run>-bundle``.

    Raises:
        DataError: when the run, its ledger or its checkpoint is broken.
        ConfigError: for an unknown format, a missing package, or a file that is there already.
        DpeqError: when the network cannot be captured as a graph, or a written file does not compute what it computes.
    """
    name = Path(run).resolve().name
    _check(formats, name, Path(out))  # before the seconds that the accountant takes
    trained = load_trained(Path(run))
    return export_model(trained.model, trained.prepared.shape, out, formats, describe_run(trained))


def export_model(
    model: nn.Module, input_shape: Sequence[int], out: Path, formats: Sequence[Format], description: Description
) -> tuple[Exported, ...]:
    """Exports any network ``[N, *input_shape] -> [N, classes]``; see :func:`export_run` for files and errors.

    Nothing is written unless every format runs in its own runtime and agrees with ``model``.
    """
    out = Path(out)
    targets = _check(formats, description.name, out)
    make_folder(out)
    model = model.cpu().eval()
    program = capture(plain_network(model), input_shape)
    metadata = description.to_dict(input_shape)
    errors: dict[Format, float] = {}
    workplace = Path(tempfile.mkdtemp(prefix=".export-", dir=out))
    try:
        for kind, target in targets.items():
            path = workplace / target.name
            if kind == "onnx":
                write_onnx(program, path, metadata)
                run = run_onnx(path)
            elif kind == "torchscript":
                write_torchscript(program, input_shape, path, metadata)
                run = run_torchscript(path)
            else:
                write_bundle(program, input_shape, path, description)
                with torchscript_is_deprecated():
                    run = run_bundle(path)
            errors[kind] = compare(f"The {kind} export", model, run, input_shape)
        for target in targets.values():
            (workplace / target.name).rename(target)
    finally:
        shutil.rmtree(workplace)
    return tuple(Exported(kind, targets[kind], error) for kind, error in errors.items())


def _check(formats: Sequence[Format], name: str, out: Path) -> dict[Format, Path]:
    """Where each format goes; raises :class:`ConfigError` before anything is computed."""
    if not formats:
        raise ConfigError(f"No format was named; use one or more of: {', '.join(FORMATS)}.")
    for kind in formats:
        if kind not in FORMATS:
            raise ConfigError(f"There is no export format '{kind}'; use one of: {', '.join(FORMATS)}.")
    if "onnx" in formats:
        require_onnx()
    names = {"onnx": f"{name}.onnx", "torchscript": f"{name}.ts", "monai": f"{name}-bundle"}
    targets = {kind: out / names[kind] for kind in FORMATS if kind in formats}
    for path in targets.values():
        if path.exists():
            raise ConfigError(f"{path} exists already; remove it, or choose another folder with --out.")
    return targets
