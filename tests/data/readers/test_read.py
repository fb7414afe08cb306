import os
import pickle
import threading
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from dpeq.data.readers import nifti, picture
from dpeq.data.readers.read import examine, read
from dpeq.data.readers.source import Header, Member, Refused, Source, Volume

PIPE = "no file (a pipe, a socket or a device)"
AFFINE = np.diag([1.5, 2, 3, 1])


@pytest.fixture
def archive(tmp_path) -> Path:
    """One image of each format, under names that do not tell."""
    voxels = np.arange(5 * 6 * 7 * 2, dtype=np.int16).reshape(5, 6, 7, 2)
    nib.save(nib.Nifti1Image(voxels, AFFINE), tmp_path / "x.nii")
    (tmp_path / "x.nii").rename(tmp_path / "one")
    Image.fromarray(np.arange(42, dtype=np.uint8).reshape(6, 7)).save(tmp_path / "two", "PNG")
    np.savez(tmp_path / "x.npz", images=np.zeros((3, 6, 7), np.uint8))
    (tmp_path / "x.npz").rename(tmp_path / "three")
    return tmp_path


def test_every_format_by_its_content(archive):
    headers = {name: examine(archive / name) for name in ("one", "two", "three")}
    assert headers == {
        "one": Header("nifti", (1, 5, 6, 7), members=(Member(), Member())),
        "two": Header("picture", (1, 7, 6, 1), members=(Member(),)),
        "three": Header("npz", (1, 7, 6, 1), members=(Member(),) * 3),
    }
    for name, header in headers.items():
        assert Header.from_json(header.to_json()) == header
        for part in range(len(header.members)):
            volume = read(archive, Source(header.format, (name,), part))
            assert volume.voxels.shape == header.shape
            assert volume.voxels.dtype == np.float32
    assert read(archive, Source("nifti", ("one",), 1)).spacing == (1.5, 2, 3)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), "too large for the memory"),
        (RecursionError(), "nested too deeply"),
        (PermissionError(13, "Permission denied", "/Doe_Jane"), "cannot be read"),
        (OSError("broken data stream"), "cannot be decoded"),
        (ZeroDivisionError("x"), "cannot be decoded"),
        (Refused("its own reason", "and detail"), "its own reason"),
    ],
)
def test_whatever_a_reader_raises_is_one_of_the_fixed_reasons(archive, monkeypatch, error, expected):
    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr(nifti, "read_nifti_header", broken)
    monkeypatch.setattr(nifti, "read_nifti", broken)
    for call in (lambda: examine(archive / "one"), lambda: read(archive, Source("nifti", ("one",)))):
        with pytest.raises(Refused) as refusal:
            call()
        assert refusal.value.reason == str(refusal.value) == expected
        assert "Doe_Jane" not in refusal.value.detail
        assert refusal.value is error or refusal.value.__cause__ is None
        again = pickle.loads(pickle.dumps(refusal.value))
        assert (again.reason, again.detail) == (refusal.value.reason, refusal.value.detail)


def test_an_interruption_is_no_refusal(archive, monkeypatch):
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(nifti, "read_nifti_header", stopped)
    with pytest.raises(KeyboardInterrupt):
        examine(archive / "one")


@pytest.mark.parametrize(
    ("volume", "expected"),
    [
        (Volume(np.full((1, 2, 2, 1), np.nan, np.float32), np.eye(4), "none"), "voxels that are not finite"),
        (Volume(np.full((1, 2, 2, 1), -np.inf, np.float32), np.eye(4), "none"), "voxels that are not finite"),
        (Volume(np.zeros((2, 2, 1), np.float32), np.eye(4), "none"), "not the voxels that its header promises"),
        (Volume(np.zeros((1, 2, 2, 1)), np.eye(4), "none"), "not the voxels that its header promises"),
        (Volume(np.zeros((1, 0, 2, 1), np.float32), np.eye(4), "none"), "not the voxels that its header promises"),
        (Volume(np.zeros((1, 2, 2, 1), np.float32), np.eye(3), "none"), "not the voxels that its header promises"),
    ],
)
def test_what_a_reader_gives_is_checked(archive, monkeypatch, volume, expected):
    monkeypatch.setattr(picture, "read_picture", lambda path: volume)
    with pytest.raises(Refused, match=expected):
        read(archive, Source("picture", ("two",)))


def test_files_that_are_gone_or_no_files(archive):
    def reason(*files: str, kind: str = "picture") -> str:
        with pytest.raises(Refused) as refusal:
            read(archive, Source(kind, files))
        return refusal.value.reason

    os.mkfifo(archive / "pipe")
    for kind in ("dicom", "enhanced", "nifti", "picture", "npz"):
        assert reason("missing", kind=kind) == "cannot be opened"
        assert reason("pipe", kind=kind) == PIPE
    assert reason("two", "two") == reason() == "not the number of files that the format has"
    assert reason("two", kind="nifti") == "a NIfTI header that is cut off"


def test_reading_from_many_threads(archive):
    """Loaders of pictures and arrays are called from several threads at once."""
    expected = {part: read(archive, Source("npz", ("three",), part)).voxels for part in range(3)}
    wrong = []

    def work(part: int) -> None:
        for _ in range(50):
            if not np.array_equal(read(archive, Source("npz", ("three",), part)).voxels, expected[part]):
                wrong.append(part)

    threads = [threading.Thread(target=work, args=(part,)) for part in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
