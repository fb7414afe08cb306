"""What a sweep will cost, before it costs it: the plans of its cells, epsilon of all together, and time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dpeq.planning import plan_of
from dpeq.privacy import accounting
from dpeq.privacy.composition import Part, compose
from dpeq.privacy.plan import PrivacyPlan
from dpeq.reporting.numbers import round_up, scientific
from dpeq.sweep.grid import Cell
from dpeq.training.prepare import Prepared

__all__ = ["plans_of", "price_of", "seconds_of"]


def plans_of(cells: Sequence[Cell]) -> dict[str, PrivacyPlan]:
    """The plan of every cell, by name; cells of equal constants share theirs. Raises as calibrating does."""
    plans: dict[str, PrivacyPlan] = {}
    known: dict[str, PrivacyPlan] = {}
    with accounting.session("pld", "prv", "rdp"):
        for cell in cells:
            constants = repr((cell.config.privacy, cell.config.data.card, cell.config.data.unit))
            if constants not in known:
                known[constants] = plan_of(cell.config)
            plans[cell.name] = known[constants]
    return plans


def price_of(
    plans: Sequence[PrivacyPlan],
    besides: Sequence[PrivacyPlan] = (),
    audits: Sequence[PrivacyPlan] = (),
    *,
    seeded: bool = False,
) -> str:
    """What all of them spend together, in words.

    ``plans`` are of the cells, ``besides`` of runs on the same data that are none, ``audits`` of trainings that audits
    of any of them took: they have spent, too. ``seeded`` cells have seeds that anybody can guess.
    """
    private, others, audited = ([plan for plan in some if plan.private] for some in (plans, besides, audits))
    n, open_, k = len(private), len(plans) - len(private), len(others)
    told = [] if n else ["No cell is private: nothing limits what these runs reveal."]
    if n or k:
        together = [*private, *others, *audited]
        delta = min(plan.delta for plan in together)
        total = compose([Part(plan.sample_rate, plan.noise_multiplier, plan.steps) for plan in together], delta)
        cells = f"Repetitions are not free: all {n} private cells" if n > 1 else "The one private cell" if n else ""
        runs = f"{k} private run{'s' if k > 1 else ''} that lie{'s' if k == 1 else ''} in the folder besides"
        who = f"{cells}, and {runs}," if n and k else cells or f"But the {runs}"
        if audited:
            who += f" with {len(audited)} training{'s' if len(audited) > 1 else ''} for audits"
        told.append(
            f"{who} {'together spend' if n + k > 1 else 'spends'} at most epsilon {round_up(total.epsilon)} at delta "
            f"{scientific(delta)} per {together[0].unit}."
        )
        if together[0].unit == "image":
            told.append("A patient with several images is protected less; data.unit=patient protects patients.")
    if seeded and n:
        told.append("The seeds are 0, 1, 2 and so on: there is no guarantee against anybody who guesses that.")
    if n and open_:
        told.append(f"NON-PRIVATE cells, which have no limit: {open_}.")
    return " ".join(told)


def seconds_of(
    cells: Sequence[Cell], prepared: Mapping[str, Prepared], plans: Mapping[str, PrivacyPlan], threads: int
) -> dict[str, float]:
    """Seconds of training that each of ``cells`` takes, by name, with so many threads; each network is timed once."""
    import torch

    from dpeq.models.registry import build_model
    from dpeq.training.estimate import estimate_seconds
    from dpeq.training.prepare import choose_device

    torch.set_num_threads(threads)
    seconds: dict[str, float] = {}
    for cell in cells:
        if cell.model in seconds:
            continue
        known, training = prepared[cell.model], cell.config.training
        model = build_model(known.spec, known.shape[0], len(known.card.classes), seed=0)
        taken = estimate_seconds(
            model,
            known.shape,
            plans[cell.name],
            physical_units=training.physical_units,
            device=choose_device(training.device),
        )
        seconds[cell.model] = taken
    return {cell.name: seconds[cell.model] for cell in cells}
