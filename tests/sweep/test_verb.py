"""The verb ``sweep``: what it runs, skips, reports and prints."""

import io
import json
import os
import shlex
from dataclasses import replace
from hashlib import md5
from pathlib import Path

import numpy as np
import pytest
import typer
from finished_runs import DELTA, RATE, SIGMA, STEPS, cell_config, lay_down, plan_at
from made_audits import put_ledger
from rich.console import Console

from benchmarks.killable import make_config
from dpeq import sweep_verb
from dpeq.config import load_config, write_config
from dpeq.errors import ConfigError, DpeqError
from dpeq.interruption import GracefulStop
from dpeq.privacy import accounting
from dpeq.privacy.composition import Part, compose
from dpeq.reporting.numbers import round_up
from dpeq.sweep import worker
from dpeq.sweep.cell import run_cell
from dpeq.sweep.pool import Ended, _task
from dpeq.sweep_verb import Asked
from dpeq.training.run import Silent, uninterruptible

EPSILONS = ("8", "inf")


@pytest.fixture(scope="module", autouse=True)
def _accountants():
    """Started once for all tests here."""
    with accounting.session("pld", "rdp"):
        yield


@pytest.fixture
def room(tmp_path, monkeypatch):
    """A recipe; plans without an accountant, and cells that are laid down finished instead of trained."""
    write_config(make_config(tmp_path, steps=STEPS, seed=None), tmp_path / "recipe.yaml")
    monkeypatch.setattr("dpeq.sweep.forecast.plan_of", lambda config: plan_at(config.privacy.epsilon))
    return tmp_path


def asked(room, **changes):
    given = {"epsilons": EPSILONS, "models": ("eqresnet9-small",), "seeds": 2, "workers": 2, "out": room / "out"}
    usual = {"config": str(room / "recipe.yaml"), "overrides": (), "seeded": False, "reports": None, "data_root": None}
    return Asked(**{**usual, **given, **changes})


def go(room, *, commands=False, dry_run=False, only=None, **changes):
    out, err = io.StringIO(), io.StringIO()
    code = 0
    try:
        sweep_verb.sweep(
            Console(file=out, width=120),
            Console(file=err, width=120),
            asked(room, **changes),
            commands=commands,
            dry_run=dry_run,
            only=only,
        )
    except typer.Exit as left:
        code = left.exit_code
    return code, out.getvalue(), err.getvalue()


@pytest.fixture
def pool(monkeypatch):
    """Names of the cells that were asked for; those in ``fails`` fail, all others are finished at once."""
    ran, fails = [], set()

    def run_cells(cells, *, out, audience, commands, **options):
        ended = []
        for cell in cells:
            ran.append(cell.name)
            audience.began(cell)
            if cell.name in fails:
                ended.append(Ended(cell, 1.0, error="It broke. (log: there)"))
            else:
                assert commands(cell).startswith("dpeq train <path> ")
                lay_down(out, cell.config, auc=0.9 + 0.01 * cell.repetition)
                ended.append(Ended(cell, 1.0, auc=0.9))
            audience.ended(ended[-1])
        return ended

    monkeypatch.setattr("dpeq.sweep.pool.run_cells", run_cells)
    monkeypatch.setattr("dpeq.reporting.summary_html.render_summary", lambda summary: "")  # its figures take a second
    return ran, fails


def test_failures_are_listed_and_the_next_sweep_runs_these_alone(room, pool):
    ran, fails = pool
    names = [f"chaos-eqresnet9-small-c4-eps{epsilon}-{k}" for k in (1, 2) for epsilon in EPSILONS]
    fails.add(names[1])
    code, out, err = go(room)
    assert (code, ran) == (1, names)
    assert f"Failed: {names[1]}: It broke. (log: there)" in err
    assert "1 failed; the same command tries again" in err
    assert "refused" not in err
    assert "4 cells in " in out
    assert "2 private cells together spend at most epsilon" in out
    assert "A patient with several images is protected less" in " ".join(out.split())
    summary = json.loads((room / "out" / "reports" / "summary.json").read_text())
    assert sorted(row["run"] for row in summary["runs"]) == sorted(set(names) - {names[1]})

    ran.clear()
    fails.clear()
    code, out, err = go(room)
    assert (code, ran, err) == (0, [names[1]], "")
    assert "3 done, 0 unfinished, 1 to" in out
    assert "Two private runs, taken together," in out.replace("\n", " ")
    summary = json.loads((room / "out" / "reports" / "summary.json").read_text())
    assert [(cell["epsilon"], cell["n"]) for cell in summary["cells"]] == [(8.0, 2), ("inf", 2)]

    ran.clear()
    code, out, err = go(room, overrides=("privacy.delta=1e-4",))  # another sweep into the same folder
    assert (code, ran) == (1, [])
    assert err.count("privacy.delta 0.001, but this sweep says 0.0001") == 4
    assert "4 refused; the same command refuses them again until what is named is changed." in " ".join(err.split())
    assert "tries again" not in err


