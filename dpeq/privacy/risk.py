"""What a privacy budget means for somebody who attacks the model: one :class:`Risk` per plan, in numbers.

Every number is an upper bound for the strongest attacker there is: one who knows the rest of the data, sees everything
training released and computes without limit. The bounds come from the whole privacy profile (dp-accounting's, rounded
pessimistically, the worse of adding and removing), which says more than one pair (epsilon, delta); how, and by which
papers, stands in :mod:`dpeq.privacy.tradeoff`. :mod:`dpeq.privacy.risk_words` puts a Risk into sentences.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from dpeq.errors import ConfigError
from dpeq.privacy import accounting
from dpeq.privacy._session import AccountingError, ask
from dpeq.privacy.plan import PrivacyPlan, Unit
from dpeq.privacy.tradeoff import Profile, gaussian_profile

__all__ = ["Mechanism", "Posterior", "Risk", "assess", "assess_epsilon", "assess_gaussian", "assess_runs"]

FALSE_ALARMS = (0.001, 0.01, 0.05)
BASE_RATES = (0.001, 0.01, 0.1)
PRIORS = (0.01, 0.1, 0.5)
EXCEPTION = 0.01
"""Probability, over the randomness of training, with which a belief may grow beyond the stated posterior."""

FLAGGED_FALSE_ALARMS = 0.01
"""False alarm rate of the test behind :attr:`Posterior.flagged`."""

Basis = Literal["profile", "mu", "epsilon"]


class Mechanism(NamedTuple):
    """``steps`` Poisson-subsampled Gaussian mechanisms: sampling rate and noise multiplier of each."""

    sample_rate: float
    noise_multiplier: float
    steps: int


class Rate(NamedTuple):
    """A test's false alarm rate and the largest hit rate that goes with it."""

    false_alarms: float
    hits: float


class Reconstruction(NamedTuple):
    """Chance to reconstruct a unit without its data, and the largest chance with what training released."""

    base_rate: float
    success: float


@dataclass(frozen=True)
class Posterior:
    """What becomes at most of the belief ``prior`` that a unit was in the training set.

    ``usually`` is not exceeded but with probability ``exception`` (over the randomness of training), ``hardly_ever``
    not but with probability delta. ``from_epsilon`` is ``usually`` as (epsilon, delta) alone would have it.
    ``flagged`` is the largest probability that a test with false alarm rate 0.01 is right when it names the unit a
    member. ``best_guess`` is the largest probability that one guess, in or not in, is right.
    """

    prior: float
    exception: float
    usually: float
    hardly_ever: float
    from_epsilon: float
    flagged: float
    best_guess: float


