import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dpeq.data.sampling import UnitViews, poisson_sample
from dpeq.privacy.randomness import Randomness, Stream


def stream(step: int) -> Stream:
    return Randomness.create(0).stream("sampling", step)


def test_every_unit_enters_by_its_own_coin():
    """Batch sizes are Binomial(n, q), each unit's rate is q, and two units are uncorrelated."""
    n, q, steps = 50, 0.13, 4000
    entered = torch.zeros(steps, n)
    for step in range(steps):
        entered[step, poisson_sample(n, q, stream(step))] = 1
    sizes = entered.sum(1).numpy()
    observed = [(sizes == k).sum() for k in range(0, 20)]
    expected = steps * stats.binom.pmf(range(0, 20), n, q)
    keep = expected > 5
    chi2 = sum((o - e) ** 2 / e for o, e, k in zip(observed, expected, keep, strict=True) if k)
    assert chi2 < stats.chi2.ppf(0.9999, keep.sum() - 1)
    margin = 4.5 * math.sqrt(q * (1 - q) / steps)
    assert (entered.mean(0) - q).abs().max() < margin
    off_diagonal = torch.corrcoef(entered.T) - torch.eye(n)
    assert off_diagonal.abs().max() < 5 / math.sqrt(steps)


def test_extremes():
    assert poisson_sample(7, 1.0, stream(0)).tolist() == list(range(7))
    empty = [len(poisson_sample(3, 0.01, stream(s))) == 0 for s in range(50)]
    assert any(empty), "an empty batch is a legal draw"
    with pytest.raises(ValueError, match="sample_rate"):
        poisson_sample(3, 0.0, stream(0))


@given(counts=st.lists(st.integers(1, 5), min_size=1, max_size=6), views=st.integers(1, 6), seed=st.integers(0, 1000))
def test_each_unit_fills_exactly_its_rows_with_its_own_images(counts, views, seed):
    owner = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    shuffled = torch.randperm(len(owner), generator=torch.Generator().manual_seed(seed))
    units = owner[shuffled]
    chooser = UnitViews(units, len(counts), views)
    sampled = torch.arange(len(counts))[::2]
    rows = chooser.choose(sampled, stream(seed)).view(len(sampled), views)
    for unit, row in zip(sampled.tolist(), rows, strict=True):
        assert (units[row] == unit).all()
        assert len(row.unique()) == min(views, counts[unit]), "no repeat before every image was shown"


def test_images_are_chosen_uniformly():
    chooser = UnitViews(torch.tensor([0, 0, 0, 1]), 2, 1)
    keys = stream(0)
    shown = torch.bincount(torch.cat([chooser.choose(torch.tensor([0]), keys) for _ in range(3000)]), minlength=4)
    assert shown[3] == 0
    assert (shown[:3] - 1000).abs().max() < 4.5 * math.sqrt(3000 * 2 / 9)


def test_units_without_images_are_refused():
    with pytest.raises(ValueError, match="at least one image"):
        UnitViews(torch.tensor([0, 2]), 3, 1)
