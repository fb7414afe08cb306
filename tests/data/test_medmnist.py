from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import shared_data

from dpeq.data.cards import Card, load_card
from dpeq.data.medmnist import find_or_download, load_medmnist
from dpeq.errors import DataError


@pytest.fixture(autouse=True)
def _no_data_of_this_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("DPEQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DPEQ_DATA", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def write_npz(path: Path, **change: np.ndarray | None) -> Path:
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray | None] = {}
    for split, n in (("train", 6), ("val", 2), ("test", 3)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(n) % 2).astype(np.uint8)[:, None]
    arrays.update(change)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def card_for(path: Path, url: str = "http://127.0.0.1:9/nothing.npz") -> Card:
    digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    return load_card("pneumoniamnist").model_copy(update={"md5": digest, "url": url})


@pytest.fixture
def server():
    """``server(body, declared=None, status=200) -> url`` on the loopback interface."""
    running = []

    def serve(body: bytes, declared: int | None = None, status: int = 200) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(declared or len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                """Quiet."""

        instance = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=instance.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        running.append((instance, thread))
        return f"http://127.0.0.1:{instance.server_port}/pneumoniamnist.npz?download=1"

    yield serve
    for instance, thread in running:
        instance.shutdown()
        thread.join()
        instance.server_close()


def test_the_official_file_is_read_with_its_published_counts():
    card = load_card("pneumoniamnist")
    path = find_or_download(card, shared_data("pneumoniamnist"))
    splits = load_medmnist(card, path, "image")
    assert {name: split.n_units for name, split in splits.items()} == card.splits
    train = splits["train"]
    assert train.images.shape == (4708, 1, 28, 28)
    assert (float(train.images.min()), float(train.images.max())) == (-1.0, 1.0)
    assert [int((split.labels == 1).sum()) for split in splits.values()] == [3494, 389, 390]
    assert type(train.images) is torch.Tensor
    with np.load(path, allow_pickle=False) as raw:
        np.testing.assert_allclose(train.images[5, 0].numpy() * 127.5 + 127.5, raw["train_images"][5], atol=1e-4)


def test_a_patient_cannot_be_the_unit_of_a_file_without_patients(tmp_path):
    path = write_npz(tmp_path / "x.npz")
    with pytest.raises(DataError, match=r"names no patients.*data\.unit to image"):
        load_medmnist(card_for(path), path, "patient")


def test_looked_for_under_root_then_the_environment_then_the_cache(tmp_path, monkeypatch):
    name = "pneumoniamnist.npz"
    cached = write_npz(tmp_path / "cache" / "data" / name)
    card = card_for(cached)
    assert find_or_download(card, None) == cached
    by_environment = write_npz(tmp_path / "env" / "pneumoniamnist" / name)
    monkeypatch.setenv("DPEQ_DATA", str(tmp_path / "env"))
    assert find_or_download(card, None) == by_environment
    by_root = write_npz(tmp_path / "root" / name)
    assert find_or_download(card, tmp_path / "root") == by_root
    with pytest.raises(DataError, match=f"There is no {name} in"):
        find_or_download(card, tmp_path)


def test_a_missing_file_is_downloaded_once_and_checked(tmp_path, server):
    source = write_npz(tmp_path / "source.npz")
    card = card_for(source, server(source.read_bytes()))
    seen = []
    path = find_or_download(card, None, lambda done, total: seen.append((done, total)))
    assert path == tmp_path / "cache" / "data" / "pneumoniamnist.npz"
    assert path.read_bytes() == source.read_bytes()
    assert seen[-1] == (len(source.read_bytes()),) * 2
    assert find_or_download(card.model_copy(update={"url": "http://127.0.0.1:9/"}), None) == path


@pytest.mark.parametrize("fault", ["other bytes", "cut short", "not found"])
def test_a_bad_download_leaves_nothing_behind_and_says_so(tmp_path, server, fault):
    source = write_npz(tmp_path / "source.npz")
    whole = source.read_bytes()
    url = {
        "other bytes": lambda: server(b"<html>sign in</html>"),
        "cut short": lambda: server(whole[:-100], declared=len(whole)),
        "not found": lambda: server(b"gone", status=404),
    }[fault]()
    with pytest.raises(DataError, match=r"put pneumoniamnist\.npz in .*, or name its folder") as caught:
        find_or_download(card_for(source, url), None)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "cache" / "data").iterdir()) == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x.npz", "http://", "nonsense"])
def test_without_a_network_it_says_where_to_put_the_file(tmp_path, url):
    source = write_npz(tmp_path / "source.npz")
    with pytest.raises(DataError, match=r"could not be downloaded .* put pneumoniamnist\.npz in .*cache/data"):
        find_or_download(card_for(source, url), None)
    assert list((tmp_path / "cache" / "data").iterdir()) == []


def test_a_file_that_is_not_the_cards_is_refused(tmp_path):
    path = write_npz(tmp_path / "pneumoniamnist.npz")
    card = card_for(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"md5 .* delete it"):
        find_or_download(card, tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"val_images": None}, "no whole MedMNIST file"),
        ({"val_images": np.zeros((2, 28, 28), np.float32)}, "float32 val images"),
        ({"val_images": np.zeros((2, 28, 28, 3), np.uint8)}, r"shape \(28, 28, 3\), not grey"),
        ({"val_images": np.zeros((2, 64, 64), np.uint8)}, r"shape \(64, 64\), not grey uint8 of \(28, 28\)"),
        ({"val_labels": np.zeros((5, 1), np.uint8)}, "one whole number per image"),
        ({"val_labels": np.zeros((2, 14), np.uint8)}, "one whole number per image"),
        ({"val_labels": np.array([[0.0], [0.9]])}, "float64 val labels"),
        ({"val_labels": np.array([[0], [2]], np.uint8)}, "outside 0 .. 1"),
        ({"val_labels": np.array([[None], [None]], object)}, "no whole MedMNIST file"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, change, reason):
    path = write_npz(tmp_path / "x.npz", **change)
    with pytest.raises(DataError, match=reason):
        load_medmnist(card_for(path), path, "image")


def test_a_truncated_archive_is_refused(tmp_path):
    path = write_npz(tmp_path / "x.npz")
    card = card_for(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match="no whole MedMNIST file"):
        load_medmnist(card, path, "image")
