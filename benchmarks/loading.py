"""Volumes per second from files to the network's input, beside plain MONAI with the same transforms.

    python -m benchmarks.loading --json
    python -m benchmarks.loading --hippocampus DIR      # MSD Task04, its folders images and labels

``ratio`` is the time over that of plain MONAI (LoadImage with its reader for the format, then the transforms) with as
many processes, in the same run, and ``processor_ratio`` the same of processor time, workers included, which others on
the machine disturb less. Each method's least of several rounds counts, in which the methods take turns.
"dpeq" is all that a training does to get its data: the manifest, the look at every file for changes, reading,
transforms, tensors for all splits. "cold" also writes its cache, "warm" reads it; beside these stands MONAI's
PersistentDataset. ``difference`` is the largest between the two results, of values -1 .. 1; percentiles are taken of
another part of an image, which shows there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.data import DataLoader, Dataset, PersistentDataset
from monai.transforms import (
    Compose,
    EnsureChannelFirst,
    EnsureType,
    LoadImage,
    Orientation,
    ResizeWithPadOrCrop,
    ScaleIntensityRange,
    ScaleIntensityRangePercentiles,
    Spacing,
)
from pydicom.dataset import Dataset as DicomDataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from dpeq.data.cards import Card, load_card
from dpeq.data.images import ImageSet
from dpeq.data.index import index_folder
from dpeq.data.load import load_splits
from dpeq.data.manifest import Manifest
from dpeq.data.settings import ImageSettings
from dpeq.resources import asset, load_module

LABELS = {"LR": ("L", "R"), "PA": ("P", "A"), "IS": ("I", "S")}
WORKERS = (0, 2)


@dataclass(frozen=True)
class Task:
    """One archive: its manifest, what MONAI reads (files or folders of a series), and how images are prepared."""

    name: str
    manifest: Path
    reader: str
    items: tuple[Path, ...]
    settings: ImageSettings
    card: Card


def phantom(folder: Path, patients: int) -> Task:
    """Small CT series of 20 or so files each."""
    card = load_card("phantom_hospital")
    assert card.preprocessing is not None
    load_module(asset("datasets", str(card.generator))).generate(folder / "h", patients=patients, seed=0)
    manifest = folder / "manifest.json"
    index_folder(folder / "h" / "archive", folder / "h" / "labels.csv", manifest, classes=card.classes)
    items = [record.source.files[0] for record in Manifest.read(manifest).records]
    series = tuple((folder / "h" / "archive" / file).parent for file in items)
    return Task("DICOM, phantom hospital", manifest, "PydicomReader", series, card.preprocessing, card)


def scanner(folder: Path, series: int) -> Task:
    """CT series of the size that scanners make, 60 slices of 512 x 512, uncompressed."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:512j, -1:1:512j]
    (folder / "archive").mkdir(parents=True)
    rows = []
    for number in range(series):
        body = x**2 + y**2 < rng.uniform(0.5, 0.9)
        place = folder / "archive" / f"{number:03d}"
        place.mkdir()
        for k in range(60):
            pixels = np.where(body, 1064, 24) + rng.normal(0, 20, body.shape)
            write_slice(place / f"{k:03d}.dcm", number, k, pixels.clip(0).astype("<u2"))
        rows.append(f"P{number},{('no', 'yes')[number % 2]},{('train', 'val', 'test')[number % 3]}\n")
    (folder / "labels.csv").write_text(f"patient_id,label,split\n{''.join(rows)}", encoding="utf-8")
    classes = ("no", "yes")
    index_folder(folder / "archive", folder / "labels.csv", folder / "m.json", classes=classes)
    card = load_card("phantom_hospital").model_copy(update={"classes": classes})
    settings = ImageSettings(preset="ct", spacing=(3.0, 3.0, 3.0), size=(128, 128, 48))
    items = [record.source.files[0] for record in Manifest.read(folder / "m.json").records]
    folders = tuple((folder / "archive" / file).parent for file in items)
    return Task("DICOM, made up, 60 x 512 x 512", folder / "m.json", "PydicomReader", folders, settings, card)


