"""Labels for the hippocampus volumes of the Medical Segmentation Decathlon, derived from their masks.

    python datasets/hippocampus_labels.py FOLDER labels.csv

FOLDER holds ``labels/*.nii.gz`` with the values 0 (background), 1 (anterior) and 2 (posterior part). A hippocampus is
"large" from :data:`LARGE` cubic millimetres on. That is a round constant and no median of the data, because a patient's
label must not depend on who else is in the data set.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import nibabel
import numpy as np

LARGE = 3300.0  # mm3


def volume(mask: Path) -> float:
    """Cubic millimetres of both parts of the hippocampus."""
    image = nibabel.load(mask)
    return float(np.count_nonzero(np.asanyarray(image.dataobj)) * abs(np.linalg.det(image.affine[:3, :3])))


def main(folder: str, out: str) -> None:
    masks = sorted(Path(folder, "labels").glob("*.nii.gz"))
    if not masks:
        sys.exit(f"There are no masks labels/*.nii.gz in {folder}; name the folder of Task04_Hippocampus.")
    with Path(out).open("w", newline="", encoding="utf-8") as handle:
        table = csv.writer(handle, lineterminator="\n")
        table.writerow(("patient_id", "label"))
        for mask in masks:
            table.writerow((mask.name.removesuffix(".nii.gz"), "large" if volume(mask) >= LARGE else "small"))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python datasets/hippocampus_labels.py FOLDER OUT.csv")
    main(*sys.argv[1:])
