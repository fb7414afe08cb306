"""Two real runs, trained for two steps: a private one on images, one without privacy on volumes; and their exports."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dpeq.config import load_config
from dpeq.data.images import ImageSet
from dpeq.export import Exported, export_run
from dpeq.training.run import run

SMALL = [
    "privacy.steps=2",
    "privacy.expected_batch_size=8",
    "privacy.public_units=12",
    "privacy.delta=1e-2",
    "training.seed=0",
    "training.lr=2",
    "training.threads=1",
    "evaluation.bootstrap=100",
    "model.fields=[1,1,2]",
    "model.norm_groups=[1,1,1]",
]


def made_up(shape: tuple[int, ...], classes: tuple[str, ...], unit: str) -> dict[str, ImageSet]:
    generator = torch.Generator().manual_seed(0)
    splits = {}
    for name in ("train", "val", "test"):
        labels, units = torch.arange(12) % 2, torch.arange(12)
        images = torch.randn(12, *shape, generator=generator) + labels.view(-1, *[1] * len(shape))
        splits[name] = ImageSet(images, labels, units, 12, classes, name, unit)
    return splits


@pytest.fixture(scope="session")
def private_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """D4, 2D, epsilon 8 per image."""
    config = load_config("pneumoniamnist", SMALL)
    splits = made_up((1, 28, 28), ("normal", "pneumonia"), "image")
    return run(config, out=tmp_path_factory.mktemp("private"), command="test", splits=splits).folder


@pytest.fixture(scope="session")
def open_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """axial-D4, 3D, no noise."""
    volume = ["data.size=[16,12,8]", "data.spacing=[20,20,20]"]
    config = load_config("demo", [*SMALL, *volume, "privacy.epsilon=inf", "name=volumes"])
    splits = made_up((1, 16, 12, 8), ("healthy", "lesion"), "patient")
    return run(config, out=tmp_path_factory.mktemp("open"), command="test", splits=splits).folder


@pytest.fixture(scope="session")
def exported_2d(private_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    return {e.format: e for e in export_run(private_run, tmp_path_factory.mktemp("exports-2d"))}


@pytest.fixture(scope="session")
def exported_3d(open_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    return {e.format: e for e in export_run(open_run, tmp_path_factory.mktemp("exports-3d"))}
