"""A trained network, read back from its run directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from dpeq.config import load_config
from dpeq.errors import DataError
from dpeq.models.registry import build_model
from dpeq.reporting.rundir import RunDirectory, read_run
from dpeq.training.run import Prepared, prepare

__all__ = ["Trained", "load_trained"]

_CHECKPOINTS = {"ema": "final", "raw": "raw"}


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
    if weights not in _CHECKPOINTS:
        raise DataError(f"{source.path / 'metrics.json'} scores the weights '{weights}'; they are 'ema' or 'raw'.")
    model = build_model(prepared.spec, prepared.shape[0], len(prepared.card.classes), seed=0)
    _load(model, source.path / "checkpoints" / f"{_CHECKPOINTS[weights]}.safetensors")
    return Trained(model.eval(), source, prepared, weights)


def _load(model: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise DataError(f"There is no checkpoint {path}; restore it or train again.")
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"The checkpoint {path} is broken ({reason}); restore it or train again.") from error
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    different = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if different:
        name = different[0]
        raise DataError(
            f"The checkpoint {path} belongs to another network ({name} has shape {found.get(name)}, not "
            f"{wanted.get(name)}); restore the run's own config.yaml and checkpoint."
        )
    model.load_state_dict(state)
