"""The phantom hospital: a DICOM archive of simulated chest CT, for trying everything without a single real patient.

Half of the patients carry a soft-tissue lesion in a lung. Vessels (bright tubes), calcified spots, the heart and the
diaphragm are in the way of the easy answers; a share of the lesions is small or faint, so that a good network does well
but not perfectly. Everything is a function of ``(seed, patient index)``: the same seed gives the same bytes, whatever
the number of processes.

Run it as a script or call :func:`generate`; the file is loaded by path and needs numpy and pydicom alone.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

CLASSES = ("healthy", "lesion")
SPLIT_SHARES = {"test": 0.25, "val": 0.125}  # the rest is "train"

# How hard the task is. All lengths in mm, all intensities in Hounsfield units (HU).
LESION_RADIUS = (20.0, 40.0)
LESION_HU = (0.0, 60.0)  # solid lesions, close to muscle
FAINT_SHARE = 0.15  # share of lesions that are ground-glass: much fainter
FAINT_HU = (-650.0, -400.0)
SECOND_LESION_SHARE = 0.6
SUBTLE_SHARE = 0.1  # share of patients whose only lesion is as small as the things around it: hard for any network
SUBTLE_RADIUS = (5.0, 9.0)
VESSELS_PER_LUNG = (5, 9)
VESSEL_RADIUS = (4.0, 8.0)  # at the root; they taper to under a half
SPOTS = (0, 4)  # calcified spots per patient, in both classes
SPOT_RADIUS = (3.0, 5.5)
NOISE_HU = (15.0, 40.0)
SHIFT = 8.0  # patient on the table, per series and axis
SERIES_SHARES = (0.7, 0.2, 0.1)  # patients with 1, 2 and 3 series

_STORAGE = (  # signed, bits stored, rescale slope, rescale intercept: the variants that scanners use
    (False, 12, 1.0, -1024.0),
    (True, 16, 1.0, 0.0),
    (True, 16, 1.0, -1024.0),
    (False, 16, 0.5, -8192.0),
)
_NAMES = ("Abel", "Birk", "Cordes", "Dahl", "Ewald", "Falk", "Grote", "Henke", "Imhof", "Jonas", "Kern", "Linde")
_GIVEN = ("Ada", "Bela", "Carla", "Dario", "Elin", "Finn", "Greta", "Hugo", "Ida", "Jan", "Kira", "Leo", "Mara", "Nils")
_INSTITUTIONS = ("Phantom Hospital North", "Phantom Hospital South")
_MANUFACTURERS = ("GE MEDICAL SYSTEMS", "SIEMENS")  # by the names of real ones, which reports may show
_POOL_FROM = 32  # patients; below that a second process costs more than it saves


@dataclass(frozen=True)
class Patient:
    """Everything that is decided before a patient is drawn."""

    index: int
    patient_id: str
    label: int
    split: str


def roster(patients: int, seed: int) -> list[Patient]:
    """The patients with labels and splits: every split half healthy, half lesion (to within one patient)."""
    rng = np.random.default_rng([seed, 1])
    counts = {name: round(share * patients) for name, share in SPLIT_SHARES.items()}
    splits = [name for name, count in counts.items() for _ in range(count)]
    splits += ["train"] * (patients - len(splits))
    labels = [i % 2 for i in range(patients)]
    order = rng.permutation(patients)
    rows = {int(place): (labels[i], splits[i]) for i, place in enumerate(order)}
    return [Patient(i, f"PH-{i:05d}-{_number(seed, 'id', i) % 1000:03d}", *rows[i]) for i in range(patients)]


def generate(
    folder: Path,
    *,
    patients: int = 480,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
) -> Path:
    """Writes ``folder/archive/<patient>/<series>/IM*.dcm`` and ``folder/labels.csv``; returns ``folder``.

    ``progress(done, patients)`` is called after each patient. ``workers`` (default: 2, or 1 on a single core or for few
    patients) changes the speed alone. The archive is built beside ``folder`` and moved there when complete, so a folder
    that exists is a whole archive. Raises :class:`FileExistsError` when ``folder`` is there and not empty, and
    :class:`ValueError` for fewer than 8 patients, which leave a split without one of the classes.
    """
    folder = Path(folder)
    if patients < 8:
        raise ValueError(f"a phantom hospital needs at least 8 patients, not {patients}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not empty; name a new folder for the phantom hospital.")
    if workers is None:
        workers = min(2, os.cpu_count() or 1) if patients >= _POOL_FROM else 1
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for done, _ in enumerate(_written(partial, patients, seed, workers), start=1):
            if progress is not None:
                progress(done, patients)
        with (partial / "labels.csv").open("w", newline="", encoding="utf-8") as handle:
            table = csv.writer(handle, lineterminator="\n")
            table.writerow(("patient_id", "label", "split"))
            table.writerows((p.patient_id, p.label, p.split) for p in roster(patients, seed))
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _written(folder: Path, patients: int, seed: int, workers: int) -> Iterator[int]:
    """Writes all patients and yields one item per patient written."""
    if workers <= 1:
        for patient in roster(patients, seed):
            write_patient(folder / "archive", patient, seed)
            yield patient.index
        return
    # Plain child processes of this very file: a module that is loaded by path cannot be pickled by reference, so a
    # multiprocessing pool would not find its worker function under the spawn method.
    base = [sys.executable, str(Path(__file__).resolve()), str(folder), f"--patients={patients}", f"--seed={seed}"]
    children = [
        subprocess.Popen([*base, f"--shard={i}/{workers}"], stdout=subprocess.PIPE, text=True) for i in range(workers)
    ]
    try:
        # One reader thread per child drains its pipe; lines are handed on in turn, which is close enough for a bar.
        with ThreadPoolExecutor(workers) as threads:
            live = [child.stdout for child in children if child.stdout is not None]
            while live:
                for pipe, line in zip(list(live), list(threads.map(lambda p: p.readline(), live)), strict=True):
                    if line:
                        yield int(line)
                    else:
                        live.remove(pipe)
        for child in children:
            if child.wait() != 0:
                raise RuntimeError(f"a phantom hospital process ended with exit code {child.returncode}.")
    finally:
        for child in children:
            child.kill()
            child.wait()
            if child.stdout is not None:
                child.stdout.close()


# ------------------------------------------------------------------------------------------------- anatomy


def write_patient(archive: Path, patient: Patient, seed: int) -> None:
    """Draws one patient (anatomy, then 1 to 3 series of it) and writes the files."""
    rng = np.random.default_rng([seed, 2, patient.index])
    anatomy = _Anatomy.draw(rng, patient.label)
    header = _patient_header(rng, patient, seed)
    for number in range(1, 1 + int(rng.choice(3, p=SERIES_SHARES)) + 1):
        _write_series(archive / patient.patient_id, anatomy, header, rng, patient, seed, number)


@dataclass(frozen=True)
class _Anatomy:
    """One patient in patient coordinates: x to the left, y to the back, z to the head; mm around mid-chest."""

    body: np.ndarray  # half axes x, y
    fat: float
    lungs: tuple[tuple[np.ndarray, np.ndarray], ...]  # (centre, half axes), right and left
    lung_hu: float
    heart: tuple[np.ndarray, np.ndarray]
    liver: tuple[np.ndarray, np.ndarray]
    spine_radius: float
    rib_pitch: float
    vessels: tuple[tuple[np.ndarray, np.ndarray, float], ...]  # (start, end, radius at the start)
    spots: tuple[tuple[np.ndarray, float], ...]
    lesions: tuple[tuple[np.ndarray, np.ndarray, float], ...]  # (centre, half axes, HU)

    @staticmethod
    def draw(rng: np.random.Generator, label: int) -> _Anatomy:
        size = rng.uniform(0.92, 1.06)
        jitter = lambda *centre: np.array(centre) * size + rng.uniform(-5, 5, 3)  # noqa: E731
        scaled = lambda *axes: np.array(axes) * size * rng.uniform(0.93, 1.07, 3)  # noqa: E731
        lungs = ((jitter(-68, 0, 0), scaled(54, 76, 100)), (jitter(68, 0, 0), scaled(52, 76, 100)))
        heart = (jitter(24, -30, -30), scaled(50, 42, 46))
        liver = (jitter(-55, 0, -125), scaled(85, 95, 75))
        vessels = []
        for (centre, axes), side in zip(lungs, (-1, 1), strict=True):
            for _ in range(int(rng.integers(VESSELS_PER_LUNG[0], VESSELS_PER_LUNG[1] + 1))):
                start = np.array([26.0 * side, 8.0, 5.0]) * size + rng.uniform(-6, 6, 3)
                vessels.append((start, centre + axes * _direction(rng) * 0.85, rng.uniform(*VESSEL_RADIUS)))
        spots = []
        for _ in range(int(rng.integers(SPOTS[0], SPOTS[1] + 1))):
            centre, axes = lungs[int(rng.integers(2))]
            spots.append((centre + axes * _direction(rng) * rng.uniform(0.1, 0.85), rng.uniform(*SPOT_RADIUS)))
        subtle = rng.random() < SUBTLE_SHARE
        lesions = []
        for _ in range(label * (1 if subtle else 1 + int(rng.random() < SECOND_LESION_SHARE))):
            axes = rng.uniform(*(SUBTLE_RADIUS if subtle else LESION_RADIUS)) * rng.uniform(0.85, 1.18, 3)
            hu = rng.uniform(*FAINT_HU) if rng.random() < FAINT_SHARE else rng.uniform(*LESION_HU)
            lesions.append((_place_in_lung(rng, lungs, heart, liver, float(axes.max())), axes, hu))
        return _Anatomy(
            body=np.array([152.0, 104.0]) * size * rng.uniform(0.97, 1.05, 2),
            fat=rng.uniform(6, 18),
            lungs=lungs,
            lung_hu=rng.uniform(-880, -800),
            heart=heart,
            liver=liver,
            spine_radius=rng.uniform(15, 19) * size,
            rib_pitch=rng.uniform(26, 32),
            vessels=tuple(vessels),
            spots=tuple(spots),
            lesions=tuple(lesions),
        )

    def hounsfield(self, points: np.ndarray, voxel: float) -> np.ndarray:
        """HU at ``points`` [..., 3] (mm); edges are as soft as a voxel of ``voxel`` mm makes them (partial volume)."""
        x, y, z = points[..., 0], points[..., 1], points[..., 2]
        fill = lambda inside_mm: np.clip(0.5 + inside_mm / voxel, 0.0, 1.0)  # noqa: E731

        def ellipsoid(centre: np.ndarray, axes: np.ndarray) -> np.ndarray:
            return fill((1.0 - np.sqrt((((points - centre) / axes) ** 2).sum(-1))) * float(axes.min()))

        radial = np.sqrt((x / self.body[0]) ** 2 + (y / self.body[1]) ** 2)
        depth = (1.0 - radial) * float(self.body.min())  # mm under the skin, roughly
        hu = np.full(x.shape, -1000.0)
        hu += fill(depth) * 900.0  # fat: -100
        hu += fill(depth - self.fat) * 150.0  # muscle: +50
        lung = np.maximum(*(ellipsoid(*each) for each in self.lungs))
        lung = lung * (1.0 - ellipsoid(*self.heart)) * (1.0 - ellipsoid(*self.liver))
        hu += lung * (self.lung_hu - hu)
        hu += fill(5.0 - np.abs(depth - self.fat - 9.0)) * fill(self._rib(x, y, z)) * 0.8 * (450.0 - hu)
        bone = fill(self.spine_radius - np.hypot(x, y - 0.62 * self.body[1]))
        hu += bone * (np.where(np.cos(z * 0.21) > -0.6, 350.0, 120.0) - hu)
        trachea = fill(8.5 - np.hypot(x, y - 5.0)) * fill(z - 20.0)
        hu += trachea * (-980.0 - hu)
        # The rest lies in the lungs alone, a quarter of the voxels: worth its own coordinates.
        inside = lung > 0
        points, lung, tissue = points[inside], lung[inside], hu[inside]
        bright = np.zeros_like(lung)
        for start, end, radius in self.vessels:
            along = end - start
            share = np.clip((points - start) @ along / float(along @ along), 0.0, 1.0)
            away = np.linalg.norm(points - start - share[..., None] * along, axis=-1)
            bright = np.maximum(bright, fill(radius * (1.0 - 0.6 * share) - away))
        tissue += bright * lung * (45.0 - tissue)
        for centre, radius in self.spots:
            tissue += fill(radius - np.linalg.norm(points - centre, axis=-1)) * lung * (300.0 - tissue)
        for centre, axes, lesion_hu in self.lesions:
            tissue += ellipsoid(centre, axes) * lung * np.maximum(lesion_hu - tissue, 0.0)
        hu[inside] = tissue
        return hu

    def _rib(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Ribs run down to the front: mm inside the nearest of a stack of tilted plates."""
        phase = (z - 0.35 * y) / self.rib_pitch
        return 5.5 - np.abs(phase - np.round(phase)) * self.rib_pitch


