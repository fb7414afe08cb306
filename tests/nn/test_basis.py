"""Kernel bases: the constraint itself, escnn's solutions, counting by characters."""

import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch

from dpeq.errors import ConfigError
from dpeq.groups import group
from dpeq.nn import spatial as module
from dpeq.nn.basis import kernel_basis
from dpeq.nn.spatial import _canonical, _quiet_escnn, steerable_basis
from dpeq.representations import representation

PAIRS = [
    ("C4", "regular", "regular", 3),
    ("D4", "trivial", "regular", 3),
    ("D4", "regular", "trivial", 5),
    ("D4", "regular", "regular", 3),
    ("D4", "regular", "regular", 2),
    ("D4", "quotient:D1", "irrep:2", 3),
    ("D4", "trivial", "trivial", 3),
    ("axial-D4", "regular", "regular", 3),
    ("mirror", "regular", "regular", 3),
    ("O", "regular", "regular", 3),
    ("O", "quotient:axial-C4", "regular", 3),
    ("Oh", "trivial", "regular", 3),
    ("C4", "restricted:SO2:fourier:2", "regular", 3),
]


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DPEQ_CACHE", str(tmp_path))
    clear()
    yield tmp_path
    clear()


def clear():
    for function in (steerable_basis, module.spatial_basis, kernel_basis):
        function.cache_clear()


