"""Which symmetry groups a data set allows: advice from its card, not magic.

A network that is invariant under a group gives an image and all its transformed copies one answer. That is sound where
the copies share a label, and throws the answer away where they do not. Only the invariance of the logits does so:
features that turn with the image still tell how it lies. A network whose last stage is restricted to a subgroup is
therefore judged by that subgroup.

- Reflections are refused where laterality matters. Rotations keep it: with head and front in sight, a turned image
  still tells left from right; a mirrored one tells the wrong one.
- Elements that turn an axis into one of another scale are refused: three voxels mean another length along the scan
  axis. In the first stages only, they make filters fit worse but hide nothing: questionable.
- Rotations are questionable where the label depends on how the image is turned: part of that can often be read off the
  content, so they are allowed, with the reason.
- Images that all arrive in one pose forbid nothing, but rotations that never occur gain less.

>>> from dpeq.data.cards import load_card
>>> [a.group for a in advise(load_card("phantom_hospital")) if not a.sound]
['O', 'Oh']
>>> judge(load_card("phantom_hospital"), "Oh", "axial-D4").grade
'questionable'
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from dpeq.data.cards import Card
from dpeq.errors import ConfigError
from dpeq.groups import GROUP_NAMES, SymmetryGroup, group

__all__ = ["GRADES", "Grade", "GroupAdvice", "Verdict", "advise", "judge", "warnings_for"]

Grade = Literal["sound", "questionable", "refused"]
GRADES: tuple[Grade, ...] = ("sound", "questionable", "refused")  # from best to worst


@dataclass(frozen=True)
class Verdict:
    """What is thought of a network on a data set.

    Attributes:
        grade: "sound", "questionable" (allowed, with the reason) or "refused".
        group: the group of its first stages.
        invariant_under: the group that remains at the head, by which it is judged.
        reason: one sentence.
    """

    grade: Grade
    group: str
    invariant_under: str
    reason: str

    @property
    def sound(self) -> bool:
        return self.grade == "sound"


@dataclass(frozen=True)
class GroupAdvice:
    """What is thought of a group on a data set, kept in every stage.

    Attributes:
        group: its name.
        order: number of elements, None for infinitely many.
        exact_on_grid: whether networks are equivariant under it exactly, not only up to interpolation.
        grade: "sound", "questionable" or "refused".
        reason: one sentence.
        instead: the largest subgroup that is sound, to choose or to restrict the last stage to; None for sound groups.
    """

    group: str
    order: int | None
    exact_on_grid: bool
    grade: Grade
    reason: str
    instead: str | None

    @property
    def sound(self) -> bool:
        return self.grade == "sound"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "sound": self.sound}


def advise(card: Card) -> list[GroupAdvice]:
    """Advice on every group that acts on images of the card's dimension, in the order of ``GROUP_NAMES``."""
    advice = []
    for name in GROUP_NAMES:
        whole = group(name)
        if whole.dim == card.dim:
            verdict = judge(card, name)
            instead = None if verdict.sound else _largest_sound_subgroup(card, whole)
            advice.append(
                GroupAdvice(name, whole.order, whole.on_grid, verdict.grade, verdict.reason, instead),
            )
    return advice


def judge(card: Card, group_name: str, restriction: str = "none") -> Verdict:
    """What is thought of a network with ``group_name`` in its first stages and ``restriction`` of it in the last.

    Args:
        restriction: "none", "halved", "reflection", "invariant" or the name of a subgroup, as for
            :meth:`~dpeq.groups.SymmetryGroup.subgroup`.

    Raises:
        ConfigError: for an unknown group or restriction, or a group of another dimension than the card's images.
    """
    whole, kept = _pair(card, group_name, restriction)
    problems = _problems(card, whole, kept)
    grade: Grade = max((problem.grade for problem in problems), key=GRADES.index, default=GRADES[0])
    reason = "; ".join(problem.text for problem in problems) if problems else _why_sound(card, kept)
    if kept != whole:
        reason = f"the features follow {whole.name}, the logits ignore {_name(kept)}: {reason}"
    return Verdict(grade, whole.name, kept.name, f"{reason[0].upper()}{reason[1:]}.")


