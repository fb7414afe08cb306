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


@given(
    counts=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    views=st.integers(1, 6),
    most=st.integers(1, 6) | st.none(),
    seed=st.integers(0, 1000),
)
def test_each_unit_fills_exactly_its_rows_with_its_own_images(counts, views, most, seed):
    most = None if most is None else min(most, views)
    owner = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    shuffled = torch.randperm(len(owner), generator=torch.Generator().manual_seed(seed))
    units = owner[shuffled]
    chooser = UnitViews(units, len(counts), views, most)
    sampled = torch.arange(len(counts))[::2]
    rows = chooser.choose(sampled, stream(seed)).view(len(sampled), views)
    for unit, row in zip(sampled.tolist(), rows, strict=True):
        assert (units[row] == unit).all()
        shown = torch.bincount(row)[row.unique()]
        assert len(shown) == min(most or views, counts[unit]), "never more different images than asked for, nor fewer"
        assert int(shown.max() - shown.min()) <= 1, "no repeat before every image was shown"


def test_images_are_chosen_uniformly():
    chooser = UnitViews(torch.tensor([0, 0, 0, 1]), 2, 1)
    keys = stream(0)
    shown = torch.bincount(torch.cat([chooser.choose(torch.tensor([0]), keys) for _ in range(3000)]), minlength=4)
    assert shown[3] == 0
    assert (shown[:3] - 1000).abs().max() < 4.5 * math.sqrt(3000 * 2 / 9)


@pytest.mark.parametrize(("views", "most"), [(4, 2), (5, 3), (3, 1), (6, 6)])
def test_with_fewer_images_than_views_every_image_still_has_the_same_chance(views, most):
    """Rows per image over many steps, against K / n each; and the same number of different images in every step."""
    n, steps = 5, 4000
    chooser = UnitViews(torch.zeros(n, dtype=torch.int64), 1, views, most)
    keys = stream(1)
    rows = torch.stack([chooser.choose(torch.tensor([0]), keys) for _ in range(steps)])
    assert all(len(row.unique()) == min(most, n) for row in rows[:200])
    shown = torch.bincount(rows.flatten(), minlength=n)
    # Each step gives an image at most ceil(K / m) rows, so K of them vary by less than that times a coin's spread.
    margin = 4.5 * math.ceil(views / most) * math.sqrt(steps / 4)
    assert (shown - steps * views / n).abs().max() < margin


def test_the_default_is_as_many_images_as_views():
    units = torch.tensor([0, 0, 0, 1, 1])
    for views in (1, 2, 4):
        default = UnitViews(units, 2, views).choose(torch.arange(2), stream(3))
        assert torch.equal(default, UnitViews(units, 2, views, views).choose(torch.arange(2), stream(3)))


@pytest.mark.parametrize("most", [0, 4])
def test_more_images_than_views_are_refused(most):
    with pytest.raises(ValueError, match="from 1 to 3"):
        UnitViews(torch.tensor([0]), 1, 3, most)


def test_units_without_images_are_refused():
    with pytest.raises(ValueError, match="at least one image"):
        UnitViews(torch.tensor([0, 2]), 3, 1)
