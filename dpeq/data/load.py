"""From a card (and a manifest, for DICOM) to the splits in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dpeq.data.cards import Card, VolumeSettings
from dpeq.data.images import ImageSet
from dpeq.data.manifest import SPLITS, Manifest, Record
from dpeq.data.medmnist import find_or_download, load_medmnist
from dpeq.errors import ConfigError, DataError

if TYPE_CHECKING:
    from dpeq.data.dicom import Volume

__all__ = ["image_shape", "load_splits"]

Progress = Callable[[int, int], None]


def image_shape(card: Card, volume: VolumeSettings | None) -> tuple[int, ...]:
    """``(channels, *spatial)`` of what :func:`load_splits` gives, before anything is read."""
    if card.kind == "medmnist":
        return (1, *(card.image_size or ()))
    settings = volume or card.volume
    if settings is None:
        raise ConfigError(f"Card {card.name} has no volume settings; give data.spacing, data.size and data.window.")
    return (1, *settings.size)


def load_splits(
    card: Card,
    *,
    root: Path | None = None,
    manifest: Path | None = None,
    unit: str,
    volume: VolumeSettings | None = None,
    progress: Progress | None = None,
) -> dict[str, ImageSet]:
    """The splits ``train``, ``val`` and ``test`` as plain tensors.

    Args:
        root: folder of a downloadable data set; see :func:`dpeq.data.medmnist.find_or_download`.
        manifest: of an indexed folder, for DICOM.
        unit: the privacy unit, "image" or "patient".
        volume: preprocessing of volumes; the card's by default.
        progress: called with (done, total) files, or bytes of a download.
    """
    if card.kind == "medmnist":
        return load_medmnist(card, find_or_download(card, root, progress), unit)
    settings = volume or card.volume
    if manifest is None and card.generator is not None:
        from dpeq.data.generated import ensure_generated  # loads pydicom, which images do not need

        manifest = ensure_generated(card, progress)
    if manifest is None or settings is None:
        raise DataError(f"{card.title} is read through a manifest; make one with 'dpeq index' and set data.manifest.")
    index = Manifest.read(manifest)
    if index.classes != card.classes:
        raise DataError(f"{manifest} has the classes {list(index.classes)}, card {card.name} {list(card.classes)}.")
    if index.modality != card.modality:
        raise DataError(f"{manifest} holds {index.modality} images, card {card.name} describes {card.modality}.")
    return _load_volumes(index, unit, settings, progress)


def _load_volumes(
    index: Manifest, unit: str, settings: VolumeSettings, progress: Progress | None
) -> dict[str, ImageSet]:
    from dpeq.data.transforms import VolumeTransform  # MONAI takes seconds to import, and images do not need it

    transform = VolumeTransform(settings)
    total, done = len(index.records), 0
    splits = {}
    for name in SPLITS:
        records = index.split(name)
        images = torch.empty(len(records), 1, *settings.size)
        for row, record in enumerate(records):
            images[row] = transform(_read(index.root, record))
            done += 1
            if progress is not None:
                progress(done, total)
        owners = [record.patient if unit == "patient" else record.image for record in records]
        numbers = {owner: number for number, owner in enumerate(dict.fromkeys(owners))}
        splits[name] = ImageSet(
            images,
            torch.tensor([record.label for record in records]),
            torch.tensor([numbers[owner] for owner in owners]),
            len(numbers),
            index.classes,
            name,
            unit,
        )
    return splits


def _read(root: Path, record: Record) -> Volume:
    from dpeq.data.dicom import read_volume

    try:
        return read_volume([root / file for file in record.files])
    except (DataError, OSError) as error:
        raise DataError(f"Image {record.image} cannot be read any more ({error}); run 'dpeq index' again.") from error
