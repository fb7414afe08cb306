"""From a card (and a manifest, for indexed folders) to the splits in memory."""

from __future__ import annotations

import hashlib
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dpeq.data.attributes import ATTRIBUTES
from dpeq.data.cards import Card
from dpeq.data.images import ImageSet
from dpeq.data.manifest import SPLITS, FileStamp, Manifest, Record
from dpeq.data.medmnist import find_or_download, load_medmnist
from dpeq.data.readers.source import Refused, Source
from dpeq.data.settings import ImageSettings
from dpeq.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

    from dpeq.data.transforms import ImageTransform

__all__ = ["CACHE_GIB", "image_shape", "load_splits"]

CACHE_GIB = 50.0
Progress = Callable[[int, int], None]
_BLOCK = 1 << 20
_QUICK_PIXELS = 1 << 16  # of a picture that is decoded as quickly as a kept tensor is read


def image_shape(card: Card, settings: ImageSettings | None) -> tuple[int, ...]:
    """``(channels, *spatial)`` of what :func:`load_splits` gives, before anything is read."""
    if card.kind == "medmnist":
        return (1, *(card.image_size or ()))
    settings = settings or card.preprocessing
    if settings is None:
        raise ConfigError(f"Card {card.name} has no preprocessing; give it a preset and a size.")
    return settings.shape(card.channels)


def load_splits(
    card: Card,
    *,
    root: Path | None = None,
    manifest: Path | None = None,
    unit: str,
    settings: ImageSettings | None = None,
    progress: Progress | None = None,
    workers: int | None = 0,
    cache_gib: float | None = None,
) -> dict[str, ImageSet]:
    """The splits ``train``, ``val`` and ``test`` as plain tensors.

    Of an indexed folder, the images of a split are in the order of the manifest. A volume that is seen as slices gives
    several, in a row, which are one case; they belong to the patient, or with ``unit`` "image" to the volume.

    Args:
        root: folder of a downloadable data set; see :func:`dpeq.data.medmnist.find_or_download`.
        manifest: of an indexed folder.
        unit: the privacy unit, "image" or "patient".
        settings: preprocessing of an indexed folder; the card's by default.
        progress: called with (done, total) images of a folder, or bytes of a download.
        workers: processes that read a folder beside this one; None chooses. The result is the same.
        cache_gib: keep preprocessed images, at most so many GiB of them; None keeps none.
    """
    if card.kind == "medmnist":
        return load_medmnist(card, find_or_download(card, root, progress), unit)
    settings = settings or card.preprocessing
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
    return _load_indexed(index, card.channels, unit, settings, progress, workers, cache_gib)


@dataclass(frozen=True)
class _Job:
    """One record, the mask that it needs, the rows that its images fill, and the name of the file that keeps them."""

    record: Record
    mask: Source | None
    rows: slice
    key: str | None


def _load_indexed(
    index: Manifest,
    channels: int,
    unit: str,
    settings: ImageSettings,
    progress: Progress | None,
    workers: int | None,
    cache_gib: float | None,
) -> dict[str, ImageSet]:
    # MONAI takes seconds to import, and pictures of a medmnist file do not need it.
    from dpeq.data.cache import ImageCache, content_key, image_folder, prune
    from dpeq.data.fill import allocate, fill, worker_count
    from dpeq.data.transforms import ImageTransform

    # A decoder that crashes, here or in a worker, must not leave a core file, which would hold patients' images.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    transform = ImageTransform(settings, channels)
    count, shape = settings.images_per_record, settings.shape(channels)
    processes = worker_count(workers, len(index.records))
    folder = None if cache_gib is None else image_folder()
    images: dict[str, Tensor] = {}
    jobs: list[_Job] = []
    for name in SPLITS:
        records = index.split(name)
        images[name] = allocate((len(records) * count, *shape), shared=processes > 0)
        for number, record in enumerate(records):
            with _explaining(record):
                transform.require(record.shape)
            mask = record.mask if settings.foreground == "mask" else None
            key = None
            if folder is not None and _worth_keeping(record):
                key = content_key(record.source, mask, index.files, settings, channels)
            jobs.append(_Job(record, mask, slice(number * count, (number + 1) * count), key))
    # Images of one file one after another: a reader may keep the file that it decoded last.
    jobs.sort(key=lambda job: (job.record.source.files, job.record.source.part))
    kept = ImageCache(jobs, lambda job: _make(index.root, job, transform), folder)

    def make(number: int) -> Tensor:
        job = jobs[number]
        for file in (*job.record.source.files, *(job.mask.files if job.mask is not None else ())):
            _check_unchanged(job.record, index.root / file, index.files[file])
        return kept[number]  # type: ignore[no-any-return]

    fill(make, [images[job.record.split][job.rows] for job in jobs], processes, progress)
    if folder is not None and cache_gib is not None:
        prune(folder, cache_gib * 2**30)
    return {name: _image_set(index, name, images[name], count, unit) for name in SPLITS}


