"""Tensors that are filled in place, by this process or by several; the result does not depend on how many.

Workers are torch's DataLoader's. They write into memory that they share with the process that started them (an
anonymous mapping, which ``/dev/shm`` and its limits have no part in), so nothing is copied or pickled but row numbers,
and there is one copy of the images. That takes fork, so there are workers on Linux alone.

Nothing here is random: random transforms are refused before (:mod:`dpeq.data.extra`). As a second line, each worker's
generators are seeded apart and from constants, and this process' own generators are left as they are. Every process
computes with one thread, because sums round otherwise with several.
"""

from __future__ import annotations

import logging
import math
import mmap
import os
import sys
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dpeq.errors import ConfigError, DataError

__all__ = ["allocate", "fill", "worker_count"]

_log = logging.getLogger(__name__)
_FEW = 64  # images that one process reads before others have started
_MOST_WORKERS = 4
_MOST_IN_A_CHUNK = 32


def worker_count(wish: int | None, images: int) -> int:
    """How many processes read ``images`` images beside this one; 0 is none."""
    if sys.platform != "linux":
        if wish:
            _log.warning("data.workers needs Linux; this process reads all images by itself.")
        return 0
    if wish is not None:
        return min(wish, images)
    cores = len(os.sched_getaffinity(0))
    return 0 if images < _FEW or cores < 2 else min(cores, _MOST_WORKERS)


def allocate(shape: Sequence[int], *, shared: bool) -> Tensor:
    """A float32 tensor for :func:`fill`.

    Raises:
        ConfigError: when it is larger than this machine's memory.
    """
    needed = 4 * math.prod(shape)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise ConfigError(
            f"{shape[0]} images of {' x '.join(map(str, shape[1:]))} take {needed / 2**30:.1f} GiB, more than the "
            f"{memory / 2**30:.1f} GiB of this machine; make data.size smaller."
        )
    if not shared:
        return torch.empty(*shape)
    return torch.frombuffer(mmap.mmap(-1, needed), dtype=torch.float32).view(*shape)


def fill(
    make: Callable[[int], Tensor],
    places: Sequence[Tensor],
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Puts ``make(i)`` into ``places[i]`` for every i, in order, or in parallel where there are workers.

    Args:
        make: raises :class:`DataError` and nothing else.
        places: of :func:`allocate`, shared where there are workers; views of it.
        progress: called with (done, total).

    Raises:
        DataError: the first of ``make``, or when a worker dies.
    """
    rows = _Rows(make, places, answers=workers > 0)
    size = max(1, min(_MOST_IN_A_CHUNK, len(places) // (8 * workers))) if workers else 1
    chunks = [list(range(start, min(start + size, len(places)))) for start in range(0, len(places), size)]
    done = 0
    with _one_thread(), warnings.catch_warnings():
        # Of Python 3.12: workers use no thread of this process', and no lock that one may hold.
        warnings.filterwarnings("ignore", "This process .* is multi-threaded, use of fork", DeprecationWarning)
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)  # more workers than cores
        loader = DataLoader(
            rows,
            batch_sampler=chunks,
            num_workers=workers,
            collate_fn=_as_they_are,
            multiprocessing_context="fork" if workers else None,
            generator=torch.Generator().manual_seed(0),  # workers are seeded by it, else by this process' own
            in_order=False,
        )
        answers = _answers(loader)
        try:
            for chunk in answers:
                for problem in chunk:
                    if problem is not None:
                        raise DataError(problem)
                    done += 1
                    if progress is not None:
                        progress(done, len(places))
        finally:
            answers.close()


class _Rows(Dataset[str | None]):
    """Fills a row when it is asked for; an answer is None, or what was wrong."""

    def __init__(self, make: Callable[[int], Tensor], places: Sequence[Tensor], *, answers: bool) -> None:
        self._make, self._places, self._answers = make, places, answers

    def __getitem__(self, index: int) -> str | None:
        try:
            self._places[index].copy_(self._make(index))
        except DataError as error:
            if not self._answers:
                raise
            return str(error)  # torch would send the traceback as text
        return None


def _as_they_are(chunk: list[str | None]) -> list[str | None]:
    return chunk


def _answers(loader: DataLoader[str | None]) -> Generator[list[str | None], None, None]:
    iterator = iter(loader)
    try:
        while True:
            try:
                yield next(iterator)
            except StopIteration:
                return
            except RuntimeError as error:
                if "exited unexpectedly" not in str(error):
                    raise
                raise DataError(
                    "A process that read images died, as decoders do on broken files or without memory; run "
                    "'dpeq index' again, which finds such files, or set data.workers to 0."
                ) from error
    finally:
        del iterator  # ends the workers, also when an error holds this frame


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
