"""Several processes that train one network together, one private step at a time.

Rank 0 alone holds the random key: it draws the sample, writes the ledger and adds the noise, once. The others are told
which rows are theirs, send their clipped sum, and receive the noised one. What crosses between processes are plain
numbers; nothing is pickled.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["Ranks"]


@dataclass(frozen=True)
class Ranks:
    """This process among ``world``; a single one by default, for which every exchange is the identity.

    Attributes:
        rank: 0 leads.
        world: number of processes.
        device: where tensors must lie to be exchanged: the GPU for NCCL, the processor for gloo.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def leads(self) -> bool:
        """Whether this process draws, keeps the ledger and adds the noise."""
        return self.rank == 0

    def tell(self, numbers: Tensor | None) -> Tensor:
        """Rank 0's vector (int64 or float64, of any length), on every rank; others pass None.

        Returns:
            on the CPU.
        """
        if self.world == 1:
            assert numbers is not None
            return numbers
        size = torch.zeros(2, dtype=torch.int64, device=self.device)
        if numbers is not None:
            assert numbers.dim() == 1
            assert numbers.dtype in (torch.int64, torch.float64)
            size = torch.tensor([len(numbers), int(numbers.dtype == torch.float64)], device=self.device)
        dist.broadcast(size, 0)
        content = torch.empty(int(size[0]), dtype=torch.float64 if int(size[1]) else torch.int64, device=self.device)
        if numbers is not None:
            content.copy_(numbers)
        dist.broadcast(content, 0)
        return content.cpu()

    def add_up(self, total: Tensor) -> Tensor:
        """The sum over all ranks, on rank 0 (others get their own back); float64."""
        if self.world > 1:
            total = total.clone()
            dist.reduce(total, 0)
        return total

    def spread(self, total: Tensor) -> Tensor:
        """Rank 0's tensor on every rank, in place of each one's own."""
        if self.world > 1:
            dist.broadcast(total, 0)
        return total

    def align(self, module: nn.Module) -> None:
        """Gives every rank the parameters and buffers of rank 0."""
        if self.world > 1:
            for tensor in [*module.parameters(), *module.buffers()]:
                dist.broadcast(tensor.data, 0)
