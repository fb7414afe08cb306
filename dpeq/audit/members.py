"""A membership attack on the units themselves, by shadow models: who was in the training set?

One target and N shadows are trained as the plan says, each on half of the units. Which half the target had is tossed
by a fair coin per unit, as with canaries, and which half each shadow had is what the attacker knows. He asks the target
how sure it is of every unit's label, and holds the answer against those of the shadows
(:mod:`dpeq.privacy.audit.shadows`). Coins of the units are as good as coins of canaries, so the bounds of one run hold.

The units are nobody's worst case, and the attacker sees the end alone: this is what a real attacker could do, where
:mod:`dpeq.audit.one_run` shows what none can surpass. What it finds is computed from the images themselves, and no
noise covers it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from dpeq.audit.asking import log_odds
from dpeq.audit.kept import Heard, read_halves, read_heard, read_state, write_halves, write_heard
from dpeq.audit.one_run import FEWEST, Attack, toss
from dpeq.audit.training import Course, train_aside
from dpeq.data.images import ImageSet
from dpeq.errors import ConfigError, DataError
from dpeq.privacy.audit.shadows import balanced_halves, check_shadows, likelihood_ratios
from dpeq.training.files import make_folder
from dpeq.training.loop import StepRecord

__all__ = ["answers", "attack_members", "fresh_generator", "part_of", "steps_left"]

Array = npt.NDArray[np.float64]
Bits = npt.NDArray[np.bool_]


def attack_members(
    build: Callable[[], nn.Module],
    images: ImageSet,
    course: Course,
    folder: Path,
    *,
    shadows: int,
    before_model: Callable[[int], None] = lambda number: None,
    after_step: Callable[[StepRecord], None] = lambda record: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Attack | None:
    """Trains a target and ``shadows`` models on halves of ``images``; returns what their answers say, None if stopped.

    ``build`` makes a network of fresh weights each time; ``before_model`` is told the number of each, 0 is the target.
    Every model has a folder of its own in ``folder``, with its ledger. What was begun goes on: a model that is done is
    not trained again, one that was stopped goes on from its last save. Weights of a model that is done are not kept.
    Steps between a save and a crash are spent and lost to the weights, and counted: a model that lost many remembers
    less, which makes the attack weaker.

    Raises:
        ConfigError: for an odd number of shadows or fewer than four, fewer than twenty units, and a training that
            diverged.
        DataError: when what was kept is damaged, or of other units.
    """
    check_shadows(shadows)
    if images.n_units < FEWEST:
        raise ConfigError(
            f"{images.n_units} units in the training set are too few to attack, {FEWEST} are needed; audit by step or "
            "by one-run."
        )
    halves = read_halves(folder)
    if halves is None:
        others = balanced_halves(shadows, images.n_units, fresh_generator())
        halves = np.vstack([toss(images.n_units), others])
        write_halves(folder, halves)
    if halves.shape != (1 + shadows, images.n_units):
        raise DataError(f"The models in {folder} have other units, or are not {shadows}; give another folder.")
    told, lost = [], 0
    for number, had in enumerate(halves):
        before_model(number)
        heard = _ask(build, images, course, folder / _name(number), had, after_step, should_stop)
        if heard is None:
            return None
        told.append(heard.scores)
        lost += course.plan.steps - heard.steps
    scores = likelihood_ratios(told[0], np.stack(told[1:]), halves[1:])
    return Attack("member", halves[0], scores, lost)


def fresh_generator() -> np.random.Generator:
    """Of the operating system's randomness. The shadows' halves protect nobody; the target's are tossed."""
    return np.random.default_rng(secrets.randbits(128))


def steps_left(folder: Path, shadows: int, steps: int) -> int:
    """How many steps the target and its shadows still have to take in ``folder``, of ``steps`` each."""
    left = 0
    for number in range(1 + shadows):
        one = folder / _name(number)
        if read_heard(one) is None:
            before = read_state(one)
            left += steps if before is None else steps - before.step
    return left


def part_of(images: ImageSet, had: Bits) -> ImageSet:
    """The units of ``images`` that ``had [n_units]`` names, numbered anew, with all images of theirs."""
    chosen = torch.from_numpy(had)
    kept = chosen[images.units]
    numbers = torch.cumsum(chosen.to(torch.int64), 0) - 1
    return images.of_units(images.images[kept], images.labels[kept], numbers[images.units[kept]], int(chosen.sum()))


def answers(network: nn.Module, images: ImageSet, device: torch.device) -> Array:
    """How sure ``network`` is of the labels of each unit: mean log-odds over its images, float64 ``[n_units]``."""
    sure = log_odds(network, images.images, images.labels, device)
    total = torch.zeros(images.n_units, dtype=torch.float64).index_add_(0, images.units, sure)
    return (total / torch.bincount(images.units, minlength=images.n_units)).numpy()


def _name(number: int) -> str:
    return f"shadow-{number:02d}" if number else "target"


def _ask(
    build: Callable[[], nn.Module],
    images: ImageSet,
    course: Course,
    folder: Path,
    had: Bits,
    after_step: Callable[[StepRecord], None],
    should_stop: Callable[[], bool],
) -> Heard | None:
    """The answers of one model as its scores, trained if that was not done before; None if stopped."""
    make_folder(folder, owner_alone=True)
    heard = read_heard(folder)
    if heard is not None:
        _same(heard, had, folder)
        return heard
    if should_stop():
        return None
    before = read_state(folder)
    heard = Heard(had, np.zeros(len(had))) if before is None else before.heard
    _same(heard, had, folder)
    network = build()
    result = train_aside(
        network,
        part_of(images, had),
        course,
        folder,
        heard,
        before,
        purpose=f"{folder.name} of a membership attack, trained on half of the units",
        after_step=after_step,
        should_stop=should_stop,
    )
    if result.stopped:
        return None
    heard.scores = answers(result.averaged, images, course.device)
    write_heard(folder, heard)
    return heard


def _same(heard: Heard, had: Bits, folder: Path) -> None:
    if not np.array_equal(heard.included, had):
        raise DataError(f"What is kept in {folder} is of other units; give --out another folder.")