def _image_set(index: Manifest, name: str, images: Tensor, count: int, unit: str) -> ImageSet:
    records = index.split(name)
    patients = _numbers([record.patient for record in records])
    units = patients if unit == "patient" else torch.arange(len(records))
    known = [dict(record.groups) for record in records for _ in range(count)]
    groups = {attribute: tuple(values.get(attribute, "") for values in known) for attribute in ATTRIBUTES}
    return ImageSet(
        images,
        torch.tensor([record.label for record in records]).repeat_interleave(count),
        units.repeat_interleave(count),
        int(units.max()) + 1,
        index.classes,
        name,
        unit,
        cases=torch.arange(len(records)).repeat_interleave(count) if count > 1 else None,
        patients=patients.repeat_interleave(count),
        groups={name: values for name, values in groups.items() if any(values)} or None,
        burned_in=torch.tensor([record.burned_in for record in records]).repeat_interleave(count),
    )


def _numbers(names: list[str]) -> Tensor:
    """Of each name, from 0 in the order in which they come."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([numbers[name] for name in names])


def _make(root: Path, job: _Job, transform: ImageTransform) -> Tensor:
    from dpeq.data.readers.read import read

    with _explaining(job.record):
        mask = None if job.mask is None else read(root, job.mask)
        return transform(read(root, job.record.source), mask)


@contextmanager
def _explaining(record: Record) -> Iterator[None]:
    """Names the image by its pseudonym, whatever goes wrong; what other libraries say of it stays in the traceback."""
    try:
        yield
    except Refused as error:
        raise DataError(
            f"Image {record.image} cannot be read any more ({error.reason}); run 'dpeq index' again."
        ) from None
    except DataError as error:
        raise DataError(f"Image {record.image} cannot be used: {error}.") from error
    except Exception as error:
        raise DataError(
            f"Image {record.image} cannot be preprocessed ({type(error).__name__}); 'dpeq train --debug' with "
            "data.workers=0 shows where."
        ) from error


def _check_unchanged(record: Record, path: Path, stamp: FileStamp) -> None:
    """A file of the same size and times is taken for the same; one with others must have the same content."""
    try:
        status = path.stat()
        if (status.st_size, status.st_mtime_ns, status.st_ctime_ns) == (stamp.size, stamp.mtime_ns, stamp.ctime_ns):
            return
        same = status.st_size == stamp.size and _sha256(path) == stamp.sha256
    except OSError as error:  # its own text names the path, which may name the patient
        raise DataError(
            f"Image {record.image} cannot be read any more ({error.strerror}); run 'dpeq index' again."
        ) from None
    if not same:
        raise DataError(
            f"A file of image {record.image} is not what it was when it was indexed; run 'dpeq index' again."
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _worth_keeping(record: Record) -> bool:
    """Whether making an image takes longer than reading what was made: rows of an array and small pictures do not."""
    _, x, y, z = record.shape
    quick = record.source.format == "npz" or (record.source.format == "picture" and x * y * z <= _QUICK_PIXELS)
    return not quick
