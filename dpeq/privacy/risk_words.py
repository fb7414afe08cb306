"""A :class:`~dpeq.privacy.risk.Risk` in sentences for three readers. Bounds are rounded up: what is said is true."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, Decimal

from dpeq.privacy.risk import FLAGGED_FALSE_ALARMS, Posterior, Risk

__all__ = ["clinician", "officer", "percent_up", "reviewer"]

_NBSP = "\N{NO-BREAK SPACE}"


def percent_up(share: float) -> str:
    """A bound on a share, rounded up: two decimals up to 1 %, else one; never above 100 %.

    >>> percent_up(0.00101), percent_up(0.2341)
    ('0.11\\xa0%', '23.5\\xa0%')
    """
    value = min(100.0 * share, 100.0)
    places = "0.01" if value <= 1.0 else "0.1"
    # 12 significant digits first, so that 10.000000000000002 (rounding noise of float arithmetic) stays 10.
    exact = Decimal(f"{value:.12g}").quantize(Decimal(places), ROUND_CEILING).normalize()
    return f"{exact:f}{_NBSP}%"


def officer(risk: Risk) -> tuple[str, ...]:
    """For somebody who decides whether the model may leave the house."""
    unit = _unit(risk)
    whole = f"{unit}, with all images of that patient" if unit == "a patient" else unit
    hit, even = risk.hit_rates[0], _posterior(risk, 0.5)
    sentences = [
        f"These figures bound what training gives away about {whole}, to somebody who knows all other training data, "
        "has every weight and checkpoint that training released, and can compute without limit; nobody can do better."
    ]
    test = f"A test that names {unit} from outside the training set by mistake with probability {_in(hit.false_alarms)}"
    if _all(hit.hits):
        sentences.append(f"{test} may never miss one inside it, as far as this guarantee goes.")
    else:
        sentences.append(
            f"{test} names one from inside it with probability at most {percent_up(hit.hits)}; pure chance would do so "
            f"with {percent_up(hit.false_alarms)}."
        )
    guess = f"A guess, in or not in, about {unit} that was as likely the one as the other"
    if _all(even.best_guess):
        sentences.append(f"{guess} may always be right, as far as this guarantee goes.")
    else:
        sentences.append(
            f"{guess} is right with probability at most {percent_up(even.best_guess)}; a coin is with 50{_NBSP}%."
        )
    sentences += [_belief(risk, row) for row in risk.posteriors]
    if risk.unit == "image" and risk.group == 1:
        sentences.append("A patient with several images in the training set is protected less than these figures say.")
    sentences.append(
        "The figures hold whatever else is known or becomes known; they cover this training, not other releases from "
        "the same data, and they keep nobody from learning what is true of patients in general."
    )
    return tuple(sentences)


def clinician(risk: Risk) -> tuple[str, ...]:
    """For somebody who answers for the patients whose images were used."""
    thing = "the images of a patient" if _unit(risk) == "a patient" else _unit(risk)
    sentences = []
    for row in risk.reconstructions:
        known = f"Somebody who could reconstruct {thing} with probability {percent_up(row.base_rate)} without the model"
        if _all(row.success):
            sentences.append(f"{known} may always succeed with it, as far as this guarantee goes.")
        else:
            sentences.append(f"{known} succeeds with it with probability at most {percent_up(row.success)}.")
    rare = _posterior(risk, 0.01)
    named = f"When {_unit(risk)} was in the training set with probability {percent_up(rare.prior)}, and a test with "
    named += f"{percent_up(FLAGGED_FALSE_ALARMS)} false alarms says that it was"
    if _all(rare.flagged):
        sentences.append(f"{named}, the test may always be right, as far as this guarantee goes.")
    else:
        sentences.append(f"{named}, the test is right with probability at most {percent_up(rare.flagged)}.")
    return tuple(sentences)


def reviewer(risk: Risk) -> tuple[str, ...]:
    """For somebody who wants to recompute the figures."""
    source = {
        "profile": "the whole privacy profile δ(ε), from dp-accounting's privacy loss distribution (pessimistic)",
        "mu": "the privacy profile δ(ε) of a Gaussian mechanism, in closed form",
        "epsilon": "the pair (ε, δ) alone",
    }[risk.basis]
    sentences = [
        f"The bounds rest on {source}, for {_unit(risk)} added or removed, whichever is worse.",
        "A test with false alarm rate a hits at most the least, over ε, of e^ε a + δ(ε) and 1 − e^−ε (1 − δ(ε) − a); "
        "the reconstruction bound is the same function at the base rate.",
        f"The advantage (hit rate minus false alarm rate) is at most {_number_up(risk.advantage, 4)}.",
    ]
    if risk.mu is not None and risk.regret is not None:
        reach = " wherever δ is at least 10⁻¹⁰" if risk.basis == "profile" else ""
        sentences.append(
            f"μ-Gaussian differential privacy holds with μ = {_number_up(risk.mu, 3)}{reach}; read as a summary of the "
            f"profile, it understates an attacker's error by at most {_number_up(risk.regret, 4)} (its regret)."
        )
    if risk.note is not None:
        sentences.append(risk.note)
    return tuple(sentences)


def _belief(risk: Risk, row: Posterior) -> str:
    before = f"Somebody who gave {_unit(risk)} a chance of {percent_up(row.prior)} to be in the training set"
    if _all(row.usually):
        return f"{before} may be certain of it after training, as far as this guarantee goes."
    return (
        f"{before} is at most {percent_up(row.usually)} sure of it after training, except in at most "
        f"{_in(row.exception)} trainings."
    )


def _all(share: float) -> bool:
    """Whether the bound reads 100 %: then the reader must hear that nothing is promised, not a number."""
    return percent_up(share).startswith("100")


def _unit(risk: Risk) -> str:
    if risk.group > 1:
        return f"a group of {risk.group:,} {risk.unit}s"
    return "a patient" if risk.unit == "patient" else "an image"


def _posterior(risk: Risk, prior: float) -> Posterior:
    return next(row for row in risk.posteriors if row.prior == prior)


def _in(share: float) -> str:
    return f"1 in {round(1.0 / share):,}"


def _number_up(value: float, digits: int) -> str:
    scale = 10.0**digits
    return f"{math.ceil(value * scale - 1e-9) / scale:.{digits}f}"
