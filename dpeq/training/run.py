"""One run from a configuration to a run directory: data, plan, private training, evaluation, provenance."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save

from dpeq.config import RunConfig, write_config
from dpeq.data.images import ImageSet
from dpeq.dry_step import require_trainable
from dpeq.errors import DataError, DpeqError
from dpeq.models.registry import build_model, describe_model
from dpeq.models.weights import StartingWeights
from dpeq.privacy.curve import EpsilonCurve
from dpeq.privacy.ledger import Ledger
from dpeq.privacy.plan import PrivacyPlan
from dpeq.privacy.randomness import Randomness
from dpeq.training.checkpoint import FOLDER
from dpeq.training.conditions import code_versions, machine_of
from dpeq.training.distributed import Ranks
from dpeq.training.energy import EnergyMeter
from dpeq.training.evidence import note_end
from dpeq.training.files import as_json, fingerprint_key, make_folder, new_folder, sync, write_json, write_run_file
from dpeq.training.follow import agree_on, announce
from dpeq.training.loop import StepRecord, TrainingResult, train
from dpeq.training.prepare import (
    Prepared,
    augmentation,
    choose_device,
    load_data,
    make_plan,
    optimizer_settings,
    prepare,
)
from dpeq.training.provenance import environment, peak_memory_mib
from dpeq.training.resume import Keeper, find_checkpoint, reopen, settle
from dpeq.training.scoring import score
from dpeq.training.start import Start, fingerprint, settings_of
from dpeq.training.state import TrainingState
from dpeq.training.tracking import Tracker, check_tracking, open_trackers

__all__ = [
    "Finished",
    "Interrupted",
    "Interruptible",
    "Observer",
    "Prepared",
    "Silent",
    "choose_device",
    "load_data",
    "make_folder",
    "make_plan",
    "optimizer_settings",
    "prepare",
    "run",
    "uninterruptible",
]


class Observer(Protocol):
    """What the person at the machine sees while a run goes on. Loading counts files; nothing else here is private."""

    def stage(self, text: str) -> None: ...
    def loading(self, done: int, total: int) -> None: ...
    def planned(self, plan: PrivacyPlan) -> None: ...
    def stepped(self, record: StepRecord, plan: PrivacyPlan) -> None: ...


class Silent:
    """An observer that shows nothing."""

    def stage(self, text: str) -> None: ...
    def loading(self, done: int, total: int) -> None: ...
    def planned(self, plan: PrivacyPlan) -> None: ...
    def stepped(self, record: StepRecord, plan: PrivacyPlan) -> None: ...


class Interrupted(DpeqError):
    """Training was asked to stop, and did so between two steps; a checkpoint of that moment is written.

    Attributes:
        folder: of the run, to be resumed.
    """

    exit_code = 130

    def __init__(self, folder: Path, step: int, steps: int) -> None:
        super().__init__(f"Stopped after step {step} of {steps}; go on with 'dpeq train --resume {folder}'.")
        self.folder = folder


Interruptible = Callable[[Path], AbstractContextManager[Callable[[], bool]]]
"""Entered with the run's folder for as long as training can be stopped between two steps; gives the question whether
it should be."""


@contextmanager
def uninterruptible(folder: Path) -> Iterator[Callable[[], bool]]:
    """Never asks to stop; Ctrl-C then raises wherever it comes, which is safe."""
    yield lambda: False


@dataclass(frozen=True)
class Finished:
    """A run directory, and the data it was made from for whoever goes on with it."""

    folder: Path
    splits: dict[str, ImageSet]


class _Laps:
    """Seconds by the name of what they were spent on."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._clock = time.monotonic()

    def end(self, name: str, seconds: float | None = None) -> None:
        now = time.monotonic()
        self.seconds[name] = round(now - self._clock if seconds is None else seconds, 2)
        self._clock = now


