"""What the benchmarks compare is one and the same step, taken by different methods."""

from dataclasses import replace

import pytest
import torch

from benchmarks import steps
from benchmarks.steps import TASKS, build_step
from dpeq.models.registry import build_model


def after_two_steps(method: str, views: int, monkeypatch) -> torch.Tensor:
    models = []

    def build(*given, **named):
        models.append(build_model(*given, **named))
        return models[0]

    monkeypatch.setattr(steps, "build_model", build)
    step = build_step(method, replace(TASKS["2d-28-small"], batch=3, views=views), torch.device("cpu"))
    step()
    step()
    return torch.nn.utils.parameters_to_vector(models[0].parameters()).detach()


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize(("method", "views"), [("functorch", 1), ("opacus", 1), ("functorch", 2)])
def test_all_private_methods_take_the_same_step(method, views, monkeypatch):
    ours = after_two_steps("dpeq", views, monkeypatch)
    theirs = after_two_steps(method, views, monkeypatch)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(after_two_steps("nonprivate", views, monkeypatch), ours, atol=1e-3)
