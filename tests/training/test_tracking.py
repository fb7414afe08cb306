"""What a run's curves hold, read back with the readers of those who made the formats; and what they must not hold."""

from __future__ import annotations

import json
import logging
import math
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dpeq.config import RunConfig, load_config
from dpeq.errors import ConfigError
from dpeq.privacy.plan import PrivacyPlan
from dpeq.training.loop import PrivateRecord, StepRecord
from dpeq.training.tracking import BLOCK, check_tracking, open_trackers, public_settings, send_report

PLAN = PrivacyPlan.from_dict(
    {
        "epsilon_target": 8.0,
        "delta": 1e-4,
        "unit": "patient",
        "sample_rate": 0.1,
        "steps": 25,
        "expected_batch_size": 100,
        "noise_multiplier": 1.4,
        "max_grad_norm": 1.0,
        "public_units": 1000,
        "views": 1,
        "neighbouring": "add_remove_one_unit",
        "sampling": "poisson",
        "clipping": "fixed",
        "accountant": "prv",
        "accountant_note": None,
        "mu": 1.9,
        "epsilon": {"prv_upper": 7.98},
    }
)
PRIVATE = PrivateRecord(units=97, loss=0.7310585, gradient_norm=3.1415927, clipped=0.2718282, not_finite=0)
METRICS = {
    "weights": "ema",
    "val": {"auc": {"value": 0.8, "low": 0.7, "high": 0.9}},
    "test": {
        "n": 40,
        "auc": {"value": 0.75, "low": 0.5, "high": 0.875},
        "majority_accuracy": 0.625,
        "recall": [{"class": "no finding (clear)", "n": 20, "value": 0.5, "low": 0.25, "high": 0.625}],
        "confusion": [[1, 2], [3, 4]],
        "roc": {"fpr": [0.0], "tpr": [1.0]},
    },
}


def configuration(*overrides: str) -> RunConfig:
    return load_config("pneumoniamnist", overrides)


def record(step: int, private: PrivateRecord | None = PRIVATE) -> StepRecord:
    """Step t takes t / 10 seconds, so that no two means agree."""
    return StepRecord(step, 0.5 / step, step / 10, 1000 / step, private)


def epsilon(step: int) -> float:
    return 0.1 * step  # 0.1, 0.3, ... are no float32