def test_runs_that_the_grid_does_not_name_count_too(room, pool):
    _, out, _ = go(room, dry_run=True, seeds=1)
    assert "The one private cell spends at most epsilon" in out
    lay_down(room / "out", cell_config(room, "before", 1.0), finished=False, steps=2)
    code, out, _ = go(room, seeds=1)
    total = compose([Part(RATE, SIGMA[epsilon], STEPS) for epsilon in (1.0, 8.0)], DELTA).epsilon
    whom = "The one private cell, and 1 private run that lies in the folder besides, together spend"
    assert f"{whom} at most epsilon {round_up(total)} at" in " ".join(out.split())
    assert code == 0
    summary = json.loads((room / "out" / "reports" / "summary.json").read_text())
    assert (summary["privacy"]["private_runs"], summary["privacy"]["unfinished_private_runs"]) == (2, 1)


def test_trainings_for_audits_of_runs_in_the_folder_count_too(room, pool):
    go(room, seeds=1)
    (run,) = (room / "out").glob("*-eps8-1")
    put_ledger(run / "audits" / "one-run", plan_at(8.0), STEPS)
    put_ledger(run / "audits" / "shadow" / "target", plan_at(8.0), 1)  # stopped
    (open_run,) = (room / "out").glob("*-epsinf-1")
    put_ledger(open_run / "audits" / "shadow" / "target", plan_at(float("inf")), STEPS)  # spends no budget
    total = compose([Part(RATE, SIGMA[8.0], 3 * STEPS)], DELTA).epsilon
    code, out, _ = go(room, seeds=1)
    told = " ".join(out.split())
    assert f"The one private cell with 2 trainings for audits spends at most epsilon {round_up(total)} at" in told
    assert f"The one private run with two trainings for audits has spent ε = {round_up(total)} at" in told
    assert code == 0
    assert "1 private cells" not in told
    _, out, _ = go(room, dry_run=True, epsilons=("8",), seeds=2)
    total = compose([Part(RATE, SIGMA[8.0], 4 * STEPS)], DELTA).epsilon
    told = f"all 2 private cells with 2 trainings for audits together spend at most epsilon {round_up(total)} at"
    assert told in " ".join(out.split())


def test_what_was_begun_is_run_again_and_what_lacks_its_report(room, pool, monkeypatch):
    ran, _ = pool
    go(room, seeds=1)
    names = ran.copy()
    for name, missing in zip(names, ("run.json", "report.html"), strict=True):
        (room / "out" / name / missing).unlink()
    monkeypatch.setattr("dpeq.sweep.pool.run_cells", lambda cells, **options: ran.extend(c.name for c in cells) or [])
    code, out, _ = go(room, seeds=1)
    assert (code, ran) == (0, names + names)
    assert "0 done, 2 unfinished, 0 to begin" in " ".join(out.split())


def test_commands_are_the_grid_and_nothing_else(room, capsys, monkeypatch):
    code, out, err = go(room, commands=True, seeds=1, overrides=("training.lr=0.25",))
    assert (code, out, err) == (0, "", "")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    trained = []

    def train_and_report(config, *, runs, resume, **options):
        trained.append((config.name, config.privacy.epsilon, config.training.lr, resume))
        lay_down(runs, config)

    monkeypatch.setattr("dpeq.pipeline.train_and_report", train_and_report)
    monkeypatch.setattr("dpeq.console.summary_table", lambda report: "")
    from dpeq.cli import app

    for line in (*lines, lines[0]):  # one that is run twice trains once
        words = shlex.split(line)
        assert words[:2] == ["dpeq", "sweep"]
        app(words[1:], standalone_mode=False)
    names = [f"chaos-eqresnet9-small-c4-eps{epsilon}-1" for epsilon in EPSILONS]
    assert trained == [(names[0], 8.0, 0.25, None), (names[1], float("inf"), 0.25, None)]
    code, out, err = go(room, dry_run=True, seeds=1, overrides=("training.lr=0.25",))
    assert "2 cells in" in out
    assert "2 done" in out


def test_the_price_of_seeded_runs_says_that_seeds_can_be_guessed(room):
    told = "no guarantee against anybody who guesses that"
    for seeded in (True, False):
        _, out, _ = go(room, dry_run=True, seeded=seeded)
        assert (told in " ".join(out.split())) == seeded