@dataclass(frozen=True)
class Risk:
    """Upper bounds on an attacker's success against one ``unit``, for what ``runs`` released together.

    With ``group`` above 1 they are bounds for that many units at once, all in or all out (the images of one patient).
    ``basis`` names what they rest on: the privacy "profile", Gaussian DP ("mu"), or one pair ("epsilon"); ``note`` is
    None or one sentence that says why not the profile. ``epsilon`` is read off the same source at ``delta``. ``mu`` is
    the Gaussian-DP summary, ``regret`` how much it overstates the profile (:meth:`Profile.regret`); None where there
    is no profile or no mu. ``advantage`` is the largest hit rate minus false alarm rate. ``profile`` lists
    (epsilon, delta), ``trade_off`` (false alarm rate, least rate of misses), both for drawing.
    """

    unit: Unit
    group: int
    delta: float
    epsilon: float
    basis: Basis
    note: str | None
    runs: tuple[Mechanism, ...]
    mu: float | None
    regret: float | None
    advantage: float
    hit_rates: tuple[Rate, ...]
    reconstructions: tuple[Reconstruction, ...]
    posteriors: tuple[Posterior, ...]
    profile: tuple[tuple[float, float], ...]
    trade_off: tuple[tuple[float, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values; infinity is the string "inf", curves are lists of pairs."""
        plain = asdict(self)
        plain["epsilon"] = "inf" if math.isinf(self.epsilon) else self.epsilon
        plain["runs"] = [run._asdict() for run in self.runs]
        plain["hit_rates"] = [rate._asdict() for rate in self.hit_rates]
        plain["reconstructions"] = [row._asdict() for row in self.reconstructions]
        plain["posteriors"] = [asdict(row) for row in self.posteriors]
        plain["profile"] = [list(point) for point in self.profile]
        plain["trade_off"] = [list(point) for point in self.trade_off]
        return plain


def assess(plan: PrivacyPlan, steps: int | None = None, *, group: int = 1) -> Risk | None:
    """The risk after ``steps`` of the plan (all of them by default); None for a non-private plan: nothing bounds it.

    ``group`` units may come or go together. Where dp-accounting gives no profile for one unit, the plan's own epsilon
    stands in, and ``note`` says so. Raises :class:`ConfigError` for steps that the plan does not have,
    :class:`~dpeq.privacy.accounting.AccountingError` when a group's profile is not to be had.
    """
    steps = plan.steps if steps is None else steps
    if not 0 <= steps <= plan.steps:
        raise ConfigError(f"The plan has no step {steps}; ask for one from 0 to {plan.steps}.")
    if not plan.private:
        return None
    run = Mechanism(plan.sample_rate, plan.noise_multiplier, steps)
    mu = plan.mu if steps == plan.steps and group == 1 else None
    try:
        return assess_runs([run], plan.delta, plan.unit, group=group, mu=mu)
    except AccountingError as error:
        if group != 1:
            raise
        note = f"dp-accounting gave no privacy profile ({error}), so these bounds rest on epsilon and delta alone."
        # The whole plan's epsilon bounds any part of it.
        return assess_epsilon(plan.epsilon_spent, plan.delta, plan.unit, runs=(run,), note=note)


def assess_runs(
    runs: Sequence[Mechanism], delta: float, unit: Unit, *, group: int = 1, mu: float | None = None
) -> Risk:
    """The risk of several runs on the same data together, sizes and noise as they like.

    ``group`` units may come or go together. ``mu`` is a Gaussian-DP bound known already (a plan's); by default it is
    fitted to the profile, exact where nothing is subsampled. Raises :class:`ConfigError` for impossible constants and
    for noise 0, :class:`~dpeq.privacy.accounting.AccountingError` when dp-accounting gives no profile.
    """
    runs = tuple(Mechanism(*run) for run in runs)
    for run in runs:
        _check(run)
    runs = tuple(run for run in runs if run.steps)
    _check_delta(delta)
    if group < 1 or group != int(group):
        raise ConfigError(f"The group has {group} units; give a whole number above 0.")
    if all(run.sample_rate == 1.0 for run in runs):  # Gaussian mechanisms are together exactly one
        whole = group * math.sqrt(sum(run.steps / run.noise_multiplier**2 for run in runs))
        return assess_gaussian(whole, delta, unit, group=group, runs=runs)
    profile, fitted = _profile(runs, delta, group)
    mu = fitted if mu is None else mu
    return _collect(profile, unit=unit, group=group, delta=delta, basis="profile", note=None, runs=runs, mu=mu)


def assess_gaussian(mu: float, delta: float, unit: Unit, *, group: int = 1, runs: tuple[Mechanism, ...] = ()) -> Risk:
    """The risk of anything that is mu-Gaussian differentially private for the whole ``group``."""
    _check_delta(delta)
    profile = gaussian_profile(mu, min(accounting.DELTA_FLOOR, delta / 10.0))
    return _collect(profile, unit=unit, group=group, delta=delta, basis="mu", note=None, runs=runs, mu=mu)


def assess_epsilon(
    epsilon: float, delta: float, unit: Unit, *, runs: tuple[Mechanism, ...] = (), note: str | None = None
) -> Risk:
    """The risk when one pair (epsilon, delta) is all that is known: sound, but much worse than a profile's."""
    _check_delta(delta)
    if not (epsilon >= 0 and math.isfinite(epsilon)):
        raise ConfigError(f"Epsilon is {epsilon}; give a finite number that is not negative.")
    # Beyond 600 the exponential is no number, and no bound is left: that is what the pair (600, 1) says.
    profile = Profile([epsilon], [delta]) if epsilon <= 600.0 else Profile([600.0], [1.0])
    return _collect(profile, unit=unit, group=1, delta=delta, basis="epsilon", note=note, runs=runs, mu=None)


def _check(run: Mechanism) -> None:
    q, sigma, steps = run
    if not 0 < q <= 1:
        raise ConfigError(f"The sampling rate is {q}; give a rate above 0 and at most 1.")
    if not (0 < sigma < math.inf):
        raise ConfigError(f"The noise multiplier is {sigma}; without finite noise above 0 nothing bounds an attacker.")
    if steps < 0 or steps != int(steps):
        raise ConfigError(f"The number of steps is {steps}; give a whole number.")


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ConfigError(f"Delta is {delta}; give a number between 0 and 1.")


@functools.lru_cache(maxsize=64)
def _profile(runs: tuple[Mechanism, ...], delta: float, group: int = 1) -> tuple[Profile, float | None]:
    """dp-accounting's profile, and the mu that dominates it (as :func:`dpeq.privacy.accounting.gdp_mu` means it)."""
    floor = min(accounting.DELTA_FLOOR, delta / 10.0)
    answer = ask("pld", "profile", parts=[list(run) for run in runs], delta=delta, floor=floor, group=group)
    try:
        return Profile(answer["epsilon"], answer["delta"]), answer["mu"]
    except ConfigError as error:
        raise AccountingError(f"its privacy profile contradicts itself ({error})") from error


def _collect(
    profile: Profile,
    *,
    unit: Unit,
    group: int,
    delta: float,
    basis: Basis,
    note: str | None,
    runs: tuple[Mechanism, ...],
    mu: float | None,
) -> Risk:
    epsilon = profile.epsilon_at(delta)
    pair = Profile([epsilon], [delta]) if math.isfinite(epsilon) else None
    return Risk(
        unit=unit,
        group=group,
        delta=delta,
        epsilon=epsilon,
        basis=basis,
        note=note,
        runs=runs,
        mu=mu,
        regret=None if mu is None or basis == "epsilon" else profile.regret(mu),
        advantage=profile.advantage,
        hit_rates=tuple(Rate(a, profile.hit_rate(a)) for a in FALSE_ALARMS),
        reconstructions=tuple(Reconstruction(k, profile.reconstruction(k)) for k in BASE_RATES),
        posteriors=tuple(
            Posterior(
                prior=prior,
                exception=EXCEPTION,
                usually=profile.posterior(prior, EXCEPTION),
                hardly_ever=profile.posterior(prior, delta),
                from_epsilon=1.0 if pair is None else pair.posterior(prior, EXCEPTION),
                flagged=profile.posterior_of_flagged(prior, FLAGGED_FALSE_ALARMS),
                best_guess=profile.best_guess(prior),
            )
            for prior in PRIORS
        ),
        profile=_thinned(profile),
        trade_off=tuple((float(a), 1.0 - profile.hit_rate(float(a))) for a in _drawn_rates()),
    )


def _thinned(profile: Profile, points: int = 60) -> tuple[tuple[float, float], ...]:
    count = len(profile.epsilon)
    kept = np.unique(np.linspace(0, count - 1, min(points, count)).round().astype(int))
    return tuple((float(profile.epsilon[i]), float(profile.delta[i])) for i in kept)


def _drawn_rates() -> list[float]:
    """False alarm rates dense at both ends: a curve drawn on a straight or on a logarithmic axis is smooth."""
    small = [float(x) for x in np.logspace(-5, -1, 33)]
    middle = [float(x) for x in np.linspace(0.1, 0.9, 33)[1:-1]]
    return [0.0, *small, *middle, *(1.0 - x for x in reversed(small)), 1.0]
