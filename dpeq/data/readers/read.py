"""One file in, its header or its voxels out, whatever the format; every error is a :class:`Refused`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from dpeq.data.readers.sniff import kind_of
from dpeq.data.readers.source import Header, Refused, Source, Volume

__all__ = ["examine", "read"]


def examine(path: Path) -> Header:
    """The header of one file, recognised by its content; voxels are not loaded.

    Raises:
        Refused: whatever is wrong with it.
    """
    with _refusals():
        kind = kind_of(path)
        # Readers are imported when a file needs them: pydicom and Pillow are slow to start.
        if kind == "dicom":
            from dpeq.data.readers.dicom_header import read_header

            return read_header(path)
        if kind == "nifti":
            from dpeq.data.readers.nifti import read_nifti_header

            return read_nifti_header(path)
        if kind == "picture":
            from dpeq.data.readers.picture import read_picture_header

            return read_picture_header(path)
        from dpeq.data.readers.arrays import read_npz_header

        return read_npz_header(path)


def read(root: Path, source: Source) -> Volume:
    """The voxels of one image of the archive ``root``: finite, float32 ``[channels, x, y, z]``.

    Raises:
        Refused: when a file is not there, is no longer what it was, or cannot be decoded exactly.
    """
    with _refusals():
        volume = _read(root, source)
        voxels, affine = volume.voxels, volume.affine
        if voxels.ndim != 4 or voxels.dtype != np.float32 or not voxels.size or affine.shape != (4, 4):
            raise Refused("not the voxels that its header promises", (voxels.shape, voxels.dtype, affine.shape))
        if not np.isfinite(voxels).all():
            raise Refused("voxels that are not finite")
        return volume


def _read(root: Path, source: Source) -> Volume:
    paths = [root / file for file in source.files]
    if source.format == "dicom":
        from dpeq.data.readers.dicom_series import read_dicom

        return read_dicom(root, source)
    if source.format == "enhanced":
        from dpeq.data.readers.dicom_frames import read_enhanced

        return read_enhanced(root, source)
    if len(paths) != 1:
        raise Refused("not the number of files that the format has", len(paths))
    if source.format == "nifti":
        from dpeq.data.readers.nifti import read_nifti

        return read_nifti(paths[0], source.part)
    if source.format == "picture":
        from dpeq.data.readers.picture import read_picture

        return read_picture(paths[0])
    from dpeq.data.readers.arrays import read_npz

    return read_npz(paths[0], source.part)


@contextmanager
def _refusals() -> Iterator[None]:
    """Turns whatever a reader or decoder raises into one of the fixed reasons.

    A broken file can make a parser raise anything, and one file must not end the walk, so this is the one place that
    catches every :class:`Exception`. Its text may hold header values: it goes to ``detail``, and the chain is cut.
    """
    try:
        yield
    except Refused:
        raise
    except MemoryError:
        raise Refused("too large for the memory") from None
    except RecursionError:
        raise Refused("nested too deeply") from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise Refused("cannot be read", error.strerror) from None
        raise Refused("cannot be decoded", f"{type(error).__name__}: {error}") from None
