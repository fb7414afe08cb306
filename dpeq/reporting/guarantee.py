"""The guarantee that was really spent, and what it means: in one sentence, and in several for three readers.

The sentences for readers are those of :mod:`dpeq.privacy.risk_words`; where there is no privacy they say that nothing
is limited.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dpeq.errors import DataError
from dpeq.privacy.accounting import mu_bound, upper_bound
from dpeq.privacy.plan import PrivacyPlan
from dpeq.privacy.risk import Risk
from dpeq.privacy.risk_words import clinician, officer, reviewer
from dpeq.reporting.numbers import round_up, scientific

__all__ = ["REFUTED", "Spent", "readers", "sampling", "spent", "statement"]

_RECOMPUTED = 1e-3  # relative rounding allowed between a plan's epsilon and its recomputation


@dataclass(frozen=True)
class Spent:
    """Privacy loss after ``steps`` of a plan: upper bounds, ``epsilon`` at the plan's delta and ``mu``."""

    steps: int
    epsilon: float
    mu: float | None
    accountant: str
    note: str | None
    complete: bool


def spent(plan: PrivacyPlan, steps: int) -> Spent:
    """What ``steps`` steps of ``plan`` have spent; recomputed by the accountant when fewer than the plan allows.

    Never more than the whole plan costs: spending fewer steps cannot cost more, so the smaller of the two bounds holds.
    """
    complete = steps == plan.steps
    if not plan.private:
        return Spent(steps, math.inf, None, plan.accountant, plan.accountant_note, complete)
    if complete:
        _recompute(plan)
        return Spent(steps, plan.epsilon_spent, plan.mu, plan.accountant, plan.accountant_note, True)
    if steps == 0:
        return Spent(
            0, 0.0, 0.0, plan.accountant, "No step was taken, so nothing of the data went into the model.", False
        )
    epsilon, name, note = upper_bound(plan.sample_rate, plan.noise_multiplier, steps, plan.delta)
    mu = mu_bound(plan.sample_rate, plan.noise_multiplier, steps, plan.delta) if plan.mu is not None else None
    mu = plan.mu if mu is None or plan.mu is None else min(mu, plan.mu)
    if epsilon > plan.epsilon_spent:
        return Spent(steps, plan.epsilon_spent, mu, plan.accountant, plan.accountant_note, False)
    return Spent(steps, epsilon, mu, name, note, False)


def _recompute(plan: PrivacyPlan) -> None:
    """A plan file states its own epsilon; refuse one whose constants cost more than it says."""
    epsilon, name, _ = upper_bound(plan.sample_rate, plan.noise_multiplier, plan.steps, plan.delta)
    if epsilon > plan.epsilon_spent * (1 + _RECOMPUTED):
        raise DataError(
            f"The plan states epsilon {plan.epsilon_spent:.3f} but its constants cost {epsilon:.3f} by {name}; restore "
            "the plan that the run was made with."
        )


REFUTED = "THE GUARANTEE IS FALSE: an audit of this model measured more than it allows."
"""What comes before every sentence of a guarantee that an audit contradicts."""


def statement(plan: PrivacyPlan, loss: Spent, refuted: bool = False) -> str:
    """The guarantee in one sentence; one more before it where an audit of the model has ``refuted`` it."""
    if not plan.private:
        return (
            "This model was trained WITHOUT differential privacy: nothing limits what it may reveal about any "
            f"{plan.unit} it was trained on."
        )
    one = "one patient, with all images of that patient," if plan.unit == "patient" else "one image"
    gaussian = (
        f", and Gaussian differential privacy with μ = {round_up(loss.mu, 3)} (for every δ down to 10⁻¹⁰)"
        if loss.mu is not None
        else ""
    )
    claim = f"{REFUTED} What was claimed, and does not hold: training" if refuted else "Training"
    return (
        f"{claim} satisfies (ε, δ)-differential privacy with ε = {round_up(loss.epsilon, 2)} and "
        f"δ = {scientific(plan.delta)}{gaussian}, for training sets that differ by adding or removing {one} "
        "and for everything that training released: the final weights, their running average and every checkpoint."
    )


def readers(plan: PrivacyPlan, loss: Spent, risk: Risk | None, refuted: bool = False) -> dict[str, list[str]]:
    """What ``risk`` means in sentences for three readers: {"officer", "clinician", "reviewer"}.

    Where an audit has ``refuted`` the guarantee nothing is limited, and no number is given.
    """
    if risk is None:
        return _unlimited(plan)
    if refuted:
        nothing = (
            "No limit can be relied on, and none is given here: find the cause first, and do not release the model."
        )
        return {reader: [REFUTED, nothing] for reader in ("officer", "clinician", "reviewer")}
    said = {"officer": [*officer(risk)], "clinician": [*clinician(risk)], "reviewer": [*reviewer(risk)]}
    if loss.steps == 0:
        nothing = "No step was taken: nothing of the training data went into the weights, and chance is all there is."
        said = {reader: [nothing, *sentences] for reader, sentences in said.items()}
    return said


def _unlimited(plan: PrivacyPlan) -> dict[str, list[str]]:
    """For a run without privacy: no number is given, because there is none."""
    whole = "a patient, or any image of that patient," if plan.unit == "patient" else "an image"
    return {
        "officer": [
            f"Nothing limits what this model gives away about {whole} that it was trained on: no noise was added.",
            f"Somebody who has the model may be able to tell with certainty whether {whole} was in the training set.",
            "Treat the model as you treat the training data themselves.",
        ],
        "clinician": [
            "Nothing limits how well training images can be reconstructed from this model.",
            "Whether anybody could do so is not known; no guarantee says that nobody can.",
        ],
        "reviewer": [
            "The noise multiplier is 0, so epsilon is infinite at every delta below 1.",
            "The trivial bounds are all there are: a hit rate of 1 at a false alarm rate of 0, an advantage of 1, and "
            "reconstruction with probability 1 at every base rate.",
        ],
    }


def sampling(plan: PrivacyPlan, rng: str) -> dict[str, str]:
    """How units were drawn, and how the accountants take it that they were."""
    rate = f"probability q = {plan.sample_rate:.6g}"
    coins = "a generator with a fixed seed" if rng == "seeded" else "a key of the operating system's randomness"
    return {
        "run": (
            f"Poisson sampling over {plan.unit}s: in every step each {plan.unit} enters on its own with {rate}, by a "
            f"coin of its own from ChaCha20 under {coins}. The size of a batch is therefore random, and an empty batch "
            "counts as a step; nothing is shuffled or drawn to a fixed size."
        ),
        "accounted": (
            f"{plan.steps:,} Poisson-subsampled Gaussian mechanisms, each with {rate} per {plan.unit}, for adding or "
            f"removing one {plan.unit}, whichever costs more: what was run. Sampler and accountants read the rate from "
            "one frozen plan, whose hash the ledger's first line holds, and a step beyond the plan is refused."
            if plan.private
            else "Nothing: without noise there is no privacy loss to account for."
        ),
    }
