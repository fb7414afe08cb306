"""What binds the files of a run: every change of one of them is refused, by what the others say."""

import json
from pathlib import Path

import pytest
import yaml
from finished_runs import cell_config, lay_down
from hypothesis import given
from hypothesis import strategies as st

from dpeq.errors import DataError
from dpeq.privacy.ledger import Ledger
from dpeq.reporting.rundir import read_plan, read_run
from dpeq.reporting.summary_rows import read_rows
from dpeq.training.start import FILE, _lost


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished run without the note "end", as runs were at first."""
    return lay_down(tmp_path, cell_config(tmp_path, "x", 8.0, seed=3))


def change(path: Path, *keys: str, value: object) -> None:
    """Sets, or with ``...`` removes, an entry of a YAML or JSON file."""
    content = yaml.safe_load(path.read_text())
    place = content
    for key in keys[:-1]:
        place = place[key]
    if value is ...:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    path.write_text(json.dumps(content))  # JSON is YAML


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("training", "lr"), 0.25),
        (("training", "seed"), None),
        (("privacy", "epsilon"), 1.0),
        (("model", "weights"), "/a/file.safetensors"),
        (("evaluation", "weights"), "raw"),
        (("training", "momentum"), ...),
        (("training", "extra"), 1),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_changed_configuration_is_refused_by_name(folder, keys, value, finished):
    if not finished:
        (folder / "run.json").unlink()
    whole = lay_down(folder.parent, cell_config(folder.parent, "y", 8.0))
    change(folder / "config.yaml", *keys, value=value)
    with pytest.raises(DataError, match=rf"config\.yaml says {'.'.join(keys)} .*; restore the file"):
        read_run(folder) if finished else read_rows([whole, folder])


@pytest.mark.parametrize(("keys", "value"), [(("data", "root"), "/elsewhere"), (("training", "device"), "cuda")])
def test_where_a_run_is_now_may_change(folder, keys, value):
    change(folder / "config.yaml", *keys, value=value)
    assert read_run(folder).plan.private


@pytest.mark.parametrize("key", ["seed", "command", "data_sha256", "plan_sha256", "machine"])
def test_a_changed_start_is_refused(folder, key):
    change(folder / FILE, key, value="other")
    with pytest.raises(DataError, match=r"start\.json in .* is not the one that its ledger belongs to"):
        read_run(folder)


def test_a_start_that_is_gone_is_missed_where_the_ledger_names_it(folder):
    (folder / FILE).unlink()
    with pytest.raises(DataError, match=r"has no start\.json, which its ledger names"):
        read_run(folder)
    (folder / "ledger.jsonl").unlink()
    plan = read_plan(folder / "plan.json")
    with Ledger.create(folder / "ledger.jsonl", plan) as ledger:
        for step in range(1, plan.steps + 1):
            ledger.spend(step)
    assert read_run(folder).ledger.notes == {}


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("command",), "dpeq train other"),
        (("started",), "2020-01-01T00:00:00+00:00"),
        (("rng",), "os"),
        (("seed",), 4),
        (("log_private_metrics",), True),
        (("data", "sha256"), "0" * 64),
        (("data", "card"), {"title": "Other"}),
        (("resumed",), 1),
        (("steps_lost",), 1),
    ],
)
def test_a_record_that_tells_another_beginning_is_refused_by_name(folder, keys, value):
    assert read_run(folder)
    change(folder / "run.json", *keys, value=value)
    with pytest.raises(DataError, match=rf"run\.json has another {'.'.join(keys)} than start\.json"):
        read_run(folder)


@given(st.lists(st.tuples(st.integers(1, 7), st.integers(1, 4), st.integers(0, 2)), max_size=6))
def test_lost_steps_are_those_that_went_into_no_weights(lives):
    """Against a simulation that carries the set of steps in every checkpoint's weights along."""
    checkpoints: dict[int, frozenset[int]] = {0: frozenset()}
    ledger, resumes = 0, []
    weights: frozenset[int] = frozenset()
    for number, (steps, every, damaged) in enumerate([*lives, (3, 1, 0)]):
        if number:
            for newest in sorted(checkpoints, reverse=True)[:damaged]:
                del checkpoints[newest]
            reached = max(checkpoints, default=0)
            weights = checkpoints.get(reached, frozenset())
            resumes.append({"checkpoint_step": reached, "ledger_steps": ledger})
        for _ in range(steps):
            ledger += 1
            weights |= {ledger}
            if ledger % every == 0:
                checkpoints[ledger] = weights
    assert _lost(False, resumes) == ledger - len(weights)
    assert _lost(True, resumes) == 0
