"""What a configuration means: card, network, shapes, plan, data."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from pydantic import ValidationError

from dpeq.advice import warnings_for
from dpeq.config import RunConfig
from dpeq.data.augment import redundant
from dpeq.data.cards import Card, VolumeSettings, load_card
from dpeq.data.images import ImageSet
from dpeq.data.load import image_shape, load_splits
from dpeq.data.views import Augment
from dpeq.errors import ConfigError, DataError
from dpeq.models.foreign import ForeignSpec
from dpeq.models.partial import PartialSpec
from dpeq.models.registry import ModelChoice, build_model, resolve_spec
from dpeq.models.spec import ModelSpec
from dpeq.privacy.plan import PrivacyPlan
from dpeq.privacy.remembered import remembered_plan
from dpeq.training.state import OptimizerSettings

_log = logging.getLogger(__name__)

__all__ = ["Prepared", "augmentation", "choose_device", "load_data", "make_plan", "optimizer_settings", "prepare"]


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

    @property
    def foreign(self) -> bool:
        """Whether others wrote the network."""
        whole = self.spec.whole if isinstance(self.spec, PartialSpec) else self.spec
        return isinstance(whole, ForeignSpec)


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
    spec = resolve_spec(ModelChoice(**config.model.model_dump(exclude={"weights"})), shape, len(card.classes))
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
    augmentation(prepared)  # refuses views that such images cannot have
    return prepared


def make_plan(prepared: Prepared) -> PrivacyPlan:
    """Calibrates the plan from public constants alone; no data set is an argument."""
    p = prepared.config.privacy
    if p.public_units is None and prepared.unit != prepared.card.unit:
        raise ConfigError(
            f"Card {prepared.card.name} publishes a number of {prepared.card.unit}s but data.unit is {prepared.unit}; "
            f"give privacy.public_units, the published number of training {prepared.unit}s."
        )
    return remembered_plan(
        epsilon=p.epsilon,
        delta=p.delta,
        expected_batch_size=p.expected_batch_size,
        public_units=p.public_units or prepared.card.public_units,
        steps=p.steps,
        max_grad_norm=p.max_grad_norm,
        unit=prepared.unit,
        sample_rate=p.sample_rate,
        views=p.views,
        clipping=p.clipping,
    )


def optimizer_settings(config: RunConfig) -> OptimizerSettings:
    """The public constants of the optimiser that a configuration asks for."""
    t = config.training
    names = [f.name for f in fields(OptimizerSettings)]
    return OptimizerSettings(**{name: getattr(t, name) for name in names})


def augmentation(prepared: Prepared) -> Augment | None:
    """The random views that a prepared configuration asks for; None without any."""
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


def load_data(prepared: Prepared, progress: Callable[[int, int], None] | None = None) -> dict[str, ImageSet]:
    """The splits that a prepared configuration asks for."""
    d = prepared.config.data
    return load_splits(
        prepared.card, root=d.root, manifest=d.manifest, unit=prepared.unit, volume=prepared.volume, progress=progress
    )
