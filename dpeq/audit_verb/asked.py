"""What an audit was asked for: of which plan, in which folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dpeq.errors import ConfigError, DataError

if TYPE_CHECKING:
    from dpeq.config import RunConfig
    from dpeq.privacy.plan import PrivacyPlan

__all__ = ["Asked", "Method", "resolve"]

Method = Literal["step", "one-run", "black-box", "shadow"]


@dataclass(frozen=True)
class Asked:
    """What is audited: ``run`` is its folder, None for a configuration; ``amount`` counts what the method counts.

    ``run_id`` is what the run calls itself, so that its audits are told from those of a repetition under the same plan;
    None for a configuration, and for runs from before there were such names.
    """

    config: RunConfig
    plan: PrivacyPlan
    run: Path | None
    run_id: str | None
    folder: Path
    method: Method
    amount: int
    certain: bool

    @property
    def begun(self) -> dict[str, Any]:
        """What an audit that goes on must have begun with."""
        return {"method": self.method, "run": self.run_id, "plan_sha256": self.plan.sha256}

    @property
    def one_step(self) -> PrivacyPlan:
        from dpeq.privacy.audit.steps import in_every_step, one_step_of

        return one_step_of(in_every_step(self.plan) if self.certain else self.plan)


def resolve(
    target: str,
    overrides: list[str],
    method: Method,
    *,
    amount: int,
    certain: bool,
    folder: Path | None,
    data_root: Path | None,
) -> Asked:
    """Reads the configuration or the run that ``target`` names.

    Audits of a run lie in RUN/audits, where its report finds every one of them: one that can be kept elsewhere can be
    forgotten when it is bad news.

    Raises:
        ConfigError: for what cannot be audited, or not there.
        DataError: for a run whose plan, configuration and ledger contradict each other.
    """
    from dpeq.config import load_config
    from dpeq.planning import plan_of
    from dpeq.privacy.ledger import read_ledger
    from dpeq.privacy.plan import PrivacyPlan
    from dpeq.reporting.audit import FOLDER
    from dpeq.reporting.audit_form import is_name
    from dpeq.training.evidence import check_start
    from dpeq.training.start import MACHINE_KEYS

    run, start = Path(target) if Path(target).is_dir() else None, None
    if run is not None:
        if not (run / "plan.json").is_file():
            raise ConfigError(f"{run} is no run folder (it has no plan.json); name one, or a configuration.")
        for override in overrides:
            key = override.partition("=")[0]
            if not any(key == known or key.startswith(f"{known}.") for known in MACHINE_KEYS):
                raise ConfigError(f"{key} is what the run was trained with and cannot change; leave it out.")
        plan = PrivacyPlan.read(run / "plan.json")
        ledger = read_ledger(run / "ledger.jsonl")
        if ledger[0]["plan_sha256"] != plan.sha256:
            raise DataError(f"{run / 'plan.json'} is not the plan of the run's ledger; restore it from a backup.")
        start = check_start(run, ledger)  # config.yaml is the run's, or another training would be attacked
        config = load_config(run / "config.yaml", overrides, data_root=data_root)
        audits = run / FOLDER
        folder = folder or audits / method
        if folder.resolve().parent != audits.resolve() or not is_name(folder.name):
            raise ConfigError(
                f"Audits of a run lie beside each other in {audits}; give --out {audits / method}-2, say."
            )
    else:
        config = load_config(target, overrides, data_root=data_root)
        plan = plan_of(config)
        folder = folder or Path("runs") / f"{config.name}-audit-{method}"
    if not plan.private and method != "shadow":
        raise ConfigError(
            "A plan without privacy promises nothing that an audit could test; give a finite epsilon, or --method "
            "shadow to see what an attack finds."
        )
    return Asked(config, plan, run, None if start is None else start.run, folder, method, amount, certain)
