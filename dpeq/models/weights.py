"""Starting weights from a safetensors file: public pretraining, or another run's ``checkpoints/final.safetensors``.

They are an input like the network itself: the guarantee does not cover the data that they were trained on.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from dpeq.errors import ConfigError

__all__ = ["StartingWeights", "sha256_of"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StartingWeights:
    """Tensors by name, and the file they come from.

    Attributes:
        path: the file.
        sha256: of the bytes that were read.
        tensors: what they hold.
    """

    path: Path
    sha256: str
    tensors: dict[str, Tensor]

    @classmethod
    def read(cls, path: Path) -> StartingWeights:
        """Raises :class:`ConfigError` when there is no such file, or it is no safetensors file of finite numbers."""
        content = _bytes(path)
        try:
            tensors = load(content)
        except SafetensorError as error:
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"model.weights: {path} is no safetensors file ({reason}); save a state dict by "
                "safetensors.torch.save_file."
            ) from error
        for name in sorted(tensors):
            if not bool(torch.isfinite(tensors[name]).all()):
                raise ConfigError(
                    f"model.weights: '{name}' in {path} holds numbers that are not finite; mend the file."
                )
        return cls(path, hashlib.sha256(content).hexdigest(), tensors)

    def put_into(self, model: nn.Module) -> tuple[str, ...]:
        """Loads every tensor by its name; a classifier of another shape keeps the weights that it has.

        The classifier is the layer of that name, or the network's last linear layer.

        Returns:
            the names that were not loaded.

        Raises:
            ConfigError: names the first tensor that is missing, unknown or of another shape.
        """
        wanted = model.state_dict()
        head = _classifier(model)
        fresh = []
        for name in sorted(wanted.keys() | self.tensors.keys()):
            if name not in self.tensors:
                raise ConfigError(f"model.weights: {self.path} has no '{name}'; give weights of this very network.")
            if name not in wanted:
                raise ConfigError(
                    f"model.weights: {self.path} has '{name}', which the network has not; give weights of this very "
                    "network."
                )
            theirs, ours = tuple(self.tensors[name].shape), tuple(wanted[name].shape)
            if theirs == ours:
                continue
            if head is None or name.rpartition(".")[0] != head:
                raise ConfigError(
                    f"model.weights: '{name}' is {list(theirs)} in {self.path} and {list(ours)} in the network; give "
                    "weights of this very network, or change model.fields and the like to theirs."
                )
            fresh.append(name)
        if fresh:  # the layer as a whole: a bias belongs to its weight
            fresh = [name for name in wanted if name.rpartition(".")[0] == head]
            trained = {name for name, p in model.named_parameters() if p.requires_grad}
            if not trained.issuperset(fresh):
                raise ConfigError(
                    f"model.weights: the classifier '{head}' has another shape in {self.path}, so it must be learned; "
                    "name it in model.trainable."
                )
            _log.warning(
                "The classifier '%s' has another shape in %s (other classes); it starts from fresh weights.",
                head,
                self.path.name,
            )
        with torch.no_grad():
            for name, tensor in wanted.items():
                if name not in fresh:
                    tensor.copy_(self.tensors[name])
        return tuple(fresh)

    def to_dict(self, fresh: tuple[str, ...]) -> dict[str, object]:
        """What a run's record says of them."""
        return {"name": self.path.name, "sha256": self.sha256, "fresh": list(fresh)}


def sha256_of(path: Path) -> str:
    """Of a file of weights; raises :class:`ConfigError` when it cannot be read."""
    return hashlib.sha256(_bytes(path)).hexdigest()


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"model.weights: {path} cannot be read ({error.strerror}); name a safetensors file, such as a run's "
            "checkpoints/final.safetensors."
        ) from error


def _classifier(model: nn.Module) -> str | None:
    linear = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    return "classifier" if "classifier" in linear else next(reversed(linear), None)
