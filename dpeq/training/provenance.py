"""What a run ran on: versions, machine, memory, code."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import dpeq

__all__ = ["environment", "peak_memory_mib", "versions"]

_PACKAGES = ("torch", "opacus", "escnn", "monai", "numpy", "prv-accountant", "dp-accounting", "pydicom", "scikit-learn")


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
