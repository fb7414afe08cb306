"""Reading voxels once while indexing: accepted means readable, and a file is known by its hash from then on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpeq.data.manifest import FileStamp
from dpeq.data.readers.source import Refused, Source, Volume

__all__ = ["Check", "ImageCheck", "check"]

_BLOCK = 1 << 20


@dataclass(frozen=True)
class ImageCheck:
    """What one image was found to be.

    Attributes:
        shape: ``(channels, x, y, z)``.
        geometry, affine: as of :class:`~dpeq.data.readers.source.Volume`; rows of the affine one after the other.
        digest: of the voxels, "" for an image of one value, which many patients may share.
    """

    shape: tuple[int, int, int, int]
    geometry: str
    affine: tuple[float, ...]
    digest: str


@dataclass(frozen=True)
class Check:
    """Images that were read together, and the stamps of their files."""

    images: tuple[ImageCheck, ...]
    files: dict[str, FileStamp]

    def to_json(self) -> dict[str, Any]:
        images = [[image.shape, image.geometry, image.affine, image.digest] for image in self.images]
        files = {name: [s.size, s.mtime_ns, s.sha256, s.ctime_ns] for name, s in self.files.items()}
        return {"images": images, "files": files}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Check:
        images = tuple(
            ImageCheck((shape[0], shape[1], shape[2], shape[3]), geometry, tuple(affine), digest)
            for shape, geometry, affine, digest in values["images"]
        )
        return cls(images, {name: FileStamp(*stamp) for name, stamp in values["files"].items()})


def check(read: Callable[[Path, Source], Volume], root: Path, sources: Sequence[Source]) -> Check:
    """Decodes every image and hashes every file once.

    Raises:
        Refused: when one image cannot be read, or a file changes meanwhile.
    """
    names = dict.fromkeys(name for source in sources for name in source.files)
    files = {name: _stamp(root / name) for name in names}
    images = tuple(_look(read(root, source)) for source in sources)
    for name, stamp in files.items():
        status = (root / name).stat()
        if (status.st_size, status.st_mtime_ns, status.st_ctime_ns) != (stamp.size, stamp.mtime_ns, stamp.ctime_ns):
            raise Refused("changed while it was read")
    return Check(images, files)


def _look(volume: Volume) -> ImageCheck:
    voxels = volume.voxels
    digest = _digest(voxels) if voxels.min() != voxels.max() else ""
    shape = (voxels.shape[0], voxels.shape[1], voxels.shape[2], voxels.shape[3])
    return ImageCheck(shape, volume.geometry, tuple(float(value) for value in volume.affine.ravel()), digest)


def _digest(voxels: NDArray[np.float32]) -> str:
    """Of shape and values: the same however the array lies in memory, of which a slab at a time is put in order."""
    digest = hashlib.blake2b(repr(voxels.shape).encode(), digest_size=16)
    for channel in voxels:
        for x in range(0, len(channel), _slab(channel)):
            digest.update(np.ascontiguousarray(channel[x : x + _slab(channel)]).data)
    return digest.hexdigest()


def _slab(channel: NDArray[np.float32]) -> int:
    return max(1, _BLOCK * len(channel) // channel.nbytes)


def _stamp(path: Path) -> FileStamp:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
        status = path.stat()
    except OSError as error:
        raise Refused("cannot be read", error.strerror) from None
    return FileStamp(status.st_size, status.st_mtime_ns, digest.hexdigest(), status.st_ctime_ns)
