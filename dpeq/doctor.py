"""Is this machine ready? Each check answers with what was found and, if it failed, the mend."""

from __future__ import annotations

import importlib
import os
import platform
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

from dpeq.resources import cache_dir

__all__ = ["Check", "examine"]

_MODULES = {
    "torch": "pip install 'torch>=2.8'",
    "opacus": "pip install 'opacus>=1.6,<1.7'",
    "escnn": "install gfortran, then pip install 'escnn>=1.0.11' (or use environment.yml, which needs no Fortran)",
    "monai": "pip install 'monai>=1.5.1'",
    "pydicom": "pip install 'pydicom>=3.0'",
    "openjpeg": "pip install pylibjpeg pylibjpeg-openjpeg",
    "jpeg_ls": "pip install pyjpegls",
    "gdcm": "pip install python-gdcm",
    "nibabel": "pip install 'nibabel>=5.2'",
    "prv_accountant": "pip install prv-accountant==0.2.0",
    "dp_accounting": "pip install 'dp-accounting>=0.6,<0.7'",
}
_DISTRIBUTIONS = {
    "openjpeg": "pylibjpeg-openjpeg",
    "jpeg_ls": "pyjpegls",
    "gdcm": "python-gdcm",
    "prv_accountant": "prv-accountant",
    "dp_accounting": "dp-accounting",
}


@dataclass(frozen=True)
class Check:
    """One line of the examination; ``mend`` is empty when ``ok``."""

    name: str
    ok: bool
    found: str
    mend: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def examine() -> list[Check]:
    """Python, every library dpeq stands on, the processor, a GPU where there is one, and a writable cache."""
    supported = (3, 10) <= sys.version_info[:2] <= (3, 12)
    checks = [Check("python", supported, platform.python_version(), "" if supported else "use Python 3.10 to 3.12")]
    checks += [_imported(name, mend) for name, mend in _MODULES.items()]
    checks += [_processor(), _gpu(), _cache()]
    return checks


def _imported(name: str, mend: str) -> Check:
    """Imports for real: an installed package that cannot be imported is no use."""
    try:
        importlib.import_module(name)
    except ImportError as error:
        return Check(name, False, " ".join(str(error).split()), mend)
    return Check(name, True, metadata.version(_DISTRIBUTIONS.get(name, name)))


def _processor() -> Check:
    import torch

    return Check("cpu", True, f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads")


def _gpu() -> Check:
    import torch

    if not torch.cuda.is_available():
        return Check("gpu", True, "none; training runs on the processor")
    return Check("gpu", True, f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")


def _cache() -> Check:
    where = os.environ.get("DPEQ_CACHE") or "~/.cache/dpeq"
    try:
        folder = cache_dir()
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Check("cache", False, f"{where}: {error.strerror}", "set DPEQ_CACHE to a folder that you may write")
    return Check("cache", True, str(folder))
