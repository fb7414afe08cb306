"""The plan's validation, its exact JSON round trip, and calibration to the upper bound."""

import copy
import json
import math
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpeq.errors import BudgetError, ConfigError
from dpeq.privacy import _session, accounting
from dpeq.privacy import plan as plan_module
from dpeq.privacy.plan import PrivacyPlan, calibrate

SETTING = {
    "epsilon": 8.0,
    "delta": 1e-4,
    "expected_batch_size": 512,
    "public_units": 4708,
    "steps": 400,
    "max_grad_norm": 1.0,
    "unit": "image",
}


def plan(**changes):
    values = {
        "epsilon_target": 8.0,
        "delta": 1e-4,
        "unit": "patient",
        "sample_rate": 0.1,
        "steps": 10,
        "expected_batch_size": 100,
        "noise_multiplier": 1.5,
        "max_grad_norm": 1.0,
        "public_units": 1000,
        "accountant": "prv",
        "epsilon": {"prv_lower": 7.8, "prv_estimate": 7.85, "prv_upper": 7.9},
    }
    return PrivacyPlan(**{**values, **changes})


@pytest.fixture(scope="module", autouse=True)
def processes():
    """One set of child processes for the module: their start-up is paid once."""
    with accounting.session():
        yield


@pytest.fixture(scope="module")
def calibrated():
    return calibrate(**SETTING)


def test_calibration_meets_the_target_from_just_below(calibrated):
    assert 8.0 * 0.9985 <= calibrated.epsilon_spent <= 8.0
    assert calibrated.accountant == "pld"
    assert calibrated.accountant_note is None
    assert calibrated.epsilon_spent == calibrated.epsilon["pld"]
    # Independently calibrated with dp-accounting's PLD at its default mesh of 1e-4: 1.389.
    assert calibrated.noise_multiplier == pytest.approx(1.389, rel=0.001)
    assert calibrated.noise_multiplier >= 1.3885


def test_the_plans_epsilon_is_the_accountants_for_its_own_constants(calibrated):
    """What is written down is computed for the very sigma that will be used, not for one met on the way."""
    accounting.clear_cache()
    p = calibrated
    assert accounting.epsilon_pld(p.sample_rate, p.noise_multiplier, p.steps, p.delta) == p.epsilon_spent
    assert accounting.epsilon_pld(p.sample_rate, p.noise_multiplier * 0.998, p.steps, p.delta) > p.epsilon_target


def test_a_search_that_stops_above_the_target_makes_no_plan(monkeypatch):
    monkeypatch.setattr(plan_module, "find_sigma", lambda *args: 1.3)
    with pytest.raises(BudgetError, match="above the target"):
        calibrate(**SETTING)


def test_accountants_that_contradict_each_other_make_no_plan(monkeypatch):
    monkeypatch.setattr(accounting, "compare", lambda *args: accounting.Comparison({"pld": 7.9, "prv_lower": 8.5}, {}))
    with pytest.raises(accounting.AccountingError, match="contradict"):
        calibrate(**SETTING)


def test_calibration_reports_every_accountant(calibrated):
    answers = calibrated.epsilon
    assert set(answers) == {"prv_lower", "prv_estimate", "prv_upper", "rdp", "pld"}
    assert answers["prv_lower"] <= answers["pld"] <= answers["prv_upper"] < answers["rdp"]
    assert calibrated.sample_rate == 512 / 4708
    assert calibrated.mu == accounting.gdp_mu(calibrated)


def test_epsilon_curve_rises_to_the_plans_epsilon(calibrated):
    curve = accounting.epsilon_curve(calibrated, points=6)
    steps, values = zip(*curve, strict=True)
    assert curve[0] == (0, 0.0)
    assert curve[-1] == (calibrated.steps, calibrated.epsilon_spent)
    assert list(steps) == sorted(set(steps))
    assert list(values) == sorted(values)
    half = accounting.epsilon_prv(calibrated.sample_rate, calibrated.noise_multiplier, steps[3], calibrated.delta)
    assert half.lower <= values[3] <= half.upper * 1.02


@pytest.mark.parametrize("epsilon", [0.5, 20.0])
def test_calibration_at_other_targets(epsilon):
    result = calibrate(**{**SETTING, "epsilon": epsilon, "steps": 20})
    assert 0.998 * epsilon <= result.epsilon_spent <= epsilon


