"""The product's training against one that was written a second time: the same coins give the same weights, and coins of
their own give the same distribution.

The network is a small equivariant one, in double precision. A comparison of distributions is a family of two-sample
tests, each on one number per training, and trainings are independent; the family's level is Bonferroni's, 1e-4. Seeds
are fixed, so nothing is left to chance here. Under other seeds, no pair of 190 sound sets came below 2e-3.
"""

import ast
import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from dp_accounting.pld import privacy_loss_distribution
from scipy import stats
from torch import nn

from dpeq.data.images import ImageSet
from dpeq.groups import group
from dpeq.nn.fields import FieldType
from dpeq.nn.invariant import InvariantPool
from dpeq.nn.norm import EquivariantGroupNorm
from dpeq.nn.steerable import SteerableConv
from dpeq.privacy.gaussian import LOG_SCALE, discrete_gaussian
from dpeq.privacy.ledger import Ledger
from dpeq.privacy.plan import calibrate
from dpeq.privacy.randomness import Randomness
from dpeq.training.loop import train
from dpeq.training.state import OptimizerSettings
from tests.privacy import reference

LEVEL = 1e-4
TRAININGS, WRONG_TRAININGS = 130, 70
IMAGES_OF = (1, 2, 3, 2, 4, 2, 3, 2, 2)  # of each patient; neither their number nor these are the plan's
LR = 0.5
ROOM = 1e-4  # relative, by which the product clips below C


class Network(nn.Module):
    """Images ``[N, 1, 5, 5]`` in single precision to two logits in double."""

    def __init__(self):
        super().__init__()
        c4 = group("C4")
        plane, fields = FieldType(c4, "trivial", 1), FieldType(c4, "regular", 2)
        self.layers = nn.Sequential(
            SteerableConv(plane, fields),
            EquivariantGroupNorm(fields, 1),
            nn.ELU(),
            SteerableConv(fields, fields, 1),
            InvariantPool(fields),
            nn.Linear(2, 2),
        )

    def forward(self, x):
        return self.layers(x.double())


def make_network():
    torch.manual_seed(1)
    network = Network().double()
    with torch.no_grad():
        network.layers[-1].weight *= 6  # sure of itself, and often wrong: gradients of very different norms
    return network


def make_data():
    rng = np.random.default_rng(2)
    units = np.repeat(np.arange(len(IMAGES_OF)), IMAGES_OF)
    images = torch.from_numpy(rng.normal(size=(len(units), 1, 5, 5)).astype(np.float32))
    labels = torch.from_numpy(rng.integers(0, 2, size=len(units)))
    whole = ImageSet(images, labels, torch.from_numpy(units), len(IMAGES_OF), ("a", "b"), "train", "patient")
    return whole, reference.Data(images, labels, [np.flatnonzero(units == u).tolist() for u in range(len(IMAGES_OF))])


@pytest.fixture(scope="module")
def plan():
    return calibrate(
        epsilon=12.0,
        delta=1e-3,
        expected_batch_size=6,
        public_units=16,
        steps=2,
        max_grad_norm=0.5,
        unit="patient",
        views=2,
    )


def constants_of(plan, clip=None):
    """What the reference is told; under another ``clip`` the noise stays that of the plan, sigma * C."""
    sigma, c = plan.noise_multiplier, plan.max_grad_norm
    clip = c if clip is None else clip
    return reference.Constants(
        plan.sample_rate, sigma * c / clip, clip, plan.expected_batch_size, plan.views, plan.steps, LR
    )


def flat(network):
    return np.concatenate([p.detach().numpy().ravel() for p in network.parameters()])


def train_the_product(network, data, plan, seed, path, physical_units=64):
    """The weights before the first step and after each."""
    weights = [flat(network)]
    with Ledger.create(path, plan) as ledger:
        train(
            network,
            data,
            plan,
            ledger,
            OptimizerSettings(LR, physical_units=physical_units),
            Randomness.create(seed),
            device=torch.device("cpu"),
            after_step=lambda state, record: weights.append(flat(state.model)),
        )
    return np.stack(weights)


def drawn_by_the_product(data, plan, seed, dimensions):
    """What a seed draws, as the reference wants it: read from the streams, put in order by a loop of its own."""
    randomness = Randomness.create(seed)

    def draw(step):
        coins = randomness.stream("sampling", step).uniform(len(data.units)).numpy()
        units = [unit for unit in range(len(data.units)) if coins[unit] < plan.sample_rate]
        widest = max((len(data.units[unit]) for unit in units), default=0)
        keys = randomness.stream("views", step).uniform(len(units), widest).numpy()
        sampled = []
        for unit, key in zip(units, keys, strict=True):
            order = [image for _, image in sorted(zip(key, data.units[unit], strict=False))]
            sampled.append((unit, [order[k % len(order)] for k in range(plan.views)]))
        return sampled, discrete_gaussian(dimensions, randomness.stream("noise", step)) / 2.0**LOG_SCALE

    return draw


def test_the_reference_shares_nothing_with_the_product():
    tree = ast.parse(Path(reference.__file__).read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} == {"__future__", "collections", "dataclasses", "numpy", "torch"}


