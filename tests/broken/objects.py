"""DICOM files that are whole and no image, or none that is read: other objects, mosaics, films, odd multi-frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from broken.case import broken
from broken.write import dataset, dicom

STORAGE = "1.2.840.10008.5.1.4.1.1."
FRAMES = np.arange(4 * 8 * 9, dtype="<u2").reshape(4, 8, 9)


def _object(path: Path, uid: str, modality: str) -> None:
    dicom(path, SOPClassUID=uid, Modality=modality, PixelData=None, Rows=None, Columns=None)


@broken("not an image (RT structure set)")
def rt_structure_set(folder: Path) -> None:
    _object(folder / "a.dcm", STORAGE + "481.3", "RTSTRUCT")


@broken("not an image (RT dose)")
def rt_dose(folder: Path) -> None:
    """It has pixels, which are no image."""
    dicom(folder / "a.dcm", SOPClassUID=STORAGE + "481.2", Modality="RTDOSE")


@broken("not an image (RT plan)")
def rt_plan(folder: Path) -> None:
    _object(folder / "a.dcm", STORAGE + "481.5", "RTPLAN")


@broken("not an image (segmentation)")
def segmentation(folder: Path) -> None:
    dicom(folder / "a.dcm", SOPClassUID=STORAGE + "66.4", Modality="SEG")


@broken("not an image (structured report)")
def structured_report(folder: Path) -> None:
    for number, tail in enumerate(("88.11", "88.22", "88.33", "88.67")):
        _object(folder / f"{number}", STORAGE + tail, "SR")


@broken("not an image (key objects)")
def key_objects(folder: Path) -> None:
    _object(folder / "a.dcm", STORAGE + "88.59", "KO")


@broken("not an image (presentation state)")
def presentation_state(folder: Path) -> None:
    _object(folder / "a.dcm", STORAGE + "11.1", "PR")


@broken("not an image (waveform)")
def waveform(folder: Path) -> None:
    _object(folder / "a.dcm", STORAGE + "9.1.1", "ECG")


@broken("not an image (encapsulated document)")
def encapsulated_pdf(folder: Path) -> None:
    _object(folder / "a.dcm", STORAGE + "104.1", "DOC")


@broken("not an image (DICOMDIR)")
def dicomdir(folder: Path) -> None:
    _object(folder / "DICOMDIR", "1.2.840.10008.1.3.10", "")


@broken("not an image (raw data)")
def raw_data(folder: Path) -> None:
    _object(folder / "a.dcm", STORAGE + "66", "MR")


@broken("not an image (no pixels)")
def object_of_a_class_that_nobody_knows(folder: Path) -> None:
    _object(folder / "a.dcm", "1.2.3.4.5", "MR")


@broken("a mosaic")
def mosaic(folder: Path) -> None:
    dicom(folder / "a.dcm", ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"])


@broken("a localizer")
def localizer(folder: Path) -> None:
    dicom(folder / "a.dcm", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])


@broken("a film without geometry")
def number_of_frames_that_lies(folder: Path) -> None:
    dicom(folder / "a.dcm", NumberOfFrames=1000)


def enhanced(frames: int = 4, groups: int = 4, shared: bool = True) -> Dataset:
    """An enhanced MR file (PS3.3 A.36) of ``frames`` with functional groups for ``groups`` of them."""
    data = dataset(
        FRAMES[0], SOPClassUID=STORAGE + "4.1", ImagePositionPatient=None, ImageOrientationPatient=None,
        PixelSpacing=None, SliceThickness=None, NumberOfFrames=frames, PixelData=FRAMES.tobytes(),
    )  # fmt: skip
    turn, measures, group = Dataset(), Dataset(), Dataset()
    turn.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    measures.PixelSpacing, measures.SliceThickness = [1, 1], 2
    group.PlaneOrientationSequence, group.PixelMeasuresSequence = Sequence([turn]), Sequence([measures])
    if shared:
        data.SharedFunctionalGroupsSequence = Sequence([group])
    items = []
    for index in range(groups):
        place, item = Dataset(), Dataset()
        place.ImagePositionPatient = [0, 0, 2 * index]
        item.PlanePositionSequence = Sequence([place])
        items.append(item)
    data.PerFrameFunctionalGroupsSequence = Sequence(items)
    return data


@broken("a film without geometry")
def multi_frame_without_functional_groups(folder: Path) -> None:
    data = enhanced()
    del data.PerFrameFunctionalGroupsSequence
    dicom(folder / "a.dcm", data)


@broken("a film without geometry")
def multi_frame_without_orientation(folder: Path) -> None:
    dicom(folder / "a.dcm", enhanced(shared=False))


@broken("functional groups for another number of frames")
def multi_frame_with_too_few_groups(folder: Path) -> None:
    dicom(folder / "a.dcm", enhanced(groups=3))


@broken("fewer pixels than the header promises")
def multi_frame_that_promises_more_frames(folder: Path) -> None:
    dicom(folder / "a.dcm", enhanced(frames=400, groups=400))


@broken("missing slices")
def multi_frame_with_a_gap(folder: Path) -> None:
    data = enhanced()
    data.PerFrameFunctionalGroupsSequence[3].PlanePositionSequence[0].ImagePositionPatient = [0, 0, 8]
    dicom(folder / "a.dcm", data)


@broken("a header value that is missing or no number")
def multi_frame_of_a_number_that_is_none(folder: Path) -> None:
    path = dicom(folder / "a.dcm", enhanced())
    path.write_bytes(path.read_bytes().replace(b"\x28\0\x08\0IS\2\x004 ", b"\x28\0\x08\0IS\2\0x "))