def test_infinite_epsilon_is_the_non_private_plan():
    result = calibrate(**{**SETTING, "epsilon": math.inf})
    assert (result.private, result.noise_multiplier, result.accountant) == (False, 0.0, "none")
    assert result.epsilon_spent == math.inf
    assert result.to_dict()["epsilon_target"] == "inf"
    assert PrivacyPlan.from_dict(json.loads(json.dumps(result.to_dict(), allow_nan=False))) == result
    assert accounting.epsilon_curve(result)[:2] == [(0, 0.0), (17, math.inf)]
    assert accounting.gdp_mu(result) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epsilon_target", 0.0),
        ("epsilon_target", -1.0),
        ("epsilon_target", math.nan),
        ("epsilon_target", "eight"),
        ("delta", 0.0),
        ("delta", 1.0),
        ("delta", math.nan),
        ("delta", 1e-3),  # = 1 / public_units
        ("unit", "pixel"),
        ("neighbouring", "replace_one"),
        ("sampling", "shuffle"),
        ("sample_rate", 0.0),
        ("sample_rate", 1.01),
        ("sample_rate", math.nan),
        ("steps", 0),
        ("steps", 2.5),
        ("steps", True),
        ("expected_batch_size", 0),
        ("expected_batch_size", 1001),
        ("noise_multiplier", 0.0),
        ("noise_multiplier", -1.0),
        ("noise_multiplier", math.inf),
        ("max_grad_norm", 0.0),
        ("max_grad_norm", math.inf),
        ("max_grad_norm", math.nan),
        ("public_units", 0),
        ("views", 0),
        ("accountant", "none"),
        ("accountant", "magic"),
        ("accountant_note", 3),
        ("mu", 0.0),
        ("mu", math.inf),
        ("epsilon", {}),
        ("epsilon", {"prv_upper": 8.1}),  # spends more than the target
        ("epsilon", {"prv_upper": -1.0}),
        ("epsilon", 8.0),
    ],
)
def test_an_invalid_field_is_refused_in_one_sentence_that_names_it(field, value):
    with pytest.raises(ConfigError) as caught:
        plan(**{field: value})
    message = str(caught.value)
    assert field.removesuffix("_target") in message
    assert message.endswith(".")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"epsilon": math.nan}, "epsilon"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"delta": 1 / 4708}, "delta"),
        ({"expected_batch_size": 4709}, "expected_batch_size"),
        ({"public_units": 0}, "public_units"),
        ({"sample_rate": 0.0}, "sample_rate"),
        ({"steps": 0}, "steps"),
        ({"unit": "voxel"}, "unit"),
    ],
)
def test_calibrate_refuses_before_it_computes(changes, word, monkeypatch):
    monkeypatch.setattr(_session, "_COMMAND", ("/nonexistent",))
    monkeypatch.setattr(_session, "_current", [])
    with pytest.raises(ConfigError, match=word):
        calibrate(**{**SETTING, **changes})


def test_a_non_private_plan_has_no_noise():
    with pytest.raises(ConfigError, match="noise_multiplier"):
        plan(epsilon_target=math.inf, accountant="none", epsilon={})


def test_frozen_to_the_core():
    value = plan()
    with pytest.raises(FrozenInstanceError):
        value.steps = 11
    with pytest.raises(TypeError):
        value.epsilon["prv_upper"] = 0.1
    assert hash(value) == hash(plan())


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    rate=st.floats(1e-6, 1.0),
    sigma=st.floats(1e-3, 1e6),
    delta=st.floats(1e-12, 9e-4),
    upper=st.floats(0.0, 8.0),
)
def test_json_round_trip_is_exact(rate, sigma, delta, upper):
    value = plan(sample_rate=rate, noise_multiplier=sigma, delta=delta, epsilon={"prv_upper": upper, "rdp": math.inf})
    again = PrivacyPlan.from_dict(json.loads(json.dumps(value.to_dict(), allow_nan=False)))
    assert again == value
    assert again.sha256 == value.sha256
    assert replace(value, steps=11).sha256 != value.sha256


def test_whole_numbers_hash_like_floats():
    assert plan(epsilon_target=8, max_grad_norm=1).sha256 == plan().sha256


def test_files_copies_and_pickles(tmp_path):
    value = plan(accountant_note="A reason.", mu=1.9)
    value.write(tmp_path / "plan.json")
    for again in (PrivacyPlan.read(tmp_path / "plan.json"), pickle.loads(pickle.dumps(value)), copy.deepcopy(value)):
        assert again == value
        assert again.sha256 == value.sha256


@pytest.mark.parametrize(
    ("text", "word"), [("{", "not JSON"), ("[]", "JSON object"), ('{"a": 1}', "unknown"), ("{}", "lacks")]
)
def test_a_broken_plan_file_is_refused(tmp_path, text, word):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ConfigError, match=word):
        PrivacyPlan.read(tmp_path / "plan.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        PrivacyPlan.read(tmp_path / "none.json")


def test_importing_the_plan_is_light():
    code = (
        "import sys, dpeq.privacy.plan, dpeq.privacy.ledger; "
        "print(sorted({'torch', 'numpy', 'scipy', 'opacus', 'prv_accountant', 'dp_accounting'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
