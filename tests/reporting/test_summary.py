"""Several runs in one table: what may stand together, what follows from it, and what all of it spent."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from finished_runs import DELTA, RATE, SIGMA, STEPS, cell_config, lay_down
from scipy import stats

from dpeq.errors import ConfigError, DataError
from dpeq.privacy.composition import Part, compose, read_spent
from dpeq.reporting.numbers import round_up
from dpeq.reporting.summary import build_summary
from dpeq.reporting.summary_html import render_summary
from dpeq.reporting.summary_words import price_sentence, privacy_sentences

AUCS = {
    ("eqresnet9-d4", 1.0): [0.90, 0.92, 0.91],
    ("eqresnet9-d4", 8.0): [0.938, 0.941, 0.955],
    ("eqresnet9-d4", math.inf): [0.94, 0.95, 0.96],
    ("cnn-twin", 1.0): [0.80],
    ("cnn-twin", math.inf): [0.90],
    ("vit-twin", 8.0): [0.7, 0.7],
}
MODELS = {
    "eqresnet9-d4": {"name": "eqresnet9", "group": "D4"},
    "cnn-twin": {"name": "cnn", "match": "eqresnet9"},
    "vit-twin": {"name": "vit", "match": "eqresnet9"},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    room = tmp_path_factory.mktemp("runs") / "study" / "room"
    room.mkdir(parents=True)
    folders = []
    for (model, epsilon), aucs in AUCS.items():
        for k, auc in enumerate(aucs, 1):
            seed = k if model == "vit-twin" else None
            config = cell_config(room, f"x-{model}-eps{epsilon:g}-{k}", epsilon, seed=seed, model=MODELS[model])
            folders.append(lay_down(room, config, auc=auc))
    unfinished = cell_config(room, "x-eqresnet9-d4-eps1-4", 1.0, model=MODELS["eqresnet9-d4"])
    folders.append(lay_down(room, unfinished, finished=False, steps=3))
    return folders


@pytest.fixture(scope="module")
def summary(runs):
    return build_summary(runs)


def test_every_run_is_a_row_and_cells_are_means_over_repetitions(summary, runs):
    assert [row["run"] for row in summary["runs"]][:3] == [f"x-eqresnet9-d4-eps1-{k}" for k in (1, 2, 3)]
    assert {row["run"] for row in summary["runs"]} == {run.name for run in runs}
    assert len(summary["cells"]) == len(AUCS)
    for cell in summary["cells"]:
        epsilon = math.inf if cell["epsilon"] == "inf" else cell["epsilon"]
        aucs = AUCS[cell["model"], epsilon]
        assert (cell["n"], cell["scores"]["auc"]["mean"]) == (len(aucs), pytest.approx(np.mean(aucs)))
    row = next(row for row in summary["runs"] if row["state"] == "unfinished")
    assert (row["steps"], row["scores"], row["n"]) == (3, None, None)
    assert row["spent"] < next(one["spent"] for one in summary["runs"] if one["run"] == "x-eqresnet9-d4-eps1-1")
    assert summary["majority"] == {"auc": 0.5, "accuracy": 0.75, "balanced_accuracy": 0.5, "average_precision": 0.25}


def test_what_privacy_costs_has_welchs_interval(summary):
    prices = {(p["model"], p["epsilon"], p["score"]): p for p in summary["prices"]}
    price = prices["eqresnet9-d4", 1.0, "auc"]
    ours, open_ = AUCS["eqresnet9-d4", 1.0], AUCS["eqresnet9-d4", math.inf]
    low, high = stats.ttest_ind(open_, ours, equal_var=False).confidence_interval(0.95)
    assert [price["cost"][key] for key in ("mean", "low", "high")] == pytest.approx([0.04, low, high])
    assert "privacy costs 0.040 AUC (95 % interval 0.017 to 0.063)." in price["sentence"]
    assert "may as well be nothing" in prices["eqresnet9-d4", 8.0, "auc"]["sentence"]
    single = prices["cnn-twin", 1.0, "auc"]
    assert (single["cost"]["mean"], single["cost"]["low"]) == (pytest.approx(0.1), None)
    assert "0.100 AUC lower, and without repetitions of both" in single["sentence"]
    assert prices["vit-twin", 8.0, "auc"]["cost"] is None
    assert "what privacy costs it cannot be said" in prices["vit-twin", 8.0, "auc"]["sentence"]
    assert "(2 runs, all equal)" in prices["vit-twin", 8.0, "auc"]["sentence"]
    # of each network the strongest privacy is what the page begins with
    assert summary["conclusions"] == [
        prices[key]["sentence"]
        for key in (("eqresnet9-d4", 1.0, "auc"), ("cnn-twin", 1.0, "auc"), ("vit-twin", 8.0, "auc"))
    ]


def test_the_total_is_the_composition_of_all_private_plans_unfinished_ones_too(summary, runs):
    """Results may decide when a run is stopped, so that the steps it took until then are no bound."""
    private = [run for run in runs if "epsinf" not in run.name]
    privacy = summary["privacy"]
    by_hand = compose([Part(RATE, SIGMA[1.0], 5 * STEPS), Part(RATE, SIGMA[8.0], 5 * STEPS)], DELTA)
    realised, finished = (
        compose([Part(RATE, spent.plan.noise_multiplier, spent.steps) for spent in map(read_spent, some)], DELTA)
        for some in (private, [run for run in private if (run / "run.json").is_file()])
    )
    assert privacy["epsilon"] == pytest.approx(by_hand.epsilon)
    assert privacy["epsilon"] > realised.epsilon > finished.epsilon
    assert privacy["rdp"] == pytest.approx(by_hand.rdp)
    assert (privacy["private_runs"], privacy["unfinished_private_runs"], privacy["open_runs"]) == (10, 1, 4)
    told = " ".join(privacy["sentences"])
    assert "Ten private runs (one unfinished one counted with the whole plan), taken together," in told
    renyi = f"Only a Rényi total of at least ε = {round_up(by_hand.rdp, 2)} that was fixed in advance may be quoted"
    assert f"{renyi} then; if none was, no figure here holds." in told
    assert "Four runs without privacy: they carry no guarantee" in told
    assert "has no guarantee as a whole" in told
    assert "Two private runs with a seed: against readers who know or guess a seed there is no guarantee," in told


def test_a_seed_is_told_and_its_number_is_not(summary):
    seeded = {row["run"]: row["seeded"] for row in summary["runs"] if row["seeded"]}
    assert seeded == {"x-vit-twin-eps8-1": True, "x-vit-twin-eps8-2": True}
    assert '"seed"' not in json.dumps(summary)
    page = render_summary(summary)
    assert "Seeded runs: no guarantee against readers who know the seed" in page
    assert not re.search(r"seed \d", page)


def test_the_same_files_give_the_same_summary(summary, runs):
    assert json.dumps(build_summary(runs)) == json.dumps(summary)


def test_runs_without_privacy_alone_have_no_total(runs):
    summary = build_summary([run for run in runs if "epsinf" in run.name])
    assert (summary["privacy"]["epsilon"], summary["prices"], summary["conclusions"]) == (None, [], [])
    assert not any("taken together" in sentence for sentence in summary["privacy"]["sentences"])


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (lambda room, runs: [*runs, runs[0]], ConfigError, "named twice"),
        (
            lambda room, runs: [*runs, Path(shutil.copytree(runs[0], room / "copy"))],
            ConfigError,
            r"copy is a copy of .*x-eqresnet9-d4-eps1-1, and a copy is no repetition",
        ),
        (
            lambda room, runs: [*runs, lay_down(room, cell_config(room, "other", 1.0), data_sha256="0" * 64)],
            DataError,
            r"other was not trained on the data of .*x-eqresnet9-d4-eps1-1",
        ),
        (
            lambda room, runs: [run for run in runs if run.name.endswith("-4")],
            DataError,
            "None of these runs is finish",
        ),
        (lambda room, runs: [*runs, room / "nothing"], DataError, "There is no run directory"),
    ],
)
def test_what_cannot_stand_together(tmp_path, runs, make, error, sentence):
    with pytest.raises(error, match=sentence):
        build_summary(make(tmp_path, runs))


def test_another_test_set_is_refused_and_a_missing_score_says_what_to_run(tmp_path, runs):
    folder = lay_down(tmp_path, cell_config(tmp_path, "other", 1.0))
    metrics = json.loads((folder / "metrics.json").read_text())
    fewer = metrics | {"test": metrics["test"] | {"n": 39}}
    (folder / "metrics.json").write_text(json.dumps(fewer))
    with pytest.raises(DataError, match="other was tested on 39 cases"):
        build_summary([runs[0], folder])
    old = metrics | {"test": {key: value for key, value in metrics["test"].items() if key != "ece"}}
    (folder / "metrics.json").write_text(json.dumps(old))
    with pytest.raises(DataError, match="dpeq evaluate"):
        build_summary([runs[0], folder])


def test_other_settings_are_no_repetitions(tmp_path, runs):
    config = cell_config(tmp_path, "slower", 1.0, model=MODELS["cnn-twin"])
    slower = lay_down(tmp_path, config.model_copy(update={"training": config.training.model_copy(update={"lr": 0.1})}))
    cells = build_summary([*runs, slower])["cells"]
    names = [cell["model"] for cell in cells if cell["model"].startswith("cnn-twin") and cell["epsilon"] == 1.0]
    assert names == ["cnn-twin (training.lr=0.5)", "cnn-twin (training.lr=0.1)"]


def test_a_run_that_could_not_be_scored_is_told_beside_the_means(tmp_path, runs):
    before = build_summary(runs[:2])
    assert "failed" not in " ".join(before["scope"])
    failed = lay_down(tmp_path, cell_config(tmp_path, "failed", 8.0), finished=False)  # after its last step
    summary = build_summary([*runs[:2], failed])
    assert {row["run"]: row["state"] for row in summary["runs"]}["failed"] == "failed"
    told = "One run failed: all steps are spent, but there are no scores. Means are of the runs that could be scored"
    assert told in summary["scope"][-1]
    assert (summary["privacy"]["private_runs"], summary["privacy"]["unfinished_private_runs"]) == (3, 0)
    assert summary["privacy"]["epsilon"] > before["privacy"]["epsilon"]
    assert "<td>failed</td>" in re.sub(r"<td[^>]*>", "<td>", render_summary(summary))


def test_deltas_that_differ_are_said(tmp_path, runs):
    smaller = lay_down(tmp_path, cell_config(tmp_path, "smaller", 8.0), delta=1e-4)
    privacy = build_summary([runs[0], smaller])["privacy"]
    assert (privacy["delta"], privacy["deltas"]) == (1e-4, [1e-4, 1e-3])
    assert any("planned at different δ" in sentence for sentence in privacy["sentences"])


def test_reports_below_the_page_are_linked_and_no_others(tmp_path):
    configs = [cell_config(tmp_path, name, epsilon) for name, epsilon in (("a", 8.0), ("b", math.inf), ("c", 8.0))]
    a, b, c = (lay_down(tmp_path / "runs", config) for config in configs)
    report = tmp_path / "runs" / "reports" / "b-nonprivate" / "report.html"
    report.parent.mkdir(parents=True)
    report.touch()
    for run in (b, c):
        (run / "report.html").unlink()

    def links(below):
        return {row["run"]: row["report"] for row in build_summary([a, b, c], below=below)["runs"]}

    assert links(tmp_path / "runs" / "reports") == {"a": None, "b": "b-nonprivate/report.html", "c": None}
    assert links(tmp_path / "runs") == {"a": "a/report.html", "b": None, "c": None}


PRICE = {"model": "net", "epsilon": 2.0, "score": "auc", "ours": {"n": 3, "mean": 0.95, "low": 0.94, "high": 0.96}}


def test_a_gain_is_called_one():
    open_ = {"n": 3, "mean": 0.9, "low": 0.89, "high": 0.91}
    sentence = price_sentence({**PRICE, "open": open_, "cost": {"mean": -0.05, "low": -0.07, "high": -0.03}})
    assert "with privacy it is 0.050 AUC higher: privacy costs −0.050 AUC (95 % interval −0.070 to −0.030)." in sentence


def test_no_renyi_figure_means_that_none_holds(summary):
    told = " ".join(privacy_sentences({**summary["privacy"], "rdp": None}))
    assert "results decided what was run next, it does not. No figure here holds then." in told


def test_one_private_run_is_not_called_several():
    privacy = {
        **{"unit": "patient", "private_runs": 1, "unfinished_private_runs": 0, "open_runs": 0, "seeded_runs": 0},
        **{"audit_trainings": 0, "refuted_runs": []},
        **{"deltas": [1e-4], "epsilon": 7.991, "delta": 1e-4, "rdp": 8.1, "accountant_note": None},
    }
    told = privacy_sentences(privacy)
    assert "One image is protected, not one patient" not in " ".join(told)
    assert "One image is protected, not one patient" in " ".join(privacy_sentences({**privacy, "unit": "image"}))
    whom = "one patient, with all images of that patient"
    assert (
        told[0].replace("\N{NO-BREAK SPACE}", " ")
        == f"The one private run has spent ε = 8.00 at δ = 1 × 10⁻⁴ for {whom}."
    )
    assert len(told) == 2
