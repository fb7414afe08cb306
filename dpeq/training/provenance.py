"""What a run ran on: versions, machine, memory, code."""

from __future__ import annotations

import os
import platform
import resource
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import dpeq
from dpeq.training.start import without_seed

__all__ = ["command_line", "environment", "peak_memory_mib", "versions"]

_PACKAGES = ("torch", "opacus", "escnn", "monai", "numpy", "prv-accountant", "dp-accounting", "pydicom", "scikit-learn")
_PLACES = ("runs", "reports", "out", "data-root", "resume", "data.root", "data.manifest", "model.weights")
_FILES = (".yaml", ".yml", ".json", ".safetensors", ".npz", ".csv", ".py")


def command_line(program: str, arguments: Sequence[str]) -> str:
    """What was typed, for a report. Paths are left out: reports travel, and folders are named after people; so is a
    seed, which is the key to the noise."""
    told, before = [program], ""
    for argument in arguments:
        name, equals, value = argument.partition("=")
        named = name if equals else before if before.startswith("-") else ""
        if _is_path(name):
            told.append("<path>")
        elif named.lstrip("-") in _PLACES or _is_path(value):
            told.append(f"{name}=<path>" if equals else "<path>")
        else:
            told.append(shlex.quote(argument))
        before = "" if equals else argument
    return without_seed(" ".join(told))


def _is_path(text: str) -> bool:
    if text.startswith("~") or os.sep in text or (os.altsep or os.sep) in text:
        return True
    return Path(text).suffix.lower() in _FILES or (0 < len(text) < 256 and Path(text).exists())


def versions() -> dict[str, str]:
    """Installed versions of what a result depends on."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in _PACKAGES}}


def environment(device: torch.device) -> dict[str, Any]:
    """The machine and the code, for run.json."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "versions": versions(),
        "dpeq": dpeq.__version__,
        "git": _commit(),
        "platform": platform.platform(),
        "device": f"{device.type}: {name}",
        "threads": torch.get_num_threads(),
    }


def peak_memory_mib(device: torch.device) -> float:
    """Largest resident memory of this process so far; on a GPU, the largest allocation there."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, but bytes on macOS
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _commit() -> str | None:
    """The commit of a checkout, marked when files differ from it; None for an installed wheel."""
    root = Path(dpeq.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True).stdout
        dirty = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None  # no git on this machine: the version alone has to do
    return head.strip() + ("-dirty" if dirty.stdout.strip() else "")
