"""The loop against a separate, plain reference: explicit units, numpy noise, no Opacus."""

import dataclasses
import math

import pytest
import torch
from helpers import unit_gradients_by_autograd
from torch import nn

from dpeq.data.images import ImageSet
from dpeq.data.sampling import UnitViews, poisson_sample
from dpeq.errors import BudgetError, ConfigError
from dpeq.models.registry import build_model
from dpeq.models.resnet9 import ResNet9Spec
from dpeq.privacy.gaussian import LOG_SCALE, discrete_gaussian
from dpeq.privacy.ledger import Ledger, read_ledger
from dpeq.privacy.plan import PrivacyPlan
from dpeq.privacy.randomness import Randomness
from dpeq.training.loop import StepRecord, train
from dpeq.training.state import OptimizerSettings, TrainingState

CPU = torch.device("cpu")
SPEC = ResNet9Spec("C4", "none", (1, 1, 2), (1, 1, 1), stem_pool=True)


def plan(**changes) -> PrivacyPlan:
    values = {
        "epsilon_target": 100.0,
        "delta": 1e-5,
        "unit": "patient",
        "sample_rate": 0.4,
        "steps": 4,
        "expected_batch_size": 4,
        "noise_multiplier": 0.7,
        "max_grad_norm": 0.3,
        "public_units": 10,
        "views": 2,
        "accountant": "prv",
        "epsilon": {"prv_upper": 99.0},
    }
    return PrivacyPlan(**{**values, **changes})


def patients(seed: int = 0) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    units = torch.repeat_interleave(torch.arange(10), torch.tensor([1, 2, 3, 1, 2, 3, 1, 2, 3, 1]))
    images = torch.randn(len(units), 1, 8, 8, generator=generator)
    return ImageSet(images, units % 2, units, 10, ("a", "b"), "train", "patient")


def flat(model: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


def trained(tmp_path, p: PrivacyPlan, *, name: str = "ledger", **settings):
    model = build_model(SPEC, 1, 2, seed=5)
    with Ledger.create(tmp_path / f"{name}.jsonl", p) as ledger:
        result = train(
            model,
            patients(),
            p,
            ledger,
            OptimizerSettings(**{"lr": 0.5, **settings}),
            Randomness.create(11),
            device=CPU,
        )
    return result


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("sigma", [0.0, 0.7])
def test_the_loop_is_the_equation(tmp_path, momentum, sigma):
    """Same coins, same views, same noise stream; sums, clipping, normaliser and EMA written out by hand."""
    private = {} if sigma else {"epsilon_target": math.inf, "accountant": "none", "epsilon": {}}
    p = plan(noise_multiplier=sigma, **private)
    result = trained(tmp_path, p, momentum=momentum, ema_decay=0.5, physical_units=2)

    model = build_model(SPEC, 1, 2, seed=5)
    data, random = patients(), Randomness.create(11)
    views = UnitViews(data.units, data.n_units, p.views)
    velocity, average = torch.zeros_like(flat(model)), flat(model)
    for step in range(p.steps):
        total = torch.zeros_like(velocity)
        sampled = poisson_sample(10, p.sample_rate, random.stream("sampling", step + 1))
        rows = views.choose(sampled, random.stream("views", step + 1))
        if len(rows):
            each = unit_gradients_by_autograd(model, data.images[rows], data.labels[rows], p.views)
            for vector in torch.cat([g.flatten(1) for g in each.values()], dim=1):
                total += vector * min(1.0, p.max_grad_norm / float(vector.norm()))
        noise = torch.from_numpy(discrete_gaussian(len(total), random.stream("noise", step + 1))) * 2.0**-LOG_SCALE
        total += (sigma * p.max_grad_norm * noise).float()
        velocity = momentum * velocity + total / p.expected_batch_size
        weights = flat(model) - 0.5 * velocity
        nn.utils.vector_to_parameters(weights, model.parameters())
        decay = min(0.5, (1 + step) / (10 + step))
        average = weights if step == 0 else decay * average + (1 - decay) * weights
    torch.testing.assert_close(flat(result.last), flat(model), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(flat(result.averaged), average, atol=2e-5, rtol=1e-4)


def test_physical_batches_of_any_size_give_the_same_weights(tmp_path):
    """Patients own unequal numbers of images, so a choice made batch by batch would differ."""
    weights = [flat(trained(tmp_path, plan(), name=str(size), physical_units=size).last) for size in (1, 2, 3, 64)]
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], atol=1e-6, rtol=1e-5)


def test_every_step_is_in_the_ledger_before_it_is_taken(tmp_path):
    """When a step dies in its first moment the ledger has it already."""
    p = plan()

    def die(state: TrainingState, record: StepRecord) -> None:
        if record.step == 2:
            raise RuntimeError("power cut")

    model = build_model(SPEC, 1, 2, seed=0)
    broken = dataclasses.replace(patients())
    with Ledger.create(tmp_path / "l.jsonl", p) as ledger:
        with pytest.raises(RuntimeError, match="power cut"):
            train(model, broken, p, ledger, OptimizerSettings(0.1), Randomness.create(0), device=CPU, after_step=die)
        assert ledger.steps == 2
    bad_forward = build_model(SPEC, 1, 2, seed=0)
    bad_forward.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("read error")))
    full = plan(sample_rate=1.0)
    with Ledger.create(tmp_path / "m.jsonl", full) as ledger, pytest.raises(RuntimeError, match="read error"):
        train(bad_forward, patients(), full, ledger, OptimizerSettings(0.1), Randomness.create(0), device=CPU)
    assert read_ledger(tmp_path / "m.jsonl").steps == 1, "the step that died in its forward pass is counted"


