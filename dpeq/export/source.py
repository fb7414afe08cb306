"""A trained network, read back from its run directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from dpeq.config import load_config
from dpeq.errors import DataError
from dpeq.models.registry import build_model
from dpeq.reporting.rundir import RunDirectory, read_run
from dpeq.training.prepare import Prepared, prepare
from dpeq.training.scoring import WEIGHTS, load_weights

__all__ = ["Trained", "load_trained"]


@dataclass(frozen=True)
class Trained:
    """The network that a run's report speaks of (in evaluation mode, on the CPU), the run, and its configuration."""

    model: nn.Module
    run: RunDirectory
    prepared: Prepared
    weights: str


def load_trained(run: Path) -> Trained:
    """Builds the network of a run from its configuration and loads the weights that were evaluated.

    Raises:
        DataError: for a run that is incomplete or contradicts itself, a checkpoint that is missing, broken or belongs
            to another network.
        ConfigError: when the configuration means nothing here, such as a data set card that is gone.
    """
    source = read_run(Path(run))
    config = load_config(source.path / "config.yaml")
    # The data is not needed to load a network, and may well be on another machine.
    data = config.data.model_copy(update={"manifest": None, "root": None})
    prepared = prepare(config.model_copy(update={"data": data}))
    recorded, classes = source.run["model"].get("input_shape"), source.run["data"].get("classes")
    if recorded != list(prepared.shape) or classes != list(prepared.card.classes):
        raise DataError(
            f"{source.path} was trained on inputs {recorded} of the classes {classes}, its card {prepared.card.name} "
            f"now says {list(prepared.shape)} and {list(prepared.card.classes)}; restore the card."
        )
    weights = str(source.metrics["weights"])
    if weights not in WEIGHTS:
        raise DataError(f"{source.path / 'metrics.json'} scores the weights '{weights}'; they are 'ema' or 'raw'.")
    model = build_model(prepared.spec, prepared.shape[0], len(prepared.card.classes), seed=0)
    load_weights(model, source.path / "checkpoints" / f"{WEIGHTS[weights]}.safetensors")
    return Trained(model.eval(), source, prepared, weights)
