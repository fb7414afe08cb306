"""Filling tensors in place: by how many processes does not matter, and what goes wrong in one comes back."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import torch
from torch import Tensor

import dpeq.data.fill as fill_module
from dpeq.data.fill import allocate, fill, worker_count
from dpeq.errors import ConfigError, DataError


def value(index: int) -> Tensor:
    return torch.full((2, 3), float(index))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_every_place_is_filled_once_and_shown(workers):
    target = allocate((50, 2, 3), shared=workers > 0)
    target.fill_(-1)
    seen = []
    fill(value, list(target), workers, lambda done, total: seen.append((done, total)))
    assert torch.equal(target, torch.stack([value(i) for i in range(50)]))
    assert seen == [(i, 50) for i in range(1, 51)]


def test_workers_are_other_processes_and_write_into_this_ones_memory():
    target = allocate((8, 1), shared=True)
    fill(lambda index: torch.tensor([float(os.getpid() % 2**20)]), list(target), 2)
    found = set(target.flatten().tolist())
    assert len(found) == 2
    assert float(os.getpid() % 2**20) not in found


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_comes_back_as_it_is(workers):
    def make(index: int) -> Tensor:
        if index == 5:
            raise DataError("Image 5 is no image.")
        return value(index)

    with pytest.raises(DataError) as caught:
        fill(make, list(allocate((9, 2, 3), shared=True)), workers)
    assert str(caught.value) == "Image 5 is no image."


def test_a_worker_that_dies_ends_the_loading_with_a_sentence():
    def make(index: int) -> Tensor:
        if index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return value(index)

    with pytest.raises(DataError, match=r"^A process that read images died, .* data\.workers to 0\.$"):
        fill(make, list(allocate((9, 2, 3), shared=True)), 2)


def test_no_worker_outlives_an_error():
    pids = allocate((9, 1), shared=True)
    pids.fill_(0)

    def make(index: int) -> Tensor:
        pids[index] = float(os.getpid())  # exact: process ids are below 2 ** 22
        if index == 8:
            raise DataError("No.")
        return torch.zeros(1)

    with pytest.raises(DataError, match="No"):
        fill(make, list(allocate((9, 1), shared=True)), 2)
    for pid in {int(pid) for pid in pids.flatten().tolist() if pid}:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_random_numbers_in_workers_are_set_apart_and_not_this_process_own():
    """Nothing random gets here; if it did, two workers would not draw the same, and no run would change by it."""

    def make(index: int) -> Tensor:
        return torch.tensor([float(np.random.rand()), float(torch.rand(()))])  # noqa: NPY002

    drawn = []
    for state in (1, 2):
        np.random.seed(state)  # noqa: NPY002
        torch.manual_seed(state)
        expected = torch.get_rng_state()
        target = allocate((4, 2), shared=True)
        fill(make, list(target), 2)
        assert torch.equal(torch.get_rng_state(), expected)
        drawn.append(target.clone())
    assert len(drawn[0].flatten().unique()) == 8, "forked generators would repeat each other"
    assert torch.equal(drawn[0].sort(0).values, drawn[1].sort(0).values), "seeded by constants"


def test_every_process_computes_with_one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for workers in (0, 2):
            target = allocate((4, 1), shared=True)
            fill(lambda index: torch.tensor([float(torch.get_num_threads())]), list(target), workers)
            assert target.flatten().tolist() == [1] * 4
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_a_shared_tensor_is_as_any_other():
    shared, plain = allocate((3, 4), shared=True), allocate((3, 4), shared=False)
    for target in (shared, plain):
        target.copy_(torch.arange(12.0).view(3, 4))
    assert torch.equal(shared, plain)
    assert shared.is_contiguous()
    assert shared.numpy().flags.writeable
    assert torch.equal(shared[1:].clone(), plain[1:])


def test_more_than_the_memory_is_refused():
    with pytest.raises(ConfigError, match=r"1000000 images of 1 x 1000 x 1000 take 3725.3 GiB, more than"):
        allocate((1_000_000, 1, 1000, 1000), shared=False)


def test_how_many_read(monkeypatch, caplog):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    assert worker_count(None, 1000) == 4
    assert worker_count(None, 10) == 0
    assert worker_count(8, 1000) == 8
    assert worker_count(8, 3) == 3
    assert worker_count(0, 1000) == 0
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    assert worker_count(None, 1000) == 0
    monkeypatch.setattr(fill_module.sys, "platform", "darwin")
    assert worker_count(None, 1000) == 0
    assert "Linux" not in caplog.text
    assert worker_count(2, 1000) == 0
    assert "data.workers needs Linux" in caplog.text