def test_the_same_coins_views_and_noise_give_the_same_weights(plan, tmp_path):
    """Batches are cut into twos here, and whole below."""
    network, (images, data) = make_network(), make_data()
    sizes, worst_at_c = set(), 0.0
    for seed in range(12):
        found = train_the_product(copy.deepcopy(network), images, plan, seed, tmp_path / f"{seed}.jsonl", 2)
        draw = drawn_by_the_product(data, plan, seed, found.shape[1])
        sizes |= {len(draw(step)[0]) for step in range(1, plan.steps + 1)}
        for clip in (plan.max_grad_norm, (1 - ROOM) * plan.max_grad_norm):
            ours = reference.Reference(copy.deepcopy(network), data, constants_of(plan, clip)).train(draw)
            off = np.linalg.norm(found - ours, axis=1).max() / np.linalg.norm(np.diff(ours, axis=0), axis=1).min()
            if clip == plan.max_grad_norm:
                worst_at_c = max(worst_at_c, off)
            else:
                assert off < 1e-6, seed
    assert 1e-6 < worst_at_c < 10 * ROOM  # so units are clipped, and slightly below C
    assert 0 in sizes, "no step was empty"
    assert max(sizes) > 3


def train_the_reference(kind, plan, trainings, seed):
    network, (_, data) = make_network(), make_data()
    constants, rng, found = constants_of(plan), np.random.default_rng(seed), []
    dimensions = len(flat(network))
    for _ in range(trainings):
        fresh = copy.deepcopy(network)
        found.append(kind(fresh, data, constants).train(reference.draws(data, constants, dimensions, rng)))
    return np.stack(found)


@pytest.fixture(scope="module")
def products(plan, tmp_path_factory):
    network, (images, _), folder = make_network(), make_data(), tmp_path_factory.mktemp("ledgers")
    return np.stack(
        [
            train_the_product(copy.deepcopy(network), images, plan, 1000 + i, folder / f"{i}.jsonl")
            for i in range(TRAININGS)
        ]
    )


def alarms(weights, others):
    """Level at which each kind of difference between two sets of trainings ``[n, T + 1, d]`` is an alarm.

    Each is the smallest p-value of a kind times the number of tests of that kind. Principal directions are those of
    both sets thrown together, about their common mean: which set a training is from has no part in choosing them.
    """
    updates = [np.diff(w, axis=1).reshape(len(w), -1) for w in (weights, others)]
    both = np.concatenate(updates)
    values, vectors = np.linalg.eigh(np.cov(both.T))
    principal = vectors / np.sqrt(values)
    random = np.random.default_rng(3).normal(size=(len(principal), 40))
    whitened = [(u - both.mean(axis=0)) @ principal for u in updates]
    mixed = [u @ random for u in updates]
    directions = [np.concatenate(pair, axis=1) for pair in zip(whitened, mixed, strict=True)]
    rows, columns = np.triu_indices(len(principal), 1)

    def welch(x, y):
        return stats.ttest_ind(x, y, equal_var=False).pvalue

    def each(test, x, y):
        return np.array([test(*pair).pvalue for pair in zip(x.T, y.T, strict=True)])

    found = {
        "mean of a coordinate": welch(*updates),
        "mean in a direction": welch(*directions),
        "variance in a direction": each(stats.levene, *directions),
        "covariance of two directions": welch(*(w[:, rows] * w[:, columns] for w in whitened)),
        "variance over all directions": welch(*((w**2).sum(axis=1) for w in whitened)),
        "distribution in a direction": each(stats.ks_2samp, *mixed),
    }
    return {name: float(np.min(p) * np.size(p)) for name, p in found.items()}


def alarm(weights, others):
    """The level at which two sets of trainings differ, over all kinds of differences."""
    found = alarms(weights, others)
    return len(found) * min(found.values()), found


def test_the_updates_have_the_distribution_of_the_reference(products, plan):
    level, found = alarm(products, train_the_reference(reference.Reference, plan, TRAININGS, 4))
    assert level > LEVEL, found


@pytest.mark.parametrize(
    "mistake",
    [
        reference.TooLittleNoise,
        reference.MeanClipped,
        reference.DividedByTheSampled,
        reference.ViewsClipped,
        reference.NoiseDrawnOnce,
    ],
)
def test_the_comparison_notices(products, plan, mistake):
    level, found = alarm(products, train_the_reference(mistake, plan, WRONG_TRAININGS, 4))
    assert level < LEVEL, found


def below(plan, interval):
    """dp-accounting's lower estimate: every privacy loss rounded down, by ``interval`` at most in each step."""
    one_step = privacy_loss_distribution.from_gaussian_mechanism(
        plan.noise_multiplier,
        pessimistic_estimate=False,
        value_discretization_interval=interval,
        sampling_prob=plan.expected_batch_size / plan.public_units,
        use_connect_dots=False,
    )
    return one_step.self_compose(plan.steps).get_epsilon_for_delta(plan.delta)


def test_the_epsilon_of_the_same_plan_is_what_dp_accounting_says_when_asked_directly(plan):
    estimate = below(plan, 1e-3)
    assert estimate <= plan.epsilon_spent <= min(plan.epsilon_target, 1.005 * estimate)


def test_so_is_that_of_a_plan_of_many_steps():
    plan = calibrate(
        epsilon=1.0,
        delta=1e-5,
        expected_batch_size=50,
        public_units=1000,
        steps=200,
        max_grad_norm=1.0,
        unit="image",
    )
    estimate = below(plan, 2e-5)
    assert estimate <= plan.epsilon_spent <= min(plan.epsilon_target, 1.005 * estimate)
