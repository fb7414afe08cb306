"""What stands between a mistake in the training code and a patient: each guard trains for real and reads the releases.

A guard returns when it finds nothing, raises :class:`Caught` when it does, and lets through the product's own refusal.
Guards that measure ask for evidence that sound code shows with a probability of at most ``LEVEL`` per test.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from manifests import Entry, write_manifest
from scipy import stats
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from dpeq.data.cards import load_card
from dpeq.data.images import ImageSet
from dpeq.data.load import load_splits
from dpeq.data.readers.source import Source
from dpeq.data.settings import ImageSettings
from dpeq.dry_step import require_trainable
from dpeq.errors import DpeqError
from dpeq.privacy.audit.curves import GaussianCurves
from dpeq.privacy.audit.many_runs import audit_many_runs
from dpeq.privacy.gdp import gaussian_epsilon
from dpeq.privacy.ledger import read_ledger
from dpeq.privacy.plan import PrivacyPlan
from dpeq.privacy.randomness import Randomness, Stream
from tests.privacy.faults import lab
from tests.privacy.faults.lab import CLIP, PIXELS, SIGMA, VIEWS, Patient, Trace

__all__ = ["GUARDS", "LEVEL", "Caught", "Guard", "count_of_tests", "verdict"]

LEVEL = 1e-7
"""Of each statistical test. Laws are exact or on the safe side, but for the spread of batches and the lags: there the
normal approximation's true level, by their exact laws, is up to 3.5e-7."""

Guard = Callable[[int, Path], None]
_done = 0


class Caught(Exception):
    """A guard has found something wrong; the message says what."""


def count_of_tests() -> int:
    """How many statistical tests have been made so far."""
    return _done


def verdict(guard: Guard, seed: int, folder: Path) -> tuple[str, str]:
    """ "caught", "refused" by the product itself or "", with what was said."""
    folder.mkdir(parents=True)
    try:
        guard(seed, folder)
    except Caught as finding:
        return "caught", str(finding)
    except DpeqError as refusal:
        return "refused", str(refusal)
    return "", ""


def _test(p: float, what: str) -> None:
    """``p`` is the probability of what was seen, or worse, under sound code."""
    global _done
    _done += 1
    if not p > LEVEL:
        raise Caught(what)


def _two_sided(law: Any, value: float) -> float:
    return 2 * float(min(law.cdf(value), law.sf(value)))


def _binomial(successes: np.ndarray | float, trials: int, rate: float) -> float:
    """The least p-value of several counts, two-sided, times their number."""
    low, high = stats.binom.cdf(successes, trials, rate), stats.binom.sf(np.subtract(successes, 1), trials, rate)
    return 2 * float(np.minimum(low, high).min()) * np.size(successes)


def _key(seed: int, number: int) -> int:
    return 1000 * seed + number


# Sensitivity


def _bright(pixel: int, size: float) -> Tensor:
    """An image whose gradient lies on one pixel of each half, and has in both the same norm."""
    image = lab.blank()
    image[:, pixel] = size
    return image


