"""What several runs show, in plain sentences that say no more than the runs do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dpeq.reporting.numbers import round_up, scientific

__all__ = ["TITLES", "interval_words", "price_sentence", "privacy_sentences", "scope_sentences", "signed"]

TITLES = {
    "auc": "AUC",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "average_precision": "average precision",
    "ece": "calibration error (ECE)",
}


def price_sentence(price: Mapping[str, Any]) -> str:
    """What privacy costs one network at one epsilon, by one score."""
    score, model, open_ = TITLES[price["score"]], price["model"], price["open"]
    if open_ is None:
        return (
            f"At ε = {price['epsilon']:g} the {model} reaches {_mean(price['ours'], score)}; no run of the same "
            "network without privacy is among these, so what privacy costs it cannot be said."
        )
    both = (
        f"At ε = {price['epsilon']:g} the {model} reaches {_mean(price['ours'], score)}; the same network without "
        f"privacy {_mean(open_, score)}; "
    )
    cost = price["cost"]
    away = f"{abs(cost['mean']):.3f} {score} {'lower' if cost['mean'] >= 0 else 'higher'}"
    if cost["low"] is None:
        if min(price["ours"]["n"], open_["n"]) < 2:
            luck = "without repetitions of both, nothing says how much of that is luck."
        else:
            luck = "the repetitions do not differ at all, so no interval can be given."
        return f"{both}with privacy it is {away}, and {luck}"
    interval = f"(95 % interval {signed(cost['low'])} to {signed(cost['high'])})"
    if cost["low"] > 0:
        return f"{both}privacy costs {cost['mean']:.3f} {score} {interval}."
    if cost["high"] < 0:
        return f"{both}with privacy it is {away}: privacy costs {signed(cost['mean'])} {score} {interval}."
    return (
        f"{both}with privacy it is {away}, but the cost {interval} may as well be nothing: these runs do not show that "
        "privacy costs anything here, nor that it costs nothing."
    )


def privacy_sentences(privacy: Mapping[str, Any]) -> list[str]:
    """What all runs together give away, and what that rests on."""
    unit, told = privacy["unit"], []
    n, m = privacy["private_runs"], privacy["open_runs"]
    if refuted := privacy["refuted_runs"]:
        told.append(
            f"THE GUARANTEE IS FALSE of {', '.join(refuted)}: an audit measured more than it allows. Do not release "
            "what was trained so. Whatever is wrong may be wrong in the other runs too, and no figure below can be "
            "relied on until the cause is found."
        )
    if n:
        unfinished, trainings = privacy["unfinished_private_runs"], privacy["audit_trainings"]
        whole = f" ({_count(unfinished, 'unfinished one')} counted with the whole plan)" if unfinished else ""
        whole += f" with {_count(trainings, 'training')} for audits" if trainings else ""
        one = "one patient, with all images of that patient" if unit == "patient" else "one image"
        spent = f"ε = {round_up(privacy['epsilon'], 2)}"
        at = f"at δ = {scientific(privacy['delta'])} for {one}."
        satisfy, has = ("were claimed to satisfy", "was claimed to have") if refuted else ("satisfy", "has")
        told.append(
            f"{_count(n, 'private run')}{whole}, taken together, {satisfy} (ε, δ)-differential privacy with {spent} "
            f"{at}"
            if n > 1
            else f"The one private run{whole} {has} spent {spent} {at}"
        )
        if trainings:
            told.append(
                "A training for an audit is one more training on the same data under its run's plan, and is counted "
                "with the whole plan, finished or not."
            )
        if unit == "image":
            told.append(
                "One image is protected, not one patient: somebody with several images in the data is protected less "
                "than the figures for one image say. How much less in one run, 'dpeq report RUN --images-per-patient "
                "K' works out; choose the patient as the unit to protect persons."
            )
        if unfinished:
            told.append(
                "The steps that a run took until it was stopped bound nothing by themselves, for its results may have "
                "decided when it was stopped; what the table below gives as spent holds where they did not."
            )
        if len(privacy["deltas"]) > 1:
            listed = ", ".join(scientific(delta) for delta in privacy["deltas"])
            told.append(f"The runs were planned at different δ ({listed}); the total is stated at the smallest.")
        if n + trainings > 1:
            told.append(
                "This holds where the constants of all runs were fixed before anybody saw a result of the first, as in "
                "a grid that was listed in advance; where results decided what was run next, it does not. "
                + _where_results_decided(privacy["rdp"])
            )
            told.append(
                "It is spent whether or not all models are released: who looks at all runs and releases the best has "
                "spent it all. Every further run on the same data adds to it."
            )
        if privacy["accountant_note"]:
            told.append(privacy["accountant_note"])
    if m:
        told.append(
            f"{_count(m, 'run')} without privacy: {'it carries' if m == 1 else 'they carry'} no guarantee, and nothing "
            "limits what a model or a score of such a run tells. Whatever is published together with them, this page "
            "included, has no guarantee as a whole; the total above is for the private runs alone."
        )
    if privacy["seeded_runs"]:
        told.append(
            f"{_count(privacy['seeded_runs'], 'private run')} with a seed: against readers who know or guess a seed "
            "there is no guarantee, because the noise can be computed from it; the figures above hold against all "
            "others. Such runs are for experiments, not for release."
        )
    told.append("Scores are computed from test cases, which no guarantee covers.")
    return told


def _where_results_decided(rdp: float | None) -> str:
    """A Renyi filter proves the total that it was set to in advance, and never the sum that came out."""
    if rdp is None:
        return "No figure here holds then."
    return (
        f"Only a Rényi total of at least ε = {round_up(rdp, 2)} that was fixed in advance may be quoted then; if none "
        "was, no figure here holds."
    )


def scope_sentences(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the intervals are, and what they are not."""
    n = next(row["n"] for row in rows if row["n"] is not None)
    told = [
        f"All runs are scored on the same {n:,} test cases. Intervals are 95 % Student t intervals over repetitions of "
        "the training, differences have Welch's: they speak of the luck of training, not of the choice of test cases, "
        "whose intervals stand in each run's own report. Each is at 95 % by itself, not all of them together.",
        "A run without privacy is the same training without noise; its gradients are clipped alike.",
    ]
    unfinished, failed = (sum(row["state"] == state for row in rows) for state in ("unfinished", "failed"))
    if unfinished:
        told.append(f"{_count(unfinished, 'run')} unfinished: listed with what was spent, and in no mean.")
    if failed:
        told.append(
            f"{_count(failed, 'run')} failed: all steps are spent, but there are no scores. Means are of the runs that "
            "could be scored; if it was a run's result that it could not be, they are better than the training is."
        )
    return told


def signed(value: float) -> str:
    """Three digits with a true minus sign."""
    return f"{value:.3f}".replace("-", "−")


def interval_words(mean: Mapping[str, Any]) -> str:
    """A mean with its interval, where there is one: '0.934 (0.912 to 0.951)'."""
    if mean["low"] is None:
        return f"{mean['mean']:.3f}"
    return f"{mean['mean']:.3f} ({mean['low']:.3f} to {mean['high']:.3f})"


def _mean(cell: Mapping[str, Any], score: str) -> str:
    if cell["low"] is not None:
        interval = f"95 % interval {cell['low']:.3f} to {cell['high']:.3f}, {cell['n']} runs"
        return f"a mean {score} of {cell['mean']:.3f} ({interval})"
    runs = "a single run" if cell["n"] == 1 else f"{cell['n']} runs, all equal"
    return f"{'an' if score[0] in 'aeiA' else 'a'} {score} of {cell['mean']:.3f} ({runs})"


def _count(n: int, what: str) -> str:
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
    many = what if n == 1 else f"{what}s"
    told = f"{words[n] if n < len(words) else f'{n:,}'} {many}"
    return told[0].upper() + told[1:] if what in ("run", "private run") else told
