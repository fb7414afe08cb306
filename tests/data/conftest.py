"""Small synthetic DICOM files, written slice by slice so that a test can break exactly one thing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from archives import write_slice
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedMRImageStorage

WriteSeries = Callable[..., list[Path]]
WriteSlice = Callable[..., Path]


@pytest.fixture
def write_series(tmp_path: Path) -> WriteSeries:
    """``write_series(folder, slices=4, change={index: elements}, **elements)``: files in a shuffled name order."""

    def write(
        folder: str = "series", slices: int = 4, change: dict[int, dict[str, object]] | None = None, **elements: object
    ) -> list[Path]:
        rng = np.random.default_rng(list(folder.encode()))  # no two series show the same
        paths = []
        for index in range(slices):
            pixels = rng.integers(0, 2000, (5, 6)).astype("<u2")
            position = {"ImagePositionPatient": [10.0, 20.0, 30.0 + 4.0 * index]}
            name = f"IM{(slices + 1 - index) % slices:02d}"  # no order, no suffix: both must not matter
            settings = {**position, **elements, **(change or {}).get(index, {})}
            paths.append(write_slice(tmp_path / folder / name, pixels, **settings))
        return paths

    return write


@pytest.fixture(name="write_slice")
def _write_slice(tmp_path: Path) -> WriteSlice:
    """``write_slice(pixels, name="slice", **elements)``: one file in ``tmp_path``, see :func:`write_slice`."""

    def write(pixels: np.ndarray, name: str = "slice", **elements: object) -> Path:
        return write_slice(tmp_path / name, pixels, **elements)

    return write


@pytest.fixture
def write_frames(tmp_path: Path) -> WriteSlice:
    """``write_frames(pixels [frames, rows, columns], groups, shared=None, name="frames", **elements)``: one enhanced MR
    file. Each of ``groups``, and ``shared``, is ``{sequence: {attribute: value}}``."""

    def item(groups: dict[str, dict[str, object]]) -> Dataset:
        result = Dataset()
        for sequence, values in groups.items():
            inner = Dataset()
            for keyword, value in values.items():
                setattr(inner, keyword, value)
            setattr(result, sequence, [inner])
        return result

    def write(
        pixels: np.ndarray,
        groups: list[dict[str, dict[str, object]]],
        shared: dict[str, dict[str, object]] | None = None,
        name: str = "frames",
        **elements: object,
    ) -> Path:
        placed: dict[str, dict[str, object]] = {
            "PlaneOrientationSequence": {"ImageOrientationPatient": [1.0, 0, 0, 0, 1, 0]},
            "PixelMeasuresSequence": {"PixelSpacing": [2.0, 3.0], "SliceThickness": 4.0},
        }
        settings: dict[str, object] = {
            "SOPClassUID": EnhancedMRImageStorage,
            "Modality": "MR",
            "NumberOfFrames": len(pixels),
            "ImageOrientationPatient": None,
            "ImagePositionPatient": None,
            "PixelSpacing": None,
            "RescaleSlope": None,
            "RescaleIntercept": None,
            "PerFrameFunctionalGroupsSequence": [item(group) for group in groups],
            "SharedFunctionalGroupsSequence": [item(placed if shared is None else shared)],
            "PixelData": pixels.tobytes(),
        }
        return write_slice(tmp_path / name, pixels[0], **{**settings, **elements})

    return write
