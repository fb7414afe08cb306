"""What a configuration means: card, network, shapes, plan, data."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from pydantic import ValidationError

from dpeq.advice import warnings_for
from dpeq.config import RunConfig
from dpeq.data.augment import redundant
from dpeq.data.cards import Card, load_card
from dpeq.data.images import ImageSet
from dpeq.data.load import image_shape, load_splits
from dpeq.data.settings import ImageSettings
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
    preprocessing: ImageSettings | None
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
    preprocessing = _preprocessing(config, card)
    if d.manifest is not None and not d.manifest.is_file():
        raise DataError(f"There is no manifest {d.manifest}; make one with 'dpeq index FOLDER --out {d.manifest}'.")
    shape = image_shape(card, preprocessing)
    spec = resolve_spec(ModelChoice(**config.model.model_dump(exclude={"weights"})), shape, len(card.classes))
    # Wrong norm groups and the like are found here, before data or budget is touched.
    build_model(spec, shape[0], len(card.classes), seed=0)
    weights = config.training.class_weights
    if weights is not None and len(weights) != len(card.classes):
        raise ConfigError(
            f"training.class_weights has {len(weights)} numbers for the {len(card.classes)} classes of {card.name}; "
            "give one per class."
        )
    warnings = warnings_for(_as_seen(card, preprocessing), spec.group, spec.restriction, card.classes)
    if not config.augment.off:
        warnings = [*warnings, *redundant(config.augment, spec.group, spec.restriction)]
    for warning in warnings:
        _log.warning("%s", warning)
    prepared = Prepared(config, card, spec, d.unit or card.unit, preprocessing, shape, tuple(warnings))
    if preprocessing is not None and preprocessing.transforms:
        from dpeq.data.transforms import ImageTransform  # loads MONAI, which takes seconds

        ImageTransform(preprocessing, card.channels).check()
    augment = augmentation(prepared)
    if augment is not None:
        augment.dry_run(shape)  # refuses views that such images cannot have
    return prepared


def _as_seen(card: Card, settings: ImageSettings | None) -> Card:
    """The card for the dimension of the view, where a configuration turns volumes into slices (or the reverse).

    Pixels within a slice are square unless the settings make them otherwise, whatever lies between slices.
    """
    if settings is None or (settings.view == "3d") == (card.dim == 3):
        return card
    dim = 3 if settings.view == "3d" else 2
    edges = settings.pixel_spacing or (1.0, 1.0)
    square = dim == 2 and settings.fit == "pad" and math.isclose(edges[0], edges[1], rel_tol=1e-3)
    symmetries = card.symmetries.model_copy(update={"isotropic": square})
    return card.model_copy(update={"dim": dim, "symmetries": symmetries})


def _preprocessing(config: RunConfig, card: Card) -> ImageSettings | None:
    """The card's, with what the configuration says in its place."""
    keys = {name: getattr(config.data, name) for name in ImageSettings.model_fields}
    if card.preprocessing is None:
        given = [name for name, value in keys.items() if value is not None]
        if given:
            raise ConfigError(
                f"data.{given[0]} is for indexed folders, but the images of {card.name} come as they are; leave it out."
            )
        return None
    try:
        return card.preprocessing.changed(keys)
    except ValidationError as error:
        first = error.errors()[0]
        message = f"{first['msg'][0].lower()}{first['msg'][1:]}"
        if not first["loc"]:
            raise ConfigError(f"data: {message}.") from error
        raise ConfigError(f"data.{'.'.join(map(str, first['loc']))} is {first['input']!r}; {message}.") from error


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
    # Where pixels have no common size, as those of pictures, they count as square.
    spacing = None if prepared.preprocessing is None else prepared.preprocessing.pixel_spacing
    return Augment(config, len(prepared.shape) - 1, spacing)


def choose_device(wish: str) -> torch.device:
    """The asked device; ``auto`` takes a GPU where there is one."""
    if wish == "cuda" and not torch.cuda.is_available():
        raise ConfigError("training.device is cuda but torch sees no GPU here; use auto or cpu.")
    return torch.device("cuda" if wish == "cuda" or (wish == "auto" and torch.cuda.is_available()) else "cpu")


def load_data(prepared: Prepared, progress: Callable[[int, int], None] | None = None) -> dict[str, ImageSet]:
    """The splits that a prepared configuration asks for."""
    d = prepared.config.data
    return load_splits(
        prepared.card,
        root=d.root,
        manifest=d.manifest,
        unit=prepared.unit,
        settings=prepared.preprocessing,
        progress=progress,
        workers=d.workers,
        cache_gib=d.cache_gib if d.cache else None,
    )
