import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from dpeq.groups import group
from dpeq.nn import basis as module
from dpeq.nn.basis import _canonical, _solve, steerable_basis

PAIRS = [("D4", "trivial"), ("D4", "regular"), ("axial-C4", "regular")]


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DPEQ_CACHE", str(tmp_path))
    steerable_basis.cache_clear()
    yield tmp_path
    steerable_basis.cache_clear()


@pytest.mark.parametrize(("name", "representation"), PAIRS)
def test_orthonormal_and_spans_escnns_kernels(own_cache, name, representation):
    solved = _solve(group(name), representation, "regular", 3)
    basis = steerable_basis(group(name), representation, "regular", 3)
    rows = basis.flatten(1)
    assert torch.allclose(rows @ rows.T, torch.eye(len(rows), dtype=rows.dtype), atol=1e-12)
    flat = torch.from_numpy(solved).flatten(1)
    assert torch.allclose(flat @ rows.T @ rows, flat, atol=1e-9), "a kernel of escnn lies outside the span"
    assert len(rows) == np.linalg.matrix_rank(flat.numpy(), tol=1e-6)


def test_canonical_basis_depends_on_the_span_alone(own_cache):
    solved = _solve(group("C4"), "regular", "regular", 3)
    mix = np.random.default_rng(3).standard_normal((len(solved), len(solved)))
    mixed = np.einsum("ab,b...->a...", mix, solved)
    np.testing.assert_allclose(_canonical(mixed), _canonical(solved), atol=1e-6)


def test_cache_is_read_back_and_a_corrupt_file_is_rebuilt_with_a_warning(own_cache, monkeypatch, caplog):
    first = steerable_basis(group("C4"), "trivial", "regular", 3).clone()
    (path,) = (own_cache / "bases").glob("*.safetensors")
    steerable_basis.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(module, "_solve", lambda *a: pytest.fail("the cache was not used"))
        assert torch.equal(steerable_basis(group("C4"), "trivial", "regular", 3), first)
    data = bytearray(path.read_bytes())
    data[-5] ^= 0xFF
    path.write_bytes(data)
    steerable_basis.cache_clear()
    rebuilt = steerable_basis(group("C4"), "trivial", "regular", 3)
    torch.testing.assert_close(rebuilt, first, atol=1e-9, rtol=0)
    assert "built anew" in caplog.text
    path.write_bytes(b"not a tensor file")
    steerable_basis.cache_clear()
    torch.testing.assert_close(steerable_basis(group("C4"), "trivial", "regular", 3), first, atol=1e-9, rtol=0)


def test_escnn_is_imported_only_to_build(tmp_path):
    """A second process with a warm cache builds the layer without escnn."""
    code = (
        "import sys; from dpeq.groups import group; from dpeq.nn.basis import steerable_basis;"
        "steerable_basis(group('C2'), 'trivial', 'regular', 3); print('escnn' in sys.modules)"
    )
    env = {**os.environ, "DPEQ_CACHE": str(tmp_path)}
    seen = [
        subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout.strip()
        for _ in range(2)
    ]
    assert seen == ["True", "False"]
