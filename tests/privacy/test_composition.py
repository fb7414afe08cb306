"""Several runs together and groups of units: other accountants, closed forms, sums over fine grids, and ledgers."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest

from dpeq.errors import ConfigError, DataError
from dpeq.privacy import accounting, composition
from dpeq.privacy.accounting import AccountingError
from dpeq.privacy.composition import (
    Part,
    compose,
    compose_ledgers,
    group_by_definition,
    group_epsilon,
    read_spent,
)
from dpeq.privacy.gdp import gaussian_epsilon
from dpeq.privacy.ledger import Ledger
from dpeq.privacy.plan import PrivacyPlan

A, B, C = Part(0.05, 1.2, 200), Part(0.02, 0.8, 300), Part(0.3, 6.0, 100)
DELTA = 1e-5
PLAN = PrivacyPlan(
    epsilon_target=8.0,
    delta=1e-4,
    unit="image",
    sample_rate=0.05,
    steps=6,
    expected_batch_size=50,
    noise_multiplier=1.2,
    max_grad_norm=1.0,
    public_units=1000,
    accountant="pld",
    epsilon={"pld": 7.9},
)


@pytest.fixture(scope="module", autouse=True)
def processes():
    with accounting.session("pld", "rdp"):
        yield


def silent(*args, **kwargs):
    raise AccountingError("it is silent")


def test_different_runs_against_prv_accountant():
    """Another library, another discretisation, its own composition of different mechanisms."""
    from prv_accountant import PoissonSubsampledGaussianMechanism, PRVAccountant

    parts = [A, B]  # rates at which its own mean is right
    accountant = PRVAccountant(
        prvs=[PoissonSubsampledGaussianMechanism(q, sigma) for q, sigma, _ in parts],
        max_self_compositions=[steps for _, _, steps in parts],
        eps_error=0.02,
        delta_error=DELTA / 1000,
    )
    lower, estimate, upper = accountant.compute_epsilon(DELTA, [steps for _, _, steps in parts])
    total = compose(parts, DELTA)
    assert lower < total.epsilon < upper
    assert total.epsilon == pytest.approx(estimate, rel=2e-3)
    assert total.epsilon < total.rdp


def test_different_runs_without_sampling_are_one_gaussian():
    parts = [Part(1.0, 20.0, 100), Part(1.0, 8.0, 9)]
    exact = gaussian_epsilon(math.sqrt(100 / 400 + 9 / 64), DELTA)
    assert exact <= compose(parts, DELTA).epsilon <= exact * 1.0006


def test_runs_of_equal_constants_are_one_run_of_all_steps():
    together = compose([Part(0.05, 1.2, 120), Part(0.05, 1.2, 0), Part(0.05, 1.2, 80)], DELTA)
    assert together.epsilon == accounting.epsilon_pld(*A, DELTA)
    assert together.rdp == accounting.epsilon_rdp(*A, DELTA)
    # The same by the path of different runs: the rates differ too little to be merged, and for epsilon too.
    split = compose([Part(0.05, 1.2, 120), Part(0.05 * (1 + 1e-9), 1.2, 80)], DELTA)
    assert split.epsilon == pytest.approx(together.epsilon, rel=1e-3)


def test_the_order_of_runs_does_not_matter_and_each_adds():
    assert compose([A, B, C], DELTA) == compose([C, A, B], DELTA)
    totals = [compose(parts, DELTA).epsilon for parts in ([A], [A, B], [A, B, C], [A, B, C, A])]
    assert all(a < b for a, b in pairwise(totals))
    # Less than the sum of epsilons at the sum of deltas, the plainest bound there is.
    plain = sum(accounting.epsilon_pld(*part, DELTA / 3) for part in (A, B, C))
    assert totals[2] < plain


def test_nothing_and_no_noise():
    assert compose([], DELTA).epsilon == compose([Part(0.1, 1.0, 0)], DELTA).epsilon == 0.0
    assert compose([A, Part(0.1, 0.0, 5)], DELTA).epsilon == math.inf
    assert compose([A, Part(0.1, 0.0, 0)], DELTA).epsilon == compose([A], DELTA).epsilon


def test_where_dp_accounting_is_silent_renyi_answers_and_says_so(monkeypatch):
    asked = composition.ask
    monkeypatch.setattr(composition, "ask", lambda role, *a, **k: silent() if role == "pld" else asked(role, *a, **k))
    total = compose([A, B], DELTA)
    assert (total.accountant, total.epsilon) == ("rdp", total.rdp)
    assert "it is silent" in total.note
    with pytest.raises(AccountingError, match="silent"):  # for a group Opacus has no bound
        compose([A, B], DELTA, 3)


def test_a_comparison_that_is_missing_changes_nothing(monkeypatch):
    asked = composition.ask
    monkeypatch.setattr(composition, "ask", lambda role, *a, **k: silent() if role == "rdp" else asked(role, *a, **k))
    assert compose([A], DELTA).epsilon == accounting.epsilon_pld(*A, DELTA)
    assert compose([A], DELTA).rdp is None


@pytest.mark.parametrize(
    ("parts", "delta", "group", "word"),
    [
        ([Part(1.5, 1.0, 1)], DELTA, 1, "sampling rate"),
        ([Part(0.5, -1.0, 1)], DELTA, 1, "noise multiplier"),
        ([Part(0.5, 1.0, -1)], DELTA, 1, "steps"),
        ([], 0.0, 1, "Delta"),
        ([A], DELTA, 0, "group size"),
        ([A], DELTA, 2.0, "group size"),
        ([A, B], DELTA, [1], "group sizes for 2 runs"),
    ],
)
def test_impossible_numbers_are_refused(parts, delta, group, word):
    with pytest.raises(ConfigError, match=word):
        compose(parts, delta, [group] * len(parts) if isinstance(group, float) else group)


# ------------------------------------------------------------------------------------------------ groups


@pytest.mark.parametrize("size", [1, 2, 7])
def test_a_group_without_sampling_is_the_closed_form(size):
    parts = [Part(1.0, 30.0, 40), Part(1.0, 10.0, 3)]
    total = group_epsilon(parts, DELTA, size)
    assert total.accountant == "gaussian"
    assert total.epsilon == gaussian_epsilon(size * math.sqrt(40 / 900 + 3 / 100), DELTA)
    # The path of the mixture comes to the same, from above.
    assert total.epsilon <= compose(parts, DELTA, size).epsilon <= total.epsilon * 1.001


def test_a_group_costs_more_than_its_members_suggest_and_less_than_the_definition():
    part = Part(0.02, 2.0, 200)
    one = compose([part], DELTA).epsilon
    values = [group_epsilon([part], DELTA, size).epsilon for size in (1, 2, 3, 5)]
    assert values[0] == one
    for size, value in zip((2, 3, 5), values[1:], strict=True):
        assert size * one < value  # the epsilon alone times k forgets what happens to delta
        assert value < group_by_definition([part], DELTA, size)
    assert all(a < b for a, b in pairwise(values))


def test_the_definition_for_groups_is_what_it_says():
    part, size = Part(0.1, 3.0, 50), 3
    epsilon = group_by_definition([part], DELTA, size)
    e = epsilon / size
    # The delta at which one unit has this e, found by the accountant alone, must suffice.
    d = DELTA * math.expm1(e) / math.expm1(size * e)
    assert accounting.epsilon_pld(*part, d) <= e * 1.001
    assert group_by_definition([part], DELTA, 1) == accounting.epsilon_pld(*part, DELTA)
    assert group_by_definition([Part(0.1, 0.0, 5)], DELTA, 2) == math.inf
    assert group_by_definition([Part(1e-4, 30.0, 1)], 0.01, 4) == 0.0


def test_where_the_mixture_has_no_answer_the_definition_does(monkeypatch):
    asked = composition.ask

    def no_groups(role, op, **arguments):
        return silent() if max(arguments.get("group", [1])) > 1 else asked(role, op, **arguments)

    monkeypatch.setattr(composition, "ask", no_groups)
    total = group_epsilon([A], DELTA, 2)
    assert total.accountant == "definition"
    assert "it is silent" in total.note
    assert total.epsilon == group_by_definition([A], DELTA, 2)


def test_groups_of_different_sizes_lie_between():
    low, high = compose([A, C], DELTA, 1).epsilon, compose([A, C], DELTA, 3).epsilon
    mixed = compose([A, C], DELTA, [3, 1])
    assert low < mixed.epsilon < high
    assert mixed.group == (1, 3)
    assert compose([C, A], DELTA, [1, 3]) == mixed


# ------------------------------------------------------------------------------------------------ ledgers


def run(folder, plan, steps, tail=b""):
    folder.mkdir()
    with Ledger.create(folder / "ledger.jsonl", plan) as ledger:
        for step in range(1, steps + 1):
            ledger.spend(step)
        ledger.note("done")
    with (folder / "ledger.jsonl").open("ab") as handle:
        handle.write(tail)
    return folder


def test_a_torn_line_counts_as_a_step(tmp_path):
    torn = run(tmp_path / "a", PLAN, 3, tail=b'{"kind":"st')
    assert (read_spent(torn).steps, read_spent(torn).plan) == (4, PLAN)
    with Ledger.open(torn / "ledger.jsonl", PLAN):
        pass
    assert read_spent(torn).steps == 4  # the tear is an entry now
    with Ledger.open(torn / "ledger.jsonl", PLAN) as ledger:
        ledger.spend(4)
    assert read_spent(torn).steps == 4  # and the step was spent
    assert read_spent(run(tmp_path / "b", PLAN, 6, tail=b"x")).steps == 6  # never more than the plan has


def test_ledgers_that_do_not_serve_are_refused(tmp_path):
    folder = run(tmp_path / "a", PLAN, 2)
    assert read_spent(folder) == read_spent(folder / "ledger.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        read_spent(tmp_path / "none")
    ledger = folder / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes().replace(b'"step":2', b'"step":3'))
    with pytest.raises(DataError, match="Line 3"):
        read_spent(folder)


def test_ledgers_are_composed_with_their_whole_plans(tmp_path):
    first = run(tmp_path / "a", PLAN, 6)
    second = run(tmp_path / "b", replace(PLAN, sample_rate=0.2, noise_multiplier=3.0, delta=1e-5), 2)
    parts = [Part(0.05, 1.2, 6), Part(0.2, 3.0, 6)]
    assert compose_ledgers([first, second / "ledger.jsonl"]) == compose(parts, 1e-5)
    assert compose_ledgers([first, second], delta=1e-3) == compose(parts, 1e-3)
    assert compose_ledgers([first]).epsilon == accounting.epsilon_pld(0.05, 1.2, 6, 1e-4)


def test_a_run_without_noise_makes_everything_infinite(tmp_path):
    private = run(tmp_path / "a", PLAN, 1)
    infinite = replace(PLAN, epsilon_target=math.inf, noise_multiplier=0.0, accountant="none", epsilon={})
    assert compose_ledgers([private, run(tmp_path / "b", infinite, 1)]).epsilon == math.inf


def test_images_and_patients_meet_in_the_patient(tmp_path):
    images = run(tmp_path / "a", PLAN, 4)
    patients = run(tmp_path / "b", replace(PLAN, unit="patient", sample_rate=0.1), 4)
    with pytest.raises(ConfigError, match="images_per_patient"):
        compose_ledgers([images, patients])
    total = compose_ledgers([images, patients], images_per_patient=3)
    assert total == compose([Part(0.05, 1.2, 6), Part(0.1, 1.2, 6)], 1e-4, [3, 1])
    assert compose_ledgers([images], images_per_patient=3) == compose([Part(0.05, 1.2, 6)], 1e-4, 3)
    with pytest.raises(ConfigError, match="group size"):
        compose_ledgers([images], images_per_patient=0)


def test_ledgers_that_cannot_be_composed_are_refused(tmp_path):
    folder = run(tmp_path / "a", PLAN, 2)
    with pytest.raises(ConfigError, match="No run"):
        compose_ledgers([])
    with pytest.raises(ConfigError, match="twice"):
        compose_ledgers([folder, folder / "ledger.jsonl"])
    with pytest.raises(DataError, match="cannot be read"):
        compose_ledgers([tmp_path / "none"])
