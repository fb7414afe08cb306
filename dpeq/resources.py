"""Where files that travel with the package lie: beside the package in a checkout, inside it in a wheel."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from dpeq.errors import ConfigError

__all__ = ["asset", "cache_dir", "load_module", "room"]

_ROOMS = ("datasets", "pipelines", "privacy_reports")


def room(name: str) -> Path:
    """The folder ``datasets``, ``pipelines`` or ``privacy_reports``, as shipped."""
    if name not in _ROOMS:
        raise ValueError(f"{name!r} is not one of {_ROOMS}")
    package = Path(__file__).resolve().parent
    packed = package / "_assets" / name
    return packed if packed.is_dir() else package.parent / name


def asset(name: str, *parts: str) -> Path:
    """The path of a shipped file; raises :class:`ConfigError` when it does not exist."""
    path = room(name).joinpath(*parts)
    if not path.exists():
        raise ConfigError(f"dpeq ships no {'/'.join((name, *parts))}; the installation is incomplete, reinstall dpeq.")
    return path


def cache_dir(*parts: str) -> Path:
    """A folder under ``$DPEQ_CACHE`` (default ``~/.cache/dpeq``), created on demand."""
    base = os.environ.get("DPEQ_CACHE") or str(Path.home() / ".cache" / "dpeq")
    path = Path(base).expanduser().joinpath(*parts)
    path.mkdir(parents=True, exist_ok=True)
    return path


def load_module(path: Path) -> ModuleType:
    """Imports one Python file by path (the ``datasets`` room has no ``__init__``: the name belongs to others)."""
    spec = importlib.util.spec_from_file_location(f"dpeq_room_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up while it is being executed
    spec.loader.exec_module(module)
    return module
