"""What must be the same for a step to be repeated to the last bit: the code, and how its sums are divided and rounded.

Repeated under other conditions, a step has the same noise around a slightly different sum, which is a second release
that nobody paid for.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

import dpeq
from dpeq.config import RunConfig
from dpeq.errors import ConfigError
from dpeq.models.foreign import import_callable

__all__ = ["code_versions", "machine_of", "refuse_another_repetition"]

_UNKNOWN = "unknown"
_PINNED = ("dpeq", "torch", "builtins")  # their versions say it all


def code_versions(model: nn.Module, path: str | None = None) -> dict[str, str]:
    """Versions of the code that takes the steps of ``model``.

    Args:
        path: import path of a network that others wrote. Its source files (where ``path`` leads, and of the class of
            every layer) are then pinned by a SHA-256 over their contents; "unknown" when one cannot be found.
    """
    versions = {"dpeq": dpeq.__version__, "torch": metadata.version("torch"), "numpy": metadata.version("numpy")}
    return versions if path is None else {**versions, f"the source of {path}": _sha256_of_sources(model, path)}


def machine_of(config: RunConfig, device: torch.device, processes: int) -> dict[str, Any]:
    """What may change when a run is resumed, but not while steps are repeated; by name, as JSON."""
    kind = torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else torch.cuda.get_device_name(device)
    return {
        "training.device": f"{device.type} ({kind})",
        "training.physical_units": config.training.physical_units,
        "training.threads": torch.get_num_threads(),
        "the number of processes": processes,
    }


def refuse_another_repetition(
    steps: int,
    versions: tuple[Mapping[str, str], Mapping[str, str]],
    machines: tuple[Sequence[Mapping[str, Any]], Mapping[str, Any]],
) -> None:
    """Raises :class:`ConfigError` when ``steps`` that are to be repeated might round to something else.

    Args:
        versions: when the run began, and now.
        machines: of all processes that took any of the steps, and now.
    """
    then, now = versions
    for name in now:
        if now[name] != then.get(name) or now[name] == _UNKNOWN:
            raise ConfigError(
                f"The run would repeat {steps} steps, but {name} is {now[name]} and was {then.get(name)} when it "
                "began; resume with the old version."
            )
    taken_on, here = machines
    for name, value in here.items():
        old = list(dict.fromkeys(machine[name] for machine in taken_on))
        if old != [value]:
            was = " and later ".join(map(str, old))
            mend = "resume with the old value" if len(old) == 1 else "restore a newer checkpoint from a backup"
            raise ConfigError(
                f"The run would repeat {steps} steps, but {name} is {value} and was {was} when they were taken; {mend}."
            )


def _sha256_of_sources(model: nn.Module, path: str) -> str:
    digests = set()
    for thing in _written_by_others(model, path):
        try:
            file = inspect.getsourcefile(thing)
        except TypeError:  # made without a file, or not in Python
            file = None
        if file is None or not Path(file).is_file():
            return _UNKNOWN
        digests.add(hashlib.sha256(Path(file).read_bytes()).hexdigest())
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


def _written_by_others(model: nn.Module, path: str) -> Iterator[Any]:
    yield inspect.unwrap(import_callable(path))
    for layer in model.modules():
        for kind in type(layer).__mro__:
            if kind.__module__.partition(".")[0] not in _PINNED:
                yield kind
