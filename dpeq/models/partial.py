"""Networks of which a part is trained and the rest stays as it is: linear probes, frozen backbones.

What is frozen is neither clipped nor noised: a step's noise grows with the root of the number of trained parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from dpeq.errors import ConfigError
from dpeq.models.spec import ModelSpec

__all__ = ["PartialSpec", "train_only"]


@dataclass(frozen=True)
class PartialSpec:
    """A network by another description, with :func:`train_only` applied.

    Attributes:
        whole: the network.
        trainable: patterns of what is trained.
    """

    whole: ModelSpec
    trainable: tuple[str, ...]

    @property
    def dim(self) -> int:
        return self.whole.dim

    @property
    def group(self) -> str:
        return self.whole.group

    @property
    def restriction(self) -> str:
        return self.whole.restriction

    @property
    def architecture(self) -> str:
        return self.whole.architecture

    def build(self, in_channels: int, classes: int) -> nn.Module:
        model = self.whole.build(in_channels, classes)
        train_only(model, self.trainable)
        return model

    def describe(self) -> dict[str, Any]:
        return {**self.whole.describe(), "trainable": list(self.trainable)}


def train_only(model: nn.Module, patterns: Sequence[str]) -> None:
    """Freezes all parameters but those that ``patterns`` name.

    A pattern is a name of a parameter or of a layer, with the wildcards of the shell: "classifier", "stages.2",
    "*.bias". One that begins with "!" freezes what it names; of several that fit, the last one counts. Where the first
    begins with "!", all else is left as it was.

    Raises:
        ConfigError: when a pattern fits nothing, or nothing is left to train.
    """
    named = dict(model.named_parameters())
    taken_away = bool(patterns) and patterns[0].startswith("!")
    trained = {name: taken_away and p.requires_grad for name, p in named.items()}
    for pattern in patterns:
        bare = pattern.removeprefix("!")
        fitting = [name for name in named if fnmatchcase(name, bare) or fnmatchcase(name, f"{bare}.*")]
        if not fitting:
            parts = ", ".join(dict.fromkeys(name.split(".")[0] for name in named))
            raise ConfigError(f"model.trainable: nothing in the network is named '{bare}'; its parts are: {parts}.")
        trained.update(dict.fromkeys(fitting, bare == pattern))
    if not any(trained.values()):
        raise ConfigError(
            f"model.trainable {list(patterns)} leaves nothing to train; name a layer, as in [classifier]."
        )
    for name, p in named.items():
        p.requires_grad_(trained[name])