def warnings_for(card: Card, group_name: str, restriction: str, classes: Sequence[str]) -> list[str]:
    """What a training should log before it starts, one sentence each; nothing for a sound network.

    Args:
        group_name, restriction: as for :func:`judge`.
        classes: the classes of the run; those that a mirror swaps are named.
    """
    whole, kept = _pair(card, group_name, restriction)
    network = f"Group {whole.name}" if kept == whole else f"Group {whole.name} restricted to {kept.name}"
    better = _largest_sound_subgroup(card, whole)
    either = " or model.restriction" if judge(card, whole.name, better).sound else ""
    mend = f"set model.group{either} to {better}"
    sentences = []
    for problem in _problems(card, whole, kept, classes):
        verdict = "unsound" if problem.grade == "refused" else "questionable"
        sentences.append(f"{network} is {verdict} for {card.title}: {problem.text}; {mend}.")
    return sentences


@dataclass(frozen=True)
class _Problem:
    grade: Grade
    text: str


def _problems(
    card: Card, whole: SymmetryGroup, kept: SymmetryGroup, classes: Sequence[str] | None = None
) -> list[_Problem]:
    """What speaks against the group ``kept`` at the head of a network that starts with ``whole``."""
    known = card.symmetries
    problems = []
    if known.laterality_matters and _reflects(kept):
        problems.append(_Problem("refused", _lost_laterality(card, card.classes if classes is None else classes)))
    if not known.isotropic and _mixes_scales(kept):
        tilted = "it tilts the scan axis, whose scale is not that of the plane"
        swapped = "it turns one image axis into the other, whose scale differs"
        problems.append(_Problem("refused", tilted if card.dim == 3 else swapped))
    elif not known.isotropic and _mixes_scales(whole):
        what = "the scan axis and the plane" if card.dim == 3 else "the two image axes"
        text = f"its first stages share filters between {what}, whose scales differ, which fits worse but hides nothing"
        problems.append(_Problem("questionable", text))
    if known.orientation_matters and _rotates(kept):
        text = "it ignores how the image is turned, on which the label depends"
        problems.append(_Problem("questionable", text))
    return problems


def _lost_laterality(card: Card, classes: Sequence[str]) -> str:
    """Which classes become one under a mirror, in words."""
    pairs = [pair for pair in card.symmetries.mirrored_classes if set(pair) <= set(classes)]
    if pairs:
        named = ", nor ".join(f"'{a}' from '{b}'" for a, b in pairs)
        return f"it ignores reflections, so it cannot tell {named}"
    named = ", ".join(f"'{name}'" for name in classes)
    return f"it ignores reflections, so it cannot tell apart those of {named} that are mirror images of each other"


def _why_sound(card: Card, kept: SymmetryGroup) -> str:
    if len(kept.elements) == 1:
        return "it assumes nothing of the images"
    changed = {(True, True): "mirrored and turned", (True, False): "mirrored", (False, True): "turned"}
    text = f"{changed[_reflects(kept), _rotates(kept)]} images keep their class"
    if not kept.on_grid:
        text += ", exactly for quarter turns and up to interpolation for other angles"
    if card.symmetries.aligned and _rotates(kept):
        text += "; they all arrive in one pose, so rotations gain less"
    return text


def _name(kept: SymmetryGroup) -> str:
    return "nothing" if len(kept.elements) == 1 else f"only {kept.name}"


def _largest_sound_subgroup(card: Card, whole: SymmetryGroup) -> str:
    """A conventional network's trivial group at the least, which is always sound."""
    sound = [
        candidate
        for candidate in map(group, GROUP_NAMES)
        if whole.embedding(candidate) is not None and not _problems(card, candidate, candidate)
    ]
    return max(sound, key=lambda candidate: (candidate.continuous, len(candidate.elements))).name


def _pair(card: Card, group_name: str, restriction: str) -> tuple[SymmetryGroup, SymmetryGroup]:
    whole = group(group_name)
    if whole.dim != card.dim:
        raise ConfigError(f"Group {group_name} acts on {whole.dim}D images but {card.name} is {card.dim}D.")
    return whole, whole.subgroup(restriction)


def _reflects(candidate: SymmetryGroup) -> bool:
    return bool(np.any(np.linalg.det(candidate.matrices) < 0))


def _rotates(candidate: SymmetryGroup) -> bool:
    """Whether a proper rotation other than the identity belongs to it."""
    return int(np.sum(np.linalg.det(candidate.matrices) > 0)) > 1


def _mixes_scales(candidate: SymmetryGroup) -> bool:
    """Whether an element turns an axis into one that may have another scale: z of volumes, x and y of images."""
    last = np.abs(candidate.matrices[:, -1, -1])
    return bool(np.any(np.abs(last - 1) > 1e-9))
