"""One run from a configuration to a run directory: data, plan, private training, evaluation, provenance."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import secrets
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn

from dpeq.advice import warnings_for
from dpeq.config import RunConfig, write_config
from dpeq.data.augment import redundant
from dpeq.data.cards import Card, VolumeSettings, load_card
from dpeq.data.images import ImageSet
from dpeq.data.load import image_shape, load_splits
from dpeq.data.views import Augment
from dpeq.dry_step import require_trainable
from dpeq.errors import ConfigError, DataError
from dpeq.evaluation.metrics import evaluate_predictions
from dpeq.evaluation.predict import predict_units
from dpeq.models.foreign import ForeignSpec
from dpeq.models.registry import ModelChoice, build_model, describe_model, resolve_spec
from dpeq.models.spec import ModelSpec
from dpeq.privacy.ledger import Ledger
from dpeq.privacy.plan import PrivacyPlan, calibrate
from dpeq.privacy.randomness import Randomness
from dpeq.training.loop import train
from dpeq.training.provenance import environment, peak_memory_mib
from dpeq.training.state import OptimizerSettings

_log = logging.getLogger(__name__)

__all__ = [
    "Finished",
    "Observer",
    "Prepared",
    "Silent",
    "choose_device",
    "make_folder",
    "make_plan",
    "optimizer_settings",
    "prepare",
    "run",
]


class Observer(Protocol):
    """What the person at the machine sees while a run goes on. Loading counts files; nothing else here is private."""

    def stage(self, text: str) -> None: ...
    def loading(self, done: int, total: int) -> None: ...
    def planned(self, plan: PrivacyPlan) -> None: ...
    def stepped(self, step: int, plan: PrivacyPlan) -> None: ...


class Silent:
    """An observer that shows nothing."""

    def stage(self, text: str) -> None: ...
    def loading(self, done: int, total: int) -> None: ...
    def planned(self, plan: PrivacyPlan) -> None: ...
    def stepped(self, step: int, plan: PrivacyPlan) -> None: ...


@dataclass(frozen=True)
class Prepared:
    """What a configuration means before any data is read."""

    config: RunConfig
    card: Card
    spec: ModelSpec
    unit: str
    volume: VolumeSettings | None
    shape: tuple[int, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finished:
    """A run directory, and the data it was made from for whoever goes on with it."""

    folder: Path
    splits: dict[str, ImageSet]


def prepare(config: RunConfig) -> Prepared:
    """Resolves card, network and shapes; raises :class:`ConfigError` for what does not fit together."""
    card = load_card(config.data.card)
    d = config.data
    volume = card.volume
    if volume is None and (d.spacing or d.size or d.window):
        raise ConfigError(f"data.spacing, data.size and data.window are for volumes but {card.name} has none.")
    if volume is not None:
        changes = {"spacing": d.spacing, "size": d.size, "window": d.window}
        try:
            volume = VolumeSettings(**{**volume.model_dump(), **{k: v for k, v in changes.items() if v is not None}})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(["data", *map(str, first["loc"])])
            raise ConfigError(f"{where} is {first['input']!r}; {first['msg'][0].lower()}{first['msg'][1:]}.") from error
    if d.manifest is not None and not d.manifest.is_file():
        raise DataError(f"There is no manifest {d.manifest}; make one with 'dpeq index FOLDER --out {d.manifest}'.")
    shape = image_shape(card, volume)
    spec = resolve_spec(ModelChoice(**config.model.model_dump()), shape, len(card.classes))
    # Wrong norm groups and the like are found here, before data or budget is touched.
    build_model(spec, shape[0], len(card.classes), seed=0)
    weights = config.training.class_weights
    if weights is not None and len(weights) != len(card.classes):
        raise ConfigError(
            f"training.class_weights has {len(weights)} numbers for the {len(card.classes)} classes of {card.name}; "
            "give one per class."
        )
    warnings = warnings_for(card, spec.group, spec.restriction, card.classes)
    if not config.augment.off:
        warnings = [*warnings, *redundant(config.augment, spec.group, spec.restriction)]
    for warning in warnings:
        _log.warning("%s", warning)
    prepared = Prepared(config, card, spec, d.unit or card.unit, volume, shape, tuple(warnings))
    _augment(prepared)  # refuses views that such images cannot have
    return prepared


def make_plan(prepared: Prepared) -> PrivacyPlan:
    """Calibrates the plan from public constants alone; no data set is an argument."""
    p = prepared.config.privacy
    if p.public_units is None and prepared.unit != prepared.card.unit:
        raise ConfigError(
            f"Card {prepared.card.name} publishes a number of {prepared.card.unit}s but data.unit is {prepared.unit}; "
            f"give privacy.public_units, the published number of training {prepared.unit}s."
        )
    return calibrate(
        epsilon=p.epsilon,
        delta=p.delta,
        expected_batch_size=p.expected_batch_size,
        public_units=p.public_units or prepared.card.public_units,
        steps=p.steps,
        max_grad_norm=p.max_grad_norm,
        unit=prepared.unit,  # type: ignore[arg-type]  # a literal, checked by the plan
        sample_rate=p.sample_rate,
        views=p.views,
        clipping=p.clipping,
    )


def optimizer_settings(config: RunConfig) -> OptimizerSettings:
    """The public constants of the optimiser that a configuration asks for."""
    t = config.training
    names = [f.name for f in fields(OptimizerSettings)]
    return OptimizerSettings(**{name: getattr(t, name) for name in names})


def _augment(prepared: Prepared) -> Augment | None:
    config = prepared.config.augment
    if config.off:
        return None
    # Images are stored [y, x] and their pixels are square; volumes [x, y, z].
    spacing = None if prepared.volume is None else prepared.volume.spacing
    augment = Augment(config, len(prepared.shape) - 1, spacing)
    augment.check(prepared.shape[1:])
    return augment


def choose_device(wish: str) -> torch.device:
    """The asked device; ``auto`` takes a GPU where there is one."""
    if wish == "cuda" and not torch.cuda.is_available():
        raise ConfigError("training.device is cuda but torch sees no GPU here; use auto or cpu.")
    return torch.device("cuda" if wish == "cuda" or (wish == "auto" and torch.cuda.is_available()) else "cpu")


def run(
    config: RunConfig,
    *,
    out: Path,
    command: str,
    observer: Observer | None = None,
    splits: dict[str, ImageSet] | None = None,
) -> Finished:
    """Trains, evaluates and writes a run directory.

    Args:
        out: folder that holds runs; the run gets ``out/<name>``, or ``out/<name>-2`` and so on when that exists.
        command: the command line, for the provenance.
        splits: data that is loaded already, in the form that the configuration would load.

    Raises:
        ConfigError, DataError, BudgetError: see :mod:`dpeq.errors`.
    """
    observer = observer or Silent()
    started, clock, seconds = datetime.now(timezone.utc), time.monotonic(), {}

    def lap(name: str) -> None:
        nonlocal clock
        seconds[name] = round(time.monotonic() - clock, 2)
        clock = time.monotonic()

    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    prepared = prepare(config)
    device = choose_device(config.training.device)
    observer.stage("Calibrating the noise")
    plan = make_plan(prepared)
    observer.planned(plan)
    lap("plan")
    if splits is None:
        observer.stage(f"Loading {prepared.card.title}")
        splits = load_data(prepared, observer.loading)
    _check_evaluable(splits)
    lap("data")
    folder = _new_folder(out, config.name)
    write_config(config, folder / "config.yaml")
    plan.write(folder / "plan.json")
    randomness = Randomness.create(config.training.seed)
    model = build_model(prepared.spec, prepared.shape[0], len(prepared.card.classes), randomness.init_seed)
    t = config.training
    if isinstance(prepared.spec, ForeignSpec):
        observer.stage("Making one dry private step")
        require_trainable(model, prepared.shape, len(prepared.card.classes), plan.views)
    settings = optimizer_settings(config)
    observer.stage("Training")
    with Ledger.create(folder / "ledger.jsonl", plan) as ledger:
        result = train(
            model,
            splits["train"],
            plan,
            ledger,
            settings,
            randomness,
            device=device,
            augment=_augment(prepared),
            after_step=lambda state, record: observer.stepped(record.step, plan),
            log_private_metrics=t.log_private_metrics,
        )
    lap("train")
    observer.stage("Evaluating")
    _save(folder, result.averaged, result.last)
    chosen = result.averaged if config.evaluation.weights == "ema" else result.last
    scores = {name: _score(chosen, splits[name], device, config) for name in ("val", "test")}
    lap("evaluate")
    _write_json(folder / "metrics.json", {"weights": config.evaluation.weights, **scores})
    record = {
        "command": command,
        "started": started.isoformat(timespec="seconds"),
        "seconds": seconds,
        "peak_memory_mib": round(peak_memory_mib(device), 1),
        "seed": config.training.seed,
        "rng": randomness.kind,
        "stopped": None,
        "non_private": not plan.private,
        "warnings": list(prepared.warnings),
        "log_private_metrics": config.training.log_private_metrics,
        **environment(device),
        "model": describe_model(config.model.name, prepared.spec, model, prepared.shape),
        "data": _describe_data(prepared, splits, _fingerprint_key(out)),
    }
    _write_json(folder / "run.json", record)
    return Finished(folder, splits)


def load_data(prepared: Prepared, progress: Callable[[int, int], None] | None = None) -> dict[str, ImageSet]:
    """The splits that a prepared configuration asks for."""
    d = prepared.config.data
    return load_splits(
        prepared.card, root=d.root, manifest=d.manifest, unit=prepared.unit, volume=prepared.volume, progress=progress
    )


def _score(model: nn.Module, images: ImageSet, device: torch.device, config: RunConfig) -> dict[str, Any]:
    probabilities = predict_units(model, images, device=device)
    return evaluate_predictions(
        probabilities.numpy(),
        images.unit_labels().numpy(),
        images.classes,
        n_bootstrap=config.evaluation.bootstrap,
    )


def _describe_data(prepared: Prepared, splits: dict[str, ImageSet], key: bytes) -> dict[str, Any]:
    """What a report may say of the data. The training split is private: its size and its plain hash are left out.

    A plain hash would tell anybody who can guess the data whether the guess is right; a keyed one can be compared by
    whoever holds the key, to make sure that two runs saw the same data.
    """
    card = prepared.card
    hashes = "".join(splits[name].sha256() for name in sorted(splits))
    evaluated = {name: {"images": len(splits[name].labels), "units": splits[name].n_units} for name in ("val", "test")}
    return {
        "name": card.name,
        "title": card.title,
        "card": card.model_dump(mode="json"),
        "sha256": hmac.new(key, hashes.encode(), hashlib.sha256).hexdigest(),
        "unit": prepared.unit,
        "classes": list(card.classes),
        "counts": {"train": None, **evaluated},
    }


def _check_evaluable(splits: dict[str, ImageSet]) -> None:
    """What would make the scores impossible is refused before any budget is spent on weights to score."""
    for name in ("val", "test"):
        if len(splits[name].unit_labels().unique()) < 2:
            raise DataError(
                f"The {name} split has cases of one class only, so no AUC can be measured; change the splits."
            )


def make_folder(path: Path) -> None:
    """Makes a folder for output, or says in one sentence why it cannot be; called before anything long begins."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ConfigError(f"Nothing can be written to {path} ({error.strerror}); choose another folder.") from error


def _fingerprint_key(out: Path) -> bytes:
    """The key of the data fingerprints of all runs in ``out``, readable by its owner alone; made on first use."""
    path = out / ".fingerprint.key"
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as handle:
            handle.write(secrets.token_hex(32))
    except FileExistsError:
        pass
    return bytes.fromhex(path.read_text(encoding="ascii"))


def _save(folder: Path, averaged: nn.Module, last: nn.Module) -> None:
    """Weights as safetensors, readable by their owner alone; nothing is ever pickled."""
    target = folder / "checkpoints"
    target.mkdir()
    for name, module in (("final", averaged), ("raw", last)):
        state = {key: tensor.detach().cpu().contiguous() for key, tensor in module.state_dict().items()}
        path = target / f"{name}.safetensors"
        save_file(state, path)
        path.chmod(0o600)


def _new_folder(out: Path, name: str) -> Path:
    """A folder of its own for every run: ledgers are never overwritten."""
    make_folder(out)
    number = 1
    while True:
        folder = out / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(mode=0o700)
            return folder
        except FileExistsError:
            number += 1


def _write_json(path: Path, body: dict[str, Any]) -> None:
    text = json.dumps(body, indent=1, allow_nan=False)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)
