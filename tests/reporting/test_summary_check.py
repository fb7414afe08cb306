"""A summary that was changed is refused, wherever it was changed."""

import copy
import dataclasses
import json
import math
import shutil

import pytest
from finished_runs import cell_config, lay_down
from rich.console import Console

from dpeq.errors import ConfigError, DataError
from dpeq.privacy.accounting import upper_bound
from dpeq.privacy.ledger import Ledger
from dpeq.privacy.plan import PrivacyPlan
from dpeq.report_verb import check_reports, report_runs
from dpeq.reporting.summary import build_summary
from dpeq.reporting.summary_check import check_summary
from dpeq.reporting.summary_html import write_summary


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    room = tmp_path_factory.mktemp("runs") / "study" / "room"
    room.mkdir(parents=True)
    cells = [(8.0, 0.91), (8.0, 0.92), (math.inf, 0.95), (math.inf, 0.96)]
    folders = [lay_down(room, cell_config(room, f"x-{k}", epsilon), auc=auc) for k, (epsilon, auc) in enumerate(cells)]
    folders.append(lay_down(room, cell_config(room, "x-unfinished", 1.0), finished=False, steps=2))
    return folders


@pytest.fixture(scope="module")
def summary(runs):
    return build_summary(runs)


def written(folder, summary):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "summary.json"
    path.write_text(json.dumps(summary))
    return path


def test_a_true_summary_passes_with_and_without_its_runs(tmp_path, runs, summary):
    alone = check_summary(written(tmp_path, summary))
    assert len(alone) == 5
    assert alone[-1].startswith("Not verified: the run folders are not at hand")
    for folder in (runs[0].parent, runs[0].parent / "reports"):
        beside = check_summary(written(folder, summary))
        assert beside[-1].startswith(f"The runs in {runs[0].parent} say the same")
        (folder / "summary.json").unlink()
    assert len(beside) == 5
    fewer = build_summary(runs[1:4])  # without a private run and one that was only begun
    told = check_summary(written(tmp_path, fewer), runs=runs[0].parent)[-1]
    assert told.startswith("Not verified: that no other run spent anything")
    assert f"leaves out {runs[0]}, {runs[4]}: what they spent adds" in told
    without_open = build_summary([*runs[:3], runs[4]])  # what is left out spent nothing
    assert len(check_summary(written(tmp_path, without_open), runs=runs[0].parent)) == 5


def test_a_private_run_that_cannot_be_read_is_told_as_left_out(tmp_path, runs, summary):
    room = tmp_path / "runs"
    shutil.copytree(runs[0].parent, room)
    shutil.copytree(room / "x-0", room / "copy-of-x-0")  # spent nothing of its own
    (room / "broken").mkdir()
    (room / "broken" / "ledger.jsonl").touch()
    (room / "link-to-broken").symlink_to(room / "broken")  # no second run
    assert f"leaves out {room / 'broken'}:" in check_summary(written(tmp_path, summary), runs=room)[-1]


def test_another_run_of_the_same_name_one_folder_above_is_told_as_left_out(tmp_path, runs, summary):
    shutil.copytree(runs[0].parent, tmp_path / "runs" / "inner")
    other = lay_down(tmp_path / "runs", cell_config(tmp_path, "x-0", 8.0), finished=False, steps=2)
    told = check_summary(written(tmp_path / "runs" / "inner", summary))[-1]
    assert f"leaves out {other}: what they spent adds" in told


def test_one_run_that_is_not_at_hand_turns_off_no_check_of_the_others(tmp_path, runs, summary):
    room = tmp_path / "runs"
    shutil.copytree(runs[0].parent, room)
    (room / "x-2").rename(room / "elsewhere")
    path = written(tmp_path, summary)
    told = check_summary(path, runs=room)
    assert "4 of 5 runs are at hand" in told[-2]
    assert told[-1].startswith("Not verified: x-2: no folder of that name")
    forged = copy.deepcopy(summary)
    forged["runs"][0]["seconds"] = 1.0
    with pytest.raises(DataError, match="seconds is not what lies in"):
        check_summary(written(tmp_path, forged), runs=room)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s["data"].update(title="CheXpert"), "data/title is not what the runs say"),
        (lambda s: s["data"].update(classes=["a", "c"]), "data/classes/1 is not what the runs say"),
        (lambda s: s["runs"][3].update(report="elsewhere/x-2/report.html"), "report is not what lies in"),
        (lambda s: s["runs"].append(s["runs"][0]), "does not follow|a run twice"),
    ],
)
def test_what_only_the_runs_know_is_held_against_them(tmp_path, runs, change, reason):
    summary = build_summary(runs, below=runs[0].parent)
    forged = copy.deepcopy(summary)
    change(forged)
    path = written(runs[0].parent, forged)
    try:
        with pytest.raises(DataError, match=reason):
            check_summary(path)
    finally:
        path.unlink()


