"""Networks that would carry the data out, or let one unit reach another: found before training, or during it."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dpeq.dry_step import require_trainable
from dpeq.errors import ConfigError
from dpeq.privacy.clipping import UnitGradSampleModule
from dpeq.privacy.optimizer import PlanOptimizer
from dpeq.privacy.plan import calibrate
from dpeq.privacy.randomness import Randomness
from dpeq.privacy.state import StateGuard

SHAPE = (1, 8, 8)


class FrozenAverage(nn.Module):
    """Statistics of the data in a parameter that is not trained."""

    def __init__(self):
        super().__init__()
        self.average = nn.Parameter(torch.zeros(4), requires_grad=False)

    def forward(self, x):
        self.average.data.lerp_(x.detach().mean((0, 2, 3)), 0.1)
        return x


class WholeNumbers(nn.Module):
    """An image in a buffer of integers."""

    def __init__(self):
        super().__init__()
        self.register_buffer("last", torch.zeros(4, 6, 6, dtype=torch.int32))

    def forward(self, x):
        self.last.copy_((x.detach()[0] * 1e6).int())
        return x


class FirstBatch(nn.Module):
    """Data-dependent initialisation of a trained parameter (as in Glow)."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Conv2d(4, 4, 1)
        self.ready = False

    def forward(self, x):
        if not self.ready:
            self.inner.bias.data.copy_(-x.detach().mean((0, 2, 3)))
            self.ready = True
        return self.inner(x)


class TrainModeMix(nn.Module):
    """Blends units, but only while training and beside a random layer."""

    def forward(self, x):
        return x + 0.5 * x.mean(0, keepdim=True) if self.training else x


class Gate(nn.Module):
    """Mixes units behind a gate that stands at zero when training begins."""

    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x + self.gamma * (x.mean(0, keepdim=True) if len(x) > 1 else x)


class DeadBranch(nn.Module):
    """Mixes units in a branch that is dead at its initial weights; the first step's noise wakes it."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(4, 4, 1, bias=False)
        nn.init.zeros_(self.a.weight)
        nn.init.zeros_(self.b.weight)

    def forward(self, x):
        return x + self.b(self.a(x.mean(0, keepdim=True).expand_as(x)))


class Memory(nn.Module):
    """Adds what the batch before looked like."""

    def __init__(self):
        super().__init__()
        self.kept = [0.0]

    def forward(self, x):
        before, self.kept[0] = self.kept[0], x.detach().mean()
        return x + before


class ThreeOrMore(nn.Module):
    def forward(self, x):
        return x - x.mean(0, keepdim=True) if len(x) > 2 else x


def network(layer, *more):
    torch.manual_seed(0)
    head = [nn.Mish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    return nn.Sequential(nn.Conv2d(1, 4, 3), layer, *more, *head)


@pytest.mark.parametrize(
    "layer",
    [FrozenAverage, WholeNumbers, FirstBatch, Gate, DeadBranch, Memory, ThreeOrMore],
    ids=lambda kind: kind.__name__,
)
def test_networks_that_remember_or_mix_are_refused(layer):
    with pytest.raises(ConfigError, match="cannot be trained privately"):
        require_trainable(network(layer()), SHAPE, 3)


def test_mixing_that_happens_beside_random_layers_only_while_training_is_refused():
    with pytest.raises(ConfigError, match="cannot be trained privately"):
        require_trainable(network(nn.Dropout(0.5), TrainModeMix()), SHAPE, 3)


def test_the_guard_names_what_changed_and_lets_the_optimiser_pass():
    model = network(FrozenAverage())
    guard = StateGuard(model)
    guard.check()
    model(torch.randn(2, *SHAPE))
    with pytest.raises(ConfigError, match=r"'1\.average' is changed by the forward pass"):
        guard.check()
    guard.take()
    guard.check()


def test_a_layer_that_sees_some_rows_only_is_refused():
    """Its gradients would be given to the first units of the batch, whosever they are."""

    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 3)

        def forward(self, x):
            return self.inner(x) + self.inner(x[1:]).sum()

    wrapped = UnitGradSampleModule(Routed())
    with pytest.raises(ConfigError, match=r"saw 3 rows of a batch of 4"):
        wrapped.backward(wrapped(torch.randn(4, 4)), torch.tensor([0, 1, 2, 0]))


def test_complex_parameters_are_refused():
    model = network(nn.Identity())
    model.spectrum = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(ConfigError, match="'spectrum' is complex"):
        UnitGradSampleModule(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_does_not_round_a_unit_beyond_the_clipping_norm(dtype):
    """Adding a unit to 200 others moves the clipped sum by at most C; summed in bfloat16 it moved by 1.5 C."""
    plan = calibrate(
        epsilon=8, delta=1e-2, expected_batch_size=8, public_units=64, steps=2, max_grad_norm=1.0, unit="image"
    )
    torch.manual_seed(0)
    base = nn.Linear(9, 3)  # few numbers and equal units: the sum grows where half precision is coarsest

    worst = base(torch.linspace(9, 30, 9)).argmin()

    def clipped_sum(rows):
        model = copy.deepcopy(base).to(dtype)
        wrapped = UnitGradSampleModule(model)
        optimizer = PlanOptimizer(torch.optim.SGD(model.parameters(), 0.0), plan)
        for part in torch.linspace(9, 30, 9, dtype=dtype).expand(rows, 9).split(16):
            wrapped.backward(wrapped(part), worst.expand(len(part)))
            optimizer.accumulate()
        total = optimizer.take_sum()
        optimizer.apply(optimizer.noised(total, Randomness.create(0).stream("noise", 1)))
        assert all(p.dtype == dtype for p in model.parameters())
        return total

    sums = [clipped_sum(rows) for rows in range(196, 206)]
    assert max(float((b - a).norm()) for a, b in itertools.pairwise(sums)) <= 1 + 1e-3


def test_a_layer_that_is_random_when_it_is_run_again_is_refused():
    """torch.func runs a foreign layer a second time: with another coin its gradients would be another network's."""

    coins = itertools.cycle([True, False])

    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4, 1, 1))

        def forward(self, x):
            return x * self.scale if next(coins) else x * self.scale * 3

    model = network(Skip())
    wrapped = UnitGradSampleModule(model)
    with pytest.raises(ConfigError, match="random beyond dropout"):
        wrapped.backward(wrapped(torch.randn(3, *SHAPE)), torch.tensor([0, 1, 2]))


class Checkpointed(nn.Module):
    """One block in two re-entrant checkpoints: Opacus keeps a list of gradients, whose length is not that of units."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(64, 64)

    def forward(self, x):
        x = x.flatten(1).requires_grad_()
        for _ in range(2):
            x = checkpoint(self.inner, x, use_reentrant=True)
        return x[:, :3]


def test_gradients_in_several_checkpoints_are_refused_whatever_their_number():
    wrapped = UnitGradSampleModule(Checkpointed())
    with pytest.raises(ConfigError, match="several checkpoints"):
        wrapped.backward(wrapped(torch.randn(2, *SHAPE)), torch.tensor([0, 1]))
    with pytest.raises(ConfigError, match="cannot be trained privately"):
        require_trainable(Checkpointed(), SHAPE, 3)
