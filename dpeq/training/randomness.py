"""The three sources of randomness of a run, kept apart: initial weights, sampling with views, and noise."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass

import torch

__all__ = ["Randomness"]


@dataclass(frozen=True)
class Randomness:
    """Generators for the three uses.

    Attributes:
        seed: None when keyed by the operating system; an integer makes the run reproducible, and the noise
            predictable to whoever knows it, which the report says.
    """

    seed: int | None
    init_seed: int
    sampling: torch.Generator
    noise: torch.Generator

    @classmethod
    def create(cls, seed: int | None) -> Randomness:
        """Independent streams: from the operating system's entropy, or derived from ``seed`` by a hash."""

        def stream(use: str) -> int:
            if seed is None:
                return secrets.randbits(63)
            return int.from_bytes(hashlib.sha256(f"dpeq|{seed}|{use}".encode()).digest()[:8], "big") >> 1

        return cls(
            seed,
            stream("init"),
            torch.Generator().manual_seed(stream("sampling")),
            torch.Generator().manual_seed(stream("noise")),
        )

    @property
    def kind(self) -> str:
        return "os" if self.seed is None else "seeded"
