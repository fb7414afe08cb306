"""Canaries that are images: what the network is asked about them, and a training without noise that they give away."""

import numpy as np
import pytest
import torch
from made_plans import made_plan
from sklearn.metrics import roc_auc_score
from torch import nn

from benchmarks.killable import make_splits
from dpeq.audit.inputs import InputCanaries
from dpeq.audit.one_run import attack_training, audit_training
from dpeq.audit.training import Course
from dpeq.errors import ConfigError
from dpeq.training.state import OptimizerSettings

CPU = torch.device("cpu")


class Fixed(nn.Module):
    """Logits that are read off the first pixels."""

    def forward(self, x):
        return x.flatten(1)[:, :3]


def test_scores_are_log_odds_against_others_of_the_label():
    labels = torch.tensor([0, 0, 2, 2, 2])
    canaries = InputCanaries(torch.randn(5, 1, 2, 2, generator=torch.Generator().manual_seed(1)), labels)
    chances = torch.softmax(canaries.images.flatten(1)[:, :3].double(), dim=1)
    odds = torch.stack([torch.log(p[y] / (1 - p[y])) for p, y in zip(chances, labels, strict=True)]).numpy()
    expected = np.concatenate([odds[:2] - odds[:2].mean(), odds[2:] - odds[2:].mean()])
    np.testing.assert_allclose(canaries.scores(Fixed(), CPU), expected, rtol=1e-6)


def test_canaries_are_units_of_their_own_and_always_the_same():
    canaries, data = InputCanaries.make(6, (1, 8, 8), 2), make_splits()["train"]
    joined = canaries.beside(data, [4, 1])
    assert joined.n_units == data.n_units + 2
    assert joined.units.tolist()[-2:] == [data.n_units, data.n_units + 1]
    assert torch.equal(joined.images[-2:], canaries.images[[4, 1]])
    assert torch.equal(joined.labels[-2:], canaries.labels[[4, 1]])
    assert torch.equal(InputCanaries.make(6, (1, 8, 8), 2).images, canaries.images)
    assert canaries.beside(data, []).n_units == data.n_units
    with pytest.raises(ConfigError, match="0 canaries"):
        InputCanaries.make(0, (1, 8, 8), 2)


@pytest.mark.parametrize(("sigma", "low", "high"), [(0.05, 0.8, 1.0), (500.0, 0.3, 0.7)])
def test_a_network_with_little_noise_gives_its_canaries_away(tmp_path, sigma, low, high):
    """And one with much noise does not: the score is of the coins, not of the canaries."""
    plan = made_plan(1.0, sigma, 30, accountant="rdp", max_grad_norm=1.0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    settings = OptimizerSettings(lr=0.5, ema_decay=0.5)
    data = make_splits()["train"]
    course, options = Course(plan, settings, CPU), {"canaries": 60, "kind": "input"}
    attack = attack_training(model, data, course, tmp_path, **options)
    assert low <= roc_auc_score(attack.included, attack.scores) <= high
    assert attack.lost == 0
    audit = audit_training(plan, attack)
    assert audit.method.startswith("input canaries, one run")
    assert not audit.contradicts
    again = attack_training(model, data, course, tmp_path, **options)
    np.testing.assert_allclose(again.scores, attack.scores)
