"""Runs on an indexed folder: what the settings of images mean for network and plan, and that they resume exactly."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import yaml
from manifests import nifti_archive
from resuming import Crash, CrashAfter, weights

import dpeq.training.run as run_module
from benchmarks.killable import make_plan
from dpeq.config import RunConfig
from dpeq.data.sampling import Uniform, UnitViews
from dpeq.errors import ConfigError
from dpeq.privacy.plan import PrivacyPlan
from dpeq.training import follow
from dpeq.training.distributed import Ranks
from dpeq.training.run import prepare, run

STEPS = 6


def make_config(folder: Path, **changes: dict[str, object]) -> RunConfig:
    """Slices of made-up MR volumes, patients as units, everything that is random in a view."""
    symmetries = {"laterality_matters": False, "isotropic": True, "orientation_matters": False, "note": "made up"}
    card = {
        "name": "made-up", "title": "Made-up volumes", "kind": "folder", "source": "made up", "licence": "CC0 1.0",
        "citation": "none", "modality": "MR", "dim": 3, "classes": ["no", "yes"], "unit": "patient",
        "public_units": 12, "splits": {"train": 12, "val": 9, "test": 9}, "symmetries": symmetries,
        "preprocessing": {"preset": "mr", "size": [8, 8, 8]},
    }  # fmt: skip
    (folder / "card.yaml").write_text(yaml.safe_dump(card), encoding="utf-8")
    if not (folder / "manifest.json").exists():
        nifti_archive(folder, patients=30)
    values: dict[str, dict[str, object]] = {
        "data": {
            "card": str(folder / "card.yaml"), "manifest": str(folder / "manifest.json"), "view": "2.5d",
            "size": [8, 10, 3], "transforms": [{"name": "GaussianSmooth", "sigma": 0.7}],
        },
        "model": {"name": "eqresnet9-small", "group": "C2", "fields": [1, 1, 2], "norm_groups": [1, 1, 1]},
        "privacy": {"epsilon": 1000, "delta": 1e-3, "steps": STEPS, "expected_batch_size": 4, "views": 3},
        "views": {"images_per_unit": 2},
        "augment": {
            "shift": 1,
            "transforms": [{"name": "RandGaussianNoise", "prob": 0.6}, {"name": "RandAxisFlip", "prob": 0.6}],
        },
        "training": {"lr": 0.5, "seed": 7, "threads": 1, "checkpoint_every": 2, "physical_units": 3},
        "evaluation": {"bootstrap": 100},
        "tracking": {"tensorboard": False},
    }  # fmt: skip
    for section, change in changes.items():
        values[section] = {**values[section], **change}
    return RunConfig.model_validate({"name": "indexed", **values})


@pytest.fixture
def plan() -> PrivacyPlan:
    plan = make_plan(STEPS)
    return dataclasses.replace(plan, unit="patient", views=3)


@pytest.fixture
def room(tmp_path, plan, monkeypatch) -> Path:
    monkeypatch.setenv("DPEQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(run_module, "make_plan", lambda prepared: plan)
    return tmp_path


def go(room: Path, **options) -> Path:
    config = options.pop("config", None) or make_config(room)
    return run(config, out=room / "runs", command="test", **options).folder


def crash(room: Path) -> Path:
    with pytest.raises(Crash):
        go(room, observer=CrashAfter(5))
    return room / "runs" / "indexed"


def test_views_of_patients_resume_to_the_last_bit(room):
    """Images that were chosen, transforms that were drawn: a repeated step is the same step, in other batches too."""
    whole = weights(go(room))
    (room / "runs" / "indexed").rename(room / "whole")
    folder = crash(room)
    faster = make_config(room, data={"workers": 2, "cache": False})
    go(room, resume=folder, config=faster)
    assert weights(folder) == whole


@pytest.mark.parametrize(
    ("section", "change", "key"),
    [
        ("views", {"images_per_unit": 3}, r"views\.images_per_unit is 3 but was 2"),
        (
            "data",
            {"transforms": [{"name": "GaussianSmooth", "sigma": 0.8}]},
            r"data\.transforms is .*0\.8.* but was .*0\.7",
        ),
        ("data", {"percentiles": [1, 99]}, r"data\.percentiles is \[1\.0, 99\.0\] but was None"),
        ("augment", {"transforms": []}, r"augment\.transforms is \[\] but was \[{'name': 'RandGaussianNoise'"),
    ],
)
def test_other_images_or_views_are_refused_on_resuming(room, section, change, key):
    folder = crash(room)
    with pytest.raises(ConfigError, match=f"^{key}"):
        go(room, resume=folder, config=make_config(room, **{section: change}))


def test_no_step_shows_more_images_of_a_patient_than_asked_for(room, monkeypatch):
    """Of patients with 3 or 6 slices each, as they reach the network."""
    shown, choose = [], UnitViews.choose

    def watched(self: UnitViews, sampled: torch.Tensor, keys: Uniform) -> torch.Tensor:
        rows = choose(self, sampled, keys)
        shown.extend(len(row.unique()) for row in rows.view(-1, 3))
        return rows

    monkeypatch.setattr(UnitViews, "choose", watched)
    go(room)
    assert set(shown) == {2}
    shown.clear()
    go(room, config=make_config(room, views={"images_per_unit": None}))
    assert set(shown) == {3}


def test_every_process_of_a_run_is_told_the_same(room, monkeypatch):
    told = {}

    def listen(*arguments: object, **options: object) -> None:
        told.update(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(follow, "train", listen)
    monkeypatch.setattr(follow, "announce", lambda ranks, plan: make_plan(STEPS))
    with pytest.raises(KeyboardInterrupt):
        follow.follow(make_config(room), Ranks())
    assert told["images_per_unit"] == 2
    assert "RandAxisFlip" in repr(vars(told["augment"]))


def test_a_run_writes_down_what_its_images_went_through(room):
    folder = crash(room)
    settings = json.loads((folder / "start.json").read_text())["settings"]
    assert settings["data.transforms"] == [{"name": "GaussianSmooth", "sigma": 0.7}]
    assert settings["augment.transforms"][1] == {"name": "RandAxisFlip", "prob": 0.6}
    assert settings["views.images_per_unit"] == 2
    assert settings["card.preprocessing.percentiles"] == [0.5, 99.5]
    assert not {"data.workers", "data.cache", "data.cache_gib"} & settings.keys()
    written = yaml.safe_load((folder / "config.yaml").read_text())
    assert RunConfig.model_validate(written) == make_config(room)


def test_shapes_follow_the_view(tmp_path):
    assert prepare(make_config(tmp_path)).shape == (3, 10, 8)
    assert prepare(make_config(tmp_path, data={"view": "2d"})).shape == (1, 10, 8)
    solid = {"data": {"view": "3d", "size": [8, 9, 10]}, "model": {"name": "eqresnet9-3d-tiny", "group": "axial-C2"}}
    prepared = prepare(make_config(tmp_path, **solid, augment={"transforms": []}))
    assert prepared.shape == (1, 8, 9, 10)
    assert prepared.preprocessing is not None
    assert prepared.preprocessing.percentiles == (0.5, 99.5)


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("data", {"size": [8, 8]}, r"^data: size \[8, 8\] needs three numbers"),
        ("data", {"window": [0, 1], "percentiles": [1, 2]}, "^data: give either window or percentiles, not both"),
        ("data", {"transforms": [{"name": "GausianSmooth"}]}, r"^data\.transforms names GausianSmooth.*did you mean"),
        ("data", {"transforms": [{"name": "RandFlip"}]}, r"^data\.transforms names RandFlip, which is random"),
        (
            "data",
            {"transforms": [{"name": "Rotate90"}]},
            r"^data\.transforms: .* gives 3 x 8 x 10; only transforms that",
        ),
        ("augment", {"transforms": [{"name": "RandRotate90"}]}, r"^augment\.transforms: .* only transforms that keep"),
        ("augment", {"transforms": [{"name": "MixUp"}]}, r"^augment\.transforms names MixUp, which is not one"),
        ("augment", {"quarter_turns": True}, "square in the plane, not 10 x 8"),
    ],
)
def test_what_images_cannot_have_is_refused_before_they_are_read(tmp_path, section, change, message):
    with pytest.raises(ConfigError, match=message) as caught:
        prepare(make_config(tmp_path, **{section: change}))
    assert "\n" not in str(caught.value)
