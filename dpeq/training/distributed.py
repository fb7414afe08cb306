"""Several processes that train one network together, one private step at a time.

Rank 0 alone holds the random key: it draws the sample, writes the ledger and adds the noise, once. The others are told
which rows are theirs, send their clipped sum, and receive the noised one. What crosses between processes are plain
numbers; nothing is pickled. Sums cross before their noise is added, and nothing encrypts them: all machines of a run,
and the network between them, must be trusted with the data itself.

A process that dies takes the run down, never the budget: every exchange ends with :class:`RankError` when a partner's
connection closes or it stays silent for too long, and the ledger, written before each step, can only over-count.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor, nn

import dpeq
from dpeq.errors import ConfigError, DpeqError

__all__ = ["PATIENCE", "RankError", "Ranks", "joined"]

PATIENCE = timedelta(minutes=30)
"""How long a process waits for another one that is alive but silent: rank 0 may be loading data or evaluating."""

_DTYPES = (torch.int64, torch.float64, torch.uint8)


class RankError(DpeqError):
    """Another process of the run has ended, is silent, or was never there; exit code 1."""


@dataclass(frozen=True)
class Ranks:
    """This process among ``world``; a single one by default, for which every exchange is the identity.

    Every exchange is a call that all ranks make, in the same order. It raises :class:`RankError` when another rank is
    gone.

    Attributes:
        rank: 0 leads.
        world: number of processes.
        device: where this process trains; each process of a machine has a GPU of its own.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def leads(self) -> bool:
        """Whether this process draws, keeps the ledger, adds the noise and writes files."""
        return self.rank == 0

    def tell(self, numbers: Tensor | None) -> Tensor:
        """Rank 0's vector (int64, float64 or uint8, of any length, on the CPU), on every rank; others pass None."""
        if self.world == 1:
            assert numbers is not None
            return numbers
        size = torch.zeros(2, dtype=torch.int64)
        if self.leads:
            assert numbers is not None
            assert numbers.dim() == 1
            size = torch.tensor([len(numbers), _DTYPES.index(numbers.dtype)])
        self._broadcast(size)
        content = numbers if self.leads else torch.empty(int(size[0]), dtype=_DTYPES[int(size[1])])
        assert content is not None
        content = content.contiguous()
        self._broadcast(content)
        return content

    def say(self, text: str | None) -> str:
        """Rank 0's text, on every rank; others pass None."""
        return bytes(self.tell(None if text is None else _bytes(text.encode())).tolist()).decode()

    def hand_out(self, tensors: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Rank 0's named tensors, on every rank, on the CPU; others pass None."""
        packed = self.tell(None if tensors is None else _bytes(save(dict(tensors))))
        return load(packed.numpy().tobytes())

    def agree(self, what: str, value: str) -> None:
        """Makes sure that every rank has the same ``value``; hashes are compared.

        Raises:
            ConfigError: on every rank, when one differs, naming ``what`` and the ranks.
        """
        if self.world == 1:
            return
        own = _bytes(hashlib.sha256(value.encode()).digest())
        all_ranks = [torch.empty_like(own) for _ in range(self.world)]
        with self._exchange():
            dist.all_gather(all_ranks, own)
        others = [str(rank) for rank, theirs in enumerate(all_ranks) if not torch.equal(theirs, all_ranks[0])]
        if others:
            raise ConfigError(
                f"The {what} of rank {', '.join(others)} differs from rank 0's; start all processes with the same "
                "command, files and versions."
            )

    def add_up(self, total: Tensor) -> Tensor:
        """The sum over all ranks, on rank 0; zeros on the others, who have no business with a sum without noise."""
        if self.world == 1:
            return total
        if total.is_cuda:
            # NCCL notices late that a partner died; gloo does at once. So nobody enters before all have arrived.
            with self._exchange():
                dist.all_reduce(torch.zeros(1))
        total = total.clone()
        with self._exchange():
            dist.reduce(total, 0)
        return total if self.leads else torch.zeros_like(total)  # the buffer has held parts of others' sums

    def spread(self, total: Tensor) -> Tensor:
        """Rank 0's tensor on every rank, in place of each one's own."""
        self._broadcast(total)
        return total

    def align(self, module: nn.Module) -> None:
        """Gives every rank the parameters and buffers of rank 0."""
        if self.world > 1:
            for tensor in [*module.parameters(), *module.buffers()]:
                # As bytes: of any type, and in one piece whatever the strides.
                content = tensor.detach().contiguous().flatten().view(torch.uint8).clone()
                self._broadcast(content)
                tensor.detach().copy_(content.view(tensor.dtype).view(tensor.shape))

    def _broadcast(self, tensor: Tensor) -> None:
        if self.world > 1 and tensor.numel():
            with self._exchange():
                dist.broadcast(tensor, 0)

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise RankError(
                f"Rank {self.rank} of {self.world} lost the others: one has ended, or has been silent for too long; "
                "mend what its message names, then resume the run."
            ) from error


@contextmanager
def joined(device: torch.device, patience: timedelta = PATIENCE) -> Iterator[Ranks]:
    """Meets the other processes that torchrun started, and parts from them at the end; alone without torchrun.

    What runs on the CPU talks by gloo. Training on GPUs, sums go by NCCL and all else by gloo.

    Args:
        device: "cuda" or "cpu", the same for all; each process gets the GPU of its local rank.
        patience: for each exchange, and to meet.

    Raises:
        ConfigError: when the environment is half set, a process would have no GPU of its own, versions differ, or
            torchrun has started the run again by itself.
        RankError: when not all processes meet in time.
    """
    rank, world = _place()
    device = _own_device(device, world)
    if world == 1:
        yield Ranks(0, 1, device)
        return
    ranks = Ranks(rank, world, device)
    if os.environ.get("LOCAL_WORLD_SIZE") == str(world) and "lo" in [name for _, name in socket.if_nameindex()]:
        # All on one machine: what crosses has no business on a network card.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # Waiting for NCCL then ends in an exception, not in the process being aborted.
    os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=patience)
    except RuntimeError as error:
        raise RankError(
            f"Rank {rank} did not meet all {world} processes at {os.environ['MASTER_ADDR']}:"
            f"{os.environ['MASTER_PORT']}; start all of them, with a port that is free."
        ) from error
    try:
        ranks.agree("version of dpeq or torch", f"{dpeq.__version__} {torch.__version__}")
        ranks.agree("device", device.type)
        yield ranks
    except BaseException:
        if device.type == "cuda" and dist.group.WORLD is not None:
            dist.group.WORLD.abort()  # parting from NCCL in peace would wait for those who wait for this process
        raise
    finally:
        # Closes the connections, which the others notice at once.
        dist.destroy_process_group()


