"""The audit that takes one private step, thousands of times."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from rich.console import Console

from dpeq.errors import ConfigError

if TYPE_CHECKING:
    from dpeq.audit_verb.asked import Asked
    from dpeq.audit_verb.outcome import Outcome
    from dpeq.interruption import GracefulStop

__all__ = ["repeat"]

_BLOCK = 500  # repetitions of a step under one key, and between two times that they are kept
_TIMED = 10


def repeat(out: Console, asked: Asked, stop: GracefulStop) -> Outcome | None:
    """One private step, so many times with the canary and as often without; None when it was stopped."""
    import numpy as np

    from dpeq.audit.kept import begin, read_scores, write_scores
    from dpeq.audit.step import repeat_step
    from dpeq.audit_verb.outcome import Outcome
    from dpeq.console import RichObserver, duration
    from dpeq.privacy.audit.curves import profile_of
    from dpeq.privacy.audit.membership import attack_quality
    from dpeq.privacy.audit.steps import audit_step, in_every_step, many_steps_of

    plan, repetitions = asked.plan, asked.amount
    if repetitions < 100:
        raise ConfigError(f"{repetitions} repetitions can show nothing; give 100 at least, better 5000.")
    begin(asked.folder, {**asked.begun, "repetitions": repetitions, "certain": asked.certain})
    audited = in_every_step(plan) if asked.certain else plan
    kept = read_scores(asked.folder)
    few = many_steps_of(audited, _TIMED)
    repeat_step(few, canary=False)  # the first one loads what is slow to load
    clock = time.perf_counter()
    repeat_step(few, canary=True)
    each = (time.perf_counter() - clock) / _TIMED
    missing = 2 * repetitions - sum(map(len, kept))
    out.print(f"{missing:,} private steps to take; time on this machine: about {duration(missing * each)}.")
    block, done = many_steps_of(audited, min(_BLOCK, repetitions)), 0
    with stop(asked.folder) as should_stop, RichObserver(out) as observer:
        observer.stage("Repeating the step")

        def count() -> None:
            nonlocal done
            done += 1
            observer.loading(done, missing)

        def enough_at(wanted: int) -> bool:
            return done >= wanted or should_stop()

        while any(len(scores) < repetitions for scores in kept) and not should_stop():
            for canary, scores in ((True, kept[0]), (False, kept[1])):
                wanted = min(block.steps, repetitions - len(scores))
                if wanted:
                    enough = partial(enough_at, done + wanted)
                    scores += repeat_step(block, canary=canary, after=count, should_stop=enough).tolist()
            write_scores(asked.folder, *kept)
        if any(len(scores) < repetitions for scores in kept):
            return None
        observer.stage("Computing the bound")
        inside, outside = np.array(kept[0]), np.array(kept[1])
        found = audit_step(plan, inside, outside, certain=asked.certain)
        profile = profile_of(asked.one_step)
        attack = attack_quality(
            np.concatenate([inside, outside]), np.arange(2 * repetitions) < repetitions, profile=profile
        )
    return Outcome([found.step, found.training], attack, profile, "step")
