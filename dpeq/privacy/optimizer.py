"""The private mechanism around any torch optimiser: clip every unit, sum, add noise once, step.

    theta <- step((1/B) * (sum_u clip_C(mean_k grad loss(view_uk)) + sigma * C * xi))

All constants come from the :class:`~dpeq.privacy.plan.PrivacyPlan`; none is ever derived from the data. From the
gradients on, everything is computed in double precision. In single precision the norm of a million numbers can be off
by 1e-3, and what rounding makes of a sum depends on which unit stands where: one unit could move it by more than C.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from opacus.optimizers import DPOptimizer
from opacus.optimizers.optimizer import _check_processed_flag
from torch import Tensor

from dpeq.privacy.gaussian import add_noise, clip_bound
from dpeq.privacy.plan import Clipping, PrivacyPlan
from dpeq.privacy.randomness import Stream

__all__ = ["GradientStatistics", "PlanOptimizer", "clip_factors"]

_log = logging.getLogger(__name__)

# Relative; for the other units' gradients, whose last digits depend on the rows beside them. Measured: 1e-7 in single
# precision, up to 3e-5 for norms over maps of a few equal pixels.
_ROUNDING = 1e-4
_COLUMNS = 1 << 14  # turned into doubles at a time; constant, so that it decides no digit of a sum

_AUTOMATIC_GAMMA = 0.01  # of Bu et al. 2023, who find results indifferent to it


def clip_factors(norms: Tensor, bound: float, clipping: Clipping) -> Tensor:
    """What each unit's gradient of each parameter tensor is multiplied by.

    Whatever the norms, a unit's scaled gradient over all parameters has an L2 norm of at most ``bound``; a unit with a
    norm that is not finite gets zeros.

    - "fixed": ``min(1, bound / |g|)`` (Abadi et al. 2016, arXiv 1607.00133).
    - "automatic": ``bound / (|g| + 0.01)``, which normalises instead of clipping, so that ``bound`` only scales the
      learning rate (Bu, Wang, Zha & Karypis 2023, arXiv 2206.07136).
    - "per_layer": each of L parameter tensors is clipped by itself to ``bound / sqrt(L)`` (McMahan et al. 2018, arXiv
      1710.06963), as Opacus' per-layer optimiser does.

    Args:
        norms: L2 norms ``[parameters, units]``.
        bound: C.

    Returns:
        factors ``[parameters, units]``.
    """
    if clipping == "per_layer":
        share = bound / math.sqrt(len(norms))
        factors = share / norms.clamp(min=share)
    else:
        whole = torch.linalg.vector_norm(norms, dim=0).expand_as(norms)
        # min(1, C / norm), written so that it neither divides by zero nor needs a fudge in the denominator.
        factors = bound / (whole.clamp(min=bound) if clipping == "fixed" else whole + _AUTOMATIC_GAMMA)
    finite = norms.isfinite().all(dim=0) & factors.isfinite().all(dim=0)
    return torch.where(finite, factors, torch.zeros_like(factors))


@dataclass
class GradientStatistics:
    """What one logical step's gradients looked like. **Private**: computed from the data, covered by no noise.

    Attributes:
        units: how many were sampled.
        norms: sum of the units' finite gradient norms.
        clipped: how many norms were above the clipping norm.
        not_finite: how many units counted as zero because their gradient is not finite.
    """

    units: int = 0
    norms: float = 0.0
    clipped: int = 0
    not_finite: int = 0


class PlanOptimizer(DPOptimizer):  # type: ignore[misc]  # Opacus is untyped
    """Opacus' optimiser under a plan: :meth:`accumulate` after every physical batch, :meth:`finish` once per step.

    The sum of clipped gradients does not depend on how the logical batch was cut; the normaliser is the plan's public
    ``expected_batch_size``; a step with no units at all still adds its noise and counts. Where several processes share
    a step, each one's :meth:`take_sum` is added up, noised once by :meth:`noised`, and :meth:`apply` given to all.

    Args:
        optimizer: any torch optimiser over the trainable parameters; frozen ones get neither clipping nor noise.
        plan: gives sigma, C, B and the way to clip, together.

    Attributes:
        statistics: set it to a fresh :class:`GradientStatistics` to have it filled; private, so off (None).
    """

    def __init__(self, optimizer: torch.optim.Optimizer, plan: PrivacyPlan) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=plan.noise_multiplier,
            max_grad_norm=plan.max_grad_norm,
            expected_batch_size=plan.expected_batch_size,
            loss_reduction="mean",
        )
        self.plan = plan
        self.dimensions = sum(p.numel() for p in self.params)
        # What is clipped to leaves room for rounding, of the other units' gradients and to the noise's grid.
        self.bound = plan.max_grad_norm * (1 - _ROUNDING)
        if plan.private:
            self.bound = clip_bound(self.bound, plan.noise_multiplier, self.dimensions)
        self.statistics: GradientStatistics | None = None
        self._sum: Tensor | None = None
        self._warned = False

    def accumulate(self) -> None:
        """Adds ``sum_u clip_C(g_u)`` of one physical batch to the sum, and frees the per-unit gradients.

        A unit whose gradient is not finite contributes zero. (Opacus would multiply it by a factor of zero, and zero
        times infinity poisons the whole sum.)
        """
        samples = [self._get_flat_grad_sample(p).flatten(1) for p in self.params]
        norms = torch.stack([_norms(g) for g in samples])
        factors = clip_factors(norms, self.bound, self.plan.clipping)
        finite = norms.isfinite().all(dim=0)
        all_finite = bool(finite.all())
        if not all_finite and not self._warned:
            self._warned = True  # which unit, and how many, is private
            _log.warning(
                "The gradient of some privacy unit is not finite and counts as zero; look for broken images or a "
                "learning rate that is too high."
            )
        if self.statistics is not None:
            self._describe(norms, finite)
        sums = []
        for p, sample, factor in zip(self.params, samples, factors, strict=True):
            _check_processed_flag(p.grad_sample)
            # Taken out, not multiplied by zero: the sum is then, digit by digit, the one without them.
            chosen = (sample, factor) if all_finite else (sample[finite], factor[finite])
            sums.append(_weighted_sum(*chosen))
            p.grad_sample = None
            p.grad = None
        clipped = torch.cat(sums)
        self._sum = clipped if self._sum is None else self._sum + clipped

    def take_sum(self) -> Tensor:
        """The clipped sum so far, float64 ``[dimensions]``, zeros if there were no units; begins a new one."""
        like = self.params[0]
        total = (
            torch.zeros(self.dimensions, dtype=torch.float64, device=like.device) if self._sum is None else self._sum
        )
        self._sum = None
        return total

    def noised(self, total: Tensor, noise: Stream) -> Tensor:
        """``total + sigma * C * xi``; called once per logical step on the whole sum.

        Args:
            noise: this step's stream, and no other step's.
        """
        if not self.plan.private:
            return total
        return add_noise(total, std=self.plan.noise_multiplier * self.plan.max_grad_norm, stream=noise)

    def apply(self, total: Tensor) -> None:
        """Divides the noised sum by the public expected batch size B, whatever was sampled, and steps."""
        mean = total / self.plan.expected_batch_size
        for p, piece in zip(self.params, torch.split(mean, [p.numel() for p in self.params]), strict=True):
            p.grad = piece.view(p.shape).to(p.dtype)
        self.original_optimizer.step()
        for p in self.params:
            p.grad = None

    def finish(self, noise: Stream) -> None:
        """The end of a logical step in one process: noise, normalise, step."""
        self.apply(self.noised(self.take_sum(), noise))

    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Refused: Opacus' own step would draw the noise from torch's generator, whose key is 32 bits long."""
        raise RuntimeError("call accumulate() after each physical batch and finish(noise) once per step, not step().")

    def _describe(self, norms: Tensor, finite: Tensor) -> None:
        assert self.statistics is not None
        whole = torch.linalg.vector_norm(norms, dim=0)[finite]
        self.statistics.units += norms.shape[1]
        self.statistics.norms += float(whole.sum())
        self.statistics.clipped += int((whole > self.plan.max_grad_norm).sum())
        self.statistics.not_finite += int((~finite).sum())


def _doubles(rows: Tensor) -> Iterator[Tensor]:
    """``[units, n]`` as doubles, some columns at a time; each piece is overwritten by the next."""
    room = torch.empty(len(rows) * min(_COLUMNS, rows.shape[1]), dtype=torch.float64, device=rows.device)
    for some in torch.split(rows, _COLUMNS, dim=1):
        yield room[: some.numel()].view(some.shape).copy_(some)


def _norms(rows: Tensor) -> Tensor:
    """L2 norms of ``[units, n]``: ``[units]``, in doubles."""
    parts = torch.stack([torch.linalg.vector_norm(some, dim=1) for some in _doubles(rows)])
    whole: Tensor = torch.linalg.vector_norm(parts, dim=0)
    return whole


def _weighted_sum(rows: Tensor, weights: Tensor) -> Tensor:
    """``sum_u weights_u rows_u`` of ``[units, n]``: ``[n]``, in doubles; the products are exact for single rows."""
    return torch.cat([torch.mv(some.T, weights) for some in _doubles(rows)])
