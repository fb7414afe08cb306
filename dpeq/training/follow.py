"""What every process but the first does in a run of several: its share of each step, and nothing else.

It holds no key, writes no file and shows nothing. See :mod:`dpeq.training.distributed`.
"""

from __future__ import annotations

import hashlib
import json

import torch

from dpeq.config import RunConfig
from dpeq.data.images import ImageSet
from dpeq.models.registry import build_model
from dpeq.privacy.plan import PrivacyPlan
from dpeq.training.distributed import Ranks
from dpeq.training.loop import train
from dpeq.training.prepare import Prepared, augmentation, load_data, optimizer_settings, prepare
from dpeq.training.start import settings_of

__all__ = ["agree_on", "announce", "follow"]


def follow(
    config: RunConfig, ranks: Ranks, splits: dict[str, ImageSet] | None = None
) -> tuple[dict[str, ImageSet], bool]:
    """Trains along with rank 0, from the plan it announces to the end it announces.

    Returns:
        the data, for another run, and whether the run was stopped before its end.

    Raises:
        ConfigError: when this process sees another configuration or other data than rank 0.
        RankError: when another process is gone.
    """
    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    prepared = prepare(config)
    plan = announce(ranks, None)
    splits = load_data(prepared) if splits is None else splits
    agree_on(ranks, prepared, splits)
    # Rank 0's weights take the place of these.
    model = build_model(prepared.spec, prepared.shape[0], len(prepared.card.classes), seed=0)
    train(
        model,
        splits["train"],
        plan,
        None,
        optimizer_settings(config),
        None,
        device=ranks.device,
        augment=augmentation(prepared),
        images_per_unit=config.views.images_per_unit,
        ranks=ranks,
        log_private_metrics=config.training.log_private_metrics,
    )
    return splits, bool(ranks.tell(None)[0])


def announce(ranks: Ranks, plan: PrivacyPlan | None) -> PrivacyPlan:
    """Rank 0's plan, on every rank; the others pass None."""
    said = ranks.say(None if plan is None else json.dumps(plan.to_dict()))
    return PrivacyPlan.from_dict(json.loads(said)) if plan is None else plan


def agree_on(ranks: Ranks, prepared: Prepared, splits: dict[str, ImageSet]) -> None:
    """Refuses a run whose processes do not see the same; before it has a folder."""
    if ranks.world == 1:
        return
    ranks.agree("configuration", json.dumps(settings_of(prepared.config, prepared.card), sort_keys=True))
    t = prepared.config.training
    ranks.agree("physical_units and threads", f"{t.physical_units}, {torch.get_num_threads()}")
    hashes = "".join(splits[name].sha256() for name in sorted(splits))
    ranks.agree("data", hashlib.sha256(hashes.encode()).hexdigest())
