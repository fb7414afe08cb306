"""The privacy plan: every public constant of a private training, fixed before its first step.

Nothing in a plan is derived from the private data: the sampling rate and the normaliser come from the *published*
number of units. Everything downstream takes the plan whole. This module imports neither torch nor an accountant.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from dpeq.errors import BudgetError, ConfigError
from dpeq.privacy import accounting
from dpeq.privacy.solving import find_sigma

__all__ = ["Clipping", "Neighbouring", "PrivacyPlan", "Sampling", "Unit", "calibrate"]

Unit = Literal["image", "patient"]
Neighbouring = Literal["add_remove_one_unit"]
Sampling = Literal["poisson"]
Clipping = Literal["fixed", "automatic", "per_layer"]

# Which entry of PrivacyPlan.epsilon a plan of each accountant rests on.
_SPENT = {"pld": "pld", "prv": "prv_upper", "opacus_prv": "opacus_prv", "rdp": "rdp"}


@dataclass(frozen=True)
class PrivacyPlan:
    """Public constants of one private training; validated, immutable, JSON-serialisable.

    ``epsilon_target`` may be infinite: then nothing is private, ``noise_multiplier`` is 0 and ``accountant`` "none".
    ``delta`` and ``epsilon_target`` hold for adding or removing one ``unit``. ``sample_rate`` is the Poisson rate per
    unit and step, ``expected_batch_size`` (units) the normaliser, ``max_grad_norm`` the clipping norm C of a unit's
    mean gradient over its ``views``, and the noise per step has standard deviation ``noise_multiplier`` * C. In every
    way of ``clipping`` (:func:`dpeq.privacy.optimizer.clip_factors`) a unit moves the sum by at most C.
    ``public_units`` is the published number of training units. ``accountant`` ("pld", "prv", "opacus_prv", "rdp",
    "none") names the upper bound the plan rests on, ``accountant_note`` says why it is not dp-accounting's. ``mu`` is
    :func:`dpeq.privacy.accounting.gdp_mu`. ``epsilon`` holds what each accountant answered: pld, prv_lower,
    prv_estimate, prv_upper, opacus_prv, rdp.

    Raises :class:`ConfigError` (one sentence, naming the field) for values that make no plan.
    """

    epsilon_target: float
    delta: float
    unit: Unit
    sample_rate: float
    steps: int
    expected_batch_size: int
    noise_multiplier: float
    max_grad_norm: float
    public_units: int
    views: int = 1
    neighbouring: Neighbouring = "add_remove_one_unit"
    sampling: Sampling = "poisson"
    clipping: Clipping = "fixed"
    accountant: str = "none"
    accountant_note: str | None = None
    mu: float | None = None
    epsilon: Mapping[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in ("epsilon_target", "delta", "sample_rate", "noise_multiplier", "max_grad_norm"):
            self._set(name, _number(name, getattr(self, name)))
        for name in ("steps", "expected_batch_size", "views", "public_units"):
            self._set(name, _whole(name, getattr(self, name)))
        _literal("unit", self.unit, get_args(Unit))
        _literal("neighbouring", self.neighbouring, get_args(Neighbouring))
        _literal("sampling", self.sampling, get_args(Sampling))
        _literal("clipping", self.clipping, get_args(Clipping))
        self._check_public_constants()
        self._check_accounts()

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_public_constants(self) -> None:
        _require(self.epsilon_target > 0, "epsilon", self.epsilon_target, "give a number above 0, or inf for none")
        _require(0 < self.delta < 1, "delta", self.delta, "give a number between 0 and 1, below 1 / public_units")
        _require(self.public_units >= 1, "public_units", self.public_units, "give the published number of units")
        _require(
            self.delta * self.public_units < 1,
            "delta",
            self.delta,
            f"it must be below 1 / public_units = {1 / self.public_units:.3g}, or publishing one unit whole would pass",
        )
        _require(0 < self.sample_rate <= 1, "sample_rate", self.sample_rate, "give a rate above 0 and at most 1")
        _require(self.steps >= 1, "steps", self.steps, "give at least 1")
        _require(self.expected_batch_size >= 1, "expected_batch_size", self.expected_batch_size, "give at least 1")
        _require(
            self.expected_batch_size <= self.public_units,
            "expected_batch_size",
            self.expected_batch_size,
            f"it must be at most public_units = {self.public_units}",
        )
        _require(self.views >= 1, "views", self.views, "give at least 1 view per unit")
        _require(0 < self.max_grad_norm < math.inf, "max_grad_norm", self.max_grad_norm, "give a finite number above 0")

    def _check_accounts(self) -> None:
        sigma = self.noise_multiplier
        if not isinstance(self.epsilon, Mapping):
            raise ConfigError(f"The plan's epsilon is {self.epsilon!r}; give a mapping from accountant to number.")
        answers = {str(k): _number(f"epsilon.{k}", v) for k, v in self.epsilon.items()}
        for key, value in answers.items():
            _require(value >= 0, f"epsilon.{key}", value, "make the plan anew with `dpeq plan`")
        self._set("epsilon", MappingProxyType(answers))
        if self.accountant_note is not None and not isinstance(self.accountant_note, str):
            raise ConfigError(f"The plan's accountant_note is {self.accountant_note!r}; give a sentence or null.")
        if self.mu is not None:
            self._set("mu", _number("mu", self.mu))
            _require(0 < self.mu < math.inf, "mu", self.mu, "give a finite number above 0, or null")
        if not self.private:
            _require(sigma == 0, "noise_multiplier", sigma, "a plan with epsilon inf has noise multiplier 0")
            _literal("accountant", self.accountant, ("none",))
            return
        _require(0 < sigma < math.inf, "noise_multiplier", sigma, "a private plan needs a finite number above 0")
        _literal("accountant", self.accountant, tuple(_SPENT))
        key = _SPENT[self.accountant]
        if key not in self.epsilon:
            raise ConfigError(
                f"The plan's epsilon has no {key!r}, on which accountant {self.accountant!r} rests; add it."
            )
        if not self.epsilon_spent <= self.epsilon_target:
            raise ConfigError(
                f"The plan's epsilon.{key} is {self.epsilon_spent}, above its epsilon_target {self.epsilon_target}; "
                "make the plan anew with `dpeq plan`."
            )

    @property
    def private(self) -> bool:
        """False only for epsilon = inf."""
        return math.isfinite(self.epsilon_target)

    @property
    def epsilon_spent(self) -> float:
        """The sound upper bound, at ``delta``, that all ``steps`` together cost; infinite for a non-private plan."""
        return self.epsilon[_SPENT[self.accountant]] if self.private else math.inf

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values; infinity is the string "inf"."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain["epsilon"] = {key: _encode(value) for key, value in self.epsilon.items()}
        return {key: _encode(value) for key, value in plain.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PrivacyPlan:
        """The inverse of :meth:`to_dict`, bit for bit; :class:`ConfigError` names unknown and missing fields."""
        if not isinstance(values, Mapping):
            raise ConfigError("A privacy plan must be a JSON object; make it anew with `dpeq plan`.")
        names = {f.name for f in fields(cls)}
        if unknown := sorted(map(str, set(values) - names)):
            raise ConfigError(f"The privacy plan has unknown field(s) {', '.join(unknown)}; remove them.")
        if missing := sorted(names - set(values)):
            raise ConfigError(f"The privacy plan lacks field(s) {', '.join(missing)}; make it anew with `dpeq plan`.")
        return cls(**values)

    def __reduce__(self) -> tuple[Callable[[Mapping[str, Any]], PrivacyPlan], tuple[dict[str, Any]]]:
        # The read-only epsilon mapping cannot be pickled or deep-copied itself; worker processes need the plan.
        return PrivacyPlan.from_dict, (self.to_dict(),)

    def write(self, path: Path | str) -> None:
        """Writes the plan as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path | str) -> PrivacyPlan:
        """Reads a plan; :class:`ConfigError` when the file is missing, not JSON, or not a valid plan."""
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(
                f"The privacy plan {path} cannot be read ({error.strerror}); make it with `dpeq plan`."
            ) from error
        except ValueError as error:
            raise ConfigError(f"The privacy plan {path} is not JSON; make it anew with `dpeq plan`.") from error
        return cls.from_dict(values)

    @property
    def sha256(self) -> str:
        """Hexadecimal SHA-256 of the canonical JSON (sorted keys, no white space, shortest exact floats)."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()


def calibrate(
    *,
    epsilon: float,
    delta: float,
    expected_batch_size: int,
    public_units: int,
    steps: int,
    max_grad_norm: float,
    unit: Unit,
    sample_rate: float | None = None,
    views: int = 1,
    clipping: Clipping = "fixed",
) -> PrivacyPlan:
    """The plan with (nearly) the least noise whose *upper* bound on epsilon meets the target.

    ``sample_rate`` defaults to expected_batch_size / public_units, both public. The bound lies within about 0.1 % below
    ``epsilon``; sigma has 4 decimals and the bound is that of the very value. ``epsilon`` = inf gives the non-private
    plan. Raises :class:`ConfigError` for impossible settings, :class:`BudgetError` when no noise multiplier meets the
    target, :class:`~dpeq.privacy.accounting.AccountingError` when no accountant answers, or two contradict each other.
    """
    if sample_rate is None:
        units, batch = _whole("public_units", public_units), _whole("expected_batch_size", expected_batch_size)
        _require(units >= 1, "public_units", units, "give the published number of units")
        sample_rate = batch / units if batch <= units else 1.0  # too large a batch is refused below, by name
    constants: dict[str, Any] = {
        "delta": delta,
        "unit": unit,
        "sample_rate": sample_rate,
        "steps": steps,
        "expected_batch_size": expected_batch_size,
        "max_grad_norm": max_grad_norm,
        "views": views,
        "public_units": public_units,
        "clipping": clipping,
    }
    # The non-private plan checks every public constant before the slow part begins.
    checked = PrivacyPlan(epsilon_target=math.inf, noise_multiplier=0.0, **constants)
    epsilon = _number("epsilon_target", epsilon)
    _require(epsilon > 0, "epsilon", epsilon, "give a number above 0, or inf for none")
    if math.isinf(epsilon):
        return checked
    q, T, delta = checked.sample_rate, checked.steps, checked.delta
    with accounting.session("pld", "prv", "rdp"):
        sigma = find_sigma(epsilon, q, T, delta)
        spent, accountant, note = accounting.upper_bound(q, sigma, T, delta)
        if not spent <= epsilon:
            raise BudgetError(
                f"Noise multiplier {sigma} costs epsilon {spent}, above the target {epsilon}; ask for more."
            )
        comparison = accounting.compare(q, sigma, T, delta)
        if comparison.contradiction is not None:
            raise accounting.AccountingError(comparison.contradiction)
        return PrivacyPlan(
            epsilon_target=epsilon,
            noise_multiplier=sigma,
            accountant=accountant,
            accountant_note=note,
            mu=accounting.mu_bound(q, sigma, T, delta),
            epsilon=comparison.epsilon,
            **constants,
        )


def _encode(value: Any) -> Any:
    return "inf" if isinstance(value, float) and math.isinf(value) else value


def _number(name: str, value: Any) -> float:
    if isinstance(value, str) and value.strip().lower() == "inf":
        return math.inf
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise ConfigError(f"The plan's {name} is {value!r}; give a number.")
    return float(value)


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"The plan's {name} is {value!r}; give a whole number.")
    return value


def _literal(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"The plan's {name} is {value!r}; choose {' or '.join(map(repr, allowed))}.")


def _require(condition: bool, name: str, value: Any, mend: str) -> None:
    if not condition:
        raise ConfigError(f"The plan's {name} is {value}; {mend}.")
