"""The cells of a sweep: which network, which epsilon, which repetition, and the configuration that says so."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from dpeq.config import ModelConfig, RunConfig, load_config
from dpeq.errors import ConfigError
from dpeq.groups import GROUP_NAMES
from dpeq.models.labels import TWIN, label_of
from dpeq.models.matching import KINDS
from dpeq.models.registry import PRESETS

__all__ = ["Cell", "make_grid", "parse_epsilons"]


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        name: of the run and its folder, ``{recipe}-{model}-eps{epsilon}-{repetition}``.
        model: the network's label, as it was listed.
        epsilon: the target; infinite for a run without privacy.
        repetition: from 1.
        overrides: with which ``dpeq train CONFIG`` would be this run.
        config: what they come to.
    """

    name: str
    model: str
    epsilon: float
    repetition: int
    overrides: tuple[str, ...]
    config: RunConfig


def parse_epsilons(values: Sequence[str]) -> list[float]:
    """Numbers above 0, or "inf"; :class:`ConfigError` names what is neither, or comes twice."""
    found: list[float] = []
    for value in values:
        try:
            epsilon = float(value)
        except ValueError:
            raise ConfigError(
                f"'{value}' is no epsilon; give numbers above 0 or inf, and the CONFIG before --epsilon."
            ) from None
        if not epsilon > 0:
            raise ConfigError(f"Epsilon is {value}; give numbers above 0, or inf for a run without privacy.")
        if f"{epsilon:g}" in [f"{other:g}" for other in found]:
            raise ConfigError(f"Epsilon {epsilon:g} is listed twice; list each once, and repeat cells by --seeds.")
        found.append(epsilon)
    return found


def make_grid(
    source: str,
    overrides: Sequence[str],
    *,
    epsilons: Sequence[float] = (),
    models: Sequence[str] = (),
    repetitions: int = 1,
    seeded: bool = False,
    data_root: Path | None = None,
) -> list[Cell]:
    """All cells, first repetitions first, so that a sweep that was stopped has something to say about every network.

    Args:
        source, overrides, data_root: as :func:`dpeq.config.load_config` has them; ``overrides`` hold for every cell.
        epsilons, models: the recipe's own when empty. A model is a preset, ``<preset>-<group>``, a twin ("cnn-twin",
            "wide-resnet-twin", "vit-twin"), or the import path of a class. Twins are made to equal the first preset
            that is listed, or else the recipe's.
        repetitions: runs of each cell, each with the operating system's randomness.
        seeded: give them ``training.seed`` 0, 1, 2 and so on instead.

    Raises:
        ConfigError: for models that there are not, what is listed twice, or overrides of what the sweep sets.
    """
    recipe = load_config(source, data_root=data_root)
    _refuse_fixed(overrides, {"privacy.epsilon": bool(epsilons), "model.name": bool(models)})
    base = load_config(source, [*_unseeded(recipe), *overrides], data_root=data_root)
    picked = _pick_all(models, recipe.model, base.model)
    cells = []
    for repetition in range(1, repetitions + 1):
        for label, chosen in picked.items():
            for epsilon in epsilons or [base.privacy.epsilon]:
                name = re.sub(r"[^A-Za-z0-9._-]", "-", f"{base.name}-{label}-eps{epsilon:g}-{repetition}")
                own = [*_unseeded(recipe), *chosen, *_without(overrides, "name"), f"name={name}"]
                own.append(f"privacy.epsilon={f'{epsilon:g}' if float(f'{epsilon:g}') == epsilon else repr(epsilon)}")
                own += [f"training.seed={repetition - 1}"] * seeded
                config = load_config(source, own, data_root=data_root)
                cells.append(Cell(name, label, epsilon, repetition, tuple(own), config))
    return cells


def _pick_all(models: Sequence[str], recipe: ModelConfig, base: ModelConfig) -> dict[str, tuple[str, ...]]:
    """For every label the overrides that choose its network; none for the recipe's own."""
    if not models:
        return {label_of(base.name, base.group): ()}
    anchor = _anchor(models, base)
    picked: dict[str, tuple[str, ...]] = {}
    for name in models:
        label, chosen = _pick(name, anchor)
        if chosen == (f"model.name={recipe.name}",):  # with whatever else the recipe says of it
            label = label_of(recipe.name, recipe.group)
        elif recipe.arguments:
            raise ConfigError(f"The recipe's model.arguments are not for {label}; sweep from a recipe without them.")
        else:
            chosen = (*_reset(recipe), *chosen)
        if label in picked:
            raise ConfigError(f"The network {label} is listed twice; list each once, and repeat cells by --seeds.")
        picked[label] = chosen
    return picked


def _pick(name: str, anchor: str | None) -> tuple[str, tuple[str, ...]]:
    """The label of a listed model, and the overrides that choose it."""
    kind = name.removesuffix(TWIN)
    if kind in KINDS:
        if anchor is None:
            raise ConfigError(f"Nothing says which network '{name}' is the twin of; list a preset before it.")
        return kind + TWIN, (f"model.name={kind}", f"model.match={anchor}")
    if name in PRESETS or "." in name or ":" in name:
        return label_of(name), (f"model.name={name}",)
    preset, symmetry = _preset_and_group(name)
    if preset is not None:
        return label_of(preset, symmetry), (f"model.name={preset}", f"model.group={symmetry}")
    known = [*PRESETS, *(kind + TWIN for kind in KINDS)]
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"the networks are: {', '.join(known)}."
    raise ConfigError(f"There is no network '{name}', nor a preset with a group of that name, as eqresnet9-d4; {hint}")


def _preset_and_group(name: str) -> tuple[str | None, str]:
    """``eqresnet9-d4`` as eqresnet9 and D4; the longest preset that fits."""
    groups = {known.lower(): known for known in GROUP_NAMES}
    for preset in sorted(PRESETS, key=len, reverse=True):
        rest = name[len(preset) + 1 :].lower()
        if name.startswith(f"{preset}-") and rest in groups:
            return preset, groups[rest]
    return None, ""


def _anchor(models: Sequence[str], recipe: ModelConfig) -> str | None:
    """The preset that twins are matched to."""
    for name in models:
        if name in PRESETS:
            return name
        preset, _ = _preset_and_group(name)
        if preset is not None:
            return preset
    return recipe.name if recipe.name in PRESETS else recipe.match


def _reset(recipe: ModelConfig) -> list[str]:
    """Overrides that take away what the recipe says of its own network."""
    resets = []
    for key, field in ModelConfig.model_fields.items():
        if key in ("name", "arguments") or getattr(recipe, key) == field.default:
            continue
        default = "[]" if field.default == () else "null" if field.default is None else str(field.default).lower()
        resets.append(f"model.{key}={default}")
    return resets


def _unseeded(recipe: RunConfig) -> list[str]:
    """A seed of the recipe would make all repetitions one."""
    return [f"training.{key}=null" for key in ("seed", "rng") if getattr(recipe.training, key) is not None]


def _refuse_fixed(overrides: Sequence[str], fixed: Mapping[str, bool]) -> None:
    for override in overrides:
        key = override.partition("=")[0]
        if key in ("training.seed", "training.rng"):
            raise ConfigError(f"{key} is not for a sweep's overrides; --seeded gives repetitions the seeds 0, 1, 2.")
        if fixed.get(key):
            raise ConfigError(f"{key} is given twice, by an option and by '{override}'; leave one of them out.")


def _without(overrides: Sequence[str], key: str) -> list[str]:
    return [override for override in overrides if override.partition("=")[0] != key]
