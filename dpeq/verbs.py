"""What the verbs ``models`` and ``doctor --model`` do; the command line only names their options."""

from __future__ import annotations

import logging
from itertools import product

from rich.console import Console

from dpeq.advice import advise, judge
from dpeq.config import load_config, model_section, recipes
from dpeq.console import advice_table, models_table, print_json, verdict_table
from dpeq.data.cards import load_card
from dpeq.dry_step import examine_model
from dpeq.errors import ConfigError
from dpeq.models.matching import KINDS, TOLERANCE
from dpeq.models.overview import overview
from dpeq.models.registry import PRESETS, ModelChoice, Preset, build_model, resolve_spec
from dpeq.training.run import prepare

__all__ = ["advise_on", "examine", "list_models"]

_log = logging.getLogger(__name__)
_TWIN_EDGE = 28  # of the images that twins are matched on, where no size is asked for
_EDGE = 32  # of the made-up images that a network is examined with, where no size is asked for


def list_models(
    out: Console, input_size: str | None, sigma: float, max_grad_norm: float, twins_of: str | None, *, json: bool
) -> None:
    """Every preset and what it costs; or one of them beside its conventional twins."""
    edges = _edges(input_size)
    presets = PRESETS if twins_of is None else _twins(twins_of, edges or (_TWIN_EDGE,))
    rows = overview(edges, sigma=sigma, max_grad_norm=max_grad_norm, presets=presets)
    if json:
        print_json(rows)
        return
    out.print(models_table(rows))
    out.print(
        "Memory: what backward needs of an image. Gradient: of one unit, whatever its views. Noise norm: "
        f"sigma*C*sqrt(P) for sigma {sigma:g} and C {max_grad_norm:g}; a unit's clipped gradient is at most C long.",
        soft_wrap=True,
    )
    for row in rows:
        out.print(f"{row['name']}: {presets[row['name']].summary}.", soft_wrap=True)
        if row["refused"] is not None:
            out.print(f"  not at this size: {row['refused']}", soft_wrap=True)


def advise_on(out: Console, card_name: str, *, json: bool) -> None:
    """Which groups, and which of the listed networks, suit the data of a card."""
    card = load_card(card_name)
    advice = advise(card)
    if json:
        print_json([entry.to_dict() for entry in advice])
        return
    out.print(f"{card.title}: {card.symmetries.note}", soft_wrap=True)
    out.print(advice_table(advice))
    specs = {name: preset.spec for name, preset in PRESETS.items() if preset.dim == card.dim}
    verdicts = {name: judge(card, spec.group, spec.restriction) for name, spec in specs.items()}
    sound = [name for name, verdict in verdicts.items() if verdict.sound]
    out.print(f"Sound networks: {', '.join(sound) or 'none as they come; set model.group'}.", soft_wrap=True)
    for name, verdict in verdicts.items():
        if not verdict.sound:
            out.print(f"{name} is {verdict.grade}: {verdict.reason}", soft_wrap=True)


def examine(
    out: Console, name: str, overrides: list[str], input_size: str | None, channels: int, classes: int, *, json: bool
) -> bool:
    """One dry private step of a network, layer by layer; returns whether it can be trained privately.

    Args:
        name: a preset, an import path (with ``model.key=value`` overrides), or a recipe by name or path,
            whose card gives the images.
    """
    views = 1
    if name.endswith((".yaml", ".yml")) or name in recipes():
        prepared = prepare(load_config(name, overrides))
        spec, shape, classes = prepared.spec, prepared.shape, len(prepared.card.classes)
        views = prepared.config.privacy.views
    else:
        edges = _edges(input_size) or (_EDGE,)
        if len(edges) == 1:
            edges *= PRESETS[name].dim if name in PRESETS else 2
        shape = (channels, *edges)
        spec = resolve_spec(
            ModelChoice(**model_section(name, overrides).model_dump(exclude={"weights"})), shape, classes
        )
    network = build_model(spec, shape[0], classes, seed=0)
    verdicts = examine_model(network, shape, classes, views)
    if json:
        print_json([verdict.to_dict() for verdict in verdicts])
    else:
        out.print(verdict_table(verdicts))
        whole = verdicts[0]
        found = (
            "can be trained privately" if whole.trains else f"cannot be trained privately: {whole.why}; {whole.mend}"
        )
        out.print(f"{name} {found}.", soft_wrap=True)
    return verdicts[0].trains


def _twins(name: str, edges: tuple[int, ...]) -> dict[str, Preset]:
    """A preset and its twins by parameters and by multiply-accumulates, for one channel and two classes."""
    if name not in PRESETS:
        raise ConfigError(f"There is no model '{name}'; use one of: {', '.join(PRESETS)}.")
    target = PRESETS[name]
    shape = (1, *(edges * target.dim if len(edges) == 1 else edges))
    found = {name: target}
    for kind, measure in product(KINDS, TOLERANCE):
        try:
            spec = resolve_spec(ModelChoice(kind, match=name, match_by=measure), shape, 2)
        except ConfigError as error:
            _log.warning("%s", error)
            continue
        found[f"{kind} by {measure}"] = Preset(spec, f"{spec.architecture}, with the {measure} of {name}")
    return found


def _edges(text: str | None) -> tuple[int, ...] | None:
    """Image edges as written on the command line, 28 or 32x24x16."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"--input-size '{text}' is no image size; write 28, 64x48 or 32x24x16.")
    return tuple(int(part) for part in parts)
