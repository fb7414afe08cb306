"""Preprocessed images on disk: theirs alone who made them, noticed when damaged, made anew when anything changes."""

from __future__ import annotations

import logging
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from monai.data import PersistentDataset
from torch import Tensor

import dpeq.data.cache as cache
from dpeq.data.cache import ImageCache, content_key, image_folder, prune
from dpeq.data.manifest import FileStamp
from dpeq.data.readers.source import Source
from dpeq.data.settings import ImageSettings
from dpeq.errors import ConfigError

SETTINGS = ImageSettings(preset="ct", size=(8, 8, 8))


@dataclass(frozen=True)
class Item:
    key: str | None
    value: float = 1.0


class Made:
    """Makes images and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, item: Item) -> Tensor:
        self.count += 1
        return torch.full((1, 2, 3, 3), item.value) + torch.arange(3)


@pytest.fixture
def made() -> Made:
    return Made()


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DPEQ_CACHE", str(tmp_path / "cache"))
    return image_folder()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_an_image_is_made_once(folder, made):
    items = [Item("a" * 64, 1.0), Item("b" * 64, 2.0)]
    first = ImageCache(items, made, folder)
    expected = [first[0], first[1]]
    again = ImageCache(items, made, folder)
    assert isinstance(again, PersistentDataset)
    assert all(torch.equal(again[i], expected[i]) for i in range(2))
    assert type(again[0]) is Tensor
    assert made.count == 2
    assert not torch.equal(expected[0], expected[1])


def test_what_has_no_key_and_what_has_no_folder_is_made_every_time(folder, made):
    for kept in (ImageCache([Item(None)], made, folder), ImageCache([Item("a" * 64)], made, None)):
        assert torch.equal(kept[0], kept[0])
    assert made.count == 4
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o277])
def test_folder_and_files_are_their_owners_alone_from_the_beginning(tmp_path, monkeypatch, made, umask):
    """Looked at while the file is being written, too."""
    monkeypatch.setenv("DPEQ_CACHE", str(tmp_path / "cache"))
    seen, save = [], torch.save

    def watched(body: object, stream) -> None:
        seen.extend((path.name, mode(path)) for path in (tmp_path / "cache" / "images").iterdir())
        save(body, stream)

    monkeypatch.setattr(torch, "save", watched)
    (tmp_path / "cache").mkdir()
    before = os.umask(umask)
    try:
        folder = image_folder()
        folder.chmod(0o700)
        ImageCache([Item("a" * 64)], made, folder)[0]
    finally:
        os.umask(before)
    assert mode(folder) == 0o700
    assert len(seen) == 1
    assert seen[0][1] & 0o077 == 0
    assert [(path.name, mode(path) & 0o177) for path in folder.iterdir()] == [("a" * 64 + ".pt", 0)]


def test_nothing_is_written_anywhere_else(tmp_path, monkeypatch, folder, made):
    """MONAI writes through a temporary folder, which may be on another disk and outlive a process that is killed."""
    monkeypatch.setattr("tempfile.mkdtemp", lambda *a, **k: pytest.fail("a temporary folder was made"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    ImageCache([Item("a" * 64)], made, folder)[0]
    assert len(list(folder.iterdir())) == 1


def test_a_folder_that_others_could_read_is_closed(tmp_path, monkeypatch):
    monkeypatch.setenv("DPEQ_CACHE", str(tmp_path))
    (tmp_path / "images").mkdir(mode=0o755)
    (tmp_path / "images").chmod(0o755)
    assert mode(image_folder()) == 0o700


def test_a_folder_of_somebody_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("DPEQ_CACHE", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "images").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"is not a folder of your own, .* data\.cache to false"):
        image_folder()
    (tmp_path / "images").unlink()
    (tmp_path / "images").mkdir()
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(ConfigError, match="not a folder of your own"):
        image_folder()


DAMAGE = {
    "empty": lambda data: b"",
    "cut off": lambda data: data[: len(data) // 2],
    "one bit of a voxel": lambda data: data.replace(b"\x00\x00\x80\x3f", b"\x01\x00\x80\x3f", 1),
    "other bytes": lambda data: b"no tensor at all" * 20,
    "a zip without tensors": lambda data: b"PK\x05\x06" + bytes(18),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_made_anew_and_logged(folder, made, kind, caplog):
    expected = ImageCache([Item("a" * 64)], made, folder)[0]
    path = next(folder.iterdir())
    data = path.read_bytes()
    damaged = DAMAGE[kind](data)
    assert damaged != data
    path.write_bytes(damaged)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(ImageCache([Item("a" * 64)], made, folder)[0], expected)
    assert made.count == 2
    assert "A kept image is damaged; it is made anew." in caplog.text
    assert torch.equal(ImageCache([Item("a" * 64)], made, folder)[0], expected)
    assert made.count == 2, "and kept again"


@pytest.mark.parametrize("body", [torch.zeros(2), {"images": torch.zeros(2)}, {"images": [1], "sum": 1}, {"sum": 0}])
def test_a_file_that_holds_something_else_is_made_anew(folder, made, body):
    ImageCache([Item("a" * 64)], made, folder)[0]
    torch.save(body, next(folder.iterdir()))
    ImageCache([Item("a" * 64)], made, folder)[0]
    assert made.count == 2


def test_code_in_a_file_is_not_run(folder, made, tmp_path):
    class Attack:
        def __reduce__(self):
            return Path.touch, (tmp_path / "owned",)

    ImageCache([Item("a" * 64)], made, folder)[0]
    torch.save({"images": Attack(), "sum": 0}, next(folder.iterdir()))
    ImageCache([Item("a" * 64)], made, folder)[0]
    assert made.count == 2
    assert not (tmp_path / "owned").exists()


def test_what_monai_does_with_damage_is_why_its_reading_is_replaced(tmp_path):
    """The claims of the module: when this fails, MONAI has become better, and less of it need be replaced."""

    def plain() -> PersistentDataset:
        return PersistentDataset(["x"], [lambda x: torch.arange(3.0)], tmp_path, hash_func=lambda item: b"key")

    path = tmp_path / "key.pt"
    torch.save(torch.arange(3.0), path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(RuntimeError):
        plain()._cachecheck("x")
    path.write_bytes(data.replace(b"\x00\x00\x80\x3f", b"\x01\x00\x80\x3f", 1))
    assert not torch.equal(plain()._cachecheck("x"), torch.arange(3.0))


def test_a_full_disk_is_said_once_and_stops_nothing(folder, made, monkeypatch, caplog):
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    kept = ImageCache([Item("a" * 64), Item("b" * 64)], made, folder)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(kept[0], kept[0])
        kept[1]
    assert caplog.text.count("cannot be kept (No space left on device)") == 1
    assert list(folder.iterdir()) == []


def test_an_interrupted_write_leaves_nothing(folder, made, monkeypatch):
    monkeypatch.setattr(torch, "save", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        ImageCache([Item("a" * 64)], made, folder)[0]
    assert list(folder.iterdir()) == []


def test_what_was_used_longest_ago_goes_first(folder, made):
    items = [Item(letter * 64) for letter in "abcd"]
    kept = ImageCache(items, made, folder)
    for number, item in enumerate(items):
        kept[number]
        os.utime(folder / f"{item.key}.pt", (number, number))
    assert made.count == 4
    kept[0]  # used again
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert prune(folder, size) == 0
    assert prune(folder, size / 2) == 2
    assert {path.name[0] for path in folder.iterdir()} == {"a", "d"}
    assert prune(folder, 0) == 2


def test_unfinished_files_of_dead_processes_are_cleared_away(folder):
    old, new = folder / ".x.pt.1.part", folder / ".y.pt.2.part"
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (1, 1))
    prune(folder, 1e9)
    assert [path.name for path in folder.iterdir()] == [new.name]


SERIES = Source("dicom", ("aa", "bb"))
STAMPS = {name: FileStamp(1, 1, name * 32) for name in ("aa", "bb", "cc")}


def key(
    source: Source = SERIES,
    mask: Source | None = None,
    files: dict[str, FileStamp] = STAMPS,
    settings: ImageSettings = SETTINGS,
    channels: int = 1,
) -> str:
    return content_key(source, mask, files, settings, channels)


def test_a_name_is_a_hash_that_says_nothing():
    assert len(key()) == 64
    assert set(key()) <= set("0123456789abcdef")
    moved = {"there/Doe_1": STAMPS["aa"], "there/Doe_2": FileStamp(9, 9, STAMPS["bb"].sha256)}
    assert key(Source("dicom", ("there/Doe_1", "there/Doe_2")), files=moved) == key(), "content counts, not places"


def test_whatever_changes_the_image_changes_its_name(monkeypatch):
    names = [
        key(),
        key(Source("dicom", ("bb", "aa"))),
        key(Source("dicom", ("aa",))),
        key(Source("nifti", ("aa", "bb"))),
        key(Source("dicom", ("aa", "bb"), 1)),
        key(mask=Source("nifti", ("cc",))),
        key(files={**STAMPS, "aa": STAMPS["cc"]}),
        key(channels=3),
        *(
            key(settings=SETTINGS.changed(change))
            for change in (
                {"size": (8, 8, 9)},
                {"window": (-160, 240)},
                {"spacing": (1, 1, 1)},
                {"orientation": "LPS"},
                {"foreground": "mask"},
                {"transforms": [{"name": "GaussianSmooth"}]},
                {"transforms": [{"name": "GaussianSmooth", "sigma": 2.0}]},
            )
        ),
    ]
    for library in ("monai", "pydicom", "python-gdcm", "torch"):
        versions = {**cache._versions(), library: "another"}
        with monkeypatch.context() as patch:
            patch.setattr(cache, "_versions", lambda versions=versions: versions)
            names.append(key())
    assert len(set(names)) == len(names)


def test_our_own_code_is_part_of_the_name(monkeypatch, tmp_path):
    """Every module that reads or transforms; a change of one byte is another version."""
    before = cache._versions()["dpeq.data"]
    real, read = Path(cache.__file__).parent, Path.read_bytes
    for module in ("transforms.py", "extra.py", "settings.py", "readers/nifti.py", "readers/dicom_series.py"):
        monkeypatch.setattr(Path, "read_bytes", lambda self, m=module: read(self) + b"#" * (self == real / m))
        assert cache._versions.__wrapped__()["dpeq.data"] != before
