"""Checkpoints: whole or absent, the two newest, owner-only, never pickled."""

import errno
import json
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from dpeq.training import checkpoint as checkpoints
from dpeq.training.checkpoint import Checkpoint, DamagedCheckpoint, last_named_step, newest_whole, read, write
from dpeq.training.files import RunWriteError


def checkpoint(step: int, **changes) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    tensors = {
        "model.weight": torch.randn(3, 4, generator=generator),
        "model.half": torch.randn(5, generator=generator).bfloat16(),
        "averaged.n_averaged": torch.tensor(step),
        "model.mask": torch.tensor([True, False]),
        "model.empty": torch.empty(0, 3),
        "optimizer.0.exp_avg": torch.randn(2, generator=generator, dtype=torch.float64),
    }
    values = {"updates": step, "ledger_sha256": "a" * 64, "seconds": 1.5, "run": {"seed": 3, "rng": "seeded"}}
    return Checkpoint(**{"step": step, "tensors": tensors, **values, **changes})


def path_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:06d}.safetensors"


def same(a: Checkpoint, b: Checkpoint) -> bool:
    names = ("step", "updates", "ledger_sha256", "seconds", "run")
    tensors = a.tensors.keys() == b.tensors.keys() and all(
        t.dtype == b.tensors[n].dtype and torch.equal(t, b.tensors[n]) for n, t in a.tensors.items()
    )
    return tensors and all(getattr(a, n) == getattr(b, n) for n in names)


def test_what_is_written_is_read(tmp_path):
    write(tmp_path, checkpoint(120))
    assert path_of(tmp_path, 120).is_file()
    assert same(read(path_of(tmp_path, 120)), checkpoint(120))
    assert stat.S_IMODE(path_of(tmp_path, 120).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "checkpoints").stat().st_mode) == 0o700
    with safe_open(path_of(tmp_path, 120), framework="pt") as file:  # facts and digest, as JSON, and no more
        metadata = file.metadata()
    assert set(metadata) == {"facts", "sha256"}
    assert json.loads(metadata["facts"])["format"] == 1


def test_the_two_newest_are_kept(tmp_path):
    assert newest_whole(tmp_path) is None
    assert last_named_step(tmp_path) == 0
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "final.safetensors").write_bytes(b"another file")
    for step in (0, 4, 8, 1_000_000):
        write(tmp_path, checkpoint(step))
        assert newest_whole(tmp_path).step == step
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["final.safetensors", "step-000008.safetensors", "step-1000000.safetensors"]
    assert last_named_step(tmp_path) == 1_000_000


def test_a_change_of_any_byte_is_noticed_and_the_older_one_taken(tmp_path, caplog):
    write(tmp_path, checkpoint(4))
    write(tmp_path, checkpoint(8))
    path, whole = path_of(tmp_path, 8), path_of(tmp_path, 8).read_bytes()
    for position in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(bytes(damaged))
        try:
            found = read(path)
        except DamagedCheckpoint:
            continue
        assert same(found, checkpoint(8)), f"byte {position} means something and its change went unnoticed"
    for cut in (0, 1, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(DamagedCheckpoint):
            read(path)
        assert same(newest_whole(tmp_path), checkpoint(4))
    assert f"{path} is skipped" in caplog.text
    assert last_named_step(tmp_path) == 8, "its name alone shows how far the ledger must reach"


def test_damaged_files_are_set_aside_and_what_is_written_stays(tmp_path):
    for step in (4, 8, 12):
        write(tmp_path, checkpoint(step))
    for step in (8, 12):
        path_of(tmp_path, step).write_bytes(b"damaged")
    write(tmp_path, checkpoint(2))
    assert newest_whole(tmp_path).step == 2, "what was written last is there, whatever the others are named"
    write(tmp_path, checkpoint(4))
    path_of(tmp_path, 8).write_bytes(b"damaged")
    checkpoints.set_aside_damaged(tmp_path, newest_whole(tmp_path))
    assert last_named_step(tmp_path) == 12, "a damaged file's name still shows how far the ledger must reach"
    for step in (5, 6):
        write(tmp_path, checkpoint(step))
    names = sorted(p.name for p in (tmp_path / "checkpoints").glob("step-*.safetensors"))
    assert names == ["step-000005.safetensors", "step-000006.safetensors"]
    for step in (5, 6):
        path_of(tmp_path, step).write_bytes(b"damaged")
    checkpoints.set_aside_damaged(tmp_path, None)
    assert not list((tmp_path / "checkpoints").glob("step-*.safetensors"))


@pytest.mark.parametrize("wrong", ["format", "facts", "digest", "field"])
def test_metadata_that_does_not_fit_is_damage(tmp_path, wrong):
    write(tmp_path, checkpoint(4))
    with safe_open(path_of(tmp_path, 4), framework="pt") as file:
        metadata = dict(file.metadata())
    facts, tensors = json.loads(metadata["facts"]), checkpoint(4).tensors
    if wrong == "format":
        facts["format"] = 2
    if wrong == "field":
        facts["more"] = 1
    if wrong in ("format", "field"):
        metadata["facts"] = json.dumps(facts, sort_keys=True)
        metadata["sha256"] = checkpoints._digest(metadata["facts"], tensors)
    if wrong == "facts":
        metadata["facts"] = json.dumps({**facts, "step": 3}, sort_keys=True)
    if wrong == "digest":
        del metadata["sha256"]
    path_of(tmp_path, 4).write_bytes(save(tensors, metadata))
    with pytest.raises(DamagedCheckpoint):
        read(path_of(tmp_path, 4))


def test_a_pickle_is_no_checkpoint(tmp_path):
    write(tmp_path, checkpoint(4))
    torch.save(checkpoint(4).tensors, path_of(tmp_path, 4))
    assert newest_whole(tmp_path) is None


def test_the_file_is_on_the_disk_before_it_gets_its_name_and_its_name_too(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(Path(f"/proc/self/fd/{fd}").readlink().name), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("renamed"), replace(a, b)))
    write(tmp_path, checkpoint(4))
    assert done == [".step-000004.safetensors.part", "renamed", "checkpoints"]


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_one_whole_and_nothing_beside(tmp_path, monkeypatch, call):
    write(tmp_path, checkpoint(4))

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(RunWriteError, match=r"No space left on device.*dpeq train --resume") as error:
        write(tmp_path, checkpoint(8))
    monkeypatch.undo()
    assert error.value.exit_code == 1
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-000004.safetensors"]
    assert same(newest_whole(tmp_path), checkpoint(4))
    write(tmp_path, checkpoint(8))
    assert newest_whole(tmp_path).step == 8


def test_a_write_that_takes_a_few_bytes_at_a_time(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[:100]))
    write(tmp_path, checkpoint(4))
    assert same(newest_whole(tmp_path), checkpoint(4))
