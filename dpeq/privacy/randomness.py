"""Random streams for sampling and noise: ChaCha20, addressed by use and step.

torch's CPU generator keeps 32 bits of its seed, few enough to search; so the coins and the noise of a run come from the
ChaCha20 key stream (RFC 8439) under a 256-bit key. Every (use, step) has a nonce of its own: streams never overlap, and
a step's noise depends on nothing that happened before it. :mod:`dpeq.privacy.gaussian` makes noise of them.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Randomness", "Stream"]

Use = Literal["sampling", "views", "noise", "augment", "layers"]
_USES: tuple[Use, ...] = ("sampling", "views", "noise", "augment", "layers")


class Stream:
    """Numbers from one ChaCha20 key stream; each call goes on where the last one ended."""

    def __init__(self, key: bytes, nonce: bytes) -> None:
        # The cryptography package takes the 32-bit block counter and the 96-bit nonce as one block of 16 bytes.
        self._encryptor = Cipher(algorithms.ChaCha20(key, bytes(4) + nonce), mode=None).encryptor()

    def words(self, count: int) -> NDArray[np.uint64]:
        """``[count]`` words of 64 random bits."""
        return np.frombuffer(self._encryptor.update(bytes(8 * count)), dtype="<u8")

    def uniform(self, *shape: int) -> Tensor:
        """float64, uniform on a grid of 2^52 points strictly inside (0, 1)."""
        return torch.from_numpy(self._uniform(shape))

    def _uniform(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        count = int(np.prod(shape, dtype=np.int64))
        words = self.words(count)
        # The middle of one of 2^52 cells: never 0 or 1 (of 2^53 cells the last middle would round to 1).
        return (((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52).reshape(shape)


@dataclass(frozen=True)
class Randomness:
    """The randomness of a run.

    Attributes:
        seed: None when keyed by the operating system; an integer makes the run reproducible, and its noise
            predictable to whoever knows it, which the report says.
        init_seed: for the initial weights, which are public.
    """

    seed: int | None
    init_seed: int
    _key: bytes = field(repr=False)

    @classmethod
    def create(cls, seed: int | None) -> Randomness:
        """A key from the operating system, or derived from ``seed`` by a hash."""
        key = secrets.token_bytes(32) if seed is None else hashlib.sha256(f"dpeq|{seed}".encode()).digest()
        init = hashlib.sha256(b"init|" + key).digest()
        return cls(seed, int.from_bytes(init[:8], "big") >> 1, key)

    def within(self, context: str) -> Randomness:
        """The randomness of one run among those of a seed; a key from the operating system has no other run.

        Args:
            context: everything that the run's sums depend on (plan, settings, data). Two runs of one seed that differ
                in it get different noise: with the same, the difference of their releases would be bare of it. The
                initial weights depend on the seed alone.
        """
        if self.seed is None:
            return self
        return replace(self, _key=hashlib.sha256(self._key + context.encode()).digest())

    @property
    def kind(self) -> str:
        return "os" if self.seed is None else "seeded"

    def stream(self, use: Use, step: int) -> Stream:
        """The stream of one use in one step (``step`` counts from 1)."""
        if step < 0:
            raise ValueError(f"step is {step}; steps count from 1.")
        return Stream(self._key, _USES.index(use).to_bytes(4, "little") + step.to_bytes(8, "little"))
