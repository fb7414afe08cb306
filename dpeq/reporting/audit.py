"""What audits of a run measured, held against its guarantee.

An audit attacks the training, or one step of it, and gives a *lower* bound on the epsilon that it has, with some
confidence: it can show a guarantee to be false, and never to be true. Those of a run lie in ``RUN/audits/NAME``.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpeq.errors import ConfigError, DataError
from dpeq.privacy.accounting import upper_bound
from dpeq.privacy.composition import AUDIT_LEDGER, read_spent
from dpeq.privacy.plan import PrivacyPlan
from dpeq.reporting.audit_form import HIDDEN, hits_above_limit, is_name, odd_claim, odd_record
from dpeq.reporting.numbers import percent_down, round_down, round_up, scientific
from dpeq.reporting.rundir import read_plan
from dpeq.reporting.strict import read_strict
from dpeq.training.start import FILE as START
from dpeq.training.start import Start

__all__ = [
    "FOLDER",
    "contradiction",
    "hide_units",
    "read_audit",
    "read_audits",
    "refutation",
    "refuted",
    "trainings_for_audits",
    "unfinished_audits",
]

FOLDER = "audits"
"""Of a run: each audit in a folder of its own name."""

_RESULT, _BEGUN = "audit.json", "begun.json"
_KEYS = {"method", "epsilon_lower", "confidence", "delta", "details", "attack"}
_MEND = "restore it from a backup"


def read_audits(run: Path) -> list[dict[str, Any]]:
    """Every finished audit in RUN/audits, sorted by ``name``, which is its folder's and added to :func:`read_audit`'s.

    What an audit found must not be overlooked, so :class:`DataError` is raised for one that is damaged, or of another
    plan or run than this one, for a folder whose name is none, for a result that lies anywhere else below RUN/audits,
    for symbolic links there, and for RUN/audit.json, where older versions kept one audit.
    """
    if (old := run / _RESULT).exists():
        raise DataError(
            f"{old} is of an older version, which kept one audit of a run; audit the run again, then remove the file."
        )
    folders = _folders(run)
    if not folders:
        return []
    plan = read_plan(run / "plan.json")
    found = ((folder.name, read_audit(folder, plan)) for folder in folders)
    return [{"name": name, **audit} for name, audit in found if audit is not None]


def unfinished_audits(run: Path) -> list[str]:
    """The names, sorted, of audits that were begun in RUN/audits and have no result. Raises as :func:`read_audits`."""
    return [folder.name for folder in _folders(run) if not (folder / _RESULT).exists()]


def read_audit(folder: Path, plan: PrivacyPlan) -> dict[str, Any] | None:
    """FOLDER/audit.json, or None without one.

    Its keys: ``method`` (a name), ``epsilon_lower`` >= 0 (a lower bound on epsilon at ``delta`` that holds with
    probability ``confidence``), ``details`` and ``attack`` (see :mod:`dpeq.reporting.audit_form`). Raises
    :class:`DataError` for what no audit of ``plan`` says.
    """
    path = folder / _RESULT
    try:
        audit = read_strict(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); {_MEND}.") from error
    if not isinstance(audit, dict) or set(audit) != _KEYS:
        raise DataError(f"{path} does not have the keys {', '.join(sorted(_KEYS))} alone; {_MEND}.")
    if place := odd_record(audit) or odd_claim(audit, plan):
        raise DataError(f"{path} says in {place} what no audit of this plan does; {_MEND}.")
    return audit


def trainings_for_audits(run: Path, plan: PrivacyPlan) -> int:
    """How many further trainings on the data of ``run`` its audits took or began, by their ledgers.

    What a finished audit says that it took counts where ledgers are missing. Raises :class:`DataError` for a ledger
    that is damaged or of another plan than the run's.
    """
    below: Counter[str] = Counter()
    for path in sorted((run / FOLDER).rglob(AUDIT_LEDGER)):
        name = path.relative_to(run / FOLDER).parts[0]
        try:
            spent = read_spent(path)
        except DataError as error:
            # The ledger's own mends are for runs: to begin an audit anew would forget what it spent.
            torn = path.is_file() and b"\n" not in path.read_bytes()
            why = "is empty or torn in its first line" if torn else f"is damaged ({str(error).partition('; ')[0]})"
            raise DataError(
                f"{path}, a ledger of the audit {name}, {why}, so that nobody can say what it spent; {_MEND}."
            ) from error
        if spent.plan.sha256 != plan.sha256:
            raise DataError(
                f"The ledger {spent.path} belongs to another plan than {run / 'plan.json'}; put the audit's folder "
                "back to its own run."
            )
        below[name] += 1
    said = Counter({audit["name"]: audit["details"]["trainings"] for audit in read_audits(run)})
    return sum((below | said).values())  # of each name the larger number


def _folders(run: Path) -> list[Path]:
    """The folders of audits that were begun, sorted; raises :class:`DataError` for what no audit leaves there."""
    top = run / FOLDER
    begun = set()
    if top.is_symlink():
        raise DataError(f"{top} is a symbolic link, and audits belong to their run; move what it points to here.")
    for place, folders, files in os.walk(top, onerror=_unreadable) if top.is_dir() else ():
        for path in (Path(place, name) for name in sorted([*folders, *files])):
            if path.is_symlink():
                raise DataError(
                    f"{path} is a symbolic link, and audits belong to their run; move what it points to here."
                )
            if path.name == _RESULT and path.parent.parent != top:
                raise DataError(
                    f"{path} is not where a report looks for audits; move its folder, with all that is in it, to "
                    f"{top / 'NAME'}."
                )
            if path.name in (_RESULT, _BEGUN, AUDIT_LEDGER) and path.parent != top:
                begun.add(top / path.relative_to(top).parts[0])
    for folder in sorted(begun):
        if not is_name(folder.name):
            raise DataError(
                f"{folder} is no name of an audit; rename it: small letters, digits and dashes, 41 at most."
            )
        _check_begun(run, folder)
    return sorted(begun)


def _check_begun(run: Path, folder: Path) -> None:
    """That the audit was begun as one of this run, where its folder says how it was begun."""
    path = folder / _BEGUN
    try:
        begun = read_strict(path)
    except FileNotFoundError as error:
        if not (folder / _RESULT).exists():
            return  # its ledgers alone are there, and have a plan of their own
        raise DataError(f"{folder} lacks {_BEGUN}, which says what was audited; {_MEND}.") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); {_MEND}.") from error
    if not isinstance(begun, dict) or begun.get("plan_sha256") != read_plan(run / "plan.json").sha256:
        raise DataError(f"{path} is of an audit of another plan than {run / 'plan.json'}; put it back to its own run.")
    if begun.get("run") is None:
        return  # older ones do not say
    if not (run / START).is_file():
        raise DataError(f"{run} lacks {START}, which says which run it is; {_MEND}.")
    try:
        own = Start.read(run).run
    except ConfigError as error:
        raise DataError(f"{run} lacks ledger.jsonl, with which its run began; {_MEND}.") from error
    if begun["run"] != own:
        raise DataError(f"{path} is of an audit of another run than {run}; put it back to its own run.")


def _unreadable(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be read ({error.strerror}), and may hold audits; make it readable.")


def hide_units(audit: Mapping[str, Any], plan: PrivacyPlan) -> dict[str, Any]:
    """An attack on the training units themselves, without what was computed from them.

    Its figures come from the data without noise, and any of them may give away how many units there are. Kept are a
    bound that contradicts the plan, and whether any hits lay above their limit, without a number: a warning must not be
    lost with the figures. Other audits are as they were.
    """
    if not audit["details"]["looks_at_units"]:
        return dict(audit)
    return {
        **audit,
        "epsilon_lower": audit["epsilon_lower"] if refuted([audit], plan) else None,
        "delta": plan.delta if plan.private else None,  # that of an audit without privacy follows from the number
        "details": {
            **{key: audit["details"].get(key) for key in HIDDEN},
            "hits_above_limit": plan.private and hits_above_limit(audit),
        },
        "attack": None,
    }


def contradiction(audit: Mapping[str, Any], plan: PrivacyPlan, steps: int, epsilon: float) -> str | None:
    """One sentence when the audit measured more than ``steps`` steps allow at its own delta, or than one step does.

    ``epsilon`` is what they allow at the plan's delta. What one step allows follows from the plan too: a record that
    states more than that hides nothing.
    """
    if not plan.private:
        return None
    allowed, delta, details = epsilon, audit["delta"], audit["details"]
    if delta != plan.delta:
        allowed, _, _ = upper_bound(plan.sample_rate, plan.noise_multiplier, steps, delta)
    sure = f"with confidence {percent_down(audit['confidence'])}"
    if audit["epsilon_lower"] is not None and audit["epsilon_lower"] > allowed:
        return (
            f"The audit ({audit['method']}) finds that epsilon is at least {round_down(audit['epsilon_lower'], 3)} "
            f"{sure}, where the guarantee allows {round_up(allowed, 3)} at delta {scientific(delta)}."
        )
    of_step = details.get("one_step_epsilon_lower")
    if of_step is None:
        return None
    rate = 1.0 if details.get("in_every_step") else plan.sample_rate
    of_plan, _, _ = upper_bound(rate, plan.noise_multiplier, 1, delta)
    if of_step > of_plan:
        return (
            f"The audit ({audit['method']}) finds that the epsilon of a single step is at least "
            f"{round_down(of_step, 3)} {sure}, where the plan has {round_up(of_plan, 3)} at delta {scientific(delta)}."
        )
    return None


def refuted(audits: Sequence[Mapping[str, Any]], plan: PrivacyPlan) -> str | None:
    """:func:`contradiction` of each audit that has one, sentence after sentence; None where none has.

    Audits train, or count, as many steps as the plan has, so what they find is held against the whole plan, also while
    the run itself has taken fewer.
    """
    found = [contradiction(audit, plan, plan.steps, plan.epsilon_spent) for audit in audits]
    return " ".join(sentence for sentence in found if sentence) or None


def refutation(report: Mapping[str, Any]) -> str | None:
    """:func:`refuted` of a report's own entries."""
    return refuted(report["audits"], PrivacyPlan.from_dict(report["plan"]))