def sensitivity(seed: int, folder: Path) -> None:
    """One unit more, of the worst kind, under the same coins and noise: the sum moves by at most C, and always alike.

    Whatever else is in the data: nobody, units that pull the other way, or units that pull elsewhere.
    """
    dice = np.random.default_rng(seed)
    pixel = int(dice.integers(1, PIXELS))
    here = [_bright(pixel, size) for size in (1e4, 3e3, 1e3, 2e4)]
    worst: dict[str, Patient] = {
        "with one image": (0, here[:1]),
        "with two images": (0, here[:2]),
        "with four images": (1, here),
        "with a small gradient": (0, [_bright(pixel, 0.01)]),
    }
    elsewhere = [(int(u % 2), [torch.randn(2, PIXELS) * 10.0**u]) for u in range(-2, 3)]
    bases: dict[str, list[Patient]] = {
        "a blank one": [(0, [lab.blank()])],
        "its opposites": [(label, [_bright(pixel, 1e2)]) for label in (1, 1, 1, 0)],
        "others": elsewhere,
    }
    plan = lab.make_plan(steps=1)
    key = _key(seed, 0)
    without = {name: lab.train(lab.make_data(base), plan, key, folder).sums[0] for name, base in bases.items()}
    for kind, unit in worst.items():
        effects = {}
        for name, base in bases.items():
            effects[name] = lab.train(lab.make_data([*base, unit]), plan, key, folder).sums[0] - without[name]
            if not float(effects[name].norm()) <= CLIP * (1 + 1e-9):
                raise Caught(f"a unit {kind} moves the sum by more than C beside {name}")
        first, *rest = effects.values()
        if not all(float((other - first).norm()) <= 1e-9 for other in rest):
            raise Caught(f"what a unit {kind} adds depends on who else is there")


# The sampler of the plan


