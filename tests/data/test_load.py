"""From a manifest to tensors: units, labels, slices, changed files, workers, the cache; and that nobody is named."""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from helpers import shared_data
from manifests import Entry, nifti_archive, phantom_archive, stamp, write_manifest

from dpeq.data.cards import Card, load_card
from dpeq.data.images import ImageSet
from dpeq.data.load import image_shape, load_splits
from dpeq.data.manifest import Manifest
from dpeq.data.readers.read import read
from dpeq.data.readers.source import Source
from dpeq.data.settings import ImageSettings
from dpeq.data.transforms import ImageTransform
from dpeq.errors import ConfigError, DataError

PHANTOM = ImageSettings(preset="ct", spacing=(12.0, 12.0, 12.0), size=(24, 20, 12), window=(-1000.0, 400.0))
VOLUMES = ImageSettings(preset="mr", spacing=(2.0, 2.0, 3.0), size=(10, 10, 8))
SLICES = ImageSettings(preset="mr", view="2.5d", size=(10, 12, 6))


@pytest.fixture(autouse=True)
def _a_cache_of_its_own(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DPEQ_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def hospital(tmp_path_factory) -> Path:
    return phantom_archive(tmp_path_factory.mktemp("load") / "h")


@pytest.fixture(scope="module")
def phantom() -> Card:
    return load_card("phantom_hospital")


@pytest.fixture
def card(phantom) -> Card:
    return phantom.model_copy(update={"classes": ("no", "yes"), "modality": "MR"})


@pytest.fixture
def archive(tmp_path) -> Path:
    return nifti_archive(tmp_path, masks=True)


def cache_files() -> list[Path]:
    return sorted(Path(os.environ["DPEQ_CACHE"]).glob("images/*"))


def hashes(splits: dict[str, ImageSet]) -> list[str]:
    return [splits[name].sha256() for name in ("train", "val", "test")]


def test_a_hospital_is_loaded_whole_with_patients_as_units(phantom, hospital):
    seen = []
    splits = load_splits(
        phantom,
        manifest=hospital,
        unit="patient",
        settings=PHANTOM,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert {name: split.n_units for name, split in splits.items()} == {"train": 10, "val": 2, "test": 4}
    total = sum(len(split.labels) for split in splits.values())
    assert seen == [(i, total) for i in range(1, total + 1)]
    assert total > 16, "some patients have several series"
    for split in splits.values():
        assert split.images.shape[1:] == image_shape(phantom, PHANTOM) == (1, 24, 20, 12)
        assert type(split.images) is torch.Tensor
        assert split.images.dtype == torch.float32
        assert float(split.images.min()) == -1
        assert float(split.images.max()) <= 1
        assert split.one_label_per_unit()
        assert len({split.labels[i].item() for i in range(len(split.labels))}) == 2
    assert max(int(split.units.bincount().max()) for split in splits.values()) > 1


def test_with_images_as_units_every_series_stands_alone(phantom, hospital):
    split = load_splits(phantom, manifest=hospital, unit="image", settings=PHANTOM)["train"]
    assert split.n_units == len(split.labels)
    assert int(split.units.bincount().max()) == 1


def test_the_card_has_settings_of_its_own(phantom, hospital):
    assert phantom.preprocessing is not None
    images = load_splits(phantom, manifest=hospital, unit="patient")["val"].images
    assert images.shape[1:] == image_shape(phantom, None) == (1, *phantom.preprocessing.size)


def test_rows_are_the_records_of_the_manifest_in_its_order(card, archive):
    """Each against its own file, read and transformed by itself."""
    index = Manifest.read(archive)
    splits = load_splits(card, manifest=archive, unit="patient", settings=VOLUMES, workers=2)
    for name, split in splits.items():
        records = index.split(name)
        patients = list(dict.fromkeys(record.patient for record in records))
        for row, record in enumerate(records):
            alone = ImageTransform(VOLUMES)(read(index.root, record.source))
            assert torch.equal(split.images[row : row + 1], alone)
            assert int(split.labels[row]) == record.label
            assert int(split.units[row]) == patients.index(record.patient)
        assert split.cases is None


@pytest.mark.parametrize(("unit", "units"), [("patient", 3), ("image", 4)])
def test_all_slices_of_a_volume_belong_to_its_unit(card, archive, unit, units):
    """With images as units the unit is the volume: a slice by itself would promise its patient next to nothing."""
    split = load_splits(card, manifest=archive, unit=unit, settings=SLICES)["train"]
    records = Manifest.read(archive).split("train")
    assert len(records) == 4
    assert (split.n_units, len(split.images)) == (units, 6 * 4)
    assert split.images.shape[1:] == image_shape(card, SLICES) == (3, 12, 10)
    owners = split.units.view(4, 6)
    assert bool((owners == owners[:, :1]).all())
    assert split.cases is not None
    assert split.cases.tolist() == [volume for volume in range(4) for _ in range(6)]
    assert split.labels.view(4, 6)[:, 0].tolist() == [record.label for record in records]
    mine = ImageTransform(SLICES)(read(Manifest.read(archive).root, records[2].source))
    assert torch.equal(split.images[12:18], mine)


@pytest.mark.parametrize("unit", ["patient", "image"])
def test_groups_and_patients_follow_the_images(card, archive, unit):
    index = Manifest.read(archive)
    told = {"p1": (("sex", "female"), ("age", "60-69")), "p2": (("sex", "male"),), "p4": (("age", "0-9"),)}
    replace(index, records=tuple(replace(r, groups=told.get(r.patient, ())) for r in index.records)).write(archive)
    splits = load_splits(card, manifest=archive, unit=unit, settings=SLICES)
    for name in ("train", "val", "test"):
        records = [r for r in index.split(name) for _ in range(6)]
        patients = splits[name].patients
        assert patients is not None
        pairs = set(zip((r.patient for r in records), patients.tolist(), strict=True))
        assert len(pairs) == len({r.patient for r in records}) == int(patients.max()) + 1
        if name == "train":
            assert splits[name].groups is None
            continue
        groups = splits[name].groups
        assert groups is not None
        assert set(groups) == {"val": {"sex", "age"}, "test": {"sex"}}[name]
        for attribute, values in groups.items():
            assert values == tuple(dict(told.get(r.patient, ())).get(attribute, "") for r in records)


def test_marks_of_text_in_the_pixels_follow_the_images(card, archive):
    index = Manifest.read(archive)
    marked = {record.image for record in index.records[1::3]}
    replace(index, records=tuple(replace(r, burned_in=r.image in marked) for r in index.records)).write(archive)
    splits = load_splits(card, manifest=archive, unit="patient", settings=SLICES)
    for name, split in splits.items():
        assert split.burned_in is not None
        assert split.burned_in.tolist() == [r.image in marked for r in index.split(name) for _ in range(6)]
    assert sum(int(split.burned_in.sum()) for split in splits.values() if split.burned_in is not None) == 6 * len(
        marked
    )
    with pytest.raises(ValueError, match="burned-in"):
        replace(splits["val"], burned_in=torch.zeros(1, dtype=torch.bool))


def test_groups_are_for_images_that_are_not_trained_on(card, archive):
    split = load_splits(card, manifest=archive, unit="patient", settings=SLICES)["val"]
    n = len(split.labels)
    same = replace(split, groups={"sex": ("female",) * n})
    assert same.sha256() == split.sha256()
    wrong = [{"sex": ("female",)}, {"name": ("",) * n}]
    for change in ({"name": "train"}, {"patients": None}, *({"groups": groups} for groups in wrong)):
        with pytest.raises(ValueError, match="group"):
            replace(same, **change)
    with pytest.raises(ValueError, match="patients"):
        replace(same, patients=torch.zeros(n - 1, dtype=torch.int64))


def test_images_of_a_patient_may_have_different_labels(card, archive):
    split = load_splits(card, manifest=archive, unit="patient", settings=VOLUMES)["train"]
    assert not split.one_label_per_unit()
    assert sorted(set(split.labels.tolist())) == [0, 1]


def test_masks_decide_the_crop(card, archive):
    settings = VOLUMES.changed({"foreground": "mask", "margin": 0})
    index = Manifest.read(archive)
    split = load_splits(card, manifest=archive, unit="patient", settings=settings, cache_gib=1)["test"]
    for row, record in enumerate(index.split("test")):
        assert record.mask is not None
        alone = ImageTransform(settings)(read(index.root, record.source), read(index.root, record.mask))
        assert torch.equal(split.images[row : row + 1], alone)


@pytest.mark.parametrize("cache_gib", [None, 1.0])
def test_the_result_does_not_depend_on_how_many_read(card, tmp_path, cache_gib):
    archive = nifti_archive(tmp_path, patients=30)
    found = []
    for workers in (0, 1, 3):
        torch.manual_seed(7)
        seen = []
        splits = load_splits(
            card,
            manifest=archive,
            unit="patient",
            settings=SLICES.changed({"transforms": [{"name": "GaussianSmooth"}], "foreground": "intensity"}),
            progress=lambda done, total, seen=seen: seen.append((done, total)),
            workers=workers,
            cache_gib=cache_gib,
        )
        assert seen == [(i, 45) for i in range(1, 46)]
        found.append((hashes(splits), torch.rand(3).tolist()))
        shutil.rmtree(os.environ["DPEQ_CACHE"], ignore_errors=True)
    assert found[0] == found[1] == found[2], "neither the tensors nor this process' own random numbers"


def test_kept_images_are_the_same_and_spare_the_decoding(card, archive, monkeypatch):
    options = {"manifest": archive, "unit": "patient", "settings": VOLUMES}
    without = hashes(load_splits(card, **options))
    assert cache_files() == []
    first = hashes(load_splits(card, **options, cache_gib=1))
    assert len(cache_files()) == 13
    monkeypatch.setattr("dpeq.data.readers.read.read", lambda *a: pytest.fail("a kept image was decoded again"))
    for workers in (0, 2):
        assert hashes(load_splits(card, **options, cache_gib=1, workers=workers)) == first == without


def test_other_settings_make_other_images(card, archive):
    load_splits(card, manifest=archive, unit="patient", settings=VOLUMES, cache_gib=1)
    for count, change in enumerate(
        [{"percentiles": (1, 99)}, {"transforms": [{"name": "GaussianSmooth"}]}, {"foreground": "mask"}], start=2
    ):
        settings = VOLUMES.changed(change)
        kept = load_splits(card, manifest=archive, unit="patient", settings=settings, cache_gib=1)
        assert len(cache_files()) == 13 * count
        assert hashes(kept) == hashes(load_splits(card, manifest=archive, unit="patient", settings=settings))


def test_the_cache_is_kept_within_its_size(card, archive):
    load_splits(card, manifest=archive, unit="patient", settings=VOLUMES, cache_gib=1)
    size = sum(file.stat().st_size for file in cache_files())
    load_splits(card, manifest=archive, unit="patient", settings=VOLUMES, cache_gib=size / 2 / 2**30)
    assert 4 <= len(cache_files()) <= 6


def test_a_file_that_was_only_touched_is_the_same(card, archive):
    options = {"manifest": archive, "unit": "patient", "settings": VOLUMES, "cache_gib": 1}
    before = hashes(load_splits(card, **options))
    for file in Manifest.read(archive).root.rglob("*.nii"):
        os.utime(file, ns=(1, 1))
    assert hashes(load_splits(card, **options)) == before


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("which", ["image", "mask"])
def test_a_file_that_was_changed_is_noticed_and_not_named(card, archive, workers, cached, which, caplog, capfd):
    """Of the same size, so that its time and its content alone tell."""
    settings = VOLUMES.changed({"foreground": "mask"})
    options = {"manifest": archive, "unit": "patient", "settings": settings, "cache_gib": 1, "workers": workers}
    if cached:
        load_splits(card, **options)
    index = Manifest.read(archive)
    victim = index.root / index.records[3].files[which == "mask"]
    changed = bytearray(victim.read_bytes())
    changed[-1] ^= 1
    victim.write_bytes(changed)
    expected = f"^A file of image {index.records[3].image} is not what it was .* run 'dpeq index' again.$"
    with caplog.at_level(logging.DEBUG), pytest.raises(DataError, match=expected):
        load_splits(card, **options)
    assert "Doe" not in caplog.text + "".join(capfd.readouterr())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_is_gone_is_reported_without_its_path(card, archive, workers, caplog, capfd):
    """Paths of a hospital carry patient ids; an error ends up in job logs."""
    index = Manifest.read(archive)
    (index.root / index.records[0].source.files[0]).unlink()
    with caplog.at_level(logging.DEBUG), pytest.raises(DataError) as caught:
        load_splits(card, manifest=archive, unit="patient", settings=VOLUMES, workers=workers)
    assert str(caught.value) == (
        "Image 0000000000000000 cannot be read any more (No such file or directory); run 'dpeq index' again."
    )
    assert "Doe" not in caplog.text + "".join(capfd.readouterr())


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_library_says_of_an_image_is_not_repeated(card, archive, workers, monkeypatch):
    def crooked(*arguments: object) -> None:
        raise ValueError("the image of Doe^Jane is crooked")

    monkeypatch.setattr("dpeq.data.transforms.scale_by_percentiles", crooked)
    with pytest.raises(DataError, match=r"^Image 0{13}\d{3} cannot be preprocessed \(ValueError\)") as caught:
        load_splits(card, manifest=archive, unit="patient", settings=VOLUMES, workers=workers)
    assert "Doe" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_refused_file_is_reported_by_its_reason_alone(card, archive, workers):
    index = Manifest.read(archive)
    victim = index.root / index.records[0].source.files[0]
    victim.write_bytes(victim.read_bytes()[:-8])
    index.files[index.records[0].source.files[0]] = stamp(victim)
    index.write(archive)  # as if it had been indexed like that
    with pytest.raises(DataError, match=r"^Image 0{16} cannot be read any more \(shorter than its header promises\)"):
        load_splits(card, manifest=archive, unit="patient", settings=VOLUMES, workers=workers)


def test_images_that_the_settings_are_not_for_are_found_before_any_is_read(card, archive, monkeypatch):
    monkeypatch.setattr("dpeq.data.readers.read.read", lambda *a: pytest.fail("an image was read"))
    flat = ImageSettings(preset="generic", size=(8, 8))
    with pytest.raises(DataError, match=r"^Image 0{16} cannot be used: it has 10 slices, but data.size names two axes"):
        load_splits(card, manifest=archive, unit="patient", settings=flat)
    colours = card.model_copy(update={"channels": 3})
    with pytest.raises(DataError, match="it has 1 channels; set channels to that on the card"):
        load_splits(colours, manifest=archive, unit="patient", settings=VOLUMES)


def test_more_images_than_fit_into_memory_are_refused_before_they_are_read(card, archive):
    huge = ImageSettings(preset="mr", size=(8192, 8192, 8192))
    with pytest.raises(ConfigError, match=r"4 images of 1 x 8192 x 8192 x 8192 take 8192.0 GiB, more than"):
        load_splits(card, manifest=archive, unit="patient", settings=huge)


def test_other_classes_or_modalities_than_the_cards_are_refused(phantom, hospital):
    with pytest.raises(DataError, match="has the classes"):
        load_splits(phantom.model_copy(update={"classes": ("no", "yes")}), manifest=hospital, unit="patient")
    with pytest.raises(DataError, match="holds CT images, card phantom_hospital describes MR"):
        load_splits(phantom.model_copy(update={"modality": "MR"}), manifest=hospital, unit="patient")
    with pytest.raises(DataError, match="'dpeq index'"):
        load_splits(phantom.model_copy(update={"generator": None}), unit="patient")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_of_many_images_is_decoded_once_by_whoever_reads_it(card, tmp_path, monkeypatch, workers):
    """Rows of one npz file, all splits mixed; and none of them is kept, for the file is their cache."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 9, 8), dtype=np.uint8)
    np.savez(tmp_path / "Doe_Jane.npz", images=pixels)
    entries = [
        Entry(f"p{i}", i % 2, ("train", "val", "test")[i % 3], Source("npz", ("Doe_Jane.npz",), i)) for i in range(40)
    ]
    archive = write_manifest(tmp_path, tmp_path / "m" / "manifest.json", entries)
    import dpeq.data.readers.arrays as arrays

    monkeypatch.setattr(arrays, "_kept", arrays.Kept())
    opened, real = tmp_path / "opened", arrays._Arrays.load

    def counted(self: object, name: str) -> np.ndarray:
        with opened.open("a") as log:
            log.write("x")
        return real(self, name)

    monkeypatch.setattr(arrays._Arrays, "load", counted)
    settings = ImageSettings(preset="generic", size=(8, 9))
    splits = load_splits(card, manifest=archive, unit="patient", settings=settings, workers=workers, cache_gib=1)
    assert len(opened.read_text()) <= max(1, workers)
    assert cache_files() == []
    torch.testing.assert_close(splits["val"].images[:, 0], torch.from_numpy(pixels[1::3]) / 127.5 - 1)


def test_a_real_archive_of_volumes_with_masks(card):
    """Hippocampi in crops of MR, cut out by the expert's masks."""
    folder = shared_data("msd_hippocampus")
    entries = []
    for number, path in enumerate(sorted((folder / "images").glob("*.nii.gz"))[:12]):
        source, mask = Source("nifti", (f"images/{path.name}",)), Source("nifti", (f"labels/{path.name}",))
        entries.append(Entry(f"p{number}", number % 2, ("train", "val", "test")[number % 3], source, mask))
    out = Path(os.environ["DPEQ_CACHE"]) / "m" / "manifest.json"
    manifest = write_manifest(folder, out, entries)
    settings = ImageSettings(preset="mr", spacing=(1, 1, 1), size=(32, 48, 32), foreground="mask", margin=3)
    splits = load_splits(card, manifest=manifest, unit="patient", settings=settings)
    for split, name in ((splits["train"], "train"), (splits["test"], "test")):
        index = Manifest.read(manifest)
        for image, record in zip(split.images, index.split(name), strict=True):
            mask = np.asarray(nibabel.load(folder / record.files[1]).dataobj)
            box = [np.ptp(axis) + 1 + 6 for axis in np.nonzero(mask)]
            inside = (image[0] != -1).nonzero()
            got = (inside.max(0).values - inside.min(0).values + 1).tolist()
            assert all(g <= min(b, n) for g, b, n in zip(got, box, settings.size, strict=True))
            assert got[1] >= box[1] - 6, "the long axis of the hippocampus is whole"


def test_a_file_in_the_place_of_another_is_noticed_whatever_its_time_says(card, tmp_path):
    """Same size, same time of change: what tells is the time that no program can set, and then the content."""
    rng = np.random.default_rng(0)
    for number in range(6):
        np.savez(tmp_path / f"{number}.npz", images=rng.integers(0, 256, (1, 9, 8), dtype=np.uint8))
    names = [f"{number}.npz" for number in range(6)]
    for name in names:
        os.utime(tmp_path / name, ns=(10**18, 10**18))
    entries = [
        Entry(f"p{i}", i % 2, ("train", "val", "test")[i // 2], Source("npz", (name,), 0))
        for i, name in enumerate(names)
    ]
    archive = write_manifest(tmp_path, tmp_path / "m" / "manifest.json", entries)
    settings = ImageSettings(preset="generic", size=(8, 9))
    load_splits(card, manifest=archive, unit="patient", settings=settings, workers=0)
    a, b, spare = tmp_path / names[0], tmp_path / names[1], tmp_path / "spare"
    assert a.stat().st_size == b.stat().st_size
    a.rename(spare)
    b.rename(a)
    spare.rename(b)
    with pytest.raises(DataError, match="is not what it was when it was indexed"):
        load_splits(card, manifest=archive, unit="patient", settings=settings, workers=0)
