"""MONAI's transforms of an exported bundle make the network's input from files as training did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image

from dpeq.data.readers.read import examine, read
from dpeq.data.readers.source import Source
from dpeq.data.settings import ImageSettings
from dpeq.data.transforms import ImageTransform
from dpeq.export import indexed

pytestmark = [  # MONAI's reader says what it has not, which the files of these tests do not need
    pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning"),
    pytest.mark.filterwarnings("ignore:PydicomReader. ImageOrientationPatient:UserWarning"),
]
SMOOTH = {"name": "GaussianSmooth", "sigma": 0.8}
VOLUMES = {
    "window": {"preset": "ct", "size": (9, 10, 8), "spacing": (3, 3, 4)},
    "as acquired": {"preset": "ct", "size": (9, 10, 8)},
    "percentiles": {"preset": "mr", "size": (9, 10, 8)},
    "resized": {"preset": "mr", "size": (9, 10, 8), "fit": "resize"},
    "foreground": {"preset": "mr", "size": (9, 10, 8), "foreground": "intensity", "margin": 1},
    "another orientation": {"preset": "ct", "size": (9, 10, 8), "orientation": "ASL"},
    "slices": {"preset": "mr", "size": (9, 10, 6), "view": "2d"},
    "slices with neighbours": {"preset": "ct", "size": (9, 10, 6), "view": "2.5d", "slices": 5, "spacing": (3, 3, 4)},
    "extra": {"preset": "mr", "size": (9, 10, 8), "transforms": [SMOOTH, {"name": "AdjustContrast", "gamma": 1.2}]},
    "extra with defaults": {"preset": "mr", "size": (9, 10, 8), "transforms": [{"name": "GaussianSmooth"}]},
    "extra slices": {"preset": "mr", "size": (9, 10, 6), "view": "2.5d", "transforms": [SMOOTH]},
}
PICTURES = {
    "8 bits": {"preset": "generic", "size": (8, 12)},
    "percentiles": {"preset": "xray", "size": (8, 12)},
    "padded": {"preset": "xray", "size": (40, 20), "fit": "pad"},
    "foreground": {"preset": "xray", "size": (8, 12), "foreground": "intensity"},
    "extra": {"preset": "xray", "size": (8, 12), "transforms": [SMOOTH]},
}


def by_bundle(transforms: tuple[dict[str, Any], ...], path: Path) -> torch.Tensor:
    """Images ``[n, ...]``, by the configuration as MONAI reads it."""
    parser = ConfigParser(
        {"imports": ["$import torch"], "all": {"_target_": "Compose", "transforms": list(transforms)}}
    )
    made = parser.get_parsed_content("all")({"image": str(path), "file": str(path)})
    items = made if isinstance(made, list) else [made]
    assert all(item["file"] == str(path) for item in items)
    assert all(type(item["image"]) is torch.Tensor and item["image"].dtype == torch.float32 for item in items)
    return torch.stack([item["image"] for item in items])


@pytest.fixture
def volume(tmp_path) -> Path:
    """Axes swapped and turned, unequal spacing, a bright body in dark air with padding around."""
    rng = np.random.default_rng(0)
    voxels = rng.gamma(2.0, 100.0, (14, 15, 12))
    voxels[3:11, 4:13, 2:10] += 700
    voxels[:1] = voxels[:, -2:] = 0
    affine = np.array([[0, -3.5, 0, 3], [-3.1, 0, 0, 9], [0, 0, 4.5, -4], [0, 0, 0, 1.0]])
    nibabel.save(nibabel.Nifti1Image(voxels.astype(np.float32), affine), tmp_path / "volume.nii.gz")
    return tmp_path / "volume.nii.gz"


@pytest.mark.parametrize("name", VOLUMES)
def test_volumes_become_the_same_input(volume, name):
    settings = ImageSettings.model_validate(VOLUMES[name])
    expected = ImageTransform(settings)(read(volume.parent, Source("nifti", (volume.name,))))
    found = by_bundle(indexed(settings).transforms, volume)
    assert expected.std() > 0.05, "images without contrast would show nothing"
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("bits", [8, 16])
def test_pictures_become_the_same_input(tmp_path, name, bits):
    pixels = np.random.default_rng(0).integers(0, 2**bits, (24, 16)).astype(f"u{bits // 8}")
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    np.save(tmp_path / "picture.npy", pixels)
    settings = ImageSettings.model_validate(PICTURES[name])
    expected = ImageTransform(settings)(read(tmp_path, Source("picture", ("picture.png",))))
    for file in ("picture.png", "picture.npy"):
        found = by_bundle(indexed(settings).transforms, tmp_path / file)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_colours_become_the_same_input(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    settings = ImageSettings(preset="generic", size=(8, 12))
    expected = ImageTransform(settings, channels=3)(read(tmp_path, Source("picture", ("picture.png",))))
    found = by_bundle(indexed(settings, 3).transforms, tmp_path / "picture.png")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_an_x_ray_in_dicom_becomes_the_same_input(tmp_path, write_x_ray):
    path = write_x_ray(tmp_path / "x.dcm")
    header = examine(path)
    assert header.shape == (1, 16, 24, 1)
    settings = ImageSettings(preset="xray", size=(8, 12))
    expected = ImageTransform(settings)(read(tmp_path, Source("dicom", ("x.dcm",))))
    torch.testing.assert_close(by_bundle(indexed(settings).transforms, path), expected, atol=1e-5, rtol=1e-5)


@pytest.fixture
def write_x_ray():
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian

    def write(path: Path) -> Path:
        pixels = np.random.default_rng(0).integers(0, 4096, (24, 16)).astype("<u2")
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = ComputedRadiographyImageStorage
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "2.25.3"
        data.PatientID, data.StudyInstanceUID, data.SeriesInstanceUID, data.Modality = "P1", "2.25.1", "2.25.2", "CR"
        data.Rows, data.Columns, data.SamplesPerPixel = 24, 16, 1
        data.PhotometricInterpretation, data.PixelRepresentation = "MONOCHROME2", 0
        data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
        data.PixelData = pixels.tobytes()
        data.save_as(path, enforce_file_format=True)
        return path

    return write


@pytest.mark.parametrize(
    "settings",
    [
        {"preset": "mr", "size": (9, 10, 8), "foreground": "mask"},
        {"preset": "xray", "size": (9, 10), "spacing": (0.5, 0.5)},
        {
            "preset": "mr",
            "size": (9, 10, 8),
            "transforms": [{"name": "SpatialPad", "x": ["$__import__('os').abort()"]}],
        },
        {"preset": "mr", "size": (9, 10, 8), "transforms": [{"name": "SpatialPad", "x": {"y": "@bundle_root"}}]},
    ],
)
def test_what_monai_cannot_see_in_a_file_is_left_to_the_user(settings, tmp_path):
    preprocessing = indexed(ImageSettings.model_validate(settings))
    assert "is the network's input already, made as follows" in preprocessing.reads
    assert len(preprocessing.steps) >= 3
    assert "abort" not in str(preprocessing.transforms)
    shape = ImageSettings.model_validate(settings).shape(1)
    ready = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    np.save(tmp_path / "x.npy", ready)
    assert torch.equal(by_bundle(preprocessing.transforms, tmp_path / "x.npy")[0], torch.from_numpy(ready))


def test_every_step_is_a_sentence():
    settings = ImageSettings(
        preset="mr", size=(9, 10, 6), view="2.5d", spacing=(1, 1, 2), foreground="intensity", transforms=[SMOOTH]
    )
    preprocessing = indexed(settings)
    assert preprocessing.steps == (
        "Turn the axes to left, posterior, superior (LPS).",
        "Resample to 1 x 1 x 2 mm, linearly, border values outside.",
        "Crop to the box around the voxels not darker than the mean of the image, and 2 voxels more on each side.",
        "Map the percentiles 0.5 .. 99.5 of the voxels above the image's lowest value, by nearest rank, to -1 .. 1, "
        "clipped.",
        "Crop or pad about the centre to 9 x 10 x 6 voxels with -1.",
        "Take the slices across the third axis as [row, column], with 3 neighbouring slices as channels, the ends "
        "repeated; each has its own prediction, the score of the volume is the mean of their probabilities.",
        "MONAI's GaussianSmooth(sigma=0.8).",
    )
    assert preprocessing.value_range == (), "an added transform may leave -1 .. 1"
    assert indexed(ImageSettings(preset="mr", size=(9, 10, 6))).value_range == (-1, 1)