def _direction(rng: np.random.Generator) -> np.ndarray:
    vector = rng.normal(size=3)
    return vector / np.linalg.norm(vector)


def _place_in_lung(rng, lungs, heart, liver, radius: float) -> np.ndarray:
    """A lesion centre in the lung, clear of heart and liver by its middle, at a height that every series holds."""
    while True:
        centre, axes = lungs[int(rng.integers(2))]
        point = centre + (axes - 0.6 * radius) * _direction(rng) * rng.uniform(0.0, 1.0) ** (1 / 3)
        clear = all(np.linalg.norm((point - c) / (a + 0.5 * radius)) > 1.0 for c, a in (heart, liver))
        if clear and abs(point[2]) < 55.0:
            return point


# --------------------------------------------------------------------------------------------------- files


def _write_series(folder: Path, anatomy: _Anatomy, header, rng, patient: Patient, seed: int, number: int) -> None:
    rows, columns, slices = int(rng.integers(36, 41)), int(rng.integers(36, 41)), int(rng.integers(17, 20))
    spacing, thickness = round(rng.uniform(8.2, 9.0), 3), round(rng.uniform(8.8, 9.8), 3)
    prone = -1.0 if rng.random() < 0.2 else 1.0  # a prone patient: rows and columns run the other way
    shift = rng.uniform(-SHIFT, SHIFT, 3)
    row_dir, column_dir, up = np.array([prone, 0, 0]), np.array([0, prone, 0]), np.array([0, 0, 1.0])
    centre = np.round(rng.uniform(-20, 20, 3), 1)  # where the scanner's origin happens to be
    middle = 0.5 * spacing * ((columns - 1) * row_dir + (rows - 1) * column_dir) + 0.5 * thickness * (slices - 1) * up
    corner = np.round(centre - middle, 3)
    k, j, i = np.meshgrid(np.arange(slices), np.arange(rows), np.arange(columns), indexing="ij")
    across = i[..., None] * spacing * row_dir + j[..., None] * spacing * column_dir
    points = corner + across + k[..., None] * thickness * up
    breathing = np.array([1.0, 1.0, rng.uniform(0.97, 1.03)])
    hu = anatomy.hounsfield((points - centre - shift) * breathing, spacing)
    hu = hu + rng.normal(scale=rng.uniform(*NOISE_HU), size=hu.shape)

    signed, bits, slope, intercept = _STORAGE[int(rng.integers(len(_STORAGE)))]
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    stored = np.clip(np.rint((hu - intercept) / slope), low, high).astype("<i2" if signed else "<u2")
    syntax = ImplicitVRLittleEndian if rng.random() < 0.2 else ExplicitVRLittleEndian
    downwards = rng.random() < 0.5  # acquisition order: instance numbers run to the feet or to the head
    names = rng.permutation(slices)

    data = Dataset()
    data.update(header)
    key = (seed, patient.index, number)
    data.StudyInstanceUID = _uid("study", *key[:2], (number + 1) // 2)  # the third series is of a later study
    data.SeriesInstanceUID = _uid("series", *key)
    data.FrameOfReferenceUID = _uid("frame", *key)
    data.SeriesNumber, data.SeriesDescription = number, "CT chest phantom"
    data.SOPClassUID, data.Modality = CTImageStorage, "CT"
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.ImageOrientationPatient = [*map(float, row_dir), *map(float, column_dir)]
    data.PixelSpacing, data.SliceThickness = [spacing, spacing], thickness
    data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = rows, columns, 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, bits, bits - 1, int(signed)
    data.RescaleSlope, data.RescaleIntercept, data.RescaleType = slope, intercept, "HU"
    target = folder / f"S{number:03d}"
    target.mkdir(parents=True)
    for index in range(slices):
        data.SOPInstanceUID = _uid("image", *key, index)
        data.InstanceNumber = slices - index if downwards else index + 1
        data.ImagePositionPatient = [round(float(v), 3) for v in corner + index * thickness * up]
        data.PixelData = stored[index].tobytes()
        data.file_meta = _file_meta(data, syntax)
        data.save_as(target / f"IM{int(names[index]) + 1:04d}.dcm", enforce_file_format=True, overwrite=False)


def _patient_header(rng: np.random.Generator, patient: Patient, seed: int) -> Dataset:
    """What a hospital writes into every file: all of it identifies (here: nobody)."""
    data = Dataset()
    data.PatientName = f"{rng.choice(_NAMES)}^{rng.choice(_GIVEN)}"
    data.PatientID = patient.patient_id
    data.PatientBirthDate = f"{rng.integers(1935, 2004)}{rng.integers(1, 13):02d}{rng.integers(1, 29):02d}"
    data.PatientSex = str(rng.choice(["F", "M"]))
    # From a stream of their own: where patients are scanned, and on what, changes nothing of what is drawn of them.
    places = np.random.default_rng([seed, 3, patient.index])
    data.InstitutionName = str(places.choice(_INSTITUTIONS))
    data.Manufacturer = str(places.choice(_MANUFACTURERS))
    data.ReferringPhysicianName = f"{rng.choice(_NAMES)}^{rng.choice(_GIVEN)}"
    data.StudyDate = f"{rng.integers(2015, 2025)}{rng.integers(1, 13):02d}{rng.integers(1, 29):02d}"
    data.PatientAge = f"{_years(data.PatientBirthDate, data.StudyDate):03d}Y"
    data.StudyTime = f"{rng.integers(7, 19):02d}{rng.integers(0, 60):02d}00"
    data.AccessionNumber = f"A{_number(seed, 'accession', patient.index) % 10**8:08d}"
    data.StudyID = "1"
    return data


def _years(born: str, day: str) -> int:
    """Whole years between two dates of DICOM."""
    return int(day[:4]) - int(born[:4]) - (day[4:] < born[4:])


def _file_meta(data: Dataset, syntax: str) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = data.SOPClassUID, data.SOPInstanceUID
    meta.TransferSyntaxUID = syntax
    # Set by hand, because pydicom would write its own version and the bytes would change with it.
    meta.ImplementationClassUID, meta.ImplementationVersionName = _uid("implementation"), "DPEQ_PHANTOM_1"
    return meta


def _number(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:16], "big")


def _uid(*parts: object) -> str:
    """A valid UID derived from a UUID-sized number (DICOM PS3.5 B.2, root 2.25)."""
    return f"2.25.{_number(*parts)}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write a phantom hospital: simulated chest CT as a DICOM archive.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--patients", type=int, default=480)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.shard is None:
        print(generate(options.folder, patients=options.patients, seed=options.seed))
        return
    shard, shards = map(int, options.shard.split("/"))
    for patient in roster(options.patients, options.seed)[shard::shards]:
        write_patient(options.folder / "archive", patient, options.seed)
        print(patient.index, flush=True)


if __name__ == "__main__":
    main()
