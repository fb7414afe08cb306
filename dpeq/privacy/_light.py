"""Accountants imported without what they load and plans never use; for their own child processes alone.

Most of the time until an accountant answers goes into imports: scipy.stats and scipy.signal, the packages' own entry
points, and torch by way of Opacus. What is put in their place either cannot compute anything, and says so when it is
called, or is the very function that scipy.stats would have called.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import types
from typing import Any

from scipy.special import log_ndtr, ndtr, ndtri

__all__ = ["dp_accounting", "opacus_analysis", "opacus_prv", "prv_accountant"]


class _Normal:
    """``scipy.stats.norm(scale=...)`` as far as dp-accounting asks; scipy's own calls these functions too."""

    def __init__(self, *, scale: float) -> None:
        self._scale = scale

    def cdf(self, x: Any) -> Any:
        return ndtr(_scaled(x, self._scale))

    def logcdf(self, x: Any) -> Any:
        return log_ndtr(_scaled(x, self._scale))

    def ppf(self, probability: Any) -> Any:
        return ndtri(probability) * self._scale


def _scaled(x: Any, scale: float) -> Any:
    import numpy as np

    return np.asarray(x, dtype=np.float64) / scale


def _packages(name: str, *inner: str) -> None:
    """Makes modules below ``name`` importable without running the package's ``__init__``."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError(f"{name} is not installed")
    for path in ("", *inner):
        package = types.ModuleType(".".join([name, *filter(None, [path])]))
        package.__path__ = [os.path.join(folder, path) for folder in spec.submodule_search_locations]  # noqa: PTH118
        sys.modules.setdefault(package.__name__, package)


class _Later(types.ModuleType):
    """Stands for a module until something in it is used; then that is imported, and answers from there on."""

    def __getattr__(self, item: str) -> Any:
        if item.startswith("__"):  # what the import system asks of every module
            raise AttributeError(item)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), item)


def dp_accounting() -> None:
    """dp-accounting's privacy loss distributions; scipy.signal is loaded when different runs are composed."""
    _packages("dp_accounting", "pld")
    for name in ("scipy.signal", "scipy.stats"):
        sys.modules.setdefault(name, _Later(name))
    mechanism = importlib.import_module("dp_accounting.pld.privacy_loss_mechanism")
    vars(mechanism)["stats"] = types.SimpleNamespace(norm=_Normal)


def prv_accountant() -> None:
    """prv-accountant without the convolution of different mechanisms, which is never asked of it here."""

    def convolve(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("only equal mechanisms are composed here")

    signal = types.ModuleType("scipy.signal")
    vars(signal)["convolve"] = convolve
    sys.modules.setdefault("scipy.signal", signal)
    importlib.import_module("prv_accountant")


def opacus_analysis() -> None:
    """``opacus.accountants.analysis.rdp`` without the package's entry points, which load torch."""
    _packages("opacus", "accountants")


def opacus_prv() -> None:
    """``opacus.accountants.prv``, whose base class names an optimizer, and with it torch, in its signatures alone."""

    class DPOptimizer:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            raise NotImplementedError("an accountant has no optimizer")

    _packages("opacus", "accountants")
    optimizers = types.ModuleType("opacus.optimizers")
    vars(optimizers)["DPOptimizer"] = DPOptimizer
    sys.modules.setdefault("opacus.optimizers", optimizers)
    importlib.import_module("opacus.accountants.prv")
