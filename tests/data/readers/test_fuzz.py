"""Damaged files: only a header or a refusal may come out, and what comes in must be what another reader sees."""

from __future__ import annotations

import random
import sys
import tracemalloc
import warnings
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import fuzz
from benchmarks.fuzz_seeds import damaged, seeds
from dpeq.data.readers.read import examine, read
from dpeq.data.readers.source import Refused, Source

WHOLE = seeds()
OTHERS = list(WHOLE.values())
MANY = settings(max_examples=1200, deadline=5000, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "case"


@pytest.mark.parametrize("name", WHOLE)
def test_whole_files_come_in(name, place):
    place.write_bytes(WHOLE[name])
    assert fuzz.judge(place) == "accepted"


@MANY
@given(name=st.sampled_from(list(WHOLE)), dice=st.randoms(use_true_random=False))
def test_headers_of_damaged_files(name, dice, place):
    """In this process: headers, and the voxels of formats that no C library of DICOM decodes."""
    place.write_bytes(damaged(WHOLE[name], OTHERS, dice))
    tracemalloc.start()
    try:
        header = examine(place)
        if header.format in ("nifti", "picture", "npz"):
            volume = read(place.parent, Source(header.format, (place.name,), len(header.members) - 1))
            assert volume.voxels.shape == header.shape
    except Refused:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 64 << 20


@MANY
@given(name=st.sampled_from([n for n in WHOLE if n.startswith("nifti")]), dice=st.randoms(use_true_random=False))
def test_a_damaged_nifti_that_comes_in_is_what_nibabel_sees(name, dice, place):
    place.write_bytes(damaged(WHOLE[name], OTHERS, dice))
    try:
        header = examine(place)
        volume = read(place.parent, Source("nifti", (place.name,), 0))
    except Refused:
        return
    content = place.read_bytes()
    other = place.with_suffix(".nii.gz" if content.startswith(b"\x1f\x8b") else ".nii")
    other.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = nib.load(other)
        with np.errstate(all="ignore"):
            values = np.asarray(image.dataobj).astype(np.float64)
    unit = {0: 1, 1: 1000, 2: 1, 3: 0.001}[int(image.header["xyzt_units"]) & 7]
    np.testing.assert_allclose(volume.affine[:3], image.affine[:3] * unit, rtol=1e-4, atol=2e-3)
    assert np.array_equal(volume.voxels[0], values.reshape((*image.shape, 1, 1)[:4])[..., 0].astype(np.float32))
    assert len(header.members) == (*image.shape, 1, 1)[3]


def test_damage_hits_and_misses():
    """Neither may be so rare that nothing is tested."""
    counts: Counter[bool] = Counter()
    for number in range(300):
        name = list(WHOLE)[number % len(WHOLE)]
        counts[damaged(WHOLE[name], OTHERS, random.Random(number)) != WHOLE[name]] += 1
    assert counts[True] > 280


def test_voxels_in_a_child_process():
    result = fuzz.run(seconds=6, seed=7, patience=10, memory=2 << 30)
    assert result["findings"] == []
    assert result["files"] > 50
    assert result["accepted"] > 5
    assert result["refused"] > 5


@pytest.mark.parametrize(
    ("ending", "expected", "patience"),
    [
        ("os.abort()", "the process ended with -6", 30.0),  # a busy machine may take its time to end a process
        ("os.close(1); time.sleep(0.5); os.abort()", "the process ended with -6", 30.0),
        ("time.sleep(60)", "took more than 0.3 s", 0.3),
        ("print(json.dumps([2, 'x', '!ValueError: y', 0, 0]), flush=True); time.sleep(9)", "ValueError: y", 30.0),
    ],
)
def test_what_should_not_be_is_found(ending, expected, patience, tmp_path):
    """A reader that judges two files and then does what none should."""
    script = tmp_path / "reader.py"
    script.write_text(
        "import json, os, sys, time\n"
        "first = int(sys.argv[sys.argv.index('--child') + 1])\n"
        "if first:\n"
        "    time.sleep(60)\n"
        "for number in (0, 1):\n"
        "    print(json.dumps([number, 'x', 'accepted', 0, 0]), flush=True)\n" + ending
    )
    result = fuzz.run(seconds=3, seed=0, patience=patience, memory=1 << 30, reader=(sys.executable, str(script)))
    assert result["findings"][0] == {"number": 2, "file": result["findings"][0]["file"], "what": expected}
    assert result["accepted"] == 2
    assert result["unexpected"] >= 1