def events(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def raw(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "runs" / "one"
    made.mkdir(parents=True, mode=0o700)
    return made


def test_tensorboard_reads_back_what_was_said(folder):
    with open_trackers(configuration(), folder, PLAN) as tracker:
        for step in range(1, 26):
            tracker.step(record(step), epsilon(step))
        tracker.finish(METRICS)
    found = events(folder / "tb")
    lr = found.Scalars("lr")
    assert [e.step for e in lr] == list(range(1, 26))
    assert [e.value for e in lr] == pytest.approx([0.5 / step for step in range(1, 26)])
    shown = found.Scalars("epsilon")
    assert [e.value for e in shown] == pytest.approx([epsilon(step) for step in range(1, 26)])
    assert all(e.value >= epsilon(e.step) for e in shown)  # rounding to float32 must not make epsilon smaller
    # Means of steps 1..10 and 11..20, to two digits: 0.55 and 1.55 seconds; 100 units over each. The rest has no speed.
    assert [(e.step, round(e.value, 3)) for e in found.Scalars("speed/seconds_per_step")] == [
        (10, 0.55),
        (20, 1.6),
    ]
    assert [round(e.value) for e in found.Scalars("speed/units_per_second")] == [180, 65]
    scores = {tag: found.Scalars(tag)[0] for tag in found.Tags()["scalars"] if tag.startswith(("val/", "test/"))}
    assert {tag: e.value for tag, e in scores.items()} == pytest.approx(
        {
            "val/auc": 0.8,
            "val/auc_low": 0.7,
            "val/auc_high": 0.9,
            "test/n": 40,
            "test/auc": 0.75,
            "test/auc_low": 0.5,
            "test/auc_high": 0.875,
            "test/majority_accuracy": 0.625,
            "test/recall_0_no_finding__clear_": 0.5,
            "test/recall_0_no_finding__clear__low": 0.25,
            "test/recall_0_no_finding__clear__high": 0.625,
        }
    )
    assert {e.step for e in scores.values()} == {25}
    assert tracker.places == ("tb/ in the run directory",)
    assert tracker.warnings == []


def test_plan_and_configuration_are_there_to_read(folder):
    with open_trackers(configuration("training.lr=0.125"), folder, PLAN):
        pass
    found = events(folder / "tb")
    texts = {tag: found.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in found.Tags()["tensors"]}
    assert "plan.noise_multiplier: 1.4" in texts["plan/text_summary"]
    assert f"plan.sha256: {PLAN.sha256}" in texts["plan/text_summary"]
    assert "training.lr: 0.125" in texts["configuration/text_summary"]


def test_nothing_private_without_the_flag(folder):
    """Even if the records carry it: by the tags, and by the bytes of the file."""
    with open_trackers(configuration(), folder, PLAN) as tracker:
        for step in range(1, 26):
            tracker.step(record(step), epsilon(step))
        tracker.finish(METRICS)
    tags = events(folder / "tb").Tags()["scalars"]
    assert {tag for tag in tags if not tag.startswith(("val/", "test/"))} == {
        "epsilon",
        "lr",
        "speed/seconds_per_step",
        "speed/units_per_second",
    }
    content = raw(folder / "tb")
    assert b"epsilon" in content
    assert b"private/" not in content
    for value in (PRIVATE.loss, PRIVATE.gradient_norm, PRIVATE.clipped, float(PRIVATE.units)):
        assert struct.pack("<f", value) not in content


def test_private_quantities_with_the_flag_have_tags_that_say_so(folder):
    with open_trackers(configuration("training.log_private_metrics=true"), folder, PLAN) as tracker:
        tracker.step(record(1), 0.1)
        tracker.step(record(2, private=None), 0.2)
    found = events(folder / "tb")
    private = {tag for tag in found.Tags()["scalars"] if tag.startswith("private/")}
    assert private == {f"private/{name}" for name in ("units", "loss", "gradient_norm", "clipped", "not_finite")}
    assert [(e.step, e.value) for e in found.Scalars("private/loss")] == [(1, pytest.approx(PRIVATE.loss))]
    content = raw(folder / "tb")
    for value in (PRIVATE.loss, PRIVATE.gradient_norm, PRIVATE.clipped, float(PRIVATE.units)):
        assert struct.pack("<f", value) in content  # what the test above looks for is how it would be written


def test_the_time_of_a_single_step_cannot_be_read_off(folder):
    """It tells how many units were sampled: neither values nor the times of the events may give it away."""
    with open_trackers(configuration(), folder, PLAN) as tracker:
        for step in range(1, 2 * BLOCK + 1):
            tracker.step(record(step), epsilon(step))
    found = events(folder / "tb")
    times: dict[int, set[float]] = {}
    for tag in ("lr", "epsilon"):
        for e in found.Scalars(tag):
            times.setdefault((e.step - 1) // BLOCK, set()).add(e.wall_time)
    for block in times.values():
        assert max(block) - min(block) == 0
        assert max(block) % 60 == 0, "nor may the time between two blocks"
    assert len(found.Scalars("speed/seconds_per_step")) == 2


@pytest.mark.parametrize("steps", [1, BLOCK - 1])
def test_a_block_that_was_cut_short_has_no_speed(folder, steps):
    with open_trackers(configuration(), folder, PLAN) as tracker:
        for step in range(1, steps + 1):
            tracker.step(record(step), epsilon(step))
    tags = events(folder / "tb").Tags()["scalars"]
    assert "lr" in tags
    assert not any(tag.startswith("speed/") for tag in tags)


def test_only_the_owner_can_read_the_curves(folder):
    old = os.umask(0)  # the most careless one
    try:
        with open_trackers(configuration(), folder, PLAN) as tracker:
            for step in range(1, 26):
                tracker.step(record(step), epsilon(step))
            tracker.finish(METRICS)
    finally:
        os.umask(old)
    assert (folder / "tb").stat().st_mode & 0o777 == 0o700
    files = list((folder / "tb").iterdir())
    assert files
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_curves_go_on_after_a_resume(folder):
    """Steps 16 to 20 were drawn, then lost with the process; the run went on from the checkpoint of step 15."""
    with open_trackers(configuration(), folder, PLAN) as first:
        for step in range(1, 21):
            first.step(record(step), epsilon(step))
    with open_trackers(configuration(), folder, PLAN, resumed_at=15) as second:
        for step in range(16, 26):
            second.step(StepRecord(step, 77.0, 1.0, 100.0), epsilon(step))
        second.finish(METRICS)
    found = events(folder / "tb")
    assert [(e.step, e.value == 77.0) for e in found.Scalars("lr")] == [(step, step > 15) for step in range(1, 26)]
    assert {e.step for e in found.Scalars("test/auc")} == {25}
    assert len(found.Tensors("plan/text_summary")) == 1
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in (folder / "tb").iterdir())


def test_what_was_not_written_yet_is_written_when_a_run_breaks(folder):
    def broken() -> None:
        with open_trackers(configuration(), folder, PLAN) as tracker:
            tracker.step(record(1), 0.1)
            raise RuntimeError("the machine is on fire")

    with pytest.raises(RuntimeError, match="on fire"):
        broken()
    assert [e.step for e in events(folder / "tb").Scalars("lr")] == [1]


def test_without_privacy_there_is_no_epsilon_to_draw(folder):
    with open_trackers(configuration(), folder, PLAN) as tracker:
        tracker.step(record(1), math.inf)
    assert "epsilon" not in events(folder / "tb").Tags()["scalars"]


@pytest.mark.parametrize(("overrides", "leads"), [(("tracking.tensorboard=false",), True), ((), False)])
def test_switched_off_or_not_leading_nothing_is_written(folder, overrides, leads):
    with open_trackers(configuration(*overrides), folder, PLAN, leads=leads) as tracker:
        tracker.step(record(1), 0.1)
        tracker.finish(METRICS)
    assert tracker.places == ()
    assert list(folder.iterdir()) == []


def test_no_path_and_no_address_leaves_the_house():
    config = configuration(
        "data.root=/secret/share", "tracking.mlflow_uri=https://user:word@host", "model.arguments={file: /secret/x}"
    )
    config = config.model_copy(
        update={"data": config.data.model_copy(update={"manifest": Path("secret.json"), "card": "secret/clinic.yaml"})}
    )
    settings = public_settings(config, PLAN)
    assert "secret" not in json.dumps(settings)
    assert "word" not in json.dumps(settings)
    assert settings["data.card"] == "clinic.yaml"
    assert settings["plan.epsilon.prv_upper"] == 7.98
    assert settings["privacy.delta"] == config.privacy.delta
    assert not {"data.root", "data.manifest"} & set(settings)


def test_tracking_is_imported_only_by_who_tracks():
    code = (
        "import sys, dpeq.cli, dpeq.training.tracking;"
        "print([m for m in ('torch', 'tensorboard', 'mlflow', 'tensorflow') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_missing_package_is_named_before_anything_begins(folder, monkeypatch, environment):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    config = configuration("tracking.mlflow=true")
    with pytest.raises(ConfigError, match=r"pip install dpeq\[mlflow\]"):
        check_tracking(config)
    with pytest.raises(ConfigError, match=r"pip install dpeq\[mlflow\]"):
        open_trackers(config, folder, PLAN)
    assert list(folder.iterdir()) == []
    check_tracking(configuration())


@pytest.fixture
def environment():
    """The environment as it was, without settings of MLflow."""
    before = dict(os.environ)
    for name in [name for name in before if name.startswith("MLFLOW_")]:
        del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def client(environment, folder) -> Callable[[], Any]:
    """Makes a client of the local store beside the runs, as MLflow's own tools would."""
    pytest.importorskip("mlflow", reason="MLflow is an extra; pip install dpeq[mlflow]")

    def connect() -> Any:  # only then: a client makes the folder that it is pointed at
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=(folder.parent / "mlruns").as_uri())

    return connect


def the_run(client: Callable[[], Any]) -> Any:
    (experiment,) = [e for e in client().search_experiments() if e.name == "dpeq"]
    (run,) = client().search_runs([experiment.experiment_id])
    return run


WITH_MLFLOW = ("tracking.mlflow=true", "tracking.tensorboard=false")


def test_mlflow_reads_back_what_was_said(client, folder):
    with open_trackers(configuration(*WITH_MLFLOW, "data.root=/secret/share"), folder, PLAN) as tracker:
        for step in range(1, 26):
            tracker.step(record(step), epsilon(step))
        assert the_run(client).info.status == "RUNNING"
        tracker.finish(METRICS)
    run = the_run(client)
    assert (run.info.run_name, run.info.status) == ("one", "FINISHED")
    assert run.data.tags["privacy"] == "epsilon 8, delta 0.0001 per patient"
    assert run.data.params["plan.noise_multiplier"] == "1.4"
    assert run.data.params["privacy.delta"] == "0.0001"
    history = client().get_metric_history(run.info.run_id, "epsilon")
    assert [(m.step, m.value) for m in sorted(history, key=lambda m: m.step)] == [(s, epsilon(s)) for s in range(1, 26)]
    assert len({m.timestamp for m in history if m.step <= BLOCK}) == 1
    assert run.data.metrics["test/auc"] == 0.75
    assert {name for name in run.data.metrics if not name.startswith(("val/", "test/"))} == {
        "epsilon",
        "lr",
        "speed/seconds_per_step",
        "speed/units_per_second",
    }
    store = folder.parent / "mlruns"
    assert b"/secret" not in raw(store)
    assert store.stat().st_mode & 0o777 == 0o700
    assert tracker.places == (f"MLflow at {store.as_uri()}",)
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_mlflow_shows_private_quantities_only_when_asked(client, folder):
    with open_trackers(configuration(*WITH_MLFLOW, "training.log_private_metrics=true"), folder, PLAN) as tracker:
        tracker.step(record(1), 0.1)
    metrics = the_run(client).data.metrics
    assert {name: value for name, value in metrics.items() if name.startswith("private/")} == {
        "private/units": 97,
        "private/loss": PRIVATE.loss,
        "private/gradient_norm": PRIVATE.gradient_norm,
        "private/clipped": PRIVATE.clipped,
        "private/not_finite": 0,
    }


def test_mlflow_goes_on_in_the_same_run(client, folder):
    config = configuration(*WITH_MLFLOW)
    with open_trackers(config, folder, PLAN) as first:
        first.step(record(1), 0.1)
    assert the_run(client).info.status == "KILLED"  # stopped, without an error and without scores
    with open_trackers(config, folder, PLAN, resumed_at=1) as second:
        assert the_run(client).info.status == "RUNNING"
        second.step(record(2), 0.2)
        second.finish(METRICS)
    assert second.places == first.places
    run = the_run(client)
    assert run.info.status == "FINISHED"
    assert [m.step for m in client().get_metric_history(run.info.run_id, "lr")] == [1, 2]


def test_where_an_earlier_session_tracked_stays_known(client, folder):
    """A report names every place where private quantities may lie."""
    with open_trackers(configuration(*WITH_MLFLOW), folder, PLAN) as first:
        first.step(record(1), 0.1)
    with open_trackers(configuration(), folder, PLAN, resumed_at=1) as second:
        second.finish(METRICS)
    assert second.places == ("tb/ in the run directory", *first.places)


def test_mlflow_gets_the_time_of_the_block_and_every_value_once(client, folder, monkeypatch):
    monkeypatch.setattr("dpeq.training.mlflow_run._METRICS_AT_ONCE", 7)
    monkeypatch.setattr("dpeq.training.tracking.time.time", lambda: 1234.5)
    with open_trackers(configuration(*WITH_MLFLOW), folder, PLAN) as tracker:
        for step in range(1, 26):
            tracker.step(record(step), epsilon(step))
    history = client().get_metric_history(the_run(client).info.run_id, "lr")
    assert sorted((m.step, m.timestamp) for m in history) == [(step, 1200000) for step in range(1, 26)]


def test_a_run_that_broke_is_marked(client, folder):
    def broken() -> None:
        with open_trackers(configuration(*WITH_MLFLOW), folder, PLAN):
            raise RuntimeError("on fire")

    with pytest.raises(RuntimeError, match="on fire"):
        broken()
    assert the_run(client).info.status == "FAILED"


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_store_that_goes_away_does_not_end_the_run_and_is_reported(client, folder, caplog, comes_back):
    store, away = folder.parent / "mlruns", folder.parent / "elsewhere"
    config = configuration("tracking.mlflow=true")
    with caplog.at_level(logging.WARNING, "dpeq"), open_trackers(config, folder, PLAN) as tracker:
        for step in range(1, 11):
            tracker.step(record(step), epsilon(step))
        store.rename(away)
        for step in range(11, 26):
            tracker.step(record(step), epsilon(step))
        if comes_back:
            away.rename(store)
        tracker.finish(METRICS)
    assert [r.levelname for r in caplog.records if r.name.startswith("dpeq")] == ["WARNING"]  # once
    (warning,) = tracker.warnings
    assert "failed during training" in warning
    assert ("was sent later" if comes_back else "values are missing there") in warning
    assert [e.step for e in events(folder / "tb").Scalars("lr")] == list(range(1, 26))
    if comes_back:
        run = the_run(client)
        assert run.info.status == "FINISHED"
        assert len(client().get_metric_history(run.info.run_id, "lr")) == 25


def test_a_server_that_is_not_there_is_named_before_the_run_begins(client, folder):
    """Without its password, in the error and in what caused it to be shown."""
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    config = configuration(*WITH_MLFLOW, "tracking.mlflow_uri=http://anna:geheim@127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"http://127\.0\.0\.1:9 .*mend tracking\.mlflow_uri") as caught:
        open_trackers(config, folder, PLAN)
    assert "geheim" not in str(caught.value)
    assert "anna" not in str(caught.value)
    assert list(folder.iterdir()) == []


def test_the_address_may_come_from_the_environment(client, folder, tmp_path):
    os.environ["MLFLOW_TRACKING_URI"] = (tmp_path / "else").as_uri()
    with open_trackers(configuration(*WITH_MLFLOW), folder, PLAN) as tracker:
        pass
    assert tracker.places == (f"MLflow at {(tmp_path / 'else').as_uri()}",)
    assert not (folder.parent / "mlruns").exists()
    with open_trackers(configuration(*WITH_MLFLOW, f"tracking.mlflow_uri={tmp_path}/mine"), tmp_path, PLAN) as tracker:
        pass
    assert tracker.places == (f"MLflow at {tmp_path}/mine",)


def test_the_report_goes_to_the_run_that_tracked_it(client, folder, caplog):
    config = configuration(*WITH_MLFLOW)
    with open_trackers(config, folder, PLAN) as tracker:
        tracker.finish(METRICS)
    (folder / "report.json").write_text("{}")
    (folder / "report.html").write_text("<html>")
    send_report(configuration(), folder)
    assert client().list_artifacts(the_run(client).info.run_id) == []
    send_report(config, folder)
    assert {f.path for f in client().list_artifacts(the_run(client).info.run_id)} == {"report.json", "report.html"}
    (folder / "report.json").unlink()
    with caplog.at_level(logging.WARNING, "dpeq"):
        send_report(config, folder)
    assert "did not take the report" in caplog.text
