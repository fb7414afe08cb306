"""What escnn is asked for, once: band-limited filter taps, and bases for groups off the grid; kept on disk.

escnn solves the kernel constraint and samples the solutions on the grid; the result is brought into a canonical
orthonormal form and cached under a name that is the hash of everything it depends on. A file is written beside its
target and renamed, so concurrent writers cannot hurt each other; one that fails its checksum is rebuilt with a warning.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Callable
from contextlib import contextmanager, redirect_stdout
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dpeq.errors import ConfigError
from dpeq.groups import SymmetryGroup, group
from dpeq.representations import representation
from dpeq.resources import cache_dir

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["canonical", "spatial_basis", "steerable_basis"]

_log = logging.getLogger(__name__)
_FORMAT = "3"  # raise when the canonical form changes: old files are then ignored, never misread


@cache
def spatial_basis(dim: int, kernel_size: int) -> torch.Tensor:
    """Orthonormal basis ``[n, kernel_size ** dim]`` of the taps that filters are made of, float64.

    For odd kernels, what escnn samples: rings of angular frequency up to three times their radius (the cut-off of the
    reference networks), which is all that a pixel grid can hold without aliasing: 8 of 9 taps of a 3x3 kernel, 17 of 27
    of a 3x3x3 one. For even kernels, every tap.
    """
    if kernel_size % 2 == 0 or kernel_size == 1:
        return torch.eye(kernel_size**dim, dtype=torch.float64)
    whole = group("trivial" if dim == 2 else "trivial-3d")
    return steerable_basis(whole, "trivial", "trivial", kernel_size).flatten(1)


@cache
def steerable_basis(whole: SymmetryGroup, in_name: str, out_name: str, kernel_size: int) -> torch.Tensor:
    """Orthonormal basis of the continuous equivariant kernels between two fields, sampled on the grid.

    Returns:
        float64 tensor ``[n_basis, out_size, in_size, *[kernel_size] * dim]``, rows orthonormal as flat vectors.
    """
    key = f"{_FORMAT}|{whole.name}|{in_name}|{out_name}|{kernel_size}"
    return _cached(key, lambda: torch.from_numpy(_canonical(_solve(whole, in_name, out_name, kernel_size))))


def _cached(key: str, build: Callable[[], torch.Tensor]) -> torch.Tensor:
    path = cache_dir("bases") / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"
    basis = _read(path, key)
    if basis is None:
        basis = build()
        _write(path, key, basis)
    return basis


def _read(path: Path, key: str) -> torch.Tensor | None:
    if not path.exists():
        return None
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        _log.warning("The cached filter basis %s is unreadable (%s); it is built anew.", path, error)
        return None
    basis = tensors.get("basis")
    digest = tensors.get("digest")
    if basis is None or digest is None or bytes(digest.tolist()) != _digest(basis, key):
        _log.warning("The cached filter basis %s does not match its checksum; it is built anew.", path)
        return None
    return basis


def _write(path: Path, key: str, basis: torch.Tensor) -> None:
    """Writes beside the target and renames: readers and concurrent writers see a whole file or none."""
    digest = torch.tensor(list(_digest(basis, key)), dtype=torch.uint8)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
    os.close(handle)
    try:
        save_file({"basis": basis.contiguous(), "digest": digest}, temporary)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _digest(basis: torch.Tensor, key: str) -> bytes:
    return hashlib.sha256(key.encode() + basis.contiguous().numpy().tobytes()).digest()


def canonical(rows: np.ndarray) -> np.ndarray:
    """An orthonormal basis ``[n, size]`` of the span of ``rows`` that depends on the span alone.

    The projector onto the span is unique; its images of fixed generic vectors, orthonormalised by QR with positive
    diagonal, vary continuously with it, so rounding in the solver cannot turn the basis.
    """
    # SVD only finds the span: linearly dependent solutions are dropped.
    _, singular, vt = np.linalg.svd(rows, full_matrices=False)
    span = vt[singular > 1e-8 * singular[0]]
    generic = np.random.Generator(np.random.PCG64(20230130)).standard_normal((len(span), rows.shape[1]))
    q, r = np.linalg.qr((generic @ span.T @ span).T)
    return np.ascontiguousarray((q * np.sign(np.diag(r))).T)


def _canonical(kernels: np.ndarray) -> np.ndarray:
    basis = canonical(kernels.reshape(len(kernels), -1))
    return basis.reshape(len(basis), *kernels.shape[1:])


def _solve(whole: SymmetryGroup, in_name: str, out_name: str, kernel_size: int) -> np.ndarray:
    """Sampled kernels ``[n, out_size, in_size, *kernel]`` from escnn, axes in dpeq's order."""
    with _quiet_escnn():
        from escnn import nn as enn

        gspace = _gspace(whole)
        in_type, out_type = (enn.FieldType(gspace, [_representation(gspace, whole, r)]) for r in (in_name, out_name))
        convolution = enn.R2Conv if whole.dim == 2 else enn.R3Conv
        # Angular detail up to three times a ring's radius is the cut-off of the reference networks, and all that a grid
        # can hold. But eight pixels at radius 1 show frequency 3 right at quarter turns only: turned by 45 degrees it
        # reads as another frequency, an error of 6 % in features of C8 where frequencies up to 2 leave 1 %.
        layer = convolution(
            in_type,
            out_type,
            kernel_size,
            bias=False,
            initialize=False,
            frequencies_cutoff=(lambda r: 3 * r) if whole.on_grid else (lambda r: min(2 * r, 2)),
        )
        expansion = layer.basisexpansion
        unit_vectors = torch.eye(expansion.dimension())
        with torch.no_grad():
            kernels = torch.stack([expansion(vector) for vector in unit_vectors]).double().numpy()
    kernels = kernels.reshape(len(kernels), out_type.size, in_type.size, *[kernel_size] * whole.dim)
    if whole.dim == 3:
        # escnn orders a volume z, y down, x; dpeq orders it x, y up, z.
        kernels = kernels.transpose(0, 1, 2, 5, 4, 3)[:, :, :, :, ::-1]
    return np.ascontiguousarray(kernels)