@pytest.mark.parametrize(
    "link",
    [
        *("https://evil.example/x-0/report.html", "//evil.example/x-0/report.html", "../x-0/report.html"),
        *(
            "/x-0/report.html",
            "x-0\\report.html",
            "report.html",
            "x-0/page.html",
            "x-1/report.html",
            "./x-0/report.html",
        ),
    ],
)
def test_a_link_that_leads_elsewhere_is_refused(tmp_path, summary, link):
    forged = copy.deepcopy(summary)
    row = next(row for row in forged["runs"] if row["run"] == "x-0")
    for good in ("x-0/report.html", "deeper/x-0-nonprivate/report.html"):
        row["report"] = good
        check_summary(written(tmp_path, forged))
    row["report"] = link
    with pytest.raises(DataError, match="no report of it"):
        check_summary(written(tmp_path, forged))


def test_a_total_may_fall_short_by_rounding_alone(tmp_path, summary):
    from dpeq.reporting.summary import compose_rows, privacy_of

    for key in ("epsilon", "rdp"):
        for share, passes in ((1 - 1e-7, True), (1 - 1e-5, False)):
            total = compose_rows(summary["runs"])
            changed = dataclasses.replace(total, **{key: getattr(total, key) * share})
            forged = {**summary, "privacy": json.loads(json.dumps(privacy_of(summary["runs"], changed)))}
            path = written(tmp_path, forged)
            if passes:
                assert check_summary(path)
            else:
                with pytest.raises(DataError, match=f"total {key} .* is below"):
                    check_summary(path)


@pytest.mark.parametrize("change", [{"note": "Certified by the federal office."}, {"accountant": "gaussian"}])
def test_what_the_total_rests_on_is_computed_and_not_taken(tmp_path, summary, change):
    from dpeq.reporting.summary import compose_rows, privacy_of

    total = dataclasses.replace(compose_rows(summary["runs"]), **change)
    forged = {**summary, "privacy": json.loads(json.dumps(privacy_of(summary["runs"], total)))}
    with pytest.raises(DataError, match=r"privacy/accountant.* does not follow"):
        check_summary(written(tmp_path, forged))


def test_a_page_of_a_summary_that_shows_anything_else_is_refused(tmp_path, summary):
    page, path = write_summary(summary, tmp_path)
    assert check_summary(path)[-1] == "summary.html shows what summary.json says."
    page.write_text(page.read_text().replace("Made-up", "Real"))
    with pytest.raises(DataError, match=r"summary\.html beside it shows something else"):
        check_summary(path)


def at(summary, *place):
    for key in place:
        summary = summary[key]
    return summary