def write_slice(path: Path, number: int, k: int, pixels: np.ndarray) -> None:
    data = DicomDataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = f"2.25.{number + 1}.{k + 1}"
    data.PatientID, data.Modality, data.InstanceNumber = f"P{number}", "CT", k + 1
    data.StudyInstanceUID, data.SeriesInstanceUID = f"2.25.{number + 1}.1000", f"2.25.{number + 1}.2000"
    data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-180, -180, 2.5 * k]
    data.PixelSpacing, data.SliceThickness = [0.7, 0.7], 2.5
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
    data.RescaleSlope, data.RescaleIntercept = 1, -1024
    data.PixelData = pixels.tobytes()
    data.save_as(path, enforce_file_format=True)


def synthetic(folder: Path, volumes: int) -> Task:
    """Volumes of the size that a chest CT has after it was made coarser, compressed."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in (192, 192, 96)), indexing="ij"))
    for number in range(volumes):
        body = (grid**2).sum(0) < rng.uniform(0.5, 0.9)
        voxels = np.where(body, 40, -1000) + rng.normal(0, 20, body.shape)
        affine = np.diag([-1.8, -1.8, 2.5, 1.0])
        nibabel.save(nibabel.Nifti1Image(voxels.astype(np.int16), affine), folder / "images" / f"{number:03d}.nii.gz")
    settings = ImageSettings(preset="ct", spacing=(3.0, 3.0, 3.0), size=(96, 96, 80))
    return nifti("NIfTI, made up, 192 x 192 x 96", folder / "images", folder / "m", settings, "CT")


def nifti(name: str, images: Path, out: Path, settings: ImageSettings, modality: str) -> Task:
    files = sorted(images.glob("*.nii.gz"))
    out.mkdir(parents=True)
    rows = "".join(f"{f.name},{('no', 'yes')[i % 2]},{('train', 'val', 'test')[i % 3]}\n" for i, f in enumerate(files))
    (out / "labels.csv").write_text(f"path,label,split\n{rows}", encoding="utf-8")
    classes = ("no", "yes")
    index_folder(
        images, out / "labels.csv", out / "m.json", classes=classes, layout="{patient}.nii.gz", modality=modality
    )
    card = load_card("phantom_hospital").model_copy(update={"classes": classes, "modality": modality})
    items = tuple(images / record.source.files[0] for record in Manifest.read(out / "m.json").records)
    return Task(name, out / "m.json", "NibabelReader", items, settings, card)


def plain(task: Task) -> Compose:
    """What a user of MONAI writes."""
    s = task.settings
    scale: Any = (
        ScaleIntensityRange(*s.window, -1.0, 1.0, clip=True)
        if s.window is not None
        else ScaleIntensityRangePercentiles(*(s.percentiles or ()), -1.0, 1.0, clip=True)
    )
    return Compose(
        [
            LoadImage(reader=task.reader),
            EnsureChannelFirst(),
            Orientation("RAS", labels=tuple(LABELS.values())),
            *([] if s.spacing is None else [Spacing(s.spacing, mode="bilinear", padding_mode="border")]),
            scale,
            ResizeWithPadOrCrop(s.size, mode="constant", constant_values=-1.0),
            EnsureType(dtype=torch.float32, track_meta=False),
        ]
    )


def by_monai(task: Task, workers: int, cache: Path | None = None) -> Tensor:
    items = [str(path) for path in task.items]
    data = Dataset(items, plain(task)) if cache is None else PersistentDataset(items, plain(task), cache)
    loader = DataLoader(data, batch_size=1, num_workers=workers)
    return torch.cat(list(loader))


def by_dpeq(task: Task, workers: int, cache_gib: float | None = None) -> list[Tensor]:
    splits = load_splits(
        task.card,
        manifest=task.manifest,
        unit="patient",
        settings=task.settings,
        workers=workers,
        cache_gib=cache_gib,
    )
    return in_order(task, splits)


def in_order(task: Task, splits: dict[str, ImageSet]) -> list[Tensor]:
    """Views of the rows in the order of the manifest, for the comparison; nothing is copied."""
    rows = {name: iter(split.images) for name, split in splits.items()}
    return [next(rows[record.split]) for record in Manifest.read(task.manifest).records]


def measure(task: Task, rounds: int, workers: Sequence[int]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DPEQ_CACHE"] = str(Path(folder) / "dpeq")
        theirs = Path(folder) / "monai"

        def cold(work: Callable[[], Any]) -> Callable[[], Any]:
            def run() -> Any:
                for kept in (Path(folder) / "dpeq" / "images", theirs):
                    shutil.rmtree(kept, ignore_errors=True)
                return work()

            return run

        methods: dict[tuple[str, int], Callable[[], Any]] = {}
        for w in workers:
            methods["monai", w] = lambda w=w: by_monai(task, w)
            methods["dpeq", w] = lambda w=w: by_dpeq(task, w)
            methods["monai PersistentDataset, cold", w] = cold(lambda w=w: by_monai(task, w, theirs))
            methods["monai PersistentDataset, warm", w] = lambda w=w: by_monai(task, w, theirs)
            methods["dpeq, cold", w] = cold(lambda w=w: by_dpeq(task, w, 100.0))
            methods["dpeq, warm", w] = lambda w=w: by_dpeq(task, w, 100.0)
        images, ours = by_monai(task, 0), torch.stack(by_dpeq(task, 0))  # and everything is imported
        wall, busy = ({method: float("inf") for method in methods} for _ in range(2))
        for _ in track(range(rounds), task.name, console=Console(stderr=True)):
            for method, work in methods.items():
                start, processor = time.perf_counter(), processor_seconds()
                work()
                wall[method] = min(wall[method], time.perf_counter() - start)
                busy[method] = min(busy[method], processor_seconds() - processor)
    count = len(task.items)
    return [
        {
            "data": task.name,
            "volumes": count,
            "method": name,
            "workers": w,
            "seconds": round(taken, 3),
            "volumes_per_second": round(count / taken, 2),
            "ratio": round(taken / wall["monai", w], 3),
            "processor_seconds": round(busy[name, w], 3),
            "processor_ratio": round(busy[name, w] / busy["monai", w], 3),
            **({"difference": float((images - ours).abs().max())} if name == "dpeq" else {}),
        }
        for (name, w), taken in wall.items()
    ]


def processor_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def main() -> None:
    parser = argparse.ArgumentParser(description="Volumes per second from files to the network's input.")
    parser.add_argument("--patients", type=int, default=48, help="of the phantom hospital")
    parser.add_argument("--series", type=int, default=6, help="of made-up DICOM")
    parser.add_argument("--volumes", type=int, default=24, help="of made-up NIfTI")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hippocampus", type=Path, help="folder of MSD Task04 with images")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # MONAI's, of what is not installed
    torch.set_num_threads(1)  # as a worker does
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tasks = [
            phantom(folder / "phantom", options.patients),
            scanner(folder / "scanner", options.series),
            synthetic(folder / "synthetic", options.volumes),
        ]
        if options.hippocampus is not None:
            settings = load_card("msd_hippocampus").preprocessing
            assert settings is not None
            images = options.hippocampus / "images"
            tasks.append(nifti("NIfTI, MSD hippocampus", images, folder / "hippocampus", settings, "MR"))
        for task in tasks:
            rows += measure(task, options.rounds, WORKERS)
    if options.json:
        print(json.dumps({"device": f"{platform.machine()} CPU, {os.cpu_count()} cores", "rows": rows}, indent=1))
        return
    for name in dict.fromkeys(row["data"] for row in rows):
        table = Table("method", "workers", "volumes/s", "of MONAI's time", "processor", "difference", title=name)
        for row in rows:
            if row["data"] == name:
                differs = f"{row['difference']:.0e}" if "difference" in row else ""
                ratios = f"{row['ratio']:.2f}", f"{row['processor_ratio']:.2f}"
                table.add_row(row["method"], str(row["workers"]), f"{row['volumes_per_second']:.1f}", *ratios, differs)
        Console().print(table)


if __name__ == "__main__":
    main()
