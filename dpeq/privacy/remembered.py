"""Answers of accountants, kept on disk: calibrating a plan takes seconds, and the same public question has one answer.

Nothing private is kept: a question holds the plan's public constants alone. An answer is found again only under the
same question, the same versions of everything that computed it, and its own checksum; otherwise it is computed anew.
A report does not rest on this: ``dpeq report --check`` asks the accountant again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from dpeq.errors import ConfigError
from dpeq.privacy import plan as plan_module
from dpeq.privacy.accounting import epsilon_curve
from dpeq.privacy.plan import PrivacyPlan, calibrate
from dpeq.resources import cache_dir

__all__ = ["remembered", "remembered_curve", "remembered_plan"]

_log = logging.getLogger(__name__)

_OWN = (
    *("accounting.py", "plan.py", "solving.py", "gdp.py", "_moments.py", "_pld.py", "_light.py"),
    *("_prv_worker.py", "_session.py"),
)
_PACKAGES = ("prv-accountant", "opacus", "dp-accounting", "scipy", "numpy")


def remembered_plan(**constants: Any) -> PrivacyPlan:
    """:func:`dpeq.privacy.plan.calibrate`, asked once per machine; takes its arguments and raises its errors."""
    question = {"calibrate": {name: str(value) for name, value in constants.items()}}
    plan = PrivacyPlan.from_dict(remembered(question, lambda: calibrate(**constants).to_dict()))
    named = {**constants, "epsilon_target": constants["epsilon"]}
    for name in {f.name for f in fields(PrivacyPlan)} & {n for n, value in named.items() if value is not None}:
        if name != "epsilon" and getattr(plan, name) != named[name]:
            raise ConfigError(
                f"The plan kept in {cache_dir('accounting')} has another {name} than was asked for; empty that folder."
            )
    return plan


def remembered_curve(plan: PrivacyPlan) -> list[tuple[int, float]]:
    """:func:`dpeq.privacy.accounting.epsilon_curve`, asked once per plan and machine."""
    if not plan.private:  # nothing to compute, and infinity is no JSON
        return epsilon_curve(plan)
    points = remembered({"curve": plan.to_dict()}, lambda: epsilon_curve(plan))
    return [(int(step), float(epsilon)) for step, epsilon in points]


def remembered(question: dict[str, Any], ask: Callable[[], Any]) -> Any:
    """The JSON answer to ``question``: from disk, or from ``ask`` if it is not there whole and of the same versions."""
    asked = json.dumps({**question, "by": _answerers()}, sort_keys=True)
    path = cache_dir("accounting") / f"{hashlib.sha256(asked.encode()).hexdigest()[:32]}.json"
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["question"] == asked and kept["check"] == _check(asked, kept["answer"]):
            return kept["answer"]
        _log.warning("The kept answer %s does not match its checksum; the accountant is asked again.", path)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.warning("The kept answer %s cannot be read (%s); the accountant is asked again.", path, error)
    answer = json.loads(json.dumps(ask(), allow_nan=False))
    _keep(path, {"question": asked, "answer": answer, "check": _check(asked, answer)})
    return answer


def _check(asked: str, answer: Any) -> str:
    return hashlib.sha256((asked + json.dumps(answer, sort_keys=True)).encode()).hexdigest()


def _keep(path: Path, body: dict[str, Any]) -> None:
    """Written beside its name and renamed, so that nobody reads half an answer; a full disk costs time, not the run."""
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=".answer-", dir=path.parent)  # mode 0600
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
                json.dump(body, handle)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        _log.warning("The accountant's answer could not be kept in %s (%s).", path.parent, error.strerror)


@cache
def _answerers() -> dict[str, str]:
    """Versions of the libraries, and hashes of our own modules, that an answer depends on."""
    here = Path(plan_module.__file__).parent
    own = {name: hashlib.sha256((here / name).read_bytes()).hexdigest() for name in _OWN}
    return {**{name: metadata.version(name) for name in _PACKAGES}, **own}
