"""The attacker's limits as the report holds them, and the way back from the report to a Risk."""

from __future__ import annotations

import math
from typing import Any

from dpeq.errors import ConfigError, DataError
from dpeq.privacy.accounting import AccountingError
from dpeq.privacy.plan import PrivacyPlan
from dpeq.privacy.risk import Mechanism, Posterior, Rate, Reconstruction, Risk, assess

__all__ = ["group_risk", "risk_from_dict"]


def group_risk(plan: PrivacyPlan, steps: int, images_per_patient: int | None) -> Risk | None:
    """The risk for all images of one patient at once in an image-level run; None without ``images_per_patient``.

    Raises :class:`ConfigError` where the question has no meaning, :class:`AccountingError` where it has no answer.
    """
    if images_per_patient is None:
        return None
    if images_per_patient < 1:
        raise ConfigError(f"--images-per-patient is {images_per_patient}; give the most images that one patient has.")
    if plan.unit != "image":
        raise ConfigError("The run protects whole patients, with however many images; leave --images-per-patient out.")
    if not plan.private:
        raise ConfigError("The run is not private and limits nothing for anybody; leave --images-per-patient out.")
    try:
        return assess(plan, steps, group=images_per_patient)
    except AccountingError as error:
        raise AccountingError(
            f"What {images_per_patient} images of one patient lose could not be computed ({error}); leave "
            "--images-per-patient out, or train with data.unit=patient."
        ) from error


def risk_from_dict(values: dict[str, Any]) -> Risk:
    """The inverse of :meth:`dpeq.privacy.risk.Risk.to_dict`; raises :class:`DataError` for a dict that is none."""
    try:
        plain = dict(values)
        plain["epsilon"] = math.inf if values["epsilon"] == "inf" else float(values["epsilon"])
        plain["runs"] = tuple(Mechanism(**run) for run in values["runs"])
        plain["hit_rates"] = tuple(Rate(**rate) for rate in values["hit_rates"])
        plain["reconstructions"] = tuple(Reconstruction(**row) for row in values["reconstructions"])
        plain["posteriors"] = tuple(Posterior(**row) for row in values["posteriors"])
        for curve in ("profile", "trade_off"):
            plain[curve] = tuple((x, y) for x, y in values[curve])
        return Risk(**plain)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"The report's risk is none that dpeq writes ({error}); build the report again.") from error
