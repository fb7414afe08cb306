from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dpeq.data.cards import Card, VolumeSettings, load_card
from dpeq.data.dicom import Volume
from dpeq.data.index import index_folder
from dpeq.data.load import image_shape, load_splits
from dpeq.data.transforms import VolumeTransform
from dpeq.errors import DataError
from dpeq.resources import asset, load_module

SETTINGS = VolumeSettings(spacing=(12.0, 12.0, 12.0), size=(24, 20, 12), window=(-1000.0, 400.0))


@pytest.fixture(scope="module")
def card() -> Card:
    return load_card("phantom_hospital")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory, card) -> Path:
    """An indexed phantom hospital of 16 patients."""
    folder = tmp_path_factory.mktemp("load")
    load_module(asset("datasets", str(card.generator))).generate(folder / "h", patients=16, seed=0)
    out = folder / "index" / "manifest.json"
    index_folder(folder / "h" / "archive", folder / "h" / "labels.csv", out, classes=card.classes)
    return out


def test_a_hospital_is_loaded_whole_with_patients_as_units(card, manifest):
    seen = []
    splits = load_splits(
        card,
        manifest=manifest,
        unit="patient",
        volume=SETTINGS,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert {name: split.n_units for name, split in splits.items()} == {"train": 10, "val": 2, "test": 4}
    total = sum(len(split.labels) for split in splits.values())
    assert seen == [(i, total) for i in range(1, total + 1)]
    assert total > 16, "some patients have several series"
    for split in splits.values():
        assert split.images.shape[1:] == image_shape(card, SETTINGS) == (1, 24, 20, 12)
        assert type(split.images) is torch.Tensor
        assert split.images.dtype == torch.float32
        assert float(split.images.min()) == -1
        assert float(split.images.max()) <= 1
        assert split.one_label_per_unit()
        assert len({split.labels[i].item() for i in range(len(split.labels))}) == 2
    assert max(int(split.units.bincount().max()) for split in splits.values()) > 1


def test_with_images_as_units_every_series_stands_alone(card, manifest):
    split = load_splits(card, manifest=manifest, unit="image", volume=SETTINGS)["train"]
    assert split.n_units == len(split.labels)
    assert int(split.units.bincount().max()) == 1


def test_loading_twice_gives_the_same_tensors(card, manifest):
    first, second = (load_splits(card, manifest=manifest, unit="patient", volume=SETTINGS) for _ in range(2))
    assert first["test"].sha256() == second["test"].sha256()
    assert first["test"].sha256() != first["val"].sha256()


def test_the_card_has_volume_settings_of_its_own(card, manifest):
    assert card.volume is not None
    images = load_splits(card, manifest=manifest, unit="patient")["val"].images
    assert images.shape[1:] == image_shape(card, None) == (1, *card.volume.size)


def test_a_file_that_is_gone_or_changed_is_named_by_its_image(card, tmp_path):
    folder = load_module(asset("datasets", str(card.generator))).generate(tmp_path / "h", patients=8, seed=0)
    out = tmp_path / "manifest.json"
    index_folder(folder / "archive", folder / "labels.csv", out, classes=card.classes)
    next(folder.glob("archive/*/*/*.dcm")).unlink()
    with pytest.raises(DataError, match=r"^Image [0-9a-f]{16} cannot be read any more"):
        load_splits(card, manifest=out, unit="patient", volume=SETTINGS)


def test_other_classes_than_the_cards_are_refused(card, manifest):
    with pytest.raises(DataError, match="has the classes"):
        load_splits(card.model_copy(update={"classes": ("no", "yes")}), manifest=manifest, unit="patient")
    with pytest.raises(DataError, match="'dpeq index'"):
        load_splits(card.model_copy(update={"generator": None}), unit="patient")


def smooth(affine: np.ndarray, shape: tuple[int, int, int]) -> Volume:
    """A volume whose value is a linear function of the RAS position, so that interpolation is exact."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    ras = index @ affine[:3, :3].T + affine[:3, 3]
    return Volume((ras @ [2.0, 3.0, 5.0]).astype(np.float32), affine)


def test_any_storage_order_gives_the_same_volume_in_ras():
    """The same field, stored along other axes and directions, at another spacing."""
    settings = VolumeSettings(spacing=(3.0, 3.0, 3.0), size=(8, 8, 8), window=(-400.0, 400.0))
    ras = np.diag([2.0, 2.0, 2.0, 1.0])
    ras[:3, 3] = -15
    lps_swapped = np.array([[0, -2.0, 0, 15], [0, 0, -2.0, 15], [2.0, 0, 0, -15], [0, 0, 0, 1]])
    first = VolumeTransform(settings)(smooth(ras, (16, 16, 16)))
    second = VolumeTransform(settings)(smooth(lps_swapped, (16, 16, 16)))
    torch.testing.assert_close(first, second, atol=2e-3, rtol=0)
    steps = [float(first.diff(dim=d).mean()) * 400 / 3 for d in (1, 2, 3)]
    np.testing.assert_allclose(steps, [2, 3, 5], atol=0.05)  # per mm, along x, y, z


def test_the_window_is_fixed_and_air_fills_what_was_not_scanned():
    settings = VolumeSettings(spacing=(2.0, 2.0, 2.0), size=(20, 20, 20), window=(-1000.0, 400.0))
    constant = Volume(np.full((10, 10, 10), -300.0, np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))
    out = VolumeTransform(settings)(constant)
    torch.testing.assert_close(out[0, 5:15, 5:15, 5:15], torch.zeros(10, 10, 10), atol=1e-6, rtol=0)
    assert float(out[0, 0, 0, 0]) == -1
    assert int((out > -0.5).sum()) == 1000
    bright = Volume(np.full((30, 10, 10), 3000.0, np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))
    assert float(VolumeTransform(settings)(bright).max()) == 1


def test_another_modality_than_the_cards_is_refused(card, manifest):
    with pytest.raises(DataError, match="holds CT images, card phantom_hospital describes MR"):
        load_splits(card.model_copy(update={"modality": "MR"}), manifest=manifest, unit="patient", volume=SETTINGS)


def test_a_file_that_is_gone_is_reported_without_its_path(card, tmp_path):
    """Paths of a hospital carry patient ids; an error ends up in job logs."""
    generator = load_module(asset("datasets", str(card.generator)))
    generator.generate(tmp_path / "h", patients=8, seed=1)
    out = tmp_path / "index" / "manifest.json"
    index_folder(tmp_path / "h" / "archive", tmp_path / "h" / "labels.csv", out, classes=card.classes)
    victim = next((tmp_path / "h" / "archive").rglob("*.dcm"))
    patient = victim.parent.parent.name
    victim.unlink()
    with pytest.raises(DataError, match="cannot be opened") as caught:
        load_splits(card, manifest=out, unit="patient", volume=SETTINGS)
    assert patient not in str(caught.value)
    assert victim.name not in str(caught.value)
