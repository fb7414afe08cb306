"""What the verb ``audit`` does: the price in time first, then the attack, its bound, and the picture of it."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import typer
from rich.console import Console
from rich.table import Table

from dpeq.errors import ConfigError
from dpeq.privacy import accounting

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from dpeq.config import RunConfig
    from dpeq.privacy.audit.membership import Membership
    from dpeq.privacy.audit.result import AuditResult
    from dpeq.privacy.plan import PrivacyPlan

    Array = npt.NDArray[np.float64]

__all__ = ["Method", "audit"]

Method = Literal["step", "one-run", "black-box"]
_BLOCK = 500  # repetitions of a step under one key, and between two times that they are kept
_TIMED = 10


@dataclass(frozen=True)
class _Asked:
    """What is audited: ``run`` is its folder, None for a configuration."""

    config: RunConfig
    plan: PrivacyPlan
    run: Path | None
    folder: Path
    certain: bool

    @property
    def one_step(self) -> PrivacyPlan:
        from dpeq.audit.step import in_every_step, one_step_of

        return one_step_of(in_every_step(self.plan) if self.certain else self.plan)


def audit(
    out: Console,
    err: Console,
    target: str,
    overrides: list[str],
    *,
    method: str,
    canaries: int,
    repetitions: int,
    certain: bool | None,
    folder: Path | None,
    data_root: Path | None,
) -> None:
    """Audits the plan of a configuration or a run, by repeating its step or by a training with canaries.

    Raises :class:`typer.Exit` with 1 when the bound contradicts the plan, and as shells have it when a signal stopped
    the audit; all else that is wrong is a :class:`~dpeq.errors.DpeqError`.
    """
    if method not in get_args(Method):
        raise ConfigError(f"--method is {method}; give {' or '.join(get_args(Method))}.")
    if certain is not None and method != "step":
        raise ConfigError("--certain and --coins are about the step alone; leave them out, or give --method step.")
    with accounting.session("pld", "rdp"):  # their libraries load while this process still imports
        from dpeq.audit.kept import refuse_over
        from dpeq.interruption import GracefulStop
        from dpeq.training.files import make_folder

        asked = _resolve(target, overrides, method, certain is not False, folder, data_root)
        make_folder(asked.folder)
        refuse_over(asked.folder)
        stop = GracefulStop()
        try:
            with stop:
                work = _repeat if method == "step" else _train
                found = work(out, asked, method, repetitions if method == "step" else canaries, stop)
        except KeyboardInterrupt:
            found = None
        if found is None:
            err.print("Stopped; the same command goes on.", soft_wrap=True)
            raise typer.Exit(stop.exit_code)
    results, attack = found
    main = results[-1]
    _write(asked, main, attack)
    out.print(_table(results, attack))
    out.print(f"ROC curve: {asked.folder / 'roc.svg'}", soft_wrap=True)
    if asked.run is not None:
        out.print(f"'dpeq report {asked.run}' shows it in the report.", soft_wrap=True)
    if any(result.contradicts for result in results):
        err.print(
            "The audit contradicts the plan: more is revealed than it allows. Do not release what was trained so.",
            style="red",
            soft_wrap=True,
        )
        raise typer.Exit(1)


def _resolve(
    target: str, overrides: list[str], method: str, certain: bool, folder: Path | None, data_root: Path | None
) -> _Asked:
    from dpeq.config import load_config
    from dpeq.planning import plan_of
    from dpeq.privacy.plan import PrivacyPlan
    from dpeq.training.start import MACHINE_KEYS

    run = Path(target)
    if run.is_dir():
        if not (run / "plan.json").is_file():
            raise ConfigError(f"{run} is no run folder (it has no plan.json); name one, or a configuration.")
        for override in overrides:
            key = override.partition("=")[0]
            if not any(key == known or key.startswith(f"{known}.") for known in MACHINE_KEYS):
                raise ConfigError(f"{key} is what the run was trained with and cannot change; leave it out.")
        config = load_config(run / "config.yaml", overrides, data_root=data_root)
        plan = PrivacyPlan.read(run / "plan.json")
        asked = _Asked(config, plan, run, folder or run / f"audit-{method}", certain)
    else:
        config = load_config(target, overrides, data_root=data_root)
        asked = _Asked(config, plan_of(config), None, folder or Path("runs") / f"{config.name}-audit-{method}", certain)
    if not asked.plan.private:
        raise ConfigError("A plan without privacy promises nothing that an audit could test; give a finite epsilon.")
    return asked


_Found = tuple[list["AuditResult"], "Membership"]


def _repeat(out: Console, asked: _Asked, method: str, repetitions: int, stop: Any) -> _Found | None:
    """One private step, ``repetitions`` times with the canary and as often without; None when it was stopped."""
    import numpy as np

    from dpeq.audit.kept import begin, read_scores, write_scores
    from dpeq.audit.picture import profile_of
    from dpeq.audit.step import audit_step, in_every_step, many_steps_of, repeat_step
    from dpeq.console import RichObserver, duration
    from dpeq.privacy.audit.membership import attack_quality

    if repetitions < 100:
        raise ConfigError(f"{repetitions} repetitions can show nothing; give 100 at least, better 5000.")
    plan = asked.plan
    facts = {"method": method, "plan_sha256": plan.sha256, "repetitions": repetitions, "certain": asked.certain}
    begin(asked.folder, facts)
    audited = in_every_step(plan) if asked.certain else plan
    kept = read_scores(asked.folder)
    few = many_steps_of(audited, _TIMED)
    repeat_step(few, canary=False)  # the first one loads what is slow to load
    clock = time.perf_counter()
    repeat_step(few, canary=True)
    each = (time.perf_counter() - clock) / _TIMED
    missing = 2 * repetitions - sum(map(len, kept))
    out.print(f"{missing:,} private steps to take; time on this machine: about {duration(missing * each)}.")
    block, done = many_steps_of(audited, min(_BLOCK, repetitions)), 0
    with stop(asked.folder) as should_stop, RichObserver(out) as observer:
        observer.stage("Repeating the step")

        def count() -> None:
            nonlocal done
            done += 1
            observer.loading(done, missing)

        def enough_at(wanted: int) -> bool:
            return done >= wanted or should_stop()

        while any(len(scores) < repetitions for scores in kept) and not should_stop():
            for canary, scores in ((True, kept[0]), (False, kept[1])):
                wanted = min(block.steps, repetitions - len(scores))
                if wanted:
                    enough = partial(enough_at, done + wanted)
                    scores += repeat_step(block, canary=canary, after=count, should_stop=enough).tolist()
            write_scores(asked.folder, *kept)
        if any(len(scores) < repetitions for scores in kept):
            return None
        observer.stage("Computing the bound")
        inside, outside = np.array(kept[0]), np.array(kept[1])
        found = audit_step(plan, inside, outside, certain=asked.certain)
        attack = attack_quality(
            np.concatenate([inside, outside]),
            np.arange(2 * repetitions) < repetitions,
            profile=profile_of(asked.one_step),
        )
    return [found.step, found.training], attack


def _train(out: Console, asked: _Asked, method: str, canaries: int, stop: Any) -> _Found | None:
    """One training with canaries; None when it was stopped."""
    import torch

    from dpeq.audit.canaries import CanaryNetwork
    from dpeq.audit.kept import begin
    from dpeq.audit.one_run import FEWEST, Kind, attack_training, audit_training
    from dpeq.audit.picture import profile_of
    from dpeq.console import RichObserver, duration
    from dpeq.dry_step import require_trainable
    from dpeq.models.registry import build_model
    from dpeq.models.weights import StartingWeights
    from dpeq.privacy.audit.membership import attack_quality
    from dpeq.privacy.randomness import Randomness
    from dpeq.training.estimate import estimate_seconds
    from dpeq.training.files import fingerprint_key
    from dpeq.training.prepare import augmentation, choose_device, load_data, optimizer_settings, prepare
    from dpeq.training.start import Start, fingerprint, settings_of

    if canaries < FEWEST:
        raise ConfigError(f"{canaries} canaries can show nothing; give {FEWEST} at least, better 1000.")
    config, plan = asked.config, asked.plan
    kind: Kind = "input" if method == "black-box" else "gradient"
    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    prepared = prepare(config)
    device, classes = choose_device(config.training.device), len(prepared.card.classes)
    settings = optimizer_settings(config)
    model = build_model(prepared.spec, prepared.shape[0], classes, Randomness.create(None).init_seed)
    if config.model.weights is not None:
        StartingWeights.read(config.model.weights).put_into(model)
    if prepared.foreign:
        require_trainable(model, prepared.shape, classes, plan.views)
    timed, shape = model, prepared.shape
    if kind == "gradient":
        timed = CanaryNetwork(model, canaries, classes, plan.max_grad_norm, settings.class_weights)
        shape = (shape[0] + 1, *shape[1:])
    seconds = estimate_seconds(timed, shape, plan, physical_units=settings.physical_units, device=device)
    seconds *= 1 + plan.sample_rate * canaries / 2 / plan.expected_batch_size
    out.print(f"A training of {plan.steps} steps; time on this machine: about {duration(seconds)}.")
    out.print(
        "It is one more training on this data: an audit, not for release, with a ledger of its own that no summary of "
        "runs counts.",
        soft_wrap=True,
    )
    with stop(asked.folder) as should_stop, RichObserver(out) as observer:
        observer.planned(plan)
        observer.stage(f"Loading {prepared.card.title}")
        splits = load_data(prepared, observer.loading)
        if asked.run is not None:
            Start.read(asked.run).check_data(
                fingerprint(splits, fingerprint_key(asked.run.resolve().parent, make=False))
            )
        flat = json.dumps(settings_of(config, prepared.card), sort_keys=True)
        facts = {
            "method": method,
            "plan_sha256": plan.sha256,
            "canaries": canaries,
            "settings_sha256": hashlib.sha256(flat.encode()).hexdigest(),
            "data_sha256": fingerprint(splits, fingerprint_key(asked.folder, make=True)),
        }
        begin(asked.folder, facts)
        observer.stage("Training with canaries")
        attack = attack_training(
            model,
            splits["train"],
            plan,
            settings,
            asked.folder,
            canaries=canaries,
            device=device,
            augment=augmentation(prepared),
            images_per_unit=config.views.images_per_unit,
            kind=kind,
            save_every=config.training.checkpoint_every,
            after_step=lambda record: observer.stepped(record, plan),
            should_stop=should_stop,
        )
        if attack.stopped:
            return None
        observer.stage("Computing the bound")
        result = audit_training(plan, attack)
        quality = attack_quality(attack.scores, attack.included, profile=profile_of(plan))
    return [result], quality


def _write(asked: _Asked, result: AuditResult, attack: Membership) -> None:
    from dpeq.audit.picture import draw_roc, profile_of
    from dpeq.training.files import as_json, write_durably

    one_step = "noise_multiplier_at_most" in result.details
    profile = profile_of(asked.one_step if one_step else asked.plan)
    title = "One private step" if one_step else f"A training of {asked.plan.steps} steps"
    for suffix in ("svg", "png"):
        draw_roc(attack, profile, title, asked.folder / f"roc.{suffix}")
    write_durably(asked.folder / "attack.json", as_json(attack.to_dict()))
    body = as_json(result.to_dict())
    if asked.run is not None:
        write_durably(asked.run / "audit.json", body)
    write_durably(asked.folder / "audit.json", body)  # the last file: with it, the audit is over


def _table(results: list[AuditResult], attack: Membership) -> Table:
    from dpeq.reporting.numbers import percent, round_down, round_up

    table = Table(title="Audit", show_header=False, title_justify="left")
    for result in results:
        share = "" if result.share is None else f", {percent(result.share)} of it explained"
        table.add_row("method", result.method)
        table.add_row(
            "epsilon",
            f"at least {round_down(result.epsilon_lower, 3)} at delta {result.delta:g}, with "
            f"{percent(result.confidence, 0)} confidence",
        )
        table.add_row("the plan says", f"at most {round_up(result.theoretical or 0.0, 3)}{share}")
        table.add_row("this assumes", result.assumes)
    for row in attack.hit_rates:
        allowed = "" if row.allowed is None else f"; the plan allows {percent(row.allowed)}"
        told = f"{percent(row.hits)} hits ({percent(row.low)} to {percent(row.high)})"
        alarms = percent(row.false_alarms_high)
        table.add_row(f"at {percent(row.rate)} false alarms", f"{told}{allowed} where false alarms are {alarms}")
    return table
