"""What accountants are spared of their imports changes no digit of their answers."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from dpeq.privacy import _light, _pld, accounting
from dpeq.privacy._session import ask


@pytest.mark.parametrize("scale", [0.05, 1.0, 1.1, 300.0])
def test_the_normal_distribution_is_scipys_to_the_last_bit(scale):
    ours, scipys = _light._Normal(scale=scale), stats.norm(scale=scale)
    x = np.concatenate([np.linspace(-40, 40, 801), [0.0, 1e-300, -1e-300, 1e3, -1e3]]) * scale
    assert np.array_equal(ours.cdf(x), scipys.cdf(x))
    assert np.array_equal(ours.logcdf(x), scipys.logcdf(x))
    assert np.array_equal(ours.logcdf(list(x)), scipys.logcdf(list(x)))
    for probability in (0.5 * np.exp(-50.0), 1e-12, 0.3, 0.5, 0.999):
        assert ours.ppf(probability) == scipys.ppf(probability)
    for single in (-1.5, 0, 2):
        assert ours.cdf(single) == scipys.cdf(single)


@pytest.mark.parametrize(
    ("parts", "group"),
    [
        ([[0.1087, 1.0964, 200]], [1]),
        ([[1.0, 9.0, 30]], [1]),
        ([[0.05, 1.2, 100]], [3]),
        ([[0.05, 1.2, 100], [0.2, 4.0, 20]], [1, 1]),
    ],
)
def test_the_child_process_says_what_the_whole_library_says(parts, group):
    """Here dp-accounting is imported whole: its own entry point, scipy.stats, scipy.signal."""
    import dp_accounting  # noqa: F401

    assert ask("pld", "epsilon", parts=parts, delta=1e-5, precision=1e-3, group=group) == _pld.epsilon(
        parts, 1e-5, 1e-3, group
    )


def test_opacus_and_prv_accountant_too():
    from opacus.accountants.analysis import rdp
    from prv_accountant import PoissonSubsampledGaussianMechanism, PRVAccountant

    q, sigma, steps, delta = 0.05, 1.2, 300, 1e-5
    orders, divergences = ask("rdp", "renyi", parts=[[q, sigma, steps]])
    assert divergences == [steps * rdp.compute_rdp(q=q, noise_multiplier=sigma, steps=1, orders=a) for a in orders]
    bounds = accounting.epsilon_prv(q, sigma, steps, delta)
    whole = PRVAccountant(
        PoissonSubsampledGaussianMechanism(q, sigma),
        eps_error=(bounds.upper - bounds.lower) / 2.1,
        delta_error=delta / 1000,
        max_self_compositions=steps,
    )
    assert bounds.estimate == pytest.approx(whole.compute_epsilon(delta, [steps])[1], rel=1e-5)


def test_opacus_prv_says_what_the_whole_library_says():
    """Here Opacus is imported whole, torch included."""
    from dpeq.privacy._prv_worker import opacus_prv

    question = {"q": 0.05, "sigma": 1.2, "steps": [30], "max_steps": 30, "delta": 1e-5, "precision": 2e-3}
    import opacus.accountants  # noqa: F401

    assert ask("opacus", "prv", **question) == opacus_prv(**question)


def test_what_stands_for_a_module_loads_it_at_its_first_use():
    code = (
        "import sys, json\n"
        "from dpeq.privacy import _light\n"
        "_light.dp_accounting()\n"
        "import scipy\n"
        "from scipy import signal, stats\n"
        "said = [name in sys.modules for name in ('scipy.optimize', 'scipy.stats._stats_py')]\n"
        "value = signal.fftconvolve([1.0, 2.0], [1.0, 1.0]).tolist()\n"
        "said += [name in sys.modules for name in ('scipy.optimize', 'scipy.stats._stats_py')]\n"
        "print(json.dumps([said, value, float(stats.norm.cdf(0.0)), hasattr(stats, '__nothing__')]))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == [[False, False, True, True], [1.0, 3.0, 2.0], 0.5, False]


def test_no_accountant_loads_torch_and_none_of_a_plan_scipy_stats():
    code = (
        "import sys\n"
        "from dpeq.privacy import _prv_worker\n"
        "_prv_worker._operations(sys.argv[1])\n"
        "print(sorted({'torch', 'scipy.stats._stats_py'} & set(sys.modules)))\n"
    )
    for role in ("pld", "prv", "rdp", "opacus"):
        result = subprocess.run([sys.executable, "-c", code, role], capture_output=True, text=True, check=True)
        heavy = ["scipy.stats._stats_py"] if role == "opacus" else []  # which composes by scipy.signal
        assert result.stdout.strip() == str(heavy)


def test_what_was_left_out_says_so_when_it_is_called():
    code = (
        "from dpeq.privacy import _light\n"
        "_light.prv_accountant()\n"
        "from scipy import signal\n"
        "try:\n    signal.convolve([1], [1])\nexcept NotImplementedError as error:\n    print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "only equal mechanisms" in result.stdout


def test_a_missing_library_is_named():
    with pytest.raises(ImportError, match="no_such_package is not installed"):
        _light._packages("no_such_package")
