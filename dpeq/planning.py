"""From a configuration to its privacy plan, or to one constant solved for, without loading torch.

``dpeq plan`` answers from here, within a second or two; what a training asks itself
(:func:`dpeq.training.prepare.make_plan`) is the same question.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from dpeq.errors import ConfigError
from dpeq.privacy.plan import PrivacyPlan
from dpeq.privacy.remembered import remembered_plan
from dpeq.privacy.solving import Solution, TradeOff, solve, trade_off

if TYPE_CHECKING:
    from dpeq.config import RunConfig
    from dpeq.data.cards import Card

__all__ = ["Wanted", "constants", "override_of", "plan_of", "solution_of", "trade_offs_of"]

Wanted = Literal["epsilon", "steps", "batch"]
_UNKNOWN = {"epsilon": "epsilon", "steps": "steps", "batch": "expected_batch_size"}


def constants(config: RunConfig, card: Card) -> dict[str, Any]:
    """The public constants that :func:`dpeq.privacy.plan.calibrate` takes; no data set is an argument.

    Raises :class:`ConfigError` when the configuration protects another unit than the card counts and says no number.
    """
    p, unit = config.privacy, config.data.unit or card.unit
    if p.public_units is None and unit != card.unit:
        raise ConfigError(
            f"Card {card.name} publishes a number of {card.unit}s but data.unit is {unit}; "
            f"give privacy.public_units, the published number of training {unit}s."
        )
    return {
        "epsilon": p.epsilon,
        "delta": p.delta,
        "expected_batch_size": p.expected_batch_size,
        "public_units": p.public_units or card.public_units,
        "steps": p.steps,
        "max_grad_norm": p.max_grad_norm,
        "unit": unit,
        "sample_rate": p.sample_rate,
        "views": p.views,
        "clipping": p.clipping,
    }


def _constants(config: RunConfig) -> dict[str, Any]:
    from dpeq.data.cards import load_card

    return constants(config, load_card(config.data.card))


def plan_of(config: RunConfig) -> PrivacyPlan:
    """The plan that a training of ``config`` would rest on."""
    return remembered_plan(**_constants(config))


def solution_of(config: RunConfig, wanted: Wanted, noise_multiplier: float) -> Solution:
    """One constant of ``config`` from the others and a noise multiplier; what ``config`` says of it does not matter.

    "epsilon" is what the training costs; "steps" the most, and "batch" the largest expected batch, that meet
    privacy.epsilon. Raises as :func:`dpeq.privacy.solving.solve`.
    """
    c = _constants(config)
    if wanted == "batch" and c["sample_rate"] is not None:
        raise ConfigError("privacy.sample_rate fixes the rate, whatever the batch; leave it out to solve for a batch.")
    names = ("epsilon", "steps", "expected_batch_size", "delta", "public_units", "sample_rate")
    given = {name: c[name] for name in names if name != _UNKNOWN[wanted]}
    return solve(noise_multiplier=noise_multiplier, **given)


def override_of(solution: Solution) -> str:
    """How a configuration says what was solved for: ``privacy.steps=202``; epsilon is rounded up."""
    if solution.unknown == "epsilon":
        from dpeq.reporting.numbers import round_up

        return f"privacy.epsilon={round_up(solution.epsilon, 3)}"
    return f"privacy.{solution.unknown}={getattr(solution, solution.unknown)}"


def trade_offs_of(config: RunConfig, plan: PrivacyPlan) -> tuple[list[TradeOff], list[TradeOff]]:
    """Around ``plan``, for a quarter to four times its batch and an eighth to four times its steps.

    First epsilon at the plan's noise multiplier, then the noise that keeps the plan's epsilon. Raises
    :class:`ConfigError` for a non-private plan and for a rate of its own, which no batch would change.
    """
    if not plan.private:
        raise ConfigError("A plan without a finite epsilon has no trade-off to draw; set privacy.epsilon.")
    if config.privacy.sample_rate is not None:
        raise ConfigError("privacy.sample_rate fixes the rate, whatever the batch; leave it out to draw a trade-off.")
    batches = {max(1, min(plan.public_units, round(plan.expected_batch_size * f))) for f in (0.25, 0.5, 1, 2, 4)}
    steps = {max(1, round(plan.steps * f)) for f in (0.125, 0.25, 0.5, 1, 2, 4)}
    around: dict[str, Any] = {
        "public_units": plan.public_units,
        "delta": plan.delta,
        "expected_batch_sizes": batches,
        "steps": steps,
    }
    return (
        trade_off(noise_multiplier=plan.noise_multiplier, **around),
        trade_off(epsilon=plan.epsilon_target, **around),
    )
