"""The made-up batch: whose rows are whose, and a loss that lets no row look at another."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from dpeq.dry_step.batch import MadeUpBatch

OUTPUTS = {
    "logits": lambda x: [x.flatten(1)[:, :3]],
    "other numbers": lambda x: [x.flatten(1)],
    "a map and a vector": lambda x: [x * 2, x.flatten(1)],
}


def drawn(views: int = 2) -> MadeUpBatch:
    return MadeUpBatch.drawn((1, 2, 2), classes=3, views=views, units=4, device=torch.device("cpu"))


def test_rows_of_a_unit_stand_together_and_share_their_label():
    batch = drawn()
    assert (batch.x.shape, batch.rows, batch.units) == ((8, 1, 2, 2), 8, 4)
    assert batch.labels.tolist() == [0, 0, 1, 1, 2, 2, 0, 0]
    assert batch.labels[batch.rows_of(3)].tolist() == [0, 0]
    assert (batch.rows_of(0), batch.rows_of(3)) == (slice(0, 2), slice(6, 8))


@pytest.mark.parametrize("unit", [0, 1, 3])
def test_all_units_but_one_are_drawn_anew(unit):
    batch = drawn()
    before = batch.x.clone()
    same = (batch.with_others_changed(unit) == batch.x).flatten(1).all(1)
    assert same.tolist() == [row // 2 == unit for row in range(8)]
    assert torch.equal(batch.x, before)


def test_what_is_drawn_anew_is_distributed_differently():
    """A layer that mixes brightness, or mixes above a threshold only, would sleep through more of the same."""
    batch = MadeUpBatch.drawn((1, 64, 64), classes=3, views=1, units=3, device=torch.device("cpu"))
    changed = batch.with_others_changed(0)[1:]
    assert float(changed.mean()) == pytest.approx(1, abs=0.1)
    assert float(changed.std()) == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("kind", OUTPUTS)
def test_the_loss_is_a_sum_over_rows_and_sees_every_number(kind, views):
    batch = drawn(views)
    x = batch.x.clone().requires_grad_()
    output = OUTPUTS[kind](x)
    total = batch.loss(output, batch.labels)
    alone = [batch.loss([t[r : r + 1] for t in output], batch.labels[r : r + 1]) for r in range(batch.rows)]
    torch.testing.assert_close(total, torch.stack(alone).sum())
    (grad,) = torch.autograd.grad(total, x)
    assert all(len(row.unique()) == len(row) for row in grad.flatten(1)[:, :3])  # of each number something else
    per_row = replace(batch, views=1).loss(output, batch.labels)
    torch.testing.assert_close(total * views, per_row)
    if kind == "logits":
        torch.testing.assert_close(total, F.cross_entropy(output[0], batch.labels) * batch.rows / views)
