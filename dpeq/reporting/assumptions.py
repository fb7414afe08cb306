"""What the guarantee rests on, what it does not cover, and what about this very run needs a reader's attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from dpeq.privacy.audit.membership import RATES
from dpeq.privacy.plan import PrivacyPlan
from dpeq.reporting.audit import refutation
from dpeq.reporting.audit_form import hits_above_limit, is_hidden, is_release
from dpeq.reporting.numbers import percent_down, percent_up

__all__ = ["list_assumptions"]

Kind = Literal["attention", "assumption", "not_covered"]


def list_assumptions(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """Entries ``{"kind", "title", "text"}``, the ones that need attention first, for a report without them.

    They follow from the report's other entries alone, so a check can write them again.
    """
    plan = PrivacyPlan.from_dict(report["plan"])
    shown = (
        "Images of people are shown",
        "This report was asked to show images of the test split. The guarantee does not cover them, and they may "
        "identify people: pass it on only where the images themselves may go.",
    )
    entries: list[tuple[Kind, str, str]] = [
        *_attention(report, plan),
        *([("attention", *shown)] if report["images"] is not None else ()),
        *(("attention", *entry) for entry in _looked(report["audits"], plan)),
        *(_assumptions(report, plan) if plan.private else ()),
        *_not_covered(report, plan),
    ]
    return [{"kind": kind, "title": title, "text": text} for kind, title, text in entries]


def _attention(report: Mapping[str, Any], plan: PrivacyPlan) -> list[tuple[Kind, str, str]]:
    guarantee, run, group = report["guarantee"], report["provenance"], report["group_risk"]
    steps, audited = guarantee["steps"], refutation(report)
    found: list[tuple[str, str]] = []
    if audited is not None:
        found.append(
            (
                "THE GUARANTEE IS FALSE",
                f"{audited} Both cannot be true: the training, or the program, does not do what the guarantee rests "
                "on. Do not release this model, do not rely on any figure of this report, and find the cause first.",
            )
        )
    if plan.private and (above := _above_the_limit(report["audits"])):
        found.append(("An attack hit more often than the plan allows", above))
    if not plan.private:
        found.append(
            ("No guarantee", "No noise was added. The model may repeat details of single patients; do not release it.")
        )
    if run["rng"] == "seeded" and plan.private:
        found.append(
            (
                "Noise from a fixed seed",
                "Sampling and noise came from a seeded generator. Whoever knows or guesses the seed can subtract the "
                "noise, so this run is for experiments only; train again with the operating system's randomness "
                "before releasing a model.",
            )
        )
    if run["log_private_metrics"]:
        found.append(
            (
                "Private quantities were logged",
                f"Training loss, gradient norm, clipped fraction, number of sampled {plan.unit}s and of gradients that "
                "are not finite were computed from the private data in every step. No noise covers them and neither "
                "does the guarantee. They were shown where the run was started and lie in "
                f"{_places(run)}; let none of that leave the house.",
            )
        )
    if guarantee["accountant_note"]:
        found.append(("Accountant", guarantee["accountant_note"]))
    if run.get("stopped"):
        found.append(("Stopped early", f"Training ended before its last step: {run['stopped']}."))
    if plan.private and not guarantee["complete"]:
        found.append(
            (
                "Fewer steps than planned",
                f"The ledger shows {steps:,} of {plan.steps:,} steps. The guarantee is stated for the steps that "
                "were spent.",
            )
        )
    if run.get("resumed"):
        times = "once" if run["resumed"] == 1 else f"{run['resumed']:,} times"
        lost = run.get("steps_lost", 0)
        fate = (
            f"{lost:,} of its steps were spent and went into no weight: training was poorer for them, and the "
            "guarantee counts them."
            if lost
            else "No step was lost; steps that a seeded run repeats are the same releases and are counted once."
        )
        found.append(("The run was interrupted", f"It was resumed {times}. {fate}"))
    if torn := report["ledger"]["torn"]:
        found.append(
            (
                "Torn last line in the ledger",
                f"{torn} Lines are written before the step they announce, so no step can have been "
                "taken without one; all other lines are intact.",
            )
        )
    if plan.unit == "image" and plan.private:
        found.append(
            (
                "One image is protected, not one patient",
                "Somebody with several images in the data is protected less than the figures for one image say. "
                + (
                    f"What holds for {group['group']:,} images of one patient is stated beside them"
                    if group is not None
                    else "How much less, 'dpeq report RUN --images-per-patient K' works out for the most images that "
                    "one patient has"
                )
                + "; choose the patient as the unit to protect persons. The intervals of the scores treat images as "
                "independent.",
            )
        )
    test = report["utility"]
    if test.get("absent_classes"):
        found.append(
            (
                "Classes without a test case",
                f"Nothing is known about the model's answers for {', '.join(test['absent_classes'])}: the test set "
                "has no such case.",
            )
        )
    if any(test[key]["low"] == test[key]["high"] for key in ("auc", "accuracy")):
        found.append(
            (
                "An interval has collapsed",
                "A score that is the same in every resample (0 or 1, or one answer to all cases) has an interval that "
                "looks certain and is not.",
            )
        )
    found.extend(("Warning of the run", str(text)) for text in run.get("warnings", ()))
    return [("attention", title, text) for title, text in found]


def _above_the_limit(audits: Sequence[Mapping[str, Any]]) -> str | None:
    """Hit rates are each tested by themselves, and units of one training are not quite independent: no refutation."""
    shown = [audit for audit in audits if not is_hidden(audit)]
    found = [
        f"{percent_down(row['low'])} at least at {percent_up(row['false_alarms_high'], 2)} false alarms "
        f"({audit['name']}), where {percent_up(row['allowed'])} are allowed "
        f"{'a step' if audit['attack']['of'] == 'step' else 'the training'}"
        for audit in shown
        for row in audit["attack"]["hit_rates"]
        if row["contradicts"]
    ]
    above = [audit for audit in audits if hits_above_limit(audit)]
    if not above:
        return None
    found += [f"the attack {audit['name']}, whose figures are left out here" for audit in above if is_hidden(audit)]
    tested = sum(len(RATES) if is_hidden(audit) else len(audit["attack"]["hit_rates"]) for audit in audits)
    related = (
        "Those that were judged in one training are not quite independent of each other, so that this is no proof. "
        if any(is_hidden(audit) or audit["attack"]["of"] == "training" for audit in above)
        else ""
    )
    return (
        f"Hits above their limit: {'; '.join(found)}. {related}{tested} hit rates were tested, each with a confidence "
        "of its own, so one that lies above may also be bad luck. Audit again before this model is released; if it "
        "happens again, look for the cause."
    )


def _places(run: Mapping[str, Any]) -> str:
    """Where private quantities lie: what trackers wrote, and whatever kept the output of the run."""
    return ", ".join([*map(str, run.get("tracking", ())), "any file that its output went to"])


def _assumptions(report: Mapping[str, Any], plan: PrivacyPlan) -> list[tuple[Kind, str, str]]:
    found = [
        (
            "The data holder is trusted",
            "Central model: raw images stay with the institution that trains. The guarantee limits what leaves with "
            "the model, not what happens to the images themselves.",
        ),
        (
            "Public constants",
            f"Sampling rate {plan.sample_rate:.4g}, batch normaliser {plan.expected_batch_size:,}, steps, clipping "
            f"norm and δ were fixed before the first step, from the published number of training {plan.unit}s "
            f"({plan.public_units:,}); none of them was derived from the data.",
        ),
        (
            "Poisson sampling",
            f"Every {plan.unit} enters every step independently with the sampling rate. The accountant assumes exactly "
            "this and the data loader does exactly this; batches are not shuffled epochs.",
        ),
        (
            "Fixed preprocessing",
            "Images were prepared one by one, with their own statistics or with fixed windows. No mean, histogram or "
            "vocabulary of the data set entered the network. Preprocessing that was done before dpeq saw the images is "
            "outside what it can know.",
        ),
    ]
    if weights := report["provenance"].get("starting_weights"):
        found.append(
            (
                "Starting weights",
                f"The starting weights come from {weights['name']} (SHA-256 {weights['sha256']}); the guarantee does "
                "not cover the data they were trained on; if that was the same patients, epsilon adds up.",
            )
        )
    if plan.unit == "patient":
        found.append(
            (
                "Records are joined correctly",
                "All images of one patient carry the same pseudonym and are clipped as one contribution. A "
                "patient who appears under two pseudonyms counts as two and is protected half as well.",
            )
        )
    else:
        found.append(
            (
                "One image, one contribution",
                "The same picture does not appear twice. Duplicates, and several pictures of one person, each count "
                "on their own and weaken the protection of that person.",
            )
        )
    found.append(
        (
            "Faithful arithmetic and chance",
            "The proof is about real numbers and true chance. The program draws coins and noise from a cryptographic "
            "generator (ChaCha20). Noise is a discrete Gaussian, added in whole numbers, which closes the attacks on "
            "floating-point noise (Mironov, CCS 2012); gradients are computed in floating-point numbers, and clipped a "
            "little below the norm to make room for their rounding. Whoever can time single steps is outside the "
            "guarantee.",
        )
    )
    return [("assumption", title, text) for title, text in found]


def _not_covered(report: Mapping[str, Any], plan: PrivacyPlan) -> list[tuple[Kind, str, str]]:
    found = [
        (
            "Validation and test images",
            "They took no part in training, and the scores in this report were computed from them without noise. The "
            "times and the memory of the run depend on the data too, if only slightly.",
        ),
        (
            "Burned-in text and identifiers",
            "Names or dates printed into pixels are not looked for, and training with noise does not remove them; "
            "de-identify the images first. Images whose header declares burned-in text are counted by 'dpeq index' and "
            "marked in its manifest.",
        ),
        _fairness(report["utility"]),
        (
            "Fitness for clinical use",
            "Scores on one test set are no clinical validation, and this report is no approval as a medical device.",
        ),
    ]
    if plan.private:
        found[1:1] = [
            (
                "Choosing hyper-parameters",
                "Every further run on the same data costs privacy of its own. If settings were chosen by looking at "
                "other runs, the true loss is higher than stated here: add up the runs of a sweep, or draw settings at "
                "random and pay once for the search (docs/accounting.md).",
            ),
            (
                "What is true of patients in general",
                "If the model learns that a sign predicts a disease, it can say so about anybody, also about a person "
                "whose images were never used. Differential privacy does not prevent this and is not meant to.",
            ),
            (
                "Other releases from the same data",
                "Losses add up over models, statistics and publications that use the same patients.",
            ),
        ]
    found += _trainings(report["audits"], report["audit_trainings"], plan)
    return [("not_covered", title, text) for title, text in found]


def _looked(audits: Sequence[Mapping[str, Any]], plan: PrivacyPlan) -> list[tuple[str, str]]:
    """Figures that were computed from the training data without noise, where they are shown."""
    looked = [audit["name"] for audit in audits if audit["details"]["looks_at_units"] and not is_hidden(audit)]
    if not looked:
        return []
    which = f"attack {looked[0]} was" if len(looked) == 1 else f"attacks {', '.join(looked)} were"
    covered = "not covered by ε" if plan.private else "covered by nothing"
    return [
        (
            "Figures of an attack on the training data themselves",
            f"This report was asked to show what the {which} judged by: the training {plan.unit}s, and which of them "
            f"were in, without noise. The hit rates, the curve and the bound are {covered}, and they tell how many "
            f"training {plan.unit}s there are; pass this report on only where such figures may go.",
        )
    ]


def _trainings(audits: Sequence[Mapping[str, Any]], trainings: int, plan: PrivacyPlan) -> list[tuple[str, str]]:
    """What audits spent beside this training."""
    if not trainings:
        return []
    many = "Its audits took one further training" if trainings == 1 else f"Its audits took {trainings:,} trainings"
    text = f"{many} on the same data under the same plan, finished or not. "
    if not plan.private:
        text += "They had no noise either: whatever is left of them reveals as much as this model may."
        return [("Trainings for audits", text)]
    text += "They spent budget of their own, which ε here leaves out; a summary of runs counts them."
    if heard := [audit["name"] for audit in audits if is_release(audit)]:
        text += (
            f" The figures of {', '.join(heard)} in this report are a release of such a training: they are covered by "
            "what that training spent, and not by ε here."
        )
    return [("Trainings for audits", text)]


def _fairness(test: dict[str, Any]) -> tuple[str, str]:
    title = "Fairness between groups"
    shown = [entry["attribute_title"] for entry in test.get("subgroups") or () if entry["groups"]]
    cost = "Noise and clipping can cost small groups more than large ones."
    if not shown:
        return (
            title,
            "This report does not break scores down by sex, age, site or device: the data say nothing of these, or no "
            f"group is large enough to be shown. {cost}",
        )
    return (
        title,
        f"Scores are broken down by {', '.join(shown)}, for test cases whose files say so, and for groups that are "
        f"large enough to be shown. Other attributes, and groups within groups, were not examined. {cost}",
    )
