"""Scores of a trained network on the evaluation splits, at the end of a run or of a finished run again.

The validation split is scored first: the thresholds that are chosen there are applied to the test split.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from dpeq.config import load_config
from dpeq.data.images import ImageSet
from dpeq.errors import ConfigError, DataError
from dpeq.evaluation.cases import cases_of
from dpeq.evaluation.predict import predict_cases
from dpeq.evaluation.symmetry import measure_symmetry
from dpeq.models.registry import build_model
from dpeq.privacy.ledger import read_ledger
from dpeq.training.evidence import WEIGHTS, check_end, check_start, check_weights
from dpeq.training.files import as_json, fingerprint_key, write_durably
from dpeq.training.prepare import Prepared, choose_device, load_data, prepare
from dpeq.training.start import MACHINE_KEYS, fingerprint

__all__ = ["WEIGHTS", "load_weights", "rescore", "score"]


class Progress(Protocol):
    """What is shown while a run is scored; loading counts files."""

    def stage(self, text: str) -> None: ...
    def loading(self, done: int, total: int) -> None: ...


def score(model: nn.Module, splits: Mapping[str, ImageSet], prepared: Prepared, device: torch.device) -> dict[str, Any]:
    """What ``metrics.json`` holds: the weights' name, scores of both evaluation splits, the measured symmetry.

    Raises :class:`DataError` when the network's outputs are not finite, or a split has cases of one class alone.
    """
    from dpeq.evaluation.metrics import evaluate_predictions  # loads scikit-learn, after the training
    from dpeq.evaluation.operating import choose_thresholds
    from dpeq.evaluation.subgroups import subgroups_of

    evaluation = prepared.config.evaluation
    thresholds = None
    scores = {}
    for name in ("val", "test"):
        images = splits[name]
        cases = cases_of(images)
        probabilities = predict_cases(model, images, cases, device=device).numpy()
        labels = cases.labels.numpy()
        scores[name] = evaluate_predictions(
            probabilities,
            labels,
            images.classes,
            owners=None if cases.owners is None else cases.owners.numpy(),
            thresholds=thresholds,
            n_bootstrap=evaluation.bootstrap,
        )
        scores[name]["subgroups"] = subgroups_of(probabilities, images, cases, n_bootstrap=evaluation.bootstrap)
        if name == "val":
            thresholds = choose_thresholds(probabilities, labels, images.classes)
    spec = prepared.spec
    symmetry = measure_symmetry(model, splits["test"].images, spec.group, spec.restriction, device=device)
    return {"weights": evaluation.weights, "test": scores["test"], "val": scores["val"], "symmetry": symmetry}


def rescore(
    folder: Path, overrides: Sequence[str] = (), *, data_root: Path | None = None, observer: Progress | None = None
) -> dict[str, Any]:
    """Scores a finished run again and writes its ``metrics.json``; no other file is touched and no budget is spent.

    Args:
        folder: of the run.
        overrides: of :data:`~dpeq.training.start.MACHINE_KEYS` alone, which say where and how fast.
        data_root: folder that holds the data set's file, where it is not where the run found it.

    Raises:
        ConfigError: for other overrides, or a fingerprint key that is gone.
        DataError: for a run that is not finished, other data than the run's, missing or broken weights.
    """
    record = _finished(folder)
    for override in overrides:
        key = override.partition("=")[0]
        if not any(key == known or key.startswith(f"{known}.") for known in MACHINE_KEYS):
            raise ConfigError(f"{key} is what the run was trained with and cannot change; leave it out.")
    config = load_config(folder / "config.yaml", overrides, data_root=data_root)
    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    prepared = prepare(config)
    device = choose_device(config.training.device)
    classes = len(prepared.card.classes)
    model = build_model(prepared.spec, prepared.shape[0], classes, seed=0)
    load_weights(model, folder / "checkpoints" / f"{WEIGHTS[config.evaluation.weights]}.safetensors")
    if observer is not None:
        observer.stage(f"Loading {prepared.card.title}")
    key = fingerprint_key(folder.resolve().parent, make=False)
    splits = load_data(prepared, None if observer is None else observer.loading)
    if fingerprint(splits, key) != record["data"]["sha256"]:
        raise DataError(
            f"This is not the data that {folder} was trained and scored on (its fingerprint differs); give the same "
            "data, by --data-root for one."
        )
    if observer is not None:
        observer.stage("Evaluating")
    metrics = score(model, splits, prepared, device)
    write_durably(folder / "metrics.json", as_json(metrics))
    return metrics


def load_weights(model: nn.Module, path: Path) -> None:
    """Puts weights of a run into their network.

    Args:
        path: in the run's ``checkpoints``.

    Raises:
        DataError: when the file is missing or broken, of another network, or not what this run's training wrote.
    """
    if not path.is_file():
        raise DataError(f"There is no checkpoint {path}; restore it or train again.")
    try:
        content = path.read_bytes()
        state = load(content)
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"The checkpoint {path} is broken ({reason}); restore it or train again.") from error
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    different = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if different:
        name = different[0]
        raise DataError(
            f"The checkpoint {path} belongs to another network ({name} has shape {found.get(name)}, not "
            f"{wanted.get(name)}); restore the run's own config.yaml and checkpoint."
        )
    check_weights(path, content)
    model.load_state_dict(state)


def _finished(folder: Path) -> dict[str, Any]:
    """The record of a finished run."""
    if not folder.is_dir():
        raise DataError(f"There is no run directory {folder}; name the folder that training wrote.")
    path = folder / "run.json"
    if not path.is_file():
        raise DataError(
            f"The run in {folder} is not finished (it has no run.json); go on with 'dpeq train --resume {folder}'."
        )
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        record["data"]["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be used ({error}); restore it from a backup.") from error
    entries = read_ledger(folder / "ledger.jsonl")
    check_end(folder, entries)
    check_start(folder, entries)
    return dict(record)
