"""DICOM series that are no volume, though every file is whole."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from broken.case import ACCEPTED, broken
from broken.write import PIXELS, dicom, study
from broken.write import series as write


@broken("missing slices")
def a_missing_slice(folder: Path) -> None:
    write(folder, 6)
    (folder / "2.dcm").unlink()


@broken("two slices at the same position")
def a_slice_twice(folder: Path) -> None:
    write(folder)
    dicom(folder / "again", ImagePositionPatient=[10.0, 20, 38], InstanceNumber=9)


@broken({"3.dcm.copy": "a copy of another file", "*": ACCEPTED})
def a_copy_of_a_file(folder: Path) -> None:
    write(folder)
    shutil.copy(folder / "3.dcm", folder / "3.dcm.copy")


@broken(
    {"2.dcm": ACCEPTED, "*": "missing slices"},
    indexed="a series that belongs to two patients",
)
def a_slice_of_another_patient(folder: Path) -> None:
    write(folder, change={2: {"PatientID": "P2"}})


@broken({"2.dcm": ACCEPTED, "*": "missing slices"})
def a_slice_of_another_series(folder: Path) -> None:
    write(folder, change={2: {"SeriesInstanceUID": study(2)}})


@broken("slices shifted against each other (gantry tilt)")
def gantry_tilt(folder: Path) -> None:
    write(folder, change={k: {"ImagePositionPatient": [10.0, 20 + k, 30 + 4.0 * k]} for k in range(5)})


@broken("slices of different sizes")
def mixed_sizes(folder: Path) -> None:
    write(folder, change={2: {"pixels": PIXELS[:7]}})


@broken("slices of different pixel spacings")
def mixed_spacings(folder: Path) -> None:
    write(folder, change={2: {"PixelSpacing": [2.0, 3.1]}})


@broken("slices of different orientations")
def mixed_orientations(folder: Path) -> None:
    write(folder, change={2: {"ImageOrientationPatient": [0.0, 1, 0, 1, 0, 0]}})


@broken("slices of different modalities")
def mixed_modalities(folder: Path) -> None:
    write(folder, change={2: {"Modality": "PT"}})


@broken("slices at irregular distances")
def varying_distances(folder: Path) -> None:
    places = (0, 4, 8, 13.3, 17)
    write(folder, change={k: {"ImagePositionPatient": [10.0, 20, z]} for k, z in enumerate(places)})


@broken("a stray slice far from the others")
def a_rogue_slice(folder: Path) -> None:
    write(folder, change={4: {"ImagePositionPatient": [10.0, 20, 400]}})


@broken({"2.dcm": "pixels that are cut off", "*": "missing slices"})
def one_slice_cut_off(folder: Path) -> None:
    """The rest is judged without it, and has a hole."""
    write(folder)
    path = folder / "2.dcm"
    path.write_bytes(path.read_bytes()[:-20])


@broken({"4.dcm": "pixels that are cut off", "*": ACCEPTED})
def the_last_slice_cut_off(folder: Path) -> None:
    """Nothing tells that there was one more: what remains is a whole grid."""
    write(folder)
    path = folder / "4.dcm"
    path.write_bytes(path.read_bytes()[:-20])


@broken(ACCEPTED)
def two_time_points(folder: Path) -> None:
    for time in (1, 2):
        for index in range(4):
            place = {"ImagePositionPatient": [0.0, 0, 4 * index], "InstanceNumber": 4 * time + index}
            pixels = np.full_like(PIXELS, time)
            dicom(folder / f"{time}{index}", TemporalPositionIdentifier=time, pixels=pixels, **place)


@broken("missing slices")
def three_time_points_that_all_lack_a_slice(folder: Path) -> None:
    for time in range(3):
        for index in {0, 1, 2, 3} - {time}:
            place = {"ImagePositionPatient": [0.0, 0, 4 * index], "InstanceNumber": 4 * time + index}
            dicom(folder / f"{time}{index}", TemporalPositionIdentifier=time, **place)
