"""Errors that reach the user: one sentence that names the thing and the mend, and one exit code per kind."""

from __future__ import annotations

__all__ = ["BudgetError", "ConfigError", "DataError", "DpeqError"]


class DpeqError(Exception):
    """Base of every error that dpeq raises on purpose; the command line prints its message and exits with its code."""

    exit_code = 1


class ConfigError(DpeqError):
    """Bad usage or configuration."""

    exit_code = 2


class DataError(DpeqError):
    """Data that is missing, broken or cannot be read exactly."""

    exit_code = 3


class BudgetError(DpeqError):
    """A step that the privacy plan does not allow."""

    exit_code = 4