def _gspace(whole: SymmetryGroup) -> Any:
    from escnn import gspaces

    if not whole.continuous and len(whole.elements) == 1:
        return gspaces.trivialOnR2() if whole.dim == 2 else gspaces.trivialOnR3()
    n = -1 if whole.continuous else whole.rotations
    if whole.dim == 3:
        return gspaces.rot2dOnR3(n)
    return gspaces.flipRot2dOnR2(n) if whole.mirrored else gspaces.rot2dOnR2(n)


def _representation(gspace: Any, whole: SymmetryGroup, name: str) -> Any:
    """escnn's own representation of that name, made sure to have the same matrices as ours."""
    from escnn.group import directsum

    ours = representation(whole, name)
    if name == "trivial":
        theirs = gspace.trivial_repr
    elif name == "regular":
        theirs = gspace.regular_repr
    elif ours.blocks and all(part.label for _, part in ours.blocks):
        labels = [part.label if whole.mirrored else part.label[1:] for _, part in ours.blocks]
        theirs = directsum([gspace.irrep(*label) for label in labels], name=f"{whole.name}-{name}")
    else:
        raise ConfigError(f"{name} fields of {whole.name} have no kernels here; use regular, irrep or fourier fields.")
    for number in whole.elements:
        flip, turn = divmod(number, whole.rotations)
        angle = turn if not whole.continuous else 2 * np.pi * turn / whole.rotations
        element = gspace.fibergroup.element((flip, angle) if whole.mirrored else angle)
        if not np.allclose(theirs(element), ours.matrices[number], atol=1e-9):
            raise RuntimeError(f"escnn's {name} representation of {whole.name} differs from dpeq's at {number}.")
        if len(whole.elements) == 1:
            break
    return theirs


@contextmanager
def _quiet_escnn() -> Iterator[None]:
    """escnn's own warnings and prints are not the user's, and its randomised SVD is replaced by the exact one.

    escnn 1.0.11 hands ``np.matrix`` to scikit-learn's unseeded ``randomized_svd``, which current scikit-learn refuses;
    with the hook unset it uses SciPy's deterministic SVD, which is also several times faster at these sizes.
    """
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        from escnn.group import _numerical

        original = _numerical.randomized_svd
        _numerical.randomized_svd = None
        try:
            yield
        finally:
            _numerical.randomized_svd = original
