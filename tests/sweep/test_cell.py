"""What has become of a cell, and that it runs once."""

import math
import shutil

import pytest
from finished_runs import DATA_SHA256, STEPS, cell_config, lay_down

from dpeq.errors import ConfigError, DataError
from dpeq.pipeline import train_and_report
from dpeq.sweep.cell import run_cell, state_of
from dpeq.training.run import Finished, Silent, uninterruptible


@pytest.fixture
def asked(monkeypatch):
    """What would be trained, instead of training it."""
    import dpeq.pipeline

    calls = []
    monkeypatch.setattr(dpeq.pipeline, "train_and_report", lambda config, **options: calls.append((config, options)))
    return calls


def go(room, config):
    options = {"command": "dpeq train", "observer": Silent(), "interruptible": uninterruptible}
    return run_cell(config, out=room / "runs", reports=room / "reports", **options)


def test_done_unfinished_and_new(tmp_path, asked):
    done, begun, new = (cell_config(tmp_path, name, 8.0) for name in ("done", "begun", "new"))
    lay_down(tmp_path / "runs", done)
    lay_down(tmp_path / "runs", begun, finished=False, steps=2)
    states = [state_of(tmp_path / "runs" / config.name, config) for config in (done, begun, new)]
    assert states == ["done", "unfinished", "new"]
    for config in (done, begun, new):
        go(tmp_path, config)
    assert [(config.name, options["resume"]) for config, options in asked] == [
        ("begun", tmp_path / "runs" / "begun"),
        ("new", None),
    ]


@pytest.mark.parametrize(
    ("epsilon", "published", "missing"),
    [(8.0, "cell", "report.html"), (math.inf, "cell-nonprivate", "report.html"), (8.0, "cell", "report.json")],
)
def test_a_run_that_lacks_its_report_alone_gets_it(tmp_path, asked, monkeypatch, epsilon, published, missing):
    config = cell_config(tmp_path, "cell", epsilon)
    folder = lay_down(tmp_path / "runs", config)
    (folder / missing).unlink()
    assert state_of(folder, config) == "unreported"
    written = []
    monkeypatch.setattr("dpeq.reporting.model.build_report", lambda run: {"of": run})
    monkeypatch.setattr(
        "dpeq.reporting.html.write_report", lambda report, out: written.append((report, out)) or (out, out)
    )
    go(tmp_path, config)
    assert written == [({"of": folder}, tmp_path / "reports" / published), ({"of": folder}, folder)]
    assert not asked


def test_what_says_that_a_run_is_done_is_written_last(tmp_path, monkeypatch):
    """A sweep that is killed between two of these files finds the run unreported, and writes all of them again."""
    config = cell_config(tmp_path, "cell", 8.0)
    folder = lay_down(tmp_path / "runs", config)
    monkeypatch.setattr("dpeq.pipeline.run", lambda config, **options: Finished(folder, {}))
    monkeypatch.setattr("dpeq.reporting.model.build_report", lambda run, companion=None: {"images": None, "audits": []})
    for name in ("check_schema", "render_html"):
        monkeypatch.setattr(f"dpeq.reporting.html.{name}", lambda report, *kind: "")
    written = []
    monkeypatch.setattr("dpeq.reporting.html.write_whole", lambda path, data, **modes: written.append(path))
    train_and_report(config, runs=tmp_path / "runs", reports=tmp_path / "reports")
    places = (tmp_path / "reports" / "cell", folder)
    assert written == [place / name for place in places for name in ("report.json", "report.html")]


@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_are_an_error_and_no_silent_skip(tmp_path, asked, finished):
    config = cell_config(tmp_path, "cell", 8.0)
    folder = lay_down(tmp_path / "runs", config, finished=finished, steps=STEPS if finished else 1)
    other = config.model_copy(update={"training": config.training.model_copy(update={"lr": 0.25})})
    with pytest.raises(ConfigError, match=r"training.lr 0.5, but this sweep says 0.25; .*--out"):
        state_of(folder, other)
    with pytest.raises(ConfigError, match="another --out"):
        go(tmp_path, other)
    threads = config.model_copy(update={"training": config.training.model_copy(update={"threads": 3})})
    assert state_of(folder, threads) == ("done" if finished else "unfinished")  # how fast, not what
    assert not asked


def test_what_died_before_it_had_a_ledger_begins_anew_in_its_own_folder(tmp_path, asked):
    config = cell_config(tmp_path, "cell", 8.0)
    folder = lay_down(tmp_path / "runs", config, finished=False, steps=0)
    (folder / "ledger.jsonl").unlink()
    (folder / ".start.json.part").touch()
    go(tmp_path, config)
    assert not folder.exists()  # so that training takes this very name, not cell-2
    assert asked[0][1]["resume"] is None


def test_a_run_whose_ledger_is_missing_is_left_alone(tmp_path, asked):
    config = cell_config(tmp_path, "cell", 8.0)
    folder = lay_down(tmp_path / "runs", config)
    (folder / "checkpoints").mkdir()
    (folder / "ledger.jsonl").unlink()
    before = sorted(folder.iterdir())
    with pytest.raises(ConfigError, match="but no ledger"):
        go(tmp_path, config)
    assert sorted(folder.iterdir()) == before
    assert not asked


def test_a_cell_that_is_running_is_refused(tmp_path, monkeypatch):
    import dpeq.pipeline

    config = cell_config(tmp_path, "cell", 8.0)
    trained = []

    def train(config, **options):
        trained.append(config.name)
        with pytest.raises(ConfigError, match="Another process is running the cell cell"):
            go(tmp_path, config)

    monkeypatch.setattr(dpeq.pipeline, "train_and_report", train)
    go(tmp_path, config)
    go(tmp_path, config)  # the lock ended with its run
    assert trained == ["cell", "cell"]


def test_other_data_than_that_of_the_runs_beside_it_is_refused(tmp_path, asked):
    lay_down(tmp_path / "runs", cell_config(tmp_path, "before", 1.0), finished=False, steps=1)
    go(tmp_path, cell_config(tmp_path, "cell", 8.0))
    accept = asked[0][1]["accept"]
    accept(DATA_SHA256)
    with pytest.raises(DataError, match=r"not that of .*before \(its fingerprint differs\).*another --out"):
        accept("0" * 64)


def test_a_seeded_run_goes_on_with_the_threads_it_began_with(tmp_path, asked, monkeypatch):
    threads = []
    monkeypatch.setattr("torch.set_num_threads", threads.append)
    for seed, expected in ((None, []), (3, [1])):
        config = cell_config(tmp_path, "cell", 8.0, seed=seed)
        config = config.model_copy(update={"training": config.training.model_copy(update={"threads": None})})
        folder = lay_down(tmp_path / "runs", config, finished=False, steps=1)
        go(tmp_path, config)
        assert threads == expected
        shutil.rmtree(folder)
