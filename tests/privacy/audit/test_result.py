"""What an audit hands to a report."""

import json
import math

import pytest

from dpeq.errors import ConfigError
from dpeq.privacy.audit.one_run import audit_one_run
from dpeq.privacy.audit.result import AuditResult


def result(epsilon=2.0, theoretical=4.0):
    return AuditResult("one run", epsilon, 0.5, 0.95, 1e-5, theoretical, "Nothing.", {"canaries": 7})


def test_share_and_contradiction():
    assert result().share == 0.5
    assert not result().contradicts
    assert not result(4.0).contradicts
    assert result(4.1).contradicts
    assert result(theoretical=None).share is None
    assert not result(theoretical=None).contradicts
    assert result(theoretical=math.inf).share is None
    assert result(theoretical=0.0).share is None
    assert result(theoretical=0.0).contradicts


def test_the_slot_of_a_report():
    plain = json.loads(json.dumps(result().to_dict(), allow_nan=False))
    assert set(plain) == {"method", "epsilon_lower", "confidence", "delta", "details"}
    assert plain["details"]["canaries"] == 7
    assert (plain["details"]["mu_lower"], plain["details"]["share"]) == (0.5, 0.5)
    assert plain["details"]["assumes"] == "Nothing."
    assert result(theoretical=math.inf).to_dict()["details"]["theoretical"] == "inf"


def test_an_audit_is_plain_json():
    audit = audit_one_run([3.0, 2.0, 1.0, 0.0], [True, True, False, False], delta=0.0)
    plain = json.loads(json.dumps(audit.to_dict(), allow_nan=False))
    assert plain["details"]["guessed_in"] == 1
    assert plain["details"]["correct"] == 2


def test_what_is_refused():
    for wrong in (math.nan, math.inf, -1.0):
        with pytest.raises(ConfigError, match="lower bound"):
            result(wrong)
    with pytest.raises(ConfigError, match="theoretical"):
        result(theoretical=math.nan)
