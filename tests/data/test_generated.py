"""Generated archives when several processes want one at once."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

from dpeq.data import generated
from dpeq.data.cards import load_card


def test_of_several_who_want_an_archive_one_makes_it(tmp_path, monkeypatch):
    """A lock belongs to the file as it was opened, so threads stand for processes here."""
    made, ready = [], threading.Barrier(2)

    def generate(folder: Path, **options) -> None:
        made.append(options["patients"])
        time.sleep(0.3)  # in which the others would begin too
        (folder / "archive").mkdir(parents=True)

    def index_folder(archive: Path, labels: Path, manifest: Path, **options) -> None:
        manifest.parent.mkdir()
        manifest.touch()

    def ask(card) -> Path:
        ready.wait()
        return generated.ensure_generated(card)

    monkeypatch.setattr(generated, "cache_dir", lambda name: tmp_path)
    monkeypatch.setattr(generated, "load_module", lambda source: SimpleNamespace(generate=generate))
    monkeypatch.setattr(generated, "index_folder", index_folder)
    monkeypatch.setattr(generated, "Manifest", SimpleNamespace(read=lambda path: None))
    card = load_card("phantom_hospital")
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(ask, [card, card])
    assert first == second
    assert first.is_file()
    assert made == [480]