def test_a_dry_run_trains_and_writes_nothing(room, pool):
    code, out, _ = go(room, dry_run=True)
    assert (code, pool[0]) == (0, [])
    assert out.count("new         chaos-eqresnet9-small-c4-eps") == 4
    assert not (room / "out").exists()


def test_a_run_of_another_unit_in_the_folder_is_refused_before_anything_is_spent(room, pool, monkeypatch):
    lay_down(room / "out", cell_config(room, "before", 1.0))
    patients = replace(plan_at(8.0), unit="patient")
    monkeypatch.setattr("dpeq.sweep.forecast.plan_of", lambda config: patients)
    with pytest.raises(ConfigError, match="before protects one image, and this sweep another unit"):
        go(room, seeds=1, epsilons=("8",))
    assert not pool[0]


def children_in_this_process(cells, *, out, reports, commands, audience, **options):
    """What children do, without starting them: these load torch anew."""
    ended = []
    for cell in cells:
        read, write = os.pipe()
        with os.fdopen(read) as answers:
            try:
                worker._run(json.loads(_task(cell, out, reports, commands(cell))), worker.Teller(write), GracefulStop())
            except DpeqError as error:
                ended.append(Ended(cell, 1.0, error=str(error)))
            finally:
                os.close(write)
            audience.began(cell)
            for answer in map(json.loads, answers):
                if "done" in answer:
                    ended.append(Ended(cell, 1.0, auc=answer["done"]["auc"]))
        audience.ended(ended[-1])
    return ended


def write_data(room, pixel):
    """Made-up images and a card of them; their first pixel is ``pixel``."""
    rng, arrays = np.random.default_rng(0), {}
    for split, n in (("train", 32), ("val", 8), ("test", 8)):
        labels = np.arange(n) % 2
        pixels = rng.integers(0, 120, (n, 8, 8)) + 120 * labels[:, None, None]
        pixels[0, 0, 0] = pixel
        arrays |= {f"{split}_images": pixels.astype(np.uint8), f"{split}_labels": labels[:, None].astype(np.uint8)}
    np.savez(room / "none.npz", **arrays)
    config = make_config(room, steps=2, seed=None)
    card = room / "card.yaml"
    digest = md5((room / "none.npz").read_bytes(), usedforsecurity=False).hexdigest()
    card.write_text(card.read_text().replace("0" * 32, digest))
    write_config(config, room / "recipe.yaml")


def meanwhile(room, folder):
    """A cell in whose place another run begins while its own data is loaded."""

    class Slow(Silent):
        def stage(self, text):
            folder.mkdir(exist_ok=True)

    config = load_config(room / "recipe.yaml", [f"name={folder.name}", "privacy.epsilon=inf"], data_root=Path())
    options = {"command": "dpeq", "observer": Slow(), "interruptible": uninterruptible}
    run_cell(config, out=room / "out", reports=room / "reports", **options)


def test_a_sweep_for_real(tmp_path, monkeypatch):
    """Two steps without privacy; then the data is another, and no further cell begins beside the run on the first."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dpeq.sweep.pool.run_cells", children_in_this_process)
    options = {"config": "recipe.yaml", "models": (), "epsilons": ("inf",), "out": Path("out"), "data_root": Path()}
    write_data(tmp_path, 0)
    code, _, err = go(tmp_path, seeds=1, **options)
    assert (code, err) == (0, "")
    run = tmp_path / "out" / "chaos-eqresnet9-small-c4-epsinf-1"
    assert (run / "run.json").is_file()
    assert json.loads((run / "start.json").read_text())["command"].startswith("dpeq train <path> ")
    summary = json.loads((tmp_path / "out" / "reports" / "summary.json").read_text())
    assert summary["runs"][0]["report"] == "chaos-eqresnet9-small-c4-epsinf-1-nonprivate/report.html"
    assert (tmp_path / "out" / "reports" / summary["runs"][0]["report"]).is_file()

    with pytest.raises(ConfigError, match=r"There is something at .*meanwhile already"):
        meanwhile(tmp_path, run.with_name("meanwhile"))
    assert not (tmp_path / "out" / "meanwhile-2").exists()

    write_data(tmp_path, 1)
    code, _, err = go(tmp_path, seeds=2, **options)
    told = " ".join(err.split())
    assert code == 1
    assert f"Refused: {run.name}: The run in out/{run.name} has card.md5" in told
    assert f"The data is not that of out/{run.name} (its fingerprint differs)" in told
    assert [path.parent.name for path in (tmp_path / "out").glob("*/*.*") if path.suffix == ".jsonl"] == [run.name]
    assert not (tmp_path / "out" / f"{run.name[:-1]}2").exists()
