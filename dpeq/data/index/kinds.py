"""One manifest has one kind of image: one modality, one number of channels, and volumes or flat images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from dpeq.data.index.images import Image
from dpeq.data.readers.source import Refused
from dpeq.errors import DataError

__all__ = ["of_one_kind"]


def of_one_kind(
    images: Iterable[Image], folder: Path, *, modality: str | None, channels: int | None, flat: bool | None
) -> tuple[str, list[Image], list[tuple[Image, Refused]]]:
    """The modality, the images of the kind that was asked for, and the others.

    Where nothing is asked for, two modalities, numbers of channels, or volumes and flat images together are refused:
    one volume among many flat images may be as much a stray as one flat image (a localiser, a report) among volumes.

    Args:
        modality: in the words of :class:`~dpeq.data.readers.source.Header`; also that of images which do not say.
        flat: True takes the flat images, which have one slice, False the volumes.

    Raises:
        DataError: when there are several kinds and none was asked for, or no image says its modality.
    """
    kept = list(images)
    others: list[tuple[Image, Refused]] = []
    if modality is not None:
        spelt = {image.modality.casefold(): image.modality for image in kept}
        modality = spelt.get(modality.casefold(), modality)
        kept, others = _part(kept, lambda i: i.modality in ("", modality), "another modality than the one asked for")
    found = Counter(image.modality for image in kept)
    if modality is None and kept:
        if "" in found:
            raise DataError(
                f"{_images(found[''])} in {folder} do not say their modality; name it, as in --modality MR."
            )
        if len(found) > 1:
            raise DataError(f"{folder} mixes the modalities {_list(found)}; choose one by --modality.")
        modality = next(iter(found))
    if channels is not None:
        kept, more = _part(kept, lambda i: i.shape[0] == channels, "another number of channels than the one asked for")
        others += more
    numbers = Counter(str(image.shape[0]) for image in kept)
    if len(numbers) > 1:
        raise DataError(
            f"{folder} mixes grey and colour images (by channels, {_list(numbers)}); choose by --channels 1 or 3."
        )
    if flat is not None:
        reason = "a volume among single slices" if flat else "a single slice among volumes"
        kept, more = _part(kept, lambda i: (i.shape[3] == 1) == flat, reason)
        others += more
    slices = sum(image.shape[3] == 1 for image in kept)
    if 0 < slices < len(kept):
        raise DataError(
            f"{folder} mixes volumes and flat images (volumes: {_images(len(kept) - slices)}, single slices: "
            f"{_images(slices)}); choose by --volumes or --flat."
        )
    return modality or "", kept, others


def _part(
    images: list[Image], keep: Callable[[Image], bool], reason: str
) -> tuple[list[Image], list[tuple[Image, Refused]]]:
    return [image for image in images if keep(image)], [(image, Refused(reason)) for image in images if not keep(image)]


def _list(found: Counter[str]) -> str:
    return ", ".join(f"{name}: {_images(count)}" for name, count in sorted(found.items()))


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"