def test_an_exhausted_plan_stops_cleanly_and_allows_nothing_more(tmp_path):
    p = plan(steps=3)
    model = build_model(SPEC, 1, 2, seed=0)
    with Ledger.create(tmp_path / "l.jsonl", p) as ledger:
        first = train(model, patients(), p, ledger, OptimizerSettings(0.1), Randomness.create(0), device=CPU)
        assert first.steps == 3
        before = flat(model)
        train(model, patients(), p, ledger, OptimizerSettings(0.1), Randomness.create(1), device=CPU)
        assert torch.equal(flat(model), before), "nothing is left to spend, so nothing is learned"
        with pytest.raises(BudgetError):
            ledger.spend(4)


def test_batches_that_happen_to_be_empty_still_get_their_noise(tmp_path):
    p = plan(sample_rate=1e-6, steps=2, expected_batch_size=1)
    start = flat(build_model(SPEC, 1, 2, seed=5))
    result = trained(tmp_path, p)
    moved = flat(result.last) - start
    expected = 0.5 * p.noise_multiplier * p.max_grad_norm * math.sqrt(2)
    assert float(moved.std()) == pytest.approx(expected, rel=5 / math.sqrt(2 * len(moved)))


def test_plan_ledger_and_data_must_belong_together(tmp_path):
    with pytest.raises(ConfigError, match=r"set data\.unit to 'image'"):
        trained(tmp_path, plan(unit="image"))
    model, p = build_model(SPEC, 1, 2, seed=0), plan()
    for number, change in enumerate(({"noise_multiplier": 50.0}, {"sample_rate": 0.1}, {"max_grad_norm": 9.0})):
        with Ledger.create(tmp_path / f"{number}.jsonl", plan(**change)) as ledger:
            with pytest.raises(ConfigError, match="another plan"):
                train(model, patients(), p, ledger, OptimizerSettings(0.1), Randomness.create(0), device=CPU)
            assert ledger.steps == 0


def test_a_half_spent_ledger_is_not_continued_with_fresh_weights(tmp_path):
    p = plan()
    with Ledger.create(tmp_path / "l.jsonl", p) as ledger:
        ledger.spend(1)
        with pytest.raises(ConfigError, match="resume that run"):
            train(
                build_model(SPEC, 1, 2, 0),
                patients(),
                p,
                ledger,
                OptimizerSettings(0.1),
                Randomness.create(0),
                device=CPU,
            )


def test_a_network_can_be_trained_again_after_a_step_that_failed(tmp_path):
    def fail(state: TrainingState, record: StepRecord) -> None:
        raise RuntimeError("stop")

    model, p = build_model(SPEC, 1, 2, 0), plan()
    with Ledger.create(tmp_path / "a.jsonl", p) as ledger, pytest.raises(RuntimeError, match="stop"):
        train(model, patients(), p, ledger, OptimizerSettings(0.1), Randomness.create(0), device=CPU, after_step=fail)
    with Ledger.create(tmp_path / "b.jsonl", p) as ledger:
        assert train(model, patients(), p, ledger, OptimizerSettings(0.1), Randomness.create(0), device=CPU).steps == 4


class RemembersLater(nn.Module):
    """Keeps an image in a frozen parameter, but only from its third batch on, where no dry step has looked."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(64, 2)
        self.kept = nn.Parameter(torch.zeros(64), requires_grad=False)
        self.seen = 0

    def forward(self, x):
        self.seen += 1
        if self.seen >= 3:
            self.kept.data.copy_(x.detach()[0].flatten())
        return self.inner(x.flatten(1))


def test_a_network_that_begins_to_remember_stops_the_run_before_it_is_released(tmp_path):
    p, model = plan(sample_rate=1.0), RemembersLater()
    with Ledger.create(tmp_path / "l.jsonl", p) as ledger, pytest.raises(ConfigError, match="'kept' is changed"):
        train(model, patients(), p, ledger, OptimizerSettings(lr=0.0), Randomness.create(1), device=CPU)
    assert read_ledger(tmp_path / "l.jsonl").steps == 3, "the two steps before were sound, the third is spent"


def test_layers_that_are_random_themselves_repeat_under_a_seed(tmp_path):
    """Dropout draws from torch's generator, which a step begins at a place of its own."""

    def weights(name: str, before: int) -> torch.Tensor:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Dropout(0.5), nn.Linear(8, 2))
        torch.manual_seed(before)
        p = plan(noise_multiplier=0.0, epsilon_target=math.inf, accountant="none", epsilon={})
        with Ledger.create(tmp_path / f"{name}.jsonl", p) as ledger:
            train(model, patients(), p, ledger, OptimizerSettings(0.5), Randomness.create(3), device=CPU)
        return flat(model)

    assert torch.equal(weights("a", before=1), weights("b", before=2))