def _sampled(trace: Trace, units: int) -> Tensor:
    """bool ``[steps, units]``; first pixels are ten times the unit, plus the number of its image."""
    found = torch.zeros(len(trace.shown), units, dtype=torch.bool)
    for step, values in enumerate(trace.shown):
        owners = [int(value) // 10 for value in values]
        images = {unit: {value for value in values if int(value) // 10 == unit} for unit in owners}
        if any(owners.count(unit) != VIEWS or len(images[unit]) != 1 + unit % 2 for unit in owners):
            raise Caught("a unit's images do not enter a step together, as its K views")
        found[step, owners] = True
    return found


def sampler(seed: int, folder: Path) -> None:
    """Every unit enters every step by a coin of its own with the plan's rate, whoever and however many there are."""
    rate, steps = 0.25, 20
    for number, units in enumerate((24, 60)):  # the plan speaks of 40
        minority = np.arange(units) % 5 == 0
        patients: list[Patient] = []
        for unit in range(units):
            images = [lab.blank() for _ in range(1 + unit % 2)]
            for image_number, image in enumerate(images):
                image[0, 0] = 10 * unit + image_number
            patients.append((int(minority[unit]), images))
        trace = lab.train(lab.make_data(patients), lab.make_plan(steps, rate), _key(seed, 10 + number), folder)
        x = _sampled(trace, units).double().numpy()
        _test(_binomial(x.sum(), x.size, rate), "units enter more or less often than by the plan's rate")
        for some in (x[:, minority], x[:, ~minority]):
            _test(_binomial(some.sum(), some.size, rate), "a class enters more or less often than by the plan's rate")
        _test(_binomial(x.sum(axis=0), steps, rate), "a unit enters more or less often than by the plan's rate")
        spread = float(((x.sum(axis=1) - units * rate) ** 2).sum() / (units * rate * (1 - rate)))
        _test(_two_sided(stats.chi2(steps), spread), "the sizes of batches do not vary as independent coins make them")
        centred = (x - rate) / math.sqrt(rate * (1 - rate))
        for lag in (1, 2, 3):
            z = float((centred[lag:] * centred[:-lag]).sum() / math.sqrt(centred[lag:].size))
            _test(_two_sided(stats.norm, z), "who was in a step decides who is in a later one")
    quiet = lab.train(_quiet(12), lab.make_plan(6, 1e-9), _key(seed, 12), folder)
    if any(quiet.shown):
        raise Caught("a unit enters more or less often than by the plan's rate")
    if not bool(quiet.sums.abs().amax(dim=1).gt(0).all()):
        raise Caught("a step whose sample is empty releases nothing, which tells that it is empty")


# The statistics of the noise


def _quiet(patients: int) -> ImageSet:
    """Units of two blank images: nothing to learn, and all that leaves is noise."""
    return lab.make_data([(unit % 2, [lab.blank(), lab.blank()]) for unit in range(patients)])


def noise(seed: int, folder: Path) -> None:
    """What leaves a training on blank images is Gaussian noise of sigma C, over a public B, and new every time."""
    one = lab.make_data([(0, [lab.blank()])])
    many = _quiet(12)
    runs: dict[str, Trace] = {
        "of many units": lab.train(many, lab.make_plan(16, 0.25), _key(seed, 21), folder),
        "of one unit": lab.train(one, lab.make_plan(8), _key(seed, 20), folder),
        "of empty steps": lab.train(many, lab.make_plan(8, 1e-9), _key(seed, 22), folder),
        "on two ranks": lab.train_on_two_ranks(many, lab.make_plan(8), _key(seed, 23), folder),
    }
    for name, trace in runs.items():
        z = (trace.sums / (SIGMA * CLIP)).numpy()
        _test(_alike(z), f"the noise {name} of two steps is alike")
        _test(_alike(z.T), f"the noise {name} of two coordinates is alike")
        _test(_two_sided(stats.chi2(z.size), float((z**2).sum())), f"the noise {name} has not the plan's variance")
        _test(_two_sided(stats.norm, float(z.sum() / math.sqrt(z.size))), f"the noise {name} is not centred")
        _test(float(stats.kstest(z.ravel(), "norm").pvalue), f"the noise {name} is not Gaussian")
    every = torch.cat([trace.sums.flatten() for trace in runs.values()]).numpy() / (SIGMA * CLIP)
    _test(_two_sided(stats.chi2(every.size), float((every**2).sum())), "the noise has not the plan's variance")
    _test(_two_sided(stats.norm, float(every.sum() / math.sqrt(every.size))), "the noise is not centred")


def _alike(rows: np.ndarray) -> float:
    """The p-value of the two rows that are most alike: the cosine of independent ones has Student's law, exactly."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    directions = np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)
    cosines = np.abs(directions @ directions.T)[np.triu_indices(len(rows), 1)]
    largest, freedom = min(float(cosines.max()), 1.0), rows.shape[1] - 1
    t = largest * math.sqrt(freedom / max(1e-300, 1 - largest**2))
    return min(1.0, 2 * float(stats.t.sf(t, freedom)) * len(cosines))


# The auditor


def auditor(seed: int, folder: Path) -> None:
    """A lower bound on the epsilon of one step, from canaries that are in or out; the plan's sigma gives the upper one.

    Canary j has its gradient on a pixel of its own. Sound noise is independent over pixels, so each of them in each
    step is a run of its own; a step of rate 1 is a Gaussian mechanism.
    """
    steps, delta = 24, 1e-5
    dice = np.random.default_rng(seed)
    included = dice.permutation(PIXELS)[: PIXELS // 2]
    patients: list[Patient] = [(0, [_bright(int(j), 1e3)] * 4) for j in included]
    sums = lab.train(lab.make_data(patients), lab.make_plan(steps), _key(seed, 30), folder).sums
    by_layer = sums.view(steps, 2, 2, PIXELS)  # of each layer the two classes, of each class the pixels
    scores = ((by_layer[:, :, 1] - by_layer[:, :, 0]).sum(dim=1) / 2).numpy()  # towards the canary's own gradient
    inside = np.isin(np.arange(PIXELS), included)
    audit = audit_many_runs(
        scores[:, inside].ravel(),
        scores[:, ~inside].ravel(),
        GaussianCurves(delta),
        threshold=CLIP / 2,
        confidence=1 - LEVEL,
        theoretical=gaussian_epsilon(1 / SIGMA, delta),
    )
    _test(0.0 if audit.contradicts else 1.0, "the auditor proves more epsilon than the plan's noise allows")


# The ledger


def ledger(seed: int, folder: Path) -> None:
    """A step is on the disk before its data is looked at and before the weights change, also after a crash."""
    data = lab.make_data([(0, [_bright(3, 1.0)]), (1, [_bright(5, 1.0)])])
    for name, plan in {"empty": lab.make_plan(3, 1e-9), "full": lab.make_plan(3)}.items():
        _watch_order(data, plan, _key(seed, 40), folder / name)
    second = folder / "resumed"
    second.mkdir()
    plan, drawn = lab.make_plan(8), set()
    real = Randomness.stream

    def watched(self: Randomness, use: str, step: int) -> Stream:
        if use == "noise":
            drawn.add(real(self, "noise", step).words(2).tobytes())
        return real(self, use, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Randomness, "stream", watched)
        lab.begin_and_crash(data, plan, _key(seed, 41), second, after=5)
        lab.go_on(data, plan, _key(seed, 42), second)
    entries = read_ledger(second / "ledger.jsonl")
    if len(drawn) > entries.steps:
        raise Caught("a run that was resumed has released more steps than its ledger holds")
    if entries.steps != plan.steps:
        raise Caught("the ledger does not hold the steps that were taken")


def _watch_order(data: ImageSet, plan: PrivacyPlan, key: int, folder: Path) -> None:
    folder.mkdir()
    taken = 0

    def written() -> int:
        (path,) = folder.glob("*.jsonl")
        return read_ledger(path).steps

    def look() -> None:
        if written() <= taken:
            raise Caught("a step looks at the data before the ledger has its line")

    def change(*_: object) -> None:
        nonlocal taken
        if written() <= taken:
            raise Caught("a step changes the weights before the ledger has its line")
        taken += 1

    hook = register_optimizer_step_pre_hook(change)
    try:
        lab.train(data, plan, key, folder, look=look)
    finally:
        hook.remove()
    if taken != plan.steps or written() != plan.steps:
        raise Caught("the ledger does not hold the steps that were taken")


# What the product looks at before it trains, and what of an image reaches training


def structure(seed: int, folder: Path) -> None:
    """The network passes the dry step and the checks of training; an image's tensor is a function of that image."""
    torch.manual_seed(seed)
    require_trainable(lab.make_network(), lab.SHAPE, 2, VIEWS)
    lab.train(_quiet(3), lab.make_plan(1), _key(seed, 50), folder)
    dice = np.random.default_rng(seed)
    volumes = [dice.normal(100, 40, (6, 6, 6)).astype(np.float32) for _ in range(5)]
    here = _load(folder / "here", volumes)
    there = _load(folder / "there", [*volumes[:2], volumes[2] * 7 + 300, *volumes[3:]])
    if torch.equal(here[2], there[2]):
        raise AssertionError("the image that was changed is as it was: this guard sees nothing")
    if not all(torch.equal(here[i], there[i]) for i in (0, 1)):
        raise Caught("an image's tensor changes with the images of others")


def _load(folder: Path, volumes: Sequence[np.ndarray]) -> Tensor:
    """The training images of an indexed folder, a volume per patient; the last two are for scoring."""
    root, entries = folder / "archive", []
    root.mkdir(parents=True)
    splits = ["train"] * (len(volumes) - 2) + ["val", "test"]
    for number, (voxels, split) in enumerate(zip(volumes, splits, strict=True)):
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), root / f"{number}.nii")
        entries.append(Entry(f"p{number}", number % 2, split, Source("nifti", (f"{number}.nii",))))
    manifest = write_manifest(root, folder / "manifest.json", entries)
    card = load_card("phantom_hospital").model_copy(update={"classes": ("no", "yes"), "modality": "MR"})
    settings = ImageSettings(preset="mr", size=(6, 6, 6), window=(0.0, 200.0))
    return load_splits(card, manifest=manifest, unit="patient", settings=settings)["train"].images


GUARDS: dict[str, Guard] = {
    "sensitivity": sensitivity,
    "sampler": sampler,
    "noise": noise,
    "auditor": auditor,
    "ledger": ledger,
    "structure": structure,
}