def run(
    config: RunConfig,
    *,
    out: Path,
    command: str,
    observer: Observer | None = None,
    splits: dict[str, ImageSet] | None = None,
    resume: Path | None = None,
    exact_folder: bool = False,
    interruptible: Interruptible = uninterruptible,
    ranks: Ranks | None = None,
    accept: Callable[[str], None] = lambda fingerprint: None,
) -> Finished:
    """Trains, evaluates and writes a run directory.

    Args:
        out: folder that holds runs; the run gets ``out/<name>``, or ``out/<name>-2`` and so on when that exists. A run
            that is resumed has its place already.
        command: the command line, for the provenance.
        splits: data that is loaded already, in the form that the configuration would load.
        resume: folder of an unfinished run to go on with, whose configuration ``config`` must be but for
            :data:`dpeq.training.start.MACHINE_KEYS`.
        exact_folder: refuse (ConfigError) where ``out/<name>`` exists, before anything is spent.
        interruptible: how training learns that it should stop.
        ranks: rank 0 among the processes that share the run; all others call :func:`dpeq.training.follow.follow`.
        accept: given the fingerprint of the data before a new run has a folder; raises to refuse it.

    Raises:
        ConfigError, DataError, BudgetError: see :mod:`dpeq.errors`.
        Interrupted: when training was asked to stop.
        RunWriteError: when a disk is full; as after any crash, the run can be resumed.
    """
    observer = observer or Silent()
    started, laps = datetime.now(timezone.utc), _Laps()
    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    prepared = prepare(config)
    weights = None if config.model.weights is None else StartingWeights.read(config.model.weights)
    check_tracking(config)
    ranks = ranks or Ranks(device=choose_device(config.training.device))
    device = ranks.device
    meter = EnergyMeter(device)
    with ExitStack() as held:
        if resume is None:
            observer.stage("Calibrating the noise")
            plan = make_plan(prepared)
        else:
            start, ledger = reopen(resume)
            held.enter_context(ledger)
            start.check_settings(config, prepared.card)
            plan = ledger.plan
        announce(ranks, plan)
        observer.planned(plan)
        curve = EpsilonCurve(plan)
        laps.end("plan")
        if splits is None:
            observer.stage(f"Loading {prepared.card.title}")
            splits = load_data(prepared, _watched(observer, meter))
        _check_evaluable(splits)
        agree_on(ranks, prepared, splits)
        laps.end("data")
        randomness = Randomness.create(config.training.seed)
        init_seed = randomness.init_seed if resume is None else start.init_seed
        model = build_model(prepared.spec, prepared.shape[0], len(prepared.card.classes), init_seed)
        fresh = () if weights is None else weights.put_into(model)
        if prepared.foreign:
            observer.stage("Making one dry private step")
            require_trainable(model, prepared.shape, len(prepared.card.classes), plan.views)
        versions = code_versions(model, config.model.name if prepared.foreign else None)
        machine = machine_of(config, device, ranks.world)
        randomness = randomness.within(_context(plan, prepared, splits, versions))
        if resume is None:
            make_folder(out)
            data_sha256 = fingerprint(splits, fingerprint_key(out, make=True))
            accept(data_sha256)
            folder = new_folder(out, config.name, exact=exact_folder)
            start = Start(
                run=Start.new_name(),
                command=command,
                started=started.isoformat(timespec="seconds"),
                rng=randomness.kind,
                seed=config.training.seed,
                init_seed=init_seed,
                plan_sha256=plan.sha256,
                data_sha256=data_sha256,
                settings=settings_of(config, prepared.card),
                versions=versions,
                machine=machine,
            )
            ledger = held.enter_context(_begin(folder, config, plan, start))
            found = None
            observer.stage("Training")
        else:
            folder = resume
            start.check_data(fingerprint(splits, fingerprint_key(folder.resolve().parent, make=False)))
            found = find_checkpoint(folder, start, ledger)
            settle(start, ledger, found, versions, machine)
            observer.stage(_resumption(ledger))
        keeper = Keeper(folder, start, ledger, config.training.checkpoint_every, found)
        resumed_at = 0 if found is None else found.step
        tracker = held.enter_context(open_trackers(config, folder, plan, resumed_at=resumed_at))
        with interruptible(folder) as should_stop:
            result = train(
                model,
                splits["train"],
                plan,
                ledger,
                optimizer_settings(config),
                randomness,
                device=device,
                augment=augmentation(prepared),
                images_per_unit=config.views.images_per_unit,
                resume=keeper.begin,
                ranks=ranks,
                after_step=lambda state, record: _after_step(
                    keeper, state, record, observer, plan, tracker, curve, meter
                ),
                should_stop=should_stop,
                log_private_metrics=config.training.log_private_metrics,
            )
            stopped = result.stopped or should_stop()
            ranks.tell(torch.tensor([int(stopped)]))
            if stopped:
                keeper.save()
                raise Interrupted(folder, keeper.saved, plan.steps)
        laps.end("train", keeper.seconds)
        observer.stage("Evaluating")
        saved = _save(folder, result)
        chosen = result.averaged if config.evaluation.weights == "ema" else result.last
        metrics = score(chosen, splits, prepared, device)
        laps.end("evaluate")
        write_json(folder, "metrics.json", metrics)
        tracker.finish({name: metrics[name] for name in ("val", "test")})
        record = {
            "command": start.command,
            "started": start.started,
            "resumed": sum(note["kind"] == "resume" for note in ledger.notes),
            "steps_lost": ledger.steps - keeper.updates,
            "seconds": laps.seconds,
            "peak_memory_mib": round(peak_memory_mib(device), 1),
            "energy": meter.result(resumed=resume is not None, processes=ranks.world),
            "seed": config.training.seed,
            "rng": randomness.kind,
            "stopped": None,
            "non_private": not plan.private,
            "warnings": [*prepared.warnings, *tracker.warnings],
            "tracking": list(tracker.places),
            "processes": ranks.world,
            "log_private_metrics": config.training.log_private_metrics,
            **environment(device),
            "model": describe_model(config.model.name, prepared.spec, model, prepared.shape),
            "starting_weights": None if weights is None else weights.to_dict(fresh),
            "data": _describe_data(prepared, splits, start.data_sha256),
        }
        note_end(ledger, saved, as_json(record))
        write_json(folder, "run.json", record)  # the last file: with it, the run is finished
    return Finished(folder, splits)


