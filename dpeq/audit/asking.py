"""What an attacker learns who may only ask a network: how sure it is of each image's label."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpeq.errors import ConfigError

__all__ = ["log_odds"]

_ROWS = 256  # asked about at a time


@torch.no_grad()
def log_odds(network: nn.Module, images: Tensor, labels: Tensor, device: torch.device) -> Tensor:
    """ln(p / (1 - p)) of each image's label: float64 ``[rows]``, about normal over trainings (Carlini et al. 2022).

    Raises :class:`ConfigError` when an answer is not finite.
    """
    network = network.to(device).eval()
    logits = torch.cat([network(part.to(device)).double().cpu() for part in torch.split(images, _ROWS)])
    if not torch.isfinite(logits).all():
        raise ConfigError("The network under attack answers with numbers that are not finite; lower training.lr.")
    own = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -torch.inf).logsumexp(dim=1)
    return own - others