FORGERIES = {
    "an audit's trainings left out of the total": (
        ("runs", 0, "audit_trainings"),
        lambda value: value + 1,
        "total epsilon .* is below",
    ),
    "fewer trainings for audits": (("privacy", "audit_trainings"), lambda value: value + 1, "privacy/audit_trainings"),
    "a refuted run that is not told": (("runs", 0, "refuted"), lambda value: "It is false.", "privacy/refuted_runs"),
    "no refutation": (("privacy", "refuted_runs"), lambda value: ["x-0"], "privacy/refuted_runs"),
    "a refuted run without privacy": (
        ("runs", 3, "refuted"),
        lambda value: "It is false.",
        "no audit can have refuted",
    ),
    "a smaller total": (("privacy", "epsilon"), lambda value: value * 0.9, "total epsilon .* is below"),
    "a smaller Renyi total": (("privacy", "rdp"), lambda value: value * 0.9, "total rdp .* is below"),
    "no total": (("privacy", "epsilon"), lambda value: None, "total epsilon None is below"),
    "a larger delta": (("privacy", "delta"), lambda value: 0.01, "stated at delta 0.01"),
    "another sentence on privacy": (("privacy", "sentences", 0), lambda text: text + " Safe!", "privacy/sentences/0"),
    "fewer runs without privacy": (("privacy", "open_runs"), lambda value: 0, "privacy/open_runs"),
    "a better mean": (("cells", 0, "scores", "auc", "mean"), lambda value: value + 0.01, "cells/0/scores/auc/mean"),
    "a narrower interval": (("cells", 0, "scores", "auc", "low"), lambda value: value + 0.01, "cells/0/scores/auc/low"),
    "a smaller cost": (("prices", 0, "cost", "mean"), lambda value: 0.0, "prices/0/cost/mean"),
    "a kinder conclusion": (("conclusions", 0), lambda text: "Privacy costs nothing.", "conclusions/0"),
    "more repetitions": (("cells", 0, "n"), lambda value: 3, "cells/0/n"),
    "another majority class": (("majority", "accuracy"), lambda value: 0.5, "majority/accuracy"),
    "less spent": (("runs", 1, "spent"), lambda value: value / 2, "run x-0 states epsilon"),
    "spent under another target": (("runs", 1, "epsilon"), lambda value: 1.0, "more than its 1"),
    "more noise": (("runs", 0, "noise_multiplier"), lambda value: 5.0, "privacy/epsilon|does not follow"),
    "more steps": (("runs", 0, "steps"), lambda value: 9, "took 9 steps of a plan of 4"),
    "finished before its end": (("runs", 1, "steps"), lambda value: 3, "is finished and took 3 steps of a plan of 4"),
    "a little less spent": (
        ("runs", 1, "spent"),
        lambda value: upper_bound(0.25, 1.0, 4, 1e-3)[0] * (1 - 1e-5),
        "run x-0 states epsilon",
    ),
    "private without noise": (("runs", 3, "private"), lambda value: True, "private by some of its fields"),
    "other data": (("runs", 0, "data_sha256"), lambda value: "0" * 64, "of other data"),
    "a field that is none": (("level",), lambda value: 0.99, "breaks its schema at level"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_summary_is_refused(tmp_path, runs, summary, name):
    place, change, sentence = FORGERIES[name]
    forged = copy.deepcopy(summary)
    at(forged, *place[:-1])[place[-1]] = change(at(forged, *place))
    path = written(tmp_path, forged)
    if name == "more noise":  # consistent in itself, so long as nobody looks at the run
        with pytest.raises(DataError, match="noise_multiplier is not what lies in"):
            check_summary(path, runs=runs[0].parent)
        return
    with pytest.raises(DataError, match=sentence):
        check_summary(path)


def test_scores_that_were_changed_everywhere_differ_from_the_runs(tmp_path, runs, summary):
    forged = copy.deepcopy(summary)
    forged["runs"][1]["scores"]["balanced_accuracy"]["value"] += 0.01
    from dpeq.reporting.summary import derived

    forged = json.loads(json.dumps({**forged, **derived(forged["runs"])}))
    path = written(tmp_path, forged)
    check_summary(path)  # says that the scores are as stated
    with pytest.raises(DataError, match="x-0/scores/balanced_accuracy/value is not what lies in"):
        check_summary(path, runs=runs[0].parent)


def test_a_run_that_went_on_makes_its_summary_old(tmp_path, runs, summary):
    room = tmp_path / "runs"
    shutil.copytree(runs[0].parent, room)
    plan = PrivacyPlan.read(room / "x-unfinished" / "plan.json")
    with Ledger.open(room / "x-unfinished" / "ledger.jsonl", plan) as ledger:
        ledger.spend(3)
    with pytest.raises(DataError, match=r"x-unfinished/ledger_head is not what .*build it again"):
        check_summary(written(tmp_path, summary), runs=room)


def test_the_verb_writes_a_summary_and_checks_it(tmp_path, runs, capsys):
    room = tmp_path / "runs"
    shutil.copytree(runs[0].parent, room)
    (room / "x-0.log").touch()
    (room / "reports").mkdir(exist_ok=True)
    out = Console(width=200, markup=False, highlight=False)
    options = {"companion": None, "images": None, "images_per_patient": None, "data_root": None, "pdf": False}
    options["attacks_on_units"] = False
    report_runs(out, sorted(room.glob("*")), folder=room / "reports", **options)
    told = capsys.readouterr().out
    assert f"Left out: {room / 'x-0.log'} is no run." in told
    assert f"Summary: {room / 'reports' / 'summary.html'}" in told
    report_runs(out, [room], folder=None, **options)  # all runs of a folder, summarised beside them
    here, there = (json.loads((place / "summary.json").read_text()) for place in (room, room / "reports"))
    links = [[row.pop("report") for row in summary["runs"]] for summary in (here, there)]
    assert links == [[None, *(f"x-{k}/report.html" for k in range(4))], [None] * 5]
    assert here == there
    check_reports(out, [room, room / "reports" / "summary.json"])
    assert capsys.readouterr().out.count("ok  The runs in") == 2
    with pytest.raises(ConfigError, match="There is no"):
        report_runs(out, [room, tmp_path / "mistyped"], folder=None, **options)
    with pytest.raises(ConfigError, match="None of these is a run"):
        report_runs(out, [room / "x-0.log", room / "reports"], folder=None, **options)


def test_what_is_no_summary(tmp_path):
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as a summary"):
        check_summary(tmp_path / "summary.json")


def test_a_summary_that_breaks_its_schema_is_not_written(tmp_path, summary):
    with pytest.raises(DataError, match="breaks its schema at top level"):
        write_summary({**summary, "extra": 1}, tmp_path / "out")
    assert not (tmp_path / "out").exists()