@pytest.mark.parametrize(("name", "inner", "outer", "size"), PAIRS)
def test_orthonormal_solutions_of_the_kernel_constraint(name, inner, outer, size):
    """K(g x) = rho_out(g) K(x) rho_in(g)^T for every g, checked on the sampled kernels themselves."""
    g = group(name)
    basis = kernel_basis(g, inner, outer, size)
    rows = basis.dense()
    assert rows.shape[0] == basis.n
    torch.testing.assert_close(rows @ rows.T, torch.eye(basis.n, dtype=torch.float64), atol=1e-10, rtol=0)
    r_in, r_out = (torch.from_numpy(representation(g, n).matrices) for n in (inner, outer))
    kernels = rows[:: max(1, basis.n // 20)].reshape(-1, r_out.shape[1], r_in.shape[1], *[size] * g.dim)
    for e in g.elements:
        moved = g.act_on_grid(kernels, e)  # K(g^-1 x)
        expected = torch.einsum("ab,nb...->na...", r_out[e], moved)
        expected = torch.einsum("nac...,dc->nad...", expected, r_in[e])
        torch.testing.assert_close(expected, kernels, atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("name", "inner", "outer"),
    [
        ("C4", "regular", "regular"),
        ("D4", "trivial", "regular"),
        ("D4", "regular", "regular"),
        ("D2", "regular", "trivial"),
    ],
)
def test_spans_are_escnns(name, inner, outer):
    """The same space of filters as escnn finds for the same fields and frequency cut-off."""
    g = group(name)
    with _quiet_escnn():
        from escnn import gspaces
        from escnn import nn as enn

        gspace = gspaces.flipRot2dOnR2(g.rotations) if g.mirrored else gspaces.rot2dOnR2(g.rotations)
        types = [
            enn.FieldType(gspace, [gspace.regular_repr if n == "regular" else gspace.trivial_repr])
            for n in (inner, outer)
        ]
        layer = enn.R2Conv(*types, 3, bias=False, initialize=False, frequencies_cutoff=lambda r: 3 * r)
        expand = layer.basisexpansion
        theirs = torch.stack([expand(v).flatten() for v in torch.eye(expand.dimension())]).double()
    ours = kernel_basis(g, inner, outer, 3).dense()
    assert len(ours) == np.linalg.matrix_rank(theirs.numpy(), tol=1e-5)
    torch.testing.assert_close(theirs @ ours.T @ ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "field", "size"),
    [("C8", "regular", 3), ("SO2", "fourier:2", 5), ("O2", "fourier:1", 5), ("axial-SO2", "fourier:1", 3)],
)
def test_bases_off_the_grid_hold_on_its_quarter_turns(name, field, size):
    """C8 and SO2 contain the quarter turns (and O2 mirrors), which keep the grid: there the constraint is exact."""
    g = group(name)
    rows = kernel_basis(g, field, field, size).dense()
    matrices = torch.from_numpy(representation(g, field).matrices)
    kernels = rows.reshape(-1, matrices.shape[1], matrices.shape[1], *[size] * g.dim)
    exact = [e for e in g.elements if np.array_equal(g.matrices[e], g.matrices[e].round())]
    assert len(exact) == (8 if g.mirrored else 4)
    for e in exact:
        moved = torch.einsum("ab,nb...->na...", matrices[e], g.act_on_grid(kernels, e))
        moved = torch.einsum("nac...,dc->nad...", moved, matrices[e])
        torch.testing.assert_close(moved, kernels, atol=1e-6, rtol=0)


def test_canonical_basis_depends_on_the_span_alone(own_cache):
    solved = module._solve(group("C8"), "trivial", "regular", 3)
    mix = np.random.default_rng(3).standard_normal((len(solved), len(solved)))
    mixed = np.einsum("ab,b...->a...", mix, solved)
    np.testing.assert_allclose(_canonical(mixed), _canonical(solved), atol=1e-6)


def test_cache_is_read_back_and_a_corrupt_file_is_rebuilt_with_a_warning(own_cache, monkeypatch, caplog):
    ask = (group("C8"), "trivial", "regular", 3)
    first = steerable_basis(*ask).clone()
    (path,) = (own_cache / "bases").glob("*.safetensors")
    clear()
    with monkeypatch.context() as patch:
        patch.setattr(module, "_solve", lambda *a: pytest.fail("the cache was not used"))
        assert torch.equal(steerable_basis(*ask), first)
    data = bytearray(path.read_bytes())
    data[-5] ^= 0xFF
    path.write_bytes(data)
    clear()
    torch.testing.assert_close(steerable_basis(*ask), first, atol=1e-9, rtol=0)
    assert "built anew" in caplog.text
    path.write_bytes(b"not a tensor file")
    clear()
    torch.testing.assert_close(steerable_basis(*ask), first, atol=1e-9, rtol=0)


def test_concurrent_writers_leave_whole_files(own_cache):
    """Several processes build and write the same basis at once; what they leave is readable and equal."""
    key, basis = "a key", torch.randn(40, 30, dtype=torch.float64)
    path = own_cache / "basis.safetensors"
    with ProcessPoolExecutor(4) as pool:
        for done in [pool.submit(_write_often, path, key, basis) for _ in range(4)]:
            done.result()
    assert torch.equal(module._read(path, key), basis)
    assert [p.name for p in own_cache.iterdir()] == ["basis.safetensors"]


def _write_often(path, key, basis):
    for _ in range(20):
        module._write(path, key, basis)
        assert torch.equal(module._read(path, key), basis)


def test_escnn_is_imported_only_to_build(tmp_path):
    """A second process with a warm cache builds the layer without escnn."""
    code = (
        "import sys; from dpeq.groups import group; from dpeq.nn.basis import kernel_basis;"
        "kernel_basis(group('D4'), 'regular', 'regular', 3); print('escnn' in sys.modules)"
    )
    env = {**os.environ, "DPEQ_CACHE": str(tmp_path)}
    seen = [
        subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout.strip()
        for _ in range(2)
    ]
    assert seen == ["True", "False"]


def test_zero_spaces_and_even_kernels_off_the_grid_are_refused():
    with pytest.raises(ConfigError, match="Only the zero kernel"):
        kernel_basis(group("D4"), "trivial", "irrep:1", 1)
    with pytest.raises(ConfigError, match="An even kernel of 4"):
        kernel_basis(group("C8"), "trivial", "regular", 4)
