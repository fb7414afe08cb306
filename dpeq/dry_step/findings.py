"""What an examination finds: of single layers, of the network as a whole, or that it cannot go on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["FREEZE", "TOLERANCE", "Finding", "Findings", "Stop", "in_a_line", "step_fails"]

TOLERANCE = 1e-3  # relative; single precision leaves 1e-6 to 1e-4, a wrong formula leaves 1
FREEZE = "freeze it (in a recipe: model.trainable, by its name after a '!')"


class Finding(NamedTuple):
    """Of one layer; the words are those of :class:`dpeq.dry_step.LayerVerdict`."""

    verdict: str
    why: str = ""
    mend: str = ""


@dataclass(frozen=True)
class Findings:
    """Of a whole examination.

    Attributes:
        layers: by the layer's name; a layer without parameters is there only if it stands in the way.
        why, mend: what is wrong with the network as a whole; empty where nothing is.
        compared: whether the examination got as far as the gradients of the layers.
    """

    layers: dict[str, Finding]
    why: str
    mend: str
    compared: bool


class Stop(Exception):
    """Nothing more can be found out: the network as a whole does not work."""

    def __init__(self, why: str, mend: str) -> None:
        super().__init__(why)
        self.why, self.mend = why, mend


def step_fails(error: BaseException) -> Stop:
    """For what the private engine raises."""
    return Stop(f"the private step fails: {in_a_line(error)}", "see its message")


def in_a_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
