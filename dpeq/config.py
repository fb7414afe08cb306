"""The typed configuration of a run: one YAML file, dotted overrides, validated in one place.

>>> config = load_config("pneumoniamnist", ["privacy.epsilon=3"])
>>> config.privacy.epsilon
3.0
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from dpeq.data.augment import AugmentConfig
from dpeq.data.settings import (
    ExtraTransform,
    Fit,
    Foreground,
    Orientation,
    Percentiles,
    Preset,
    Size,
    Slices,
    Spacing,
    View,
    Window,
)
from dpeq.errors import ConfigError
from dpeq.resources import room

__all__ = ["ModelConfig", "RunConfig", "load_config", "model_section", "recipes", "write_config"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Epsilon = Annotated[float, Field(gt=0, allow_inf_nan=True)]
Depth = Annotated[int, Field(ge=0)]
Triple = tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]


class DataConfig(_Section):
    """What is read. ``card`` names a data set card; ``manifest`` an indexed folder, which replaces a download.

    From ``preset`` on: what replaces the card's preprocessing of an indexed folder, key by key; see
    :class:`dpeq.data.settings.ImageSettings`.
    """

    card: str
    root: Path | None = None
    manifest: Path | None = None
    unit: Literal["image", "patient"] | None = None  # default: the card's
    workers: int | None = Field(default=None, ge=0)  # processes that read images; default: up to 4
    cache: bool = True  # keep preprocessed images under $DPEQ_CACHE, readable by their owner alone
    cache_gib: float = Field(default=50.0, gt=0)  # what was used longest ago makes room
    preset: Preset | None = None
    view: View | None = None
    orientation: Orientation | None = None
    spacing: Spacing | None = None  # mm
    size: Size | None = None  # voxels (x, y, z)
    window: Window | None = None  # HU, or values as stored
    percentiles: Percentiles | None = None
    foreground: Foreground | None = None
    margin: int | None = Field(default=None, ge=0)  # voxels
    fit: Fit | None = None
    slices: Slices | None = None
    transforms: tuple[ExtraTransform, ...] | None = None  # of MONAI, by class name


class ModelConfig(_Section):
    """Which network: a preset, a twin of one (cnn, wide-resnet, vit), or the import path of a class.

    Everything but the name defaults to the preset's; see :class:`dpeq.models.registry.ModelChoice`.
    """

    name: str
    group: str | None = None
    restriction: str | None = None  # none, halved, reflection, invariant, or a subgroup by name
    fields: Triple | None = None
    norm_groups: Triple | None = None
    block: Literal["full", "separable"] | None = None
    depths: tuple[Depth, Depth, Depth] | None = None
    resolution: int | None = Field(default=None, ge=4)  # pixels of the longest edge
    width_rule: Literal["parameters", "compute"] = "parameters"
    match: str | None = None  # the preset that a twin equals
    match_by: Literal["parameters", "macs"] = "parameters"
    arguments: dict[str, Any] = {}  # of a network by import path, as are the next two
    replace_batch_norm: bool = False
    pool_output: bool = False
    trainable: tuple[str, ...] = ()  # names of layers, such as classifier, that alone are trained; empty: all
    weights: Path | None = None  # safetensors file to start from, of public data


class PrivacyConfig(_Section):
    """Public constants of the guarantee; none may be derived from the private data."""

    epsilon: Epsilon
    delta: float = Field(gt=0, lt=1)
    steps: int = Field(ge=1)
    expected_batch_size: int = Field(ge=1)
    max_grad_norm: float = Field(default=1.0, gt=0)
    views: int = Field(default=1, ge=1)
    clipping: Literal["fixed", "automatic", "per_layer"] = "fixed"
    sampling: str = "poisson"
    sample_rate: float | None = Field(default=None, gt=0, le=1)
    public_units: int | None = Field(default=None, ge=1)  # default: the number the card publishes

    @field_validator("sampling")
    @classmethod
    def _poisson_alone(cls, sampling: str) -> str:
        if sampling != "poisson":
            raise PydanticCustomError(
                "sampling",
                "The accountant's epsilon holds for independent coins of one rate alone, which shuffling and weighted "
                "sampling are not; use poisson, and weigh classes by training.class_weights",
            )
        return sampling


class ViewsConfig(_Section):
    """Which of a unit's images its views show; how many views there are is ``privacy.views``."""

    images_per_unit: int | None = Field(default=None, ge=1)  # default: as many as there are views


class TrainingConfig(_Section):
    """The optimiser and the machine; see :class:`dpeq.training.state.OptimizerSettings`."""

    lr: float = Field(gt=0)
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: float = Field(default=0.0, ge=0, lt=1)
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)
    ema_decay: float = Field(default=0.99, ge=0, lt=1)
    class_weights: tuple[Annotated[float, Field(gt=0)], ...] | None = None  # public constants, one per class
    physical_units: int = Field(default=64, ge=1)
    precision: Literal["fp32", "bf16"] = "fp32"
    rng: Literal["secure", "seeded"] | None = None  # default: seeded where there is a seed
    seed: int | None = Field(default=None, ge=0)  # None: keyed by the operating system
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = Field(default=None, ge=1)
    checkpoint_every: int = Field(default=10, ge=1)  # logical steps
    log_private_metrics: bool = False  # training loss, gradient norms, clipped fraction: computed without noise

    @model_validator(mode="after")
    def _rng_and_seed_agree(self) -> TrainingConfig:
        if self.rng == "seeded" and self.seed is None:
            raise PydanticCustomError("seed", "rng is seeded, so give training.seed")
        if self.rng == "secure" and self.seed is not None:
            raise PydanticCustomError(
                "seed", "rng is secure, so take training.seed away: whoever knows it knows the noise"
            )
        return self