def _begin(folder: Path, config: RunConfig, plan: PrivacyPlan, start: Start) -> Ledger:
    """Puts on the disk what resuming will ask for, then the ledger: a run that has one can be resumed."""
    for name in ("config.yaml", "plan.json"):
        (folder / name).touch(mode=0o600)  # closed to others before anything is in it, a seed for one
    write_config(config, folder / "config.yaml")
    plan.write(folder / "plan.json")
    for name in ("config.yaml", "plan.json"):
        sync(folder / name)
    start.write(folder)
    sync(folder.parent)
    ledger = Ledger.create(folder / "ledger.jsonl", plan)
    start.check_ledger(ledger)
    return ledger


def _context(plan: PrivacyPlan, prepared: Prepared, splits: dict[str, ImageSet], versions: Mapping[str, str]) -> str:
    """What two runs of one seed must share to share their noise: all that their sums depend on. Kept nowhere."""
    settings = settings_of(prepared.config, prepared.card)
    for name in ("name", "data.card"):  # what the run is called, and where the card lies whose content is in there
        del settings[name]
    hashes = [splits[name].sha256() for name in sorted(splits)]
    sources = [digest for name, digest in versions.items() if name.startswith("the source of")]
    return json.dumps([plan.sha256, settings, hashes, sources], sort_keys=True)


def _describe_data(prepared: Prepared, splits: dict[str, ImageSet], fingerprint: str) -> dict[str, Any]:
    """What a report may say of the data. The training split is private: its size and its plain hash are left out."""
    card = prepared.card
    evaluated = {name: {"images": len(splits[name].labels), "units": splits[name].n_units} for name in ("val", "test")}
    return {
        "name": card.name,
        "title": card.title,
        "card": card.model_dump(mode="json"),
        "sha256": fingerprint,
        "unit": prepared.unit,
        "classes": list(card.classes),
        "counts": {"train": None, **evaluated},
    }


def _check_evaluable(splits: dict[str, ImageSet]) -> None:
    """What would make the scores impossible is refused before any budget is spent on weights to score."""
    for name in ("val", "test"):
        if len(splits[name].labels.unique()) < 2:
            raise DataError(
                f"The {name} split has cases of one class only, so no AUC can be measured; change the splits."
            )


def _watched(observer: Observer, meter: EnergyMeter) -> Callable[[int, int], None]:
    """Loading can take longer than an energy counter takes to wrap around."""

    def loading(done: int, total: int) -> None:
        meter.sample()
        observer.loading(done, total)

    return loading


def _after_step(
    keeper: Keeper,
    state: TrainingState,
    record: StepRecord,
    observer: Observer,
    plan: PrivacyPlan,
    tracker: Tracker,
    curve: EpsilonCurve,
    meter: EnergyMeter,
) -> None:
    keeper.step(state)
    meter.sample()
    tracker.step(record, curve.after(record.step))
    observer.stepped(record, plan)


def _resumption(ledger: Ledger) -> str:
    note = ledger.notes[-1]
    fates = [f", steps {fate}: {note[fate]}" for fate in ("lost", "repeated") if note[fate]]
    return f"Training on from step {note['checkpoint_step']}{''.join(fates)}"


def _save(folder: Path, result: TrainingResult) -> dict[str, bytes]:
    """Weights as safetensors, by file name, as they were written; nothing is ever pickled."""
    saved = {}
    for name, module in (("final", result.averaged), ("raw", result.last)):
        weights = {key: tensor.detach().cpu().contiguous() for key, tensor in module.state_dict().items()}
        saved[f"{name}.safetensors"] = save(weights)
        write_run_file(folder, f"{FOLDER}/{name}.safetensors", saved[f"{name}.safetensors"])
    return saved