def _place() -> tuple[int, int]:
    """Rank and number of processes, from torchrun's environment."""
    env = os.environ
    if "RANK" not in env and "WORLD_SIZE" not in env:
        return 0, 1
    missing = [name for name in ("RANK", "WORLD_SIZE") if not env.get(name, "").isdecimal()]
    if not missing and int(env["WORLD_SIZE"]) > 1:
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not env.get(name)]
    if missing:
        raise ConfigError(
            f"{' and '.join(missing)} of the environment say nothing about the processes of this run; start them with "
            "torchrun, or unset RANK and WORLD_SIZE for a single one."
        )
    if env.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        raise ConfigError(
            "torchrun started this command again after a failure, which could spend the budget twice; use "
            "--max-restarts=0 and resume the run."
        )
    rank, world = int(env["RANK"]), int(env["WORLD_SIZE"])
    if not rank < world:
        raise ConfigError(f"RANK is {rank} of WORLD_SIZE {world}; ranks count from 0, start them with torchrun.")
    return rank, world


def _own_device(device: torch.device, world: int) -> torch.device:
    if device.type != "cuda" or world == 1:
        return device
    local = os.environ.get("LOCAL_RANK", "")
    if not local.isdecimal() or int(local) >= torch.cuda.device_count():
        raise ConfigError(
            f"LOCAL_RANK is '{local}' on a machine with {torch.cuda.device_count()} GPUs; start one process per GPU "
            "with torchrun --nproc-per-node, or set training.device to cpu."
        )
    if not dist.is_nccl_available():
        raise ConfigError("This build of torch has no NCCL; install one that has, or set training.device to cpu.")
    own = torch.device("cuda", int(local))
    torch.cuda.set_device(own)
    return own


def _bytes(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