class TrackingConfig(_Section):
    """Where the curves of a run go while it runs."""

    tensorboard: bool = True
    mlflow: bool = False  # wants the extra dpeq[mlflow]
    mlflow_uri: str | None = None  # default: MLFLOW_TRACKING_URI, or a local store beside the runs


class EvaluationConfig(_Section):
    """How the trained network is scored."""

    weights: Literal["ema", "raw"] = "ema"
    bootstrap: int = Field(default=1000, ge=100)


class RunConfig(_Section):
    """One run, whole."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    data: DataConfig
    model: ModelConfig
    privacy: PrivacyConfig
    training: TrainingConfig
    views: ViewsConfig = ViewsConfig()
    augment: AugmentConfig = AugmentConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _images_fit_into_views(self) -> RunConfig:
        images = self.views.images_per_unit
        if images is not None and images > self.privacy.views:
            raise PydanticCustomError(
                "views",
                "Views.images_per_unit asks for more images than the {views} rows that privacy.views gives a unit; "
                "make it smaller, or privacy.views larger",
                {"views": self.privacy.views},
            )
        return self


def load_config(source: str | Path, overrides: Sequence[str] = (), *, data_root: Path | None = None) -> RunConfig:
    """Reads a YAML file, or a shipped recipe by name, and applies ``section.key=value`` overrides.

    ``data_root`` is set as ``data.root`` as it is: a path is not parsed as YAML.

    Raises:
        ConfigError: one sentence that names the key or the file and the mend.
    """
    path = _find(source)
    for override in overrides:
        if "=" not in override:
            raise ConfigError(f"'{override}' is no override; write section.key=value, as in privacy.epsilon=3.")
    try:
        loaded = OmegaConf.load(path)
        if not isinstance(loaded, DictConfig):
            raise ConfigError(f"{path} is not a configuration; it must hold sections such as data, model and privacy.")
        merged = OmegaConf.merge(loaded, OmegaConf.from_dotlist(list(overrides)))
        if data_root is not None:
            OmegaConf.update(merged, "data.root", str(data_root), force_add=True)
        values = OmegaConf.to_container(merged, resolve=True)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} with its overrides is not valid YAML ({reason}); mend that line.") from error
    return _validate({str(key): value for key, value in dict(values).items()}, path)


def model_section(name: str, overrides: Sequence[str] = ()) -> ModelConfig:
    """The model section alone, from ``model.key=value`` overrides; raises ConfigError as :func:`load_config` does."""
    try:
        merged = OmegaConf.to_container(OmegaConf.from_dotlist([f"model.name={name}", *overrides]), resolve=True)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"The overrides are not valid ({' '.join(str(error).split())}); mend them.") from error
    values = {str(key): value for key, value in dict(merged).items()}  # type: ignore[arg-type]
    if set(values) != {"model"}:
        raise ConfigError("Only model.key=value overrides make sense for a network by itself; leave the others out.")
    try:
        return ModelConfig.model_validate(values["model"])
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(["model", *map(str, problem["loc"])])
        raise ConfigError(f"{where}: {problem['msg'][0].lower()}{problem['msg'][1:]}.") from error


def write_config(config: RunConfig, path: Path) -> None:
    """Writes the resolved configuration; reading it back gives an equal one."""
    values = config.model_dump(mode="json")
    if math.isinf(config.privacy.epsilon):
        values["privacy"]["epsilon"] = "inf"
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def recipes() -> dict[str, Path]:
    """The shipped recipes by name."""
    return {path.stem: path for path in sorted(room("pipelines").glob("*.yaml"))}


def _find(source: str | Path) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    known = recipes()
    if str(source) in known:
        return known[str(source)]
    raise ConfigError(f"There is no file '{source}' and no recipe of that name; the recipes are: {', '.join(known)}.")


def _validate(values: dict[str, Any], path: Path) -> RunConfig:
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_sentence(error, path)) from error


def _sentence(error: ValidationError, path: Path) -> str:
    """The first problem as one sentence: unknown keys first, because they explain the missing ones."""
    problems = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    first = problems[0]
    where = ".".join(str(part) for part in first["loc"]) or "the configuration"
    if first["type"] == "extra_forbidden":
        near = get_close_matches(str(first["loc"][-1]), _keys(first["loc"][:-1]), n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"the keys are: {', '.join(_keys(first['loc'][:-1]))}."
        return f"{where} in {path} is not a known key; {hint}"
    if first["type"] == "missing":
        return f"{where} is missing in {path}; add it."
    message = first["msg"][0].lower() + first["msg"][1:]
    if isinstance(first["input"], dict):  # of a whole section, whose values would be too much
        return f"{where} in {path}: {message}."
    return f"{where} is {first['input']!r} in {path}; {message}."


def _keys(location: tuple[int | str, ...]) -> list[str]:
    model: Any = RunConfig
    for part in location:
        model = model.model_fields[str(part)].annotation
    return list(model.model_fields)
